"""Which picture may be learned from, drawn by a keyed hash.

    u = HMAC-SHA256(salt, key of the cluster) as a number in [0, 1)
    u < heldout → heldout,   u < heldout + calibration → calibration,   otherwise member

A cluster is what must not be torn apart: exact duplicates, and the pictures of one group (a person, a patient, a
scene). Each cluster's role depends on its own key alone, so roles are independent coin flips, do not depend on the
order or the names of the files, and stay as they are when pictures are added (but for an exact copy of a picture in
another file: both then share the role of whichever file's hash comes first). Without the salt nobody can tell them.

A published test set is held out as it is (`given_roles`); whether pictures were in the training set then is no coin
flip, and an audit cannot certify such a split.
"""

import contextlib
import csv
import hmac
import itertools
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from maskdm.data.sources import one_line, shown
from maskdm.errors import InputError

Role = Literal["member", "heldout", "calibration", "excluded"]
"""`excluded` are the pictures that could not be read."""

PUBLIC_SALT = b"maskdm public salt, version 1"
"""For public data only: whoever has a picture can compute with it whether the picture was a member."""

SALT_BYTES = 32
MIN_SALT_BYTES = 16


# --- roles -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Cluster:
    """Rows that share one role, and where the salt puts them in [0, 1)."""

    rows: tuple[int, ...]
    u: float


def assign_roles(
    sha256_px: Sequence[str],
    groups: Sequence[str] | None,
    *,
    salt: bytes,
    files: Sequence[str] | None = None,
    heldout: float = 0.10,
    calibration: float = 0.05,
    max_heldout: int = 10_000,
    max_calibration: int = 5_000,
) -> list[Role]:
    """One role for each picture: the shares in expectation, the caps strictly, and no asked-for role left empty.

    `files` are the hashes of the files themselves: with them a picture has the same role whatever size it is decoded
    to, so that a run at 64 px and one at 256 px that starts from it hold out the same pictures.
    """
    if not (heldout >= 0 and calibration >= 0 and heldout + calibration < 1):  # so written, NaN fails too
        raise InputError(
            f"data.heldout is {heldout} and data.calibration is {calibration}, wanted both at least 0 and less than 1 "
            "together; lower them"
        )
    roles: list[Role] = ["member"] * len(sha256_px)
    if heldout == 0 and calibration == 0:
        return roles
    clusters = _clusters(sha256_px, groups, files or sha256_px, salt)
    if len(clusters) < 2:
        raise InputError(
            f"all {len(roles)} pictures are duplicates of each other or of one group, so none can be held out; "
            "group them more finely with data.group_by, or set data.heldout and data.calibration to 0"
        )
    first, last = _bounds([cluster.u for cluster in clusters], heldout, calibration)
    draws: list[tuple[Role, list[_Cluster], int]] = [
        ("heldout", clusters[:first], max_heldout),
        ("calibration", clusters[first:last], max_calibration),
    ]
    left = dict.fromkeys(clusters)  # an ordered set
    for role, drawn, cap in draws:
        for cluster in _under_cap(role, drawn, left, cap):
            del left[cluster]
            for row in cluster.rows:
                roles[row] = role
    return roles


