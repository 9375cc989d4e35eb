"""Readers of images on disk: a folder, a .zip, a .tar or a folder of them, an .npz."""

from __future__ import annotations

import os
import posixpath
import tarfile
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from maskdm.data.arrays import BARE, read_arrays
from maskdm.data.decode import Pixels
from maskdm.data.labels import labels_of_arrays
from maskdm.data.limits import MAX_FILE_BYTES, check_regular, check_size, read_part, read_regular, read_stream
from maskdm.data.listing import list_files
from maskdm.data.names import is_image_name, is_litter, suffix_of, tidy_path
from maskdm.data.source import Item, Source, one_line
from maskdm.errors import InputError
from maskdm.files import readable

# --- folders ---------------------------------------------------------------------------------------------------------


def open_folder(path: Path) -> Source:
    """Lists the images below a folder, or in the .tar files there where it holds no image of its own.

    Raises:
        InputError: a folder cannot be listed, there is no image, or a file of labels is wrong.
    """
    stored = dict(_files_below(path))
    shards = sorted(name for name in stored if suffix_of(name) == "tar")
    if shards and not any(map(is_image_name, stored)):
        others = [name for name in stored if name not in set(shards)]
        return open_tars(path, {name[: -len(".tar")]: path / stored[name] for name in shards}, others)
    return list_files(path, stored, lambda file, limit=MAX_FILE_BYTES: read_regular(path / stored[file], limit))


def _files_below(root: Path) -> Iterator[tuple[str, str]]:
    """Relative paths of all files, as UTF-8 and as this system writes them; litter is not entered.

    Symbolic links are followed, and each folder is entered once.
    """

    def refuse(error: OSError) -> None:
        raise InputError(
            str(error.filename),
            f"cannot be listed ({error.strerror})",
            remedy="give read permission, or move that folder away",
        )

    entered = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        status = Path(folder).stat()  # a link may lead back to a folder above: known by its inode
        if (status.st_dev, status.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(each for each in subfolders if not is_litter(each))
        relative = Path(folder).relative_to(root)
        for file in files:
            found = (relative / file).as_posix()
            yield os.fsencode(found).decode("utf-8", "surrogateescape"), found


# --- zips ------------------------------------------------------------------------------------------------------------


def open_zip(path: Path) -> Source:
    """Lists the images in a .zip.

    Raises:
        InputError: it is damaged or encrypted, there is no image, or a file of labels is wrong.
    """
    archive = _Zip(path)
    return list_files(path, archive.names, archive.read)


_UNPACKED = {
    zipfile.ZIP_STORED: 2**20,
    zipfile.ZIP_DEFLATED: 2**20,
    zipfile.ZIP_BZIP2: 2**12,  # a few bytes may unpack to a great many, and all of them at once
    zipfile.ZIP_LZMA: 2**12,
}
"""Ways of packing that are read -> how many bytes of a member are unpacked at once."""
_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "xz", 98: "PPMd", 99: "AES encryption"}
"""Names of ways of packing that are not read."""


class _Zip:
    """Reads members of a zip from any number of threads."""

    def __init__(self, path: Path) -> None:
        try:
            check_regular(path)
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            problem = f"cannot be opened as a zip ({one_line(error)})"
            raise InputError(str(path), problem, remedy="pack the images into a new zip") from error
        members = self._zip.infolist()
        if any(member.flag_bits & 1 for member in members):
            self._zip.close()
            remedy = "unpack it and give the folder, or a zip without password"
            raise InputError(str(path), "is encrypted", remedy=remedy)
        self._members = _members_of(members)
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Tidy paths of all files."""
        return list(self._members)

    def read(self, name: str, limit: int = MAX_FILE_BYTES, /) -> bytes:
        """A file's bytes. Raises OSError if they are damaged, more than `limit`, or cannot be unpacked."""
        packed = self._members[name]
        check_size(packed.file_size, limit)
        if packed.compress_type not in _UNPACKED:
            method = _METHODS.get(packed.compress_type, f"method {packed.compress_type}")
            raise OSError(f"packed with {method}, which is not read: unpack the zip and give the folder")
        try:
            # `ZipFile` guards reading against other threads, but not the count of its open members.
            with self._lock:
                member = self._zip.open(packed)
            try:
                return read_stream(member, limit, _UNPACKED[packed.compress_type])
            finally:
                with self._lock:
                    member.close()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise OSError(f"damaged in the zip: {one_line(error)}") from error


