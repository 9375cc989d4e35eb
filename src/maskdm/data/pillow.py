"""Pillow, guarded: which formats it may try, how large an image may be, and what its failures become."""

from __future__ import annotations

import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from maskdm.data.libtiff import silence_libtiff

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""All that Pillow may try, whatever a file's suffix says: one of its other readers starts Ghostscript."""

PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Chunks of a PNG, and keywords of its texts, that may say how the camera was held."""

# What Pillow raised on half a million damaged files, and below that what its own readers guard against.
DAMAGE = (
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
"""What Pillow raises on a file that is damaged."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_MAX_TEXT = 2**20  # Pillow raises where a text or profile of a PNG unpacks to more

# Without a handler of its own, Pillow's log would reach stderr through Python's handler of last resort.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class BadImage(Exception):
    """One image cannot be used; the message is one line that says why. Never leaves `maskdm.data`."""


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """An image whose header has been read; to be called `at_work`.

    Raises:
        BadImage: it has more than `max_pixels` pixels, which are not decoded.
    """
    image = Image.open(io.BytesIO(without_text(data)), formats=FORMATS)
    if image.format == "TIFF":
        silence_libtiff()
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(f"{width:,} x {height:,} pixels are more than data.max_pixels allows, {max_pixels:,}")
    return image


def without_text(data: bytes) -> bytes:
    """A PNG without its colour profile and its texts, of which Pillow refuses more than 1 MB; other files as they are.

    Texts that may say how the camera was held stay while they are small enough.
    """
    if not data.startswith(_PNG_SIGNATURE) or not any(kind in data for kind in _PNG_TEXT):
        return data
    kept, start = [data[:8]], 8
    while start + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        kind, end = data[start + 4 : start + 8], start + 12 + length
        if kind not in _PNG_TEXT or _says_orientation(kind, data[start + 8 : end - 4]):
            kept.append(data[start:end])
        start = end
    kept.append(data[start:])
    return b"".join(kept)


def _says_orientation(kind: bytes, content: bytes) -> bool:
    """Whether a text chunk is one of those that may, and small enough for Pillow."""
    keyword, _, rest = content.partition(b"\0")
    if kind == b"iCCP" or keyword not in PNG_ORIENTATION or len(content) > _MAX_TEXT:
        return False
    packed = (
        rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1] if kind == b"iTXt" and rest[:1] == b"\1" else b""
    )
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, _MAX_TEXT)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail


@contextmanager
def at_work() -> Iterator[None]:
    """Turns all that Pillow raises on a bad file into `BadImage`, and keeps its warnings quiet."""
    with _hush:
        try:
            yield
        except UnidentifiedImageError as error:
            raise BadImage(f"not an image that can be read ({', '.join(FORMATS)})") from error
        except DAMAGE as error:
            raise BadImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


class _Hush:
    """Silences the warnings that Pillow raises, in any number of threads, and suspends its own limit on pixels.

    `warnings.catch_warnings` swaps a list that all threads share, so two threads that leave in another order than
    they came would restore the wrong one. Here the first one in swaps it and the last one out swaps it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()
        self._max_pixels: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._max_pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # see `open_image`
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = self._max_pixels


_hush = _Hush()