def given_roles(
    sha256_px: Sequence[str],
    groups: Sequence[str] | None,
    heldout: Sequence[bool],
    *,
    salt: bytes,
    files: Sequence[str] | None = None,
    calibration: float = 0.05,
    max_calibration: int = 5_000,
) -> list[Role]:
    """Roles where the held-out pictures are given: they, their duplicates and groups, and none beyond.

    Of the others a share of `calibration` is set aside, drawn as by `assign_roles`.
    """
    roles: list[Role] = ["member"] * len(sha256_px)
    clusters = _clusters(sha256_px, groups, files or sha256_px, salt)
    held = [cluster for cluster in clusters if any(heldout[row] for row in cluster.rows)]
    if not held or len(held) == len(clusters):
        raise InputError(
            f"data.heldout_by: matches {sum(heldout):,} of {len(roles):,} pictures, and with them their duplicates and "
            "groups; wanted some but not all of them"
        )
    taken = set(held)
    left = dict.fromkeys(cluster for cluster in clusters if cluster not in taken)
    count = max(sum(cluster.u < calibration for cluster in left), int(calibration > 0))
    drawn = list(left)[: min(count, len(left) - 1)]  # somebody must be learned from
    chosen: list[tuple[Role, list[_Cluster]]] = [
        ("heldout", held),
        ("calibration", _under_cap("calibration", drawn, left, max_calibration)),
    ]
    for role, part in chosen:
        for cluster in part:
            for row in cluster.rows:
                roles[row] = role
    return roles


def matching(names: Sequence[str], pattern: str) -> list[bool]:
    """Which names `data.heldout_by` matches."""
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"data.heldout_by is {pattern!r}, which is no regular expression: {one_line(error)}; wanted one such as "
            "^test/"
        ) from error
    return [found.search(name) is not None for name in names]


