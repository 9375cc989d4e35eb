"""Haar wavelets in front of a backbone: less space, more channels, nothing lost.

One level turns C x H x W into 4C x H/2 x W/2: for every 2 x 2 pixels their sum and three differences, each halved, so
that the transform is orthonormal. White noise stays white noise and squared errors stay what they are: everything
outside the backbone (process, prediction, loss, masks) is the same with or without it. With patches that levels divide,
the transform stays inside a patch and masked pixels stay masked.

Source: the June 2023 version of arXiv 2306.11363, which has one level; Haar 1910.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskdm.diffusion.masks import Mask
from maskdm.errors import ArgumentError


def haar(x: Tensor) -> Tensor:
    """One level: (B, C, H, W) -> (B, 4C, H/2, W/2), channels [sum, across, down, both] by C."""
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return torch.cat([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], dim=1) / 2


def unhaar(y: Tensor) -> Tensor:
    """The inverse of `haar`, which is its transpose."""
    s, x, v, d = (part / 2 for part in y.chunk(4, dim=1))
    rows = [torch.stack([s + x + v + d, s - x + v - d], dim=-1), torch.stack([s + x - v - d, s - x - v + d], dim=-1)]
    return torch.stack([row.flatten(-2) for row in rows], dim=-2).flatten(-3, -2)


class Haar(nn.Module):
    """A backbone that works in Haar coefficients behind an input and an output in pixels.

    Args:
        inner: the backbone, for images of 4^levels times the channels and sides of 1 / 2^levels.
        levels: of the transform, 0 or more.
    """

    def __init__(self, inner: nn.Module, levels: int) -> None:
        super().__init__()
        self.inner, self.levels = inner, levels

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        *,
        mask: Mask | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W), (B,), mask or None, (B,) or None -> (B, C, H, W); see `maskdm.diffusion.denoiser.Backbone`."""
        for _ in range(self.levels):
            x_t = haar(x_t)
        out: Tensor = self.inner(x_t, t, mask=mask, label=label)
        for _ in range(self.levels):
            out = unhaar(out)
        return out


def check_levels(levels: int, patch_size: int) -> None:
    """Refuses levels under which a coefficient would mix two patches.

    Raises:
        ArgumentError: of levels; 2^levels does not divide the patch size.
    """
    if patch_size % 2**levels:
        raise ArgumentError(
            "levels",
            f"{2**levels} does not divide the patch size, {patch_size}",
            got=levels,
            remedy="change one of them",
        )