def _members_of(members: Sequence[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The files by their tidy paths."""
    paths = [_zip_path(member) for member in members]
    slashes = any("/" in path for path in paths)
    found = {}
    for path, member in zip(paths, members, strict=True):
        backslashes = member.create_system == _DOS or not slashes  # zips of Windows may have them for slashes
        if not (path.endswith("/") or (backslashes and path.endswith("\\"))):
            found[tidy_path(path, backslashes=backslashes)] = member
    return found


_DOS, _UTF8 = 0, 0x800


def _zip_path(member: zipfile.ZipInfo) -> str:
    """As it was meant: many tools of macOS and Unix store UTF-8 without saying so, and `zipfile` reads it as cp437."""
    path = member.filename
    if path.isascii() or member.flag_bits & _UTF8:
        return path
    try:
        meant = path.encode("cp437").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # of another field, which is Unicode
        return path
    return path if readable(meant) != unicodedata.normalize("NFC", meant) and member.create_system == _DOS else meant


# --- tars ------------------------------------------------------------------------------------------------------------


def open_tars(path: Path, tars: Mapping[str, Path], others: Iterable[str] = ()) -> Source:
    """Lists the images in .tar files, with labels of a webdataset, or of folders in a single tar.

    Args:
        path: what the user gave.
        tars: the files, by what is put before the names of their members.
        others: files beside them.

    Raises:
        InputError: a tar cannot be read, there is no image, or some images have no class where others have.
    """
    archive = _Tars(tars)
    return list_files(
        path,
        archive.places,
        archive.read,
        tars=len(tars),
        left_out=archive.left_out,
        remarks=archive.remarks,
        others=others,
    )


_AFTER_THE_END = 1 << 20
_MOST_LINKS = 10  # from one to the next


class _Tars:
    """Reads members of tars from any number of threads: their places are known, and nothing is read in order.

    Attributes:
        places: the file, offset and size of each member, by its tidy path.
        left_out: images that cannot be read, with the reasons.
        remarks: on whole tars.
    """

    def __init__(self, tars: Mapping[str, Path]) -> None:
        self.places: dict[str, tuple[Path, int, int]] = {}
        self.left_out: list[tuple[str, str]] = []
        self.remarks: list[str] = []
        for prefix, file in tars.items():
            try:
                check_regular(file)
                # Names are UTF-8 whatever this system's are.
                with tarfile.open(file, "r:", encoding="utf-8", errors="surrogateescape") as archive:
                    members = list(archive)
                    self._check_end(file, archive.offset)
            except (OSError, tarfile.TarError, EOFError) as error:
                problem = f"cannot be read as a tar ({one_line(error)})"
                raise InputError(str(file), problem, remedy="pack it again, and do not compress it") from error
            self._add(f"{prefix}/" if prefix else "", file, members)

    def _check_end(self, file: Path, offset: int) -> None:
        """`tarfile` takes a damaged header for the end; behind the true one, marked by zeros, there may be more."""
        with file.open("rb") as handle:
            handle.seek(offset)
            end = handle.read(tarfile.BLOCKSIZE)
            if end.strip(b"\0"):
                raise tarfile.ReadError(f"damaged at byte {offset:,}")
            if handle.read(_AFTER_THE_END).strip(b"\0"):
                self.remarks.append(f"{file.name} goes on after its end, as tars joined by cat do: unpack such a file")

    def _add(self, prefix: str, file: Path, members: Sequence[tarfile.TarInfo]) -> None:
        links = {}
        for member in members:
            path = tidy_path(member.name)
            if member.isreg() and not member.sparse:
                self.places[prefix + path] = (file, member.offset_data, member.size)
            elif member.islnk() or member.issym():
                folder = posixpath.dirname(path) if member.issym() else ""
                links[prefix + path] = prefix + posixpath.normpath(posixpath.join(folder, tidy_path(member.linkname)))
            elif not member.isdir():
                self._leave_out(prefix + path, "stored as a sparse file" if member.isreg() else "not a regular file")
        for path, target in links.items():
            for _ in range(_MOST_LINKS):
                target = links.get(target, target)
            if target in self.places:
                self.places[path] = self.places[target]
            else:
                self._leave_out(path, "a link to a file that is not in the tar")

    def _leave_out(self, path: str, reason: str) -> None:
        if is_image_name(path):
            self.left_out.append((readable(path), reason))

    def read(self, name: str, limit: int = MAX_FILE_BYTES, /) -> bytes:
        """A member's bytes. Raises OSError if they are not all there, or more than `limit`."""
        return read_part(*self.places[name], limit)


# --- arrays ----------------------------------------------------------------------------------------------------------


def open_npz(path: Path) -> Source:
    """Lists the rows of `images`, (N, H, W) or (N, H, W, C) uint8, of an .npz, with `labels` and `classes` if there.

    Sample files of guided-diffusion, ADM and EDM call them `arr_0` and `arr_1`; a .npy holds the images alone.

    Raises:
        InputError: it cannot be read without unpickling, or an array is of another shape or type.
    """
    remedy = "save it with np.savez(file, images=...), (N, H, W) or (N, H, W, C) of uint8"
    arrays, names = read_arrays(path, ("images", "labels", "classes", "arr_0", "arr_1"), remedy=remedy)
    if "images" not in arrays and BARE in arrays:
        arrays["images"] = arrays[BARE]
        if "arr_1" in arrays:
            arrays["labels"] = arrays["arr_1"]
    if "images" not in arrays:
        raise InputError(str(path), f"has no array 'images' or 'arr_0' but {names}", remedy=remedy)
    images: Pixels = arrays["images"]
    wanted = "(N, H, W) or (N, H, W, C) of uint8 with C from 1 to 4"
    if images.dtype != np.uint8:
        problem = f"'images' is of type {images.dtype}"
        raise InputError(str(path), problem, wanted=wanted, remedy="convert it and save it again")
    if images.ndim not in (3, 4) or 0 in images.shape or (images.ndim == 4 and images.shape[3] > 4):
        problem = f"'images' has shape {images.shape}"
        raise InputError(str(path), problem, wanted=wanted, remedy="convert it and save it again")
    images = np.ascontiguousarray(images)
    digits = len(str(len(images) - 1))
    names = [f"{row:0{digits}d}" for row in range(len(images))]  # padded: names sort as rows
    labels, class_names = labels_of_arrays(path, arrays, len(images))
    items = tuple(Item(name, label) for name, label in zip(names, labels, strict=True))
    return Source(path, items, class_names, lambda name, limit=MAX_FILE_BYTES: images[int(name)])
