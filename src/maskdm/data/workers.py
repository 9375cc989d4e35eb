"""Work on many pictures at once: threads suffice, as hashing and Pillow release the interpreter's lock."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Bar(Protocol):
    def update(self, n: int, /) -> object: ...


Progress = Callable[[str, int], AbstractContextManager[Bar]]
"""Called with a description and a total; gives the bar to update. `lambda text, n: tqdm(desc=text, total=n)` is one."""


class _NoBar:
    def update(self, n: int, /) -> None:
        pass


def silent(description: str, total: int) -> AbstractContextManager[Bar]:
    """The `Progress` that shows nothing."""
    return nullcontext(_NoBar())


def in_order(work: Callable[[T], R], items: Iterable[T], bar: Bar) -> Iterator[R]:
    """`map(work, items)` over all cores, a bounded number of results ahead, so that a million fit in memory."""
    cores = os.cpu_count() or 1
    ahead: deque[Future[R]] = deque()

    def first() -> R:
        result = ahead.popleft().result()
        bar.update(1)
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
