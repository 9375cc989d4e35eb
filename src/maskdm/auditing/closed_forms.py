"""Models in closed form, attacked like any other: one that has memorized its images, and one that knows none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Memorizer:
    """The optimal denoiser of a finite training set (a closed form, no network): it has memorized every image.

    E[x_0 | x] is the mean of the images weighted by exp(-|x - alpha x_i|^2 / (2 sigma^2)).

    Attributes:
        images: the training set in [-1, 1], (N, C, H, W).
    """

    images: Tensor

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def nearest_sigma(self, sigma: float) -> float:
        """`sigma`: any will do."""
        return sigma

    def eps(self, x: Tensor, sigma: float, label: Tensor | None = None) -> Tensor:
        """See `TargetModel`; labels make no difference."""
        alpha = math.sqrt(1 - sigma**2)
        squares = torch.cdist(x.flatten(1), alpha * self.images.flatten(1)) ** 2
        weights = torch.softmax(-squares / (2 * sigma**2), dim=1)
        x_0 = (weights @ self.images.flatten(1)).view_as(x)
        return (x - alpha * x_0) / sigma


@dataclass(frozen=True)
class GaussianModel:
    """The optimal denoiser of images with independent normal pixels (a closed form): it knows no image.

    Attributes:
        mean, variance: of each pixel, (C, H, W).
    """

    mean: Tensor
    variance: Tensor

    @property
    def device(self) -> torch.device:
        """Where mean and variance are."""
        return self.mean.device

    def nearest_sigma(self, sigma: float) -> float:
        """`sigma`: any will do."""
        return sigma

    def eps(self, x: Tensor, sigma: float, label: Tensor | None = None) -> Tensor:
        """See `TargetModel`; labels make no difference."""
        alpha = math.sqrt(1 - sigma**2)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        x_0 = self.mean + gain * (x - alpha * self.mean)
        return (x - alpha * x_0) / sigma
