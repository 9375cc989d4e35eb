"""Masked denoising score matching: the training objective, as the paper writes it.

    L = E || eps_S - eps_theta(x_t restricted to S, t) ||^2,    S the visible patches

(arXiv 2306.11363; with S everything it is the loss of DDPM, arXiv 2006.11239, eq. 14). Masked patches are neither
shown nor asked for; where some are visible more often than others, each counts the less (`Mask.weight`), so that on
average over masks the loss is that of the whole image. Other predictions and weights are values of the denoiser.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.masks import Mask
from maskdm.diffusion.patches import gather


def denoising_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    t: Tensor | float,
    eps: Tensor,
    *,
    mask: Mask | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """The loss of every image: (B,).

    Args:
        denoiser: the network in training, with its process, prediction and weighting.
        x_0: images in [-1, 1], (B, C, H, W).
        t: times of the process, (B,), or one for all.
        eps: standard normal noise, (B, C, H, W).
        mask: which patches are shown and asked for, or None for all.
        label: (B,) int64, or None.

    Raises:
        ArgumentError: of t; see `Denoiser.times`.
    """
    t = denoiser.times(t, x_0)
    alpha, sigma = denoiser.alpha_sigma(t, x_0.dtype)
    x_t = alpha * x_0 + sigma * eps
    out = denoiser.forward(x_t, t, mask=mask, label=label)
    err = (out - denoiser.prediction.target(x_0, eps, alpha, sigma)) ** 2
    return visible_mean(denoiser.weighting(alpha, sigma, denoiser.prediction) * err, mask, denoiser.patch_size)


def visible_mean(err: Tensor, mask: Mask | None, patch_size: int) -> Tensor:
    """Mean over the visible patches of every image, weighted as the mask says: (B, C, H, W) -> (B,)."""
    per_patch = F.avg_pool2d(err.mean(dim=1, keepdim=True), patch_size).flatten(1)[..., None]
    visible = gather(per_patch, None if mask is None else mask.visible)[..., 0]
    if mask is not None and mask.weight is not None:
        visible = visible * mask.weight.flatten(1)
    return visible.mean(dim=1)


LEVELS = (0.02, 0.98)
"""Noise levels over which held-out images are denoised: nearly clean to nearly noise."""


def fixed_noise(denoiser: Denoiser, shape: torch.Size, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(t, eps) that never change, for held-out images of `shape` (B, C, H, W): (B,) and (B, C, H, W).

    Noise levels are spread evenly over `LEVELS` and assigned in a fixed random order; both come from the CPU. So two
    steps of a run, two runs, two processes and two machines are compared on the same task.
    """
    generator = torch.Generator().manual_seed(seed)
    level = _spread(shape[0], generator)
    t = denoiser.process.time_at(level).clamp(*denoiser.process.ends)  # coarse timesteps: never the clean image
    return t, torch.randn(shape, generator=generator)


def fixed_levels(num: int, seed: int = 0) -> Tensor:
    """The noise levels of `fixed_noise` for as many images, whatever the process: (num,) float64 within `LEVELS`."""
    return _spread(num, torch.Generator().manual_seed(seed))


def _spread(num: int, generator: torch.Generator) -> Tensor:
    low, high = LEVELS
    return low + (high - low) * (torch.randperm(num, generator=generator).double() + 0.5) / num


def image_error(
    denoiser: Denoiser, x_0: Tensor, t: Tensor | float, eps: Tensor, *, label: Tensor | None = None
) -> Tensor:
    """Mean squared error of the estimate of x_0 that samplers use (clipped to [-1, 1]), whole images: (B,).

    Its unit is that of the image whatever the process and the prediction, so that it compares across them.

    Raises:
        ArgumentError: of t; see `Denoiser.times`.
    """
    t = denoiser.times(t, x_0)
    alpha, sigma = denoiser.alpha_sigma(t, x_0.dtype)
    x_t = alpha * x_0 + sigma * eps
    out = denoiser.forward(x_t, t, label=label)
    estimate, _ = denoiser.prediction.invert(out, x_t, alpha, sigma)
    return ((estimate.clamp(-1, 1) - x_0) ** 2).mean(dim=(1, 2, 3))
