"""The Inception network of the FID: the features that published distances are measured with.

Szegedy et al. 2015 (arXiv 1512.00567), in the graph of December 2015 that Heusel et al. 2017 (arXiv 1706.08500) used.
It differs from the usual Inception v3 in three places: average pooling does not count the padding, the last block pools
by maximum, and it has 1,008 classes. Weights have the names of pytorch-fid's file, which is that graph converted.
Pictures are resized to 299 as TensorFlow 1 did it, without half-pixel centres and without smoothing, and scaled by
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


def average(x: Tensor) -> Tensor:
    """3 x 3, of the pixels that are there."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def maximum(x: Tensor) -> Tensor:
    """3 x 3."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def reduced(x: Tensor) -> Tensor:
    """3 x 3, every second."""
    return F.max_pool2d(x, 3, stride=2)


class Conv(nn.Module):
    """A convolution without bias, batch norm and ReLU."""

    def __init__(self, given: int, made: int, kernel: int | tuple[int, int], **place: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(given, made, kernel, bias=False, **place)  # type: ignore[arg-type]
        self.bn = nn.BatchNorm2d(made, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.relu(self.bn(self.conv(x)))
        return out


class BlockA(nn.Module):
    """35 x 35."""

    def __init__(self, given: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(given, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(given, 48, 1), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(given, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = Conv(64, 96, 3, padding=1), Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(given, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(average(x))], dim=1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, given: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(given, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(given, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = Conv(64, 96, 3, padding=1), Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, reduced(x)], dim=1)


class BlockC(nn.Module):
    """17 x 17."""

    def __init__(self, given: int, inner: int) -> None:
        super().__init__()
        wide, tall = {"padding": (0, 3)}, {"padding": (3, 0)}
        self.branch1x1 = Conv(given, 192, 1)
        self.branch7x7_1 = Conv(given, inner, 1)
        self.branch7x7_2, self.branch7x7_3 = Conv(inner, inner, (1, 7), **wide), Conv(inner, 192, (7, 1), **tall)
        self.branch7x7dbl_1 = Conv(given, inner, 1)
        self.branch7x7dbl_2, self.branch7x7dbl_3 = (
            Conv(inner, inner, (7, 1), **tall),
            Conv(inner, inner, (1, 7), **wide),
        )
        self.branch7x7dbl_4, self.branch7x7dbl_5 = (
            Conv(inner, inner, (7, 1), **tall),
            Conv(inner, 192, (1, 7), **wide),
        )
        self.branch_pool = Conv(given, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(average(x))], dim=1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, given: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(given, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(given, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, reduced(x)], dim=1)


class BlockE(nn.Module):
    """8 x 8."""

    def __init__(self, given: int, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        wide, tall = {"padding": (0, 1)}, {"padding": (1, 0)}
        self.branch1x1 = Conv(given, 320, 1)
        self.branch3x3_1 = Conv(given, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3), **wide), Conv(384, 384, (3, 1), **tall)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(given, 448, 1), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3), **wide), Conv(384, 384, (3, 1), **tall)
        self.branch_pool = Conv(given, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once)]
        parts += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(self.pool(x))]
        return torch.cat(parts, dim=1)


class Inception(nn.Module):
    """Pictures as 2,048 numbers each."""

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
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, average), BlockE(2048, maximum)
        self.fc = nn.Linear(DIMENSIONS, 1008)  # in the file; features are what goes into it

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..255 -> (B, 2048)."""
        x = (resized(x) - 128) / 128
        x = reduced(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = reduced(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


def resized(x: Tensor, side: int = SIDE) -> Tensor:
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


def inception(state: dict[str, Tensor]) -> Inception:
    """The network with the weights of pytorch-fid's file."""
    with torch.device("meta"):
        network = Inception()
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)
