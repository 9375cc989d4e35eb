"""U-ViT: a vision transformer with long skips, the backbone of the paper.

Every patch is a token; before them stand a token for the time and, with classes, one for the label. Positions are
learned, one row a token. `depth // 2` blocks lead in, one is the middle, `depth // 2` lead out, each of these joined
with the matching in-block by concatenation and a linear layer. Hidden patches never become tokens: they are dropped
before the first linear layer, so that a step costs what the visible ones cost.

Source: Bao et al. 2022, arXiv 2209.12152; in the form of arXiv 2306.11363, whose released weights it reproduces.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from maskdm.diffusion.masks import Masking
from maskdm.diffusion.patches import gather, patch_grid, patchify, scatter, unpatchify
from maskdm.errors import InputError
from maskdm.models.layers import MLP, Attention, attention_flops, initialise, linear_flops, sinusoidal


class Block(nn.Module):
    """A transformer block, joined with a skip first where it has one: (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, qkv_bias: bool, skip: bool = False) -> None:
        super().__init__()
        self.skip = nn.Linear(2 * width, width) if skip else None
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip is not None and skip is not None:
            x = self.skip(torch.cat([x, skip], dim=-1))
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def flops(self, tokens: int) -> int:
        """Of one image."""
        width, hidden = self.mlp.up.in_features, self.mlp.up.out_features
        skip = linear_flops(tokens, 2 * width, width) if self.skip is not None else 0
        return skip + attention_flops(tokens, width) + 2 * linear_flops(tokens, width, hidden)


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
        mixer_depth: light blocks that see every patch before hidden ones are dropped (deferred masking: Sehwag et al.
            2024, arXiv 2407.15811); 0 for none, and then nothing of a hidden patch is seen.
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
    """Tensors whose shape depends on the images, by what they are for; see `maskdm.models.transfer`."""

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
    ) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"model.heads: got {heads}, but it must divide model.width, {width}")
        if depth % 2 == 0:
            raise InputError(
                f"model.depth: got {depth}, wanted an odd number (as many blocks in as out, and one between); "
                f"try {depth + 1}"
            )
        self.grid = patch_grid(image_size, patch_size)
        self.channels, self.patch_size, self.width, self.classes = channels, patch_size, width, classes
        self.patches = self.grid[0] * self.grid[1]
        # Around a middle that patches may go around there is always a block; skips join blocks on the same side of it.
        self.detour = max(depth // 6, 1)
        self.extras = 2 if classes else 1
        patch_dim = patch_size**2 * channels

        self.embed = nn.Linear(patch_dim, width)
        self.time = (
            nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)) if time_mlp else None
        )
        self.label = nn.Embedding(classes + 1, width) if classes else None  # the last row is "no class"
        self.position = nn.Embedding(self.extras + self.patches, width)
        self.mixer = nn.ModuleList(Block(width, heads, 1.0, qkv_bias=qkv_bias) for _ in range(mixer_depth))
        block = partial(Block, width, heads, mlp_ratio, qkv_bias=qkv_bias)
        self.blocks_in = nn.ModuleList(block() for _ in range(depth // 2))
        self.block_mid = block()
        self.blocks_out = nn.ModuleList(block(skip=True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, patch_dim)
        self.apply(initialise)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        visible: Tensor | None = None,
        through: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W), (B,), patches or None, labels (B,) or None -> (B, C, H, W). See `Backbone`."""
        x = self._tokens(x_t, t, visible, label)
        bend = self.detour if through is not None else len(self.blocks_in)
        if through is not None and len(self.blocks_in) < 1:
            raise InputError("model.depth: got 1, wanted 3 or more to route patches around the middle; try 3")
        skips = []
        for block in self.blocks_in[:bend]:
            x = block(x)
            skips.append(x)
        x = self._around(x, through)
        for block in self.blocks_out[len(self.blocks_out) - bend :]:
            x = block(x, skips.pop())
        out = self.head(self.norm(x[:, self.extras :]))
        return unpatchify(scatter(out, visible, self.patches), self.grid, self.channels)

    def flops(self, masking: Masking) -> int:
        """Of one image, forth, a multiply-add as two."""
        routed = masking.kind == "route"
        shown = self.patches if routed else masking.visible
        outer, inner = self.extras + shown, self.extras + masking.visible
        bend = self.detour if routed else len(self.blocks_in)
        around = [*self.blocks_in[:bend], *self.blocks_out[len(self.blocks_out) - bend :]]
        within = [*self.blocks_in[bend:], self.block_mid, *self.blocks_out[: len(self.blocks_out) - bend]]
        passes = [(block, outer) for block in around] + [(block, inner) for block in within]
        passes += [(block, self.extras + self.patches) for block in self.mixer]
        edge = (self.patches if self.mixer else shown) + shown  # embedded, and read
        time = 2 * linear_flops(1, self.width, 4 * self.width) if self.time is not None else 0
        blocks = sum(block.flops(tokens) for block, tokens in passes if isinstance(block, Block))
        return time + blocks + linear_flops(edge, self.width, self.head.out_features)

    def _tokens(self, x_t: Tensor, t: Tensor, visible: Tensor | None, label: Tensor | None) -> Tensor:
        """[label, time, patches]: (B, extras + K, D)."""
        B = len(x_t)
        early = visible if not self.mixer else None
        tokens = [self._time_token(t), self.embed(gather(patchify(x_t, self.patch_size), early))]
        if self.label is None and label is not None:
            raise InputError("label: given, but this network has no classes; leave it out")
        if self.label is not None:
            label = torch.full((B,), self.classes, device=x_t.device) if label is None else label
            tokens.insert(0, self.label(label[:, None]))
        x = torch.cat(tokens, dim=1) + self.position(self._token_numbers(B, early, x_t.device))
        for block in self.mixer:
            x = block(x)
        return gather(x, self._token_numbers(B, visible, x_t.device)) if self.mixer else x

    def _around(self, x: Tensor, through: Tensor | None) -> Tensor:
        """The middle of the network: only `through` patches and the extra tokens pass, the others stay as they are."""
        bend = self.detour if through is not None else len(self.blocks_in)
        numbers = None if through is None else self._token_numbers(len(x), through, x.device)
        inner: Tensor = gather(x, numbers)
        skips: list[Tensor] = []
        for block in self.blocks_in[bend:]:
            inner = block(inner)
            skips.append(inner)
        inner = self.block_mid(inner)
        for block in self.blocks_out[: len(self.blocks_out) - bend]:
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
            return torch.arange(self.extras + self.patches, device=device).repeat(B, 1)
        extras = torch.arange(self.extras, device=device).repeat(B, 1)
        return torch.cat([extras, visible.flatten(1) + self.extras], dim=1)
