"""What all pages share: templates, and images within the page.

A page is one file that opens anywhere, loads nothing and runs nothing: `templates/base.html` forbids both, so that it
holds even where some text were not escaped. Python gives plain values, templates lay them out and escape all text.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from jinja2 import Environment

COLUMN = 856
"""Width of a page's column, in pixels, as `style.css` leaves it."""
Cell = str | Sequence[str]
"""Of a table: text, or several lines of it."""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        columns: their names.
        rows: a cell for every column.
        numbers: columns that are set flush right.
        prose: columns of sentences, which are not squeezed where the page is narrow.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: Container[str] = ()
    prose: Container[str] = ()

    def kind(self, column: int) -> str:
        """The class of the cells of a column: number, prose or ""."""
        name = self.columns[column]
        return "number" if name in self.numbers else "prose" if name in self.prose else ""


@dataclass(frozen=True)
class PageImage:
    """A PNG that was seen to be whole.

    Attributes:
        png: the file.
        width, height: in pixels.
        alt: for those who do not see it.
        caption: below it.
    """

    png: bytes
    width: int
    height: int
    alt: str
    caption: str = ""

    @property
    def source(self) -> str:
        """The image as a URL of its own."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"

    @property
    def pixelated(self) -> bool:
        """Whether it is so small that it is shown larger than it is."""
        return self.width < COLUMN / 2

    @property
    def shown_width(self) -> int:
        """Pixels that it takes in a column of its own: small images grow by a whole factor, so pixels stay squares."""
        return self.width * (COLUMN // self.width) if self.width <= COLUMN / 2 else COLUMN


def read_png(path: Path, alt: str, caption: str = "") -> PageImage | None:
    """The image of a file, or None where that is no whole PNG, as while it is being written."""
    try:
        png = path.read_bytes()
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.load()
            return PageImage(png, image.width, image.height, alt, caption)
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for broken files, depending on where they break
        return None


def encode_png(image: Image.Image, alt: str, caption: str = "") -> PageImage:
    """An image for a page."""
    png = io.BytesIO()
    image.save(png, "PNG")
    return PageImage(png.getvalue(), image.width, image.height, alt, caption)


def render_page(template: str, **values: object) -> str:
    """The page of a template, with all text escaped.

    Args:
        template: a file of `templates/`.
        values: by the names that it knows them by; one that is missing is an error.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # where a page is written, not where it may be

    return Environment(
        loader=PackageLoader("maskdm.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
