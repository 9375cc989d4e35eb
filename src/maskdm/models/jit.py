"""JiT: a plain vision transformer of today, straight on pixels.

A patch becomes a token through a narrow linear layer and a wide one, since natural patches fill few of their
dimensions. Blocks are RMSNorm, attention with normalised queries and keys and rotary positions, and SwiGLU; the time
and the label scale, shift and gate every one of them, and the label also joins as a few tokens a third of the way in.
Rotary positions only tell where tokens stand to each other; fixed sinusoids are added for where they stand in the
image, which matters when most of it is masked.

Three ways to do less than everything, all by `gather`, so that a step costs what it keeps:

- a mask: masked patches are dropped before the first linear layer;
- a mask with `mixer_depth`: light blocks mix all patches first, and only then are masked ones dropped;
- a routed mask: all patches come in and out, but only those kept pass the middle blocks; the others wait and re-enter.

Sources: Li & He 2025, arXiv 2511.13720 (the network); Peebles & Xie 2022, arXiv 2212.09748 (adaLN-zero); Sehwag et al.
2024, arXiv 2407.15811 (deferred masking); Krause et al. 2025, arXiv 2501.04765 (routing).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskdm.diffusion.masks import Mask
from maskdm.diffusion.patches import Grid, gather, patch_grid, patchify
from maskdm.diffusion.process import batch_times
from maskdm.errors import ArgumentError
from maskdm.models.layers import attend, sinusoidal
from maskdm.models.pixel_head import PixelHeadKind, make_head, to_pixels

SIZES: dict[str, dict[str, int]] = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
}
"""Widths, depths and heads by their usual names."""

TIME_WIDTH = 256
EPSILON = 1e-6

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each (B or 1, L, 1, d/2), for tokens whose heads have d values."""


class RotaryAttention(nn.Module):
    """Multi-head self-attention, queries and keys normalised and then rotated by position: (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.RMSNorm(width // heads, eps=EPSILON)
        self.key_norm = nn.RMSNorm(width // heads, eps=EPSILON)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(B, L, D), its positions -> (B, L, D)."""
        B, L, D = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.heads, D // self.heads).unbind(2)
        q = rotate(self._normed(q, self.query_norm), rotation).to(v.dtype)
        k = rotate(self._normed(k, self.key_norm), rotation).to(v.dtype)
        x = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        out: Tensor = self.proj(x.transpose(1, 2).reshape(B, L, D))
        return out

    @staticmethod
    def _normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
        """(B, L, heads, d) -> the same, in the precision of the weights.

        Heads are laid along the sequence meanwhile: the rules of per-sample gradients know three dimensions.
        """
        out: Tensor = norm(x.flatten(1, 2).to(norm.weight.dtype))
        return out.view(x.shape)


