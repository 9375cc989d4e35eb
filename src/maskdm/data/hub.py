"""Data sets of the Hugging Face hub, or of its formats on disk, by `datasets` (pip install 'maskdm[data]')."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskdm.data.source import Item, Source, one_line
from maskdm.errors import InputError


def open_hub(name: str) -> Source:
    """Lists the first column of images, with the first of classes, of a data set.

    Args:
        name: `NAME`, `NAME:SPLIT`, or a folder that `save_to_disk` wrote. Without a split, `train`.

    Raises:
        InputError: the library is missing, there is no such data set or split, or it holds no images.
    """
    path, _, split = name.partition(":")
    table = _load(path, split)
    images, labels = _columns(table, name)
    encoded = table.select_columns([images]).cast_column(images, _encoded())
    digits = len(str(max(len(table) - 1, 0)))
    given: list[Any] = list(table[labels]) if labels else [None] * len(table)
    class_names = tuple(table.features[labels].names) if labels else ()
    if any(label is not None and label < 0 for label in given):
        remedy = f"choose another split than {split or 'train'}"
        raise InputError(f"hf:{name}", "some images have no class", remedy=remedy)

    def read(item: str) -> bytes:
        found = encoded[int(item)][images]
        if found["bytes"] is not None:
            return bytes(found["bytes"])
        return Path(found["path"]).read_bytes()

    items = tuple(Item(f"{row:0{digits}d}", label) for row, label in enumerate(given))
    return Source(Path(f"hf:{name}"), items, class_names, read)


def _load(path: str, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        problem = "needs the library datasets, which is missing"
        raise InputError(f"hf:{path}", problem, remedy="pip install datasets") from None
    try:
        found = datasets.load_from_disk(path) if (Path(path) / "state.json").is_file() else None
        if found is None and (Path(path) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(path)[split or "train"]
        return datasets.load_dataset(path, split=split or "train") if found is None else found
    except Exception as error:  # of many kinds, from many libraries below
        problem = f"cannot be loaded ({one_line(error)})"
        raise InputError(f"hf:{path}", problem, remedy="give hf:NAME or hf:NAME:SPLIT") from error


def _encoded() -> Any:
    import datasets

    return datasets.Image(decode=False)


def _columns(table: Any, name: str) -> tuple[str, str | None]:
    """The names of the columns of images and of classes."""
    import datasets

    images = [key for key, kind in table.features.items() if isinstance(kind, datasets.Image)]
    classes = [key for key, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images:
        raise InputError(f"hf:{name}", f"has no column of images but {list(table.features)}")
    return images[0], classes[0] if classes else None
