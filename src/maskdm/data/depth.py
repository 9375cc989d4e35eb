"""From pixels of any depth to 8 bits, and what values there were where no one says which of them is white."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageFile

from maskdm.data.pillow import BadImage

Depth = Literal["integer", "float", "colour"]
"""Gray integers of 16 or 32 bits, gray floats, or 16 bits of several channels, of which Pillow reads the upper 8."""

WHITE_OF_16_BITS = 0xFFFF


@dataclass(frozen=True)
class Values:
    """What values images of more than 8 bits hold.

    Attributes:
        depth: how they are stored.
        low, high: the least and the greatest.
        images: how many.
    """

    depth: Depth
    low: float
    high: float
    images: int = 1


def together(values: Iterable[Values]) -> tuple[Values, ...]:
    """One for each depth, of all images of it."""
    found: dict[Depth, Values] = {}
    for each in values:
        known = found.get(each.depth, each)
        images = each.images + (known.images if each.depth in found else 0)
        found[each.depth] = Values(each.depth, min(known.low, each.low), max(known.high, each.high), images)
    return tuple(found[depth] for depth in sorted(found))


def has_deep_colour(image: Image.Image) -> bool:
    """Whether several channels of 16 bits are stored, of an image that has not been loaded."""
    if not isinstance(image, ImageFile.ImageFile):
        return False
    stored = [part for tile in image.tile for part in (tile.args if isinstance(tile.args, tuple) else (tile.args,))]
    return not image.mode.startswith("I") and any(isinstance(part, str) and ";16" in part for part in stored)


def eight_bit(image: Image.Image, white_level: float | None, deep_colour: bool) -> tuple[Image.Image, Values | None]:
    """The same image as L, LA, RGB or RGBA, and the values of one that has more than 8 bits.

    Args:
        image: loaded.
        white_level: the value that becomes white; None for 65,535 of integers and 1 of floats.
        deep_colour: see `has_deep_colour`.

    Raises:
        BadImage: its values cannot be brought to 8 bits.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep_gray(image, white_level)
    shallow = _from_shallow(image)
    if not deep_colour:
        return shallow, None
    if white_level not in (None, WHITE_OF_16_BITS):
        raise BadImage("of 16 bits in colour only the upper 8 are read, so data.white_level cannot be applied")
    colours = np.asarray(shallow.convert("RGB"))
    return shallow, Values("colour", 257 * int(colours.min()), 257 * int(colours.max()))


def _from_deep_gray(image: Image.Image, white_level: float | None) -> tuple[Image.Image, Values]:
    stored = np.asarray(image)
    depth: Depth = "float" if image.mode == "F" else "integer"
    low, high = float(stored.min()), float(stored.max())
    usual = 1 if depth == "float" else WHITE_OF_16_BITS
    if not np.isfinite(low + high):
        raise BadImage("floating-point values that are not finite numbers")
    if white_level is None and (low < 0 or high > usual):
        kind = "floating-point" if depth == "float" else depth
        problem = f"{kind} values from {low:g} to {high:g} have no known white"
        raise BadImage(f"{problem}, as they lie outside 0 to {usual:,}; data.white_level says which it is")
    share = stored.astype(np.float32) / (white_level or usual)
    gray = Image.fromarray(np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8))
    if "transparency" in image.info:
        gray.putalpha(Image.fromarray(np.where(stored == image.info["transparency"], 0, 255).astype(np.uint8)))
    return gray, Values(depth, low, high)


def _from_shallow(image: Image.Image) -> Image.Image:
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # writers that leave the fourth byte empty mean no alpha
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        return image.convert("RGB")
    raise BadImage(f"pixels of mode {image.mode} are not read")