def _clusters(
    sha256_px: Sequence[str], groups: Sequence[str] | None, files: Sequence[str], salt: bytes
) -> list[_Cluster]:
    """The clusters in order of u."""
    keys = [f"p:{digest}" for digest in files] if groups is None else [f"g:{group}" for group in groups]
    parent = list(range(len(sha256_px)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first_with: dict[str, int] = {}
    for row, digest in enumerate(sha256_px):
        for tie in (f"d:{digest}", keys[row]):
            parent[root(row)] = root(first_with.setdefault(tie, row))
    rows_of: dict[int, list[int]] = {}
    for row in range(len(parent)):
        rows_of.setdefault(root(row), []).append(row)
    clusters = (_Cluster(tuple(rows), _uniform(salt, min(keys[row] for row in rows))) for rows in rows_of.values())
    return sorted(clusters, key=lambda cluster: cluster.u)


def _uniform(salt: bytes, key: str) -> float:
    digest = hmac.digest(salt, key.encode("utf-8", "surrogateescape"), "sha256")
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # the bits that a float holds, so it is never 1


def _bounds(u: Sequence[float], heldout: float, calibration: float) -> tuple[int, int]:
    """Clusters [0, first) are held out and [first, last) calibrate, where u is sorted and has at least two values.

    On small sets the thresholds may leave a role empty. Then they move by whole clusters, and as little as they must:
    first the held-out pictures get one, then the members, then, if there are enough, the calibration.
    """
    count = len(u)
    needs_heldout = int(heldout > 0)
    needs_calibration = int(calibration > 0 and count >= needs_heldout + 2)
    first = max(sum(value < heldout for value in u), needs_heldout)
    last = max(sum(value < heldout + calibration for value in u), first + needs_calibration)
    last = min(last, count - 1)
    return min(first, last - needs_calibration), last


def _under_cap(role: Role, drawn: Sequence[_Cluster], left: Iterable[_Cluster], cap: int) -> list[_Cluster]:
    """Those of `drawn` that are still left, in order of u, up to `cap` pictures.

    The cap only ever lowers the threshold: a cluster that is passed over becomes a member. If not even the first one
    is under the cap, the first of all that are left and under it takes its place.
    """
    if not drawn:
        return []
    available = set(left)
    sizes = itertools.accumulate(len(cluster.rows) if cluster in available else 0 for cluster in drawn)
    taken = [cluster for cluster, size in zip(drawn, sizes, strict=True) if size <= cap and cluster in available]
    taken = taken or [cluster for cluster in left if len(cluster.rows) <= cap][:1]
    if not taken:
        smallest = min(len(cluster.rows) for cluster in available)
        raise InputError(
            f"no group is small enough for the role {role}: the smallest has {smallest} pictures, at most {cap} are "
            f"wanted; group them more finely with data.group_by, or set data.{role} to 0"
        )
    return taken


# --- groups ----------------------------------------------------------------------------------------------------------


def group_names(names: Sequence[str], group_by: str | None) -> list[str] | None:
    """The group of each picture: by "folder", by a CSV file (path, group), or by a regular expression's one group."""
    if group_by is None:
        return None
    if group_by == "folder":
        return [PurePosixPath(name).parent.as_posix() for name in names]
    if group_by.lower().endswith(".csv"):
        return _groups_of_csv(names, Path(group_by))
    return _groups_of_pattern(names, group_by)


def _groups_of_csv(names: Sequence[str], path: Path) -> list[str]:
    remedy = "wanted a CSV file with the header path,group and one row for each picture; correct data.group_by"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if not {"path", "group"} <= set(rows.fieldnames or ()):
                raise InputError(f"{shown(path)} has the columns {rows.fieldnames or []}; {remedy}")
            group_of = {row["path"]: row["group"] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{shown(path)} cannot be read: {one_line(error)}; {remedy}") from error
    missing = [name for name in names if not group_of.get(name)]
    if missing:
        raise InputError(
            f"{shown(path)} has no group for {len(missing)} of {len(names)} pictures, the first {shown(missing[0])}; "
            f"{remedy}"
        )
    return [group_of[name] for name in names]


def _groups_of_pattern(names: Sequence[str], text: str) -> list[str]:
    remedy = "wanted folder, a .csv file, or a regular expression with one group such as ^([^_]+)_"
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise InputError(
            f"data.group_by is {text!r}, which is no regular expression: {one_line(error)}; {remedy}"
        ) from error
    if pattern.groups != 1:
        raise InputError(f"data.group_by is {text!r}, with {pattern.groups} capturing groups; {remedy}")
    groups = []
    for name in names:
        match = pattern.search(name)
        if match is None or match[1] is None:
            raise InputError(f"data.group_by is {text!r}, which finds no group in {shown(name)}; {remedy}")
        groups.append(match[1])
    return groups


# --- the salt --------------------------------------------------------------------------------------------------------


def read_salt(setting: str, cache_dir: Path) -> bytes:
    """The secret that draws the roles.

    "machine": random bytes that this machine keeps in `cache_dir`. "public": a published constant, for public data
    only, as anyone can then compute who was a member. Anything else: a file with a secret of your own.
    """
    if setting == "public":
        return PUBLIC_SALT
    if setting == "machine":
        return _machine_salt(cache_dir)
    path = Path(setting)
    remedy = f"wanted machine, public, or a file of at least {MIN_SALT_BYTES} random bytes; correct data.salt"
    try:
        salt = path.read_bytes()
    except OSError as error:
        raise InputError(f"the salt file {shown(path)} cannot be read: {error.strerror}; {remedy}") from error
    if len(salt) < MIN_SALT_BYTES:
        raise InputError(f"the salt file {shown(path)} has {len(salt)} bytes; {remedy}")
    return salt


def _machine_salt(cache_dir: Path) -> bytes:
    path = cache_dir / "salt"
    try:
        if not path.exists():
            _create_once(path, secrets.token_bytes(SALT_BYTES))
        salt = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the salt {shown(path)} cannot be kept: {error.strerror}; set data.cache_dir to a writable folder, "
            "or data.salt to a file of random bytes"
        ) from error
    if len(salt) != SALT_BYTES:
        raise InputError(
            f"the salt {shown(path)} has {len(salt)} bytes, wanted {SALT_BYTES}; put it back from a copy, "
            "or remove it and every new run draws new roles"
        )
    return salt


def _create_once(path: Path, content: bytes) -> None:
    """Creates the file whole, readable by its owner alone; where another process was first, its file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix="salt.tmp-", dir=path.parent)  # created with mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(aside)  # unlike a rename, never replaces a file that is there
    finally:
        Path(aside).unlink()
