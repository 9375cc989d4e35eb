"""Samplers: each a step from a time to a less noisy one, and one driver that walks them down the times.

For two times t > s of a process, the noise added between them has variance sigma_ts^2 = sigma_t^2 - (alpha_t/alpha_s)^2
sigma_s^2, and q(x_s | x_t, x_0) has standard deviation sigma_s sigma_ts / sigma_t (Ho et al. 2020, eq. 7; the general
form in Kingma et al. 2021, arXiv 2107.00630, appendix A). All samplers serve all processes: written in alpha and sigma,
with nothing divided by what may vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from maskdm.diffusion.process import Process, noise_level
from maskdm.errors import ArgumentError
from maskdm.sampling.guidance import Estimate

Noise = Callable[[], Tensor]
"""Fresh standard normals of x_t's shape, (B, C, H, W)."""


@dataclass(frozen=True)
class Time:
    """A time of a process with its coefficients, as numbers: x_t = alpha x_0 + sigma eps."""

    time: float
    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """log(alpha / sigma), with the infinities at the ends."""
        if self.alpha <= 0:
            return -math.inf
        return math.log(self.alpha / self.sigma) if self.sigma > 0 else math.inf


def time_of(process: Process, t: float) -> Time:
    """Time t with its coefficients."""
    alpha, sigma = process.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    return Time(t, float(alpha), float(sigma))


def sigma_between(t: Time, s: Time) -> float:
    """sigma_ts, the standard deviation of the noise added from s to the noisier t."""
    return math.sqrt(max(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2, 0.0))


def renoise(x_s: Tensor, s: Time, t: Time, noise: Tensor) -> Tensor:
    """A draw from q(x_t | x_s), t noisier than s: (B, C, H, W) twice -> (B, C, H, W)."""
    return t.alpha / s.alpha * x_s + sigma_between(t, s) * noise


# --- steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Context:
    """What steps may ask.

    Attributes:
        process: whose times are walked.
        estimate: (x_t, t) -> (x_0, eps), each (B, C, H, W).
        noise: fresh standard normals.
    """

    process: Process
    estimate: Estimate
    noise: Noise


@dataclass(frozen=True)
class StepState:
    """Where sampling stands.

    Attributes:
        t: the time.
        x_t: (B, C, H, W).
        x_0, eps: the model's estimates there.
        previous: (time, x_0) of the step before, for samplers of several steps; None in the first.
    """

    t: Time
    x_t: Tensor
    x_0: Tensor
    eps: Tensor
    previous: tuple[Time, Tensor] | None = None


Step = Callable[[StepState, Time, Context], Tensor]
"""From x_t to x_s at the next time s, (B, C, H, W)."""


def ddim_step(state: StepState, s: Time, context: Context, *, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16): eta = 0 is deterministic, eta = 1 has DDPM's variance.

    With eta = 0 it is Euler's method in every frame, for flow matching as for EDM.
    """
    t = state.t
    sigma = eta * s.sigma * sigma_between(t, s) / t.sigma
    x_s = s.alpha * state.x_0 + math.sqrt(max(s.sigma**2 - sigma**2, 0.0)) * state.eps
    return x_s + sigma * context.noise() if sigma else x_s


def ancestral_step(state: StepState, s: Time, context: Context, *, eta: float = 1.0) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): a draw from q(x_s | x_t, x_0 = estimate), eq. 6 and 7.

    The variance is the posterior's, exact for any two times; eta scales its standard deviation.
    """
    t, sigma_ts = state.t, sigma_between(state.t, s)
    x_s = (s.alpha * sigma_ts**2 * state.x_0 + t.alpha / s.alpha * s.sigma**2 * state.x_t) / t.sigma**2
    return x_s + eta * s.sigma * sigma_ts / t.sigma * context.noise() if s.sigma else x_s


def euler_step(state: StepState, s: Time, context: Context) -> Tensor:
    """Euler's method (Karras et al. 2022, arXiv 2206.00364, algorithm 2 without its second order)."""
    return s.alpha * state.x_0 + s.sigma * state.eps


def heun_step(state: StepState, s: Time, context: Context) -> Tensor:
    """Heun's method, second order, two calls but for the last step (Karras et al. 2022, algorithms 1 and 2).

    In the frame x / n of the process a path is straight, so that a step is the change of alpha / n times x_0 and that
    of sigma / n times eps; both are taken as the mean of before and after.
    """
    t, x_0, eps = state.t, state.x_0, state.eps
    x_s = s.alpha * x_0 + s.sigma * eps
    if not s.sigma:
        return x_s
    x_0_s, eps_s = context.estimate(x_s, s.time)
    n_t, n_s = _frame(context.process, t), _frame(context.process, s)
    d_alpha, d_sigma = s.alpha / n_s - t.alpha / n_t, s.sigma / n_s - t.sigma / n_t
    return n_s * (state.x_t / n_t + d_alpha * (x_0 + x_0_s) / 2 + d_sigma * (eps + eps_s) / 2)


def dpmpp_step(state: StepState, s: Time, context: Context, *, eta: float = 0.0) -> Tensor:
    """DPM-Solver++ of two steps, second order with one call a step (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    The first step, the last and any from noise alone are of first order. eta = 1 is its SDE variant.
    """
    t, x_0 = state.t, state.x_0
    h = s.log_snr - t.log_snr
    if state.previous is not None and math.isfinite(h) and math.isfinite(state.previous[0].log_snr):
        r, x_0_r = state.previous
        x_0 = x_0 + h / (2 * (t.log_snr - r.log_snr)) * (x_0 - x_0_r)
    # e^-h, written so that it is 0 at either end; with eta, old noise fades by e^(-h eta) more and fresh comes in.
    fade = s.sigma * t.alpha / (s.alpha * t.sigma)
    x_s: Tensor = s.sigma / t.sigma * fade**eta * state.x_t + s.alpha * (1 - fade ** (1 + eta)) * x_0
    if eta and s.sigma:
        x_s = x_s + s.sigma * math.sqrt(1 - fade ** (2 * eta)) * context.noise()
    return x_s


