"""Controls: tests of the audit itself, which say whether its numbers may be believed.

    blind       members and held-out images must not differ without any model
    untrained   a network that learned nothing must not separate them
    memorizing  a model that memorized the members must separate them
    null        calibration images must look like held-out images to the audited model

A control that fails makes the verdict INVALID: the images of the roles differ by more than membership, or something
was done the wrong way round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from maskdm.auditing import statistics
from maskdm.auditing.attacks import primary_attacks
from maskdm.auditing.calibration import FOLDS, DifficultyFeatures, Ridge, assign_folds
from maskdm.auditing.closed_forms import Memorizer
from maskdm.auditing.scoring import ScoredAttack, score_attacks
from maskdm.auditing.statistics import Auc, Float64, normal_quantile
from maskdm.auditing.subject import Subject
from maskdm.auditing.target import ModelTarget, TargetModel
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.pixels import to_model
from maskdm.models import build
from maskdm.runtime.console import Console

CONTROL_LEVEL = 0.99
"""Confidence of the intervals by which controls are judged: there are several, and each may be wrong by chance."""
CONTROL_IMAGES = 500
"""Images of each role that control models are asked about, at most."""
MEMORIZED = 256
"""Members that the memorizing control memorizes, at most."""


@dataclass(frozen=True)
class Control:
    """The outcome of one control.

    Attributes:
        name: what is tested.
        value, low, high: an AUC, and its 99 % interval.
        passed: whether it came out as it must.
        wanted: what must hold, in words.
    """

    name: str
    value: float
    low: float
    high: float
    passed: bool
    wanted: str


def run_controls(
    denoiser: Denoiser,
    subject: Subject,
    primary: ScoredAttack,
    *,
    draws: int,
    batch_size: int,
    seed: int,
    console: Console,
) -> list[Control]:
    """All four controls of an audit.

    Args:
        denoiser: the audited model.
        subject: the images of the three roles, as many as the audit uses.
        primary: the primary statistic of the audited model.
        draws: noises of every loss.
        batch_size: images at once.
        seed: of the choice of images for control models.
        console: shows a progress bar.
    """
    few = subject.subset(CONTROL_IMAGES, CONTROL_IMAGES, CONTROL_IMAGES, seed + 7)
    known = few.subset(MEMORIZED, CONTROL_IMAGES, CONTROL_IMAGES, seed + 8)
    with console.bar("controls", 2 * few.num_images) as bar:

        def auc(target: TargetModel, images: Subject) -> Auc:
            return control_auc(target, images, draws=draws, batch_size=batch_size, callback=bar.update)

        return [
            blind_control(subject),
            untrained_control(auc(ModelTarget(untrained_denoiser(denoiser, subject)), few)),
            memorizing_control(auc(memorizer_of(known, denoiser.device), known)),
            null_control(primary),
        ]


# --- the controls ----------------------------------------------------------------------------------------------------


def blind_control(subject: Subject) -> Control:
    """Members against held-out images without any model: features of the images, a regression, cross-fitted."""
    features = DifficultyFeatures.fit(subject.calibration.images)
    x = np.concatenate([features(subject.members.images), features(subject.heldout.images)])
    y = np.concatenate([np.ones(len(subject.members)), -np.ones(len(subject.heldout))])
    groups = subject.groups
    names = None if groups is None else [*groups[0], *groups[1]]
    rng = np.random.default_rng(1)
    if names is None:
        fold = np.concatenate([assign_folds(len(role), None, rng) for role in (subject.members, subject.heldout)])
    else:
        fold = assign_folds(len(y), names, rng)
    predicted = np.empty(len(y))
    for k in range(FOLDS):
        known = None if names is None else [names[int(i)] for i in np.flatnonzero(fold != k)]
        predicted[fold == k] = Ridge.fit(x[fold != k], y[fold != k], known)(x[fold == k])
    # Each fold by itself: between folds the mean of the others shifts predictions against the truth.
    values = [_auc_of_fold(predicted, y, fold == k, names) for k in range(FOLDS) if len(set(y[fold == k])) == 2]
    wanted = "members and held-out images cannot be told apart without a model"
    if not values:  # a role of one group; the verdict says that these are too few
        return Control("blind", 0.5, 0.0, 1.0, True, wanted)
    value = float(np.mean([each.value for each in values]))
    error = float(np.sqrt(np.sum([each.error**2 for each in values]))) / len(values)
    half = normal_quantile((1 + CONTROL_LEVEL) / 2) * error
    return Control("blind", value, value - half, value + half, value - half <= 0.5, wanted)


def _auc_of_fold(predicted: Float64, y: Float64, here: np.ndarray, names: Sequence[str] | None) -> Auc:
    members, heldout = here & (y > 0), here & (y < 0)
    clusters = None
    if names is not None:
        own = np.array(names)
        clusters = (own[members].tolist(), own[heldout].tolist())
    return statistics.auc(predicted[members], predicted[heldout], clusters)


def untrained_control(found: Auc) -> Control:
    """Of a network that has seen no image, from the AUC of its primary statistic."""
    return _control_at_half("untrained network", found, "a network that learned nothing tells nothing")


def memorizing_control(found: Auc) -> Control:
    """Of a model that memorized the members: proof that the right images are asked about, the right way round."""
    low, high = found.interval(CONTROL_LEVEL)
    wanted = "a model that memorized the members is caught"
    return Control("memorizing model", found.value, low, high, found.value > 0.99, wanted)


def null_control(scored: ScoredAttack) -> Control:
    """Calibration images against held-out ones on the audited model: it was trained on neither."""
    clusters = None if scored.groups is None else (scored.groups[2], scored.groups[1])
    found = statistics.auc(scored.calibration, scored.heldout, clusters)
    return _control_at_half("calibration against held-out", found, "two sets that were never trained on look alike")


def _control_at_half(name: str, found: Auc, wanted: str) -> Control:
    low, high = found.interval(CONTROL_LEVEL)
    return Control(name, found.value, low, high, low <= 0.5 <= high, wanted)


# --- models of the controls ------------------------------------------------------------------------------------------


def control_auc(
    target: TargetModel,
    subject: Subject,
    *,
    draws: int,
    batch_size: int,
    callback: Callable[[int], object] = lambda images: None,
) -> Auc:
    """The AUC of the primary statistic of another model than the audited one, on the same images.

    Args:
        target: that model.
        subject: the images.
        draws: noises of every loss.
        batch_size: images at once.
        callback: called with the number of images that are done, after every batch.
    """
    return score_attacks(target, primary_attacks(draws), subject, batch_size=batch_size, callback=callback)[0].auc


def memorizer_of(subject: Subject, device: torch.device) -> Memorizer:
    """A closed form that has memorized the members of `subject`, on `device`."""
    return Memorizer(to_model(subject.members.images).to(device))


def untrained_denoiser(denoiser: Denoiser, subject: Subject) -> Denoiser:
    """The same network before it learned anything, from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build.backbone(subject.spec)
        for tensor in network.parameters():  # where outputs begin at zero there would be nothing to ask
            if not tensor.any():
                nn.init.normal_(tensor, std=0.02)
    return replace(denoiser, backbone=network.to(denoiser.device).eval().requires_grad_(False))
