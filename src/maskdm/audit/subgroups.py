"""Whom an average hides: classes, groups, the pictures that are least like others, the members that stand out most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskdm.audit import statistics
from maskdm.audit.difficulty import small
from maskdm.audit.generation import nearest
from maskdm.audit.measure import AT_ONCE, Scored
from maskdm.audit.statistics import Auc, Float64
from maskdm.audit.subject import Pictures, Subject

FEWEST = 30
"""Pictures, or groups, on either side without which nothing is said."""
APART = 0.25
"""The share of pictures that are called least like others."""


def by_class(primary: Scored, subject: Subject) -> tuple[tuple[str, Auc], ...]:
    """Each class with enough pictures on both sides."""
    members, heldout = subject.members.labels, subject.heldout.labels
    if members is None or heldout is None:
        return ()
    parts = [
        (name, _part(primary, subject, members == i, heldout == i)) for i, name in enumerate(subject.spec.class_names)
    ]
    return tuple((name, found) for name, found in parts if found is not None)


def least_like_others(primary: Scored, subject: Subject) -> Auc | None:
    """The quarter of pictures that are farthest from every calibration picture.

    What a model knows by heart is first what it saw nothing like (arXiv 2606.14390). Distances are to calibration
    pictures, since members and held-out pictures are equally far from those.
    """
    known = small(subject.calibration.images)
    members, heldout = (_distance(role, known) for role in (subject.members, subject.heldout))
    far = float(np.quantile(np.concatenate([members, heldout]), 1 - APART))
    return _part(primary, subject, members > far, heldout > far)


def _distance(role: Pictures, known: Float64) -> Float64:
    parts = [role.images[start : start + AT_ONCE] for start in range(0, len(role), AT_ONCE)]
    return np.concatenate([nearest(small(part), known)[0] for part in parts])


def _part(primary: Scored, subject: Subject, members: np.ndarray, heldout: np.ndarray) -> Auc | None:
    """Of some members and some held-out pictures."""
    if min(members.sum(), heldout.sum()) < FEWEST:
        return None
    clusters = None
    if subject.members.groups is not None and subject.heldout.groups is not None:
        clusters = (
            np.array(subject.members.groups)[members].tolist(),
            np.array(subject.heldout.groups)[heldout].tolist(),
        )
    return statistics.auc(primary.members[members], primary.heldout[heldout], clusters)


def by_group(primary: Scored, subject: Subject) -> Auc | None:
    """Of groups (people, scenes) by the mean of their pictures' scores: what somebody in several of them would ask."""
    members, heldout = subject.members.groups, subject.heldout.groups
    if members is None or heldout is None or min(len(set(members)), len(set(heldout))) < FEWEST:
        return None
    return statistics.auc(_means(primary.members, members), _means(primary.heldout, heldout))


def set_level(primary: Scored) -> float:
    """p that members score no higher on average; pictures of one group count as one."""
    if primary.groups is None:
        return statistics.welch(primary.members, primary.heldout)
    return statistics.welch(_means(primary.members, primary.groups[0]), _means(primary.heldout, primary.groups[1]))


def most_exposed(primary: Scored, count: int) -> tuple[np.ndarray, Float64]:
    """The members that score highest: which, and the share of held-out pictures that score higher."""
    rows = np.argsort(-primary.members, kind="stable")[:count]
    above = np.sort(primary.heldout)
    shares: Float64 = 1 - np.searchsorted(above, primary.members[rows], side="left") / len(above)
    return rows, shares


def _means(scores: Float64, groups: Sequence[str]) -> Float64:
    _, number = np.unique(np.array(groups), return_inverse=True)
    found: Float64 = np.bincount(number, weights=scores) / np.bincount(number)
    return found
