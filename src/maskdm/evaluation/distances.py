"""Euclidean distances between sets of vectors, in which equal vectors are at distance zero.

The usual |a|^2 + |b|^2 - 2 ab is fast, and leaves of two equal vectors what rounding leaves of large numbers. Pairs
that are near, by the size of the vectors, are therefore computed again from their differences.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEAR = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Share of |a|^2 + |b|^2 below which a squared distance is computed from the difference."""
EQUAL = 1e-12
"""Share of |a|^2 + |b|^2 below which a squared distance is zero: networks in float32 give equal images vectors that
differ by so much where they stand in other batches."""
TIE = 1e-6
"""Share by which two distances in float64 may differ and count as equal: above what rounding leaves of them."""


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances (N, M) of all vectors of (N, D) to all of (M, D), exactly 0 of equal ones.

    Args:
        a, b: both in float32 or both in float64; sets that differ much from zero cost no accuracy.
    """
    centre = b.mean(dim=0)
    x, y = a - centre, b - centre
    sizes = (x**2).sum(1, keepdim=True) + (y**2).sum(1)
    squares = torch.addmm(sizes, x, y.T, alpha=-2)
    rounding = EQUAL * ((a**2).sum(1, keepdim=True) + (b**2).sum(1))
    near = squares < NEAR[squares.dtype] * sizes
    for row in near.any(dim=1).nonzero().flatten().tolist():
        columns = near[row].nonzero().flatten()
        exact = ((b[columns] - a[row]) ** 2).sum(1)
        squares[row, columns] = exact.masked_fill_(exact < rounding[row, columns], 0.0)
    return squares.clamp_(min=0)
