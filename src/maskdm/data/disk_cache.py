"""The cache on disk: one folder for each key, whole or not there.

    <folder>/<key>/images.npy    (N, H, W, C) uint8, the good images in order
    <folder>/<key>/index.json    their pixel hashes, and which images were bad

An entry is written under a temporary name and renamed into place, so any number of processes may build it at once and
any may be killed. What a killed one left is swept up by the next to come. An entry that does not measure up to its own
header is built again.
"""

from __future__ import annotations

import errno
import io
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskdm.data.decode import Pixels, Transform
from maskdm.data.stream import ImageArray
from maskdm.errors import InputError
from maskdm.files import flush, orphaned, sweep, temporary_name

Decoded = tuple[Pixels, str] | str
"""The (H, W, C) pixels of an image and their sha256, or the reason why there are none."""

_FORMAT = 1
_DAY = 24 * 60 * 60
_ATTEMPTS = 3


@dataclass(frozen=True)
class Entry:
    """What the cache holds of a set of images.

    Attributes:
        images: (N, H, W, C) uint8, the good images in order.
        sha256_px: of their pixels.
        bad: why each other image is not among them, by its position in the set.
    """

    images: ImageArray
    sha256_px: tuple[str, ...]
    bad: dict[int, str]


def find_or_build(
    folder: Path,
    key: str,
    transform: Transform,
    count: int,
    decode_all: Callable[[], Iterable[Decoded]],
    warn: Callable[[str], object],
) -> Entry:
    """The entry of `key`, made if it is not there or damaged.

    Args:
        folder: of the cache.
        key: names the images and the transform.
        transform: gives the shape of the pixels.
        count: of all images, the bad ones too.
        decode_all: gives each of `count` images in order.
        warn: called with a line about an entry that was damaged.

    Raises:
        InputError: the folder cannot be written, or has no room.
    """
    need = count * int(np.prod(transform.shape)) + 128 * count + 2**20  # pixels, index, and some room
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        for _ in range(_ATTEMPTS):
            entry = _find(folder / key, transform, count)
            if entry is None and (folder / key).exists():
                warn(f"the cache entry {folder / key} is damaged and is built again")
                _discard(folder / key)
            if entry is None:
                _require_space(folder, need)
                entry = _build(folder / key, transform, count, decode_all())
            if entry is not None:
                return entry
    except OSError as error:
        raise _unusable(folder, need, error.strerror or str(error)) from error
    raise _unusable(folder, need, "its entries are damaged as soon as they are written")


def _find(path: Path, transform: Transform, count: int) -> Entry | None:
    """The entry at `path`, or None if there is none that can be trusted."""
    try:
        index = json.loads((path / "index.json").read_bytes())
        images = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
        bad = {int(position): str(reason) for position, reason in index["bad"]}
        sha256_px = tuple(str(digest) for digest in index["sha256_px"])
        sound = (
            index["format"] == _FORMAT
            and index["transform"] == transform.describe()
            and isinstance(images, np.memmap)
            and images.dtype == np.uint8
            and images.flags.c_contiguous
            and images.shape == (len(sha256_px), *transform.shape)
            and images.offset + images.nbytes == (path / "images.npy").stat().st_size
            and len(sha256_px) + len(bad) == count
        )
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return Entry(images, sha256_px, bad) if sound else None


def _build(path: Path, transform: Transform, count: int, decoded: Iterable[Decoded]) -> Entry | None:
    with _temporary_folder(path) as temporary:
        sha256_px, bad = _write(temporary, transform, count, decoded)
        if not sha256_px:  # nothing to keep, and an empty file cannot be mapped
            return Entry(np.empty((0, *transform.shape), np.uint8), (), bad)
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # otherwise another process was first, and its entry is as good
        return _find(path, transform, count)


def _write(
    folder: Path, transform: Transform, count: int, decoded: Iterable[Decoded]
) -> tuple[tuple[str, ...], dict[int, str]]:
    """One writer appends the good rows in order; both files are on disk when it returns.

    A plain file, not a map: a full disk is then an error that can be caught, where a map would end the process.
    """
    sha256_px: list[str] = []
    bad: dict[int, str] = {}
    with (folder / "images.npy").open("wb") as file:
        file.write(_npy_header(count, transform))
        for position, result in enumerate(decoded):
            if isinstance(result, str):
                bad[position] = result
            else:
                pixels, sha256 = result
                file.write(pixels.data)
                sha256_px.append(sha256)
        file.seek(0)
        file.write(_npy_header(len(sha256_px), transform))  # of the same length: NumPy leaves room for the count
    index = {
        "format": _FORMAT,
        "transform": transform.describe(),
        "sha256_px": sha256_px,
        "bad": sorted(bad.items()),
    }
    (folder / "index.json").write_text(json.dumps(index), encoding="ascii")
    for name in ("images.npy", "index.json"):
        flush(folder / name)
    return tuple(sha256_px), bad


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
