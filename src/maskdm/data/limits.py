"""How files are read when anyone may have made them: only regular files, and never more than a limit.

A named pipe would keep its reader waiting for ever, `/dev/zero` never ends, and a few megabytes of an archive can
unpack to a terabyte. What is beyond a limit is an OSError with one line, like every other file that cannot be read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from maskdm.config.schema import DataConfig

MB = 10**6
MAX_FILE_BYTES = DataConfig().max_file_mb * MB
"""Of a file or member of an archive where `data.max_file_mb` is not given."""
MAX_PIXELS = DataConfig().max_pixels
"""Width times height of an image where `data.max_pixels` is not given."""

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a directory"),
)


def check_regular(path: Path) -> None:
    """Refuses, without opening it, what is neither a regular file nor a symbolic link to one.

    Raises:
        OSError: it is a pipe, a device, a socket or a directory, or is not there.
    """
    _check_kind(path.stat().st_mode)


def read_regular(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """All of a regular file.

    Raises:
        OSError: it cannot be read, is no regular file, is larger than `limit` bytes, or grows meanwhile.
    """
    check_regular(path)
    # Not blocking: should a pipe have taken the file's place since, opening it would wait for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        _check_kind(status.st_mode)
        check_size(status.st_size, limit)
        content = file.read(status.st_size + 1)
    if len(content) > status.st_size:
        raise OSError("it is being written to")
    return content


def read_part(path: Path, offset: int, size: int, limit: int = MAX_FILE_BYTES) -> bytes:
    """`size` bytes of a regular file from `offset` on.

    Raises:
        OSError: they cannot be read, are not all there, or are more than `limit`.
    """
    check_size(size, limit)
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(min(size, max(os.fstat(file.fileno()).st_size - offset, 0)))
    if len(content) < size:
        raise OSError("it ends too early")
    return content


def read_stream(file: IO[bytes], limit: int, chunk: int = 2**16) -> bytes:
    """All of a stream, in parts of `chunk` bytes, so that one that never ends is left at the limit.

    Raises:
        OSError: it has more than `limit` bytes.
    """
    parts, size = [], 0
    while part := file.read(chunk):
        parts.append(part)
        size += len(part)
        check_size(size, limit)
    return b"".join(parts)


def check_size(size: int, limit: int) -> None:
    """Refuses more than `limit` bytes.

    Raises:
        OSError: it is more.
    """
    if size > limit:
        raise OSError(f"has {size:,} bytes or more, and data.max_file_mb allows {limit:,}")


def _check_kind(mode: int) -> None:
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise OSError(f"is {name}, not a file")
