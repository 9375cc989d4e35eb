"""Two audits of the same images: which model leaks more, paired, and whether the question is fair.

A model that has learned less leaks less. So the difference stands beside both models' held-out errors, and no order is
claimed where these differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from maskdm.auditing import statistics
from maskdm.auditing.record import SavedAudit
from maskdm.auditing.statistics import Float64, normal_quantile
from maskdm.auditing.subgroups import MIN_GROUP_SIZE
from maskdm.errors import InputError

ERROR_TOLERANCE = 0.02
"""Held-out errors that differ by less, as a share of the smaller, count as equal."""
MIN_COMMON_IMAGES = 100
"""Images of each role that both audits must have asked about."""


@dataclass(frozen=True)
class AuditedModel:
    """One side of a comparison.

    Attributes:
        folder: of the audit.
        weights: the name of the file that was audited.
        auc: of the primary statistic, on the images that both audits have.
        heldout_error: mean squared error of the estimated image.
    """

    folder: str
    weights: str
    auc: float
    heldout_error: float


@dataclass(frozen=True)
class AuditComparison:
    """Model A against model B on the same images.

    Attributes:
        a, b: the two models.
        members, heldout: numbers of images that both audits have.
        difference: AUC of A minus AUC of B.
        low, high: its 95 % interval.
    """

    a: AuditedModel
    b: AuditedModel
    members: int
    heldout: int
    difference: float
    low: float
    high: float

    @property
    def leaks_more(self) -> Literal["A", "B"] | None:
        """Which model leaks more; None where the interval holds zero."""
        if self.low <= 0 <= self.high:
            return None
        return "A" if self.low > 0 else "B"

    @property
    def equal_errors(self) -> bool:
        """Whether held-out errors are so near each other that the comparison is fair."""
        errors = (self.a.heldout_error, self.b.heldout_error)
        return abs(errors[0] - errors[1]) <= ERROR_TOLERANCE * min(errors)

    @property
    def summary(self) -> str:
        """What may be said, in a sentence or two."""
        if self.leaks_more is None:
            return "No difference that these images show."
        more, less = ("A", "B") if self.leaks_more == "A" else ("B", "A")
        if not self.equal_errors:
            return (
                f"{more} leaks more than {less}, but their held-out errors differ by more than {ERROR_TOLERANCE:.0%}: "
                "a model that has learned less leaks less. Compare checkpoints of equal error."
            )
        return f"{more} leaks more than {less} at equal held-out error. One training of each: another seed may differ."


def compare_saved_audits(a: SavedAudit, b: SavedAudit) -> AuditComparison:
    """The paired difference of two audits' primary statistics.

    Args:
        a, b: with the same statistic and profile, of models with the same split.

    Raises:
        InputError: too few images that both were asked about in the same roles, another statistic or profile, or an
            audit that is invalid.
    """
    _check_comparable(a, b)
    members, heldout = (sorted(x.keys() & y.keys()) for x, y in ((a.members, b.members), (a.heldout, b.heldout)))
    if min(len(members), len(heldout)) < MIN_COMMON_IMAGES:
        raise InputError(
            str(b.folder),
            f"has {len(members)} members and {len(heldout)} held-out images in common with {a.folder}",
            wanted=f"at least {MIN_COMMON_IMAGES} of each",
            remedy="audit models of the same split, with the same seed",
        )
    first, second = (_scores(each, members, heldout) for each in (a, b))
    difference, error = statistics.auc_difference(first, second)
    for each in (a, b):
        clusters = _clusters(each, members, heldout)
        if clusters is not None:
            error = max(error, statistics.auc_difference(first, second, clusters)[1])
    half = normal_quantile(0.975) * error
    return AuditComparison(
        a=_model(a, first),
        b=_model(b, second),
        members=len(members),
        heldout=len(heldout),
        difference=difference,
        low=difference - half,
        high=difference + half,
    )


def comparison_lines(found: AuditComparison) -> list[str]:
    """A comparison for a person: both models, the difference, the summary."""
    sides = (("A", found.a), ("B", found.b))
    return [
        *(
            f"{name}  {side.folder} ({side.weights}): AUC {side.auc:.3f}, held-out error {side.heldout_error:.4f}"
            for name, side in sides
        ),
        f"A minus B on the same {found.members:,} members and {found.heldout:,} held-out images: "
        f"AUC {found.difference:+.3f} (95 % CI {found.low:+.3f} to {found.high:+.3f})",
        found.summary,
    ]


def _check_comparable(a: SavedAudit, b: SavedAudit) -> None:
    for key in ("statistic", "profile"):
        one, other = a.record.get(key), b.record.get(key)
        if one != other:
            raise InputError(
                str(b.folder),
                f"has another {key} than {a.folder}",
                got=other,
                wanted=str(one),
                remedy="audit both again with the same one",
            )
    for each in (a, b):
        if each.record["verdict"]["name"] == "INVALID":
            raise InputError(str(each.folder), "is INVALID, so its scores mean nothing", remedy="see its controls")


def _model(audit: SavedAudit, scores: tuple[Float64, Float64]) -> AuditedModel:
    return AuditedModel(
        str(audit.folder),
        audit.record.get("subject", {}).get("weights", "weights unknown"),
        statistics.auc(*scores).value,
        float(audit.record["error"]["heldout"]),
    )


def _clusters(audit: SavedAudit, members: Sequence[str], heldout: Sequence[str]) -> tuple[list[int], list[int]] | None:
    """The groups of the images that are compared; None without groups.

    Raises:
        InputError: they are too few.
    """
    if audit.groups is None:
        return None
    clusters = [audit.groups[0][i] for i in members], [audit.groups[1][i] for i in heldout]
    effective = min(statistics.effective_clusters(each) for each in clusters)
    if effective < MIN_GROUP_SIZE:
        raise InputError(
            str(audit.folder),
            f"the images are of too few groups, or too many of one: they say as much as {effective:.1f} of equal size",
            wanted=f"{MIN_GROUP_SIZE}, of members and of held-out images",
            remedy="audit more images",
        )
    return clusters


def _scores(audit: SavedAudit, members: Sequence[str], heldout: Sequence[str]) -> tuple[Float64, Float64]:
    return np.array([audit.members[i] for i in members]), np.array([audit.heldout[i] for i in heldout])
