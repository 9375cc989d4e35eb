"""The verdict of an audit: exactly one of four, in words that say no more than was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from maskdm.auditing import statistics
from maskdm.auditing.controls import Control
from maskdm.auditing.scoring import ScoredAttack
from maskdm.auditing.subject import RoleGroups

VerdictName = Literal["LEAKAGE DETECTED", "NO LEAKAGE DETECTED BY THESE ATTACKS", "INCONCLUSIVE", "INVALID"]
EXIT_CODES: dict[VerdictName, int] = {
    "NO LEAKAGE DETECTED BY THESE ATTACKS": 0,
    "LEAKAGE DETECTED": 3,
    "INCONCLUSIVE": 4,
    "INVALID": 5,
}
DETECTION_LEVEL = 0.995
"""Of each of the two one-sided tests by which leakage is detected: 99 % for both."""
MIN_IMAGES = 100
"""Images of each role below which nothing is concluded."""
MIN_GROUPS = (30, 30, 10)
"""Likewise groups of members, held-out and calibration images, where they have some: numbers vary by these. Counted as
the groups of equal size that would say as much (`statistics.effective_clusters`)."""
AUC_TO_DETECT = 0.6
"""An audit that might have missed an AUC above this concludes nothing from finding none."""


@dataclass(frozen=True)
class AuditVerdict:
    """What an audit concludes.

    Attributes:
        name: one of four.
        summary: what may be said, in sentences.
        auc: of the primary statistic, or None where no number may be headlined.
        low, high: its 95 % interval.
        detectable: the AUC that so many images would have revealed four times in five.
    """

    name: VerdictName
    summary: str
    auc: float | None
    low: float | None
    high: float | None
    detectable: float

    @property
    def exit_code(self) -> int:
        """Of a process that ran the audit: 0 nothing detected, 3 leakage, 4 inconclusive, 5 invalid."""
        return EXIT_CODES[self.name]

    def exit_code_above(self, fail_above_auc: float | None) -> int:
        """The same, but 0 for leakage up to an AUC that is tolerated; None tolerates none."""
        tolerated = fail_above_auc is not None and self.auc is not None and self.auc <= fail_above_auc
        return 0 if self.name == "LEAKAGE DETECTED" and tolerated else self.exit_code


def leakage_detected(primary: ScoredAttack) -> bool:
    """Whether the AUC, or the share of members found at 1 % false positives, is more than chance allows."""
    point = primary.operating_point(0.01)
    level = 2 * DETECTION_LEVEL - 1  # a two-sided interval whose ends are bounds of DETECTION_LEVEL
    at_low_fpr = point is not None and point.tpr_interval(level)[0] > point.fpr_interval(level)[1]
    return primary.auc.lower(DETECTION_LEVEL) > 0.5 or at_low_fpr


def audit_verdict(primary: ScoredAttack, controls: Sequence[Control], *, may_clear: bool = True) -> AuditVerdict:
    """The verdict from the primary statistic and the controls.

    Args:
        primary: of the audited model.
        controls: all of the audit.
        may_clear: False for the quick profile, which may raise an alarm and never clears a model.
    """
    members, heldout = len(primary.members), len(primary.heldout)
    found = primary.auc
    low, high = found.interval()
    # The tests are two, at 0.5 % each. Of groups there are less than there are images.
    share = _effective_share(primary)
    counts = (max(round(members * share), 1), max(round(heldout * share), 1))
    detectable = statistics.detectable_auc(*counts, level=DETECTION_LEVEL)
    needed = max(round(statistics.images_needed(AUC_TO_DETECT, level=DETECTION_LEVEL) / share), MIN_IMAGES)
    numbers = f"Primary statistic AUC {found.value:.3f} (95 % CI {low:.3f} to {high:.3f})"

    def headline(name: VerdictName, summary: str) -> AuditVerdict:
        return AuditVerdict(name, summary, found.value, low, high, detectable)

    if primary.groups is not None and (few := _few_groups(primary.groups)) is not None:
        return AuditVerdict("INCONCLUSIVE", few, None, None, None, detectable)
    failed = [control for control in controls if not control.passed]
    if failed:
        summary = " ".join(_failure(control) for control in failed)
        return AuditVerdict(
            "INVALID", f"{summary} No number of this audit means anything.", None, None, None, detectable
        )
    if min(members, heldout) < MIN_IMAGES:
        return headline(
            "INCONCLUSIVE",
            f"{members:,} members and {heldout:,} held-out images are too few: with at least {needed:,} of each an "
            f"AUC of {AUC_TO_DETECT:g} would be found four times in five. {numbers}.",
        )
    if leakage_detected(primary):
        return headline("LEAKAGE DETECTED", _leakage(primary, numbers))
    if not may_clear or detectable > AUC_TO_DETECT:
        reason = (
            f"An AUC below {detectable:.3f} might have been missed; {needed:,} images of each role would show "
            f"{AUC_TO_DETECT:g}."
            if may_clear
            else "The quick profile may raise an alarm, and never clears a model; run the standard one."
        )
        return headline("INCONCLUSIVE", f"Nothing was detected. {reason} {numbers}.")
    return headline(
        "NO LEAKAGE DETECTED BY THESE ATTACKS",
        f"With {members:,} members and {heldout:,} held-out images this audit would have found an AUC of "
        f"{detectable:.3f} or more four times in five. {numbers}. Stronger attacks (shadow models, attacks not listed) "
        "may succeed. This is not a guarantee; only training with differential privacy gives one.",
    )


def _few_groups(role_groups: RoleGroups) -> str | None:
    """What to say where images are of so few groups, or so many of one, that no attack or control means much."""
    names = ("members", "held-out images", "calibration images")
    for role, groups, wanted in zip(names, role_groups, MIN_GROUPS, strict=True):
        effective = statistics.effective_clusters(groups)
        if effective < wanted:
            return (
                f"The {len(groups):,} {role} are of {len(set(groups)):,} groups, which say as much as {effective:.1f} "
                f"of equal size; at least {wanted} are needed to conclude anything."
            )
    return None


def _effective_share(primary: ScoredAttack) -> float:
    """The share of its images that would say as much if they were independent: 1 where there are no groups."""
    return min((statistics.auc(primary.members, primary.heldout).error / primary.auc.error) ** 2, 1.0)


def _leakage(primary: ScoredAttack, numbers: str) -> str:
    summary = f"Training images can be told from held-out images of the same source. {numbers}"
    point = primary.operating_point(0.01)
    if point is not None:
        summary += f"; at {point.fpr:.1%} false positives {point.tpr:.0%} of members are identified"
    return f"{summary}. Anyone holding the weights can do at least this."


def _failure(control: Control) -> str:
    if control.name == "blind":
        return f"Members and held-out images differ without any model: blind AUC {control.value:.2f}."
    return f"The control {control.name} came out at {control.value:.2f}; wanted: {control.wanted}."
