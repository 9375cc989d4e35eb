"""Whom an average hides: classes, groups, outliers (images that are least like others), the most exposed members."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskdm.auditing import statistics
from maskdm.auditing.calibration import CHUNK, downsampled
from maskdm.auditing.copies import nearest_neighbors
from maskdm.auditing.scoring import ScoredAttack
from maskdm.auditing.statistics import Auc, Float64
from maskdm.auditing.subject import Subject
from maskdm.data.labelled import LabelledImages

MIN_GROUP_SIZE = 30
"""Images, or groups, on either side without which nothing is said."""
OUTLIER_SHARE = 0.25
"""The share of images that are called outliers."""


def auc_by_class(primary: ScoredAttack, subject: Subject) -> tuple[tuple[str, Auc], ...]:
    """The AUC within each class that has enough images on both sides: (name, AUC) in the order of labels."""
    members, heldout = subject.members.labels, subject.heldout.labels
    if members is None or heldout is None:
        return ()
    parts = [
        (name, _auc_of_part(primary, subject, members == i, heldout == i))
        for i, name in enumerate(subject.spec.class_names)
    ]
    return tuple((name, found) for name, found in parts if found is not None)


def auc_of_outliers(primary: ScoredAttack, subject: Subject) -> Auc | None:
    """The AUC within the quarter of images that are farthest from every calibration image; None where these are few.

    What a model memorizes first is what it saw nothing like (arXiv 2606.14390). Distances are to calibration images,
    since members and held-out images are equally far from those.
    """
    known = downsampled(subject.calibration.images)
    members, heldout = (_distance_to(role, known) for role in (subject.members, subject.heldout))
    far = float(np.quantile(np.concatenate([members, heldout]), 1 - OUTLIER_SHARE))
    return _auc_of_part(primary, subject, members > far, heldout > far)


def _distance_to(role: LabelledImages, known: Float64) -> Float64:
    parts = [role.images[start : start + CHUNK] for start in range(0, len(role), CHUNK)]
    return np.concatenate([nearest_neighbors(downsampled(part), known)[0] for part in parts])


def _auc_of_part(primary: ScoredAttack, subject: Subject, members: np.ndarray, heldout: np.ndarray) -> Auc | None:
    """Of some members and some held-out images; None where these, or the groups they are of, are few."""
    if min(members.sum(), heldout.sum()) < MIN_GROUP_SIZE:
        return None
    groups, clusters = subject.groups, None
    if groups is not None:
        clusters = (np.array(groups[0])[members].tolist(), np.array(groups[1])[heldout].tolist())
        if min(statistics.effective_clusters(each) for each in clusters) < MIN_GROUP_SIZE:
            return None
    return statistics.auc(primary.members[members], primary.heldout[heldout], clusters)


def auc_of_groups(primary: ScoredAttack, subject: Subject) -> Auc | None:
    """The AUC of groups (people, scenes) by the mean of their images' scores: what somebody in several would ask.

    As many images of each as half of the groups have, in the role where that is less: means of more images spread
    less, and would be told apart by that alone. None where there are no groups, or few.
    """
    members, heldout = subject.members.groups, subject.heldout.groups
    if members is None or heldout is None:
        return None
    sizes = [np.unique(np.array(each), return_counts=True)[1] for each in (members, heldout)]
    count = int(min(np.median(each) for each in sizes))
    m, h = _group_means(primary.members, members, count), _group_means(primary.heldout, heldout, count)
    return statistics.auc(m, h) if min(len(m), len(h)) >= MIN_GROUP_SIZE else None


def set_level_p(primary: ScoredAttack) -> float | None:
    """p-value of the hypothesis that members score no higher on average (Welch's t-test).

    Images of one group count as one observation; None where groups are few.
    """
    if primary.groups is None:
        return statistics.welch(primary.members, primary.heldout)
    roles = zip((primary.members, primary.heldout), primary.groups[:2], strict=True)
    means = [_group_means(scores, own) for scores, own in roles]
    return statistics.welch(*means) if min(len(each) for each in means) >= MIN_GROUP_SIZE else None


def most_exposed(primary: ScoredAttack, count: int) -> tuple[np.ndarray, Float64]:
    """The members that score highest.

    Args:
        primary: the primary statistic.
        count: how many, at most.

    Returns:
        Their rows (n,), the highest first, and the share of held-out images that score higher, (n,).
    """
    rows = np.argsort(-primary.members, kind="stable")[:count]
    above = np.sort(primary.heldout)
    shares: Float64 = 1 - np.searchsorted(above, primary.members[rows], side="left") / len(above)
    return rows, shares


def _group_means(scores: Float64, groups: Sequence[str], count: int | None = None) -> Float64:
    """The mean of every group, or of the first `count` images of every group that has so many."""
    own: dict[str, list[float]] = {}
    for name, score in zip(groups, scores.tolist(), strict=True):
        own.setdefault(name, []).append(score)
    return np.array([np.mean(each[:count]) for each in own.values() if len(each) >= (count or 1)])
