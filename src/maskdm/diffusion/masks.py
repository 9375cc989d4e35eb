"""Which patches of an image the network may see.

A mask is drawn afresh for every image of every step. It is held as the numbers of the *visible* patches, sorted in
raster order, the same number K for every image of a batch: shapes are static, selecting is a gather, and nothing has to
wait for the device. There is no other polarity anywhere in the package.

The requested ratio is the share of *masked* patches, as in the paper (m = 1 - S/N). A grid cannot always give it
exactly: `Masking` says what it really gives. On the 16 x 16 patches of a 64 px image, 90 % in aligned blocks of 4 is 14
of 16 blocks, 87.5 %; in the official code such differences pass without a word.

Kinds, for a grid of N patches:

- ``none``: everything is visible; `draw` returns None, the dense path.
- ``patch``: K random patches.
- ``block``: the grid is cut into b x b blocks from its corner, and random blocks are visible, whole. With
  ``offset=True``, or where b does not divide the grid, the cut falls elsewhere (or edge blocks are smaller); then
  blocks become visible in random order until K patches are, so that at most one block is cut.
- ``crop``: one random rectangle, as near a square of the grid's proportions as the ratio allows. It falls wherever it
  meets the image, and is moved inside.
- ``route``: random patches go around the middle of the network instead of being masked: all are shown, all are asked
  for, and only K pass every block (TREAD, Krause et al. 2025, arXiv 2501.04765).

What is learned should not depend on where in the image it lies: the gradient of a stage is, on average over masks,
that of the whole image, but for what masked patches would have told. So every patch is visible equally often, of
smaller blocks at the edges too. A rectangle inside the grid cannot be so: the corners are always seen least. There
patches count in the loss by mean over own visibility (`Mask.weight`), at most 4 whatever the grid, and 2.07 for a
quarter of 16 x 16 patches; were every place of the rectangle equally probable, it would be 20.

Source: arXiv 2306.11363, section on masking strategies; polarity, static shapes and equal visibility are ours.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from maskdm.diffusion.patches import Grid
from maskdm.errors import ArgumentError

MaskKind = Literal["none", "patch", "block", "crop", "route"]

TOLERANCE = 0.02
"""A realised ratio further than this from the requested one deserves a warning."""


class Mask(NamedTuple):
    """Which patches of every image a backbone works on; in place of a mask, None stands for all of them everywhere.

    A tuple, so that torch's wrappers (DDP, FSDP, compile, export) see the tensor in it.

    Attributes:
        keep: numbers of the patches that are kept, int64, in raster order, as many in every image: (B, K), or
            (B, h, w) where they form a rectangle of h x w patches.
        routed: False: the patches that are not kept are masked, neither shown to the network nor asked for. True: all
            patches are shown and asked for, and those that are not kept go around the middle of the network.
        weight: how much every visible patch counts in the loss, of keep's shape: the mean visibility of patches over
            its own. None where all are visible equally often. Of no concern to a backbone.
        block: side of the blocks, cut from the grid's corner, that the kept patches make up; 1 for single patches.
    """

    keep: Tensor
    routed: bool = False
    weight: Tensor | None = None
    block: int = 1

    @property
    def visible(self) -> Tensor | None:
        """The patches that are shown and asked for, as `keep`; None for all."""
        return None if self.routed else self.keep

    def rows(self, part: slice) -> Mask:
        """The masks of a part of the images."""
        return self._replace(keep=self.keep[part], weight=None if self.weight is None else self.weight[part])


@dataclass(frozen=True)
class Masking:
    """A masking strategy on one grid; build it with `masking`.

    Attributes:
        kind: one of none, patch, block, crop, route.
        grid: rows and columns of patches.
        requested: the share of patches to mask, in [0, 1).
        num_visible: K, how many patches every image keeps (kind route: sends through every block).
        block: side of a block in patches (kind block).
        offset: whether the cut into blocks is shifted at random for every image (kind block).
        crop: rows and columns of the visible rectangle (kind crop).
    """

    kind: MaskKind
    grid: Grid
    requested: float
    num_visible: int
    block: int = 1
    offset: bool = False
    crop: Grid = (0, 0)

    @property
    def num_patches(self) -> int:
        """N, all patches of the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def ratio(self) -> float:
        """The share of patches really masked (kind route: routed), in [0, 1)."""
        return 1 - self.num_visible / self.num_patches

    @property
    def aligned(self) -> bool:
        """Whether all blocks are whole, so that no patch of a block is visible without the others (kind block)."""
        return not (self.offset or self.grid[0] % self.block or self.grid[1] % self.block)

    def visibility(self, device: torch.device | None = None) -> Tensor:
        """How often every patch is visible (kind route: kept): (rows, columns) shares, 0 to 1, of mean 1 - `ratio`."""
        if self.kind != "crop":
            return torch.full(self.grid, 1 - self.ratio, device=device)
        row, column = (_stretch_visibility(*sides, device=device) for sides in zip(self.grid, self.crop, strict=True))
        return row[:, None] * column

    @property
    def warning(self) -> str | None:
        """A sentence where the realised ratio is more than two points off the requested one, else None."""
        if abs(self.ratio - self.requested) <= TOLERANCE + 1e-9:
            return None
        wanted = self.num_patches * (1 - self.requested)
        if abs(_nearest(wanted, 1, self.num_patches) - wanted) >= abs(self.num_visible - wanted) - 1e-9:
            remedy = "smaller patches"
        else:
            remedy = "kind: patch" if self.kind == "crop" else "offset: true, or a smaller block,"
        verb = "routes" if self.kind == "route" else "masks"
        nothing = f"{verb} nothing" if self.num_visible == self.num_patches else f"{verb} {self.ratio:.1%}"
        return (
            f"mask {self.kind} {nothing} where {self.requested:.1%} was requested: the nearest that a grid of "
            f"{self.grid[0]} x {self.grid[1]} patches allows; {remedy} would come nearer"
        )

    def __str__(self) -> str:
        if self.kind == "none":
            return f"none: all {self.num_patches} patches visible"
        if self.kind == "route":
            return (
                f"route: {self.num_visible} of {self.num_patches} patches through every block, {self.ratio:.1%} "
                f"around the middle (requested {self.requested:.1%})"
            )
        detail = {"block": f" {self.block}" + (" offset" if self.offset else ""), "crop": " {} x {}".format(*self.crop)}
        return (
            f"{self.kind}{detail.get(self.kind, '')}: {self.num_visible} of {self.num_patches} patches visible, "
            f"{self.ratio:.1%} masked (requested {self.requested:.1%})"
        )

    def draw(self, images: int, generator: torch.Generator) -> Mask | None:
        """A fresh mask for every image of a batch, on the generator's device; None for kind none.

        Its patches are (images, K), or (images, rows, columns) for kind crop.
        """
        if self.kind == "none":
            return None
        if self.kind == "crop":
            keep = self._draw_crop(images, generator)
            return Mask(keep, weight=((1 - self.ratio) / self.visibility(generator.device)).flatten()[keep])
        if self.kind == "block":
            keep = self._draw_blocks(images, generator).sort(dim=1).values
            return Mask(keep, block=self.block if self.aligned else 1)
        order = torch.rand(images, self.num_patches, generator=generator, device=generator.device).argsort(dim=1)
        return Mask(order[:, : self.num_visible].sort(dim=1).values, routed=self.kind == "route")

    def _draw_blocks(self, images: int, generator: torch.Generator) -> Tensor:
        """Visible patches of every image, in any order: (images, K).

        Blocks stand in a line in random order, patches of a block beside one another, and K patches in a row are
        visible, from a random place on and past the end from the beginning again: each equally often, whatever the
        sizes of blocks. The place is moved to the nearest where a block begins or, K patches on, ends: of two
        neighbours such places each is met in proportion to how near they are, so that this changes no mean.
        """
        device = generator.device
        block, line = self._line_of_blocks(images, generator)
        if self.aligned:
            return line[:, : self.num_visible]
        begins = block != block.roll(1, dims=1)
        begins[:, 0] = True  # also where there is one block only
        allowed = begins | begins.roll(-self.num_visible, dims=1)
        place = torch.rand(images, 1, generator=generator, device=device) * self.num_patches
        distance = (torch.arange(self.num_patches, device=device) - place).abs()
        distance = torch.minimum(distance, self.num_patches - distance)
        start = distance.masked_fill(~allowed, math.inf).argmin(dim=1, keepdim=True)
        return line.gather(1, (start + torch.arange(self.num_visible, device=device)) % self.num_patches)

    def _line_of_blocks(self, images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random blocks in a line: the numbers of block and patch at every place of it, each (images, N)."""
        device = generator.device
        rows, columns = self.grid
        y = torch.arange(rows, device=device).expand(images, rows)
        x = torch.arange(columns, device=device).expand(images, columns)
        if self.offset:
            shift = torch.randint(self.block, (2, images, 1), generator=generator, device=device)
            y, x = y + shift[0], x + shift[1]
        # One row and column of blocks more than the grid holds: a shifted cut needs them.
        across = columns // self.block + 2
        of_patch = ((y // self.block)[:, :, None] * across + (x // self.block)[:, None, :]).flatten(1)
        blocks = (rows // self.block + 2) * across
        rank = torch.rand(images, blocks, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
        # Patches of one block share its rank and are in random order within it: a block that is cut has no corner
        # that is shown more often.
        shuffled = torch.rand(images, self.num_patches, generator=generator, device=device).argsort(dim=1)
        block, places = rank.gather(1, of_patch.gather(1, shuffled)).sort(dim=1, stable=True)
        return block, shuffled.gather(1, places)

    def _draw_crop(self, images: int, generator: torch.Generator) -> Tensor:
        """A rectangle in every image: (images, rows, columns)."""
        y, x = (_draw_stretch(*sides, images, generator) for sides in zip(self.grid, self.crop, strict=True))
        return y[:, :, None] * self.grid[1] + x[:, None, :]


def _draw_stretch(side: int, length: int, images: int, generator: torch.Generator) -> Tensor:
    """`length` neighbours of 0 .. side - 1, anywhere where they meet these, and moved inside: (images, length)."""
    device = generator.device
    start = torch.randint(side + length - 1, (images, 1), generator=generator, device=device) - (length - 1)
    return start.clamp(0, side - length) + torch.arange(length, device=device)


def _stretch_visibility(side: int, length: int, device: torch.device | None = None) -> Tensor:
    """How often `_draw_stretch` has each of 0 .. side - 1: (side,) shares."""
    i = torch.arange(side, device=device)
    # The starts, -(length - 1) .. side - 1 before they are moved, from which i is reached.
    first = torch.where(i < length, 1 - length, i - length + 1)
    last = torch.where(i >= side - length, side - 1, i)
    return (last - first + 1) / (side + length - 1)


def masking(kind: MaskKind, grid: Grid, ratio: float = 0.0, *, block: int = 1, offset: bool = False) -> Masking:
    """The masking strategy whose masked share on `grid` is the nearest to `ratio`.

    Args:
        kind: none, patch, block, crop or route.
        grid: rows and columns of patches.
        ratio: share of patches to mask, 0 <= ratio < 1; at least one patch stays visible.
        block: side of a block in patches, for kind block; at most the grid's shorter side.
        offset: shift the cut into blocks at random for every image, for kind block.

    Raises:
        ArgumentError: a ratio outside [0, 1), or one without a kind; a block that does not fit the grid.
    """
    if not 0 <= ratio < 1:
        raise ArgumentError(
            "ratio", got=ratio, wanted="0 <= ratio < 1, the share of patches to mask", remedy="try 0.75"
        )
    rows, columns = grid
    num_patches = rows * columns
    wanted = num_patches * (1 - ratio)
    if kind == "none":
        if ratio:
            raise ArgumentError("ratio", "kind none masks nothing", got=ratio, remedy="choose another kind, or ratio 0")
        return Masking("none", grid, 0.0, num_patches)
    if kind == "crop":
        crop = _nearest_crop(grid, wanted)
        return Masking("crop", grid, ratio, crop[0] * crop[1], crop=crop)
    if kind == "block":
        if not 1 <= block <= min(grid):
            raise ArgumentError(
                "block", got=block, wanted=f"1 to {min(grid)}, since the grid has {rows} x {columns} patches"
            )
        whole = Masking("block", grid, ratio, num_patches, block, offset)
        return replace(whole, num_visible=_nearest(wanted, block * block if whole.aligned else 1, num_patches))
    return Masking(kind, grid, ratio, _nearest(wanted, 1, num_patches))


def _nearest(wanted: float, unit: int, most: int) -> int:
    """The multiple of `unit` nearest to `wanted`, at least one unit and at most `most`; halves show more, not less."""
    return min(max(math.floor(wanted / unit + 0.5), 1) * unit, most)


def _nearest_crop(grid: Grid, wanted: float) -> Grid:
    """Rows and columns, each within one of the grid's proportions, whose product is nearest to `wanted`."""
    scale = math.sqrt(wanted / (grid[0] * grid[1]))
    rows, columns = ({min(max(f(side * scale), 1), side) for f in (math.floor, math.ceil)} for side in grid)
    return min(
        itertools.product(rows, columns),
        # The second term prefers the squarer of two equally near rectangles.
        key=lambda s: (abs(s[0] * s[1] - wanted), abs(s[0] / grid[0] - s[1] / grid[1]), s),
    )
