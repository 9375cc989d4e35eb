"""The verdict: exactly one of four, in words that say no more than was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maskdm.audit import statistics
from maskdm.audit.scoring import Control, Scored

Name = Literal["LEAKAGE DETECTED", "NO LEAKAGE DETECTED BY THESE ATTACKS", "INCONCLUSIVE", "INVALID"]
EXIT: dict[Name, int] = {
    "NO LEAKAGE DETECTED BY THESE ATTACKS": 0,
    "LEAKAGE DETECTED": 3,
    "INCONCLUSIVE": 4,
    "INVALID": 5,
}
LEVEL = 0.995
"""Of each of the two one-sided tests by which leakage is detected: 99 % for both."""
FEWEST = 100
"""Pictures of each role below which nothing is concluded."""
FEWEST_GROUPS = (30, 30, 10)
"""Likewise groups of members, held-out and calibration pictures, where they have some: numbers vary by these. Counted
as the groups of equal size that would tell as much (`statistics.effective`)."""
WIDEST = 0.6
"""An audit that might have missed an AUC above this concludes nothing from finding none."""


@dataclass(frozen=True)
class Verdict:
    """What an audit concludes.

    Attributes:
        name: one of four.
        words: what may be said.
        auc: of the primary statistic, or None where no number may be headlined.
        low, high: its 95 % interval.
        detectable: the AUC that so many pictures would have shown four times in five.
    """

    name: Name
    words: str
    auc: float | None
    low: float | None
    high: float | None
    detectable: float

    @property
    def exit_code(self) -> int:
        """For whoever runs audits in a pipeline."""
        return EXIT[self.name]


def detected(primary: Scored) -> bool:
    """Whether the AUC, or the members found at 1 % false positives, are more than chance allows."""
    point = primary.operating(0.01)
    level = 2 * LEVEL - 1  # a two-sided interval whose ends are bounds of LEVEL
    at_low_fpr = point is not None and point.tpr_interval(level)[0] > point.fpr_interval(level)[1]
    return primary.auc.lower(LEVEL) > 0.5 or at_low_fpr


def verdict(primary: Scored, controls: list[Control], *, smoke: bool = False) -> Verdict:
    """From the primary statistic and the controls.

    `smoke` is the quick profile, which may raise an alarm and never clears a model.
    """
    members, heldout = len(primary.members), len(primary.heldout)
    found = primary.auc
    low, high = found.interval()
    # The tests are two, at 0.5 % each. Of groups there are less than there are pictures.
    worth = _worth(primary)
    seen_by = statistics.detectable_auc(max(round(members * worth), 1), max(round(heldout * worth), 1), level=LEVEL)
    needed = max(round(statistics.pictures_needed(WIDEST, level=LEVEL) / worth), FEWEST)
    if (few := _few_groups(primary)) is not None:
        return Verdict("INCONCLUSIVE", few, None, None, None, seen_by)
    failed = [control for control in controls if not control.passed]
    if failed:
        words = " ".join(_broken(control) for control in failed)
        return Verdict("INVALID", f"{words} No number of this audit means anything.", None, None, None, seen_by)
    numbers = f"Primary statistic AUC {found.value:.3f} (95 % CI {low:.3f} to {high:.3f})"
    if min(members, heldout) < FEWEST:
        words = (
            f"{members:,} members and {heldout:,} held-out pictures are too few: with at least {needed:,} of "
            f"each an AUC of {WIDEST:g} would be found four times in five. {numbers}."
        )
        return Verdict("INCONCLUSIVE", words, found.value, low, high, seen_by)
    if detected(primary):
        return Verdict("LEAKAGE DETECTED", _leak(primary, numbers), found.value, low, high, seen_by)
    if smoke or seen_by > WIDEST:
        reason = (
            "The quick profile may raise an alarm, and never clears a model; run the standard one."
            if smoke
            else f"An AUC below {seen_by:.3f} might have been missed; {needed:,} pictures of each role would show "
            f"{WIDEST:g}."
        )
        return Verdict("INCONCLUSIVE", f"Nothing was detected. {reason} {numbers}.", found.value, low, high, seen_by)
    words = (
        f"With {members:,} members and {heldout:,} held-out pictures this audit would have found an AUC of "
        f"{seen_by:.3f} or more four times in five. {numbers}. Stronger attacks (shadow models, attacks not listed) "
        "may succeed. This is not a guarantee; only training with differential privacy gives one."
    )
    return Verdict("NO LEAKAGE DETECTED BY THESE ATTACKS", words, found.value, low, high, seen_by)


def _few_groups(primary: Scored) -> str | None:
    """What to say where pictures are of so few groups, or so many of one, that no attack or control means much."""
    if primary.groups is None:
        return None
    for role, groups, wanted in zip(
        ("members", "held-out pictures", "calibration pictures"), primary.groups, FEWEST_GROUPS, strict=True
    ):
        worth = statistics.effective(groups)
        if worth < wanted:
            return (
                f"The {len(groups):,} {role} are of {len(set(groups)):,} groups, which tell as much as {worth:.1f} of "
                f"equal size; at least {wanted} are needed to conclude anything."
            )
    return None


def _worth(primary: Scored) -> float:
    """As what share of its pictures independent ones would tell as much: 1 where there are no groups."""
    return min((statistics.auc(primary.members, primary.heldout).error / primary.auc.error) ** 2, 1.0)


def _leak(primary: Scored, numbers: str) -> str:
    said = f"Training images can be told from held-out images of the same source. {numbers}"
    point = primary.operating(0.01)
    if point is not None:
        said += f"; at {point.fpr:.1%} false positives {point.tpr:.0%} of members are identified"
    return f"{said}. Anyone holding the weights can do at least this."


def _broken(control: Control) -> str:
    if control.name == "blind":
        return f"Members and held-out pictures differ without any model: blind AUC {control.value:.2f}."
    return f"The control {control.name} came out at {control.value:.2f}; wanted: {control.wanted}."
