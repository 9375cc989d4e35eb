"""From a path or a name to a source of images: a folder, a .zip, .tar files, an .npz, or a data set of a hub."""

from __future__ import annotations

from pathlib import Path

from maskdm.data.readers import open_folder, open_npz, open_tars, open_zip
from maskdm.data.source import Source
from maskdm.errors import InputError

HUB = "hf:"
"""Before the name of a data set of the Hugging Face hub."""

_REMEDY = f"give a folder of images, a .zip, a .tar, an .npz, or {HUB}NAME"


def open_source(path: str | Path) -> Source:
    """Lists the images of a folder, a .zip, a .tar or a folder of them, an .npz, or `hf:NAME` or `hf:NAME:SPLIT`.

    Raises:
        InputError: there is no such file, it is of another kind, cannot be read, or holds no image.
    """
    if str(path).startswith(HUB):
        from maskdm.data.hub import open_hub

        return open_hub(str(path).removeprefix(HUB))
    path = Path(path)
    if not path.exists():
        raise InputError(str(path), "does not exist", remedy=_REMEDY)
    if path.is_dir():
        return open_folder(path)
    match path.suffix.lower():
        case ".tar":
            return open_tars(path, {"": path})
        case ".zip":
            return open_zip(path)
        case ".npz":
            return open_npz(path)
    raise InputError(str(path), "is a file of another kind", remedy=_REMEDY)


def resolved_path(path: str) -> str:
    """The same source by a name that holds everywhere on this machine: an absolute path, or `hf:NAME` as it is."""
    return path if path.startswith(HUB) else str(Path(path).resolve())
