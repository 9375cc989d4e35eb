"""The processes by their names in the literature, each a value of `process`.

A *shift* s multiplies sigma / alpha throughout: more noise for larger images, whose neighbouring pixels repeat each
other. It is the resolution shift of the cosine schedule (Hoogeboom et al. 2023, arXiv 2301.11093, eq. 11: s = 256/64 at
256 px) and the time shift of flow matching (Esser et al. 2024, arXiv 2403.03206, eq. 23).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskdm.diffusion.process import SMALL, Coefficients, ContinuousProcess, DiscreteProcess, by_alpha, by_sum
from maskdm.diffusion.time_distributions import TimeDistribution, log_normal, log_uniform, logit_normal, uniform_between
from maskdm.errors import ArgumentError

# --- DDPM: T timesteps ------------------------------------------------------------------------------------------------


def linear(timesteps: int = 1000) -> DiscreteProcess:
    """Betas rise linearly, 1e-4 to 0.02 for T = 1000 (Ho et al. 2020), scaled by 1000/T otherwise.

    Raises:
        ArgumentError: so few timesteps that a beta would reach 1.
    """
    scale = 1000 / timesteps
    if 0.02 * scale >= 1:
        raise ArgumentError(
            "timesteps", got=timesteps, wanted="at least 21 with the linear schedule", remedy="try 1000"
        )
    return _from_betas(torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64))


def cosine(timesteps: int = 1000, s: float = 0.008) -> DiscreteProcess:
    """alpha_bar follows a squared cosine, betas clipped at 0.999 (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17)."""
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    f = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return _from_betas((1 - f[1:] / f[:-1]).clamp(0, 0.999))


def sigmoid(timesteps: int = 1000) -> DiscreteProcess:
    """alpha_bar falls as a sigmoid, betas clipped at 0.999 (Jabri et al. 2022, arXiv 2212.11972, start -3, end 3)."""
    f = _sigmoid_alpha_bar(torch.linspace(0, 1, timesteps + 1, dtype=torch.float64))
    return _from_betas((1 - f[1:] / f[:-1]).clamp(0, 0.999))


def _from_betas(betas: Tensor) -> DiscreteProcess:
    return DiscreteProcess(torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, dim=0)]))


def shifted(process: DiscreteProcess, shift: float) -> DiscreteProcess:
    """The same timesteps with sigma / alpha multiplied by `shift`."""
    if shift == 1:
        return process
    ratio = (1 - process.alpha_bar) / process.alpha_bar * shift**2
    return DiscreteProcess(1 / (1 + ratio))


def zero_terminal(process: DiscreteProcess) -> DiscreteProcess:
    """The same schedule moved and stretched to end in noise alone (Lin et al. 2023, arXiv 2305.08891, algorithm 1)."""
    alpha = process.alpha_bar.sqrt()
    first, last = alpha[1], alpha[-1]
    alpha = torch.cat([alpha[:1], (alpha[1:] - last) * first / (first - last)])
    return DiscreteProcess(alpha**2)


# --- continuous time --------------------------------------------------------------------------------------------------


def _per_mille(t: Tensor) -> Tensor:
    return 1000 * t


def _one(alpha: Tensor, sigma: Tensor) -> Tensor:
    return torch.ones_like(alpha)


def _vp_linear(t: Tensor) -> Coefficients:
    log_alpha = -(t**2) * (20 - 0.1) / 4 - t * 0.1 / 2
    return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))


def _vp_cosine(t: Tensor) -> Coefficients:
    return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)


def _sigmoid_alpha_bar(t: Tensor, start: float = -3.0, end: float = 3.0) -> Tensor:
    top, bottom = (1 / (1 + math.exp(-x)) for x in (end, start))
    alpha_bar: Tensor = (top - torch.sigmoid(t * (end - start) + start)) / (top - bottom)
    return alpha_bar


def _vp_sigmoid(t: Tensor) -> Coefficients:
    alpha_bar = _sigmoid_alpha_bar(t).clamp(0, 1)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


VP_SCHEDULES = {"linear": _vp_linear, "cosine": _vp_cosine, "sigmoid": _vp_sigmoid}


def vp(
    schedule: str = "linear", *, shift: float = 1.0, time_distribution: TimeDistribution | None = None
) -> ContinuousProcess:
    """The variance-preserving SDE, alpha^2 + sigma^2 = 1, t in [0, 1] (Song et al. 2021, arXiv 2011.13456, eq. 33).

    Args:
        schedule: linear (beta from 0.1 to 20), cosine (alpha = cos(pi t / 2)) or sigmoid.
        shift: factor of sigma / alpha.
        time_distribution: of t in training; uniform by default.
    """
    base = VP_SCHEDULES[schedule]

    def coefficients(t: Tensor) -> Coefficients:
        alpha, sigma = base(t)
        norm = torch.hypot(alpha, shift * sigma)
        return alpha / norm, shift * sigma / norm

    last = float(coefficients(torch.ones((), dtype=torch.float64))[0])
    ends = (1e-3, 1.0)
    return ContinuousProcess(
        coefficients,
        time_distribution or uniform_between(*ends),
        ends,
        c_noise=_per_mille,
        c_in=_one,
        frame=by_alpha if last > SMALL else by_sum,
    )


def flow(*, shift: float = 1.0, time_distribution: TimeDistribution | None = None) -> ContinuousProcess:
    """Rectified flow, x_t = (1 - t) x_0 + t eps (Liu et al. 2022, arXiv 2209.03003; Lipman et al., arXiv 2210.02747).

    Args:
        shift: of times, in training and sampling alike, t -> s t / (1 + (s - 1) t).
        time_distribution: of t in training before the shift; logit-normal (0, 1) by default.
    """

    def coefficients(t: Tensor) -> Coefficients:
        norm = 1 + (shift - 1) * t
        return (1 - t) / norm, shift * t / norm

    return ContinuousProcess(
        coefficients,
        time_distribution or logit_normal(0.0, 1.0),
        (1e-4, 1.0),
        c_noise=_per_mille,
        c_in=_one,
        frame=by_sum,
    )


def _ve(
    time_distribution: TimeDistribution, sigma_min: float, sigma_max: float, sigma_data: float, spacing: str
) -> ContinuousProcess:
    if not 0 < sigma_min < sigma_max:
        raise ArgumentError("sigma_min", got=sigma_min, wanted=f"more than 0 and less than {sigma_max:g}")

    def c_in(alpha: Tensor, sigma: Tensor) -> Tensor:
        return 1 / torch.hypot(alpha * sigma_data, sigma)

    def c_noise(t: Tensor) -> Tensor:
        # EDM has ln(sigma) / 4; ours are on a scale of a thousand.
        return 250 * torch.log(t.clamp(min=sigma_min))

    return ContinuousProcess(
        lambda t: (torch.ones_like(t), t),
        time_distribution,
        (sigma_min, sigma_max),
        c_noise=c_noise,
        c_in=c_in,
        frame=by_alpha,
        spacing=spacing,
    )


def ve(
    sigma_min: float = 0.01,
    sigma_max: float = 50.0,
    sigma_data: float = 0.5,
    time_distribution: TimeDistribution | None = None,
) -> ContinuousProcess:
    """Variance exploding, x_t = x_0 + t eps: log(t) uniform (NCSN; Song et al. 2021, arXiv 2011.13456, eq. 30).

    Args:
        sigma_min, sigma_max: the times of least and of most noise.
        sigma_data: standard deviation of the pixels.
        time_distribution: of t in training; log-uniform by default.

    Raises:
        ArgumentError: a sigma_min that is not between 0 and sigma_max.
    """
    return _ve(time_distribution or log_uniform(sigma_min, sigma_max), sigma_min, sigma_max, sigma_data, "logsnr")


def edm(
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
    time_distribution: TimeDistribution | None = None,
) -> ContinuousProcess:
    """x_t = x_0 + t eps with log(t) normal, N(-1.2, 1.2) (Karras et al. 2022, arXiv 2206.00364, table 1).

    Its preconditioning is prediction F with the plain loss on it; the input's factor is `c_in`.

    Args:
        sigma_min, sigma_max: the times of least and of most noise.
        sigma_data: standard deviation of the pixels.
        time_distribution: of t in training; log-normal (-1.2, 1.2) by default.

    Raises:
        ArgumentError: a sigma_min that is not between 0 and sigma_max.
    """
    return _ve(time_distribution or log_normal(-1.2, 1.2), sigma_min, sigma_max, sigma_data, "karras")
