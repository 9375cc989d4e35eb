"""Roles that depend on nothing but the salt and the images."""

from __future__ import annotations

import stat
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import refused
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maskdm.data.split import PUBLIC_SALT, assign_roles, given_roles, group_names, matching, read_salt
from maskdm.errors import ArgumentError, InputError

# --- roles -----------------------------------------------------------------------------------------------------------

SALTS = st.binary(min_size=16, max_size=32)
HASHES = st.lists(st.integers(0, 60).map(lambda value: f"{value:064x}"), min_size=2, max_size=80)
GROUPED = st.lists(
    st.tuples(st.integers(0, 60).map(lambda value: f"{value:064x}"), st.integers(0, 20).map(str)),
    min_size=2,
    max_size=80,
)
SHARES = st.tuples(st.floats(0, 0.6), st.floats(0, 0.39))


def digests(count: int) -> list[str]:
    return [f"{value:064x}" for value in range(count)]


def clusters(images: Sequence[str], groups: Sequence[str] | None) -> list[set[int]]:
    """The slow and obvious one."""
    found: list[set[int]] = []
    for row in range(len(images)):
        tied = [
            cluster
            for cluster in found
            if any(images[row] == images[r] or (groups and groups[row] == groups[r]) for r in cluster)
        ]
        found = [cluster for cluster in found if cluster not in tied] + [set.union({row}, *tied)]
    return found


@given(HASHES, SALTS, SHARES, st.randoms())
def test_order_does_not_matter(images: list[str], salt: bytes, shares: tuple[float, float], dice: Any) -> None:
    assume(len(set(images)) > 1)
    order = list(range(len(images)))
    dice.shuffle(order)
    roles = assign_roles(images, None, salt=salt, heldout=shares[0], calibration=shares[1])
    shuffled = assign_roles([images[row] for row in order], None, salt=salt, heldout=shares[0], calibration=shares[1])
    assert shuffled == [roles[row] for row in order]


@given(GROUPED, SALTS, SHARES)
def test_what_belongs_together_has_one_role(
    grouped: list[tuple[str, str]], salt: bytes, shares: tuple[float, float]
) -> None:
    images, groups = zip(*grouped, strict=True)
    together = clusters(images, groups)
    assume(len(together) > 1)
    roles = assign_roles(images, groups, salt=salt, heldout=shares[0], calibration=shares[1])
    assert all(len({roles[row] for row in cluster}) == 1 for cluster in together)


@given(GROUPED, SALTS, SHARES, st.integers(0, 12), st.integers(0, 12))
def test_caps_are_strict_and_no_role_is_empty(
    grouped: list[tuple[str, str]], salt: bytes, shares: tuple[float, float], max_heldout: int, max_calibration: int
) -> None:
    images, groups = zip(*grouped, strict=True)
    together = clusters(images, groups)
    refusal: ArgumentError | None = None
    try:
        roles = assign_roles(
            images,
            groups,
            salt=salt,
            heldout=shares[0],
            calibration=shares[1],
            max_heldout=max_heldout,
            max_calibration=max_calibration,
        )
    except ArgumentError as error:
        refusal = error
    if refusal is not None:
        assert refusal.name in ("heldout", "calibration")
        assert len(together) == 1 or "no group is small enough" in refusal.problem
        return
    counts = Counter(roles)
    assert counts["member"] > 0
    assert counts["heldout"] <= max_heldout
    assert counts["calibration"] <= max_calibration
    assert (counts["heldout"] > 0) == (shares[0] > 0)
    if len(together) >= 3:
        assert (counts["calibration"] > 0) == (shares[1] > 0)


def test_added_images_change_no_role() -> None:
    few, many = digests(2000), digests(3000)
    roles = assign_roles(many, None, salt=b"s" * 16)
    assert assign_roles(few, None, salt=b"s" * 16) == roles[:2000]


def test_with_files_the_size_of_the_images_does_not_matter() -> None:
    files = digests(300)
    at_64, at_32 = ([f"{digest}-{size}" for digest in files] for size in (64, 32))
    roles = [assign_roles(pixels, None, salt=bytes(16), files=files) for pixels in (at_64, at_32)]
    assert roles[0] == roles[1]
    # Exact duplicates among the pixels still share a role, though their files differ.
    twins = assign_roles(["same"] * 2 + at_64[2:], None, salt=bytes(16), files=files)
    assert twins[0] == twins[1]
    assert sum(a != b for a, b in zip(twins, roles[0], strict=True)) <= 1


