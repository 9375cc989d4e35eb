"""The Inception network of the FID: the features that published distances are measured with.

Szegedy et al. 2015 (arXiv 1512.00567), in the graph of December 2015 that Heusel et al. 2017 (arXiv 1706.08500) used.
It differs from the usual Inception v3 in three places: average pooling does not count the padding, the last block pools
by maximum, and it has 1,008 classes. Weights have the names of pytorch-fid's file, which is that graph converted.
Images are resized to 299 as TensorFlow 1 did it, without half-pixel centres and without smoothing, and scaled by
(x - 128) / 128: other ways give other distances (Parmar et al. 2021, arXiv 2104.11222).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 299
DIMENSIONS = 2048
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

Pool = Callable[[Tensor], Tensor]
Sides = int | tuple[int, int]


def average_pool(x: Tensor) -> Tensor:
    """Mean over 3 x 3, of the pixels that are there: (B, C, H, W) -> the same shape."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def max_pool(x: Tensor) -> Tensor:
    """Maximum over 3 x 3: (B, C, H, W) -> the same shape."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def halving_pool(x: Tensor) -> Tensor:
    """Maximum over 3 x 3 at every second place: (B, C, H, W) -> (B, C, (H - 1) // 2, (W - 1) // 2)."""
    return F.max_pool2d(x, 3, stride=2)


class Conv(nn.Module):
    """A convolution without bias, batch norm and ReLU.

    Args:
        channels, width: in and out.
        kernel: its sides.
        stride, padding: as of nn.Conv2d.
    """

    def __init__(self, channels: int, width: int, kernel: Sides, *, stride: int = 1, padding: Sides = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, width, H', W')."""
        out: Tensor = F.relu(self.bn(self.conv(x)))
        return out


def _row(channels: int, width: int, side: int) -> Conv:
    """1 x `side`, which keeps the size."""
    return Conv(channels, width, (1, side), padding=(0, side // 2))


def _column(channels: int, width: int, side: int) -> Conv:
    """`side` x 1, which keeps the size."""
    return Conv(channels, width, (side, 1), padding=(side // 2, 0))


class BlockA(nn.Module):
    """Three branches and a pooled one, 35 x 35: (B, channels, 35, 35) -> (B, 224 + pooled, 35, 35)."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(channels, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(channels, 48, 1), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(channels, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = Conv(64, 96, 3, padding=1), Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(average_pool(x))], dim=1)


class BlockB(nn.Module):
    """(B, channels, 35, 35) -> (B, 480 + channels, 17, 17)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(channels, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = Conv(64, 96, 3, padding=1), Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, halving_pool(x)], dim=1)


class BlockC(nn.Module):
    """Convolutions of 7 x 1 and 1 x 7, `inner` wide: (B, channels, 17, 17) -> (B, 768, 17, 17)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(channels, 192, 1)
        self.branch7x7_1 = Conv(channels, inner, 1)
        self.branch7x7_2, self.branch7x7_3 = _row(inner, inner, 7), _column(inner, 192, 7)
        self.branch7x7dbl_1 = Conv(channels, inner, 1)
        self.branch7x7dbl_2, self.branch7x7dbl_3 = _column(inner, inner, 7), _row(inner, inner, 7)
        self.branch7x7dbl_4, self.branch7x7dbl_5 = _column(inner, inner, 7), _row(inner, 192, 7)
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(average_pool(x))], dim=1)


class BlockD(nn.Module):
    """(B, channels, 17, 17) -> (B, 512 + channels, 8, 8)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(channels, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(channels, 192, 1)
        self.branch7x7x3_2, self.branch7x7x3_3 = _row(192, 192, 7), _column(192, 192, 7)
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, halving_pool(x)], dim=1)


class BlockE(nn.Module):
    """Convolutions of 3 x 1 beside 1 x 3, and `pool`: (B, channels, 8, 8) -> (B, 2048, 8, 8)."""

    def __init__(self, channels: int, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = Conv(channels, 320, 1)
        self.branch3x3_1 = Conv(channels, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = _row(384, 384, 3), _column(384, 384, 3)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(channels, 448, 1), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _row(384, 384, 3), _column(384, 384, 3)
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once)]
        parts += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(self.pool(x))]
        return torch.cat(parts, dim=1)


class Inception(nn.Module):
    """Images as 2,048 numbers each."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3, self.Conv2d_2b_3x3 = Conv(32, 32, 3), Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, average_pool), BlockE(2048, max_pool)
        self.fc = nn.Linear(DIMENSIONS, 1008)  # in the file; features are what goes into it

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..255 -> (B, 2048)."""
        x = (resize_tf1(x) - 128) / 128
        x = halving_pool(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = halving_pool(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


def resize_tf1(x: Tensor, side: int = SIDE) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side), bilinear as TensorFlow 1 did: pixel i of the result is at i * H / side."""
    for dimension in (2, 3):
        size = x.shape[dimension]
        if size == side:
            continue
        place = torch.arange(side, device=x.device, dtype=torch.float32) * (size / side)
        low = place.long()
        high = (low + 1).clamp(max=size - 1)
        share = (place - low).view([side if d == dimension else 1 for d in range(4)])
        below, above = x.index_select(dimension, low), x.index_select(dimension, high)
        x = below + (above - below) * share
    return x


def load_inception(state: dict[str, Tensor]) -> Inception:
    """The network with the weights of pytorch-fid's file, all of them."""
    with torch.device("meta"):
        network = Inception()
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)
