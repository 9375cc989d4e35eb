"""Pixels and patches: the two views of an image, and the one place where ranges change.

An image is (B, C, H, W). Its patches are (B, N, p*p*C) in raster order, the values of one patch ordered (row, column,
channel), N = (H/p) * (W/p). Storage is uint8, the public edge is [0, 1], everything inside is [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskdm.errors import InputError

Grid = tuple[int, int]


def patch_grid(image_size: tuple[int, int], patch_size: int) -> Grid:
    """Rows and columns of patches in an image of (height, width) pixels.

    Raises:
        InputError: `patch_size` does not divide both sides.
    """
    height, width = image_size
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise InputError(
            f"model.patch_size: got {patch_size}, but it must divide the image size {height} x {width}; "
            "change model.patch_size or data.image_size"
        )
    return height // patch_size, width // patch_size


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, N, p*p*C)."""
    B, C, H, W = images.shape
    p = patch_size
    x = images.reshape(B, C, H // p, p, W // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // p) * (W // p), p * p * C)


def unpatchify(patches: Tensor, grid: Grid, channels: int) -> Tensor:
    """(B, N, p*p*C) -> (B, C, H, W), the inverse of `patchify`."""
    B, _, D = patches.shape
    rows, columns = grid
    p = round((D // channels) ** 0.5)
    x = patches.reshape(B, rows, columns, p, p, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(B, channels, rows * p, columns * p)


def gather(tokens: Tensor, visible: Tensor | None) -> Tensor:
    """The visible tokens: (B, N, D) and indices (B, K) or (B, h, w) -> (B, K, D); all where `visible` is None."""
    if visible is None:
        return tokens
    return tokens.gather(1, visible.flatten(1)[..., None].expand(-1, -1, tokens.shape[-1]))


def scatter(tokens: Tensor, visible: Tensor | None, count: int) -> Tensor:
    """The inverse of `gather`, zero where hidden: (B, K, D) -> (B, N, D) with N = `count`."""
    if visible is None:
        return tokens
    B, _, D = tokens.shape
    return tokens.new_zeros(B, count, D).scatter(1, visible.flatten(1)[..., None].expand(-1, -1, D), tokens)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1], same shape."""
    return images.float().div(127.5).sub(1)


def to_unit(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clipped: what the public API gives out."""
    return x.add(1).div(2).clamp(0, 1)


def to_uint8(unit: Tensor) -> Tensor:
    """[0, 1] -> uint8, rounded to the nearest."""
    return unit.mul(255).round().clamp(0, 255).to(torch.uint8)
