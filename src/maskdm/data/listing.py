"""From the files of a folder, a zip or tars to a source: which of them are its images, and their labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from maskdm.data.decode import Content
from maskdm.data.labels import Labels, label_file, labels_of_folders, labels_of_json, none_of
from maskdm.data.limits import MAX_FILE_BYTES
from maskdm.data.names import GRID, SUFFIXES, is_image_name, names_of, own_grids, suffix_of, unread_files
from maskdm.data.source import Item, Reader, Source
from maskdm.data.webdataset import auxiliary_images, labels_of_samples
from maskdm.errors import InputError


def list_files(
    path: Path,
    files: Iterable[str],
    read: Reader,
    *,
    tars: int = 0,
    left_out: Sequence[tuple[str, str]] = (),
    remarks: Sequence[str] = (),
    others: Iterable[str] = (),
) -> Source:
    """The images among `files`, with labels of a file, of the files beside them, or of their folders.

    Args:
        path: what the user gave.
        files: tidy paths.
        read: gives a file's content by its tidy path.
        tars: in how many tars they lie.
        left_out, remarks: what is known already, see `Source`.
        others: files beside the tars.
    """
    stored = names_of(files)
    names = sorted(filter(is_image_name, stored))
    grids = own_grids(stored)
    samples = tars > 0 or any(suffix_of(name) == "cls" for name in stored)
    masks = auxiliary_images(names) if samples else set()
    images = [name for name in names if name not in grids and name not in masks]
    if not images:
        raise InputError(
            str(path),
            f"holds no image: {len(stored)} files were seen, none of a kind that is read ({', '.join(SUFFIXES)})",
            remedy="give the folder, .zip, .tar or .npz that holds the images",
        )

    def reader(name: str, limit: int = MAX_FILE_BYTES, /) -> Content:
        return read(stored[name], limit)

    (labels, class_names), label_files, remark = _labels_of(path, images, stored, reader, tars)
    outside = [(name, "its path leads out of the archive") for name in stored if ".." in name.split("/")]
    strays = {name for name, label in zip(images, labels, strict=True) if class_names and label is None}
    unread = unread_files([*(stored.keys() - set(names) - set(label_files)), *others])
    said = (
        *remarks,
        unread and f"not images, and not read: {unread}",
        masks and f"{len(masks):,} images belong to another of the same key (1.seg.png to 1.png) and are left out",
        grids and f"{GRID} is the grid of maskdm sample and no image of the set",
        remark,
    )
    return Source(
        path,
        tuple(Item(name, label) for name, label in zip(images, labels, strict=True) if name not in strays),
        class_names,
        reader,
        (*left_out, *outside, *((name, "in no class folder") for name in sorted(strays))),
        tuple(str(sentence) for sentence in said if sentence),
    )


def _labels_of(
    path: Path, images: Sequence[str], stored: Mapping[str, str], reader: Reader, tars: int
) -> tuple[Labels, Sequence[str], str]:
    """Labels, the files that they are from, and a remark."""
    file = label_file(images, stored)
    if file is not None:
        return labels_of_json(path, images, file, reader), [file], ""
    found = labels_of_samples(path, images, stored, reader, ("cls", "json", "txt") if tars else ("cls",))
    if found is not None:
        return *found, ""
    if tars > 1:  # shards are no classes
        return none_of(images), (), ""
    labels, remark = labels_of_folders(images)
    return labels, (), remark
