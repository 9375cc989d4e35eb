"""Which image may be learned from, drawn by a keyed hash.

    u = HMAC-SHA256(salt, key of the cluster) as a number in [0, 1)
    u < heldout → heldout,   u < heldout + calibration → calibration,   otherwise member

A cluster is what must not be torn apart: exact duplicates, and the images of one group (a person, a patient, a
scene). Each cluster's role depends on its own key alone, so roles are independent coin flips, do not depend on the
order or the names of the files, and stay as they are when images are added (but for an exact copy of an image in
another file: both then share the role of whichever file's hash comes first). Without the salt nobody can find them out.

A published test set is held out as it is (`given_roles`); whether images were in the training set then is no coin
flip, and an audit cannot certify such a split.
"""

from __future__ import annotations

import csv
import hmac
import io
import itertools
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from maskdm.data.limits import read_regular
from maskdm.data.names import tidy_path
from maskdm.data.source import one_line
from maskdm.errors import ArgumentError, InputError, shown
from maskdm.files import readable, write_once

Role = Literal["member", "heldout", "calibration", "excluded"]
"""`excluded` are the images that could not be read."""

ROLES: tuple[Role, ...] = get_args(Role)
"""All roles."""

PUBLIC_SALT = b"maskdm public salt, version 1"
"""For public data only: whoever has an image can compute with it whether the image was a member."""

LEAST_TO_AUDIT = 10
"""Images of each role that an audit needs."""

