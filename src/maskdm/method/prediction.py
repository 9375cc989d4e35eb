"""What the network's output means: out = a x_0 + b eps, with (a, b) a function of (alpha, sigma).

Together with x_t = alpha x_0 + sigma eps this is a linear system of two equations in (x_0, eps); one inverse serves
every prediction:

    det = alpha b - sigma a,    x_0 = (b x_t - sigma out) / det,    eps = (alpha out - a x_t) / det
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """One meaning of the output.

    Attributes:
        name: the field's word for it.
        coefficients: (alpha, sigma) -> (a, b), tensors of the same shape.
    """

    name: str
    coefficients: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should answer; all shapes broadcast."""
        a, b = self.coefficients(alpha, sigma)
        return a * x_0 + b * eps

    def invert(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(x_0, eps) from the output and x_t.

        Where the system is singular (x_0-prediction at sigma = 0, eps-prediction at alpha = 0) there is nothing to
        invert and the result is not finite: the grids of times keep samplers away from there.
        """
        a, b = self.coefficients(alpha, sigma)
        det = alpha * b - sigma * a
        return (b * x_t - sigma * out) / det, (alpha * out - a * x_t) / det


EPS = Prediction("eps", lambda alpha, sigma: (torch.zeros_like(alpha), torch.ones_like(sigma)))
X0 = Prediction("x0", lambda alpha, sigma: (torch.ones_like(alpha), torch.zeros_like(sigma)))
V = Prediction("v", lambda alpha, sigma: (-sigma, alpha))
"""Salimans & Ho 2022, arXiv 2202.00512, appendix D: v = alpha eps - sigma x_0."""

PREDICTIONS = {p.name: p for p in (EPS, X0, V)}
