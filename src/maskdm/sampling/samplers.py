"""Samplers: from noise to images, each a function of an estimate of (x_0, eps) and a grid of times.

For two times t > s of a process, the noise added between them has variance sigma_ts^2 = sigma_t^2 - (alpha_t/alpha_s)^2
sigma_s^2, and q(x_s | x_t, x_0) has standard deviation sigma_s sigma_ts / sigma_t (Ho et al. 2020, eq. 7; the general
form in Kingma et al. 2021, arXiv 2107.00630, appendix A). All samplers serve all processes: written in alpha and sigma,
with nothing divided by what may vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from maskdm.diffusion.process import Process, share_of
from maskdm.errors import InputError
from maskdm.sampling.guidance import Estimate

Noise = Callable[[], Tensor]
"""Fresh standard normals of x_t's shape."""
Report = Callable[[], None]
"""Called after every step."""


class Run(Protocol):
    """One way from x_t at times[0] to x at the last of the falling times; `amount` is of fresh noise."""

    def __call__(
        self,
        estimate: Estimate,
        process: Process,
        x_t: Tensor,
        times: Sequence[float],
        *,
        noise: Noise,
        amount: float,
        report: Report,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Level:
    """The coefficients at one time, as numbers."""

    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """log(alpha / sigma), with the infinities at the ends."""
        if self.alpha <= 0:
            return -math.inf
        return math.log(self.alpha / self.sigma) if self.sigma > 0 else math.inf


def level(process: Process, t: float) -> Level:
    """alpha and sigma at time t."""
    alpha, sigma = process.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    return Level(float(alpha), float(sigma))


def between(t: Level, s: Level) -> float:
    """sigma_ts, the deviation of the noise added from s to the noisier t."""
    return math.sqrt(max(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2, 0.0))


def noised(process: Process, x_s: Tensor, s: float, t: float, noise: Tensor) -> Tensor:
    """A draw from q(x_t | x_s), t noisier than s."""
    at_s, at_t = level(process, s), level(process, t)
    return at_t.alpha / at_s.alpha * x_s + between(at_t, at_s) * noise


def ddim(
    estimate: Estimate,
    process: Process,
    x_t: Tensor,
    times: Sequence[float],
    *,
    noise: Noise,
    amount: float = 0.0,
    report: Report = lambda: None,
) -> Tensor:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16): eta = 0 is deterministic, eta = 1 has DDPM's variance.

    With eta = 0 it is Euler's method in every frame, for flow matching as for EDM.

    Args:
        estimate: what the model says of (x_t, t).
        process: whose times these are.
        x_t: noise at times[0], (B, C, H, W).
        times: falling times of the process.
        noise: fresh normals.
        amount: eta.
        report: called after every step.

    Returns:
        x at the last of the times, (B, C, H, W); with the clean image last, in [-1, 1].
    """
    for t, s in _levels(process, times):
        x_0, eps = estimate(x_t, t.time)
        random = amount * s.sigma * between(t, s) / t.sigma
        x_t = s.alpha * x_0 + math.sqrt(max(s.sigma**2 - random**2, 0.0)) * eps
        if random:
            x_t = x_t + random * noise()
        report()
    return x_t


def ancestral(
    estimate: Estimate,
    process: Process,
    x_t: Tensor,
    times: Sequence[float],
    *,
    noise: Noise,
    amount: float = 1.0,
    report: Report = lambda: None,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): draws from q(x_s | x_t, x_0 = estimate), eq. 6 and 7.

    The variance is the posterior's, exact for any two times; `amount` (eta) scales its standard deviation.
    """
    for t, s in _levels(process, times):
        x_0, _ = estimate(x_t, t.time)
        sigma_ts = between(t, s)
        x_t = (s.alpha * sigma_ts**2 * x_0 + t.alpha / s.alpha * s.sigma**2 * x_t) / t.sigma**2
        if s.sigma:
            x_t = x_t + amount * s.sigma * sigma_ts / t.sigma * noise()
        report()
    return x_t


def euler(
    estimate: Estimate,
    process: Process,
    x_t: Tensor,
    times: Sequence[float],
    *,
    noise: Noise,
    amount: float = 0.0,
    report: Report = lambda: None,
) -> Tensor:
    """Euler's method with EDM's churn (Karras et al. 2022, arXiv 2206.00364, algorithm 2 without its second order).

    `amount` is S_churn: before each step as much noise is added as multiplies sigma / alpha by 1 + churn / steps.
    """
    for t, s in _levels(process, times):
        t, x_t = _churned(process, x_t, t, amount / (len(times) - 1), noise)
        x_0, eps = estimate(x_t, t.time)
        x_t = s.alpha * x_0 + s.sigma * eps
        report()
    return x_t


def heun(
    estimate: Estimate,
    process: Process,
    x_t: Tensor,
    times: Sequence[float],
    *,
    noise: Noise,
    amount: float = 0.0,
    report: Report = lambda: None,
) -> Tensor:
    """Heun's method, second order, two calls a step but the last (Karras et al. 2022, algorithms 1 and 2).

    In the frame x / n of the process a path is straight, so that a step is the change of alpha / n times x_0 and that
    of sigma / n times eps; both are taken as the mean of before and after. `amount` is S_churn, see `euler`.
    """
    for t, s in _levels(process, times):
        t, x_t = _churned(process, x_t, t, amount / (len(times) - 1), noise)
        x_0, eps = estimate(x_t, t.time)
        ahead = s.alpha * x_0 + s.sigma * eps
        if s.sigma:
            x_0_s, eps_s = estimate(ahead, s.time)
            n_t, n_s = _frame(process, t), _frame(process, s)
            image, rest = s.alpha / n_s - t.alpha / n_t, s.sigma / n_s - t.sigma / n_t
            ahead = n_s * (x_t / n_t + image * (x_0 + x_0_s) / 2 + rest * (eps + eps_s) / 2)
        x_t = ahead
        report()
    return x_t


