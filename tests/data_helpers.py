"""What the tests of images share: images to read, a console that listens, and how a refusal is checked."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdm.errors import MISSING, ArgumentError, InputError
from maskdm.runtime.console import Console


@contextmanager
def refused(
    name: object,
    problem: str = "",
    *,
    got: object = MISSING,
    wanted: str = "",
    remedy: str = "",
    kind: type[ArgumentError] = InputError,
) -> Iterator[None]:
    """An error of this name whose other values hold what is given; a sentence on one line."""
    with pytest.raises(kind) as caught:
        yield
    error = caught.value
    assert type(error) is kind
    assert error.name == str(name)
    assert problem in error.problem
    assert got is MISSING or error.got == got
    assert wanted in error.wanted
    assert remedy in error.remedy
    assert "\n" not in str(error)


def noise(seed: int, shape: tuple[int, ...] = (6, 8, 3)) -> np.ndarray:
    """Random uint8 values, always the same for a seed and shape."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(image: np.ndarray | int, side: int = 2) -> bytes:
    """A PNG file of these pixels, or of a gray square of this value."""
    buffer = io.BytesIO()
    opened = Image.new("L", (side, side), image) if isinstance(image, int) else Image.fromarray(image)
    opened.save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path) -> Path:
    """Twelve images of 8 x 6 in the classes cat (odd numbers) and dog."""
    for number in range(12):
        path = root / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(noise(number)))
    return root


def truncate(path: Path) -> None:
    """Cuts a PNG so that its header can be read, and its pixels cannot."""
    path.write_bytes(path.read_bytes()[:-40])


class Listener(Console):
    """A console that keeps what it is told.

    Attributes:
        said: lines.
        bars: total and count of every progress bar, by name.
    """

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []
        self.bars: dict[str, list[int]] = {}

    def say(self, text: str) -> None:
        """One line."""
        self.said.append(text)

    @contextmanager
    def bar(self, name, total, unit="image", initial=0):
        """Counts."""
        counts = self.bars.setdefault(name, [total, initial])
        with super().bar(name, total, unit, initial) as bar:

            class Counting:
                def update(self, n=1):
                    counts[1] += n
                    bar.update(n)

            yield Counting()