SALT_BYTES = 32
"""Length of a machine's own salt."""
MIN_SALT_BYTES = 16
"""Length that a salt of one's own must have."""


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
    """One role for each image: the shares in expectation, the caps strictly, and no requested role left empty.

    Args:
        sha256_px: hashes of the pixels; equal ones share a role.
        groups: names of groups, which share a role too, or None.
        salt: the secret that draws.
        files: hashes of the files: with them an image has the same role whatever size it is decoded to, so that a run
            at 64 px and one at 256 px that starts from it hold out the same images.
        heldout, calibration: shares of the images in [0, 1), less than 1 together.
        max_heldout, max_calibration: most images of these roles.

    Raises:
        ArgumentError: the shares are out of range, or no cluster of images can be spared for a role.
    """
    if not (heldout >= 0 and calibration >= 0 and heldout + calibration < 1):  # so written, NaN fails too
        raise ArgumentError(
            "heldout",
            f"does not fit beside calibration {calibration:g}",
            got=heldout,
            wanted="both at least 0 and less than 1 together",
            remedy="lower them",
        )
    roles: list[Role] = ["member"] * len(sha256_px)
    if heldout == 0 and calibration == 0:
        return roles
    clusters = _clusters(sha256_px, groups, files or sha256_px, salt)
    if len(clusters) < 2:
        raise ArgumentError(
            "heldout" if heldout else "calibration",
            f"all {len(roles)} images are duplicates of each other or of one group, so none can be held out",
            remedy="group them more finely with group_by, or set heldout and calibration to 0",
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
    """Roles where the held-out images are given: they, their duplicates and groups, and none beyond.

    Of the others a share of `calibration` is set aside, drawn as by `assign_roles`; see there.

    Raises:
        ArgumentError: none or all images are given, or no cluster of images can be spared for calibration.
    """
    roles: list[Role] = ["member"] * len(sha256_px)
    clusters = _clusters(sha256_px, groups, files or sha256_px, salt)
    held = [cluster for cluster in clusters if any(heldout[row] for row in cluster.rows)]
    if not held or len(held) == len(clusters):
        raise ArgumentError(
            "heldout",
            f"matches {sum(heldout):,} of {len(roles):,} images, and with them their duplicates and groups",
            wanted="some but not all of them",
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
    """In which names a regular expression is found.

    Raises:
        ArgumentError: `pattern` is none.
    """
    try:
        found = re.compile(pattern)
    except re.error as error:
        problem = f"is not a regular expression ({one_line(error)})"
        raise ArgumentError("pattern", problem, got=pattern, wanted="one such as ^test/") from error
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
    first the held-out images get one, then the members, then, if there are enough, the calibration.
    """
    count = len(u)
    needs_heldout = int(heldout > 0)
    needs_calibration = int(calibration > 0 and count >= needs_heldout + 2)
    first = max(sum(value < heldout for value in u), needs_heldout)
    last = max(sum(value < heldout + calibration for value in u), first + needs_calibration)
    last = min(last, count - 1)
    return min(first, last - needs_calibration), last


def _under_cap(role: Role, drawn: Sequence[_Cluster], left: Iterable[_Cluster], cap: int) -> list[_Cluster]:
    """Those of `drawn` that are still left, in order of u, up to `cap` images.

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
        raise ArgumentError(
            role,
            f"no group is small enough: the smallest has {smallest} images",
            wanted=f"at most {cap}",
            remedy=f"group them more finely with group_by, or set {role} to 0",
        )
    return taken


# --- groups ----------------------------------------------------------------------------------------------------------


def group_names(names: Sequence[str], group_by: str | None) -> list[str] | None:
    """The group of each image.

    Args:
        names: of the images.
        group_by: "folder"; a CSV file with the columns path and group; a regular expression whose one group is searched
            in the name; or None for no groups.

    Raises:
        ArgumentError: the regular expression is none, has not one group, or finds none in a name.
        InputError: the CSV file cannot be read, or lacks a column or an image.
    """
    if group_by is None:
        return None
    if group_by == "folder":
        return [PurePosixPath(name).parent.as_posix() for name in names]
    if group_by.lower().endswith(".csv"):
        return _groups_of_csv(names, Path(group_by))
    return _groups_of_pattern(names, group_by)


def _groups_of_csv(names: Sequence[str], path: Path) -> list[str]:
    wanted = "a CSV file with the header path,group and one row for each image"
    try:
        text = io.StringIO(read_regular(path).decode("utf-8-sig"), newline="")
        rows = csv.DictReader(text, strict=True)
        if not {"path", "group"} <= set(rows.fieldnames or ()):
            raise InputError(str(path), f"has the columns {rows.fieldnames or []}", wanted=wanted)
        group_of = {readable(tidy_path(row["path"] or "")): row["group"] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(path), f"cannot be read ({one_line(error)})", wanted=wanted) from error
    missing = [name for name in names if not group_of.get(name)]
    if missing:
        problem = f"has no group for {len(missing)} of {len(names)} images, the first {shown(missing[0])}"
        raise InputError(str(path), problem, wanted=wanted)
    return [group_of[name] for name in names]


def _groups_of_pattern(names: Sequence[str], text: str) -> list[str]:
    def wrong(problem: str) -> ArgumentError:
        wanted = "folder, a .csv file, or a regular expression with one group such as ^([^_]+)_"
        return ArgumentError("group_by", problem, got=text, wanted=wanted)

    try:
        pattern = re.compile(text)
    except re.error as error:
        raise wrong(f"is not a regular expression ({one_line(error)})") from error
    if pattern.groups != 1:
        raise wrong(f"has {pattern.groups} capturing groups")
    groups = []
    for name in names:
        match = pattern.search(name)
        if match is None or match[1] is None:
            raise wrong(f"finds no group in {shown(name)}")
        groups.append(match[1])
    return groups


# --- the salt --------------------------------------------------------------------------------------------------------


def read_salt(salt: str, cache_dir: Path) -> bytes:
    """The secret that draws the roles.

    Args:
        salt: machine: random bytes that this machine keeps in `cache_dir`; public: a published constant, for public
            data only, as anyone can then compute who was a member; else a file with a secret of one's own.
        cache_dir: where a machine's secret lies, and is made once.

    Raises:
        ArgumentError: the file cannot be read or is too short.
        InputError: the machine's secret cannot be kept, or is damaged.
    """
    if salt == "public":
        return PUBLIC_SALT
    if salt == "machine":
        return _machine_salt(cache_dir / "salt")
    wanted = f"machine, public, or a file of at least {MIN_SALT_BYTES} random bytes"
    try:
        secret = read_regular(Path(salt))
    except OSError as error:
        raise ArgumentError("salt", f"cannot be read ({error.strerror or error})", got=salt, wanted=wanted) from error
    if len(secret) < MIN_SALT_BYTES:
        raise ArgumentError("salt", f"has {len(secret)} bytes", got=salt, wanted=wanted)
    return secret


def _machine_salt(path: Path) -> bytes:
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_once(path, secrets.token_bytes(SALT_BYTES), private=True)
        salt = path.read_bytes()
    except OSError as error:
        raise InputError(
            str(path),
            f"cannot be kept ({error.strerror or error})",
            remedy="set data.cache_dir to a writable folder, or data.salt to a file of random bytes",
        ) from error
    if len(salt) != SALT_BYTES:
        raise InputError(
            str(path),
            f"has {len(salt)} bytes",
            wanted=f"{SALT_BYTES}",
            remedy="put it back from a copy, or remove it and every new run draws new roles",
        )
    return salt
