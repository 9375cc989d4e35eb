"""From one image's bytes to one array of pixels, the same way every time.

Whatever a file holds (1 to 32 bits, a palette, ink, transparency, a camera's rotation), it becomes `uint8` of one
height, width and channel count:

    open → upright → 8 bit → laid on the background → shorter side to size (Lanczos), centre crop

Transparency is resolved before resizing, so that invisible colours never bleed into visible ones; where it is kept,
Pillow premultiplies while it resizes, to the same end. An image that already has the size is not resampled: its
pixels come out as they went in. Colour profiles are ignored, as is usual for training sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin

from maskdm.data.depth import Values, eight_bit, has_deep_colour
from maskdm.data.limits import MAX_PIXELS, read_regular
from maskdm.data.pillow import DAMAGE, PNG_ORIENTATION, BadImage, at_work, open_image
from maskdm.errors import InputError

Pixels = NDArray[np.uint8]
"""Of one image, (H, W, C), or of many, (N, H, W, C)."""

Content = bytes | Pixels
"""What a source holds for one image: the bytes of a file, or (H, W) or (H, W, C) pixels of an array file."""

DECODER_VERSION = 2
"""Raised whenever the same file would give other pixels; caches and manifests name it."""

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's name for each number of channels."""

_ORIENTATION = 274  # the EXIF and TIFF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_SEVERAL = ("GIF", "TIFF", "PNG", "WEBP")  # not the small previews that cameras put into a JPEG


@dataclass(frozen=True)
class Transform:
    """What every image is turned into. Two equal transforms give equal pixels for equal files.

    Attributes:
        height, width: in pixels.
        channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA.
        background: RGB colour behind transparent images where alpha is not kept.
        white_level: the value that is white in gray images of more than 8 bits; None for 65,535 of integers and 1 of
            floats.
    """

    height: int
    width: int
    channels: int
    background: tuple[int, int, int] = (255, 255, 255)
    white_level: float | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.height, self.width, self.channels

    def describe(self) -> dict[str, object]:
        """All that decides the pixels, ready for JSON."""
        described: dict[str, object] = {
            "version": DECODER_VERSION,
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "background": list(self.background),
            "filter": "lanczos",
            "crop": "centre",
        }
        return described if self.white_level is None else described | {"white_level": self.white_level}


class Header(NamedTuple):
    """What an image's header says.

    Attributes:
        width, height: in pixels, upright.
        gray: it has no colour and no alpha.
        several: it has more frames or pages than the first, which is the one that is decoded.
    """

    width: int
    height: int
    gray: bool
    several: bool


def decode(content: Content, transform: Transform, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The (H, W, C) pixels of one image.

    Raises:
        BadImage: it cannot be read, or has more than `max_pixels` pixels; nothing else is raised, however it is
            damaged.
    """
    return decode_and_measure(content, transform, max_pixels)[0]


def decode_and_measure(
    content: Content, transform: Transform, max_pixels: int = MAX_PIXELS
) -> tuple[Pixels, Values | None]:
    """The same, and what values an image of more than 8 bits holds.

    Raises:
        BadImage: see `decode`.
    """
    if isinstance(content, np.ndarray):
        return fit_array(content, transform), None
    with at_work():
        image = open_image(content, max_pixels)
        deep_colour = has_deep_colour(image)
        image, values = eight_bit(_upright(image), transform.white_level, deep_colour)
        return _fit(image, transform), values


def decode_file(path: Path, transform: Transform) -> Pixels:
    """`decode` for a file that a user names.

    Raises:
        InputError: it is not there, or cannot be read as an image.
    """
    try:
        return decode(read_regular(path), transform)
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror or error})", wanted="an image") from None
    except BadImage as error:
        raise InputError(str(path), f"cannot be read ({error})", wanted="an image") from None


def fit_array(array: Pixels, transform: Transform) -> Pixels:
    """`decode` for pixels that are already an array, (H, W) or (H, W, C) with C from 1 to 4."""
    with at_work():
        return _fit(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array), transform)


def probe(content: Content, max_pixels: int = MAX_PIXELS) -> Header:
    """What an image's header says; its pixels stay packed.

    Raises:
        BadImage: the header cannot be read, or there are more than `max_pixels` pixels.
    """
    if isinstance(content, np.ndarray):
        return Header(content.shape[1], content.shape[0], content.ndim == 2 or content.shape[2] == 1, False)
    with at_work():
        image = open_image(content, max_pixels)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Pillow releases differ in whether the size of an unread TIFF is the upright one: ask the tags.
            width, height = int(image.tag_v2[256]), int(image.tag_v2[257])
            orientation = image.tag_v2.get(_ORIENTATION)
        else:
            width, height = image.size
            # An orientation may follow a PNG's pixels, so to ask for it decodes them; most files say without.
            upright = image.format == "PNG" and not any(chunk in content for chunk in PNG_ORIENTATION)
            orientation = None if upright else _orientation(image)
        if orientation in _SIDEWAYS:
            width, height = height, width
        gray = _is_gray(image)
        return Header(width, height, gray, image.format in _SEVERAL and bool(getattr(image, "is_animated", False)))


def _upright(image: Image.Image) -> Image.Image:
    """Pixels loaded and turned as the camera was held.

    `ImageOps.exif_transpose` would also write the remaining EXIF again, and it fails on good photographs whose other
    fields are odd.
    """
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF tag, or 1 where there is none or it cannot be read: notes about a picture never cost the picture."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except DAMAGE:
        return 1
    return found if isinstance(found, int) else 1


def _fit(image: Image.Image, transform: Transform) -> Pixels:
    mode = MODES[transform.channels]
    if image.has_transparency_data and transform.channels in (1, 3):
        paper = Image.new("RGBA", image.size, transform.background)
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    image = ImageOps.fit(image.convert(mode), (transform.width, transform.height), Image.Resampling.LANCZOS)
    return np.array(image).reshape(transform.shape)


def _is_gray(image: Image.Image) -> bool:
    if image.has_transparency_data:
        return False
    if image.mode == "P" and image.palette is not None:
        swatch = Image.new("P", (1, 1))  # `getpalette` of the image itself would decode all of it
        swatch.putpalette(image.palette)
        colours = np.array(swatch.getpalette("RGB") or []).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in ("1", "L", "F") or image.mode.startswith("I")
