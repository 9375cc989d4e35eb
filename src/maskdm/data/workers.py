"""Work on many images at once: threads suffice, as hashing and Pillow release the interpreter's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_order(work: Callable[[_T], _R], items: Iterable[_T], advance: Callable[[int], object]) -> Iterator[_R]:
    """`map(work, items)` over all cores, a bounded number of results ahead, so that a million fit in memory.

    `advance` is called with 1 for each result, such as the `update` of a progress bar.
    """
    cores = os.cpu_count() or 1
    ahead: deque[Future[_R]] = deque()

    def first() -> _R:
        result = ahead.popleft().result()
        advance(1)
        return result

    with ThreadPoolExecutor(cores) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) >= 8 * cores:
                    yield first()
            while ahead:
                yield first()
        finally:
            for future in ahead:
                future.cancel()
