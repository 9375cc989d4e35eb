"""Names of files in a data set: one form for those of folders, zips and tars, before any rule about them.

A path as it is stored may begin with `./`, have a Windows zip's `\\`, spell é in two ways (NFC and NFD), or hold bytes
that are no UTF-8. Its name is what the rest of the program sees: NFC, with `/`, and text that any file can hold. Two
different paths have different names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

from maskdm.files import readable

SUFFIXES = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "tif", "tiff", "gif")
"""Of files that are taken for images, in lower or upper case."""

LITTER = (
    "__macosx",
    "@eadir",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "system volume information",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
)
"""Files and folders of systems and network drives, in lower case; hidden ones, `.Trashes` and `..`, are litter too."""

GRID = "grid.png"
"""Beside the images that `maskdm sample` made, all of them in one."""
_SAMPLED = re.compile(r"seed-\d+.*\.png|samples\.json")

_NAMED_SUFFIXES = 8


def tidy_path(path: str, *, backslashes: bool = False) -> str:
    """A stored path without `./`, `//` and a leading `/`; with `backslashes`, they separate folders too."""
    if backslashes:
        path = path.replace("\\", "/")
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def names_of(paths: Iterable[str]) -> dict[str, str]:
    """Tidy paths by their names. Where two paths differ in nothing but their spelling, one gets a number: `é~2.png`."""
    named: dict[str, str] = {}
    for readable_path, path in sorted((readable(path.replace("\\", "\\\\")), path) for path in set(paths)):
        name, number = readable_path, 1
        while name in named:
            number += 1
            stem, dot, suffix = readable_path.rpartition(".")
            name = f"{stem}~{number}.{suffix}" if dot and "/" not in suffix else f"{readable_path}~{number}"
        named[name] = path
    return named


def is_litter(part: str) -> bool:
    """Whether a file or folder of this name is nobody's data."""
    return part.startswith(".") or part.lower() in LITTER


def suffix_of(name: str) -> str:
    """The last suffix of a name in lower case, without its dot; "" without one."""
    _, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot else ""


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image: by its suffix, hidden files and litter left out."""
    return suffix_of(name) in SUFFIXES and not any(map(is_litter, name.split("/")))


def own_grids(names: Collection[str]) -> set[str]:
    """The grids among files that `maskdm sample` wrote: each lies beside the images that it shows."""
    sampled = {name.rpartition("/")[0] for name in names if _SAMPLED.fullmatch(name.rpartition("/")[2])}
    return {f"{folder}/{GRID}".removeprefix("/") for folder in sampled} & set(names)


def unread_files(names: Iterable[str]) -> str:
    """How many files there are of each suffix, litter left out: "12 .txt, 1 without suffix"; "" for none."""
    counts = Counter(suffix_of(name) for name in names if not any(map(is_litter, name.split("/"))))
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0] == "", pair[0]))
    said = [f"{count:,} {'.' + suffix if suffix else 'without suffix'}" for suffix, count in ordered]
    if len(said) > _NAMED_SUFFIXES:
        said = [*said[:_NAMED_SUFFIXES], f"{len(said) - _NAMED_SUFFIXES} more suffixes"]
    return ", ".join(said)