def dpmpp(
    estimate: Estimate,
    process: Process,
    x_t: Tensor,
    times: Sequence[float],
    *,
    noise: Noise,
    amount: float = 0.0,
    report: Report = lambda: None,
) -> Tensor:
    """DPM-Solver++ of two steps, second order with one call a step (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    The first step, the last and any from noise alone are of first order. `amount` (eta) = 1 is its SDE variant.
    """
    before: tuple[float, Tensor] | None = None  # the log-SNR and the estimate of the step before
    for t, s in _levels(process, times):
        x_0, _ = estimate(x_t, t.time)
        h = s.log_snr - t.log_snr
        image = x_0
        if before is not None and math.isfinite(h) and math.isfinite(before[0]):
            image = x_0 + h / (2 * (t.log_snr - before[0])) * (x_0 - before[1])
        # e^-h, written so that it is 0 at either end; with eta, old noise fades by e^(-h eta) more and fresh comes in.
        fade = s.sigma * t.alpha / (s.alpha * t.sigma)
        x_t = s.sigma / t.sigma * fade**amount * x_t + s.alpha * (1 - fade ** (1 + amount)) * image
        if amount and s.sigma:
            x_t = x_t + s.sigma * math.sqrt(1 - fade ** (2 * amount)) * noise()
        before = (t.log_snr, x_0)
        report()
    return x_t


@dataclass(frozen=True)
class Sampler:
    """A sampler and its kind of noise.

    Attributes:
        run: the function.
        amount: name of its amount of fresh noise, eta or churn.
        default: of that amount.
        most: the largest that makes sense.
        needs_noise: whether it is no sampler without any.
    """

    run: Run
    amount: str
    default: float
    most: float = 1.0
    needs_noise: bool = False


SAMPLERS = {
    "ddim": Sampler(ddim, "eta", 0.0),
    "ancestral": Sampler(ancestral, "eta", 1.0, needs_noise=True),
    "euler": Sampler(euler, "churn", 0.0, most=math.inf),
    "heun": Sampler(heun, "churn", 0.0, most=math.inf),
    "dpm++": Sampler(dpmpp, "eta", 0.0),
    "dpm++sde": Sampler(dpmpp, "eta", 1.0, needs_noise=True),
}


def pick(name: str, *, eta: float | None = None, churn: float | None = None) -> tuple[Run, float]:
    """A sampler by name and its amount of fresh noise.

    Raises:
        InputError: no such sampler, or an amount that it does not take.
    """
    if name not in SAMPLERS:
        raise InputError(f"sampler: got {name!r}, wanted one of {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[name]
    for kind, value in (("eta", eta), ("churn", churn)):
        if value is not None and kind != sampler.amount:
            fitting = ", ".join(other for other, s in SAMPLERS.items() if s.amount == kind)
            raise InputError(f"{kind}: got {value:g}, but {name} takes none; leave it out, or take one of {fitting}")
    amount = eta if sampler.amount == "eta" else churn
    amount = sampler.default if amount is None else amount
    if sampler.needs_noise and amount == 0:
        raise InputError(f"eta: got 0, but {name} lives on fresh noise; leave eta out, or take ddim, heun or dpm++")
    if not 0 <= amount <= sampler.most or not math.isfinite(amount):
        wanted = "0 (deterministic) to 1 (as much noise as DDPM)" if sampler.amount == "eta" else "0 or more"
        raise InputError(f"{sampler.amount}: got {amount:g}, wanted {wanted}")
    return sampler.run, amount


@dataclass(frozen=True)
class _Timed(Level):
    time: float


def _levels(process: Process, times: Sequence[float]) -> list[tuple[_Timed, _Timed]]:
    return list(pairwise(_timed(process, t) for t in times))


def _timed(process: Process, t: float) -> _Timed:
    at = level(process, t)
    return _Timed(at.alpha, at.sigma, t)


def _frame(process: Process, at: Level) -> float:
    return float(process.frame(*torch.tensor([at.alpha, at.sigma], dtype=torch.float64)))


def _churned(process: Process, x_t: Tensor, t: _Timed, share: float, noise: Noise) -> tuple[_Timed, Tensor]:
    """The time with sigma / alpha larger by 1 + `share` (at most sqrt(2)), and x_t with noise added up to there."""
    if not share or t.alpha <= 0:
        return t, x_t
    factor = 1 + min(share, math.sqrt(2) - 1)
    noisier = share_of(torch.tensor(t.alpha, dtype=torch.float64), torch.tensor(factor * t.sigma, dtype=torch.float64))
    time = min(max(float(process.time_at(noisier)), t.time), process.ends[1])
    if time <= t.time:
        return t, x_t
    return _timed(process, time), noised(process, x_t, t.time, time, noise())
