"""Masked denoising score matching: the training objective, as the paper writes it.

    L = E || eps_S - eps_theta(x_t restricted to S, t) ||^2,    S the visible patches

(arXiv 2306.11363; with S everything it is the loss of DDPM, arXiv 2006.11239, eq. 14). Hidden patches are neither
shown nor asked for, and there is no weighting over t.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from maskdm.errors import InputError
from maskdm.method.denoiser import Backbone
from maskdm.method.patches import gather
from maskdm.method.prediction import Prediction
from maskdm.method.process import Process


def denoising_loss(
    backbone: Backbone,
    process: Process,
    prediction: Prediction,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    *,
    visible: Tensor | None = None,
    label: Tensor | None = None,
    patch_size: int | None = None,
) -> Tensor:
    """The loss of every image: (B,).

    Args:
        x_0: images in [-1, 1], (B, C, H, W).
        t: times of the process, (B,).
        eps: standard normal noise, (B, C, H, W).
        visible: indices of the visible patches, (B, K), or None where nothing is hidden.
        label: (B,) int64, or None.
        patch_size: side in pixels of the patches that `visible` counts; needed with it.
    """
    if visible is not None and patch_size is None:
        raise InputError("patch_size: missing; visible patches have no meaning without their size in pixels")
    alpha, sigma = (c.to(x_0.dtype)[:, None, None, None] for c in process.alpha_sigma(t))
    x_t = alpha * x_0 + sigma * eps
    out = backbone(x_t, t, visible=visible, label=label)
    err = (out.float() - prediction.target(x_0, eps, alpha, sigma)) ** 2
    return visible_mean(err, visible, patch_size or 1)


def visible_mean(err: Tensor, visible: Tensor | None, patch_size: int) -> Tensor:
    """Mean over the visible patches of every image: (B, C, H, W) -> (B,)."""
    per_patch = F.avg_pool2d(err.mean(dim=1, keepdim=True), patch_size).flatten(1)[..., None]
    return gather(per_patch, visible).mean(dim=(1, 2))


def fixed_questions(process: Process, shape: torch.Size, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(t, eps) that never change, for the loss on held-out images of `shape` (B, C, H, W): (B,) and (B, C, H, W).

    Times are spread evenly over their law in training and dealt out in a fixed random order; both come from the CPU.
    Two moments of a run, two runs and two machines are thereby asked the same questions.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(shape[0], generator=generator)
    return process.training_time((order + 0.5) / shape[0]), torch.randn(shape, generator=generator)
