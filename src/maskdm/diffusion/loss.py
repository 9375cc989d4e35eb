"""Masked denoising score matching: the training objective, as the paper writes it.

    L = E || eps_S - eps_theta(x_t restricted to S, t) ||^2,    S the visible patches

(arXiv 2306.11363; with S everything it is the loss of DDPM, arXiv 2006.11239, eq. 14). Hidden patches are neither
shown nor asked for. Other predictions and weights are values of the denoiser.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.patches import gather


def denoising_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    *,
    visible: Tensor | None = None,
    through: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """The loss of every image: (B,).

    Args:
        denoiser: the network in training, with its process, prediction and weighting.
        x_0: images in [-1, 1], (B, C, H, W).
        t: times of the process, (B,).
        eps: standard normal noise, (B, C, H, W).
        visible: indices of the visible patches, (B, K) or (B, h, w), or None where nothing is hidden.
        through: indices of the patches that are not routed around the middle of the network, or None for all.
        label: (B,) int64, or None.
    """
    alpha, sigma = denoiser.at(t, x_0.dtype)
    x_t = alpha * x_0 + sigma * eps
    out = denoiser.answer(x_t, t, visible=visible, through=through, label=label)
    err = (out - denoiser.prediction.target(x_0, eps, alpha, sigma)) ** 2
    return visible_mean(denoiser.weighting(alpha, sigma, denoiser.prediction) * err, visible, denoiser.patch_size)


def visible_mean(err: Tensor, visible: Tensor | None, patch_size: int) -> Tensor:
    """Mean over the visible patches of every image: (B, C, H, W) -> (B,)."""
    per_patch = F.avg_pool2d(err.mean(dim=1, keepdim=True), patch_size).flatten(1)[..., None]
    return gather(per_patch, visible).mean(dim=(1, 2))


SHARES = (0.02, 0.98)
"""Noise shares over which held-out images are asked about: nearly clean to nearly noise."""


def fixed_questions(denoiser: Denoiser, shape: torch.Size, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(t, eps) that never change, for held-out images of `shape` (B, C, H, W): (B,) and (B, C, H, W).

    Noise shares are spread evenly over `SHARES` and dealt out in a fixed random order; both come from the CPU. Two
    moments of a run, two runs, two processes and two machines are thereby asked the same questions.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(shape[0], generator=generator)
    low, high = SHARES
    share = low + (high - low) * (order.double() + 0.5) / shape[0]
    t = denoiser.process.time_at(share).clamp(*denoiser.process.ends)  # coarse levels: never the clean image
    return t, torch.randn(shape, generator=generator)


def image_error(denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, *, label: Tensor | None = None) -> Tensor:
    """Mean squared error of the estimate of x_0 that samplers use (clipped to [-1, 1]), whole images: (B,).

    Its unit is that of the image whatever the process and the prediction, so that it compares across them.
    """
    alpha, sigma = denoiser.at(t, x_0.dtype)
    x_t = alpha * x_0 + sigma * eps
    estimate, _ = denoiser.prediction.invert(denoiser.answer(x_t, t, label=label), x_t, alpha, sigma)
    return ((estimate.clamp(-1, 1) - x_0) ** 2).mean(dim=(1, 2, 3))
