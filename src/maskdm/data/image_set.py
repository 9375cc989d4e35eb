"""The pictures of a source as one read-only array, decoded once and found again by their content.

Two passes. The first reads every file: its hash, its size, whether it is gray. That settles what all of them are
turned into, and the key of the cache, a hash of both. The second pass decodes, unless an entry of that key is there.
The key names contents and not files, so pictures that were moved or renamed find their entry again.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from maskdm.data.decode import MODES, BadImage, Content, Pixels, Transform, decode, probe
from maskdm.data.disk_cache import Decoded, Entry, find_or_build
from maskdm.data.sources import Item, Source, one_line, shown
from maskdm.data.stream import Images, Streamed
from maskdm.data.workers import Progress, in_order, silent
from maskdm.errors import InputError

MIN_IMAGES = 8
"""Fewer cannot be split into members, held-out and calibration pictures with anything left to learn from."""

AUTO_SIZE = 64
AUTO_KEEPS = 128
"""With `image_size: auto`, pictures that share one size keep it up to this long side; all others become AUTO_SIZE."""

_NAMED = 10


@dataclass(frozen=True)
class ImageSet:
    """The good pictures of a source in its order, one row each; `bad` names the others, with the reason."""

    images: Images
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
        return len(self.names)


@dataclass(frozen=True)
class _Seen:
    """What the first pass learns of one picture. `reason` says why it is bad; `sha256` is "" if it cannot be read."""

    item: Item
    sha256: str
    width: int = 0
    height: int = 0
    gray: bool = False
    reason: str | None = None


def load_images(
    source: Source,
    *,
    cache_dir: Path,
    say: Callable[[str], None],
    image_size: int | tuple[int, int] | Literal["auto"] = "auto",
    channels: int | Literal["auto"] = "auto",
    background: str = "white",
    on_bad_image: Literal["skip", "fail"] = "skip",
    keep: bool = True,
    progress: Progress = silent,
) -> ImageSet:
    """Reads, decodes and caches all pictures of `source`. `say` is told of pictures that had to be left out.

    With `keep=False` nothing is written: pictures are decoded once to be known, and again whenever they are asked for.
    """
    settle = _settler(image_size, channels, background)
    if on_bad_image not in ("skip", "fail"):
        raise InputError(f"data.on_bad_image is {on_bad_image!r}, wanted 'skip' or 'fail'; write one of these")
    reasons: dict[str, str] = {}

    def leave_out(picture: _Seen, reason: str) -> None:
        if on_bad_image == "fail":
            raise InputError(
                f"{shown(picture.item.name)} in {shown(source.path)} cannot be read: {reason}; "
                "repair or remove it, or set data.on_bad_image to skip"
            )
        reasons[picture.item.name] = reason

    with progress("reading", len(source.items)) as bar:
        seen = list(in_order(lambda item: _look(source, item), source.items, bar))
    for picture in seen:
        if picture.reason is not None:
            leave_out(picture, picture.reason)
    readable = [picture for picture in seen if picture.reason is None]
    _require_enough(source, len(readable), reasons)
    transform = settle(readable)

    def decode_all() -> Iterator[Decoded | str]:
        with progress("decoding", len(readable)) as bar:
            results = in_order(lambda picture: _decode(source, picture, transform), readable, bar)
            for picture, result in zip(readable, results, strict=True):
                if isinstance(result, str):
                    leave_out(picture, result)
                yield result

    if keep:
        entry = find_or_build(cache_dir, _key(transform, readable), transform, len(readable), decode_all, say)
    else:
        entry = _streamed(source, readable, transform, decode_all())
    for position, reason in entry.bad.items():
        leave_out(readable[position], reason)
    bad = [picture for picture in seen if picture.item.name in reasons]
    _require_enough(source, len(seen) - len(bad), reasons)
    _tell(bad, reasons, say)
    return _assemble(source, seen, reasons, transform, entry)


def _streamed(
    source: Source, readable: Sequence[_Seen], transform: Transform, decoded: Iterable[Decoded | str]
) -> Entry:
    """An entry that lies nowhere."""
    sha256_px: list[str] = []
    bad: dict[int, str] = {}
    for position, result in enumerate(decoded):
        if isinstance(result, str):
            bad[position] = result
        else:
            sha256_px.append(result.sha256)
    good = [picture for position, picture in enumerate(readable) if position not in bad]

    def again(picture: _Seen) -> Pixels:
        result = _decode(source, picture, transform)
        if isinstance(result, str):
            raise _changed(source, picture, result)
        return result.pixels

    return Entry(Streamed(good, transform.shape, again), tuple(sha256_px), bad)


def _assemble(
    source: Source, seen: Sequence[_Seen], reasons: Mapping[str, str], transform: Transform, entry: Entry
) -> ImageSet:
    good = [picture for picture in seen if picture.item.name not in reasons]
    bad = [picture for picture in seen if picture.item.name in reasons]
    return ImageSet(
        images=entry.images,
        names=tuple(picture.item.name for picture in good),
        labels=_labels([picture.item for picture in good]),
        class_names=source.class_names,
        sha256=tuple(picture.sha256 for picture in good),
        sha256_px=entry.sha256_px,
        source_sizes=tuple((picture.width, picture.height) for picture in good),
        bad=tuple((picture.item.name, reasons[picture.item.name]) for picture in bad),
        bad_sha256=tuple(picture.sha256 for picture in bad),
        transform=transform,
        fingerprint=_fingerprint(transform, seen),
    )


# --- the settings ----------------------------------------------------------------------------------------------------


def _settler(
    image_size: int | tuple[int, int] | Literal["auto"], channels: int | Literal["auto"], background: str
) -> Callable[[Sequence[_Seen]], Transform]:
    """The transform that these settings mean, as soon as the pictures are known. Wrong settings fail at once."""
    size: tuple[int, int] | None
    match image_size:
        case "auto":
            size = None
        case int(side) if side > 0 and not isinstance(side, bool):
            size = (side, side)
        case [int(height), int(width)] if min(height, width) > 0:
            size = (height, width)
        case _:
            raise InputError(
                f"data.image_size is {image_size!r}, wanted auto, 64 or [height, width]; write one of these"
            )
    if channels != "auto" and channels not in MODES:
        raise InputError(f"data.channels is {channels!r}, wanted auto, 1, 2, 3 or 4; write one of these")
    colour = _colour(background)

    def settle(pictures: Sequence[_Seen]) -> Transform:
        height, width = size or _auto_size(pictures)
        depth = (1 if all(picture.gray for picture in pictures) else 3) if channels == "auto" else channels
        return Transform(height, width, depth, colour)

    return settle


def _colour(background: str) -> tuple[int, int, int]:
    try:
        match ImageColor.getrgb(background):
            case (red, green, blue):
                return red, green, blue
    except (ValueError, TypeError, AttributeError):
        pass  # not a colour; perhaps not even text
    raise InputError(
        f"data.background is {background!r}, wanted an opaque colour such as white or #808080; write one of these"
    )


def _auto_size(pictures: Sequence[_Seen]) -> tuple[int, int]:
    sizes = {(picture.height, picture.width) for picture in pictures}
    shared = sizes.pop()
    return shared if not sizes and max(shared) <= AUTO_KEEPS else (AUTO_SIZE, AUTO_SIZE)


# --- one picture -----------------------------------------------------------------------------------------------------


def _look(source: Source, item: Item) -> _Seen:
    try:
        content = source.read(item)
    except OSError as error:
        return _Seen(item, "", reason=error.strerror or one_line(error))
    sha256 = _sha256(content)
    try:
        return _Seen(item, sha256, *probe(content))
    except BadImage as error:
        return _Seen(item, sha256, reason=str(error))


def _sha256(content: Content) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.data).hexdigest()


def _decode(source: Source, picture: _Seen, transform: Transform) -> Decoded | str:
    """The pixels, or why there are none."""
    try:
        content = source.read(picture.item)
        if _sha256(content) == picture.sha256:
            return Decoded.of(decode(content, transform))
    except BadImage as error:
        return str(error)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise _changed(source, picture, reason) from error
    raise _changed(source, picture, "its bytes are not the same as a moment ago")


def _changed(source: Source, picture: _Seen, what: str) -> InputError:
    return InputError(
        f"{shown(picture.item.name)} in {shown(source.path)} changed while it was being read: {what}; "
        "start again once nothing writes there"
    )


def _labels(items: Iterable[Item]) -> NDArray[np.int64] | None:
    labels = [item.label for item in items if item.label is not None]
    return np.array(labels, np.int64) if labels else None


# --- all of them -----------------------------------------------------------------------------------------------------


def _key(transform: Transform, pictures: Iterable[_Seen]) -> str:
    # With the size: bytes of an array do not tell 4 x 8 from 8 x 4.
    return _sha256_of_lines(
        [transform.describe(), *([picture.sha256, picture.width, picture.height] for picture in pictures)]
    )


def _fingerprint(transform: Transform, seen: Iterable[_Seen]) -> str:
    """Changes with every picture added, removed, renamed or changed, the bad ones too."""
    return _sha256_of_lines(
        [transform.describe(), *sorted([picture.item.name, picture.sha256] for picture in seen)],
    )


def _sha256_of_lines(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode("ascii") + b"\n")
    return digest.hexdigest()


def _require_enough(source: Source, good: int, reasons: Mapping[str, str]) -> None:
    if good == 0:
        name, reason = next(iter(reasons.items()))
        raise InputError(
            f"none of the {len(reasons)} pictures in {shown(source.path)} can be read, the first {shown(name)}: "
            f"{reason}; repair or export them again"
        )
    if good < MIN_IMAGES:
        unreadable = f" (and {len(reasons)} that cannot be read)" if reasons else ""
        raise InputError(
            f"found {good} pictures in {shown(source.path)}{unreadable}; at least {MIN_IMAGES} are needed, "
            "and a few thousand are better: add more"
        )


def _tell(bad: Sequence[_Seen], reasons: Mapping[str, str], say: Callable[[str], None]) -> None:
    if not bad:
        return
    named = ", ".join(f"{shown(picture.item.name)} ({reasons[picture.item.name]})" for picture in bad[:_NAMED])
    more = f", and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    noun = "picture" if len(bad) == 1 else "pictures"
    say(f"left out {len(bad)} {noun} that cannot be read: {named}{more}")
