"""The cache on disk: one folder for each key, whole or not there.

    <folder>/<key>/images.npy    (N, H, W, C) uint8, the good pictures in order
    <folder>/<key>/index.json    their pixel hashes, and which pictures were bad

An entry is written aside, as `<key>.tmp-<machine>-<pid>-…`, and renamed into place, so any number of processes may
build it at once and any may be killed. What a killed one left is swept up by the next to come. An entry that does
not measure up to its own header is built again.
"""

import errno
import hashlib
import io
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskdm.data.decode import Pixels, Transform
from maskdm.data.stream import Images
from maskdm.errors import InputError

FORMAT = 1
_DAY = 24 * 60 * 60
_MACHINE = re.sub(r"[^A-Za-z0-9]", "_", platform.node())  # a process number says nothing on another machine
_ASIDE = re.compile(r"\.tmp-(?P<machine>\w*)-(?P<pid>\d+)-")
_ATTEMPTS = 3


@dataclass(frozen=True)
class Decoded:
    """One good picture."""

    pixels: Pixels
    sha256: str

    @classmethod
    def of(cls, pixels: Pixels) -> "Decoded":
        return cls(pixels, hashlib.sha256(pixels.data).hexdigest())


@dataclass(frozen=True)
class Entry:
    """`images` holds the good pictures in order; `bad` says why each other one, by its position, is not among them."""

    images: Images
    sha256_px: tuple[str, ...]
    bad: dict[int, str]


def find_or_build(
    folder: Path,
    key: str,
    transform: Transform,
    count: int,
    decode_all: Callable[[], Iterable[Decoded | str]],
    say: Callable[[str], None],
) -> Entry:
    """The entry of `key`; `decode_all` gives each of `count` pictures, or the reason why it is bad."""
    need = count * int(np.prod(transform.shape)) + 128 * count + 2**20  # pixels, index, and some room
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        for _ in range(_ATTEMPTS):
            entry = _find(folder / key, transform, count)
            if entry is None and (folder / key).exists():
                say(f"the cache entry {str(folder / key)!r} is damaged and is built again")
                _discard(folder, key)
            if entry is None:
                _require_space(folder, need)
                entry = _build(folder, key, transform, count, decode_all())
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
            index["format"] == FORMAT
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


def _build(folder: Path, key: str, transform: Transform, count: int, decoded: Iterable[Decoded | str]) -> Entry | None:
    aside = _aside(folder, key)
    try:
        sha256_px, bad = _write(aside, transform, count, decoded)
        if not sha256_px:  # nothing to keep, and an empty file cannot be mapped
            return Entry(np.empty((0, *transform.shape), np.uint8), (), bad)
        try:
            aside.rename(folder / key)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # otherwise another process was first, and its entry is as good
        return _find(folder / key, transform, count)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(
    aside: Path, transform: Transform, count: int, decoded: Iterable[Decoded | str]
) -> tuple[tuple[str, ...], dict[int, str]]:
    """One writer appends the good rows in order.

    A plain file, not a map: a full disk is then an error that can be caught, where a map would end the process.
    """
    sha256_px: list[str] = []
    bad: dict[int, str] = {}
    with (aside / "images.npy").open("wb") as file:
        file.write(_npy_header(count, transform))
        for position, result in enumerate(decoded):
            if isinstance(result, str):
                bad[position] = result
            else:
                file.write(result.pixels.data)
                sha256_px.append(result.sha256)
        file.seek(0)
        file.write(_npy_header(len(sha256_px), transform))  # of the same length: NumPy leaves room for the count
        _to_disk(file.fileno(), file.flush)
    index = {
        "format": FORMAT,
        "transform": transform.describe(),
        "sha256_px": sha256_px,
        "bad": sorted(bad.items()),
    }
    with (aside / "index.json").open("w", encoding="ascii") as text:
        json.dump(index, text)
        _to_disk(text.fileno(), text.flush)
    return tuple(sha256_px), bad


def _npy_header(count: int, transform: Transform) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (count, *transform.shape)}
    )
    return header.getvalue()


def _to_disk(file: int, flush: Callable[[], None]) -> None:
    """Without it, a power cut after the rename could leave an entry of the right size and the wrong content."""
    flush()
    os.fsync(file)


def _aside(folder: Path, key: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{key}.tmp-{_MACHINE}-{os.getpid()}-", dir=folder))


def _discard(folder: Path, key: str) -> None:
    """Moved aside first: nobody may meet an entry half removed."""
    aside = _aside(folder, key)
    try:
        (folder / key).rename(aside / "damaged")
    except FileNotFoundError:
        pass  # another process was first
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Removes what builders that are no more have left."""
    for path in folder.glob("*.tmp-*"):
        named = _ASIDE.search(path.name)
        if named is None:
            continue
        orphaned = named["machine"] == _MACHINE and not _alive(int(named["pid"]))
        if orphaned or time.time() - max(_changed(path)) > _DAY:
            shutil.rmtree(path, ignore_errors=True)


def _changed(path: Path) -> Iterator[float]:
    for file in (path, path / "images.npy"):
        try:
            yield file.stat().st_mtime
        except FileNotFoundError:  # its builder has just finished, or not begun
            yield 0.0


def _alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere a signal 0 would end the process instead of asking after it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _require_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise _unusable(folder, need, f"{free:,} bytes are free")


def _unusable(folder: Path, need: int, reason: str) -> InputError:
    return InputError(
        f"{str(folder)!r} cannot hold the decoded pictures: {reason}, {need:,} bytes are needed; "
        "set data.cache_dir to a writable folder with room, or data.image_size smaller"
    )
