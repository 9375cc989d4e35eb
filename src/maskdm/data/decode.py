"""From one image's bytes to one array of pixels, the same way every time.

Whatever a file holds (1 to 16 bits, a palette, ink, transparency, a camera's rotation), it becomes `uint8` of one
height, width and channel count:

    open → upright → 8 bit → laid on the background → shorter side to size (Lanczos), centre crop

Transparency is resolved before resizing, so that invisible colours never bleed into visible ones; where it is kept,
Pillow premultiplies while it resizes, to the same end. An image that already has the size is not resampled: its
pixels come out as they went in. Colour profiles are ignored, as is usual for training sets.
"""

from __future__ import annotations

import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from maskdm.data.libtiff import silence_libtiff
from maskdm.errors import InputError

Pixels = NDArray[np.uint8]
"""Of one image, (H, W, C), or of many, (N, H, W, C)."""

Content = bytes | Pixels
"""What a source holds for one image: the bytes of a file, or (H, W) or (H, W, C) pixels of an array file."""

DECODER_VERSION = 1
"""Raised whenever the same file would give other pixels; caches and manifests name it."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""All that Pillow may try, whatever a file's suffix says: one of its other readers starts Ghostscript."""

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
_PNG_ORIENTATION_CHUNKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")

# What Pillow raised on half a million damaged files, and below that what its own readers guard against.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    zlib.error,
)

# Without a handler of its own, Pillow's log would reach stderr through Python's handler of last resort.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class BadImage(Exception):
    """One image cannot be used; the message is one line that says why. Never leaves `maskdm.data`."""


@dataclass(frozen=True)
class Transform:
    """What every image is turned into. Two equal transforms give equal pixels for equal files.

    Attributes:
        height, width: in pixels.
        channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA.
        background: RGB colour behind transparent images where alpha is not kept.
    """

    height: int
    width: int
    channels: int
    background: tuple[int, int, int] = (255, 255, 255)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.height, self.width, self.channels

    def describe(self) -> dict[str, object]:
        """All that decides the pixels, ready for JSON."""
        return {
            "version": DECODER_VERSION,
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "background": list(self.background),
            "filter": "lanczos",
            "crop": "centre",
        }


def decode(content: Content, transform: Transform) -> Pixels:
    """The (H, W, C) pixels of one image.

    Raises:
        BadImage: it cannot be read; nothing else is raised, however it is damaged.
    """
    if isinstance(content, np.ndarray):
        return fit_array(content, transform)
    with _pillow_at_work():
        return _fit(_eight_bit(_upright(_open(content))), transform)


def decode_file(path: Path, transform: Transform) -> Pixels:
    """`decode` for a file that a user names.

    Raises:
        InputError: it is not there, or cannot be read as an image.
    """
    try:
        return decode(path.read_bytes(), transform)
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", wanted="an image") from None
    except BadImage as error:
        raise InputError(str(path), f"cannot be read ({error})", wanted="an image") from None


def fit_array(array: Pixels, transform: Transform) -> Pixels:
    """`decode` for pixels that are already an array, (H, W) or (H, W, C) with C from 1 to 4."""
    with _pillow_at_work():
        return _fit(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array), transform)


def probe(content: Content) -> tuple[int, int, bool]:
    """Upright width, upright height, and whether it is gray (no colour, no alpha), from the header alone.

    Raises:
        BadImage: the header cannot be read.
    """
    if isinstance(content, np.ndarray):
        return content.shape[1], content.shape[0], content.ndim == 2 or content.shape[2] == 1
    with _pillow_at_work():
        image = _open(content)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Pillow releases differ in whether the size of an unread TIFF is the upright one: ask the tags.
            width, height = int(image.tag_v2[256]), int(image.tag_v2[257])
            orientation = image.tag_v2.get(_ORIENTATION)
        else:
            width, height = image.size
            # An orientation may follow a PNG's pixels, so to ask for it decodes them; most files say without.
            upright = image.format == "PNG" and not any(chunk in content for chunk in _PNG_ORIENTATION_CHUNKS)
            orientation = None if upright else image.getexif().get(_ORIENTATION)
        if orientation in _SIDEWAYS:
            width, height = height, width
        return width, height, _is_gray(image)


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.format == "TIFF":
        silence_libtiff()
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Pixels loaded and turned as the camera was held.

    `ImageOps.exif_transpose` would also write the remaining EXIF again, and it fails on good photographs whose other
    fields are odd.
    """
    image.load()
    turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _eight_bit(image: Image.Image) -> Image.Image:
    """The same image as L, LA, RGB or RGBA."""
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # so written, NaN fails too
            raise BadImage("floating-point values outside [0, 1] have no known white")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if image.mode.startswith("I"):
        return _from_sixteen_bit(image)
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        return image.convert("RGB")
    raise BadImage(f"pixels of mode {image.mode} are not read")


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise BadImage(f"integer values from {values.min()} to {values.max()} do not fit 16 bits")
    # 65535 / 255 = 257, so white stays white; Pillow's own conversion would clip at 255.
    gray = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:
        gray.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return gray


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


@contextmanager
def _pillow_at_work() -> Iterator[None]:
    """Turns all that Pillow raises on a bad file into `BadImage`, and keeps its warnings quiet."""
    with _hush:
        try:
            yield
        except UnidentifiedImageError as error:
            raise BadImage(f"not an image that can be read ({', '.join(FORMATS)})") from error
        except _DAMAGE as error:
            raise BadImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


class _Hush:
    """Silences the warnings that Pillow raises, in any number of threads.

    `warnings.catch_warnings` swaps a list that all threads share, so two threads that leave in another order than
    they came would restore the wrong one. Here the first one in swaps it and the last one out swaps it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


_hush = _Hush()
