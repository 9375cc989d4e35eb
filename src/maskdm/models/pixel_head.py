"""A light convolutional head: a transformer works on large patches, and this turns what it says into pixels.

A linear layer hands features to every pixel of a patch; a few 3 x 3 convolutions read them beside x_t, over the borders
of patches. So the transformer can be left to structure with few tokens, and the head adds detail without seams.

Under a mask it works on what is visible, and costs that: a crop is one image; blocks, and single patches, are small
images of their own, zeros around each. They are stacked in one tall image with an empty row between, so that the first
dimension counts images throughout, as per-sample gradients need it.

Ideas: DeCo, arXiv 2511.19365; DiP, arXiv 2511.18822; PixelDiT, arXiv 2511.20645 (pixel decoders on semantic tokens).
This one is the simplest of the kind: no attention, no normalisation, no condition but the tokens.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskdm.diffusion.masks import Mask
from maskdm.diffusion.patches import Grid, gather, patchify, scatter, unpatchify


class PixelHead(nn.Module):
    """Tokens and the noisy image -> the network's output, zero at first and zero where masked.

    Args:
        width: of a token.
        grid: rows and columns of patches.
        patch_size: side of a patch in pixels.
        channels: of the image.
        features: channels of the convolutions, F.
        layers: convolutions in all, 2 or more.
    """

    layout: ClassVar[dict[str, str]] = {
        "expand.weight": "feature_out",
        "expand.bias": "feature_bias",
        "inner.0.weight": "conv_in",
        "last.weight": "conv_out",
        "last.bias": "conv_bias",
    }
    """Tensors whose shapes depend on the images, by what they are for; see `maskdm.models.transfer`."""

    def __init__(self, *, width: int, grid: Grid, patch_size: int, channels: int, features: int, layers: int) -> None:
        super().__init__()
        self.grid, self.patch_size, self.channels = grid, patch_size, channels
        self.expand = nn.Linear(width, patch_size**2 * features)
        inputs = [channels + features] + [features] * (layers - 2)
        self.inner = nn.ModuleList(nn.Conv2d(count, features, 3, padding=1) for count in inputs)
        self.last = nn.Conv2d(features, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)

    def forward(self, tokens: Tensor, x_t: Tensor, mask: Mask | None) -> Tensor:
        """What the transformer says of the visible patches, in their order, and the noisy image -> the output.

        Args:
            tokens: (B, K, width).
            x_t: (B, C, H, W).
            mask: which patches are visible; None for all.

        Returns:
            (B, C, H, W), zero where masked.
        """
        visible = None if mask is None else mask.visible
        pieces = _pieces(mask, self.grid, len(x_t), x_t.device)
        features = self.expand(tokens)
        if pieces.order is not None:
            features = gather(features, pieces.order)
        noisy = gather(patchify(x_t, self.patch_size), None if visible is None else pieces.numbers)
        x = torch.cat([self._stack(noisy.to(features.dtype), pieces.shape), self._stack(features, pieces.shape)], dim=1)
        inside = self._inside(pieces, x)
        for layer in self.inner:
            x = F.silu(layer(x))
            x = x if inside is None else x * inside
        patches = self._unstack(self.last(x), pieces.shape)
        whole = scatter(patches, None if visible is None else pieces.numbers, self.grid[0] * self.grid[1])
        return unpatchify(whole, self.grid, self.channels)

    def _stack(self, patches: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """n images of h x w patches, one below the other with an empty row after each.

        (B, n h w, p p F) -> (B, F, n (h p + 1), w p); without the empty row where n is 1.
        """
        n, h, w = shape
        tall = unpatchify(patches, (n * h, w), patches.shape[-1] // self.patch_size**2)
        if n == 1:
            return tall
        B, channels, height, width = tall.shape
        return F.pad(tall.reshape(B, channels, n, height // n, width), (0, 0, 0, 1)).flatten(2, 3)

    def _unstack(self, x: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """The inverse of `_stack`."""
        n, h, _ = shape
        if n > 1:
            B, channels, height, width = x.shape
            x = x.reshape(B, channels, n, height // n, width)[:, :, :, : h * self.patch_size].flatten(2, 3)
        return patchify(x, self.patch_size)

    def _inside(self, pieces: Pieces, x: Tensor) -> Tensor | None:
        """1 in the rows of images, 0 in those between them: (n (h p + 1), 1); None where there is one image."""
        n, h, _ = pieces.shape
        if n == 1:
            return None
        row = torch.arange(x.shape[2], device=x.device) % (h * self.patch_size + 1)
        return (row < h * self.patch_size).to(x.dtype)[:, None]


PixelHeadKind = Literal["none", "conv"]


def make_head(
    kind: PixelHeadKind, width: int, grid: Grid, patch_size: int, channels: int, features: int, layers: int
) -> nn.Linear | PixelHead:
    """What makes pixels of tokens: a linear layer for each patch by itself, or a `PixelHead`."""
    if kind == "none":
        return nn.Linear(width, patch_size**2 * channels)
    return PixelHead(width=width, grid=grid, patch_size=patch_size, channels=channels, features=features, layers=layers)


def to_pixels(head: nn.Linear | PixelHead, tokens: Tensor, x_t: Tensor, mask: Mask | None, patch_size: int) -> Tensor:
    """Tokens of the visible patches, (B, K, width), by either head -> (B, C, H, W), zero where masked."""
    if isinstance(head, PixelHead):
        pixels: Tensor = head(tokens, x_t, mask)
        return pixels
    _, channels, height, width = x_t.shape
    grid = height // patch_size, width // patch_size
    visible = None if mask is None else mask.visible
    return unpatchify(scatter(head(tokens), visible, grid[0] * grid[1]), grid, channels)


class Pieces(NamedTuple):
    """The visible patches as images of their own.

    Attributes:
        shape: n images of h x w patches.
        numbers: of the patches, image by image, each in raster order: (B, n h w).
        order: where each of them stands among the visible patches, (B, n h w); None where the order is the same.
    """

    shape: tuple[int, int, int]
    numbers: Tensor
    order: Tensor | None


def _pieces(mask: Mask | None, grid: Grid, B: int, device: torch.device) -> Pieces:
    """The images that visible patches make: all as one, a crop as one, blocks or single patches each."""
    if mask is None or mask.visible is None:
        return Pieces((1, *grid), torch.arange(grid[0] * grid[1], device=device).expand(B, -1), None)
    keep = mask.visible
    if keep.dim() == 3:
        return Pieces((1, keep.shape[1], keep.shape[2]), keep.flatten(1), None)
    if mask.block == 1:
        return Pieces((keep.shape[1], 1, 1), keep, None)
    side, columns = mask.block, grid[1]
    row, column = keep // columns, keep % columns
    block = row // side * (columns // side) + column // side
    inside = row % side * side + column % side
    order = (block * side**2 + inside).argsort(dim=1)
    return Pieces((keep.shape[1] // side**2, side, side), keep.gather(1, order), order)
