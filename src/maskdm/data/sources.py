"""A source is a list of pictures and a way to read each: a folder, a `.zip`, `.tar`s, a `.npz`, a data set of a hub.

Listing opens no picture, and reading extracts nothing to disk. Names are POSIX paths relative to the source, and the
pictures are in the order of their names, so that equal contents give equal lists on every machine.

Labels come from a StyleGAN/EDM `dataset.json` if there is one, from the array `labels` of a `.npz`, from the `.cls`
files beside the pictures of a webdataset, from the classes of a data set of a hub, or else from the first folder of
each name, when every picture is in a folder and there are at least two.
"""

import itertools
import json
import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.data.decode import Content, Pixels
from maskdm.errors import InputError

SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif")
_READ = ", ".join(SUFFIXES)
_LABEL_FILE = "dataset.json"
_FILES = "a .zip, a .tar, a .npz, or hf:NAME"
HUB = "hf:"


@dataclass(frozen=True)
class Item:
    """One picture: its name, and its label as an index into the source's `class_names`."""

    name: str
    label: int | None = None


@dataclass(frozen=True)
class Source:
    path: Path
    items: tuple[Item, ...]
    class_names: tuple[str, ...]
    reader: Callable[[str], Content]

    def read(self, item: Item) -> Content:
        """A picture's file bytes, or its pixels where the source holds arrays. Safe in threads; raises OSError."""
        return self.reader(item.name)


def open_source(path: str | Path) -> Source:
    """Lists the pictures of a folder, a `.zip`, a `.tar` or a folder of them, a `.npz`, or a data set of a hub."""
    if str(path).startswith(HUB):
        from maskdm.data.hub import open_hub

        return open_hub(str(path).removeprefix(HUB))
    path = Path(path)
    if not path.exists():
        raise InputError(f"{shown(path)} does not exist: give a folder of pictures, {_FILES}")
    if path.is_dir():
        files = list(_files_below(path))
        shards = sorted(name for name in files if name.lower().endswith(".tar"))
        if shards and not any(_is_picture(name) for name in files):
            return _open_tars(path, {name.removesuffix(name[-4:]): path / name for name in shards})
        return _listed(path, files, lambda name: (path / name).read_bytes())
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return _open_tars(path, {"": path})
    if suffix == ".zip":
        archive = _Zip(path)
        return _listed(path, archive.names, archive.read)
    if suffix == ".npz":
        return _open_npz(path)
    raise InputError(f"{shown(path)} is a file of another kind: give a folder of pictures, {_FILES}")


def settled_path(path: str) -> str:
    """The same source by a name that holds everywhere on this machine."""
    return path if path.startswith(HUB) else str(Path(path).resolve())


def shown(name: object) -> str:
    """A name as a message may print it: whatever characters it holds, on one line."""
    return repr(str(name))


def _files_below(root: Path) -> Iterator[str]:
    """Relative names of all files, symbolic links followed, each folder entered once."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{shown(root)} cannot be listed: {shown(error.filename)}: {error.strerror}; "
            "give read permission, or move that folder away"
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


class _Zip:
    """Reads members of a zip from any number of threads."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise InputError(
                f"{shown(path)} cannot be opened as a zip: {one_line(error)}; pack the pictures into a new zip"
            ) from error
        members = [member for member in self._zip.infolist() if not member.is_dir()]
        if any(member.flag_bits & 1 for member in members):
            self._zip.close()
            raise InputError(f"{shown(path)} is encrypted: unpack it and give the folder, or a zip without password")
        self._members = {member.filename: member for member in members}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def read(self, name: str) -> bytes:
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


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# --- folders and zips ------------------------------------------------------------------------------------------------


def _listed(path: Path, files: Sequence[str], reader: Callable[[str], Content]) -> Source:
    pictures = sorted(name for name in files if _is_picture(name))
    if not pictures:
        raise InputError(
            f"{shown(path)} holds no picture: {len(files)} files were seen, none of a kind that is read ({_READ}); "
            "give the folder, .zip or .npz that holds the pictures"
        )
    root = _common_folder(pictures)
    found = next((name for name in (_LABEL_FILE, root + _LABEL_FILE) if name in set(files)), None)
    if found is not None:
        given, class_names = _labels_of_file(path, pictures, found, reader)
    else:
        given, class_names = _labels_of_folders([name.removeprefix(root) for name in pictures])
    items = tuple(Item(name, label) for name, label in zip(pictures, given, strict=True))
    return Source(path, items, class_names, reader)


