"""Haar wavelets in front of a backbone: less space, more channels, nothing lost.

One level turns C x H x W into 4C x H/2 x W/2: for every 2 x 2 pixels their sum and three differences, each halved, so
that the transform is orthonormal. White noise stays white noise and squared errors stay what they are: everything
outside the backbone (process, prediction, loss, masks) is the same with or without it. With patches that levels divide,
the transform stays inside a patch and hidden pixels stay hidden.

Source: the June 2023 version of arXiv 2306.11363, which has one level; Haar 1910.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskdm.errors import InputError


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
    """A backbone that sees and answers in `levels` levels of Haar coefficients, and is asked and read in pixels."""

    def __init__(self, inner: nn.Module, levels: int) -> None:
        super().__init__()
        self.inner, self.levels = inner, levels

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        visible: Tensor | None = None,
        through: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """See `maskdm.diffusion.denoiser.Backbone`."""
        for _ in range(self.levels):
            x_t = haar(x_t)
        out: Tensor = self.inner(x_t, t, visible=visible, through=through, label=label)
        for _ in range(self.levels):
            out = unhaar(out)
        return out


def check_levels(levels: int, patch_size: int) -> None:
    """Patches must be cut by the levels without a rest, so that no coefficient mixes two of them.

    Raises:
        InputError: they are not.
    """
    if patch_size % 2**levels:
        raise InputError(
            f"model.haar_levels: got {levels}, but {2**levels} does not divide model.patch_size, {patch_size}; "
            "change one of them"
        )
