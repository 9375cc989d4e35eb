"""What the network's output means: out = a x_0 + b eps, with (a, b) a function of (alpha, sigma).

Together with x_t = alpha x_0 + sigma eps this is a linear system of two equations in (x_0, eps); one inverse serves
every prediction:

    det = alpha b - sigma a,    x_0 = (b x_t - sigma out) / det,    eps = (alpha out - a x_t) / det

At a given x_t, errors of two predictions differ by the quotient of their determinants. So a loss measured in another
space than the output's is the same loss with a weight (`maskdm.diffusion.weighting`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskdm.diffusion.process import Process
from maskdm.errors import ArgumentError

LARGEST_TARGET = 10.0
"""Networks put out numbers of about one; a target further from it is not learned."""


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
        """What the network's output should be; all shapes broadcast."""
        a, b = self.coefficients(alpha, sigma)
        return a * x_0 + b * eps

    def determinant(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """alpha b - sigma a, of alpha's shape."""
        a, b = self.coefficients(alpha, sigma)
        return alpha * b - sigma * a

    def invert(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(x_0, eps) from the output and x_t; all shapes broadcast.

        Where the system is singular (x_0-prediction at sigma = 0, eps-prediction at alpha = 0) there is nothing to
        invert and the result is not finite: `check_prediction` and sampling times keep away from there.
        """
        a, b = self.coefficients(alpha, sigma)
        det = alpha * b - sigma * a
        return (b * x_t - sigma * out) / det, (alpha * out - a * x_t) / det


def precondition(sigma_data: float = 0.5) -> Prediction:
    """EDM's F for any process: x_0 = c_skip x_t + c_out F, with the skip that leaves F unit variance.

    Karras et al. 2022, arXiv 2206.00364, eq. 7 and appendix B.6; there alpha is 1. For sigma_data = 1 and a
    variance-preserving process it is -v.
    """

    def coefficients(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.hypot(alpha * sigma_data, sigma)
        return sigma / (sigma_data * norm), -alpha * sigma_data / norm

    return Prediction("F", coefficients)


EPS = Prediction("eps", lambda alpha, sigma: (torch.zeros_like(alpha), torch.ones_like(sigma)))
X0 = Prediction("x0", lambda alpha, sigma: (torch.ones_like(alpha), torch.zeros_like(sigma)))
V = Prediction("v", lambda alpha, sigma: (-sigma, alpha))
"""Salimans & Ho 2022, arXiv 2202.00512, appendix D: v = alpha eps - sigma x_0."""
VELOCITY = Prediction("velocity", lambda alpha, sigma: (-torch.ones_like(alpha), torch.ones_like(sigma)))
"""eps - x_0, the velocity dx_t / dt of rectified flow."""

PREDICTIONS = {p.name: p for p in (EPS, X0, V, VELOCITY, precondition())}


def check_prediction(process: Process, prediction: Prediction) -> None:
    """Refuses a prediction from which, at some time of the process, the image or the target cannot be had.

    Raises:
        ArgumentError: the inverse is singular at a time of training, or the target is far from unit size.
    """
    if bool((prediction.determinant(*_training_coefficients(process)).abs() < 1e-9).any()):
        raise ArgumentError(
            "prediction",
            f"this process ends in noise alone, where {prediction.name} says nothing about the image",
            got=prediction.name,
            wanted="x0, v, velocity or F",
        )
    check_bounded(process, prediction)


def check_bounded(process: Process, prediction: Prediction) -> None:
    """Refuses a quantity that is far from unit size at some time of training.

    Raises:
        ArgumentError: it grows beyond `LARGEST_TARGET`.
    """
    a, b = prediction.coefficients(*_training_coefficients(process))
    largest = float(torch.maximum(a.abs(), b.abs()).max())
    if largest > LARGEST_TARGET:
        raise ArgumentError(
            "prediction",
            f"{prediction.name} grows to {largest:.0f} times the image in this process",
            got=prediction.name,
            wanted="F, x0, eps or velocity",
        )


def _training_coefficients(process: Process) -> tuple[Tensor, Tensor]:
    return process.alpha_sigma(process.training_time(torch.linspace(0, 1, 1001, dtype=torch.float64)))
