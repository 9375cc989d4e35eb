"""The cache on disk: one folder for each key, whole or not there.

    <folder>/<key>/images.npy    (N, H, W, C) uint8, the good images in order
    <folder>/<key>/index.json    their pixel hashes, which images were bad, and a hash of all that

An entry is written under a temporary name and renamed into place, so any number of processes may build it at once and
any may be killed. What a killed one left is swept up by the next to come. Every byte
of an entry is compared with its hashes before it is used, and one that differs is built again: reading it whole costs
less than the pass over the files that comes before.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskdm.data.decode import Pixels, Transform
from maskdm.data.depth import Values, together
from maskdm.data.stream import ImageArray
from maskdm.data.workers import in_order
from maskdm.errors import InputError
from maskdm.files import flush, orphaned, sweep, temporary_name
from maskdm.runtime.console import Console

_FORMAT = 2
_BLOCK = 2**20  # bytes that a thread compares at once
_DAY = 24 * 60 * 60
_ATTEMPTS = 3


@dataclass(frozen=True)
class Decoded:
    """One image.

    Attributes:
        pixels: (H, W, C) uint8.
        sha256: of the pixels.
        values: of one that has more than 8 bits, else None.
    """

    pixels: Pixels
    sha256: str
    values: Values | None = None


@dataclass(frozen=True)
class Entry:
    """What the cache holds of a set of images.

    Attributes:
        images: (N, H, W, C) uint8, the good images in order.
        sha256_px: of their pixels.
        bad: why each other image is not among them, by its position in the set.
        values: of those that have more than 8 bits, one for each depth.
    """

    images: ImageArray
    sha256_px: tuple[str, ...]
    bad: dict[int, str]
    values: tuple[Values, ...] = ()


class _Unsound(Exception):
    """An entry that cannot be used; the message says why."""


def find_or_build(
    folder: Path,
    key: str,
    transform: Transform,
    count: int,
    decode_all: Callable[[], Iterable[Decoded | str]],
    console: Console,
) -> Entry:
    """The entry of `key`, made if it is not there or damaged.

    Args:
        folder: of the cache.
        key: names the images and the transform.
        transform: gives the shape of the pixels.
        count: of all images, the bad ones too.
        decode_all: gives each of `count` images in order, or the reason why there is none.
        console: is told of an entry that was damaged, and shows how far it has been compared with its hashes.

    Raises:
        InputError: the folder cannot be written, or has no room.
    """
    need = count * int(np.prod(transform.shape)) + 128 * count + 2**20  # pixels, index, and some room
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        for _ in range(_ATTEMPTS):
            entry = None
            try:
                entry = _find(folder / key, transform, count, console)
            except _Unsound as error:
                console.warn(f"the cache entry {folder / key} {error} and is built again")
                _discard(folder / key)
            if entry is None:
                _require_space(folder, need)
                entry = _build(folder / key, transform, count, decode_all())
            if entry is not None:
                return entry
    except OSError as error:
        raise _unusable(folder, need, error.strerror or str(error)) from error
    raise _unusable(folder, need, "its entries are damaged as soon as they are written")


def _find(path: Path, transform: Transform, count: int, console: Console) -> Entry | None:
    """The entry at `path`, every byte of it as it was written, or None if there is none.

    Raises:
        _Unsound: there is one that cannot be used.
    """
    if not path.exists():
        return None
    try:
        entry = _read(path, transform, count)
        sound = _has_hashes(entry, console)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, RecursionError):
        raise _Unsound("is damaged") from None
    if not sound:
        raise _Unsound("is damaged")
    return entry


def _read(path: Path, transform: Transform, count: int) -> Entry:
    """An entry whose index has its hash, and whose pixels have the shape and size that the index says.

    Raises:
        _Unsound: it is of another format.
        OSError, ValueError, KeyError, TypeError, EOFError, RecursionError: it is damaged.
    """
    index = json.loads((path / "index.json").read_bytes())
    if index["format"] == 1 and index["transform"] and index["sha256_px"]:
        raise _Unsound("was made by an earlier version")
    if index.pop("sha256") != _index_hash(index) or index["format"] != _FORMAT:
        raise ValueError("the index is not as it was written")
    images = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
    bad = {int(position): str(reason) for position, reason in index["bad"]}
    sha256_px = tuple(str(digest) for digest in index["sha256_px"])
    sound = (
        index["transform"] == transform.describe()
        and isinstance(images, np.memmap)
        and images.dtype == np.uint8
        and images.flags.c_contiguous
        and images.shape == (len(sha256_px), *transform.shape)
        and images.offset + images.nbytes == (path / "images.npy").stat().st_size
        and len(sha256_px) + len(bad) == count
    )
    if not sound:
        raise ValueError("the pixels are not those of the index")
    return Entry(images, sha256_px, bad, tuple(Values(**each) for each in index["values"]))


def _has_hashes(entry: Entry, console: Console) -> bool:
    """Whether each image has the pixels that the index says; by all cores, in blocks."""
    images, count = entry.images, len(entry.sha256_px)
    per_block = max(_BLOCK * count // max(images.nbytes, 1), 1)

    def same(start: int) -> bool:
        rows = np.arange(start, min(start + per_block, count))
        return all(
            hashlib.sha256(image.data).hexdigest() == entry.sha256_px[row]
            for row, image in zip(rows, _slice(images, rows), strict=True)
        )

    with console.bar("checking the cache", count) as bar:
        return all(in_order(same, range(0, count, per_block), lambda blocks: bar.update(blocks * per_block)))


def _slice(images: ImageArray, rows: NDArray[np.int64]) -> Pixels:
    """Rows in a line, of an array without a copy."""
    return images[rows[0] : rows[-1] + 1] if isinstance(images, np.ndarray) else images[rows]


def _index_hash(index: Mapping[str, Any]) -> str:
    """Of all that an index says but its hash."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode("ascii")).hexdigest()


