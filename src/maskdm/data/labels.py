"""Class labels of images, from the places where data sets keep them.

From a StyleGAN/EDM `dataset.json` if there is one, from the arrays `labels` and `classes` of an .npz, from the .cls
files beside the images of a webdataset, or else from the first folder of each name, when every image is in a folder and
there are at least two. A data set of a hub brings its own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.data.decode import Content
from maskdm.data.source import one_line
from maskdm.errors import InputError, shown

Labels = tuple[Sequence[int | None], tuple[str, ...]]
"""For each image an index into the class names, which follow; (None, ...) and () where there are no classes."""

LABEL_FILE = "dataset.json"
"""Name of a file of labels as StyleGAN's and EDM's tools write it."""


def labels_of_files(path: Path, names: Sequence[str], files: Iterable[str], reader: Callable[[str], Content]) -> Labels:
    """Labels of the images `names` among `files`: of a `dataset.json`, at the top or in the folder that all share; else
    of folders.

    Raises:
        InputError: the `dataset.json` cannot be read or does not name every image.
    """
    root = _common_folder(names)
    found = {LABEL_FILE, root + LABEL_FILE} & set(files)
    if found:
        return _labels_of_json(path, names, min(found, key=len), reader)
    return _labels_of_folders([name.removeprefix(root) for name in names])


def _common_folder(names: Iterable[str]) -> str:
    """The folders that all names share, with a slash at the end; "" if there are none."""
    parents = [name.split("/")[:-1] for name in names]
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(parents), max(parents), strict=False))
    return "".join(f"{folder}/" for folder, _ in shared)


def _labels_of_folders(names: Sequence[str]) -> Labels:
    """Of the first folder of each name."""
    folders = [name.split("/", 1)[0] if "/" in name else "" for name in names]
    if "" in folders or len(set(folders)) < 2:
        return [None] * len(names), ()
    return labels_of_words(folders)


def _labels_of_json(path: Path, names: Sequence[str], file: str, reader: Callable[[str], Content]) -> Labels:
    """Of `{"labels": [[name, int], ...]}`, names relative to the file; null means that there are none."""

    def wrong(problem: str) -> InputError:
        wanted = '{"labels": [[name, integer], ...]} with every image, or {"labels": null}'
        return InputError(str(path / file), problem, wanted=wanted)

    try:
        content = json.loads(bytes(reader(file)))
    except (OSError, ValueError, RecursionError) as error:
        raise wrong(f"cannot be read as JSON ({one_line(error)})") from error
    if not isinstance(content, dict) or "labels" not in content:
        raise wrong("has no key 'labels'")
    if content["labels"] is None:
        return [None] * len(names), ()
    if not isinstance(content["labels"], list):
        raise wrong(f"has 'labels' of type {type(content['labels']).__name__}")
    folder = file.removesuffix(LABEL_FILE)
    given: dict[str, int] = {}
    for entry in content["labels"]:
        match entry:
            case [str(name), int(label)] if not isinstance(label, bool):
                given[folder + name.replace("\\", "/")] = label
            case _:
                raise wrong(f"has the entry {str(entry)[:80]!r}")
    missing = [name for name in names if name not in given]
    if missing:
        raise wrong(f"has no label for {len(missing)} of {len(names)} images, the first {shown(missing[0])}")
    return labels_of_integers([given[name] for name in names])


def labels_of_integers(values: Sequence[int]) -> Labels:
    """Any integers as indices 0, 1, ... of the classes that occur, each named by its integer."""
    index = {value: position for position, value in enumerate(sorted(set(values)))}
    return [index[value] for value in values], tuple(map(str, index))


def labels_of_words(words: Sequence[str]) -> Labels:
    """Names of classes as indices 0, 1, ... of those that occur, in alphabetical order."""
    index = {word: position for position, word in enumerate(sorted(set(words)))}
    return [index[word] for word in words], tuple(index)


def labels_of_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], count: int) -> Labels:
    """Of the arrays `labels` (count,) and, if it is there, `classes`, the names that they index, of an .npz.

    Raises:
        InputError: an array is of another shape or type, or labels lie outside the classes.
    """
    if "labels" not in arrays:
        return [None] * count, ()
    labels = arrays["labels"]
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            str(path),
            f"'labels' is {labels.dtype} of shape {labels.shape}",
            wanted=f"integers of shape ({count},)",
            remedy="save one class number for each image, or leave 'labels' out",
        )
    if "classes" not in arrays:
        return labels_of_integers(labels.tolist())
    classes = arrays["classes"]
    if classes.ndim != 1 or classes.dtype.kind != "U":
        raise InputError(
            str(path),
            f"'classes' is {classes.dtype} of shape {classes.shape}",
            wanted="a list of strings",
            remedy="save np.array([name, ...]), or leave 'classes' out",
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(
            str(path),
            f"'labels' go from {labels.min()} to {labels.max()}",
            wanted=f"0 to {len(classes) - 1}, an index into 'classes'",
            remedy="save the missing names, or leave 'classes' out",
        )
    return labels.tolist(), tuple(classes.tolist())
