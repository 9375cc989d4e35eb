"""Pictures from a model: seeds, labels, batches, guidance, a grid of times, and one of the samplers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.patches import to_unit
from maskdm.errors import InputError
from maskdm.sampling import samplers
from maskdm.sampling.guidance import ALWAYS, Estimate, Guidance, estimator
from maskdm.sampling.timesteps import sampling_times

SEEDS = 2**32
SAMPLER, STEPS = "dpm++", 25
"""The usual ones: benchmarks/sampling.py."""


class SeededNoise:
    """Standard normals for a list of images, each from a stream of its own, whatever it is batched with.

    Drawn on the CPU, so that a seed means the same picture on every device.
    """

    def __init__(self, streams: Sequence[tuple[int, int]], shape: tuple[int, int, int], device: torch.device) -> None:
        # A seed's k-th image has a seed of its own, and the 0th the seed itself. Generators of the CPU take 32 bits.
        self.generators = [torch.Generator().manual_seed((s + k * 0x9E3779B1) % SEEDS) for s, k in streams]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)


@dataclass(frozen=True, eq=False)
class Plan:
    """How pictures are made; `plan` checks it.

    Attributes:
        denoiser: the model.
        run, amount: the sampler and its amount of fresh noise.
        times: falling, the clean image last.
        guidance: how much, by what, and where.
        seeds: picture i uses seed i, and starts again from the first when they run out.
        labels: numbers, likewise; empty for a model without classes.
    """

    denoiser: Denoiser
    run: samplers.Run
    amount: float
    times: tuple[float, ...]
    guidance: Guidance
    seeds: Sequence[int]
    labels: Sequence[int]

    def batches(self, which: range, batch_size: int) -> Iterator[tuple[range, SeededNoise, Estimate]]:
        """Numbers of the pictures of each batch, their noise, and what the model says for their labels."""
        shape = (self.denoiser.channels, *self.denoiser.image_size)
        for start in range(0, len(which), batch_size):
            batch = which[start : start + batch_size]
            streams = [(self.seeds[i % len(self.seeds)], i // len(self.seeds)) for i in batch]
            label = None
            if self.labels:
                numbers = [self.labels[i % len(self.labels)] for i in batch]
                label = torch.tensor(numbers, device=self.denoiser.device)
            yield (
                batch,
                SeededNoise(streams, shape, self.denoiser.device),
                estimator(self.denoiser, self.guidance, label),
            )

    def finish(
        self, x_t: Tensor, times: Sequence[float], noise: SeededNoise, estimate: Estimate, report: samplers.Report
    ) -> Tensor:
        """From x_t at times[0] down: (B, C, H, W) in [-1, 1]."""
        process = self.denoiser.process
        return self.run(estimate, process, x_t, times, noise=noise, amount=self.amount, report=report)


def plan(
    denoiser: Denoiser,
    *,
    steps: int = STEPS,
    sampler: str = SAMPLER,
    eta: float | None = None,
    churn: float | None = None,
    grid: str | None = None,
    shift: float = 1.0,
    seeds: Sequence[int] = range(64),
    labels: Sequence[str | int] | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] = ALWAYS,
    guide: Denoiser | None = None,
) -> Plan:
    """Settles how pictures are made; see `sample`.

    Raises:
        InputError: an unknown sampler, grid or label, guidance by nothing, numbers out of range.
    """
    run, amount = samplers.pick(sampler, eta=eta, churn=churn)
    if not len(seeds) or min(seeds) < 0 or max(seeds) >= SEEDS:
        raise InputError(f"seeds: wanted at least one, each 0 to {SEEDS - 1}")
    numbers = list(range(denoiser.unconditional)) if labels is None else denoiser.labels(labels)
    times = sampling_times(denoiser.process, denoiser.prediction, steps, grid=grid, shift=shift)
    how = _guidance(denoiser, guidance, guidance_interval, guide)
    return Plan(denoiser, run, amount, tuple(times.tolist()), how, [int(seed) for seed in seeds], numbers)


def _guidance(denoiser: Denoiser, weight: float, interval: tuple[float, float], guide: Denoiser | None) -> Guidance:
    low, high = interval
    if not math.isfinite(weight):
        raise InputError(f"guidance: got {weight:g}, wanted a number; 1 is none, 1.5 to 4 are usual")
    if not 0 <= low < high <= 1:
        raise InputError(f"guidance_interval: got {low:g} to {high:g}, wanted noise shares, 0 <= low < high <= 1")
    if interval != ALWAYS and weight == 1.0:
        raise InputError("guidance_interval: given without guidance, which is 1 (none); set guidance too")
    if guide is not None:
        if weight == 1.0:
            raise InputError("guide: given without guidance, which is 1 (none); set guidance too, e.g. 1.5")
        if (guide.channels, guide.image_size) != (denoiser.channels, denoiser.image_size):
            raise InputError(
                f"guide: makes images of {guide.channels} x {guide.image_size}, the model of {denoiser.channels} x "
                f"{denoiser.image_size}; wanted the same"
            )
        if guide.class_names not in ((), denoiser.class_names):
            raise InputError("guide: has other classes than the model; wanted the same, or none")
    elif weight != 1.0 and not denoiser.class_names:
        raise InputError(
            f"guidance: got {weight:g}, but this model has no classes; leave it at 1, or give a weaker model as guide"
        )
    return Guidance(weight, guide, interval)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    num: int | None = None,
    *,
    steps: int = STEPS,
    sampler: str = SAMPLER,
    eta: float | None = None,
    churn: float | None = None,
    grid: str | None = None,
    shift: float = 1.0,
    seeds: Sequence[int] | None = None,
    labels: Sequence[str | int] | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] = ALWAYS,
    guide: Denoiser | None = None,
    batch_size: int = 64,
    report: Callable[[int], None] = lambda steps: None,
) -> Tensor:
    """Pictures from a model.

    Args:
        denoiser: what `maskdm.load` gives.
        num: how many; by default one for each seed (64 where no seeds are given either).
        steps: steps for each picture; the network is called once in each (heun: twice).
        sampler: ddim, ancestral, euler, heun, dpm++ or dpm++sde.
        eta: fresh noise of ddim, ancestral and dpm++, 0 (none) to 1 (as much as DDPM).
        churn: fresh noise of euler and heun, 0 (none) or more.
        grid: of times: uniform, karras or logsnr; by default the usual one of the process.
        shift: more than 1 puts more of the steps where there is much noise.
        seeds: picture i uses seed i, and starts again from the first when they run out; default 0, 1, 2, ...
        labels: class names or numbers (or "none"), likewise; default, for a model with classes, one after another.
        guidance: weight of guidance; 1 is none.
        guidance_interval: noise shares (0 clean, 1 noise) between which it is applied.
        guide: a weaker model to be guided away from, instead of the unconditional answer (autoguidance).
        batch_size: how many at once. A picture depends on its seed and label, not on this.
        report: called with the number of (picture x step) units done, for a progress bar.

    Returns:
        (num, C, H, W) float32 in [0, 1] on the CPU.

    Raises:
        InputError: an unknown sampler, grid or label, guidance without classes or guide, numbers out of range.
    """
    num = num if num is not None else len(range(64) if seeds is None else seeds)
    check_counts(num, batch_size)
    how = plan(
        denoiser,
        steps=steps,
        sampler=sampler,
        eta=eta,
        churn=churn,
        grid=grid,
        shift=shift,
        seeds=range(num) if seeds is None else seeds,
        labels=labels,
        guidance=guidance,
        guidance_interval=guidance_interval,
        guide=guide,
    )
    return pictures(how, range(num), batch_size=batch_size, report=report)


@torch.no_grad()
def pictures(
    how: Plan, which: range, *, batch_size: int = 64, report: Callable[[int], None] = lambda steps: None
) -> Tensor:
    """What `sample` does once it is settled how, for the pictures of these numbers."""
    check_counts(len(which), batch_size)
    start = samplers.level(how.denoiser.process, how.times[0]).sigma
    done = []
    for batch, noise, estimate in how.batches(which, batch_size):
        x = how.finish(start * noise(), how.times, noise, estimate, partial(report, len(batch)))
        done.append(to_unit(x).float().cpu())
    return torch.cat(done)


def check_counts(num: int, batch_size: int) -> None:
    """Refuses no pictures, and batches of none."""
    if num < 1:
        raise InputError(f"num: got {num}, wanted at least 1")
    if batch_size < 1:
        raise InputError(f"batch_size: got {batch_size}, wanted at least 1")
