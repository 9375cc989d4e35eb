"""One audit: how many images and which attacks, what it will cost, and everything that it found.

subject = open_subject(run, console=console)                        # audit.subject
denoiser = load(subject.weights)
options = AuditOptions("standard", budget_minutes=30)
cost = estimate_cost(denoiser, subject, options)                    # calls, seconds, and what fits the budget
found = run_audit(denoiser, cost.subject, cost.size, options, console)
record = save_audit(folder, found, command)                         # audit.record
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch

from maskdm.auditing import attacks, subgroups
from maskdm.auditing.attacks import Attack, calls_per_image
from maskdm.auditing.controls import CONTROL_IMAGES, Control, run_controls
from maskdm.auditing.copies import CopyShare, measure_copies
from maskdm.auditing.scoring import ScoredAttack, score_attacks
from maskdm.auditing.statistics import Auc
from maskdm.auditing.subject import Subject, read_images
from maskdm.auditing.target import ModelTarget
from maskdm.auditing.verdict import AuditVerdict, audit_verdict
from maskdm.data.dataset import default_cache
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import fixed_noise, image_error
from maskdm.diffusion.pixels import to_model, to_uint8_nhwc
from maskdm.errors import InputError, within
from maskdm.evaluation.features import Features, get_features
from maskdm.models.spec import ModelSpec
from maskdm.runtime.console import Console
from maskdm.sampling.sample import STEPS, sample_images, sampling_config

Profile = Literal["quick", "standard", "full"]
ERROR_IMAGES = 1000
"""Images of each role on which errors are measured, at most."""
MIN_BUDGET_IMAGES = 100
"""Images of each role that a budget leaves at least."""


@dataclass(frozen=True)
class AuditSize:
    """How much an audit does.

    Attributes:
        members, heldout, calibration: images of each role, at most.
        draws: noises of every loss.
        generated: images to generate, 0 for none.
    """

    members: int
    heldout: int
    calibration: int
    draws: int
    generated: int


SIZES: dict[Profile, AuditSize] = {
    "quick": AuditSize(300, 300, 300, 2, 0),
    "standard": AuditSize(2000, 2000, 1000, 4, 1000),
    "full": AuditSize(10_000, 10_000, 5000, 4, 10_000),
}


@dataclass(frozen=True)
class AuditOptions:
    """What an audit shall do.

    Attributes:
        profile: quick (an alarm, never an all-clear), standard or full.
        seed: of the choice of images.
        batch_size: images at once.
        num: images to generate, 0 for none, None for as many as the profile does.
        budget_minutes: how long it may take, None for as long as the profile does.
        generated: images that the model made before, (N, H, W, C) uint8, in place of new ones.
        features: in which copies are looked for, besides all pixels.

    Raises:
        InputError: numbers out of range.
    """

    profile: Profile = "standard"
    seed: int = 0
    batch_size: int = 64
    num: int | None = None
    budget_minutes: float | None = None
    generated: np.ndarray | None = None
    features: tuple[Features, ...] = ()

    def __post_init__(self) -> None:
        if self.budget_minutes is not None and not self.budget_minutes > 0:
            raise InputError("budget_minutes", got=self.budget_minutes, wanted="more than 0")
        if self.num is not None and self.num < 0:
            raise InputError("num", got=self.num, wanted="0 or more")
        if self.batch_size < 1:
            raise InputError("batch_size", got=self.batch_size, wanted="at least 1")

    @property
    def size(self) -> AuditSize:
        """That of the profile, with the images to generate that were asked for."""
        size = SIZES[self.profile]
        if self.num is None and self.generated is None:
            return size
        return replace(size, generated=self.num or 0)


@dataclass(frozen=True)
class Audit:
    """Everything that one audit found.

    Attributes:
        subject: what was audited, with the images that were used.
        options, size: what was asked for, and how much was done.
        scored: the primary statistic, then every attack.
        controls: the four of them.
        verdict: the conclusion.
        copies: measures of copying; empty where no images were generated.
        errors: mean squared error of the estimated image on members and on held-out images.
        classes: AUC of the primary statistic within each class that is large enough.
        groups: AUC of groups by the mean of their images, or None.
        outliers: AUC within the images that are least like others, or None.
        set_p: p-value for all members at once, or None where groups are few.
        seconds: how long it took.
        generated: images of the model, (N, H, W, C) uint8, or None.
    """

    subject: Subject
    options: AuditOptions
    size: AuditSize
    scored: tuple[ScoredAttack, ...]
    controls: tuple[Control, ...]
    verdict: AuditVerdict
    copies: tuple[CopyShare, ...]
    errors: tuple[float, float]
    classes: tuple[tuple[str, Auc], ...]
    groups: Auc | None
    outliers: Auc | None
    set_p: float | None
    seconds: float
    generated: np.ndarray | None

    @property
    def primary(self) -> ScoredAttack:
        """The statistic that was fixed in advance."""
        return self.scored[0]


def check_audit_arguments(*, num: int | None, generated: object, fail_above_auc: float | None) -> None:
    """Refuses, before anything is read, what a user cannot ask for.

    Args:
        num: images to generate.
        generated: what names images that were generated before.
        fail_above_auc: the AUC up to which leakage is tolerated.

    Raises:
        InputError: both `num` and `generated`, or an AUC that is not between 0.5 and 1.
    """
    if num and generated is not None:
        raise InputError("num", "given with generated images, which are made already", remedy="leave one out")
    if fail_above_auc is not None and not 0.5 <= fail_above_auc <= 1:
        raise InputError("fail_above_auc", got=fail_above_auc, wanted="0.5 to 1")


def read_generated(data: str | Path, spec: ModelSpec, console: Console) -> np.ndarray:
    """Images that a model made before, without the grid that sampling lays beside them: (N, H, W, C) uint8.

    Raises:
        InputError: they cannot be read.
    """
    return read_images(str(data), spec, console).take().images


def load_audit_features(
    names: Sequence[str], subject: Subject, device: torch.device, console: Console
) -> tuple[Features, ...]:
    """The features in which copies are to be looked for.

    Args:
        names: of features, files, or functions module:callable; see `maskdm.evaluation.features`.
        subject: an encoder is trained on its calibration images, which are neither members nor compared with.
        device: where to compute.
        console: says what takes time.

    Raises:
        InputError: an unknown name, or something that cannot be had or imported.
    """
    with within(""):
        return tuple(
            get_features(
                name,
                device=device,
                cache_dir=default_cache(),
                reference=lambda: subject.calibration,
                console=console,
            )
            for name in names
        )


# --- what it will cost -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AuditCost:
    """What an audit will do and take.

    Attributes:
        subject: with as many images as it will use.
        size: how much it will do.
        calls: of the network, for one image each.
        seconds: about how long these take on this machine.
    """

    subject: Subject
    size: AuditSize
    calls: int
    seconds: float


def estimate_cost(denoiser: Denoiser, subject: Subject, options: AuditOptions) -> AuditCost:
    """What an audit will cost by a few measured calls, and within the budget, if there is one.

    Raises:
        InputError: not even 100 images of each role fit into `budget_minutes`.
    """
    seconds = _seconds_per_call(denoiser, subject, options.batch_size)
    whole = _subset(subject, options.size, options.seed)
    for size in _sizes_to_try(options.size):
        part = _subset(whole, size, options.seed)
        calls = _network_calls(part, size, options, profile_attacks(options.profile, denoiser, size.draws))
        cost = AuditCost(part, size, calls, seconds * calls)
        if options.budget_minutes is None or cost.seconds <= 60 * options.budget_minutes:
            return cost
    raise InputError(
        "budget_minutes",
        f"{MIN_BUDGET_IMAGES} images of each role take about {cost.seconds / 60:.1f}",
        got=options.budget_minutes,
        remedy="allow more, or take the quick profile",
    )


def _subset(subject: Subject, size: AuditSize, seed: int) -> Subject:
    return subject.subset(size.members, size.heldout, size.calibration, seed)


def _sizes_to_try(size: AuditSize) -> Iterator[AuditSize]:
    """From the whole size down: first fewer images; below a fifth of them one noise a loss; then fewer generated."""
    for draws, generated in ((size.draws, size.generated), (1, size.generated), (1, min(size.generated, 200)), (1, 0)):
        for share in (1, 0.75, 0.5, 0.35, 0.2, 0.1):
            yield AuditSize(
                max(int(size.members * share), MIN_BUDGET_IMAGES),
                max(int(size.heldout * share), MIN_BUDGET_IMAGES),
                max(int(size.calibration * share), MIN_BUDGET_IMAGES),
                draws,
                int(generated * share),
            )
            if share <= 0.2 and draws > 1:
                break


def profile_attacks(profile: Profile, denoiser: Denoiser, draws: int) -> list[Attack]:
    """The attacks of a profile, as far as the model allows them.

    Args:
        profile: of the audit.
        denoiser: the model.
        draws: noises of every loss.
    """
    if profile == "quick":
        return attacks.quick_attacks(draws)
    if profile == "standard":
        return attacks.standard_attacks(draws)
    has_patches = denoiser.patch_size < min(denoiser.image_size)
    return attacks.full_attacks(draws, has_classes=bool(denoiser.class_names), has_patches=has_patches)


def _network_calls(subject: Subject, size: AuditSize, options: AuditOptions, listed: Sequence[Attack]) -> int:
    """Over the whole audit, for one image each."""
    roles = (subject.members, subject.heldout, subject.calibration)
    attacked = subject.num_images * calls_per_image(listed) * (2 if subject.mirrored else 1)
    controls = calls_per_image(attacks.primary_attacks(size.draws)) * sum(min(len(r), CONTROL_IMAGES) for r in roles)
    generated = 0 if options.generated is not None else size.generated * STEPS
    errors = min(len(subject.members), ERROR_IMAGES) + min(len(subject.heldout), ERROR_IMAGES)
    return attacked + controls + generated + errors


def _seconds_per_call(denoiser: Denoiser, subject: Subject, batch_size: int) -> float:
    """Of one image, from three batches."""
    target = ModelTarget(denoiser)
    x_0 = to_model(subject.heldout.images[:batch_size]).to(target.device)
    seconds = []
    for _ in range(4):
        since = time.perf_counter()
        float(target.eps(x_0, 0.17).sum())
        seconds.append(time.perf_counter() - since)
    return median(seconds[1:]) / len(x_0)


# --- doing it --------------------------------------------------------------------------------------------------------


def run_audit(denoiser: Denoiser, subject: Subject, size: AuditSize, options: AuditOptions, console: Console) -> Audit:
    """Attacks, controls, generated images, verdict.

    Args:
        denoiser: of `subject.weights`.
        subject: with as many images as are to be used (see `estimate_cost`).
        size: draws and images to generate.
        options: everything else.
        console: shows progress.
    """
    since = time.perf_counter()
    listed = profile_attacks(options.profile, denoiser, size.draws)
    with console.bar("attacks", subject.num_images * (2 if subject.mirrored else 1)) as bar:
        scored = score_attacks(
            ModelTarget(denoiser),
            listed,
            subject,
            batch_size=options.batch_size,
            mirrored=subject.mirrored,
            callback=bar.update,
        )
    primary = scored[0]
    controls = run_controls(
        denoiser,
        subject,
        primary,
        draws=size.draws,
        batch_size=options.batch_size,
        seed=options.seed,
        console=console,
    )
    generated = options.generated
    if generated is None and size.generated:
        generated = _generate(denoiser, size.generated, options.batch_size, console)
    return Audit(
        subject=subject,
        options=options,
        size=size,
        scored=tuple(scored),
        controls=tuple(controls),
        verdict=audit_verdict(primary, controls, may_clear=options.profile != "quick"),
        copies=() if generated is None else tuple(_copies(generated, subject, options.features)),
        errors=role_errors(denoiser, subject, options.batch_size),
        classes=subgroups.auc_by_class(primary, subject),
        groups=subgroups.auc_of_groups(primary, subject),
        outliers=subgroups.auc_of_outliers(primary, subject),
        set_p=subgroups.set_level_p(primary),
        seconds=time.perf_counter() - since,
        generated=generated,
    )


def _generate(denoiser: Denoiser, count: int, batch_size: int, console: Console) -> np.ndarray:
    with console.sampling_bar("sampling", count, STEPS) as advance:
        config = sampling_config(denoiser, seeds=range(count))
        unit = sample_images(config, range(count), batch_size=batch_size, callback=advance)
        return to_uint8_nhwc(unit)


def _copies(generated: np.ndarray, subject: Subject, features: Sequence[Features]) -> list[CopyShare]:
    """In all pixels, then in each kind of features."""
    found = measure_copies(generated, subject.members, subject.heldout)
    for each in features:
        found += measure_copies(generated, subject.members, subject.heldout, each, each.name)
    return found


@torch.no_grad()
def role_errors(denoiser: Denoiser, subject: Subject, batch_size: int) -> tuple[float, float]:
    """Mean squared error of the estimated image on members and on held-out images, 1,000 of each at most."""
    found = []
    for role in (subject.members.subset(ERROR_IMAGES, 0), subject.heldout.subset(ERROR_IMAGES, 0)):
        x_0 = to_model(role.images)
        t, eps = fixed_noise(denoiser, x_0.shape)
        labels = None if role.labels is None else torch.from_numpy(role.labels)
        total = 0.0
        for start in range(0, len(x_0), batch_size):
            part = slice(start, start + batch_size)
            label = None if labels is None else labels[part].to(denoiser.device)
            given = (x_0[part], t[part].float(), eps[part])
            total += float(image_error(denoiser, *(each.to(denoiser.device) for each in given), label=label).sum())
        found.append(total / len(x_0))
    return found[0], found[1]
