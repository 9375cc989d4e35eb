"""U-Net: convolutions with self-attention at the bottom, on which a crop is really a smaller image.

`len(levels)` resolutions, each half the one before; `depth` residual blocks at every one on the way down, one more on
the way up, each of those joined with its counterpart by concatenation. The time and the label scale and shift the
features of every residual block. The lowest levels attend to all their positions after every block.

A convolution cannot drop single patches, so kinds of masks differ in what they save:

- crop, (B, h, w): every image is cut to its rectangle and the network runs on nothing else; a quarter of the area is a
  quarter of the convolutions. Two channels with the coordinates of every pixel say where in the image the crop lies.
- patch and block, (B, K): masked pixels are zero and a channel says so; a step costs what a whole image costs.

Source: Ho et al. 2020, arXiv 2006.11239; in the proportions of Dhariwal & Nichol 2021, arXiv 2105.05233. The channels
of mask and coordinates are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskdm.diffusion.masks import Mask
from maskdm.diffusion.patches import Grid, gather, patch_grid, patchify, scatter, unpatchify
from maskdm.diffusion.process import batch_times
from maskdm.errors import ArgumentError
from maskdm.models.layers import Attention, sinusoidal

SIZES: dict[str, dict[str, int]] = {
    "S": {"width": 64, "depth": 2, "heads": 4},
    "B": {"width": 128, "depth": 2, "heads": 4},
    "L": {"width": 192, "depth": 3, "heads": 6},
}
"""Settings by name."""


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups of at least 4 channels: in smaller ones a channel's mean would be lost (arXiv 2206.00364)."""
    most = min(32, max(1, channels // 4))
    return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)


def zeroed(module: nn.Linear | nn.Conv2d) -> None:
    """Zero weight and bias, so that a fresh residual branch adds nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


class SelfAttention(nn.Module):
    """Every position attends to all others, and is added to: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = Attention(channels, heads, qkv_bias=True)
        zeroed(self.attention.proj)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        out: Tensor = x + self.attention(tokens).transpose(1, 2).reshape(x.shape)
        return out


class UNetBlock(nn.Module):
    """Two convolutions beside a skip, then self-attention where it has heads: (B, C, H, W), (B, E) -> (B, C', H, W)."""

    def __init__(self, given: int, channels: int, embedding: int, heads: int) -> None:
        super().__init__()
        self.norm1 = group_norm(given)
        self.conv1 = nn.Conv2d(given, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)
        self.norm2 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(given, channels, 1) if given != channels else nn.Identity()
        self.attention = SelfAttention(channels, heads) if heads else nn.Identity()
        zeroed(self.conv2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C', H, W)."""
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        out: Tensor = self.attention(self.skip(x) + h)
        return out


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2); takes a condition only to be called as a block is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W), not used -> (B, C, H/2, W/2)."""
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W); takes a condition only to be called as a block is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W), not used -> (B, C, 2H, 2W)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class UNet(nn.Module):
    """See the module.

    Args:
        image_size: (height, width) in pixels.
        channels: of the image, 1 to 4.
        patch_size: side in pixels of the patches that masks count; must divide both sides of the image, and be a
            multiple of 2 ** (len(levels) - 1), so that every rectangle of patches can be halved from level to level.
        width: channels at the first level.
        depth: residual blocks at every level on the way down (one more on the way up).
        heads: of attention; must divide width.
        levels: channels at every level, in multiples of width.
        attention_levels: how many levels, from the lowest, have self-attention after every residual block; the
            middle of the network always has.
        classes: number of classes, 0 for an unconditional model.

    Raises:
        ArgumentError: of heads, patch_size, levels or attention_levels; they do not fit.

    Attributes:
        grid: rows and columns of patches.
        num_patches: their number, N.
        routes: whether patches can go around its middle: no.
        layout: tensors of the state whose shape follows from the data, by what they are.
    """

    routes: ClassVar[bool] = False
    layout: ClassVar[dict[str, str]] = {
        "label.weight": "labels",  # (classes + 1, 4 width), the last row "no class"
        "conv_in.weight": "conv_in",  # (width, C + 3, 3, 3), the image's channels first
        "conv_out.weight": "conv_out",  # (C, width of the first level, 3, 3)
        "conv_out.bias": "conv_bias",  # (C,)
    }

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        channels: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        levels: tuple[int, ...] = (1, 2, 2),
        attention_levels: int = 1,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ArgumentError("heads", got=heads, wanted=f"a divisor of the width, {width}")
        self.grid = patch_grid(image_size, patch_size)
        _check_levels(levels, attention_levels, patch_size)
        self.channels, self.patch_size, self.width, self.classes = channels, patch_size, width, classes
        self.num_patches = self.grid[0] * self.grid[1]

        embedding = 4 * width
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(classes + 1, embedding) if classes else None  # the last row is "no class"
        if self.label is not None:
            nn.init.trunc_normal_(self.label.weight, std=0.02)  # a normal of width 1 would drown the time

        self.conv_in = nn.Conv2d(channels + 3, width, 3, padding=1)
        self.blocks_in, self.blocks_out = nn.ModuleList(), nn.ModuleList()
        heads_at = [0] * (len(levels) - attention_levels) + [heads] * attention_levels
        here, skips = width, [width]  # channels
        for i, multiple in enumerate(levels):
            if i:
                self.blocks_in.append(Downsample(here))
                skips.append(here)
            for _ in range(depth):
                given, here = here, multiple * width
                self.blocks_in.append(UNetBlock(given, here, embedding, heads_at[i]))
                skips.append(here)
        self.middle = nn.ModuleList([UNetBlock(here, here, embedding, heads), UNetBlock(here, here, embedding, 0)])
        for i, multiple in reversed(list(enumerate(levels))):
            if i < len(levels) - 1:
                self.blocks_out.append(Upsample(here))
            for _ in range(depth + 1):
                given, here = here + skips.pop(), multiple * width
                self.blocks_out.append(UNetBlock(given, here, embedding, heads_at[i]))
        self.norm = group_norm(here)
        self.conv_out = nn.Conv2d(here, channels, 3, padding=1)
        zeroed(self.conv_out)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        *,
        mask: Mask | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W), (B,), mask or None, (B,) or None -> (B, C, H, W), zero where masked. See `Backbone`.

        Where `mask.keep` is (B, h, w), a rectangle of h x w patches in raster order and elsewhere in every image (never
        checked, as that would wait for the device), the network runs on nothing else. Also one t for all images.

        Raises:
            ArgumentError: t of another shape, a label without classes, or a routed mask.
        """
        t = batch_times(t, x_t)
        visible = None if mask is None else mask.keep
        if mask is not None and mask.routed:
            raise ArgumentError("mask", "routes patches, which a unet cannot", wanted="kind patch, block or crop")
        condition = self._condition(x_t, t, label)
        places = _coordinates(x_t)
        if visible is None or visible.ndim == 3:
            whole = torch.cat([x_t, torch.ones_like(places[:, :1]), places], dim=1)
            return self._paste(self._network(self._cut(whole, visible), condition), visible)
        pixels = self._visible_pixels(visible)
        seen = torch.where(pixels, x_t, 0.0)  # not a product: a masked NaN would survive that
        out = self._network(torch.cat([seen, pixels.to(x_t.dtype), places], dim=1), condition)
        return torch.where(pixels, out, 0.0)

    def _network(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C + 3, H', W') of any size that can be halved, (B, E) -> (B, C, H', W')."""
        x = self.conv_in(x)
        skips = [x]
        for block in self.blocks_in:
            x = block(x, condition)
            skips.append(x)
        for block in self.middle:
            x = block(x, condition)
        for block in self.blocks_out:
            x = block(x if isinstance(block, Upsample) else torch.cat([x, skips.pop()], dim=1), condition)
        out: Tensor = self.conv_out(F.silu(self.norm(x)))
        return out

    def _condition(self, x_t: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        """What steers every block: (B, E)."""
        if self.label is None and label is not None:
            raise ArgumentError("label", "this network has no classes", remedy="leave it out")
        condition: Tensor = self.time(sinusoidal(t, self.width).to(x_t.dtype))
        if self.label is not None:
            label = torch.full((len(x_t),), self.classes, device=x_t.device) if label is None else label
            condition = condition + self.label(label)
        return F.silu(condition)

    def _cut(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """The rectangle of every image: (B, C', H, W), (B, h, w) -> (B, C', h p, w p)."""
        if visible is None:
            return x
        tokens = gather(patchify(x, self.patch_size), visible.flatten(1))
        return unpatchify(tokens, (visible.shape[1], visible.shape[2]), x.shape[1])

    def _paste(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """The inverse of `_cut`, zero elsewhere: (B, C, h p, w p), (B, h, w) -> (B, C, H, W)."""
        if visible is None:
            return x
        tokens = scatter(patchify(x, self.patch_size), visible.flatten(1), self.num_patches)
        return unpatchify(tokens, self.grid, self.channels)

    def _visible_pixels(self, visible: Tensor) -> Tensor:
        """Which pixels are visible: (B, K) -> (B, 1, H, W) bool."""
        flags = scatter(torch.ones_like(visible, dtype=torch.bool)[..., None], visible, self.num_patches)
        return unpatchify(flags.expand(-1, -1, self.patch_size**2), self.grid, 1)


def _coordinates(x: Tensor) -> Tensor:
    """The y and x of the centre of every pixel, with the image's edges at -1 and 1: (B, C, H, W) -> (B, 2, H, W)."""
    size: Grid = (x.shape[2], x.shape[3])
    y_of, x_of = ((2 * torch.arange(n, device=x.device, dtype=x.dtype) + 1) / n - 1 for n in size)
    return torch.stack([y_of[:, None].expand(size), x_of[None].expand(size)]).expand(len(x), -1, -1, -1)


def _check_levels(levels: Sequence[int], attention_levels: int, patch_size: int) -> None:
    if not levels or min(levels) < 1:
        raise ArgumentError(
            "levels",
            got=list(levels),
            wanted="at least one multiple of the width, each 1 or more",
            remedy="try [1, 2, 2]",
        )
    if not 0 <= attention_levels <= len(levels):
        raise ArgumentError(
            "attention_levels",
            got=attention_levels,
            wanted=f"0 to {len(levels)}, the number of levels",
            remedy="try 1",
        )
    factor = 2 ** (len(levels) - 1)
    if patch_size % factor:
        fitting = (patch_size & -patch_size).bit_length()  # 1 + how often it can be halved
        raise ArgumentError(
            "patch_size",
            got=patch_size,
            wanted=f"a multiple of {factor}, since {len(levels)} levels halve every crop so often",
            remedy=f"change it, or give at most {fitting} levels",
        )
