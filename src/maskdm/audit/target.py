"""What an attack sees of a model: the noise that it finds in a picture, whatever its process and prediction.

Attacks are published for eps and for variance-preserving mixtures x = sqrt(1 - sigma^2) x_0 + sigma eps. Any other
process holds the same picture at the same ratio sigma / alpha, but for a factor (see `diffusion.process`), so that one
grid of sigma serves all of them, and the timesteps of a paper become the sigma that they stood for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import denoising_loss, visible_mean
from maskdm.diffusion.masks import masking
from maskdm.diffusion.patches import patch_grid

LEAST = 0.02
"""The least sigma that is asked about: below it estimates of the image say nothing about the noise."""


class Eye(Protocol):
    """A model under attack."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def eps(self, x: Tensor, sigma: float, label: Tensor | None = None) -> Tensor:
        """The noise in x = sqrt(1 - sigma^2) x_0 + sigma eps, (B, C, H, W) of the same shape."""
        ...

    def level(self, sigma: float) -> float:
        """The nearest sigma that the model knows."""
        ...


@dataclass(frozen=True)
class ModelEye:
    """A denoiser, asked at a sigma."""

    denoiser: Denoiser

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.denoiser.device

    def time(self, sigma: float) -> float:
        """The time of the process with the nearest noise."""
        process = self.denoiser.process
        alpha = math.sqrt(1 - sigma**2)
        t = process.time_at(torch.tensor(sigma / (alpha + sigma), dtype=torch.float64))
        return float(t.clamp(*process.ends))

    def scales(self, sigma: float) -> tuple[float, float]:
        """(alpha, sigma) of the process there."""
        alpha, noise = self.denoiser.process.alpha_sigma(torch.tensor(self.time(sigma), dtype=torch.float64))
        return float(alpha), float(noise)

    def level(self, sigma: float) -> float:
        """The nearest sigma that the model knows."""
        alpha, noise = self.scales(sigma)
        return noise / math.hypot(alpha, noise)

    @torch.no_grad()
    def eps(self, x: Tensor, sigma: float, label: Tensor | None = None) -> Tensor:
        """See `Eye`."""
        _, eps = self.denoiser.estimate(x * math.hypot(*self.scales(sigma)), self.time(sigma), label=label)
        return eps

    @torch.no_grad()
    def masked_error(
        self, x_0: Tensor, eps: Tensor, sigma: float, ratio: float, seed: int, label: Tensor | None
    ) -> Tensor:
        """Squared error of the noise on the visible patches of a mask drawn from `seed`, for each picture: (B,)."""
        denoiser = self.denoiser
        grid = patch_grid(denoiser.image_size, denoiser.patch_size)
        generator = torch.Generator().manual_seed(seed)
        drawn = masking("patch", grid, ratio).draw(1, generator)
        assert drawn is not None, "patches are hidden"
        visible = drawn.expand(len(x_0), -1).to(x_0.device)
        alpha, noise = self.scales(sigma)
        x_t, t = alpha * x_0 + noise * eps, torch.full((len(x_0),), self.time(sigma), device=x_0.device)
        answer = denoiser.answer(x_t, t, visible=visible, label=label)
        _, found = denoiser.prediction.invert(answer, x_t, *denoiser.at(t, x_0.dtype))
        return visible_mean((found - eps) ** 2, visible, denoiser.patch_size)

    def gradient_norm(
        self, x_0: Tensor, noises: Sequence[Tensor], sigmas: Sequence[float], label: Tensor | None
    ) -> Tensor:
        """Mean logarithm of the norms of the loss's gradients, over all tensors, for one picture: ()."""
        network = cast(nn.Module, self.denoiser.backbone)
        tensors = list(network.parameters())
        before = [tensor.requires_grad for tensor in tensors]
        for tensor in tensors:
            tensor.requires_grad_(True)
        try:
            total = torch.zeros((), device=x_0.device)
            for eps, sigma in zip(noises, sigmas, strict=True):
                t = torch.full((1,), self.time(sigma), device=x_0.device, dtype=x_0.dtype)
                total = total + denoising_loss(self.denoiser, x_0, t, eps, label=label).sum()
            found = torch.autograd.grad(total, tensors, allow_unused=True)
        finally:
            for tensor, needed in zip(tensors, before, strict=True):
                tensor.requires_grad_(needed)
        return torch.stack([g.norm().clamp_min(1e-30).log() for g in found if g is not None]).mean().detach()


@dataclass(frozen=True)
class Memoriser:
    """The best denoiser of exactly `images`: it knows them all by heart (a closed form, no network).

    E[x_0 | x] is the mean of the pictures weighed by exp(-|x - alpha x_i|^2 / (2 sigma^2)).
    """

    images: Tensor

    @property
    def device(self) -> torch.device:
        """Where the pictures lie."""
        return self.images.device

    def level(self, sigma: float) -> float:
        """Any."""
        return sigma

    def eps(self, x: Tensor, sigma: float, label: Tensor | None = None) -> Tensor:
        """See `Eye`."""
        alpha = math.sqrt(1 - sigma**2)
        squares = torch.cdist(x.flatten(1), alpha * self.images.flatten(1)) ** 2
        weights = torch.softmax(-squares / (2 * sigma**2), dim=1)
        x_0 = (weights @ self.images.flatten(1)).view_as(x)
        return (x - alpha * x_0) / sigma


@dataclass(frozen=True)
class Gaussian:
    """The best denoiser of pictures with independent normal pixels: it knows nobody.

    Attributes:
        mean, variance: of each pixel, (C, H, W).
    """

    mean: Tensor
    variance: Tensor

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.mean.device

    def level(self, sigma: float) -> float:
        """Any."""
        return sigma

    def eps(self, x: Tensor, sigma: float, label: Tensor | None = None) -> Tensor:
        """See `Eye`."""
        alpha = math.sqrt(1 - sigma**2)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        x_0 = self.mean + gain * (x - alpha * self.mean)
        return (x - alpha * x_0) / sigma
