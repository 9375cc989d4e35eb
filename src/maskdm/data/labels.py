"""Class labels of images, from the places where data sets keep them.

From a StyleGAN/EDM `dataset.json` if there is one, from the arrays `labels` and `classes` of an .npz, from the files
beside the images of a webdataset (`webdataset.py`), or else from the first folder of each name, where there are two or
more. A Hugging Face data set brings its own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.data.names import tidy_path
from maskdm.data.source import Reader, one_line
from maskdm.errors import InputError, shown
from maskdm.files import readable

Labels = tuple[Sequence[int | None], tuple[str, ...]]
"""For each image an index into the class names, which follow, None for one without a class; (None, ...) and () where
there are no classes."""

LABEL_FILE = "dataset.json"
"""Name of a file of labels as StyleGAN's and EDM's tools write it."""

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation")
"""Names of folders, in lower case, that are parts of a data set where all folders beside them are, and no classes."""

FEW = 10
"""One image in so many may be without a class and is then left out; one by itself always may."""


def label_file(names: Iterable[str], files: Collection[str]) -> str | None:
    """The `dataset.json` among `files`, at the top or in the folder that all images share; None without one."""
    found = {LABEL_FILE, common_folder(names) + LABEL_FILE} & set(files)
    return min(found, key=len) if found else None


def common_folder(names: Iterable[str]) -> str:
    """The folders that all names share, with a slash at the end; "" if there are none."""
    parents = [name.split("/")[:-1] for name in names]
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(parents), max(parents), strict=False))
    return "".join(f"{folder}/" for folder, _ in shared)


def labels_of_folders(names: Sequence[str]) -> tuple[Labels, str]:
    """Of the first folder of each name, below those that all share and below `train`, `test` and the like.

    Returns:
        The labels, None for images in no folder where these are few, and a remark, "" where there is nothing to say.
    """
    root = common_folder(names)
    folders = [name.removeprefix(root).split("/")[:-1] for name in names]
    tops = {folder[0].lower() for folder in folders if folder}
    split = len(tops) > 1 and tops <= set(SPLITS)
    if split:
        folders = [folder[1:] for folder in folders]
    words = [folder[0] if folder else None for folder in folders]
    classes = {word for word in words if word is not None}
    missing = words.count(None)
    if len(classes) == 1 and not split and is_few(missing, len(names)):  # perhaps they share a folder but for those
        inside = [name for name, word in zip(names, words, strict=True) if word is not None]
        (labels, class_names), remark = labels_of_folders(inside)
        label_of = dict(zip(inside, labels, strict=True)) if class_names else {}
        return ([label_of.get(name) for name in names], class_names), remark
    if len(classes) < 2:
        flat = f"no classes: {', '.join(sorted(tops))} are taken for parts of the data set, not for classes"
        return none_of(names), flat if split and not classes else ""
    if not is_few(missing, len(names)):
        return none_of(names), (
            f"no classes: {missing:,} of {len(names):,} images lie in no class folder; move them into one, or out of "
            "the data set"
        )
    return labels_of_words(words), ""


def is_few(missing: int, count: int) -> bool:
    """Whether so many of `count` images may be left out for having no class, rather than to do without classes."""
    return missing <= max(1, count // FEW)


def none_of(names: Sequence[object]) -> Labels:
    """No classes."""
    return [None] * len(names), ()


def labels_of_json(path: Path, names: Sequence[str], file: str, reader: Reader) -> Labels:
    """Of `{"labels": [[name, int], ...]}`, names relative to the file; null means that there are none.

    Raises:
        InputError: it cannot be read, or does not name every image.
    """

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
        return none_of(names)
    if not isinstance(content["labels"], list):
        raise wrong(f"has 'labels' of type {type(content['labels']).__name__}")
    folder = file.removesuffix(LABEL_FILE)
    given: dict[str, int] = {}
    for entry in content["labels"]:
        match entry:
            case [str(name), int(label)] if not isinstance(label, bool):
                given[folder + readable(tidy_path(name, backslashes=True))] = label
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


def labels_of_words(words: Sequence[str | None]) -> Labels:
    """Names of classes as indices 0, 1, ... of those that occur, in alphabetical order; None stays None."""
    names = [None if word is None else readable(word) for word in words]
    index = {name: position for position, name in enumerate(sorted({name for name in names if name is not None}))}
    return [None if name is None else index[name] for name in names], tuple(index)


def labels_of_names(labels: Sequence[int | None], class_names: Sequence[str]) -> Labels:
    """Labels that index `class_names` already; names that are one in NFC are one class."""
    names = [readable(name) for name in class_names]
    index = {name: position for position, name in enumerate(dict.fromkeys(names))}
    return [None if label is None else index[names[label]] for label in labels], tuple(index)


def labels_of_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], count: int) -> Labels:
    """Of the arrays `labels` (count,) and, if it is there, `classes`, the names that they index, of an .npz.

    Raises:
        InputError: an array is of another shape or type, or labels lie outside the classes.
    """
    if "labels" not in arrays:
        return none_of(range(count))
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
    return labels_of_names(labels.tolist(), classes.tolist())
