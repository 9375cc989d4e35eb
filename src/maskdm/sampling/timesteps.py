"""Sampling times: from the noisiest time down to the clean image."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from maskdm.diffusion.prediction import Prediction
from maskdm.diffusion.process import Process, noise_level
from maskdm.errors import ArgumentError

MAX_AMPLIFICATION = 200.0
"""Sampling starts at the noisiest time where an error of the output reaches the estimate of x_0 at most so much larger.

With eps-prediction that factor is sigma / alpha: 158 at the end of the linear schedule, but 20,000 at the end of the
cosine one, where the first step would be decided by rounding errors. Other predictions hardly amplify at all.
"""
RHO = 7.0
"""Karras et al. 2022, arXiv 2206.00364, eq. 5."""

_Spacing = Callable[[float, float, Tensor], Tensor]
"""(noisiest, least noisy, u from 0 to 1) -> sigma / alpha."""


def _karras(most: float, least: float, u: Tensor) -> Tensor:
    a, b = most ** (1 / RHO), least ** (1 / RHO)
    return torch.pow(a + u * (b - a), RHO)


def _logsnr(most: float, least: float, u: Tensor) -> Tensor:
    return torch.exp(math.log(most) + u * math.log(least / most))


_RATIOS: dict[str, _Spacing] = {"karras": _karras, "logsnr": _logsnr}
SPACINGS = ("uniform", *_RATIOS)
"""Names of the spacings."""


def sampling_times(
    process: Process, prediction: Prediction, steps: int, *, spacing: str | None = None, shift: float = 1.0
) -> Tensor:
    """`steps` falling times, then that of the clean image: (steps + 1,), float64, on the CPU.

    Args:
        process: whose times.
        prediction: what the network predicts; it decides how noisy the first time can be.
        steps: number of steps.
        spacing: uniform (in the process's own time), karras (EDM's, rho = 7) or logsnr (uniform in log(sigma / alpha));
            by default the usual one of the process.
        shift: s moves noise levels u to s u / (1 + (s - 1) u), counted from the clean image to the first time: more
            than 1 dwells where there is more noise. From noise alone it multiplies sigma / alpha by s.

    Raises:
        ArgumentError: an unknown spacing, a shift that is not positive, steps out of range.
    """
    spacing = spacing or process.spacing
    if spacing not in SPACINGS:
        raise ArgumentError("spacing", got=spacing, wanted=f"one of {', '.join(SPACINGS)}")
    if not 0 < shift < math.inf:
        raise ArgumentError("shift", got=shift, wanted="more than 0", remedy="1 is none, 3 is usual for large images")
    first = noisiest_time(process, prediction)
    most = int(first) + 1 if process.timesteps else 10_000
    if not 1 <= steps <= most:
        why = "the timesteps of the process" if process.timesteps else "more would only add rounding"
        raise ArgumentError("steps", got=steps, wanted=f"1 to {most} ({why})")
    if spacing == "uniform":
        times = torch.linspace(first, process.clean, steps + 1, dtype=torch.float64)
    else:
        times = _spaced(process, _RATIOS[spacing], first, steps)
    if shift != 1:
        level = noise_level(*process.alpha_sigma(times[:-1].trunc() if process.timesteps else times[:-1]))
        u = level[1:] / level[0]  # so that none comes as far as the first time
        times[1:-1] = process.time_at(level[0] * shift * u / (1 + (shift - 1) * u))
    return _distinct_timesteps(times) if process.timesteps else times


def _spaced(process: Process, spacing: _Spacing, first: float, steps: int) -> Tensor:
    alpha, sigma = process.alpha_sigma(torch.tensor([first, process.ends[0]], dtype=torch.float64))
    most, least = (min(float(r), MAX_AMPLIFICATION) for r in sigma / alpha)
    ratio = spacing(most, least, torch.linspace(0, 1, steps, dtype=torch.float64))
    times = process.time_at(ratio / (1 + ratio))
    times[0] = first  # noise alone, also where sigma / alpha has no end
    return torch.cat([times, times.new_tensor([process.clean])])


def noisiest_time(process: Process, prediction: Prediction) -> float:
    """The noisiest time from which one can sample."""
    least, most = process.ends
    t = torch.linspace(least, most, process.timesteps or 10_001, dtype=torch.float64)
    alpha, sigma = process.alpha_sigma(t)
    usable = (sigma / prediction.determinant(alpha, sigma)).abs() <= MAX_AMPLIFICATION
    return float(t[usable][-1])


def _distinct_timesteps(times: Tensor) -> Tensor:
    """Whole times, no two alike: where they are closer than the timesteps, each of those is taken."""
    # Truncated towards zero, -1 stays -1: the times of the official sampler.
    steps = [int(t) for t in times]
    for i in range(1, len(steps) - 1):
        steps[i] = min(steps[i], steps[i - 1] - 1)
    for i in range(len(steps) - 2, -1, -1):
        steps[i] = max(steps[i], steps[i + 1] + 1)
    return torch.tensor(steps, dtype=torch.float64)
