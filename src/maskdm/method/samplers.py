"""Samplers: from noise to images, each a function of a denoiser and a grid of times.

For two times t > s of a process, the noise added between them has variance sigma_ts^2 = sigma_t^2 - (alpha_t/alpha_s)^2
sigma_s^2, and q(x_s | x_t, x_0) has standard deviation sigma_s sigma_ts / sigma_t (Ho et al. 2020, eq. 7; the general
form in Kingma et al. 2021, arXiv 2107.00630, appendix A).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from maskdm.errors import InputError
from maskdm.method.denoiser import Denoiser
from maskdm.method.patches import to_unit

Noise = Callable[[], Tensor]
Report = Callable[[], None]


class Sampler(Protocol):
    """One way from x_T to x_0; `noise` gives fresh (B, C, H, W) normals, `report` is called after every step."""

    def __call__(
        self,
        denoiser: Denoiser,
        x_t: Tensor,
        times: Sequence[float],
        *,
        noise: Noise,
        label: Tensor | None,
        guidance: float,
        eta: float,
        report: Report,
    ) -> Tensor: ...


def ddim(
    denoiser: Denoiser,
    x_t: Tensor,
    times: Sequence[float],
    *,
    noise: Noise,
    label: Tensor | None = None,
    guidance: float = 1.0,
    eta: float = 0.0,
    report: Report = lambda: None,
) -> Tensor:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16): eta = 0 is deterministic, eta = 1 has DDPM's variance.

    Args:
        x_t: noise at times[0], (B, C, H, W).
        times: falling times of the process, the clean image last.

    Returns:
        (B, C, H, W) in [-1, 1].
    """
    for t, s in pairwise(times):
        x_0, eps = denoiser.estimate(x_t, t, label=label, guidance=guidance)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _at(denoiser, t), _at(denoiser, s)
        sigma_ts = _between(alpha_t, sigma_t, alpha_s, sigma_s)
        random = eta * sigma_s * sigma_ts / sigma_t
        x_t = alpha_s * x_0 + math.sqrt(max(sigma_s**2 - random**2, 0.0)) * eps
        if random:
            x_t = x_t + random * noise()
        report()
    return x_t


def ancestral(
    denoiser: Denoiser,
    x_t: Tensor,
    times: Sequence[float],
    *,
    noise: Noise,
    label: Tensor | None = None,
    guidance: float = 1.0,
    eta: float = 1.0,
    report: Report = lambda: None,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): draws from q(x_s | x_t, x_0 = estimate), eq. 6 and 7.

    The variance is the posterior's, exact for any two times; `eta` scales its standard deviation.
    """
    for t, s in pairwise(times):
        x_0, _ = denoiser.estimate(x_t, t, label=label, guidance=guidance)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _at(denoiser, t), _at(denoiser, s)
        sigma_ts = _between(alpha_t, sigma_t, alpha_s, sigma_s)
        x_t = (alpha_s * sigma_ts**2 * x_0 + alpha_t / alpha_s * sigma_s**2 * x_t) / sigma_t**2
        if sigma_s:
            x_t = x_t + eta * sigma_s * sigma_ts / sigma_t * noise()
        report()
    return x_t


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "ancestral": ancestral}
DEFAULT_ETA = {"ddim": 0.0, "ancestral": 1.0}


def _at(denoiser: Denoiser, t: float) -> tuple[float, float]:
    alpha, sigma = denoiser.process.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


def _between(alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float) -> float:
    return math.sqrt(max(sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2, 0.0))


SEEDS = 2**32


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


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    num: int | None = None,
    *,
    steps: int = 50,
    sampler: str = "ddim",
    eta: float | None = None,
    seeds: Sequence[int] | None = None,
    labels: Sequence[str | int] | None = None,
    guidance: float = 1.0,
    batch_size: int = 64,
    report: Callable[[int], None] = lambda steps: None,
) -> Tensor:
    """Pictures from a model.

    Args:
        denoiser: what `maskdm.load` gives.
        num: how many; by default one for each seed (64 where no seeds are given either).
        steps: network calls for each picture.
        sampler: ddim or ancestral.
        eta: amount of fresh noise, 0 (none) to 1 (as much as DDPM); default 0 for ddim, 1 for ancestral.
        seeds: picture i uses seed i, and starts again from the first when they run out; default 0, 1, 2, ...
        labels: class names or numbers (or "none"), likewise; default, for a model with classes, one after another.
        guidance: weight of classifier-free guidance; 1 is none.
        batch_size: how many at once. A picture depends on its seed and label, not on this.
        report: called with the number of (picture x step) units done, for a progress bar.

    Returns:
        (num, C, H, W) float32 in [0, 1] on the CPU.

    Raises:
        InputError: an unknown sampler or label, guidance without classes, numbers out of range.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"sampler: got {sampler!r}, wanted one of {', '.join(SAMPLERS)}")
    if num is None:
        num = 64 if seeds is None else len(seeds)
    seeds = range(num) if seeds is None else [int(seed) for seed in seeds]
    eta = DEFAULT_ETA[sampler] if eta is None else eta
    _check(num, seeds, eta, guidance, batch_size, denoiser)
    numbers = list(range(len(denoiser.class_names))) if labels is None else denoiser.labels(labels)
    times = denoiser.process.sampling_times(steps).tolist()
    done = []
    for start in range(0, num, batch_size):
        batch = range(start, min(start + batch_size, num))
        noise = SeededNoise(
            [(seeds[i % len(seeds)], i // len(seeds)) for i in batch],
            (denoiser.channels, *denoiser.image_size),
            denoiser.device,
        )
        label = torch.tensor([numbers[i % len(numbers)] for i in batch], device=denoiser.device) if numbers else None
        x = SAMPLERS[sampler](
            denoiser,
            noise(),
            times,
            noise=noise,
            label=label,
            guidance=guidance,
            eta=eta,
            report=partial(report, len(batch)),
        )
        done.append(to_unit(x).float().cpu())
    return torch.cat(done)


def _check(num: int, seeds: Sequence[int], eta: float, guidance: float, batch_size: int, denoiser: Denoiser) -> None:
    if num < 1:
        raise InputError(f"num: got {num}, wanted at least 1")
    if not len(seeds) or min(seeds) < 0 or max(seeds) >= SEEDS:
        raise InputError(f"seeds: wanted at least one, each 0 to {SEEDS - 1}")
    if not 0 <= eta <= 1:
        raise InputError(f"eta: got {eta:g}, wanted 0 (deterministic) to 1 (as much noise as DDPM)")
    if batch_size < 1:
        raise InputError(f"batch_size: got {batch_size}, wanted at least 1")
    if not math.isfinite(guidance):
        raise InputError(f"guidance: got {guidance:g}, wanted a number; 1 is none, 1.5 to 4 are usual")
    if guidance != 1.0 and not denoiser.class_names:
        raise InputError(f"guidance: got {guidance:g}, but this model has no classes; leave it at 1")
