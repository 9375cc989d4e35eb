"""Two audits compared on the images that they have in common."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maskdm.auditing.paired import AuditComparison, compare_saved_audits, comparison_lines
from maskdm.auditing.record import SCHEMA, read_audit
from maskdm.errors import InputError


def write_audit(
    folder: Path,
    shift: float,
    error: float,
    seed: int = 0,
    *,
    n: int = 400,
    name: str = "LEAKAGE DETECTED",
    copies: int | None = None,
) -> Path:
    """An audit's files; with `copies` every image is as many that are all alike."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pool, own = rng.normal(size=(2, n)), np.random.default_rng(seed + 1).normal(size=(2, n))
    members, heldout = (
        np.repeat(each, copies or 1) for each in (pool[0] + shift + 0.3 * own[0], pool[1] + 0.3 * own[1])
    )
    arrays = {"primary/members": members, "primary/heldout": heldout}
    for role in ("member", "heldout"):
        arrays[f"{role}_ids"] = np.array([f"{role}{i}" for i in range(len(members))])
        if copies is not None:
            arrays[f"{role}_groups"] = np.arange(len(members)) // copies
    np.savez(folder / "scores.npz", **arrays)
    page = {"schema": SCHEMA, "statistic": "v", "verdict": {"name": name}, "error": {"heldout": error}}
    (folder / "audit.json").write_text(json.dumps(page), encoding="utf-8")
    return folder


def compared(*folders: Path) -> AuditComparison:
    a, b = (read_audit(folder) for folder in folders)
    return compare_saved_audits(a, b)


@pytest.mark.parametrize(
    ("shifts", "errors", "leaks_more", "equal_errors"),
    [
        ((1.0, 0.6), (0.05, 0.0505), "A", True),
        ((0.6, 1.0), (0.05, 0.0505), "B", True),
        ((1.0, 0.6), (0.05, 0.06), "A", False),
        ((0.8, 0.8), (0.05, 0.05), None, True),
    ],
)
def test_pairs(shifts, errors, leaks_more, equal_errors, tmp_path):
    a, b = (write_audit(tmp_path / n, s, e, i) for i, (n, s, e) in enumerate(zip("ab", shifts, errors, strict=True)))
    found = compared(a, b)
    assert (found.members, found.heldout) == (400, 400)
    assert (found.leaks_more, found.equal_errors) == (leaks_more, equal_errors)
    assert found.difference == pytest.approx(found.a.auc - found.b.auc)
    assert found.low < found.difference < found.high
    assert (found.a.folder, found.b.heldout_error) == (str(a), errors[1])
    first, second, difference, summary = comparison_lines(found)
    assert first.startswith(f"A  {a} ")
    assert second.startswith(f"B  {b} ")
    assert f"AUC {found.difference:+.3f}" in difference
    assert summary == found.summary


def test_an_order_is_claimed_at_equal_error_alone(tmp_path):
    a, b, c = (
        write_audit(tmp_path / name, shift, error)
        for name, shift, error in (("a", 1.0, 0.05), ("b", 0.6, 0.0505), ("c", 0.6, 0.06))
    )
    assert "at equal held-out error" in compared(a, b).summary
    assert "a model that has learned less leaks less" in compared(a, c).summary
    assert "No difference" in compared(a, a).summary


def test_pairs_of_groups_count_as_groups(tmp_path):
    found = {}
    for copies in (1, 4):
        a, b = (
            write_audit(tmp_path / f"{n}{copies}", s, 0.05, i, copies=copies)
            for i, (n, s) in enumerate([("a", 0.8), ("b", 0.6)])
        )
        found[copies] = compared(a, b)
    assert found[4].members == 1600
    # Four hundred groups of four that are all alike say what four hundred images do.
    assert found[4].difference == pytest.approx(found[1].difference)
    assert (found[4].low, found[4].high) == pytest.approx((found[1].low, found[1].high), abs=1e-3)


def test_pairs_of_few_groups_are_not_compared(tmp_path):
    a, b = (write_audit(tmp_path / n, 0.8, 0.05, i, n=20, copies=20) for i, n in enumerate("ab"))
    with pytest.raises(InputError, match="of too few groups") as caught:
        compared(a, b)
    assert caught.value.name == str(a)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"n": 50}, "50 members and 50 held-out images in common"), ({"name": "INVALID"}, "is INVALID")],
)
def test_pairs_that_cannot_be_compared(changes, problem, tmp_path):
    a, b = write_audit(tmp_path / "a", 1, 0.05), write_audit(tmp_path / "b", 1, 0.05, **changes)
    with pytest.raises(InputError) as caught:
        compared(a, b)
    assert caught.value.name == str(b)
    assert problem in caught.value.problem


def test_audits_of_another_profile_are_not_compared(tmp_path):
    a, b = (write_audit(tmp_path / name, 1, 0.05) for name in "ab")
    record = json.loads((b / "audit.json").read_text(encoding="utf-8"))
    (b / "audit.json").write_text(json.dumps(record | {"profile": "quick"}), encoding="utf-8")
    with pytest.raises(InputError, match="another profile") as caught:
        compared(a, b)
    assert (caught.value.name, caught.value.got) == (str(b), "quick")


def test_an_audit_of_an_older_schema_is_refused(tmp_path):
    folder = write_audit(tmp_path / "a", 1, 0.05)
    record = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    (folder / "audit.json").write_text(json.dumps(record | {"schema": "maskdm-audit/1"}), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_audit(folder)
    assert (caught.value.name, caught.value.got, caught.value.wanted) == (str(folder), "maskdm-audit/1", SCHEMA)


@pytest.mark.parametrize(("content", "problem"), [(None, "holds no audit"), ("{", "cannot be read")])
def test_what_is_no_audit_is_refused(content, problem, tmp_path):
    folder = write_audit(tmp_path / "a", 1, 0.05)
    (folder / "audit.json").unlink()
    if content is not None:
        (folder / "audit.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_audit(folder)
    assert caught.value.name == str(folder)
    assert problem in caught.value.problem