def _build(path: Path, transform: Transform, count: int, decoded: Iterable[Decoded | str]) -> Entry | None:
    """The entry as it was written, or that of another process which was first; None if that one is damaged."""
    with _temporary_folder(path) as temporary:
        sha256_px, bad, values = _write(temporary, transform, count, decoded)
        if not sha256_px:  # nothing to keep, and an empty file cannot be mapped
            return Entry(np.empty((0, *transform.shape), np.uint8), (), bad, values)
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # otherwise another process was first, and its entry is as good
    try:
        return _read(path, transform, count)
    except (OSError, ValueError, KeyError, TypeError, EOFError, _Unsound):
        return None


def _write(
    folder: Path, transform: Transform, count: int, decoded: Iterable[Decoded | str]
) -> tuple[tuple[str, ...], dict[int, str], tuple[Values, ...]]:
    """One writer appends the good rows in order; both files are on disk when it returns.

    A plain file, not a map: a full disk is then an error that can be caught, where a map would end the process.
    """
    sha256_px: list[str] = []
    bad: dict[int, str] = {}
    values: tuple[Values, ...] = ()
    with (folder / "images.npy").open("wb") as file:
        file.write(_npy_header(count, transform))
        for position, result in enumerate(decoded):
            if isinstance(result, str):
                bad[position] = result
                continue
            file.write(result.pixels.data)
            sha256_px.append(result.sha256)
            if result.values is not None:
                values = together((*values, result.values))
        file.seek(0)
        file.write(_npy_header(len(sha256_px), transform))  # of the same length: NumPy leaves room for the count
    index = {
        "format": _FORMAT,
        "transform": transform.describe(),
        "sha256_px": sha256_px,
        "bad": sorted(bad.items()),
        "values": [vars(each) for each in values],
    }
    hashed = index | {"sha256": _index_hash(index)}
    (folder / "index.json").write_text(json.dumps(hashed), encoding="ascii")
    for name in ("images.npy", "index.json"):
        flush(folder / name)
    return tuple(sha256_px), bad, values


def _npy_header(count: int, transform: Transform) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (count, *transform.shape)}
    )
    return header.getvalue()


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A private folder beside `path`, of which nothing is left when the block ends unless it was renamed."""
    folder = temporary_name(path)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _discard(path: Path) -> None:
    """Moved away first: nobody may meet an entry half removed."""
    with _temporary_folder(path) as temporary, suppress(FileNotFoundError):  # where another process was first
        path.rename(temporary / "damaged")


def _sweep(folder: Path) -> None:
    """Removes what builders that are no more have left, on this machine at once and on others after a day."""
    sweep(folder)  # files
    for path in folder.glob(".*.tmp-*"):
        if orphaned(path) or time.time() - max(_changed(path)) > _DAY:
            shutil.rmtree(path, ignore_errors=True)


def _changed(path: Path) -> Iterator[float]:
    for file in (path, path / "images.npy"):
        try:
            yield file.stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):  # its builder has just finished, or not begun; or it is a file
            yield 0.0


def _require_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise _unusable(folder, need, f"{free:,} bytes are free")


def _unusable(folder: Path, need: int, reason: str) -> InputError:
    return InputError(
        str(folder),
        f"cannot hold the decoded images ({reason}), {need:,} bytes are needed",
        remedy="set data.cache_dir to a writable folder with room, or data.image_size smaller",
    )
