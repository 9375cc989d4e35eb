"""Data sets of the Hugging Face hub, or of its formats on disk, by `datasets` (pip install 'maskdm[data]')."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskdm.data.labels import Labels, is_few, labels_of_integers, labels_of_names, labels_of_words, none_of
from maskdm.data.limits import MAX_FILE_BYTES, check_size, read_regular
from maskdm.data.source import Item, Source, one_line
from maskdm.errors import InputError
from maskdm.files import expanded

LABEL_COLUMNS = ("label", "labels", "class", "cls", "class_name", "category", "fine_label")
"""Columns of numbers or words that are taken for classes unasked, the first that is there."""

_FORMS = "hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT"


def open_hub(name: str, image_column: str = "auto", label_column: str = "auto") -> Source:
    """Lists the rows of a data set. Rows without an image, or whose image is empty or missing, cannot be read.

    Args:
        name: `NAME`, `NAME:SPLIT` or `NAME:CONFIG:SPLIT`, where NAME may be a folder, also one that `save_to_disk`
            wrote. Without a split, `train`.
        image_column: auto is `image` if there is one, else the first column of images.
        label_column: a column of classes, whole numbers or words; none uses none; auto is the first of `ClassLabel`,
            else one of `LABEL_COLUMNS`.

    Raises:
        InputError: the library is missing, there is no such data set, split or column, it holds no images, or many
            rows have no class where others have.
    """
    path, config, split = split_name(name)
    table = _load(path, config, split)
    images = _image_column(table, name, image_column)
    (labels, class_names), remark = _labels(table, name, label_column)
    encoded = _encoded(table, images)
    digits = len(str(max(len(table) - 1, 0)))
    rows = [f"{row:0{digits}d}" for row in range(len(table))]

    def read(row: str, limit: int = MAX_FILE_BYTES, /) -> bytes:
        found = encoded[int(row)][images]
        if found is None:
            raise OSError("the row has no image")
        if found["bytes"] is None:
            if not found["path"]:
                raise OSError("the row has no image")
            return read_regular(Path(found["path"]), limit)
        if not found["bytes"]:
            raise OSError("the image of the row is empty")
        check_size(len(found["bytes"]), limit)
        return bytes(found["bytes"])

    return Source(
        Path(f"hf:{name}"),
        tuple(Item(row, n) for row, n in zip(rows, labels, strict=True) if n is not None or not class_names),
        class_names,
        read,
        tuple((r, "the row has no class") for r, n in zip(rows, labels, strict=True) if n is None and class_names),
        (remark,) if remark else (),
    )


def split_name(name: str) -> tuple[str, str | None, str]:
    """NAME, NAME:SPLIT or NAME:CONFIG:SPLIT -> name, configuration or None, split.

    Raises:
        InputError: it has more parts, or an empty one.
    """
    path, *more = name.split(":")
    if not path or not all(more) or len(more) > 2:
        raise InputError(f"hf:{name}", "cannot be understood", wanted=_FORMS)
    config = more[0] if len(more) == 2 else None
    return expanded(path), config, more[-1] if more else "train"


def _load(path: str, config: str | None, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        problem = "needs the library datasets, which is missing"
        raise InputError(f"hf:{path}", problem, remedy="pip install datasets") from None
    folder = Path(path)
    try:
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(path)
        if (folder / "dataset_dict.json").is_file():
            parts = datasets.load_from_disk(path)
            if split not in parts:
                raise ValueError(f"its splits are {', '.join(parts)}")
            return parts[split]
        return datasets.load_dataset(path, config, split=split)
    except Exception as error:  # of many kinds, from many libraries below
        problem = f"cannot be loaded ({one_line(error)})"
        raise InputError(f"hf:{path}", problem, remedy=f"give {_FORMS}") from error


def _encoded(table: Any, images: str) -> Any:
    """Only the images, as the bytes or paths that are stored."""
    import datasets

    return table.select_columns([images]).cast_column(images, datasets.Image(decode=False))


def _image_column(table: Any, name: str, wanted: str) -> str:
    import datasets

    found = [key for key, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if wanted != "auto" and wanted not in found:
        raise InputError("data.image_column", got=wanted, wanted=f"one of {', '.join(found) or 'none'}, of hf:{name}")
    if not found:
        raise InputError(f"hf:{name}", f"has no column of images but {list(table.features)}")
    return wanted if wanted != "auto" else "image" if "image" in found else found[0]


def _labels(table: Any, name: str, wanted: str) -> tuple[Labels, str]:
    """Labels of all rows, None without a class, and a remark."""
    import datasets

    kinds: dict[str, Callable[[Sequence[Any]], Labels]] = {}
    for key, kind in table.features.items():
        if isinstance(kind, datasets.ClassLabel):
            kinds[key] = _named(kind.names)
        elif isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string"):
            kinds[key] = _of_words
        elif isinstance(kind, datasets.Value) and kind.dtype.startswith(("int", "uint", "bool")):
            kinds[key] = _of_numbers
    named = [key for key, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    usual = [*named, *(key for key in LABEL_COLUMNS if key in kinds)]
    column = wanted if wanted != "auto" else usual[0] if usual else "none"
    if column == "none":
        return none_of(range(len(table))), ""
    if column not in kinds:
        raise InputError("data.label_column", got=wanted, wanted=f"auto, none or one of {', '.join(kinds)}")
    labels, class_names = kinds[column](list(table[column]))
    missing = sum(label is None for label in labels)
    if missing == len(labels):
        return none_of(labels), f"no classes: no row has one in the column {column}"
    if not is_few(missing, len(labels)):
        raise InputError(
            f"hf:{name}",
            f"{missing:,} of {len(labels):,} images have no class in the column {column}",
            remedy="choose another split, or set data.label_column to none",
        )
    return (labels, class_names), ""


def _named(names: Sequence[str]) -> Callable[[Sequence[Any]], Labels]:
    return lambda values: labels_of_names([v if v is not None and v >= 0 else None for v in values], names)


def _of_words(values: Sequence[Any]) -> Labels:
    return labels_of_words([str(value) if value else None for value in values])


def _of_numbers(values: Sequence[Any]) -> Labels:
    """-1 stands for no class where all others count from 0, as in the test sets of the hub."""
    known = [int(value) for value in values if value is not None and value != -1]
    given = iter(labels_of_integers(known)[0])
    class_names = labels_of_integers(known)[1]
    return [None if value is None or value == -1 else next(given) for value in values], class_names
