"""The record of which image had which role, written before the first step of training.

    manifest.jsonl         one record for each image, sorted by path
    manifest.head.json     what they were made of, and the sha256 of manifest.jsonl

An audit needs a split that was fixed before training, and this is its proof: the head is written last, so a manifest
without a head does not count, and a single changed byte is noticed. Both files are private (mode 0600): they are a
list of who is in the training set.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from maskdm.data.image_set import ImageSet
from maskdm.data.source import one_line
from maskdm.data.split import ROLES, Role
from maskdm.errors import InputError
from maskdm.files import make_folder, write_bytes

RECORDS = "manifest.jsonl"
"""File of the records in a run's folder."""
HEAD = "manifest.head.json"
"""File of the head in a run's folder."""
_FORMAT = 1


@dataclass(frozen=True)
class Record:
    """One image. Of one that could not be read, only `path`, `sha256` and `role` are known.

    Attributes:
        path: its name in the source.
        sha256: of its file; "" where it could not be read.
        sha256_px: of its decoded pixels.
        w, h: width and height before resizing, upright.
        label: the name of its class.
        group: the name of its group.
        dup_cluster: what exact duplicates share; None for an image that has none.
        role: which it was given.
        stages: that learn from it.
    """

    path: str
    sha256: str
    sha256_px: str | None
    w: int | None
    h: int | None
    label: str | None
    group: str | None
    dup_cluster: str | None
    role: Role
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Head:
    """What the records were made of.

    Attributes:
        format: of both files.
        tool_version: of the package that wrote them.
        fingerprint: of the images, see `ImageSet`.
        transform: what images were turned into.
        counts: images of every role.
        created: when, ISO 8601 in UTC.
        config_sha256: of the run's settings.
        parent_sha256: the manifest of the run whose weights training began with, or None.
        split: keyed where the salt drew the held-out images, given where a setting named them.
        records_sha256: of the file of records.
    """

    format: int
    tool_version: str
    fingerprint: str
    transform: Mapping[str, object]
    counts: Mapping[str, int]
    created: str
    config_sha256: str
    parent_sha256: str | None
    split: str
    records_sha256: str


@dataclass(frozen=True)
class Manifest:
    """A run's record of its split.

    Attributes:
        head: what it was made of.
        records: of all images, sorted by path.
    """

    head: Head
    records: tuple[Record, ...]

    @property
    def sha256(self) -> str:
        """Names this manifest in checkpoints and reports."""
        return self.head.records_sha256

    @property
    def good(self) -> tuple[Record, ...]:
        """Records of the images that could be read."""
        return tuple(record for record in self.records if record.sha256_px is not None)

    def indices(self, role: Role) -> NDArray[np.int64]:
        """The rows of an image set that `align` gave which have this role; none are excluded, as those have no row."""
        return np.array([row for row, record in enumerate(self.good) if record.role == role], np.int64)

    def difference(self, image_set: ImageSet) -> str:
        """What is another than when the run began, "" where nothing is that can be learned: pixels and classes.

        Where the images lie, what their files are called and how they are encoded, is not asked for.
        """
        # Another version of the decoder may give the same pixels, and the same files other ones, by other limits.
        if _but_version(image_set.transform.describe()) != _but_version(self.head.transform):
            return f"now {image_set.transform.describe()}, then {dict(self.head.transform)}"
        before = {record.path: _recorded_key(record) for record in self.good}
        now = dict(zip(image_set.names, _keys(image_set), strict=True))
        both = before.keys() & now.keys()
        changed = sum(before[name] != now[name] for name in both)
        then = Counter(key for name, key in before.items() if name not in both)
        here = Counter(key for name, key in now.items() if name not in both)
        added, removed = (here - then).total(), (then - here).total()
        return f"{added} added, {removed} removed, {changed} changed" if added or removed or changed else ""

    def align(self, image_set: ImageSet) -> ImageSet:
        """The images in the order of the manifest, which is that of their names when the run began.

        Raises:
            InputError: images were added, removed or changed, or something else is made of them.
        """
        what = self.difference(image_set)
        if what:
            raise InputError(
                "data.path",
                f"the images are not those this run began with ({what})",
                remedy="put them back, say where they are now with --data, or start a new run with --resume never",
            )
        rows: dict[Key, deque[int]] = {}
        for row, key in enumerate(_keys(image_set)):
            rows.setdefault(key, deque()).append(row)
        return image_set.in_order(np.array([rows[_recorded_key(record)].popleft() for record in self.good], np.int64))


Key = tuple[str | None, str | None]
"""What of an image can be learned: the sha256 of its pixels, and the name of its class."""


def _recorded_key(record: Record) -> Key:
    return record.sha256_px, record.label


def _keys(image_set: ImageSet) -> list[Key]:
    """Of every good image of a set."""
    if image_set.labels is None:
        return [(digest, None) for digest in image_set.sha256_px]
    names = [image_set.class_names[label] for label in image_set.labels]
    return list(zip(image_set.sha256_px, names, strict=True))


def _but_version(transform: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in transform.items() if key != "version"}


