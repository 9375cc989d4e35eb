"""Two audits of the same pictures: which model leaks more, paired, and whether the question is fair.

A model that has learned less leaks less. So the difference is told beside both models' held-out errors, and no order is
claimed where these differ.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.audit import statistics
from maskdm.audit.audit import SCHEMA
from maskdm.audit.statistics import Float64
from maskdm.audit.subgroups import FEWEST
from maskdm.errors import InputError

ALIKE = 0.02
"""Held-out errors that differ by less, as a share, count as equal."""


@dataclass(frozen=True)
class Kept:
    """An audit as its files keep it.

    Attributes:
        folder: where.
        record: `audit.json`.
        members, heldout: identities and primary scores.
        groups: identities of either and numbers of their groups, where they have any.
    """

    folder: Path
    record: dict[str, Any]
    members: dict[str, float]
    heldout: dict[str, float]
    groups: tuple[dict[str, int], dict[str, int]] | None = None


def read_audit(folder: Path) -> Kept:
    """The files that `maskdm audit` left in a folder (a run's folder will do).

    Raises:
        InputError: they are not there, or of another version.
    """
    if (folder / "audit" / "audit.json").is_file():
        folder = folder / "audit"
    try:
        record = json.loads((folder / "audit.json").read_text())
        with np.load(folder / "scores.npz", allow_pickle=False) as arrays:
            ids = [[str(each) for each in arrays[f"{role}_ids"]] for role in ("member", "heldout")]
            scores = [arrays[f"primary/{role}"].tolist() for role in ("members", "heldout")]
            grouped = "member_groups" in arrays
            groups = [arrays[f"{role}_groups"].tolist() for role in ("member", "heldout")] if grouped else None
    except FileNotFoundError:
        raise InputError(f"audit compare: {folder} holds no audit; run maskdm audit first") from None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"audit compare: the audit in {folder} cannot be read ({type(error).__name__}); audit again"
        ) from None
    if record.get("schema") != SCHEMA or record.get("statistic") is None:
        raise InputError(f"audit compare: {folder} has schema {record.get('schema')}, wanted {SCHEMA}; audit it again")
    members, heldout = (dict(zip(i, s, strict=True)) for i, s in zip(ids, scores, strict=True))
    if groups is None:
        return Kept(folder, record, members, heldout)
    of_members, of_heldout = (dict(zip(i, g, strict=True)) for i, g in zip(ids, groups, strict=True))
    return Kept(folder, record, members, heldout, (of_members, of_heldout))


def compare(a: Kept, b: Kept) -> str:
    """What may be said of A against B.

    Raises:
        InputError: too few pictures that both were asked about in the same roles, or another statistic.
    """
    for key in ("statistic", "profile"):
        one, other = a.record.get(key), b.record.get(key)
        if one != other:
            raise InputError(
                f"audit compare: the {key} of A is {one}, of B {other}; audit both again with the same one"
            )
    for kept in (a, b):
        if kept.record["verdict"]["name"] == "INVALID":
            raise InputError(f"audit compare: the audit in {kept.folder} is INVALID, so its scores mean nothing")
    members, heldout = (sorted(x.keys() & y.keys()) for x, y in ((a.members, b.members), (a.heldout, b.heldout)))
    if min(len(members), len(heldout)) < 100:
        raise InputError(
            f"audit compare: {len(members)} members and {len(heldout)} held-out pictures are in both, wanted at least "
            "100 of each; audit models of the same split, with the same --seed"
        )
    first, second = (_scores(kept, members, heldout) for kept in (a, b))
    value, error = statistics.difference(first, second)
    for clusters in (_clusters(kept, members, heldout) for kept in (a, b)):
        if clusters is not None:
            if min(statistics.effective(each) for each in clusters) < FEWEST:
                raise InputError(
                    "audit compare: the pictures are of too few groups, or too many of them of one, wanted as much as "
                    f"{FEWEST} groups of equal size tell, of members and of held-out pictures; audit more pictures"
                )
            error = max(error, statistics.difference(first, second, clusters)[1])
    half = statistics.NORMAL.inv_cdf(0.975) * error
    low, high = value - half, value + half
    errors = [float(kept.record["error"]["heldout"]) for kept in (a, b)]
    return "\n".join(
        [
            f"A  {_named(a)}: AUC {statistics.auc(*first).value:.3f}, held-out error {errors[0]:.4f}",
            f"B  {_named(b)}: AUC {statistics.auc(*second).value:.3f}, held-out error {errors[1]:.4f}",
            f"A minus B on the same {len(members):,} members and {len(heldout):,} held-out pictures: AUC {value:+.3f} "
            f"(95 % CI {low:+.3f} to {high:+.3f})",
            _words(low, high, errors),
        ]
    )


def _named(kept: Kept) -> str:
    return f"{kept.folder} ({kept.record.get('subject', {}).get('weights', 'weights unknown')})"


def _words(low: float, high: float, errors: list[float]) -> str:
    if low <= 0 <= high:
        return "No difference that these pictures show."
    more, less = ("A", "B") if low > 0 else ("B", "A")
    if abs(errors[0] - errors[1]) > ALIKE * min(errors):
        return (
            f"{more} leaks more than {less}, but their held-out errors differ by more than {ALIKE:.0%}: a model that "
            "has learned less leaks less. Compare checkpoints of equal error."
        )
    return f"{more} leaks more than {less} at equal held-out error. One training of each: another seed may differ."


def _clusters(kept: Kept, members: list[str], heldout: list[str]) -> tuple[list[int], list[int]] | None:
    if kept.groups is None:
        return None
    return [kept.groups[0][i] for i in members], [kept.groups[1][i] for i in heldout]


def _scores(kept: Kept, members: list[str], heldout: list[str]) -> tuple[Float64, Float64]:
    return np.array([kept.members[i] for i in members]), np.array([kept.heldout[i] for i in heldout])
