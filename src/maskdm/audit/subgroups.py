"""Whom an average hides: classes, groups, the pictures that are least like others, the members that stand out most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskdm.audit import statistics
from maskdm.audit.calibration import AT_ONCE, small
from maskdm.audit.copies import nearest
from maskdm.audit.scoring import Scored, groups_of
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
    """Of some members and some held-out pictures; None where these, or the groups they are of, are few."""
    if min(members.sum(), heldout.sum()) < FEWEST:
        return None
    groups, clusters = groups_of(subject), None
    if groups is not None:
        clusters = (np.array(groups[0])[members].tolist(), np.array(groups[1])[heldout].tolist())
        if min(statistics.effective(each) for each in clusters) < FEWEST:
            return None
    return statistics.auc(primary.members[members], primary.heldout[heldout], clusters)


def by_group(primary: Scored, subject: Subject) -> Auc | None:
    """Of groups (people, scenes) by the mean of their pictures' scores: what somebody in several of them would ask.

    As many pictures of each as half of the groups have, in the role where that is less: means of more pictures spread
    less, and would be told apart by that alone.
    """
    members, heldout = subject.members.groups, subject.heldout.groups
    if members is None or heldout is None:
        return None
    sizes = [np.unique(np.array(each), return_counts=True)[1] for each in (members, heldout)]
    count = int(min(np.median(each) for each in sizes))
    m, h = _means(primary.members, members, count), _means(primary.heldout, heldout, count)
    return statistics.auc(m, h) if min(len(m), len(h)) >= FEWEST else None


def set_level(primary: Scored) -> float | None:
    """p that members score no higher on average; pictures of one group count as one, and few groups for nothing."""
    if primary.groups is None:
        return statistics.welch(primary.members, primary.heldout)
    roles = zip((primary.members, primary.heldout), primary.groups[:2], strict=True)
    means = [_means(scores, own) for scores, own in roles]
    return statistics.welch(*means) if min(len(each) for each in means) >= FEWEST else None


def most_exposed(primary: Scored, count: int) -> tuple[np.ndarray, Float64]:
    """The members that score highest: which, and the share of held-out pictures that score higher."""
    rows = np.argsort(-primary.members, kind="stable")[:count]
    above = np.sort(primary.heldout)
    shares: Float64 = 1 - np.searchsorted(above, primary.members[rows], side="left") / len(above)
    return rows, shares


def _means(scores: Float64, groups: Sequence[str], count: int | None = None) -> Float64:
    """The mean of every group, or of the first `count` pictures of every group that has so many."""
    own: dict[str, list[float]] = {}
    for name, score in zip(groups, scores.tolist(), strict=True):
        own.setdefault(name, []).append(score)
    return np.array([np.mean(each[:count]) for each in own.values() if len(each) >= (count or 1)])
