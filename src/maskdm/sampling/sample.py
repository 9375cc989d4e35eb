"""Images from a model: seeds, labels, batches, guidance, a row of times, and one of the samplers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.pixels import to_unit
from maskdm.errors import ArgumentError
from maskdm.runtime.device import exact_float32
from maskdm.runtime.distributed import Runtime
from maskdm.runtime.host_memory import host_available_bytes, require_memory
from maskdm.sampling.guidance import ALWAYS, Guidance, estimator
from maskdm.sampling.samplers import Context, Sampler, get_sampler, integrate, time_of
from maskdm.sampling.timesteps import sampling_times

SEEDS = 2**32
MOST_IMAGES, MOST_AT_ONCE = 1_000_000, 2**16
"""Of one call, and of one batch: more are a mistake of whoever typed them."""
SAMPLER, STEPS = "dpm++", 25
"""The usual ones: benchmarks/sampling.py."""

Callback = Callable[[int], None]
"""Called with the number of (image x step) units done, for a progress bar."""


def no_callback(units: int) -> None:
    """Does nothing."""


class SeededNoise:
    """Standard normals for a list of images, each from a stream of its own, whatever it is batched with.

    Drawn on the CPU, so that a seed means the same image on every device.

    Args:
        streams: (seed, k) of each image, for the seed's k-th image.
        shape: of an image, (C, H, W).
        device: where the noise is wanted.
    """

    def __init__(self, streams: Sequence[tuple[int, int]], shape: tuple[int, int, int], device: torch.device) -> None:
        # A seed's k-th image has a seed of its own, and the 0th the seed itself. Generators of the CPU take 32 bits.
        self.generators = [torch.Generator().manual_seed((s + k * 0x9E3779B1) % SEEDS) for s, k in streams]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        """The next draw: (B, C, H, W)."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)


@dataclass(frozen=True, eq=False)
class SamplingConfig:
    """How images are sampled; `sampling_config` makes and checks it.

    Attributes:
        denoiser: the model.
        sampler: with its options.
        times: falling, the clean image last.
        guidance: how much, by what, and where.
        seeds: image i uses seed i, and starts again from the first when they run out.
        labels: numbers, likewise; empty for a model without classes.
    """

    denoiser: Denoiser
    sampler: Sampler
    times: tuple[float, ...]
    guidance: Guidance
    seeds: Sequence[int]
    labels: Sequence[int]

    def batches(self, numbers: range, batch_size: int) -> Iterator[tuple[range, Context]]:
        """Numbers of the images of each batch, and the model with their labels, and their noise."""
        for start in range(0, len(numbers), batch_size):
            batch = numbers[start : start + batch_size]
            yield batch, self.context(batch)

    def context(self, batch: range) -> Context:
        """The model with the labels of the images of these numbers, and their noise."""
        denoiser = self.denoiser
        label = None
        if self.labels:
            label = torch.tensor([self.label(i) for i in batch], device=denoiser.device)
        shape = (denoiser.channels, *denoiser.image_size)
        noise = SeededNoise([self.stream(i) for i in batch], shape, denoiser.device)
        return Context(denoiser.process, estimator(denoiser, self.guidance, label), noise)

    def stream(self, number: int) -> tuple[int, int]:
        """The seed of an image, and how many images before it were made of this seed."""
        return self.seeds[number % len(self.seeds)], number // len(self.seeds)

    def label(self, number: int) -> int | None:
        """The class of an image, as a number; None for a model without classes."""
        return self.labels[number % len(self.labels)] if self.labels else None

    def class_name(self, number: int) -> str:
        """The class of an image; "" where it has none."""
        label, names = self.label(number), self.denoiser.class_names
        return names[label] if label is not None and label < len(names) else ""

    def integrate(self, context: Context, x_t: Tensor, times: Sequence[float], callback: Callable[[], None]) -> Tensor:
        """From x_t at times[0], a part of the times, to the last of them: (B, C, H, W) in [-1, 1]."""
        return integrate(self.sampler, context, x_t, times, num_steps=len(self.times) - 1, callback=callback)


