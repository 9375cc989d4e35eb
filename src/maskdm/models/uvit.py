"""U-ViT: a vision transformer with long skips, the backbone of the paper.

Every patch is a token; before them stand a token for the time and, with classes, one for the label. Positions are
learned, one row a token. `depth // 2` blocks lead in, one is the middle, `depth // 2` lead out, each of these joined
with the matching in-block by concatenation and a linear layer. Masked patches never become tokens: they are dropped
before the first linear layer, so that a step costs what the visible ones cost.

Source: Bao et al. 2022, arXiv 2209.12152; in the form of arXiv 2306.11363, whose released weights it reproduces.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from maskdm.diffusion.masks import Mask
from maskdm.diffusion.patches import gather, patch_grid, patchify
from maskdm.diffusion.process import batch_times
from maskdm.errors import ArgumentError
from maskdm.models.layers import MLP, Attention, initialize, sinusoidal
from maskdm.models.pixel_head import PixelHeadKind, make_head, to_pixels


class UViTBlock(nn.Module):
    """A transformer block, joined with a skip first where it has one: (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, qkv_bias: bool, skip: bool = False) -> None:
        super().__init__()
        self.skip = nn.Linear(2 * width, width) if skip else None
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(B, L, D), the same or None -> (B, L, D)."""
        if self.skip is not None and skip is not None:
            x = self.skip(torch.cat([x, skip], dim=-1))
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


SIZES = {
    "S": {"width": 512, "depth": 13, "heads": 8},
    "B": {"width": 768, "depth": 13, "heads": 12},
    "L": {"width": 1024, "depth": 17, "heads": 16},
}
"""The official models."""


class UViT(nn.Module):
    """See the module.

    Args:
        image_size: (height, width) in pixels.
        channels: of the image, 1 to 4.
        patch_size: side of a patch in pixels; must divide both sides of the image.
        width: of a token.
        depth: blocks in all, odd.
        heads: of attention; must divide width.
        mlp_ratio: hidden width of a block's MLP over width.
        qkv_bias: whether queries, keys and values have a bias.
        time_mlp: whether the sinusoids of t pass two linear layers before they become a token.
        classes: number of classes, 0 for an unconditional model.
        mixer_depth: light blocks that see every patch before masked ones are dropped (deferred masking: Sehwag et al.
            2024, arXiv 2407.15811); 0 for none, and then nothing of a masked patch is seen.
        pixel_head: none for a linear layer for each patch, or conv for a `PixelHead`.
        pixel_features, pixel_layers: its channels and convolutions.

    Raises:
        ArgumentError: of heads, depth or patch_size; they do not fit.

    Attributes:
        grid: rows and columns of patches.
        num_patches: their number, N.
        extras: tokens before the patches: the time, and with classes the label.
        outer: blocks at either end that routed patches pass too.
    """

    routes: ClassVar[bool] = True
    """Whether patches can go around the middle blocks."""
    layout: ClassVar[dict[str, str]] = {
        "embed.weight": "patch_in",
        "head.weight": "patch_out",
        "head.bias": "patch_bias",
        "position.weight": "positions",
        "label.weight": "labels",
    }
    """Tensors whose shapes depend on the images or the classes, by what they are for; see `maskdm.models.transfer`."""

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        channels: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        time_mlp: bool = False,
        classes: int = 0,
        mixer_depth: int = 0,
        pixel_head: PixelHeadKind = "none",
        pixel_features: int = 32,
        pixel_layers: int = 3,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ArgumentError("heads", got=heads, wanted=f"a divisor of the width, {width}")
        if depth % 2 == 0:
            raise ArgumentError(
                "depth",
                got=depth,
                wanted="an odd number (as many blocks in as out, and one between)",
                remedy=f"try {depth + 1}",
            )
        self.grid = patch_grid(image_size, patch_size)
        self.channels, self.patch_size, self.width, self.classes = channels, patch_size, width, classes
        self.num_patches = self.grid[0] * self.grid[1]
        # Around a middle that patches may bypass there is always a block; skips join blocks on the same side of it.
        self.outer = max(depth // 6, 1)
        self.extras = 2 if classes else 1
        patch_dim = patch_size**2 * channels

        self.embed = nn.Linear(patch_dim, width)
        self.time = (
            nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)) if time_mlp else None
        )
        self.label = nn.Embedding(classes + 1, width) if classes else None  # the last row is "no class"
        self.position = nn.Embedding(self.extras + self.num_patches, width)
        self.mixer = nn.ModuleList(UViTBlock(width, heads, 1.0, qkv_bias=qkv_bias) for _ in range(mixer_depth))
        block = partial(UViTBlock, width, heads, mlp_ratio, qkv_bias=qkv_bias)
        self.blocks_in = nn.ModuleList(block() for _ in range(depth // 2))
        self.block_mid = block()
        self.blocks_out = nn.ModuleList(block(skip=True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(width)
        self.head = make_head(pixel_head, width, self.grid, patch_size, channels, pixel_features, pixel_layers)
        self.apply(initialize)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        *,
        mask: Mask | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W), (B,), mask or None, labels (B,) or None -> (B, C, H, W), zero where masked. See `Backbone`.

        Also one t for all images.

        Raises:
            ArgumentError: t of another shape, a label without classes, or a routed mask with a single block.
        """
        t = batch_times(t, x_t)
        visible, routed = (None, None) if mask is None else (mask.visible, mask.keep if mask.routed else None)
        if routed is not None and not self.blocks_in:
            raise ArgumentError("depth", got=1, wanted="3 or more to route patches around the middle", remedy="try 3")
        x = self._tokens(x_t, t, visible, label)
        outer = self.outer if routed is not None else len(self.blocks_in)
        skips = []
        for block in self.blocks_in[:outer]:
            x = block(x)
            skips.append(x)
        x = self._middle(x, routed)
        for block in self.blocks_out[len(self.blocks_out) - outer :]:
            x = block(x, skips.pop())
        return to_pixels(self.head, self.norm(x[:, self.extras :]), x_t, mask, self.patch_size)

    def _tokens(self, x_t: Tensor, t: Tensor, visible: Tensor | None, label: Tensor | None) -> Tensor:
        """[label, time, patches]: (B, extras + K, D)."""
        B = len(x_t)
        early = visible if not self.mixer else None
        tokens = [self._time_token(t), self.embed(gather(patchify(x_t, self.patch_size), early))]
        if self.label is None and label is not None:
            raise ArgumentError("label", "this network has no classes", remedy="leave it out")
        if self.label is not None:
            label = torch.full((B,), self.classes, device=x_t.device) if label is None else label
            tokens.insert(0, self.label(label[:, None]))
        x = torch.cat(tokens, dim=1) + self.position(self._token_numbers(B, early, x_t.device))
        for block in self.mixer:
            x = block(x)
        return gather(x, self._token_numbers(B, visible, x_t.device)) if self.mixer else x

    def _middle(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """The middle of the network: only patches `keep` and the extra tokens pass, the others stay as they are."""
        outer = self.outer if keep is not None else len(self.blocks_in)
        numbers = None if keep is None else self._token_numbers(len(x), keep, x.device)
        inner: Tensor = gather(x, numbers)
        skips: list[Tensor] = []
        for block in self.blocks_in[outer:]:
            inner = block(inner)
            skips.append(inner)
        inner = self.block_mid(inner)
        for block in self.blocks_out[: len(self.blocks_out) - outer]:
            inner = block(inner, skips.pop())
        if numbers is None:
            return inner
        return x.to(inner.dtype).scatter(1, numbers[..., None].expand_as(inner), inner)

    def _time_token(self, t: Tensor) -> Tensor:
        token = sinusoidal(t, self.width)[:, None]
        out: Tensor = token if self.time is None else self.time(token)
        return out

    def _token_numbers(self, B: int, visible: Tensor | None, device: torch.device) -> Tensor:
        """Which row of positions every token takes: (B, extras + K)."""
        if visible is None:
            return torch.arange(self.extras + self.num_patches, device=device).repeat(B, 1)
        extras = torch.arange(self.extras, device=device).repeat(B, 1)
        return torch.cat([extras, visible.flatten(1) + self.extras], dim=1)