def test_another_salt_draws_other_roles() -> None:
    roles = [assign_roles(digests(2000), None, salt=bytes([value] * 16)) for value in range(2)]
    same = np.mean([a == b for a, b in zip(*roles, strict=True)])
    assert abs(same - (0.85**2 + 0.1**2 + 0.05**2)) < 0.05


def test_shares_are_met_and_independent() -> None:
    counts = Counter(assign_roles(digests(20_000), None, salt=b"s" * 16))
    assert abs(counts["heldout"] - 2000) < 5 * 43
    assert abs(counts["calibration"] - 1000) < 5 * 31
    assert counts["member"] == 20_000 - counts["heldout"] - counts["calibration"]


def test_a_cap_only_lowers_the_threshold() -> None:
    images = digests(3000)
    free = assign_roles(images, None, salt=b"s" * 16)
    capped = assign_roles(images, None, salt=b"s" * 16, max_heldout=100, max_calibration=40)
    assert Counter(capped) == {"member": 2860, "heldout": 100, "calibration": 40}
    assert all(role in ("member", before) for role, before in zip(capped, free, strict=True))


def test_groups_are_drawn_by_their_name_alone() -> None:
    """So a person who brings more images stays on the same side."""
    groups = [f"person {row // 3}" for row in range(900)]
    roles = assign_roles(digests(900), groups, salt=b"s" * 16)
    other_images = [f"{value:064x}" for value in range(5000, 5900)]
    assert assign_roles(other_images, groups, salt=b"s" * 16) == roles


def test_nothing_requested() -> None:
    assert assign_roles(["0"] * 9, None, salt=b"s" * 16, heldout=0, calibration=0) == ["member"] * 9


@pytest.mark.parametrize(
    ("count", "shares", "expected"),
    [
        (2, (0.1, 0.05), {"heldout": 1, "member": 1}),
        (3, (0.1, 0.05), {"heldout": 1, "calibration": 1, "member": 1}),
        (3, (0.9, 0.09), {"heldout": 1, "calibration": 1, "member": 1}),
        (2, (0.0, 0.5), {"calibration": 1, "member": 1}),
        (4, (1e-9, 1e-9), {"heldout": 1, "calibration": 1, "member": 2}),
    ],
)
@given(salt=SALTS)
@settings(max_examples=20)
def test_tiny_sets(count: int, shares: tuple[float, float], expected: dict[str, int], salt: bytes) -> None:
    roles = assign_roles(digests(count), None, salt=salt, heldout=shares[0], calibration=shares[1])
    assert Counter(roles) == expected


@pytest.mark.parametrize("groups", [None, ["a"] * 9])
def test_all_of_one_cluster(groups: list[str] | None) -> None:
    images = ["0"] * 9 if groups is None else digests(9)
    with refused("heldout", "all 9 images are duplicates", remedy="group_by", kind=ArgumentError):
        assign_roles(images, groups, salt=b"s" * 16)


def test_no_group_under_the_cap() -> None:
    remedy = "group them more finely with group_by, or set heldout to 0"
    with refused("heldout", "the smallest has 5 images", wanted="at most 4", remedy=remedy, kind=ArgumentError):
        assign_roles(digests(15), ["a"] * 5 + ["b"] * 5 + ["c"] * 5, salt=b"s" * 16, max_heldout=4)


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.1, -0.1), (0.6, 0.4), (float("nan"), 0.1), (1.0, 0.0)])
def test_shares_out_of_range(shares: tuple[float, float]) -> None:
    problem = f"does not fit beside calibration {shares[1]:g}"
    with refused("heldout", problem, wanted="less than 1 together", remedy="lower them", kind=ArgumentError):
        assign_roles(digests(9), None, salt=b"s" * 16, heldout=shares[0], calibration=shares[1])


# --- given roles -----------------------------------------------------------------------------------------------------


@given(GROUPED, st.data(), SALTS, st.floats(0, 0.9))
def test_given_images_their_duplicates_and_groups_are_held_out_and_none_beyond(images, data, salt, calibration):
    px, groups = [p for p, _ in images], [g for _, g in images]
    held = data.draw(st.lists(st.booleans(), min_size=len(px), max_size=len(px)))
    tied = clusters(px, groups)
    wanted = [cluster for cluster in tied if any(held[row] for row in cluster)]
    assume(0 < len(wanted) < len(tied))
    roles = given_roles(px, groups, held, salt=salt, calibration=calibration)
    for cluster in tied:
        (role,) = {roles[row] for row in cluster}
        assert (role == "heldout") == (cluster in wanted)
    assert "member" in roles
    assert ("calibration" in roles) == (calibration > 0 and len(tied) - len(wanted) > 1)


