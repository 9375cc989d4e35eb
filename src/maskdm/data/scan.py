"""One image of a source at a time: what its file says, its pixels, and why it cannot be used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from maskdm.data.decode import Content, Transform, decode_and_measure, probe
from maskdm.data.disk_cache import Decoded
from maskdm.data.limits import MAX_FILE_BYTES, MAX_PIXELS
from maskdm.data.pillow import BadImage
from maskdm.data.source import Item, Source, one_line
from maskdm.errors import ArgumentError, InputError


@dataclass(frozen=True)
class Limits:
    """What a single image may be at most.

    Attributes:
        file_bytes: of its file or member of an archive, unpacked.
        pixels: width times height.
    """

    file_bytes: int = MAX_FILE_BYTES
    pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class Scan:
    """What the first pass learns of one image.

    Attributes:
        item: the image in its source.
        sha256: of its file; "" where it cannot be read.
        width, height, gray, several: see `maskdm.data.decode.Header`.
        reason: why it is bad; None of a good one.
    """

    item: Item
    sha256: str
    width: int = 0
    height: int = 0
    gray: bool = False
    several: bool = False
    reason: str | None = None


_MAY_BE_LEFT_OUT = "repair or remove it, or set data.on_bad_image to skip"


class Rejects:
    """The images that cannot be read, with the reasons; the first one ends it all where none may be left out.

    Args:
        source: of the images.
        on_bad_image: `skip`, or `fail` to raise for the first.

    Raises:
        ArgumentError: `on_bad_image` is neither.
        InputError: none may be left out, and the source has left out some already.
    """

    def __init__(self, source: Source, on_bad_image: Literal["skip", "fail"]) -> None:
        if on_bad_image not in ("skip", "fail"):
            raise ArgumentError("on_bad_image", got=on_bad_image, wanted="skip or fail")
        self.reasons: dict[str, str] = {}
        self._source, self._fail = source, on_bad_image == "fail"
        for name, reason in source.left_out[:1] if self._fail else ():
            raise InputError(f"{source.path}/{name}", f"is left out ({reason})", remedy=_MAY_BE_LEFT_OUT)

    def add(self, scan: Scan, reason: str) -> None:
        """One more. Raises InputError where none may be left out."""
        if self._fail:
            problem = f"cannot be read ({reason})"
            raise InputError(self._source.where(scan.item), problem, remedy=_MAY_BE_LEFT_OUT)
        self.reasons[scan.item.name] = reason

    def __contains__(self, scan: Scan) -> bool:
        return scan.item.name in self.reasons


def scan_image(source: Source, item: Item, limits: Limits) -> Scan:
    """Reads one image's file, and its header."""
    try:
        content = source.read(item, limits.file_bytes)
    except OSError as error:
        return Scan(item, "", reason=error.strerror or one_line(error))
    sha256 = sha256_of(content)
    try:
        return Scan(item, sha256, *probe(content, limits.pixels))
    except BadImage as error:
        return Scan(item, sha256, reason=str(error))


def decode_image(source: Source, scan: Scan, transform: Transform, limits: Limits) -> Decoded | str:
    """The pixels of one image that was scanned, or why there are none.

    Raises:
        InputError: its file is not what it was then.
    """
    try:
        content = source.read(scan.item, limits.file_bytes)
        if sha256_of(content) == scan.sha256:
            pixels, values = decode_and_measure(content, transform, limits.pixels)
            return Decoded(pixels, sha256_of(pixels), values)
    except BadImage as error:
        return str(error)
    except OSError as error:
        raise changed(source, scan, error.strerror or one_line(error)) from error
    raise changed(source, scan, "its bytes are not the same as a moment ago")


def changed(source: Source, scan: Scan, what: str) -> InputError:
    """The error of an image that is not what it was a moment ago."""
    problem = f"changed while it was being read ({what})"
    return InputError(source.where(scan.item), problem, remedy="start again once nothing writes there")


def sha256_of(content: Content) -> str:
    """Of a file's bytes, or of an array's."""
    return hashlib.sha256(content if isinstance(content, bytes) else content.data).hexdigest()