def _is_picture(name: str) -> bool:
    parts = name.split("/")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return False
    _, dot, suffix = parts[-1].rpartition(".")
    return bool(dot) and suffix.lower() in SUFFIXES


def _common_folder(names: Iterable[str]) -> str:
    """The folders that all names share, with a slash at the end; "" if there are none."""
    parents = [name.split("/")[:-1] for name in names]
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(parents), max(parents), strict=False))
    return "".join(f"{folder}/" for folder, _ in shared)


_Labels = tuple[Sequence[int | None], tuple[str, ...]]


def _labels_of_folders(names: Sequence[str]) -> _Labels:
    folders = [name.split("/", 1)[0] if "/" in name else "" for name in names]
    class_names = tuple(sorted(set(folders)))
    if "" in class_names or len(class_names) < 2:
        return [None] * len(names), ()
    index = {name: position for position, name in enumerate(class_names)}
    return [index[folder] for folder in folders], class_names


def _labels_of_file(path: Path, names: Sequence[str], file: str, reader: Callable[[str], Content]) -> _Labels:
    """Labels from `{"labels": [[name, int], ...]}`, names relative to the file; null means that there are none."""

    def wrong(what: str) -> InputError:
        return InputError(
            f"{shown(path)}: {shown(file)} {what}; "
            'wanted {"labels": [[name, integer], ...]} with every picture, or {"labels": null}'
        )

    try:
        content = json.loads(bytes(reader(file)))
    except (OSError, ValueError, RecursionError) as error:
        raise wrong(f"cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(content, dict) or "labels" not in content:
        raise wrong("has no key 'labels'")
    if content["labels"] is None:
        return [None] * len(names), ()
    if not isinstance(content["labels"], list):
        raise wrong(f"has 'labels' of type {type(content['labels']).__name__}")
    folder = file.removesuffix(_LABEL_FILE)
    given: dict[str, int] = {}
    for entry in content["labels"]:
        match entry:
            case [str(name), int(label)] if not isinstance(label, bool):
                given[folder + name.replace("\\", "/")] = label
            case _:
                raise wrong(f"has the entry {shown(entry)[:80]}")
    missing = [name for name in names if name not in given]
    if missing:
        raise wrong(f"has no label for {len(missing)} of {len(names)} pictures, the first {shown(missing[0])}")
    return _dense([given[name] for name in names])


def _dense(labels: Sequence[int]) -> _Labels:
    """Any integers as indices 0, 1, ... of the classes that occur, each named by its integer."""
    values = sorted(set(labels))
    index = {value: position for position, value in enumerate(values)}
    return [index[label] for label in labels], tuple(str(value) for value in values)


# --- tars ------------------------------------------------------------------------------------------------------------


class _Tars:
    """Reads members of tars from any number of threads: their places are known, and nothing is read in order."""

    def __init__(self, tars: dict[str, Path]) -> None:
        self.places: dict[str, tuple[Path, int, int]] = {}
        for prefix, file in tars.items():
            try:
                with tarfile.open(file, "r:") as archive:
                    for member in archive:
                        if member.isreg() and not member.sparse:
                            name = f"{prefix}/{member.name}" if prefix else member.name
                            self.places[name.removeprefix("./")] = (file, member.offset_data, member.size)
            except (OSError, tarfile.TarError, EOFError) as error:
                raise InputError(
                    f"{shown(file)} cannot be read as a tar: {one_line(error)}; pack it again, and do not compress it"
                ) from error

    def read(self, name: str) -> bytes:
        file, offset, size = self.places[name]
        with file.open("rb") as handle:
            handle.seek(offset)
            content = handle.read(size)
        if len(content) < size:
            raise OSError("the tar ends too early")
        return content


def _open_tars(path: Path, tars: dict[str, Path]) -> Source:
    archive = _Tars(tars)
    of_class = {name[:-4]: name for name in archive.places if name.lower().endswith(".cls")}
    if not of_class and len(tars) == 1:
        return _listed(path, list(archive.places), archive.read)
    pictures = sorted(name for name in archive.places if _is_picture(name))
    if not pictures:
        raise InputError(f"{shown(path)} holds no picture of a kind that is read ({_READ})")
    if not of_class:  # shards are no classes
        return Source(path, tuple(Item(name) for name in pictures), (), archive.read)
    keys = [_key_of(name) for name in pictures]
    missing = [name for name, key in zip(pictures, keys, strict=True) if key not in of_class]
    if missing:
        raise InputError(
            f"{shown(path)} has no .cls file for {len(missing)} of {len(pictures)} pictures, the first "
            f"{shown(missing[0])}; add them, or leave all of them out"
        )
    words = [archive.read(of_class[key]).decode("utf-8", "replace").strip() for key in keys]
    labels, names = _dense([int(word) for word in words]) if all(map(str.isdigit, words)) else _labels_of_words(words)
    items = tuple(Item(name, label) for name, label in zip(pictures, labels, strict=True))
    return Source(path, items, names, archive.read)


def _key_of(name: str) -> str:
    """What a picture and its class share: the name up to the first dot of its last part."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".", 1)[0]


def _labels_of_words(words: Sequence[str]) -> _Labels:
    names = tuple(sorted(set(words)))
    index = {name: position for position, name in enumerate(names)}
    return [index[word] for word in words], names


# --- arrays ----------------------------------------------------------------------------------------------------------


def _open_npz(path: Path) -> Source:
    arrays = _arrays_of(path)
    images: Pixels = arrays["images"]
    wanted = "wanted (N, H, W) or (N, H, W, C) of uint8 with C from 1 to 4; convert it and save it again"
    if images.dtype != np.uint8:
        raise InputError(f"{shown(path)}: 'images' is of type {images.dtype}, {wanted}")
    if images.ndim not in (3, 4) or 0 in images.shape or (images.ndim == 4 and images.shape[3] > 4):
        raise InputError(f"{shown(path)}: 'images' has shape {images.shape}, {wanted}")
    images = np.ascontiguousarray(images)
    count, digits = len(images), len(str(len(images) - 1))
    labels, class_names = _labels_of_arrays(path, arrays, count)
    items = tuple(Item(f"{row:0{digits}d}", label) for row, label in enumerate(labels))  # padded: names sort as rows
    return Source(path, items, class_names, lambda name: images[int(name)])


def _arrays_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    remedy = "save it with np.savez(file, images=...), (N, H, W) or (N, H, W, C) of uint8"
    try:
        with path.open("rb") as file:  # given a path, NumPy would leave a damaged file open
            arrays = np.load(file, allow_pickle=False)  # a pickle could run any code it likes
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise InputError(f"{shown(path)} holds a single bare array: {remedy}")
            if "images" not in arrays:
                raise InputError(f"{shown(path)} has no array 'images' but {sorted(arrays)}: {remedy}")
            return {name: arrays[name] for name in ("images", "labels", "classes") if name in arrays}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{shown(path)} cannot be read as arrays: {one_line(error)}; {remedy}") from error


def _labels_of_arrays(path: Path, arrays: dict[str, np.ndarray[Any, Any]], count: int) -> _Labels:
    if "labels" not in arrays:
        return [None] * count, ()
    labels = arrays["labels"]
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{shown(path)}: 'labels' is {labels.dtype} of shape {labels.shape}, wanted integers of shape ({count},); "
            "save one class number for each picture, or leave 'labels' out"
        )
    if "classes" not in arrays:
        return _dense(labels.tolist())
    classes = arrays["classes"]
    if classes.ndim != 1 or classes.dtype.kind != "U":
        raise InputError(
            f"{shown(path)}: 'classes' is {classes.dtype} of shape {classes.shape}, wanted a list of strings; "
            "save np.array([name, ...]), or leave 'classes' out"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(
            f"{shown(path)}: 'labels' go from {labels.min()} to {labels.max()}, wanted 0 to {len(classes) - 1}, "
            "an index into 'classes'; save the missing names, or leave 'classes' out"
        )
    return labels.tolist(), tuple(classes.tolist())
