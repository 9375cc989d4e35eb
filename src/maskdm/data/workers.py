"""Work on many images at once: threads suffice, as hashing and Pillow release the interpreter's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


CORES = os.cpu_count() or 1
"""How many items are worked on at once."""
_PER_CORE = 8
_BYTES_AHEAD = 2**28


def in_order(
    work: Callable[[_T], _R], items: Iterable[_T], advance: Callable[[int], object], result_bytes: int = 1
) -> Iterator[_R]:
    """`map(work, items)` over all cores, a bounded number of results ahead, so that a million fit in memory.

    Args:
        work: done in threads.
        items: what it is done to.
        advance: called with 1 for each result, such as the `update` of a progress bar.
        result_bytes: of one result; fewer large ones wait at once.
    """
    most = max(min(_PER_CORE * CORES, _BYTES_AHEAD // result_bytes), CORES)
    ahead: deque[Future[_R]] = deque()

    def first() -> _R:
        result = ahead.popleft().result()
        advance(1)
        return result

    with ThreadPoolExecutor(CORES) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) >= most:
                    yield first()
            while ahead:
                yield first()
        finally:
            for future in ahead:
                future.cancel()
