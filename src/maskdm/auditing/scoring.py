"""Attack scores of the images of all roles, calibrated for difficulty.

The primary statistic is fixed before anything is seen (`attacks.PRIMARY`, `attacks.STATISTIC`); everything else is
secondary, and its p-values are adjusted for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from maskdm.auditing import statistics
from maskdm.auditing.attacks import PRIMARY, Attack, attack_scores
from maskdm.auditing.calibration import CHUNK, DifficultyFeatures, Ridge, cross_fitted_residuals
from maskdm.auditing.statistics import Auc, Float64, OperatingPoint
from maskdm.auditing.subject import RoleGroups, Subject
from maskdm.auditing.target import TargetModel
from maskdm.data.labelled import LabelledImages
from maskdm.diffusion.pixels import to_model


@dataclass(frozen=True)
class ScoredAttack:
    """The scores of one attack, calibrated: residuals, in units of their spread on calibration images.

    Attributes:
        name: of the attack; "primary" for the mean of those of the primary statistic.
        raw: scores before calibration, of members (N,) and held-out images (M,).
        members, heldout: calibrated, (N,) and (M,).
        calibration: of the calibration images, each by a regression on others, (L,).
        groups: of members, held-out and calibration images, where they have any: they were split together.
    """

    name: str
    raw: tuple[Float64, Float64]
    members: Float64
    heldout: Float64
    calibration: Float64
    groups: RoleGroups | None = None

    @property
    def auc(self) -> Auc:
        """Of the calibrated scores."""
        return statistics.auc(self.members, self.heldout, self.groups and self.groups[:2])

    @property
    def raw_auc(self) -> Auc:
        """Of the scores before calibration."""
        return statistics.auc(*self.raw, self.groups and self.groups[:2])

    def operating_point(self, target: float) -> OperatingPoint | None:
        """Of the calibrated scores, at a false positive rate of at most `target`; None where it is not resolved."""
        return statistics.operating_point(self.members, self.heldout, target, self.groups and self.groups[:2])


def score_attacks(
    target: TargetModel,
    attacks: Sequence[Attack],
    subject: Subject,
    *,
    batch_size: int,
    mirrored: bool = False,
    callback: Callable[[int], object] = lambda images: None,
) -> list[ScoredAttack]:
    """All attacks on all images.

    Args:
        target: the model; need not be the subject's.
        attacks: those of the primary statistic, and others.
        subject: the images of the three roles.
        batch_size: images at once.
        mirrored: whether an image scores as the higher of it and its mirror image, which training then saw too.
        callback: called with the number of images that are done, after every batch.

    Returns:
        The primary statistic, then every attack in the given order.
    """
    roles = (subject.members, subject.heldout, subject.calibration)
    raw = [_scores(target, attacks, role, batch_size, mirrored, callback) for role in roles]
    features = DifficultyFeatures.fit(subject.calibration.images)
    inputs = [features(role.images) for role in roles]
    groups = subject.groups
    found = [calibrate(attack.name, [part[attack.name] for part in raw], inputs, groups) for attack in attacks]
    return [combine([each for each in found if each.name in PRIMARY]), *found]


def _scores(
    target: TargetModel,
    attacks: Sequence[Attack],
    images: LabelledImages,
    batch_size: int,
    mirrored: bool,
    callback: Callable[[int], object],
) -> Mapping[str, Float64]:
    """Of one role, by name of the attack; only a part of the images is floats at one time."""
    starts = range(0, len(images), CHUNK)
    parts = (images.take(np.arange(start, min(start + CHUNK, len(images)))) for start in starts)
    found = [_scores_of_part(target, attacks, part, batch_size, mirrored, callback) for part in parts]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _scores_of_part(
    target: TargetModel,
    attacks: Sequence[Attack],
    images: LabelledImages,
    batch_size: int,
    mirrored: bool,
    callback: Callable[[int], object],
) -> Mapping[str, Float64]:
    labels = None if images.labels is None else torch.from_numpy(images.labels)
    x_0 = to_model(images.images)
    found = attack_scores(target, attacks, x_0, labels, batch_size=batch_size, callback=callback)
    if not mirrored:
        return found
    other = attack_scores(target, attacks, x_0.flip(3), labels, batch_size=batch_size, callback=callback)
    return {name: np.maximum(found[name], other[name]) for name in found}


def calibrate(
    name: str, raw: Sequence[Float64], inputs: Sequence[Float64], groups: RoleGroups | None = None
) -> ScoredAttack:
    """Calibrated scores of one attack, by a regression on the calibration images alone.

    Args:
        name: of the attack.
        raw: scores of members, held-out and calibration images, (N,), (M,) and (L,).
        inputs: their features, (N, D), (M, D) and (L, D).
        groups: of the images of the three roles, or None.
    """
    members, heldout, calibration = raw
    ridge = Ridge.fit(inputs[2], calibration, groups and groups[2])
    return ScoredAttack(
        name,
        (members, heldout),
        ridge.residuals(inputs[0], members),
        ridge.residuals(inputs[1], heldout),
        cross_fitted_residuals(inputs[2], calibration, groups and groups[2]),
        groups,
    )


def combine(parts: Sequence[ScoredAttack]) -> ScoredAttack:
    """The mean of several attacks' scores: the primary statistic."""
    return ScoredAttack(
        "primary",
        (np.mean([p.raw[0] for p in parts], axis=0), np.mean([p.raw[1] for p in parts], axis=0)),
        np.mean([p.members for p in parts], axis=0),
        np.mean([p.heldout for p in parts], axis=0),
        np.mean([p.calibration for p in parts], axis=0),
        parts[0].groups,
    )
