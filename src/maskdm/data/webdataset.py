"""Files of one sample side by side, as webdatasets have them: `0001.jpg`, `0001.cls`, `0001.seg.png`.

What files of a sample share is their key, and the rest is what each one is. By the convention a key ends at the first
dot of the file's name; since `22.05.png` beside `22.05.cls` is common too, a label here is that of the longest key.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from maskdm.data.labels import Labels, labels_of_integers, labels_of_words
from maskdm.data.names import suffix_of
from maskdm.data.source import Reader, one_line
from maskdm.errors import InputError, shown

JSON_KEYS = ("label", "class", "cls", "class_name")
"""Of a sample's .json, the first that is there gives its class."""
MOST_CHARACTERS = 100
"""Of a .txt that can be the name of a class."""


def labels_of_samples(
    path: Path, images: Sequence[str], files: Collection[str], reader: Reader, suffixes: Sequence[str]
) -> tuple[Labels, tuple[str, ...]] | None:
    """Labels from the files beside the images, and which files those are; None where none say a class.

    A .cls holds a number or a word; a .json an object with one of `JSON_KEYS`; a .txt a line, taken for a class where
    on average two images or more share it, and for a caption otherwise.

    Args:
        path: what the user gave.
        images: names of the images.
        files: names of all files.
        reader: gives a file's content by its name.
        suffixes: which of cls, json and txt count; the first that says classes decides.

    Raises:
        InputError: some images have a class and others have none, or a file cannot be read.
    """
    for suffix in suffixes:
        file_of = {name[: -len(suffix) - 1]: name for name in files if suffix_of(name) == suffix}
        beside = [next((file_of[key] for key in _keys(name) if key in file_of), None) for name in images]
        if not any(beside):
            continue
        words = _words(path, beside, reader, suffix)
        if not any(word is not None for word in words) or (suffix == "txt" and not _are_classes(words)):
            continue
        missing = [name for name, word in zip(images, words, strict=True) if word is None]
        if missing:
            raise InputError(
                str(path),
                f"has no class in a .{suffix} file for {len(missing)} of {len(images)} images, the first "
                f"{shown(missing[0])}",
                remedy="add them, or leave all of them out",
            )
        return _labels([word for word in words if word is not None]), tuple(name for name in beside if name)
    return None


def auxiliary_images(images: Sequence[str]) -> set[str]:
    """Images that belong to another one and are none of the set: `0001.seg.png` beside `0001.jpg`.

    What a single sample shows holds for all: without its `0002.jpg`, a `0002.seg.png` is still a mask.
    """
    keys = {key for key, *_ in map(list, map(_keys, images))}
    kinds = {kind for base, kind in map(_base, images) if kind and base in keys}
    return {name for name in images if _base(name)[1] in kinds}


def _keys(name: str) -> Iterator[str]:
    """What a file can be known by, the longest first: `a/22.05.png` -> a/22.05, a/22."""
    folder, slash, file = name.rpartition("/")
    while "." in file[1:]:
        file = file.rpartition(".")[0]
        yield folder + slash + file


def _base(name: str) -> tuple[str, str]:
    """`a/0001.seg.png` -> a/0001, seg.png; of a name without such a word, or with a number for it, the kind is ""."""
    keys = list(_keys(name))
    if len(keys) < 2 or keys[0].rpartition(".")[2].isdigit():
        return keys[0], ""
    return keys[1], name[len(keys[1]) + 1 :].lower()


def _words(path: Path, beside: Sequence[str | None], reader: Reader, suffix: str) -> list[str | int | None]:
    """What each file says, None where there is no file or no class in it."""
    words: list[str | int | None] = []
    for file in beside:
        if file is None:
            words.append(None)
            continue
        try:
            text = bytes(reader(file)).decode("utf-8", "replace").strip()
            words.append(_class_in_json(text) if suffix == "json" else text or None)
        except (OSError, ValueError, RecursionError) as error:
            wanted = f"an object with {', '.join(JSON_KEYS)}" if suffix == "json" else "the class of an image"
            problem = f"cannot be read ({one_line(error)})"
            raise InputError(str(path / file), problem, wanted=wanted, remedy="repair or remove it") from error
    return words


def _class_in_json(text: str) -> str | int | None:
    found = json.loads(text)
    if not isinstance(found, Mapping):
        return None
    values = (found[key] for key in JSON_KEYS if key in found)
    return next((value for value in values if isinstance(value, str | int) and not isinstance(value, bool)), None)


def _are_classes(words: Sequence[str | int | None]) -> bool:
    """Whether lines of text name classes, rather than describe an image each."""
    lines = [str(word) for word in words if word is not None]
    short = all("\n" not in line and len(line) <= MOST_CHARACTERS for line in lines)
    return short and 2 * len(set(lines)) <= len(lines)


def _labels(words: Sequence[str | int]) -> Labels:
    """Of integers, written as such or as digits, or else of words."""
    if all(isinstance(word, int) or word.isdecimal() for word in words):
        return labels_of_integers([int(word) for word in words])
    return labels_of_words([str(word) for word in words])
