"""Readers of images on disk: a folder, a .zip, a .tar or a folder of them, an .npz."""

from __future__ import annotations

import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.data.decode import Content, Pixels
from maskdm.data.labels import labels_of_arrays, labels_of_files, labels_of_integers, labels_of_words
from maskdm.data.source import SUFFIXES, Item, Source, is_image_name, one_line
from maskdm.errors import InputError, shown

# --- folders ---------------------------------------------------------------------------------------------------------


def open_folder(path: Path) -> Source:
    """Lists the images below a folder, or in the .tar files there where it holds no image of its own.

    Raises:
        InputError: a folder cannot be listed, there is no image, or a file of labels is wrong.
    """
    files = list(_files_below(path))
    shards = sorted(name for name in files if name.lower().endswith(".tar"))
    if shards and not any(is_image_name(name) for name in files):
        return open_tars(path, {name.removesuffix(name[-4:]): path / name for name in shards})
    return _listed(path, files, lambda name: (path / name).read_bytes())


def _files_below(root: Path) -> Iterator[str]:
    """Relative names of all files, symbolic links followed, each folder entered once."""

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
        subfolders.sort()
        relative = Path(folder).relative_to(root)
        yield from ((relative / file).as_posix() for file in files)


def _listed(path: Path, files: Sequence[str], reader: Callable[[str], Content]) -> Source:
    """The images among `files`, with labels of a file or of their folders."""
    names = sorted(name for name in files if is_image_name(name))
    if not names:
        raise InputError(
            str(path),
            f"holds no image: {len(files)} files were seen, none of a kind that is read ({', '.join(SUFFIXES)})",
            remedy="give the folder, .zip, .tar or .npz that holds the images",
        )
    labels, class_names = labels_of_files(path, names, files, reader)
    return Source(path, _items(names, labels), class_names, reader)


def _items(names: Sequence[str], labels: Sequence[int | None]) -> tuple[Item, ...]:
    return tuple(Item(name, label) for name, label in zip(names, labels, strict=True))


# --- zips ------------------------------------------------------------------------------------------------------------


def open_zip(path: Path) -> Source:
    """Lists the images in a .zip.

    Raises:
        InputError: it is damaged or encrypted, there is no image, or a file of labels is wrong.
    """
    archive = _Zip(path)
    return _listed(path, archive.names, archive.read)


class _Zip:
    """Reads members of a zip from any number of threads."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            problem = f"cannot be opened as a zip ({one_line(error)})"
            raise InputError(str(path), problem, remedy="pack the images into a new zip") from error
        members = [member for member in self._zip.infolist() if not member.is_dir()]
        if any(member.flag_bits & 1 for member in members):
            self._zip.close()
            remedy = "unpack it and give the folder, or a zip without password"
            raise InputError(str(path), "is encrypted", remedy=remedy)
        self._members = {member.filename: member for member in members}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Of all files."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises OSError if they are damaged."""
        try:
            # `ZipFile` guards reading against other threads, but not the count of its open members.
            with self._lock:
                member = self._zip.open(self._members[name])
            try:
                return member.read()
            finally:
                with self._lock:
                    member.close()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise OSError(f"damaged in the zip: {one_line(error)}") from error


# --- tars ------------------------------------------------------------------------------------------------------------


def open_tars(path: Path, tars: Mapping[str, Path]) -> Source:
    """Lists the images in .tar files; labels of the .cls files of a webdataset, or of folders in a single tar.

    Args:
        path: what the user gave.
        tars: the files, by what is put before the names of their members.

    Raises:
        InputError: a tar cannot be read, there is no image, or an image has no .cls file where others have.
    """
    archive = _Tars(tars)
    of_class = {name[:-4]: name for name in archive.places if name.lower().endswith(".cls")}
    if not of_class and len(tars) == 1:
        return _listed(path, list(archive.places), archive.read)
    names = sorted(name for name in archive.places if is_image_name(name))
    if not names:
        raise InputError(str(path), f"holds no image of a kind that is read ({', '.join(SUFFIXES)})")
    if not of_class:  # shards are no classes
        return Source(path, _items(names, [None] * len(names)), (), archive.read)
    keys = [_key_of(name) for name in names]
    missing = [name for name, key in zip(names, keys, strict=True) if key not in of_class]
    if missing:
        raise InputError(
            str(path),
            f"has no .cls file for {len(missing)} of {len(names)} images, the first {shown(missing[0])}",
            remedy="add them, or leave all of them out",
        )
    words = [archive.read(of_class[key]).decode("utf-8", "replace").strip() for key in keys]
    numbered = all(map(str.isdigit, words))
    labels, class_names = labels_of_integers([int(word) for word in words]) if numbered else labels_of_words(words)
    return Source(path, _items(names, labels), class_names, archive.read)


class _Tars:
    """Reads members of tars from any number of threads: their places are known, and nothing is read in order."""

    def __init__(self, tars: Mapping[str, Path]) -> None:
        self.places: dict[str, tuple[Path, int, int]] = {}
        for prefix, file in tars.items():
            try:
                with tarfile.open(file, "r:") as archive:
                    for member in archive:
                        if member.isreg() and not member.sparse:
                            name = f"{prefix}/{member.name}" if prefix else member.name
                            self.places[name.removeprefix("./")] = (file, member.offset_data, member.size)
            except (OSError, tarfile.TarError, EOFError) as error:
                problem = f"cannot be read as a tar ({one_line(error)})"
                raise InputError(str(file), problem, remedy="pack it again, and do not compress it") from error

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises OSError if they are not all there."""
        file, offset, size = self.places[name]
        with file.open("rb") as handle:
            handle.seek(offset)
            content = handle.read(size)
        if len(content) < size:
            raise OSError("the tar ends too early")
        return content


def _key_of(name: str) -> str:
    """What an image and its class share: the name up to the first dot of its last part."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".", 1)[0]


# --- arrays ----------------------------------------------------------------------------------------------------------


def open_npz(path: Path) -> Source:
    """Lists the rows of `images`, (N, H, W) or (N, H, W, C) uint8, of an .npz, with `labels` and `classes` if there.

    Raises:
        InputError: it cannot be read without unpickling, or an array is of another shape or type.
    """
    arrays = _arrays_of(path)
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
    return Source(path, _items(names, labels), class_names, lambda name: images[int(name)])


def _arrays_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    remedy = "save it with np.savez(file, images=...), (N, H, W) or (N, H, W, C) of uint8"
    try:
        with path.open("rb") as file:  # given a path, NumPy would leave a damaged file open
            arrays = np.load(file, allow_pickle=False)  # a pickle could run any code it likes
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise InputError(str(path), "holds a single bare array", remedy=remedy)
            if "images" not in arrays:
                raise InputError(str(path), f"has no array 'images' but {sorted(arrays)}", remedy=remedy)
            return {name: arrays[name] for name in ("images", "labels", "classes") if name in arrays}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(str(path), f"cannot be read as arrays ({one_line(error)})", remedy=remedy) from error
