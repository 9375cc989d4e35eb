"""The record of which picture had which role, written before the first step of training.

    manifest.jsonl         one record for each picture, sorted by path
    manifest.head.json     what they were made of, and the sha256 of manifest.jsonl

An audit needs a split that was fixed before training, and this is its proof: the head is written last, so a manifest
without a head does not count, and a single changed byte is noticed. Both files are private (mode 0600): they are a
list of who is in the training set.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from maskdm.data.image_set import ImageSet
from maskdm.data.sources import one_line, shown
from maskdm.data.split import PUBLIC_SALT, Role, assign_roles, group_names, read_salt
from maskdm.errors import InputError

__all__ = [
    "PUBLIC_SALT",
    "Head",
    "Manifest",
    "Record",
    "Role",
    "assign_roles",
    "group_names",
    "read_manifest",
    "read_salt",
    "write_manifest",
    "write_private",
]

RECORDS = "manifest.jsonl"
HEAD = "manifest.head.json"
FORMAT = 1
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Record:
    """One picture. Of one that could not be read, only `path`, `sha256` and `role` are known."""

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
    head: Head
    records: tuple[Record, ...]

    @property
    def sha256(self) -> str:
        """Names this manifest in checkpoints and reports."""
        return self.head.records_sha256

    def indices(self, role: Role) -> NDArray[np.int64]:
        """The rows of `ImageSet.images` that have this role; none are excluded, as those have no row."""
        good = [record for record in self.records if record.sha256_px is not None]
        return np.array([row for row, record in enumerate(good) if record.role == role], np.int64)

    def check(self, image_set: ImageSet) -> None:
        """Raises `InputError` unless the pictures, and what is made of them, are those of the manifest."""
        if image_set.fingerprint == self.head.fingerprint:
            return
        before = {record.path: record.sha256 for record in self.records}
        now = dict(
            zip((*image_set.names, *_bad_names(image_set)), (*image_set.sha256, *image_set.bad_sha256), strict=True)
        )
        added, removed = len(now.keys() - before.keys()), len(before.keys() - now.keys())
        changed = sum(before[name] != now[name] for name in before.keys() & now.keys())
        what = f"{added} added, {removed} removed, {changed} changed"
        if not added and not removed and not changed:
            what = f"now {image_set.transform.describe()}, then {dict(self.head.transform)}"
        raise InputError(
            f"the pictures are not those this run began with: {what}; put them back, or start a new run with "
            "--resume never"
        )


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
    """Writes both files into `folder` and returns the sha256 of the records.

    `stages` are what members go through; `split` is keyed where the salt drew the held-out pictures, else given.
    """
    records = _records(image_set, roles, groups, tuple(stages))
    lines = "".join(json.dumps(vars(record)) + "\n" for record in records).encode("ascii")
    counts = Counter(record.role for record in records)
    head = Head(
        format=FORMAT,
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_private(folder / RECORDS, lines)
        write_private(folder / HEAD, (json.dumps(vars(head), indent=2) + "\n").encode("ascii"))
    except OSError as error:
        raise InputError(
            f"the manifest cannot be written into {shown(folder)}: {error.strerror}; give a writable run folder"
        ) from error
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
    for name, sha256 in zip(_bad_names(image_set), image_set.bad_sha256, strict=True):
        records.append(Record(name, sha256, None, None, None, None, None, None, "excluded", ()))
    return sorted(records, key=lambda record: record.path)


def _bad_names(image_set: ImageSet) -> list[str]:
    return [name for name, _ in image_set.bad]


def write_private(path: Path, content: bytes) -> None:
    """The file is there with all its content or as it was before, and only its owner can read it."""
    handle, aside = tempfile.mkstemp(prefix=path.name + ".tmp-", dir=path.parent)  # created with mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).replace(path)
    finally:
        Path(aside).unlink(missing_ok=True)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run, every byte of it as it was written."""
    head_path, records_path = folder / HEAD, folder / RECORDS
    try:
        head_text, lines = head_path.read_bytes(), records_path.read_bytes()
    except OSError as error:
        raise _not_valid(folder, f"{error.strerror}: {shown(error.filename)}") from error
    try:
        head = _parse(Head, json.loads(head_text))
    except (ValueError, RecursionError) as error:
        raise _not_valid(folder, f"{HEAD}: {one_line(error)}") from error
    if head.format != FORMAT:
        raise _not_valid(folder, f"{HEAD} has format {head.format}, wanted {FORMAT}")
    if hashlib.sha256(lines).hexdigest() != head.records_sha256:
        raise _not_valid(folder, f"{RECORDS} is not what {HEAD} says it was")
    try:
        records = tuple(_parse(Record, json.loads(line)) for line in lines.splitlines())
    except (ValueError, RecursionError) as error:
        raise _not_valid(folder, f"{RECORDS}: {one_line(error)}") from error
    return Manifest(head, records)


def _not_valid(folder: Path, what: str) -> InputError:
    return InputError(
        f"{shown(folder)} has no valid manifest: {what}; put both files back as the run wrote them, or start a new run "
        "with --resume never"
    )


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
