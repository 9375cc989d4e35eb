"""What one step sees: which images, at which noise levels, which patches.

Everything random is a function of (seed, stage, step) and nothing else: no state is carried from step to step, so a run
resumed at any step draws what it would have drawn. It is drawn for the whole batch on every rank; ranks and
micro-batches take their slices, so their number changes nothing but rounding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from maskdm.diffusion.mask_schedule import MaskGroup, group_slices
from maskdm.diffusion.masks import Mask
from maskdm.diffusion.pixels import area_average, to_model
from maskdm.diffusion.process import Process
from maskdm.runtime.distributed import share_of_rank
from maskdm.training.store import Store


@dataclass(frozen=True)
class TrainingSet:
    """The members, the only images that training may touch.

    Attributes:
        images: all images, where the device can reach them.
        members: (M,) the rows to train on.
        labels: (N,) int64 of all rows, or None for an unconditional model.
        unconditional: the label that stands for "no class".
    """

    images: Store
    members: np.ndarray
    labels: np.ndarray | None
    unconditional: int


@dataclass(frozen=True)
class Batch:
    """A part of a batch on the device, all with masks of one shape; see `maskdm.diffusion.loss.denoising_loss`.

    Attributes:
        x_0: (B, C, H, W), -1 to 1.
        t: (B,), times of the process.
        eps: (B, C, H, W), standard normal.
        mask: of the patches, None where all are visible.
        label: (B,) int64, or None.
        weight: how much each of its images counts in the loss of the batch.
    """

    x_0: Tensor
    t: Tensor
    eps: Tensor
    mask: Mask | None
    label: Tensor | None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.x_0)

    def split(self, size: int | None) -> Iterator[Batch]:
        """Micro-batches of at most `size` images; all of them at once for None."""
        for start in range(0, len(self), size or max(len(self), 1)):
            rows = slice(start, start + (size or len(self)))
            yield Batch(
                self.x_0[rows],
                self.t[rows],
                self.eps[rows],
                None if self.mask is None else self.mask.rows(rows),
                None if self.label is None else self.label[rows],
                self.weight,
            )


def seed_of(*parts: object) -> int:
    """63 bits that depend on every part."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def group_weight(group: MaskGroup, images: int, batch_size: int) -> float:
    """How much each of the `images` of a group counts, so that the group has its share of the loss of a batch.

    A batch has whole images: of three equal groups and 8 images two get 3, and one 2, which count 8/9 and 4/3.
    """
    weight = group.share * batch_size / images
    return 1.0 if math.isclose(weight, 1.0) else weight


@lru_cache(maxsize=64)
def most_micro_batches(groups: tuple[MaskGroup, ...], batch_size: int, world_size: int, micro_batch: int | None) -> int:
    """The micro-batches of the rank that has the most of them, in one step.

    Args:
        groups: the masks of the step; each has micro-batches of its own.
        batch_size: over all ranks.
        world_size: how many ranks there are.
        micro_batch: images of one at most, None for any number.
    """
    counts = []
    for rank in range(world_size):
        own = [
            len(range(batch_size)[share_of_rank(rows, rank, world_size)]) for rows in group_slices(groups, batch_size)
        ]
        counts.append(sum(math.ceil(images / (micro_batch or images)) for images in own if images))
    return max(counts)


def member_order(members: int, batch_size: int, step: int, *seed: object) -> np.ndarray:
    """Which of `members` step `step` takes: (batch_size,), from an endless row of freshly shuffled epochs."""
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


def draw_batch(
    data: TrainingSet,
    groups: Sequence[MaskGroup],
    process: Process,
    *,
    step: int,
    batch_size: int,
    seed: tuple[object, ...],
    flip: float,
    label_dropout: float,
    device: torch.device,
    rank_slice: Callable[[slice], slice] = lambda rows: rows,
    image_size: tuple[int, int] | None = None,
) -> list[Batch]:
    """The batch of step `step` of a stage, a part for every group of its masks.

    Everything random is drawn for the whole batch, whatever part of it is this rank's.

    Args:
        data: the members.
        groups: the masks of the step.
        process: whose times are trained.
        step: within the stage, from 0.
        batch_size: over all ranks.
        seed: what randomness is a function of, besides the step.
        flip: share of images that are mirrored, 0 to 1.
        label_dropout: share of labels that are dropped, 0 to 1.
        device: where the batch is wanted.
        rank_slice: rows of the batch -> those of this rank.
        image_size: (h, w) that images are averaged down to, see `area_average`; None for that of `data`.
    """
    # Generators of the CPU keep 32 bits of a seed: counted up from a start, no two steps share one.
    generator = torch.Generator(device).manual_seed((seed_of(*seed, "steps") + step) % 2**32)
    slices = group_slices(groups, batch_size)
    own = [rank_slice(rows) for rows in slices]
    pixels, labels = _take(data, own, step, batch_size, seed, device)

    height, width, channels = data.images.size
    height, width = image_size or (height, width)
    u = torch.rand(batch_size, generator=generator, device=device)
    eps = torch.randn(batch_size, channels, height, width, generator=generator, device=device)
    mirrored = torch.rand(batch_size, generator=generator, device=device) < flip
    unlabelled = torch.rand(batch_size, generator=generator, device=device) < label_dropout

    drawn = []
    end = 0
    for group, rows, part in zip(groups, slices, own, strict=True):
        mask = group.masking.draw(rows.stop - rows.start, generator)
        begin, end = end, end + len(range(batch_size)[part])
        if begin == end:
            continue
        weight = group_weight(group, rows.stop - rows.start, batch_size)
        x_0 = area_average(to_model(pixels[begin:end]), (height, width))
        if flip:
            x_0 = torch.where(mirrored[part, None, None, None], x_0.flip(3), x_0)
        label = None if labels is None else labels[begin:end].masked_fill(unlabelled[part], data.unconditional)
        low, high = group.noise
        t = process.training_time(low + (high - low) * u[part])
        inside = slice(part.start - rows.start, part.stop - rows.start, part.step)
        drawn.append(Batch(x_0, t, eps[part], None if mask is None else mask.rows(inside), label, weight))
    return drawn


def _take(
    data: TrainingSet, own: Sequence[slice], step: int, batch_size: int, seed: tuple[object, ...], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """This rank's images, (B, H, W, C) uint8, and labels, (B,), on the device; prefetches those of the next step."""

    def rows_at(step: int) -> np.ndarray:
        rows = data.members[member_order(len(data.members), batch_size, step, *seed)]
        return np.concatenate([rows[part] for part in own])

    rows = rows_at(step)
    pixels = data.images.take(rows)
    data.images.prefetch(rows_at(step + 1))
    return pixels, None if data.labels is None else _to_device(data.labels[rows], device)


def _to_device(rows: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(rows)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
