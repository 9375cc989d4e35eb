"""The forward process: how noise is mixed into an image, and which times are trained and sampled.

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, 1)

Every formulation is a value of this one form; `schedules` has them. The pair (alpha, sigma) is kept, never their
quotient: at one end of a process alpha may be zero, at the other sigma is. Where two processes are to be compared, it
is by the *noise level* sigma / (alpha + sigma), 0 for the clean image and 1 for noise alone: at equal noise levels they
hold the same image, but for a factor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from maskdm.errors import ArgumentError

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
    def timesteps(self) -> int | None:
        """How many times there are where they are whole numbers (DDPM's T), else None."""
        ...

    @property
    def spacing(self) -> str:
        """The usual spacing of sampling times, see `maskdm.sampling.timesteps`."""
        ...

    def alpha_sigma(self, t: Tensor) -> Coefficients:
        """Coefficients at times t of any shape, each of t's shape, in float64 where the device has it."""
        ...

    def training_time(self, u: Tensor) -> Tensor:
        """The distribution of t in training, as its quantile function: u in [0, 1) -> t, same shape; noise rises."""
        ...

    def time_at(self, level: Tensor) -> Tensor:
        """The time with a noise level, 0 to 1, or the nearest there is: same shape, float64."""
        ...

    def c_noise(self, t: Tensor) -> Tensor:
        """What the network is given for time t; whatever the process, numbers of about 0 to 1000. Shape of t.

        The name is EDM's (Karras et al. 2022, arXiv 2206.00364, eq. 7), as is that of `c_in`.
        """
        ...

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The factor of x_t at the network's input, so that it sees about unit variance. Shape of alpha."""
        ...

    def frame(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """n, such that samplers of higher order look at x / n: there the path from noise to an image is straight.

        alpha for the processes of DDPM and EDM (x / alpha over sigma / alpha: Karras et al. 2022, arXiv 2206.00364,
        eq. 4), alpha + sigma where alpha vanishes at the end (for flow matching that is x itself over t).
        """
        ...


def batch_times(t: Tensor | float, images: Tensor) -> Tensor:
    """Times for images (B, C, H, W): (B,), from as many or from one for all.

    Raises:
        ArgumentError: of t; it has another shape.
    """
    if not isinstance(t, Tensor):
        return torch.full(
            (len(images),), t, device=images.device, dtype=torch.promote_types(images.dtype, torch.float32)
        )
    if t.ndim == 0:
        return t.expand(len(images))
    if t.shape != images.shape[:1]:
        wanted = f"one number, or ({len(images)},): one for each image"
        raise ArgumentError("t", "has another shape than the images", got=tuple(t.shape), wanted=wanted)
    return t


ROUNDING = 1e-3
"""How far beyond its end a time may lie, relative to it: in half precision they are rounded so."""


def check_times(process: Process, t: Tensor) -> None:
    """Refuses times that a process does not have, of any shape.

    Tensors elsewhere than on the CPU pass, since to look at them is to wait for the device; so do those that stand for
    others, in compiling and in `torch.func`.

    Raises:
        ArgumentError: of t; beyond the clean image or the most noise, or between two timesteps.
    """
    stands_for_others = torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(t)
    if t.device.type != "cpu" or stands_for_others:
        return
    least, most = process.clean, process.ends[1]
    wrong = ~((t >= least) & (t <= most + ROUNDING * abs(most)))
    if process.timesteps:
        wrong |= t != t.round()
    if bool(wrong.any()):
        whole = ", whole numbers" if process.timesteps else ""
        wanted = f"times of the process, {least:g} (the clean image) to {most:g}{whole}"
        raise ArgumentError("t", got=float(t[wrong][0]), wanted=wanted)


def exact(t: Tensor) -> Tensor:
    """In float64, where the device has it; any shape."""
    return t.to(torch.float32 if t.device.type == "mps" else torch.float64)


def noise_level(alpha: Tensor, sigma: Tensor) -> Tensor:
    """sigma / (alpha + sigma), 0 to 1; all shapes broadcast."""
    return sigma / (alpha + sigma)


def by_alpha(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The frame x / alpha."""
    return alpha


def by_sum(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The frame x / (alpha + sigma)."""
    return alpha + sigma


@dataclass(frozen=True, eq=False)
class DiscreteProcess:
    """The process of DDPM: T timesteps, alpha^2 + sigma^2 = 1, t uniform on 0 .. T - 1 (Ho et al. 2020, eq. 4).

    Times are the timesteps, 0 (least noise) to T - 1, as the network is given them; time -1 is the clean image.

    Attributes:
        alpha_bar: (T + 1,) float64, alpha^2 at times -1, 0, ..., T - 1, so that the first entry is 1.
        clean, spacing: see `Process`.
    """

    alpha_bar: Tensor
    clean: float = -1.0
    spacing: str = "uniform"

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last timestep."""
        return 0.0, float(self.timesteps - 1)

    def alpha_sigma(self, t: Tensor) -> Coefficients:
        """See `Process`; t is a whole number, -1 to T - 1, whatever its dtype.

        Raises:
            ArgumentError: of t; see `check_times`.
        """
        check_times(self, t)
        alphas, sigmas = _tables(self, t.device)
        row = t.long() + 1
        return alphas[row], sigmas[row]

    def training_time(self, u: Tensor) -> Tensor:
        """Uniform on the T timesteps, int64."""
        return (u * self.timesteps).long().clamp(max=self.timesteps - 1)

    def time_at(self, level: Tensor) -> Tensor:
        """The nearest timestep, or the clean image."""
        levels = noise_level(*_tables(self, torch.device("cpu")))
        return (level.double().cpu()[..., None] - levels).abs().argmin(dim=-1).double() - 1

    def c_noise(self, t: Tensor) -> Tensor:
        """The timestep itself."""
        return t

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """One: the variance is about one as it is."""
        return torch.ones_like(alpha)

    def frame(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """By alpha, unless the last timesteps have next to none."""
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
        time_distribution: quantile function of t in training, for float64 u inside (0, 1).
        ends: the times of least and of most noise.
        c_noise: t -> what the network is given for it.
        c_in: (alpha, sigma) -> the factor of x_t at the network's input.
        frame: `by_alpha` or `by_sum`.
        spacing: the usual spacing of sampling times.
        clean, timesteps: see `Process`.
    """

    coefficients: Callable[[Tensor], Coefficients]
    time_distribution: Callable[[Tensor], Tensor]
    ends: tuple[float, float]
    c_noise: Callable[[Tensor], Tensor]
    c_in: Callable[[Tensor, Tensor], Tensor]
    frame: Callable[[Tensor, Tensor], Tensor]
    spacing: str = "uniform"
    clean: float = 0.0
    timesteps: None = None

    def alpha_sigma(self, t: Tensor) -> Coefficients:
        """See `Process`.

        Raises:
            ArgumentError: of t; see `check_times`.
        """
        check_times(self, t)
        return self.coefficients(exact(t))

    def training_time(self, u: Tensor) -> Tensor:
        """See `Process`; the utmost quantiles of unbounded distributions are cut, and times stay between `ends`."""
        return self.time_distribution(exact(u).clamp(1e-6, 1 - 1e-6)).clamp(*self.ends)

    def time_at(self, level: Tensor) -> Tensor:
        """By bisection: the noise level rises with t in every process."""
        low, high = (torch.full_like(level.double(), end) for end in (self.clean, self.ends[1]))
        for _ in range(100):
            middle = (low + high) / 2
            noisier = noise_level(*self.coefficients(exact(middle))) > level
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return (low + high) / 2