# --- writing ---------------------------------------------------------------------------------------------------------


def write_manifest(
    folder: Path,
    image_set: ImageSet,
    roles: Sequence[Role],
    *,
    groups: Sequence[str] | None = None,
    stages: Sequence[str] = (),
    tool_version: str,
    config_sha256: str,
    parent_sha256: str | None = None,
    split: str = "keyed",
) -> str:
    """Writes both files.

    Args:
        folder: of the run.
        image_set: the images.
        roles: of each of them.
        groups: of each of them, or None.
        stages: that learn from members.
        tool_version, config_sha256, parent_sha256, split: see `Head`.

    Returns:
        The sha256 of the records.

    Raises:
        InputError: the folder cannot be made.
        StorageError: a file cannot be written.
    """
    records = _records(image_set, roles, groups, tuple(stages))
    lines = "".join(json.dumps(vars(record)) + "\n" for record in records).encode("ascii")
    counts = Counter(record.role for record in records)
    head = Head(
        format=_FORMAT,
        tool_version=tool_version,
        fingerprint=image_set.fingerprint,
        transform=image_set.transform.describe(),
        counts={role: counts[role] for role in ROLES},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config_sha256=config_sha256,
        parent_sha256=parent_sha256,
        split=split,
        records_sha256=hashlib.sha256(lines).hexdigest(),
    )
    make_folder(folder)
    write_bytes(folder / RECORDS, lines, private=True)
    write_bytes(folder / HEAD, (json.dumps(vars(head), indent=2) + "\n").encode("ascii"), private=True)
    return head.records_sha256


def _records(
    image_set: ImageSet, roles: Sequence[Role], groups: Sequence[str] | None, stages: tuple[str, ...]
) -> list[Record]:
    times_seen = Counter(image_set.sha256_px)
    records = []
    for row, (name, role) in enumerate(zip(image_set.names, roles, strict=True)):
        sha256_px = image_set.sha256_px[row]
        width, height = image_set.source_sizes[row]
        records.append(
            Record(
                path=name,
                sha256=image_set.sha256[row],
                sha256_px=sha256_px,
                w=width,
                h=height,
                label=None if image_set.labels is None else image_set.class_names[image_set.labels[row]],
                group=None if groups is None else groups[row],
                dup_cluster=sha256_px[:16] if times_seen[sha256_px] > 1 else None,
                role=role,
                stages=stages if role == "member" else (),
            )
        )
    for (name, _), sha256 in zip(image_set.bad, image_set.bad_sha256, strict=True):
        records.append(Record(name, sha256, None, None, None, None, None, None, "excluded", ()))
    return sorted(records, key=lambda record: record.path)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run, every byte of it as it was written.

    Raises:
        InputError: a file is missing or not as it was written.
    """
    head_path, records_path = folder / HEAD, folder / RECORDS
    try:
        head_text, lines = head_path.read_bytes(), records_path.read_bytes()
    except OSError as error:
        raise _not_valid(Path(str(error.filename)), f"cannot be read ({error.strerror})") from error
    try:
        head = _parse(Head, json.loads(head_text))
    except (ValueError, RecursionError) as error:
        raise _not_valid(head_path, one_line(error)) from error
    if head.format != _FORMAT:
        raise _not_valid(head_path, f"has format {head.format}, wanted {_FORMAT}")
    if hashlib.sha256(lines).hexdigest() != head.records_sha256:
        raise _not_valid(records_path, f"is not what {HEAD} says it was")
    try:
        records = tuple(_parse(Record, json.loads(line)) for line in lines.splitlines())
    except (ValueError, RecursionError) as error:
        raise _not_valid(records_path, one_line(error)) from error
    return Manifest(head, records)


def _not_valid(path: Path, problem: str) -> InputError:
    remedy = "put both files of the manifest back as the run wrote them, or start a new run with --resume never"
    return InputError(str(path), problem, remedy=remedy)


_TYPES: dict[str, type | UnionType] = {
    "format": int,
    "tool_version": str,
    "fingerprint": str,
    "transform": dict,
    "counts": dict,
    "created": str,
    "config_sha256": str,
    "parent_sha256": str | None,
    "split": str,
    "records_sha256": str,
    "path": str,
    "sha256": str,
    "sha256_px": str | None,
    "w": int | None,
    "h": int | None,
    "label": str | None,
    "group": str | None,
    "dup_cluster": str | None,
    "role": str,
    "stages": list,
}
_T = TypeVar("_T", Head, Record)


def _parse(kind: type[_T], value: object) -> _T:
    """`value` as a `kind`. Raises ValueError unless it has exactly its fields, each of its type."""
    names = [field.name for field in fields(kind)]
    if not isinstance(value, dict) or value.keys() != set(names):
        raise ValueError(f"not an object with the keys {', '.join(names)}")
    for name, content in value.items():
        if not isinstance(content, _TYPES[name]) or (name == "role" and content not in ROLES):
            raise ValueError(f"{name} is {content!r}")
    arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
    return kind(**arguments)