@pytest.mark.parametrize("held", [[False] * 4, [True] * 4])
def test_some_but_not_all_must_be_given(held):
    problem = f"matches {sum(held)} of 4 images, and with them their duplicates and groups"
    with refused("heldout", problem, wanted="some but not all", kind=ArgumentError):
        given_roles(digests(4), None, held, salt=PUBLIC_SALT)


def test_given_by_a_pattern():
    assert matching(["train/a.png", "test/a.png", "x/test/b.png"], "^test/") == [False, True, False]
    with refused("pattern", "not a regular expression (", got="[", wanted="^test/", kind=ArgumentError):
        matching(["a"], "[")


# --- groups ----------------------------------------------------------------------------------------------------------

NAMES = ["ann/1.png", "ann/2.png", "bob_x/3.png"]


def test_groups_by_folder_and_pattern() -> None:
    assert group_names(NAMES, None) is None
    assert group_names(NAMES, "folder") == ["ann", "ann", "bob_x"]
    assert group_names(["a.png", "p/q/b.png"], "folder") == [".", "p/q"]
    assert group_names(NAMES, "^([a-z]+)") == ["ann", "ann", "bob"]


def test_groups_by_csv(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text(
        '\ufeffgroup,path,more\nA,ann/1.png,x\nB,ann/2.png,x\n"C, D",bob_x/3.png,x\nE,other.png,x\n', "utf-8"
    )
    assert group_names(NAMES, str(table)) == ["A", "B", "C, D"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"path,group\nann/1.png,A\n", "has no group for 2 of 3 images, the first 'ann/2.png'"),
        (b"path,group\nann/1.png,A\nann/2.png\nbob_x/3.png,\n", "2 of 3 images, the first 'ann/2.png'"),
        (b"name,group\n", "has the columns ['name', 'group']"),
        (b"", "has the columns []"),
        (b"path,group\n\xff\xfe,A\n", "cannot be read ("),
        (b'path,group\n"ann', "cannot be read ("),
        (None, "cannot be read ("),
    ],
)
def test_groups_by_a_wrong_csv(content: bytes | None, problem: str, tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    if content is not None:
        table.write_bytes(content)
    with refused(table, problem, wanted="a CSV file with the header path,group"):
        group_names(NAMES, str(table))


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(", "is not a regular expression ("),
        ("[a-z]+", "has 0 capturing groups"),
        ("(a)(b)", "has 2 capturing groups"),
        ("(ann)", "finds no group in 'bob_x/3.png'"),
        ("bob|(ann)", "finds no group in 'bob_x/3.png'"),
        ("(\n", "is not a regular expression ("),
    ],
)
def test_groups_by_a_wrong_pattern(pattern: str, problem: str) -> None:
    with refused("group_by", problem, got=pattern, wanted="folder, a .csv file", kind=ArgumentError):
        group_names(NAMES, pattern)


# --- the salt --------------------------------------------------------------------------------------------------------


def test_salt_of_the_machine(tmp_path: Path) -> None:
    salt = read_salt("machine", tmp_path / "cache")
    assert len(salt) == 32
    assert read_salt("machine", tmp_path / "cache") == salt
    assert stat.S_IMODE((tmp_path / "cache/salt").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["salt"]
    assert read_salt("machine", tmp_path / "other") != salt


def test_salt_of_the_machine_is_one_for_all_who_come_first(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def read(_: int) -> bytes:
        start.wait()
        return read_salt("machine", tmp_path)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(read, range(8)))) == 1


def test_salt_from_a_file_or_public(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"0123456789abcdef")
    assert read_salt(str(tmp_path / "secret"), tmp_path) == b"0123456789abcdef"
    assert read_salt("public", tmp_path) == PUBLIC_SALT


def test_salts_that_are_wrong(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    wanted = "machine, public, or a file of at least 16 random bytes"
    with refused("salt", "cannot be read (No such file", got=str(secret), wanted=wanted, kind=ArgumentError):
        read_salt(str(secret), tmp_path)
    secret.write_bytes(b"short")
    with refused("salt", "has 5 bytes", got=str(secret), wanted=wanted, kind=ArgumentError):
        read_salt(str(secret), tmp_path)
    (tmp_path / "salt").write_bytes(b"short")
    with refused(tmp_path / "salt", "has 5 bytes", wanted="32", remedy="put it back", kind=InputError):
        read_salt("machine", tmp_path)
    with refused(secret / "salt", "cannot be kept (", remedy="set data.cache_dir", kind=InputError):
        read_salt("machine", secret)
