"""Where stored images meet the model: the one place in which ranges and the order of dimensions change.

Stored images are uint8 (N, H, W, C). A model works on float (N, C, H, W) in [-1, 1], and the public API gives out float
(N, C, H, W) in [0, 1].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def channels_first(images: np.ndarray | Tensor) -> Tensor:
    """(N, H, W, C) -> (N, C, H, W), a view where that can be."""
    if isinstance(images, np.ndarray):
        # A copy of what torch could not write to, such as a mapped file; it would warn.
        images = torch.from_numpy(images if images.flags.writeable else np.array(images))
    return images.permute(0, 3, 1, 2)


def to_model(images: np.ndarray | Tensor) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [-1, 1], on the device where the images are."""
    return channels_first(images).contiguous().float().div(127.5).sub(1)


def area_average(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Images at a smaller size, (N, C, H, W) -> (N, C, h, w): every pixel the mean of the k x k that it covers.

    White noise of variance 1 becomes one of variance 1 / k^2.

    Args:
        x: the images.
        size: (h, w), both sides divided by one whole number k; with k = 1 they are returned as they are.
    """
    if tuple(x.shape[2:]) == size:
        return x
    k = x.shape[2] // size[0]
    assert tuple(x.shape[2:]) == (k * size[0], k * size[1]), "checked where sizes are set"
    return F.avg_pool2d(x, k)


def to_unit(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clipped, of any shape: what the public API gives out."""
    return x.add(1).div(2).clamp(0, 1)


def to_uint8_nhwc(unit: Tensor) -> np.ndarray:
    """Float (N, C, H, W) in [0, 1] -> uint8 (N, H, W, C), rounded to the nearest."""
    array: np.ndarray = unit.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return array
