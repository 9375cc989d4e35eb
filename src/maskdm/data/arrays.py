"""Arrays in .npz and .npy files: read without unpickling, and only where the file is as large as they say they are."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from maskdm.data.limits import check_regular
from maskdm.data.source import one_line
from maskdm.errors import InputError
from maskdm.runtime.host_memory import host_available_bytes

Arrays = dict[str, np.ndarray[Any, Any]]
BARE = "arr_0"
"""The name of an array that has none: of a .npy, and of the first that was given to np.savez without a name."""
MOST_DEFLATED = 1032
"""Bytes that one deflated byte can stand for."""
READ_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)


def read_arrays(path: Path, names: Sequence[str], *, remedy: str = "") -> tuple[Arrays, list[str]]:
    """The arrays of these names that a file holds, and the names of all that it holds.

    Args:
        path: a .npz, or a .npy, whose array is called `arr_0`.
        names: what is wanted of it.
        remedy: what to do where it cannot be read.

    Raises:
        InputError: it is damaged or no regular file, holds pickled objects, an array says that it is larger than the
            file can be, or needs more memory than is free.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                file.seek(0)
                return {BARE: _read(file, path.stat().st_size)}, [BARE]
            with zipfile.ZipFile(file) as archive:
                members = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
                found = {name: _member(archive, members[name]) for name in names if name in members}
                return found, sorted(members)
    except MemoryError:
        raise InputError(str(path), "its arrays need more memory than is free", remedy="give fewer images") from None
    except READ_ERRORS as error:
        raise InputError(str(path), f"cannot be read as arrays ({one_line(error)})", remedy=remedy) from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    """An array of an archive."""
    if member.file_size > MOST_DEFLATED * max(member.compress_size, 1):
        raise ValueError(
            f"{member.filename} of {member.compress_size:,} bytes says that it unpacks to {member.file_size:,}"
        )
    with archive.open(member) as file:
        return _read(file, member.file_size)


def _read(file: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    """The array in a stream of `size` bytes, no memory being taken before they are known to be enough."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the format holds no plain array")
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which could run any code they like")
    there, said = size - file.tell(), math.prod(shape) * dtype.itemsize
    if said != there:
        raise ValueError(f"an array of shape {shape} and type {dtype} has {said:,} bytes, and here are {there:,}")
    if said > host_available_bytes():
        raise MemoryError
    content = file.read(said)
    if len(content) < said:
        raise EOFError("it ends too early")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran_order else "C")
