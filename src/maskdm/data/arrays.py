"""Arrays of an .npz, with nothing believed that its headers say before it was compared with the file."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from maskdm.data.limits import check_regular
from maskdm.runtime.host_memory import host_available_bytes

Arrays = dict[str, np.ndarray[Any, Any]]

_FAULTS = (OSError, ValueError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class BadArrays(Exception):
    """Arrays cannot be read; the message is one line that says why."""


def read_arrays(path: Path, names: Sequence[str] | None = None) -> Arrays:
    """Arrays of an .npz; what is pickled is refused.

    Args:
        path: the file.
        names: those that are wanted, where they are there; None for all.

    Raises:
        BadArrays: it is no .npz, is damaged, an array is not as large as its header says, or they need more memory
            than there is.
    """
    try:
        check_regular(path)
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
            wanted = {name: each for name, each in members.items() if names is None or name in names}
            need = sum(_declared_bytes(archive, each) for each in wanted.values())
            free = host_available_bytes()
            if need > free:
                raise BadArrays(f"its arrays need {need:,} bytes of memory, where {free:,} are free")
            return {name: _array(archive, each) for name, each in wanted.items()}
    except _FAULTS as error:
        raise BadArrays(" ".join(str(error).split()) or type(error).__name__) from error


def array_names(path: Path) -> list[str]:
    """Names of all arrays of an .npz.

    Raises:
        BadArrays: it is none.
    """
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            return sorted(name.removesuffix(".npy") for name in archive.namelist())
    except _FAULTS as error:
        raise BadArrays(" ".join(str(error).split()) or type(error).__name__) from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    with archive.open(member) as file:
        array: np.ndarray[Any, Any] = np.lib.format.read_array(file, allow_pickle=False)  # a pickle could run any code
        return array


def _declared_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """What an array takes, by its header and by the list of the archive, which must agree."""
    with archive.open(member) as file:
        shape, dtype, begin = _header(file)
    if dtype.hasobject:
        raise BadArrays(f"{member.filename} holds objects, which would have to be unpickled")
    size = math.prod(shape) * dtype.itemsize
    if size != member.file_size - begin:
        stored = member.file_size - begin
        raise BadArrays(f"{member.filename} says that it has {size:,} bytes of shape {shape}, and has {stored:,}")
    return size


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type, and where the values begin."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise BadArrays(f"it has arrays of the format {version}")
    shape, _, dtype = _HEADERS[version](file)
    return shape, dtype, file.tell()
