"""Images that are no plain array: decoded each time they are asked for, or in another order than they lie in."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from maskdm.data.decode import Pixels


class ImageArray(Protocol):
    """Decoded images by row: an array, mapped or not, or one that decodes them when asked."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        ...

    @property
    def nbytes(self) -> int:
        """Size of all of them as uint8."""
        ...

    def __getitem__(self, rows: NDArray[np.int64], /) -> Pixels:
        """(B,) -> (B, H, W, C) uint8."""
        ...


class Streamed:
    """An `ImageArray` that lies nowhere: its rows are decoded by all cores whenever they are asked for.

    Args:
        shape: (N, H, W, C).
        decode: gives the (H, W, C) uint8 pixels of a row; called in threads.
    """

    def __init__(self, shape: tuple[int, ...], decode: Callable[[int], Pixels]) -> None:
        self.shape = shape
        self._decode = decode
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="maskdm-decode")

    @property
    def nbytes(self) -> int:
        """Size of all of them as uint8."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        """Number of images, N."""
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.int64]) -> Pixels:
        """(B,) -> (B, H, W, C) uint8; raises what `decode` raises."""
        found = list(self._pool.map(self._decode, map(int, rows)))
        return np.stack(found) if found else np.empty((0, *self.shape[1:]), np.uint8)


class Reordered:
    """An `ImageArray` whose rows are those of another in another order.

    Args:
        images: (N, H, W, C) uint8.
        order: (N,) the row of `images` that each row is.
    """

    def __init__(self, images: ImageArray, order: NDArray[np.int64]) -> None:
        self.shape, self.nbytes = tuple(images.shape), images.nbytes
        self._images, self._order = images, order

    def __len__(self) -> int:
        """Number of images, N."""
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.int64]) -> Pixels:
        """(B,) -> (B, H, W, C) uint8."""
        return self._images[self._order[rows]]