class SwiGLU(nn.Module):
    """An MLP gated by SiLU, with as many weights as a plain one of `ratio`: (B, L, D) -> (B, L, D).

    Source: Shazeer 2020, arXiv 2002.05202.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = max(int(ratio * width * 2 / 3), 1)
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        gate, value = self.up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * value)
        return out


class JiTBlock(nn.Module):
    """A transformer block that the condition (B, D) scales, shifts and gates: (B, L, D) -> (B, L, D).

    At first the gates are zero, and the block passes on what it gets. Its norm has no weights: the condition's scale
    would do the same.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=EPSILON, elementwise_affine=False)
        self.attention = RotaryAttention(width, heads)
        self.mlp = SwiGLU(width, mlp_ratio)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, rotation: Rotation) -> Tensor:
        """(B, L, D), (B, D), the tokens' positions -> (B, L, D)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate_1 * self.attention(self.norm(x) * (1 + scale_1) + shift_1, rotation)
        out: Tensor = x + gate_2 * self.mlp(self.norm(x) * (1 + scale_2) + shift_2)
        return out


class JiT(nn.Module):
    """See the module.

    Args:
        image_size: (height, width) in pixels.
        channels: of the image.
        patch_size: side of a patch in pixels; must divide both sides of the image.
        width: of a token.
        depth: blocks in all, mixer blocks aside; 3 or more for routing.
        heads: of attention; width / heads must be a multiple of 4.
        mlp_ratio: hidden width of a block's MLP over width, were it a plain one (SwiGLU takes 2/3 of it, twice).
        classes: number of classes, 0 for an unconditional model.
        bottleneck: width between the two linear layers that make a patch a token.
        class_tokens: how often the label joins as a token, 0 for not at all; of no effect without classes.
        mixer_depth: light blocks (mlp_ratio 1) that see all patches before masked ones are dropped. With any,
            masked patches do influence the output.
        pixel_head: none for a linear layer for each patch, or conv for a `PixelHead`.
        pixel_features, pixel_layers: its channels and convolutions.

    Raises:
        ArgumentError: of heads or patch_size; they do not fit.

    Attributes:
        grid: rows and columns of patches.
        num_patches: their number, N.
    """

    routes: ClassVar[bool] = True
    """Whether patches can go around the middle blocks."""
    layout: ClassVar[dict[str, str]] = {
        "embed.0.weight": "patch_in",
        "head.weight": "patch_out",
        "head.bias": "patch_bias",
        "label.weight": "labels",
    }
    """Tensors whose shapes depend on the images or the classes, by what they are for; see `maskdm.models.transfer`."""

    position: Tensor
    rotation: Tensor

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
        classes: int = 0,
        bottleneck: int = 128,
        class_tokens: int = 8,
        mixer_depth: int = 0,
        pixel_head: PixelHeadKind = "none",
        pixel_features: int = 32,
        pixel_layers: int = 3,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.grid = patch_grid(image_size, patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.channels, self.patch_size, self.classes = channels, patch_size, classes
        self.bottleneck, self.class_tokens = bottleneck, class_tokens if classes else 0
        patch_dim = patch_size**2 * channels

        self.embed = nn.Sequential(nn.Linear(patch_dim, bottleneck, bias=False), nn.Linear(bottleneck, width))
        self.time = nn.Sequential(nn.Linear(TIME_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None  # the last row is "no class"
        # All class tokens hold the same label; these rows tell them apart.
        self.class_token = nn.Embedding(self.class_tokens, width) if self.class_tokens else None
        self.mixer = nn.ModuleList(JiTBlock(width, heads, 1.0) for _ in range(mixer_depth))
        self.blocks = nn.ModuleList(JiTBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=EPSILON, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = make_head(pixel_head, width, self.grid, patch_size, channels, pixel_features, pixel_layers)
        # Not in the state dict: they follow from the sizes, and weights fit images of any size.
        self.register_buffer("position", torch.cat(plane_waves(self.grid, width), dim=1), persistent=False)
        self.register_buffer("rotation", torch.stack(plane_waves(self.grid, width // heads)), persistent=False)
        self._initialize()

    @property
    def middle(self) -> range:
        """The blocks that only kept patches pass in routing: all but one or two at either end."""
        ends = max(1, min(2, len(self.blocks) // 6))
        return range(ends, len(self.blocks) - ends)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        *,
        mask: Mask | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """See `Backbone`.

        Args:
            x_t: (B, C, H, W).
            t: (B,), 0 to about 1000, or one for all images.
            mask: which patches to see, or which to pass through the middle blocks where it is routed; None for all.
            label: (B,), 0 to classes; `classes` or None for "no class".

        Returns:
            (B, C, H, W), zero where masked.

        Raises:
            ArgumentError: t of another shape, a label without classes, or a routed mask with too few blocks.
        """
        t = batch_times(t, x_t)
        keep = None if mask is None else mask.keep.flatten(1)
        visible, routed = (None, keep) if mask is not None and mask.routed else (keep, None)
        if routed is not None and not self.middle:
            raise ArgumentError(
                "depth",
                got=len(self.blocks),
                wanted="3 or more to route patches around the middle",
                remedy="try 3, or train without routing",
            )
        condition, context = self._condition(t, label)
        x = patchify(x_t, self.patch_size)
        if not self.mixer:
            x = self.embed(gather(x, visible)) + (self.position if visible is None else self.position[visible])
        else:
            x = self.embed(x) + self.position
            rotation = self._rotation(None)
            for block in self.mixer:
                x = block(x, condition, rotation)
            x = gather(x, visible)

        x = self._pass_blocks(x, condition, context, visible, routed)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return to_pixels(self.head, self.norm(x) * (1 + scale) + shift, x_t, mask, self.patch_size)

    def _condition(self, t: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What steers every block, (B, D), and the class tokens, (B, class_tokens, D) or None."""
        if self.label is None:
            if label is not None:
                raise ArgumentError("label", "this network has no classes", remedy="leave it out")
            return F.silu(self.time(sinusoidal(t, TIME_WIDTH))), None
        B = len(t)
        label = torch.full((B,), self.classes, device=t.device) if label is None else label
        of_label = self.label(label[:, None])
        condition = F.silu(self.time(sinusoidal(t, TIME_WIDTH)) + of_label[:, 0])
        if self.class_token is None:
            return condition, None
        numbers = torch.arange(self.class_tokens, device=t.device).repeat(B, 1)
        return condition, of_label + self.class_token(numbers)

    def _pass_blocks(
        self, x: Tensor, condition: Tensor, context: Tensor | None, visible: Tensor | None, routed: Tensor | None
    ) -> Tensor:
        """(B, K, D) -> (B, K, D): `context` stands before the tokens from a third of the depth on.

        Only patches `routed`, if given, pass the middle blocks.
        """
        waiting, extras, kept = x, 0, visible
        rotation = self._rotation(kept)
        for i, block in enumerate(self.blocks):
            if context is not None and i == len(self.blocks) // 3:
                x, extras = torch.cat([context, x], dim=1), self.class_tokens
                rotation = self._rotation(kept, extras)
            if routed is not None and i == self.middle.start:
                waiting, kept = x[:, extras:], routed
                x = torch.cat([x[:, :extras], gather(waiting, routed)], dim=1)
                rotation = self._rotation(kept, extras)
            if routed is not None and i == self.middle.stop:
                index = routed[..., None].expand(-1, -1, x.shape[-1])
                x = torch.cat([x[:, :extras], waiting.scatter(1, index, x[:, extras:])], dim=1)
                kept = None
                rotation = self._rotation(kept, extras)
            x = block(x, condition, rotation)
        return x[:, extras:]

    def _rotation(self, kept: Tensor | None, extras: int = 0) -> Rotation:
        """For the patches `kept`, (B, K) or None for all, after `extras` tokens that are not rotated."""
        cos, sin = (table[None] if kept is None else table[kept] for table in self.rotation.unbind())
        cos, sin = F.pad(cos, (0, 0, extras, 0), value=1.0), F.pad(sin, (0, 0, extras, 0))
        return cos[:, :, None], sin[:, :, None]

    def _initialize(self) -> None:
        """As DiT: every block passes on what it gets, and the network's output is zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for layer in self.time:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        blocks = (module for module in self.modules() if isinstance(module, JiTBlock))
        heads = [self.head] if isinstance(self.head, nn.Linear) else []  # a pixel head has zeros at its own end
        for layer in (*heads, self.modulation, *(block.modulation for block in blocks)):
            nn.init.zeros_(layer.weight)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """(B, L, heads, d) -> the same, with values i and i + d/2 of every head turned as a pair.

    Source: Su et al. 2021, arXiv 2104.09864.
    """
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def plane_waves(grid: Grid, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for every patch in raster order, each (N, width / 2): first of its row, then of its column."""
    rows, columns = grid
    row = sinusoidal(torch.arange(rows).repeat_interleave(columns), width // 2)
    column = sinusoidal(torch.arange(columns).repeat(rows), width // 2)
    (cos_y, sin_y), (cos_x, sin_x) = row.chunk(2, dim=1), column.chunk(2, dim=1)
    return torch.cat([cos_y, cos_x], dim=1), torch.cat([sin_y, sin_x], dim=1)


def check_heads(width: int, heads: int) -> None:
    """Whether heads can be rotated along rows and columns.

    Raises:
        ArgumentError: of heads; they do not divide the width into multiples of 4.
    """
    if width % heads == 0 and width // heads % 4 == 0:
        return
    fitting = [n for n in range(1, width // 4 + 1) if width % (4 * n) == 0]
    nearest = min(fitting, key=lambda n: (abs(n - heads), n), default=None)
    remedy = "make the width a multiple of 4" if nearest is None else f"try {nearest}"
    if width % heads:
        raise ArgumentError("heads", got=heads, wanted=f"a divisor of the width, {width}", remedy=remedy)
    raise ArgumentError(
        "heads",
        f"cuts the width, {width}, into heads of {width // heads}",
        got=heads,
        wanted="heads of a multiple of 4, for rotary positions along rows and columns",
        remedy=remedy,
    )
