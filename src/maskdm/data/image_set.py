"""The images of a source as one read-only array, decoded once and found again by their content.

Two passes. The first reads every file: its hash, its size, whether it is gray. That settles what all of them are
turned into, and the key of the cache, a hash of both. The second pass decodes, unless an entry of that key is there.
The key names contents and not files, so images that were moved or renamed find their entry again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from maskdm.data.decode import MODES, BadImage, Content, Pixels, Transform, decode, probe
from maskdm.data.disk_cache import Decoded, Entry, find_or_build
from maskdm.data.labelled import LabelledImages
from maskdm.data.left_out import say_left_out
from maskdm.data.source import Item, Source, one_line
from maskdm.data.stream import ImageArray, Reordered, Streamed
from maskdm.data.workers import in_order
from maskdm.errors import ArgumentError, InputError, shown
from maskdm.runtime.console import Console

MIN_IMAGES = 8
"""Fewer cannot be split into members, held-out and calibration images with anything left to learn from."""

AUTO_SIZE = 64
AUTO_KEEPS = 128
"""With `image_size: auto`, images that share one size keep it up to this long side; all others become AUTO_SIZE."""


@dataclass(frozen=True)
class ImageSet:
    """The N good images of a source in its order, one row each, and what was made of them.

    Attributes:
        images: (N, H, W, C) uint8, mapped from the cache or decoded when asked for.
        names: of the images in their source.
        labels: (N,) class indices, or None.
        class_names: that labels index; () without labels.
        sha256: of the files, or of the arrays.
        sha256_px: of the decoded pixels.
        source_sizes: (width, height) before resizing, upright.
        bad: name and reason of each image that could not be read.
        bad_sha256: of their files; "" where even that could not be read.
        transform: what all were turned into.
        fingerprint: a hash that changes with every image added, removed, renamed or changed, the bad ones too.
    """

    images: ImageArray
    names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    sha256: tuple[str, ...]
    sha256_px: tuple[str, ...]
    source_sizes: tuple[tuple[int, int], ...]
    bad: tuple[tuple[str, str], ...]
    bad_sha256: tuple[str, ...]
    transform: Transform
    fingerprint: str

    def __len__(self) -> int:
        """Number of good images, N."""
        return len(self.names)

    def in_order(self, order: NDArray[np.int64]) -> ImageSet:
        """The same images, each row being row `order` of these; (N,), every row once."""
        if np.array_equal(order, np.arange(len(self))):
            return self
        return replace(
            self,
            images=Reordered(self.images, order),
            names=tuple(self.names[row] for row in order),
            labels=None if self.labels is None else self.labels[order],
            sha256=tuple(self.sha256[row] for row in order),
            sha256_px=tuple(self.sha256_px[row] for row in order),
            source_sizes=tuple(self.source_sizes[row] for row in order),
        )

    def take(self, rows: NDArray[np.int64] | None = None, groups: Sequence[str] | None = None) -> LabelledImages:
        """The images in `rows`, or all, in memory, with the hashes of their pixels as ids.

        Args:
            rows: which; None for all.
            groups: of all images of the set, to be carried along.
        """
        rows = np.arange(len(self)) if rows is None else rows
        return LabelledImages(
            self.images[rows],
            tuple(self.sha256_px[row] for row in rows),
            None if self.labels is None else self.labels[rows],
            None if groups is None else tuple(groups[row] for row in rows),
        )


@dataclass(frozen=True)
class _Scan:
    """What the first pass learns of one image. `reason` says why it is bad; `sha256` is "" if it cannot be read."""

    item: Item
    sha256: str
    width: int = 0
    height: int = 0
    gray: bool = False
    reason: str | None = None


_MAY_BE_LEFT_OUT = "repair or remove it, or set data.on_bad_image to skip"


class _Rejects:
    """The images that cannot be read, with the reasons; the first one ends it all where none may be left out."""

    def __init__(self, source: Source, on_bad_image: Literal["skip", "fail"]) -> None:
        if on_bad_image not in ("skip", "fail"):
            raise ArgumentError("on_bad_image", got=on_bad_image, wanted="skip or fail")
        self.reasons: dict[str, str] = {}
        self._source, self._fail = source, on_bad_image == "fail"
        for name, reason in source.left_out[:1] if self._fail else ():
            raise InputError(f"{source.path}/{name}", f"is left out ({reason})", remedy=_MAY_BE_LEFT_OUT)

    def add(self, scan: _Scan, reason: str) -> None:
        if self._fail:
            problem = f"cannot be read ({reason})"
            raise InputError(self._source.where(scan.item), problem, remedy=_MAY_BE_LEFT_OUT)
        self.reasons[scan.item.name] = reason

    def __contains__(self, scan: _Scan) -> bool:
        return scan.item.name in self.reasons


def load_images(
    source: Source,
    *,
    cache_dir: Path,
    console: Console,
    image_size: int | tuple[int, int] | Literal["auto"] = "auto",
    channels: int | Literal["auto"] = "auto",
    background: str = "white",
    on_bad_image: Literal["skip", "fail"] = "skip",
    keep: bool = True,
) -> ImageSet:
    """Reads, decodes and caches all images of a source.

    Args:
        source: the images, listed.
        cache_dir: where decoded images are kept.
        console: warns of images that had to be left out, and shows progress.
        image_size: pixels, N or (height, width), or auto.
        channels: 1 to 4, or auto: 1 if every image is gray, else 3.
        background: colour behind transparent images.
        on_bad_image: whether an image that cannot be read is left out or ends it.
        keep: False writes nothing: images are decoded once to be known, and again whenever they are asked for.

    Raises:
        ArgumentError: an argument is of no known value.
        InputError: too few images, one that cannot be read where none may be left out or that changes meanwhile, or no
            room in the cache.
    """
    size, depth, colour = _parse_size(image_size), _parse_channels(channels), _parse_colour(background)
    rejects = _Rejects(source, on_bad_image)
    with console.bar("reading", len(source.items)) as bar:
        scans = list(in_order(lambda item: _scan(source, item), source.items, bar.update))
    for scan in scans:
        if scan.reason is not None:
            rejects.add(scan, scan.reason)
    readable = [scan for scan in scans if scan.reason is None]
    _require_enough(source, len(readable), rejects)
    transform = Transform(*(size or _auto_size(readable)), depth or _auto_channels(readable), colour)

    def decode_all() -> Iterator[Decoded]:
        with console.bar("decoding", len(readable)) as bar:
            results = in_order(lambda scan: _decode(source, scan, transform), readable, bar.update)
            for scan, result in zip(readable, results, strict=True):
                if isinstance(result, str):
                    rejects.add(scan, result)
                yield result

    if keep:
        key = _key(transform, readable)
        entry = find_or_build(cache_dir, key, transform, len(readable), decode_all, console.warn)
    else:
        entry = _streamed(source, readable, transform, decode_all())
    for position, reason in entry.bad.items():
        rejects.add(readable[position], reason)
    _require_enough(source, len(scans) - len(rejects.reasons), rejects)
    found = _assemble(source, scans, rejects, transform, entry)
    say_left_out(source, found.bad, cache_dir if keep else None, console)
    return found


def _streamed(source: Source, readable: Sequence[_Scan], transform: Transform, decoded: Iterable[Decoded]) -> Entry:
    """An entry that lies nowhere."""
    sha256_px: list[str] = []
    bad: dict[int, str] = {}
    for position, result in enumerate(decoded):
        if isinstance(result, str):
            bad[position] = result
        else:
            sha256_px.append(result[1])
    good = [scan for position, scan in enumerate(readable) if position not in bad]

    def again(row: int) -> Pixels:
        result = _decode(source, good[row], transform)
        if isinstance(result, str):
            raise _changed(source, good[row], result)
        return result[0]

    return Entry(Streamed((len(good), *transform.shape), again), tuple(sha256_px), bad)


def _assemble(
    source: Source, scans: Sequence[_Scan], rejects: _Rejects, transform: Transform, entry: Entry
) -> ImageSet:
    good = [scan for scan in scans if scan not in rejects]
    bad = [scan for scan in scans if scan in rejects]
    return ImageSet(
        images=entry.images,
        names=tuple(scan.item.name for scan in good),
        labels=_labels([scan.item for scan in good]),
        class_names=source.class_names,
        sha256=tuple(scan.sha256 for scan in good),
        sha256_px=entry.sha256_px,
        source_sizes=tuple((scan.width, scan.height) for scan in good),
        bad=tuple((scan.item.name, rejects.reasons[scan.item.name]) for scan in bad),
        bad_sha256=tuple(scan.sha256 for scan in bad),
        transform=transform,
        fingerprint=_fingerprint(transform, scans),
    )


# --- the settings ----------------------------------------------------------------------------------------------------


def _parse_size(image_size: object) -> tuple[int, int] | None:
    """(height, width), or None for auto."""
    match image_size:
        case "auto":
            return None
        case int(side) if side > 0 and not isinstance(side, bool):
            return side, side
        case [int(height), int(width)] if min(height, width) > 0:
            return height, width
    raise ArgumentError("image_size", got=image_size, wanted="auto, 64 or [height, width]")


def _parse_channels(channels: int | Literal["auto"]) -> int | None:
    """Their number, or None for auto."""
    if channels == "auto":
        return None
    if channels not in MODES:
        raise ArgumentError("channels", got=channels, wanted="auto, 1, 2, 3 or 4")
    return channels


def _parse_colour(background: str) -> tuple[int, int, int]:
    try:
        match ImageColor.getrgb(background):
            case (red, green, blue):
                return red, green, blue
    except (ValueError, TypeError, AttributeError):
        pass  # not a colour; perhaps not even text
    raise ArgumentError("background", got=background, wanted="an opaque colour such as white or #808080")


def _auto_size(scans: Sequence[_Scan]) -> tuple[int, int]:
    sizes = {(scan.height, scan.width) for scan in scans}
    shared = sizes.pop()
    return shared if not sizes and max(shared) <= AUTO_KEEPS else (AUTO_SIZE, AUTO_SIZE)


def _auto_channels(scans: Sequence[_Scan]) -> int:
    return 1 if all(scan.gray for scan in scans) else 3


# --- one image -------------------------------------------------------------------------------------------------------


def _scan(source: Source, item: Item) -> _Scan:
    try:
        content = source.read(item)
    except OSError as error:
        return _Scan(item, "", reason=error.strerror or one_line(error))
    sha256 = _sha256(content)
    try:
        return _Scan(item, sha256, *probe(content))
    except BadImage as error:
        return _Scan(item, sha256, reason=str(error))


def _sha256(content: Content) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.data).hexdigest()


def _decode(source: Source, scan: _Scan, transform: Transform) -> Decoded:
    """The pixels and their hash, or why there are none."""
    try:
        content = source.read(scan.item)
        if _sha256(content) == scan.sha256:
            pixels = decode(content, transform)
            return pixels, _sha256(pixels)
    except BadImage as error:
        return str(error)
    except OSError as error:
        raise _changed(source, scan, error.strerror or one_line(error)) from error
    raise _changed(source, scan, "its bytes are not the same as a moment ago")


def _changed(source: Source, scan: _Scan, what: str) -> InputError:
    problem = f"changed while it was being read ({what})"
    return InputError(source.where(scan.item), problem, remedy="start again once nothing writes there")


def _labels(items: Iterable[Item]) -> NDArray[np.int64] | None:
    labels = [item.label for item in items if item.label is not None]
    return np.array(labels, np.int64) if labels else None


# --- all of them -----------------------------------------------------------------------------------------------------


def _key(transform: Transform, scans: Iterable[_Scan]) -> str:
    # With the size: bytes of an array do not tell 4 x 8 from 8 x 4.
    return _sha256_of_lines([transform.describe(), *([scan.sha256, scan.width, scan.height] for scan in scans)])


def _fingerprint(transform: Transform, scans: Iterable[_Scan]) -> str:
    return _sha256_of_lines([transform.describe(), *sorted([scan.item.name, scan.sha256] for scan in scans)])


def _sha256_of_lines(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode("ascii") + b"\n")
    return digest.hexdigest()


def _require_enough(source: Source, good: int, rejects: _Rejects) -> None:
    count = len(rejects.reasons)
    if good == 0:
        name, reason = next(iter(rejects.reasons.items()))
        problem = f"none of its {count} images can be read, the first {shown(name)} ({reason})"
        raise InputError(str(source.path), problem, remedy="repair or export them again")
    if good < MIN_IMAGES:
        unreadable = f" (and {count} that cannot be read)" if count else ""
        raise InputError(
            str(source.path),
            f"holds {good} images{unreadable}",
            wanted=f"at least {MIN_IMAGES}, and better a few thousand",
            remedy="add more",
        )