def sampling_config(
    denoiser: Denoiser,
    *,
    steps: int = STEPS,
    sampler: Sampler | str = SAMPLER,
    spacing: str | None = None,
    shift: float = 1.0,
    seeds: Sequence[int] = range(64),
    labels: str | Sequence[str | int] | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] = ALWAYS,
    guide: Denoiser | None = None,
) -> SamplingConfig:
    """How images are to be sampled.

    Args:
        denoiser: the model.
        steps: steps of each image; the network is called once in each (heun: twice).
        sampler: what `get_sampler` gives, or the name of one with its usual options.
        spacing: of the times: uniform, karras or logsnr; by default the usual one of the process.
        shift: more than 1 puts more of the steps where there is much noise.
        seeds: image i uses seed i, and starts again from the first when they run out.
        labels: class names or numbers (or "none"), or text with commas between them, likewise; default, for a model
            with classes, one after another.
        guidance: weight of guidance; 1 is none.
        guidance_interval: noise levels (0 clean, 1 noise) between which it is applied.
        guide: a weaker model to be guided away from, instead of the unconditional output (autoguidance).

    Raises:
        ArgumentError: an unknown sampler, spacing or label, guidance by nothing, numbers out of range.
    """
    if isinstance(sampler, str):
        sampler = get_sampler(sampler)
    if not len(seeds) or min(seeds) < 0 or max(seeds) >= SEEDS:
        raise ArgumentError("seeds", wanted=f"at least one, each 0 to {SEEDS - 1}")
    numbers = list(range(denoiser.unconditional)) if labels is None else denoiser.labels(labels)
    times = sampling_times(denoiser.process, denoiser.prediction, steps, spacing=spacing, shift=shift)
    checked = _guidance(denoiser, guidance, guidance_interval, guide)
    return SamplingConfig(denoiser, sampler, tuple(times.tolist()), checked, [int(seed) for seed in seeds], numbers)


def _guidance(denoiser: Denoiser, weight: float, interval: tuple[float, float], guide: Denoiser | None) -> Guidance:
    low, high = interval
    if not math.isfinite(weight):
        raise ArgumentError("guidance", got=weight, wanted="a number", remedy="1 is none, 1.5 to 4 are usual")
    if not 0 <= low < high <= 1:
        raise ArgumentError("guidance_interval", got=interval, wanted="noise levels, 0 <= low < high <= 1")
    unguided = "given without guidance, which is 1 (none)"
    if interval != ALWAYS and weight == 1.0:
        raise ArgumentError("guidance_interval", unguided, remedy="set guidance too")
    if guide is not None:
        if weight == 1.0:
            raise ArgumentError("guide", unguided, remedy="set guidance too, e.g. 1.5")
        if (guide.channels, guide.image_size) != (denoiser.channels, denoiser.image_size):
            shapes = [f"{d.channels} x {d.image_size[0]} x {d.image_size[1]}" for d in (guide, denoiser)]
            raise ArgumentError("guide", f"is for images of {shapes[0]}", wanted=f"those of the model, {shapes[1]}")
        if guide.class_names not in ((), denoiser.class_names):
            raise ArgumentError("guide", "has other classes than the model", wanted="the same, or none")
    elif weight != 1.0 and not denoiser.class_names:
        remedy = "leave it at 1, or give a weaker model as guide"
        raise ArgumentError("guidance", "this model has no classes", got=weight, remedy=remedy)
    return Guidance(weight, guide, interval)


Maker: TypeAlias = Callable[[range, Context], Tensor]
"""(numbers of the images of a batch, what steps may ask) -> (B, C, H, W) in [-1, 1]: how a batch is made."""


def from_noise(config: SamplingConfig, callback: Callback = no_callback) -> Maker:
    """Images from noise alone.

    Args:
        config: made by `sampling_config`.
        callback: called with the number of (image x step) units done.
    """
    start = time_of(config.denoiser.process, config.times[0]).sigma

    def make(batch: range, context: Context) -> Tensor:
        return config.integrate(context, start * context.noise(), config.times, lambda: callback(len(batch)))

    return make


