"""How errors at different noise levels count in the loss: a weight on the squared error of the output.

All are defined on the error of some quantity that follows from the output, and with x_t given every such error is the
output's times a quotient of determinants (`maskdm.diffusion.prediction`). The error of x_0 is that of the output times
sigma / det.

No noise level counts for more than `LARGEST` or for less than `SMALLEST`. The weights of some papers vanish where
images become noise alone, which is where sampling starts: nothing would be learned of it (Lin et al. 2023, arXiv
2305.08891, section 3.2, who take another loss there; Salimans & Ho 2022, arXiv 2202.00512, section 4, who truncate).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskdm.diffusion.prediction import Prediction

Weighting = Callable[[Tensor, Tensor, Prediction], Tensor]
"""(alpha, sigma, what the network predicts) -> the weight, of alpha's shape."""

LARGEST = 400.0
"""Weights are cut here: where a space blows up, single images would make the gradient.

JiT divides by at least 0.05 (Li & He 2025, arXiv 2511.13720), the same thing: 1 / 0.05^2 = 400.
"""
SMALLEST = 1 / LARGEST
"""Weights are at least this: what counts for nothing is not learned, and sampling may start there."""


def uniform(alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """Plain squared error of the output, as the paper has it."""
    return torch.ones_like(alpha)


def uniform_in(space: Prediction) -> Weighting:
    """Plain squared error of another quantity.

    velocity with x-prediction is the loss of JiT; F is that of EDM, whose weight of the error of x_0 is
    (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, arXiv 2206.00364, table 1).
    """

    def weight(alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        quotient = space.determinant(alpha, sigma) / prediction.determinant(alpha, sigma)
        return quotient.square().clamp(SMALLEST, LARGEST)

    return weight


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on the error of x_0 (Hang et al. 2023, arXiv 2303.09556, section 3.4)."""

    def weight(alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        return _on_x_0((alpha / sigma).square().clamp(max=gamma), alpha, sigma, prediction)

    return weight


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """1 / (k + SNR)^gamma on the error of eps (Choi et al. 2022, arXiv 2204.00227, eq. 9)."""

    def weight(alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        # The error of eps is that of the output times alpha / det; written so that sigma = 0 does no harm.
        snr_over = sigma.square() / (k * sigma.square() + alpha.square())
        weight = snr_over**gamma * (alpha / prediction.determinant(alpha, sigma)).square()
        return weight.clamp(SMALLEST, LARGEST)

    return weight


def _on_x_0(weight: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    return (weight * (sigma / prediction.determinant(alpha, sigma)).square()).clamp(SMALLEST, LARGEST)
