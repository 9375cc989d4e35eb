"""What one step sees: which images, how noisy, which patches.

Everything random is a function of (seed, stage, step) and nothing else: no state is carried from step to step, so a run
resumed at any step draws what it would have drawn. It is drawn for the whole batch on every rank; ranks and
micro-batches take their slices, so their number changes nothing but rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from maskdm.diffusion.mask_schedule import Portion, parts
from maskdm.diffusion.patches import from_uint8
from maskdm.diffusion.process import Process
from maskdm.training.store import Store


@dataclass(frozen=True)
class TrainingSet:
    """The members, the only pictures that training may touch.

    Attributes:
        images: all pictures, where the device can reach them.
        members: numbers of the rows to train on.
        labels: (N,) int64, or None for an unconditional model.
        unconditional: the label that stands for "no class".
    """

    images: Store
    members: np.ndarray
    labels: np.ndarray | None
    unconditional: int


@dataclass(frozen=True)
class Batch:
    """A part of a batch on the device, all with masks of one shape; see `maskdm.diffusion.loss.denoising_loss`."""

    x_0: Tensor
    t: Tensor
    eps: Tensor
    visible: Tensor | None
    through: Tensor | None
    label: Tensor | None

    def __len__(self) -> int:
        return len(self.x_0)

    def split(self, size: int | None) -> Iterator[Batch]:
        """Micro-batches of at most `size` images."""
        for i in range(0, len(self), size or max(len(self), 1)):
            parts = (None if tensor is None else tensor[i : i + (size or len(self))] for tensor in self._tensors())
            yield Batch(*parts)  # type: ignore[arg-type] # None stays None

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.x_0, self.t, self.eps, self.visible, self.through, self.label


def seed_of(*parts: object) -> int:
    """63 bits that depend on every part."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def order(members: int, batch_size: int, step: int, *seed: object) -> np.ndarray:
    """Which members step `step` takes: (batch_size,), from an endless row of freshly shuffled epochs."""
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = position // members
    taken = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        taken[here] = _shuffled(members, seed_of(*seed, "epoch", epoch))[position[here] % members]
    return taken


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def _shuffled(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n)


def draw(
    data: TrainingSet,
    portions: Sequence[Portion],
    process: Process,
    *,
    step: int,
    batch_size: int,
    seed: tuple[object, ...],
    flip: float,
    label_dropout: float,
    device: torch.device,
    share: Callable[[slice], slice] = lambda whole: whole,
) -> list[Batch]:
    """The batch of step `step` of a stage, a part for every portion of its masks.

    Everything random is drawn for the whole batch, whatever part of it `share` leaves to this rank.
    """
    # Generators of the CPU keep 32 bits of a seed: counted up from a start, no two steps share one.
    generator = torch.Generator(device).manual_seed((seed_of(*seed, "steps") + step) % 2**32)
    height, width, channels = data.images.size
    stretches = parts(portions, batch_size)
    mine = [share(whole) for whole in stretches]

    def rows_at(step: int) -> np.ndarray:
        rows = data.members[order(len(data.members), batch_size, step, *seed)]
        return np.concatenate([rows[part] for part in mine])

    rows = rows_at(step)
    pixels = data.images.take(rows)
    data.images.expect(rows_at(step + 1))
    labels = None if data.labels is None else _to_device(data.labels[rows], device)

    u = torch.rand(batch_size, generator=generator, device=device)
    eps = torch.randn(batch_size, channels, height, width, generator=generator, device=device)
    mirrored = torch.rand(batch_size, generator=generator, device=device) < flip
    unlabelled = torch.rand(batch_size, generator=generator, device=device) < label_dropout

    drawn = []
    end = 0
    for portion, whole, part in zip(portions, stretches, mine, strict=True):
        view = portion.masking.view(whole.stop - whole.start, generator)
        low, high = portion.noise
        inside = slice(part.start - whole.start, part.stop - whole.start, part.step)
        begin, end = end, end + len(range(batch_size)[part])
        if begin == end:
            continue
        x_0 = from_uint8(pixels[begin:end]).permute(0, 3, 1, 2).contiguous()
        if flip:
            x_0 = torch.where(mirrored[part, None, None, None], x_0.flip(3), x_0)
        label = None if labels is None else labels[begin:end].masked_fill(unlabelled[part], data.unconditional)
        t = process.training_time(low + (high - low) * u[part])
        visible, through = (None if patches is None else patches[inside] for patches in view)
        drawn.append(Batch(x_0, t, eps[part], visible, through, label))
    return drawn


def _to_device(rows: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(rows)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
