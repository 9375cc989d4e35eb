"""Scores of all pictures under all attacks, calibrated for difficulty, and the controls that say whether to trust them.

The primary statistic is fixed before anything is seen (`attacks.PRIMARY`, `attacks.VERSION`); everything else is
secondary, and its p-values are adjusted for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskdm.audit import statistics
from maskdm.audit.attacks import PRIMARY, Attack, primary, scores
from maskdm.audit.calibration import AT_ONCE, FOLDS, Ridge, Statistics, cross_fitted, folds
from maskdm.audit.statistics import Auc, Float64, Operating
from maskdm.audit.subject import Pictures, Subject
from maskdm.audit.target import Eye, Memoriser
from maskdm.diffusion.patches import from_uint8

LEVEL = 0.99
"""Of the intervals by which controls are judged: several of them are, and each may be wrong by chance."""
MEMORISED = 256
"""Members that a closed form knows by heart."""
Report = Callable[[int], object]


Groups = tuple[Sequence[str], Sequence[str], Sequence[str]]


@dataclass(frozen=True)
class Scored:
    """The scores of one attack, calibrated: what is left over of them, in units of its spread on calibration pictures.

    Attributes:
        name: of the attack; "primary" for the mean of those of the primary statistic.
        raw: scores before calibration, of members and held-out pictures.
        members, heldout: calibrated.
        calibration: of the calibration pictures, each from a regression on others.
        groups: of members, held-out and calibration pictures, where they have any: they were split together.
    """

    name: str
    raw: tuple[Float64, Float64]
    members: Float64
    heldout: Float64
    calibration: Float64
    groups: Groups | None = None

    @property
    def auc(self) -> Auc:
        """Of the calibrated scores."""
        return statistics.auc(self.members, self.heldout, self.groups and self.groups[:2])

    @property
    def raw_auc(self) -> Auc:
        """Of the scores as they were."""
        return statistics.auc(*self.raw, self.groups and self.groups[:2])

    def operating(self, target: float) -> Operating | None:
        """Of the calibrated scores, at a share `target` of false positives."""
        return statistics.operating(self.members, self.heldout, target, self.groups and self.groups[:2])


@dataclass(frozen=True)
class Control:
    """A test of the audit itself.

    Attributes:
        name: what is tested.
        value, low, high: an AUC or share, and its interval.
        passed: whether it came out as it must.
        wanted: in words.
    """

    name: str
    value: float
    low: float
    high: float
    passed: bool
    wanted: str


def tensor(images: np.ndarray) -> Tensor:
    """(N, H, W, C) uint8 -> (N, C, H, W) in [-1, 1]."""
    return from_uint8(torch.from_numpy(np.ascontiguousarray(images))).permute(0, 3, 1, 2).contiguous()


def score(
    eye: Eye,
    attacks: Sequence[Attack],
    subject: Subject,
    *,
    batch_size: int,
    flips: bool = False,
    report: Report = lambda images: None,
) -> list[Scored]:
    """All attacks on all pictures; with `flips` a picture scores as the better of it and its mirror image.

    The primary statistic comes first.
    """
    roles = (subject.members, subject.heldout, subject.calibration)
    raw = [_scores(eye, attacks, role, batch_size, flips, report) for role in roles]
    statistics_of = Statistics.of(subject.calibration.images)
    inputs = [statistics_of(role.images) for role in roles]
    groups = groups_of(subject)
    found = [calibrated(attack.name, [part[attack.name] for part in raw], inputs, groups) for attack in attacks]
    return [combined([each for each in found if each.name in PRIMARY]), *found]


def _scores(
    eye: Eye, attacks: Sequence[Attack], pictures: Pictures, batch_size: int, flips: bool, report: Report
) -> Mapping[str, Float64]:
    starts = range(0, len(pictures), AT_ONCE)
    some = (pictures.take(np.arange(start, min(start + AT_ONCE, len(pictures)))) for start in starts)
    found = [_scores_of(eye, attacks, part, batch_size, flips, report) for part in some]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _scores_of(
    eye: Eye, attacks: Sequence[Attack], pictures: Pictures, batch_size: int, flips: bool, report: Report
) -> Mapping[str, Float64]:
    labels = None if pictures.labels is None else torch.from_numpy(pictures.labels)
    x_0 = tensor(pictures.images)
    found = scores(eye, attacks, x_0, labels, batch_size=batch_size, report=report)
    if not flips:
        return found
    mirrored = scores(eye, attacks, x_0.flip(3), labels, batch_size=batch_size, report=report)
    return {name: np.maximum(found[name], mirrored[name]) for name in found}


def groups_of(subject: Subject) -> Groups | None:
    """Of the pictures of all three roles, where all have some; else exact duplicates, where there are any."""
    roles = (subject.members, subject.heldout, subject.calibration)
    a, b, c = (role.groups for role in roles)
    if a is not None and b is not None and c is not None:
        return a, b, c
    if all(len(set(role.ids)) == len(role) for role in roles):
        return None
    return roles[0].ids, roles[1].ids, roles[2].ids


def calibrated(name: str, raw: Sequence[Float64], inputs: Sequence[Float64], groups: Groups | None = None) -> Scored:
    """From raw scores and statistics of members, held-out and calibration pictures; fitted on the last alone."""
    members, heldout, calibration = raw
    ridge = Ridge.fit(inputs[2], calibration, groups and groups[2])
    return Scored(
        name,
        (members, heldout),
        ridge.left(inputs[0], members),
        ridge.left(inputs[1], heldout),
        cross_fitted(inputs[2], calibration, groups and groups[2]),
        groups,
    )


def combined(parts: Sequence[Scored]) -> Scored:
    """The mean of several: the primary statistic."""
    return Scored(
        "primary",
        (np.mean([p.raw[0] for p in parts], axis=0), np.mean([p.raw[1] for p in parts], axis=0)),
        np.mean([p.members for p in parts], axis=0),
        np.mean([p.heldout for p in parts], axis=0),
        np.mean([p.calibration for p in parts], axis=0),
        parts[0].groups,
    )


# --- controls --------------------------------------------------------------------------------------------------------


def blind(subject: Subject) -> Control:
    """Members against held-out pictures without any model: statistics of the pictures, cross-fitted."""
    statistics_of = Statistics.of(subject.calibration.images)
    x = np.concatenate([statistics_of(subject.members.images), statistics_of(subject.heldout.images)])
    y = np.concatenate([np.ones(len(subject.members)), -np.ones(len(subject.heldout))])
    groups = groups_of(subject)
    names = None if groups is None else [*groups[0], *groups[1]]
    rng = np.random.default_rng(1)
    if names is None:
        fold = np.concatenate([folds(len(role), None, rng) for role in (subject.members, subject.heldout)])
    else:
        fold = folds(len(y), names, rng)
    said = np.empty(len(y))
    for k in range(FOLDS):
        known = None if names is None else [names[int(i)] for i in np.flatnonzero(fold != k)]
        said[fold == k] = Ridge.fit(x[fold != k], y[fold != k], known)(x[fold == k])
    # Each fold by itself: between folds the mean of the others shifts answers against the truth.
    values = [_of_fold(said, y, fold == k, names) for k in range(FOLDS) if len(set(y[fold == k])) == 2]
    wanted = "members and held-out pictures cannot be told apart without a model"
    if not values:  # a role of one group; the verdict says that these are too few
        return Control("blind", 0.5, 0.0, 1.0, True, wanted)
    value = float(np.mean([each.value for each in values]))
    error = float(np.sqrt(np.sum([each.error**2 for each in values]))) / len(values)
    half = statistics.NORMAL.inv_cdf((1 + LEVEL) / 2) * error
    return Control("blind", value, value - half, value + half, value - half <= 0.5, wanted)


def _of_fold(said: Float64, y: Float64, here: np.ndarray, names: Sequence[str] | None) -> Auc:
    members, heldout = here & (y > 0), here & (y < 0)
    clusters = None
    if names is not None:
        own = np.array(names)
        clusters = (own[members].tolist(), own[heldout].tolist())
    return statistics.auc(said[members], said[heldout], clusters)


def control_score(eye: Eye, subject: Subject, *, draws: int, batch_size: int, report: Report) -> Auc:
    """The primary statistic of another model than the audited one, on the same pictures."""
    return score(eye, primary(draws), subject, batch_size=batch_size, report=report)[0].auc


def untrained(found: Auc) -> Control:
    """Of a network that has seen nobody."""
    return _half("untrained network", found, "a network that learned nothing tells nothing")


def by_heart(subject: Subject, device: torch.device) -> Memoriser:
    """A closed form that knows the members and nothing else."""
    return Memoriser(tensor(subject.members.images).to(device))


def memoriser(found: Auc) -> Control:
    """Of a model that knows members by heart: proof that the right pictures are asked about, the right way round."""
    low, high = found.interval(LEVEL)
    wanted = "a model that knows members by heart is caught"
    return Control("memoriser", found.value, low, high, found.value > 0.99, wanted)


def null(scored: Scored) -> Control:
    """Calibration pictures against held-out ones on the model itself: neither was trained on."""
    clusters = None if scored.groups is None else (scored.groups[2], scored.groups[1])
    found = statistics.auc(scored.calibration, scored.heldout, clusters)
    return _half("calibration against held-out", found, "two sets that were never trained on look alike")


def _half(name: str, found: Auc, wanted: str) -> Control:
    low, high = found.interval(LEVEL)
    return Control(name, found.value, low, high, low <= 0.5 <= high, wanted)
