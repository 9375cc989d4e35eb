"""What an attack sees of a model: the noise it finds in an image, whatever its process and prediction.

Attacks are published for eps and for variance-preserving mixtures x = sqrt(1 - sigma^2) x_0 + sigma eps. Any other
process holds the same image at the same ratio sigma / alpha, up to a factor (see `maskdm.diffusion.process`), so that
one set of sigmas serves all of them, and the timesteps of a paper become the sigmas that they stand for.

A `ModelTarget` asks a trained denoiser. A `Memorizer` and a `GaussianModel` are closed forms whose knowledge of the
members is complete and none: they are the positive control of an audit and the oracles of its tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import denoising_loss, visible_mean
from maskdm.diffusion.masks import Mask, masking
from maskdm.diffusion.patches import patch_grid
from maskdm.diffusion.process import Process

MIN_SIGMA = 0.02
"""The least sigma at which a model is asked: below it an estimate of the image says nothing about the noise."""


class TargetModel(Protocol):
    """A model under attack."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def eps(self, x: Tensor, sigma: float, label: Tensor | None = None) -> Tensor:
        """The estimated noise in variance-preserving mixtures.

        Args:
            x: sqrt(1 - sigma^2) x_0 + sigma eps with x_0 in [-1, 1], (B, C, H, W).
            sigma: one for the whole batch, in (0, 1).
            label: (B,) int64, or None for the unconditional model.

        Returns:
            An estimate of eps, (B, C, H, W).
        """
        ...

    def nearest_sigma(self, sigma: float) -> float:
        """The sigma nearest to `sigma` that the model was trained for; both of a variance-preserving mixture."""
        ...


@dataclass(frozen=True)
class ModelTarget:
    """A denoiser, asked at a sigma.

    Attributes:
        denoiser: the model, with its process and prediction.
    """

    denoiser: Denoiser

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        return self.denoiser.device

    def time(self, sigma: float) -> float:
        """The time of the process whose noise is nearest to `sigma` of a variance-preserving mixture."""
        return _nearest_time(self.denoiser.process, sigma)  # type: ignore[arg-type] # a protocol has no hash

    def scales(self, sigma: float) -> tuple[float, float]:
        """(alpha, sigma) of the process at that time."""
        alpha, noise = self.denoiser.process.alpha_sigma(torch.tensor(self.time(sigma), dtype=torch.float64))
        return float(alpha), float(noise)

    def nearest_sigma(self, sigma: float) -> float:
        """See `TargetModel`."""
        alpha, noise = self.scales(sigma)
        return noise / math.hypot(alpha, noise)

    @torch.no_grad()
    def eps(self, x: Tensor, sigma: float, label: Tensor | None = None) -> Tensor:
        """See `TargetModel`."""
        _, eps = self.denoiser.estimate(x * math.hypot(*self.scales(sigma)), self.time(sigma), label=label)
        return eps

    @torch.no_grad()
    def masked_error(
        self, x_0: Tensor, eps: Tensor, sigma: float, ratio: float, seed: int, label: Tensor | None
    ) -> Tensor:
        """The squared error of the noise on the visible patches of one random mask.

        Args:
            x_0: images in [-1, 1], (B, C, H, W).
            eps: noise that is mixed into them, (B, C, H, W).
            sigma: of a variance-preserving mixture.
            ratio: share of patches to mask, in (0, 1).
            seed: of the mask, which is the same for all images.
            label: (B,) int64, or None.

        Returns:
            The mean error of each image, (B,).
        """
        denoiser = self.denoiser
        grid = patch_grid(denoiser.image_size, denoiser.patch_size)
        generator = torch.Generator().manual_seed(seed)
        drawn = masking("patch", grid, ratio).draw(1, generator)
        assert drawn is not None, "patches are masked"
        mask = Mask(drawn.keep.expand(len(x_0), -1).to(x_0.device))
        alpha, noise = self.scales(sigma)
        x_t, t = alpha * x_0 + noise * eps, torch.full((len(x_0),), self.time(sigma), device=x_0.device)
        out = denoiser.forward(x_t, t, mask=mask, label=label)
        _, found = denoiser.prediction.invert(out, x_t, *denoiser.alpha_sigma(t, x_0.dtype))
        return visible_mean((found - eps) ** 2, mask, denoiser.patch_size)

    def gradient_norm(
        self, x_0: Tensor, noises: Sequence[Tensor], sigmas: Sequence[float], label: Tensor | None
    ) -> Tensor:
        """The size of the loss's gradient for one image, summed over several levels of noise.

        Args:
            x_0: one image in [-1, 1], (1, C, H, W).
            noises: one for each sigma, (1, C, H, W).
            sigmas: of variance-preserving mixtures.
            label: (1,) int64, or None.

        Returns:
            The mean over all parameter tensors of the logarithm of the gradient's norm, ().
        """
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


@lru_cache(maxsize=256)  # every call of a network asks for it, and a search takes milliseconds
def _nearest_time(process: Process, sigma: float) -> float:
    t = process.time_at(torch.tensor(sigma / (math.sqrt(1 - sigma**2) + sigma), dtype=torch.float64))
    return float(t.clamp(*process.ends))