@torch.no_grad()
@exact_float32()
def make_images(config: SamplingConfig, make: Maker, numbers: range, batch_size: int) -> Tensor:
    """The images of these numbers, batch after batch: (N, C, H, W) float32 in [0, 1] on the CPU."""
    return torch.cat([to_unit(make(*part)).float().cpu() for part in config.batches(numbers, batch_size)])


def sample_images(
    config: SamplingConfig, numbers: range, *, batch_size: int = 64, callback: Callback = no_callback
) -> Tensor:
    """The images of these numbers.

    Args:
        config: made by `sampling_config`.
        numbers: which; an image depends on its number, which gives its seed and label, and on nothing else.
        batch_size: how many at once.
        callback: called with the number of (image x step) units done.

    Returns:
        (num, C, H, W) float32 in [0, 1] on the CPU.

    Raises:
        ArgumentError: no images, or batches of none, or more than fit into memory.
    """
    check_counts(len(numbers), batch_size)
    check_images_fit(config.denoiser, len(numbers))
    return make_images(config, from_noise(config, callback), numbers, batch_size)


def sample_across_ranks(
    config: SamplingConfig, num: int, runtime: Runtime, *, batch_size: int = 64, callback: Callback = no_callback
) -> Tensor:
    """`num` images, made by all ranks in turn: the same ones in the same order, however many ranks there are.

    Args:
        config: made by `sampling_config`, the same on every rank.
        num: how many images in all.
        runtime: this rank's.
        batch_size: how many at once on each rank.
        callback: called with the number of (image x step) units that this rank has done.

    Returns:
        (num, C, H, W) float32 in [0, 1] on the CPU of every rank.

    Raises:
        ArgumentError: no images, or batches of none, or more than fit into memory.
    """
    check_counts(num, batch_size)
    check_images_fit(config.denoiser, num)
    make = from_noise(config, callback)
    rounds = rounds_of(num, batch_size, runtime)
    return torch.cat([make_round(config, make, numbers, runtime, batch_size) for numbers in rounds])


def rounds_of(num: int, batch_size: int, runtime: Runtime) -> Iterator[range]:
    """The numbers from 0 to num - 1 in rounds, in each of which every rank makes one batch."""
    size = batch_size * runtime.world_size
    return (range(start, min(start + size, num)) for start in range(0, num, size))


def make_round(config: SamplingConfig, make: Maker, numbers: range, runtime: Runtime, batch_size: int) -> Tensor:
    """The images of one round, on every rank: (N, C, H, W) float32 in [0, 1] on the CPU."""
    own = runtime.rank_indices(len(numbers))
    own = range(own.start + numbers.start, own.stop + numbers.start, own.step)
    unit = make_images(config, make, own, batch_size)
    return torch.stack(runtime.all_gather(unit), dim=1).flatten(0, 1)[: len(numbers)]


def check_counts(num: int, batch_size: int) -> None:
    """Refuses no images and batches of none, and numbers beyond all reason.

    Raises:
        ArgumentError: of `num` or `batch_size`.
    """
    for name, value, most in (("num", num, MOST_IMAGES), ("batch_size", batch_size, MOST_AT_ONCE)):
        if value < 1:
            raise ArgumentError(name, got=value, wanted="at least 1")
        if value > most:
            raise ArgumentError(name, got=value, wanted=f"at most {most:,}")


def check_images_fit(denoiser: Denoiser, num: int) -> None:
    """Refuses more images than can be returned: float32, in the memory of the host.

    Raises:
        ArgumentError: of `num`.
    """
    need = 4 * num * denoiser.channels * math.prod(denoiser.image_size)
    remedy = "sample fewer at a time, with other seeds each time"
    require_memory(need, host_available_bytes(), "num", got=num, what="the images", remedy=remedy)
