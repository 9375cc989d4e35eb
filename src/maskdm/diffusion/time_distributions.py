"""Distributions of t in training, each as its quantile function."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

TimeDistribution = Callable[[Tensor], Tensor]
"""Quantile function of t in training: u inside (0, 1) -> t, same shape, float64."""


def uniform_between(low: float, high: float) -> TimeDistribution:
    """Uniform between two times."""
    return lambda u: low + (high - low) * u


def logit_normal(mean: float, std: float) -> TimeDistribution:
    """logit(t) is normal (Esser et al. 2024, arXiv 2403.03206, section 3.1)."""
    return lambda u: torch.sigmoid(mean + std * torch.special.ndtri(u))


def log_normal(mean: float, std: float) -> TimeDistribution:
    """log(t) is normal (Karras et al. 2022, arXiv 2206.00364, table 1)."""
    return lambda u: torch.exp(mean + std * torch.special.ndtri(u))


def log_uniform(low: float, high: float) -> TimeDistribution:
    """log(t) is uniform."""
    return lambda u: torch.exp(math.log(low) + u * math.log(high / low))
