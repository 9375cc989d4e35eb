"""Layers that backbones share.

The rules of per-sample gradients hold throughout (so that differentially private training works on every backbone):
modules are called, never their weights; no parameter lives outside a Linear, Embedding or norm; activations that enter
a Linear have at most three dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskdm.diffusion.patches import Grid


def sinusoidal(t: Tensor, width: int, period: float = 10_000.0) -> Tensor:
    """(B,) -> (B, width) float32: cosines, then sines, of t times frequencies falling from 1 to 1/period."""
    half = width // 2
    frequencies = torch.exp(-math.log(period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


SHORT = {True: 1280, False: 64}
"""Tokens, in half precision or not, up to which plain products are faster than torch's fused kernel on a CPU."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, each (B, heads, L, d).

    Torch's fused kernel, but for few tokens on a CPU: there, above all in the backward pass, plain products take
    between two thirds and a sixth of its time (docs/benchmarks.md). They keep L x L numbers for each head, so not for
    many. Scores and softmax are in float32, as in the fused kernel: a score of 16 in bf16 is off by up to 0.06.
    """
    if q.device.type != "cpu" or q.shape[2] > SHORT[q.dtype == torch.bfloat16]:
        return F.scaled_dot_product_attention(q, k, v)
    precise = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):  # which would have the scores in bf16
        scores = (q.to(precise) * q.shape[-1] ** -0.5) @ k.to(precise).transpose(-1, -2)
        out: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
    return out


class Attention(nn.Module):
    """Multi-head self-attention: (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        B, L, D = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        x = attend(q, k, v).transpose(1, 2).reshape(B, L, D)
        out: Tensor = self.proj(x)
        return out


class MLP(nn.Module):
    """Two linear layers with a GELU between: (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, int(width * ratio))
        self.down = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


def initialize(module: nn.Module) -> None:
    """Truncated normals of width 0.02 for linear layers and embeddings, zero biases (as ViT and U-ViT)."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def resize_positions(rows: Tensor, old: Grid, new: Grid) -> Tensor:
    """Learned positions for another grid: (extras + old patches, D) -> (extras + new patches, D), bicubic.

    The first rows, which belong to extra tokens, are kept as they are.
    """
    extras = len(rows) - old[0] * old[1]
    width = rows.shape[1]
    image = rows[extras:].reshape(1, *old, width).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, size=new, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([rows[:extras], image.permute(0, 2, 3, 1).reshape(-1, width).to(rows.dtype)])
