"""The forward process: how noise is mixed into an image, and which times are trained and sampled.

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, 1)

Every formulation is a value of this one form. The pair (alpha, sigma) is kept, never their quotient: at one end of a
process alpha may be zero, at the other sigma is.

`DiscreteProcess` is the one of DDPM (Ho et al. 2020, arXiv 2006.11239, eq. 4): a table of T noise levels. Its times are
those levels, 0 (least noise) to T - 1, as the network is told them; time -1 is the clean image, alpha = 1, sigma = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from maskdm.errors import InputError

MAX_AMPLIFICATION = 200.0
"""Sampling starts at the noisiest time where 1/alpha is at most this.

An error of the network in eps reaches the estimate of x_0 multiplied by sigma/alpha. At the last time of the cosine
schedule that is 20,000 and the first step of a sampler is decided by rounding errors; the linear schedule ends at 158.
"""


class Process(Protocol):
    """What training and sampling need to know of a forward process."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients at times t of any shape, each of t's shape, in float64 where the device has it."""
        ...

    def training_time(self, u: Tensor) -> Tensor:
        """The law of t in training, as its quantile function: u uniform in [0, 1) -> t, same shape."""
        ...

    def sampling_times(self, steps: int) -> Tensor:
        """Times from the noisiest to the clean image: (steps + 1,), float64, on the CPU."""
        ...


@dataclass(frozen=True, eq=False)
class DiscreteProcess:
    """A variance-preserving process of T noise levels, alpha^2 + sigma^2 = 1; t is uniform on 0 .. T - 1 in training.

    Attributes:
        alpha_bar: (T + 1,) float64, alpha^2 at times -1, 0, ..., T - 1, so that the first entry is 1.
    """

    alpha_bar: Tensor

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Process`; t is a whole number, -1 to T - 1, whatever its dtype."""
        alphas, sigmas = _tables(self, t.device)
        level = t.long() + 1
        return alphas[level], sigmas[level]

    def training_time(self, u: Tensor) -> Tensor:
        """Uniform on the T noise levels, int64."""
        return (u * self.timesteps).long().clamp(max=self.timesteps - 1)

    def sampling_times(self, steps: int) -> Tensor:
        """`steps` whole times, evenly spread down to -1; the noisiest ones that amplify beyond reason are left out."""
        last = int((self.alpha_bar.rsqrt() <= MAX_AMPLIFICATION).sum()) - 2
        if not 1 <= steps <= last + 1:
            raise InputError(f"sampling steps: got {steps}, wanted 1 to {last + 1} (the noise levels of the process)")
        # Truncated towards zero, -1 stays -1: the grid of the official sampler, from `last` instead of T - 1.
        return torch.linspace(last, -1, steps + 1, dtype=torch.float64).trunc()


@cache
def _tables(process: DiscreteProcess, device: torch.device) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of every time, copied to a device once: a copy in every step would make the host wait."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    tables = process.alpha_bar.sqrt(), (1 - process.alpha_bar).sqrt()
    return tables[0].to(device, dtype), tables[1].to(device, dtype)


def linear(timesteps: int = 1000) -> DiscreteProcess:
    """Betas rise linearly, 1e-4 to 0.02 for T = 1000 (Ho et al. 2020), scaled by 1000/T otherwise."""
    scale = 1000 / timesteps
    if 0.02 * scale >= 1:
        raise InputError(f"process.timesteps: got {timesteps}, wanted at least 21 with the linear schedule; try 1000")
    return _from_betas(torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64))


def cosine(timesteps: int = 1000, s: float = 0.008) -> DiscreteProcess:
    """alpha_bar follows a squared cosine, betas clipped at 0.999 (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17)."""
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    f = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return _from_betas((1 - f[1:] / f[:-1]).clamp(0, 0.999))


def _from_betas(betas: Tensor) -> DiscreteProcess:
    return DiscreteProcess(torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, dim=0)]))