def _frame(process: Process, t: Time) -> float:
    return float(process.frame(*torch.tensor([t.alpha, t.sigma], dtype=torch.float64)))


# --- the driver -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampler:
    """A sampler with its options; made by `get_sampler`.

    Attributes:
        step: from one time to the next, its own options bound.
        s_churn: EDM's S_churn: before each of N steps as much noise is added as multiplies sigma / alpha by
            1 + s_churn / N.
        stochastic: whether fresh noise is added at all.
    """

    step: Step
    s_churn: float = 0.0
    stochastic: bool = False


def integrate(
    sampler: Sampler,
    context: Context,
    x_t: Tensor,
    times: Sequence[float],
    *,
    num_steps: int | None = None,
    callback: Callable[[], None] = lambda: None,
) -> Tensor:
    """Walks a sampler from one time to the next.

    Args:
        sampler: whose steps are taken.
        context: what the steps ask.
        x_t: at times[0], (B, C, H, W).
        times: of the process, usually falling to the clean image; any order where the sampler is deterministic.
        num_steps: N, over which `s_churn` is dealt out, where `times` are a part of a longer walk.
        callback: called after every step.

    Returns:
        x at the last of the times, (B, C, H, W); with the clean image last, in [-1, 1].
    """
    gamma = sampler.s_churn / (num_steps or len(times) - 1)
    previous: tuple[Time, Tensor] | None = None
    for t, s in pairwise(time_of(context.process, time) for time in times):
        t, x_t = _churn(x_t, t, context, gamma)
        x_0, eps = context.estimate(x_t, t.time)
        x_t = sampler.step(StepState(t, x_t, x_0, eps, previous), s, context)
        previous = (t, x_0)
        callback()
    return x_t


def _churn(x_t: Tensor, t: Time, context: Context, gamma: float) -> tuple[Time, Tensor]:
    """The time with sigma / alpha larger by 1 + gamma (at most sqrt(2)), and x_t with noise added up to there.

    Karras et al. 2022, arXiv 2206.00364, algorithm 2, lines 4 to 6.
    """
    if not gamma or t.alpha <= 0:
        return t, x_t
    factor, process = 1 + min(gamma, math.sqrt(2) - 1), context.process
    level = noise_level(torch.tensor(t.alpha, dtype=torch.float64), torch.tensor(factor * t.sigma, dtype=torch.float64))
    noisier = min(max(float(process.time_at(level)), t.time), process.ends[1])
    if noisier <= t.time:
        return t, x_t
    there = time_of(process, noisier)
    return there, renoise(x_t, t, there, context.noise())


# --- by name ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Option:
    """An amount of fresh noise, 0 or more."""

    most: float
    wanted: str


_OPTIONS = {
    "eta": _Option(1.0, "0 (deterministic) to 1 (as much noise as DDPM)"),
    "s_churn": _Option(math.inf, "0 or more"),
}


@dataclass(frozen=True)
class _Method:
    """A step, its one option, and the option's usual value; an option of the step itself is its keyword argument."""

    step: Callable[..., Tensor]
    option: str
    usual: float = 0.0


_METHODS = {
    "ddim": _Method(ddim_step, "eta"),
    "ancestral": _Method(ancestral_step, "eta", 1.0),
    "euler": _Method(euler_step, "s_churn"),
    "heun": _Method(heun_step, "s_churn"),
    "dpm++": _Method(dpmpp_step, "eta"),
    "dpm++sde": _Method(dpmpp_step, "eta", 1.0),
}
SAMPLERS = tuple(_METHODS)
"""Their names. ancestral and dpm++sde are no samplers without fresh noise."""


def get_sampler(name: str, *, eta: float | None = None, s_churn: float | None = None) -> Sampler:
    """A sampler by name.

    Args:
        name: one of `SAMPLERS`.
        eta: fresh noise of ddim, ancestral, dpm++ and dpm++sde, 0 (none) to 1 (as much as DDPM); None for the usual.
        s_churn: fresh noise of euler and heun, 0 (none) or more (EDM's S_churn); None for none.

    Raises:
        ArgumentError: of sampler, where there is none of that name; of an option that it does not take.
    """
    if name not in _METHODS:
        raise ArgumentError("sampler", got=name, wanted=f"one of {', '.join(SAMPLERS)}")
    method, given = _METHODS[name], {"eta": eta, "s_churn": s_churn}
    for option, number in given.items():
        if number is not None and option != method.option:
            takers = ", ".join(other for other, m in _METHODS.items() if m.option == option)
            raise ArgumentError(
                option, f"{name} takes none", got=number, remedy=f"leave it out, or take one of {takers}"
            )
    number = given[method.option]
    amount = method.usual if number is None else number
    if method.usual and amount == 0:
        remedy = f"leave {method.option} out, or take ddim, heun or dpm++"
        raise ArgumentError(method.option, f"{name} lives on fresh noise", got=0, remedy=remedy)
    limits = _OPTIONS[method.option]
    if not 0 <= amount <= limits.most or not math.isfinite(amount):
        raise ArgumentError(method.option, got=amount, wanted=limits.wanted)
    if method.option == "s_churn":
        return Sampler(method.step, s_churn=amount, stochastic=amount > 0)
    return Sampler(partial(method.step, **{method.option: amount}), stochastic=amount > 0)
