"""The forward process: how noise is mixed into an image, and which times are trained and sampled.

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, 1)

Every formulation is a value of this one form; `schedules` has them. The pair (alpha, sigma) is kept, never their
quotient: at one end of a process alpha may be zero, at the other sigma is. Where two processes are to be compared, it
is by the *noise share* sigma / (alpha + sigma), 0 for the clean image and 1 for noise alone: at equal shares they hold
the same picture, but for a factor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

Coefficients = tuple[Tensor, Tensor]
"""(alpha, sigma), of one shape."""


class Process(Protocol):
    """What training and sampling need to know of a forward process."""

    @property
    def clean(self) -> float:
        """The time of the clean image, where alpha = 1 and sigma = 0."""
        ...

    @property
    def ends(self) -> tuple[float, float]:
        """The times of least and of most noise that the network knows."""
        ...

    @property
    def levels(self) -> int | None:
        """Number of noise levels where times are whole numbers, else None."""
        ...

    @property
    def grid(self) -> str:
        """The usual grid of sampling times, see `maskdm.sampling.timesteps`."""
        ...

    def alpha_sigma(self, t: Tensor) -> Coefficients:
        """Coefficients at times t of any shape, each of t's shape, in float64 where the device has it."""
        ...

    def training_time(self, u: Tensor) -> Tensor:
        """The law of t in training, as its quantile function: u uniform in [0, 1) -> t, same shape; noise rises."""
        ...

    def time_at(self, share: Tensor) -> Tensor:
        """The time with a noise share, 0 to 1, or the nearest there is: same shape, float64."""
        ...

    def told(self, t: Tensor) -> Tensor:
        """What the network is told of time t; whatever the process, numbers of about 0 to 1000."""
        ...

    def shown(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The factor with which the network is shown x_t, so that it sees about unit variance."""
        ...

    def frame(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """n, such that samplers of higher order look at x / n: there the path from noise to an image is straight.

        alpha for the processes of DDPM and EDM (x / alpha over sigma / alpha: Karras et al. 2022, arXiv 2206.00364,
        eq. 4), alpha + sigma where alpha vanishes at the end (for flow matching that is x itself over t).
        """
        ...


def exact(t: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return t.to(torch.float32 if t.device.type == "mps" else torch.float64)


def share_of(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise share, sigma / (alpha + sigma)."""
    return sigma / (alpha + sigma)


def by_alpha(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The frame x / alpha."""
    return alpha


def by_sum(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The frame x / (alpha + sigma)."""
    return alpha + sigma


@dataclass(frozen=True, eq=False)
class DiscreteProcess:
    """The process of DDPM: T levels, alpha^2 + sigma^2 = 1, t uniform on 0 .. T - 1 (Ho et al. 2020, eq. 4).

    Times are the levels, 0 (least noise) to T - 1, as the network is told them; time -1 is the clean image.

    Attributes:
        alpha_bar: (T + 1,) float64, alpha^2 at times -1, 0, ..., T - 1, so that the first entry is 1.
    """

    alpha_bar: Tensor
    clean: float = -1.0
    grid: str = "uniform"

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    @property
    def levels(self) -> int:
        """T."""
        return self.timesteps

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last level."""
        return 0.0, float(self.timesteps - 1)

    def alpha_sigma(self, t: Tensor) -> Coefficients:
        """See `Process`; t is a whole number, -1 to T - 1, whatever its dtype."""
        alphas, sigmas = _tables(self, t.device)
        level = t.long() + 1
        return alphas[level], sigmas[level]

    def training_time(self, u: Tensor) -> Tensor:
        """Uniform on the T noise levels, int64."""
        return (u * self.timesteps).long().clamp(max=self.timesteps - 1)

    def time_at(self, share: Tensor) -> Tensor:
        """The nearest level, or the clean image."""
        shares = share_of(*_tables(self, torch.device("cpu")))
        return (share.double().cpu()[..., None] - shares).abs().argmin(dim=-1).double() - 1

    def told(self, t: Tensor) -> Tensor:
        """The level itself."""
        return t

    def shown(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As it is: the variance is about one."""
        return torch.ones_like(alpha)

    def frame(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """By alpha, unless the last levels have next to none."""
        return (by_alpha if float(self.alpha_bar[-1]) > SMALL**2 else by_sum)(alpha, sigma)


SMALL = 1 / 200
"""An alpha by which nothing should be divided."""


@cache
def _tables(process: DiscreteProcess, device: torch.device) -> Coefficients:
    """(alpha, sigma) of every time, copied to a device once: a copy in every step would make the host wait."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    alpha, sigma = process.alpha_bar.sqrt(), (1 - process.alpha_bar).sqrt()
    return alpha.to(device, dtype), sigma.to(device, dtype)


@dataclass(frozen=True, eq=False)
class ContinuousProcess:
    """A process in continuous time, the clean image at t = 0; see `Process`.

    Attributes:
        coefficients: t -> (alpha, sigma), for float64 times.
        law: quantile function of t in training, for float64 u inside (0, 1).
        ends: the times of least and of most noise.
        told: t -> what the network is told.
        shown: (alpha, sigma) -> the factor with which the network sees x_t.
        frame: `by_alpha` or `by_sum`.
        grid: the usual grid of sampling times.
    """

    coefficients: Callable[[Tensor], Coefficients]
    law: Callable[[Tensor], Tensor]
    ends: tuple[float, float]
    told: Callable[[Tensor], Tensor]
    shown: Callable[[Tensor, Tensor], Tensor]
    frame: Callable[[Tensor, Tensor], Tensor]
    grid: str = "uniform"
    clean: float = 0.0
    levels: None = None

    def alpha_sigma(self, t: Tensor) -> Coefficients:
        """See `Process`."""
        return self.coefficients(exact(t))

    def training_time(self, u: Tensor) -> Tensor:
        """See `Process`; the utmost quantiles of laws without bounds are cut, and times stay between `ends`."""
        return self.law(exact(u).clamp(1e-6, 1 - 1e-6)).clamp(*self.ends)

    def time_at(self, share: Tensor) -> Tensor:
        """By bisection: the noise share rises with t in every process."""
        low, high = (torch.full_like(share.double(), end) for end in (self.clean, self.ends[1]))
        for _ in range(100):
            middle = (low + high) / 2
            noisier = share_of(*self.alpha_sigma(middle)) > share
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return (low + high) / 2
