"""Pictures that are decoded each time they are asked for: for sets that fit on no disk a second time."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from maskdm.data.decode import Pixels

P = TypeVar("P")


class Images(Protocol):
    """Pictures by row: an array, mapped or not, or a set that decodes them when asked."""

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


class Streamed(Generic[P]):
    """`pictures`, decoded to `shape` (H, W, C) by all cores whenever they are asked for."""

    def __init__(self, pictures: Sequence[P], shape: tuple[int, ...], decode: Callable[[P], Pixels]) -> None:
        self.shape = (len(pictures), *shape)
        self._pictures, self._decode = pictures, decode
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="maskdm-decode")

    @property
    def nbytes(self) -> int:
        """Size of all of them as uint8."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.int64]) -> Pixels:
        """See `Images`."""
        found = list(self._pool.map(self._decode, (self._pictures[row] for row in rows)))
        return np.stack(found) if found else np.empty((0, *self.shape[1:]), np.uint8)
