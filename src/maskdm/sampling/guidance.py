"""Guidance: away from a weaker output, beyond the stronger one.

    x_0 = x_0_weak + w (x_0_strong - x_0_weak)

With the unconditional output as the weak one it is classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, with
w = 1 for none at all); with an earlier or smaller model it is autoguidance (Karras et al. 2024, arXiv 2406.02507). At a
given x_t every quantity is linear in every other, so it does not matter in which of them one goes beyond.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.process import Process, noise_level
from maskdm.sampling.timesteps import noisiest_time

Estimate = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""(x_t, t) -> (x_0 clipped to [-1, 1], eps as it follows before clipping): all that a sampler asks."""

ALWAYS = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Guidance:
    """How much guidance, by what, and where.

    Attributes:
        weight: w; 1 is none.
        weak: a weaker model for autoguidance; None for the unconditional output of the model itself.
        interval: noise levels between which it is applied (Kynkaanniemi et al. 2024, arXiv 2404.07724).
    """

    weight: float = 1.0
    weak: Denoiser | None = None
    interval: tuple[float, float] = ALWAYS

    def applies(self, process: Process, t: float) -> bool:
        """Whether there is anything to do at time t."""
        low, high = self.interval
        return self.weight != 1.0 and low <= float(noise_level(*process.alpha_sigma(torch.tensor(t)))) <= high


def estimator(denoiser: Denoiser, guidance: Guidance, label: Tensor | None) -> Estimate:
    """What samplers ask: the denoiser's estimate for these labels (B,) or None, guided."""

    def estimate(x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        if not guidance.applies(denoiser.process, t):
            x_0, eps = denoiser.estimate(x_t, t, label=label)
        elif guidance.weak is not None:
            strong, weak = denoiser.estimate(x_t, t, label=label), translated(guidance.weak, denoiser, x_t, t, label)
            x_0, eps = (torch.lerp(w, s, guidance.weight) for w, s in zip(weak, strong, strict=True))
        else:
            x_0, eps = _classifier_free(denoiser, guidance.weight, x_t, t, label)
        return x_0.clamp(-1, 1), eps

    return estimate


def _classifier_free(
    denoiser: Denoiser, weight: float, x_t: Tensor, t: float, label: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both outputs in one call of the network."""
    if label is None:
        return denoiser.estimate(x_t, t)
    both = torch.cat([label, torch.full_like(label, denoiser.unconditional)])
    x_0, eps = (part.chunk(2) for part in denoiser.estimate(x_t.repeat(2, 1, 1, 1), t, label=both))
    return torch.lerp(x_0[1], x_0[0], weight), torch.lerp(eps[1], eps[0], weight)


def translated(
    other: Denoiser, denoiser: Denoiser, x_t: Tensor, t: float, label: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The estimate of a denoiser that knows another process, for an x_t of this one.

    At equal noise levels two processes hold the same image but for a factor, so x_t is rescaled and the time looked up;
    x_0 and eps mean the same in both. A process of timesteps has the nearest one, and where the other denoiser cannot
    say (the clean image; noise so nearly alone that its errors would be blown up) the nearest time is taken.
    """
    alpha, sigma = denoiser.process.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    there = other.process.time_at(noise_level(alpha, sigma))
    least = other.process.ends[0] if other.process.timesteps else other.process.clean
    there = there.clamp(least, noisiest_time(other.process, other.prediction))
    alpha_there, sigma_there = other.process.alpha_sigma(there)
    factor = float((alpha_there + sigma_there) / (alpha + sigma))
    if other.unconditional == 0:
        label = None
    return other.estimate(factor * x_t, float(there), label=label)
