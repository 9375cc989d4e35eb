"""From a path or a name to a source of images: a folder, .zip, .tar, .npz or .npy files, or a Hugging Face data set."""

from __future__ import annotations

import os
from pathlib import Path

from maskdm.data.readers import open_folder, open_npz, open_tars, open_zip
from maskdm.data.source import Source
from maskdm.errors import InputError
from maskdm.files import expanded, is_utf8, readable

HUB = "hf:"
"""Before the name of a data set of the Hugging Face hub."""

_REMEDY = f"give a folder of images, a .zip, a .tar, an .npz, or {HUB}NAME"


def open_source(path: str | Path, *, image_column: str = "auto", label_column: str = "auto") -> Source:
    """Lists the images of a folder, a .zip, a .tar or a folder of them, an .npz, .npy, or `hf:NAME[[:CONFIG]:SPLIT]`.

    Args:
        path: which.
        image_column, label_column: of a data set of the hub, see `maskdm.data.hub.open_hub`.

    Raises:
        InputError: there is no such file, it is of another kind, cannot be read, or holds no image; columns are given
            for what has none.
    """
    if str(path).startswith(HUB):
        from maskdm.data.hub import open_hub

        return open_hub(str(path).removeprefix(HUB), image_column, label_column)
    for name, column in (("data.image_column", image_column), ("data.label_column", label_column)):
        if column != "auto":
            raise InputError(name, got=column, wanted=f"auto, as only a data set {HUB}NAME has columns")
    path = Path(expanded(str(path)))
    if not path.exists():
        raise InputError(str(path), "does not exist", remedy=_REMEDY)
    if path.is_dir():
        return open_folder(path)
    if not path.is_file():  # a named pipe or a device would keep its reader for ever
        raise InputError(str(path), "is neither a file nor a folder", remedy=_REMEDY)
    match path.suffix.lower():
        case ".tar":
            return open_tars(path, {"": path})
        case ".zip":
            return open_zip(path)
        case ".npz" | ".npy":
            return open_npz(path)
    raise InputError(str(path), "is a file of another kind", remedy=_REMEDY)


def resolved_path(path: str) -> str:
    """The same source by a name that holds everywhere on this machine: an absolute path, or `hf:NAME` as it is.

    Raises:
        InputError: it is not UTF-8, and neither is it without following links, so no file of settings could hold it.
    """
    if path.startswith(HUB):
        folder, colon, part = path.removeprefix(HUB).partition(":")
        return HUB + (str(Path(folder).resolve()) if Path(folder).is_dir() else folder) + colon + part
    found = next((each for each in (str(Path(path).resolve()), os.path.abspath(path)) if is_utf8(each)), None)  # noqa: PTH100
    if found is None:
        remedy = "rename it, or give a link to it whose own path is UTF-8"
        raise InputError(
            "data.path", "its full path is not UTF-8", got=readable(str(Path(path).resolve())), remedy=remedy
        )
    return found
