"""What is said of a set of images once it has been read: what may not be as it was meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from maskdm.data.depth import WHITE_OF_16_BITS, Values
from maskdm.errors import shown


def remark_on_several(names: Sequence[str]) -> Iterator[str]:
    """Of images with more than one frame or page."""
    if names:
        has, its = ("has", "its first") if len(names) == 1 else ("have", "the first of each")
        yield f"{_images(len(names))} {has} several frames or pages, and {its} is used, such as {shown(names[0])}"


def remark_on_values(values: Sequence[Values], white_level: float | None) -> Iterator[str]:
    """Of images of more than 8 bits that come out dark, or whose bright parts are cut off."""
    for each in values:
        white = 1.0 if each.depth == "float" else float(WHITE_OF_16_BITS)
        if white_level is not None and each.depth != "colour":
            white = white_level
        seen = f"{_images(each.images)} of more than 8 bits ({each.depth}) with values from {_number(each.low)} to "
        seen += f"{_number(each.high)}, where {_number(white)} is white"
        if each.high > white:
            yield f"{seen}: what is brighter is cut off; raise data.white_level to {_number(each.high)} to keep it"
        elif each.high <= white / 2 and each.depth == "colour":
            yield f"{seen}: they come out dark; convert them to 8 bits first"
        elif each.high <= white / 2:
            level = each.high if each.depth == "float" else 2 ** int(each.high).bit_length() - 1
            yield f"{seen}: they come out dark; data.white_level={level:g} makes the brightest of them white"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"
