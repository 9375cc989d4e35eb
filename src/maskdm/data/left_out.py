"""What of a data set is not used, and why: told at length once, in a line afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from maskdm.data.source import Source
from maskdm.errors import InputError, StorageError, shown
from maskdm.files import make_folder, write_text
from maskdm.runtime.console import Console

_NAMED = 10


def say_left_out(source: Source, bad: Sequence[tuple[str, str]], folder: Path | None, console: Console) -> None:
    """Warns of images that were left out, with reasons, and says what else there is to know of a source.

    The first time the first ten are named and all are listed in a file; afterwards a line gives their number and where
    the list is. A source that has changed is another one.

    Args:
        source: the images, listed.
        bad: name and reason of each image that could not be read.
        folder: of the cache, where lists are kept in left-out; None keeps none, and says everything every time.
        console: hears of it.
    """
    left_out = [*source.left_out, *bad]
    if not left_out and not source.remarks:
        return
    lines = [str(source.path), *source.remarks, *(f"{shown(name)}: {reason}" for name, reason in left_out)]
    text = "\n".join(lines) + "\n"
    path = None if folder is None else folder / "left-out" / f"{_digest(text)}.txt"
    count = f"left out {len(left_out):,} {'image' if len(left_out) == 1 else 'images'}"
    if path is not None and path.exists():
        if left_out:
            console.warn(f"{count}, as before: {path}")
        return
    for remark in source.remarks:
        console.say(f"{source.path}: {remark}")
    if path is not None:
        with suppress(InputError, StorageError):
            make_folder(path.parent)
            write_text(path, text, private=True)
    if left_out:
        named = ", ".join(f"{shown(name)} ({reason})" for name, reason in left_out[:_NAMED])
        more = f", and {len(left_out) - _NAMED:,} more" if len(left_out) > _NAMED else ""
        listed = f"; all are in {path}" if path is not None and more and path.exists() else ""
        console.warn(f"{count}: {named}{more}{listed}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
