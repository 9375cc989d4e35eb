"""What a source of images is: a list of them and a way to read each.

Listing opens no image, and reading extracts nothing to disk. Names are POSIX paths relative to the source, and the
images are in the order of their names, so that equal contents give equal lists on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from maskdm.data.decode import Content
from maskdm.data.limits import MAX_FILE_BYTES


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        name: a POSIX path relative to the source in the form of `maskdm.data.names`, or a row's number.
        label: an index into the source's `class_names`, or None.
    """

    name: str
    label: int | None = None


class Reader(Protocol):
    """Gives an image's content by its name, or another file's where its source has such."""

    def __call__(self, name: str, limit: int = MAX_FILE_BYTES, /) -> Content:
        """Raises OSError if it cannot be read, or has more than `limit` bytes."""
        ...


@dataclass(frozen=True)
class Source:
    """Encoded images, listed.

    Attributes:
        path: of the folder or file, or hf:NAME.
        items: the images in order of their names.
        class_names: that labels index; () without labels.
        reader: gives an image's content by its name.
        left_out: names of what looks like an image and is none of the set, each with the reason.
        remarks: what else there is to say of its files, a sentence each.
    """

    path: Path
    items: tuple[Item, ...]
    class_names: tuple[str, ...]
    reader: Reader
    left_out: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()

    def read(self, item: Item, limit: int = MAX_FILE_BYTES) -> Content:
        """The bytes of an image's file, or its pixels where the source holds arrays; safe in threads.

        Raises:
            OSError: it cannot be read, is no regular file, or has more than `limit` bytes.
        """
        return self.reader(item.name, limit)

    def where(self, item: Item) -> str:
        """An image's full name, for messages."""
        return str(self.path / item.name)


def one_line(error: BaseException) -> str:
    """What an exception of a library says, on one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
