"""Pixels and patches: the two views of an image.

An image is (B, C, H, W). Its patches are (B, N, p*p*C) in raster order, the values of one patch ordered (row, column,
channel), N = (H/p) * (W/p).
"""

from __future__ import annotations

from torch import Tensor

from maskdm.errors import ArgumentError

Grid = tuple[int, int]


def patch_grid(image_size: tuple[int, int], patch_size: int) -> Grid:
    """Rows and columns of patches in an image of (height, width) pixels.

    Raises:
        ArgumentError: `patch_size` does not divide both sides.
    """
    height, width = image_size
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ArgumentError(
            "patch_size",
            got=patch_size,
            wanted=f"a divisor of the image size, {height} x {width}",
            remedy="change it, or the image size",
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
    """The visible tokens: (B, N, D) and their numbers (B, K) or (B, h, w) -> (B, K, D); all where `visible` is None."""
    if visible is None:
        return tokens
    return tokens.gather(1, visible.flatten(1)[..., None].expand(-1, -1, tokens.shape[-1]))


def scatter(tokens: Tensor, visible: Tensor | None, num_patches: int) -> Tensor:
    """The inverse of `gather`, zero where masked: (B, K, D) -> (B, N, D) with N = `num_patches`."""
    if visible is None:
        return tokens
    B, _, D = tokens.shape
    return tokens.new_zeros(B, num_patches, D).scatter(1, visible.flatten(1)[..., None].expand(-1, -1, D), tokens)
