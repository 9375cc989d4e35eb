"""The images of a source as one read-only array, decoded once and found again by their content.

Two passes. The first reads every file: its hash, its size, whether it is gray. That settles what all of them are
turned into, and the key of the cache, a hash of both. The second pass decodes, unless an entry of that key is there.
The key names contents and not files, so images that were moved or renamed find their entry again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from maskdm.data.decode import MODES, Pixels, Transform
from maskdm.data.depth import together
from maskdm.data.disk_cache import Decoded, Entry, find_or_build
from maskdm.data.labelled import LabelledImages
from maskdm.data.left_out import say_left_out
from maskdm.data.limits import MAX_FILE_BYTES, MAX_PIXELS
from maskdm.data.remarks import remark_on_several, remark_on_values
from maskdm.data.scan import Limits, Rejects, Scan, changed, decode_image, scan_image
from maskdm.data.source import Item, Source
from maskdm.data.stream import ImageArray, Reordered, Streamed
from maskdm.data.workers import CORES, in_order
from maskdm.errors import ArgumentError, InputError, shown
from maskdm.runtime.console import Console
from maskdm.runtime.host_memory import host_available_bytes, require_memory

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
    white_level: float | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    max_pixels: int = MAX_PIXELS,
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
        white_level: see `Transform`.
        max_file_bytes: of an image's file, or of its member of an archive, unpacked; larger ones are bad images.
        max_pixels: width times height of an image; larger ones are bad images.

    Raises:
        ArgumentError: an argument is of no known value.
        InputError: too few images, one that cannot be read where none may be left out or that changes meanwhile, or no
            room in the cache.
    """
    size, depth, colour = _parse_size(image_size), _parse_channels(channels), _parse_colour(background)
    rejects, limits = Rejects(source, on_bad_image), Limits(max_file_bytes, max_pixels)
    with console.bar("reading", len(source.items)) as bar:
        scans = list(in_order(lambda item: scan_image(source, item, limits), source.items, bar.update))
    for scan in scans:
        if scan.reason is not None:
            rejects.add(scan, scan.reason)
    readable = [scan for scan in scans if scan.reason is None]
    _require_enough(source, len(readable), rejects)
    transform = Transform(*(size or _auto_size(readable)), depth or _auto_channels(readable), colour, white_level)

    need, what = 3 * CORES * math.prod(transform.shape), f"decoding {CORES} images at once"
    remedy = "choose smaller images"
    require_memory(need, host_available_bytes(), "image_size", got=image_size, what=what, remedy=remedy)

    def decode_all() -> Iterator[Decoded | str]:
        with console.bar("decoding", len(readable)) as bar:
            size = math.prod(transform.shape)
            results = in_order(lambda scan: decode_image(source, scan, transform, limits), readable, bar.update, size)
            for scan, result in zip(readable, results, strict=True):
                if isinstance(result, str):
                    rejects.add(scan, result)
                yield result

    if keep:
        key = _key(transform, readable)
        entry = find_or_build(cache_dir, key, transform, len(readable), decode_all, console)
    else:
        entry = _streamed(source, readable, transform, limits, decode_all())
    for position, reason in entry.bad.items():
        rejects.add(readable[position], reason)
    _require_enough(source, len(scans) - len(rejects.reasons), rejects)
    found = _assemble(source, scans, rejects, transform, entry)
    say_left_out(source, found.bad, cache_dir if keep else None, console)
    several = [scan.item.name for scan in readable if scan.several]
    for line in (*remark_on_several(several), *remark_on_values(entry.values, white_level)):
        console.warn(line)
    return found


def _streamed(
    source: Source,
    readable: Sequence[Scan],
    transform: Transform,
    limits: Limits,
    decoded: Iterable[Decoded | str],
) -> Entry:
    """An entry that lies nowhere."""
    sha256_px, values, bad = [], [], {}
    for position, result in enumerate(decoded):
        if isinstance(result, str):
            bad[position] = result
        else:
            sha256_px.append(result.sha256)
            values += [] if result.values is None else [result.values]
    good = [scan for position, scan in enumerate(readable) if position not in bad]

    def again(row: int) -> Pixels:
        result = decode_image(source, good[row], transform, limits)
        if isinstance(result, str):
            raise changed(source, good[row], result)
        return result.pixels

    return Entry(Streamed((len(good), *transform.shape), again), tuple(sha256_px), bad, together(values))


def _assemble(source: Source, scans: Sequence[Scan], rejects: Rejects, transform: Transform, entry: Entry) -> ImageSet:
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


def _auto_size(scans: Sequence[Scan]) -> tuple[int, int]:
    sizes = {(scan.height, scan.width) for scan in scans}
    shared = sizes.pop()
    return shared if not sizes and max(shared) <= AUTO_KEEPS else (AUTO_SIZE, AUTO_SIZE)


def _auto_channels(scans: Sequence[Scan]) -> int:
    return 1 if all(scan.gray for scan in scans) else 3


def _labels(items: Iterable[Item]) -> NDArray[np.int64] | None:
    labels = [item.label for item in items if item.label is not None]
    return np.array(labels, np.int64) if labels else None


def _key(transform: Transform, scans: Iterable[Scan]) -> str:
    # With the size: bytes of an array do not tell 4 x 8 from 8 x 4.
    return _sha256_of_lines([transform.describe(), *([scan.sha256, scan.width, scan.height] for scan in scans)])


def _fingerprint(transform: Transform, scans: Iterable[Scan]) -> str:
    return _sha256_of_lines([transform.describe(), *sorted([scan.item.name, scan.sha256] for scan in scans)])


def _sha256_of_lines(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode("ascii") + b"\n")
    return digest.hexdigest()


def _require_enough(source: Source, good: int, rejects: Rejects) -> None:
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
