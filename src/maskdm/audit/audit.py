"""One audit: how many pictures and which attacks, what it will cost, and everything that came out, as one record."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

from maskdm import __version__
from maskdm.audit import attacks, statistics, subgroups
from maskdm.audit import copies as generation
from maskdm.audit import scoring as measure
from maskdm.audit.attacks import VERSION, Attack
from maskdm.audit.conclusion import Verdict, verdict
from maskdm.audit.copies import Encode, Share
from maskdm.audit.scoring import Control, Scored, tensor
from maskdm.audit.subject import Subject, described
from maskdm.audit.target import ModelEye
from maskdm.data.manifest import write_private
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import fixed_questions, image_error
from maskdm.diffusion.patches import to_uint8
from maskdm.errors import InputError, StorageError
from maskdm.models import build
from maskdm.runtime.console import Console
from maskdm.sampling.sample import STEPS, sample

Profile = Literal["quick", "standard", "full"]
SCHEMA = "maskdm-audit/1"


@dataclass(frozen=True)
class Size:
    """How much an audit does.

    Attributes:
        members, heldout, calibration: pictures of each role, at most.
        draws: noises of every loss.
        made: pictures to generate, 0 for none.
    """

    members: int
    heldout: int
    calibration: int
    draws: int
    made: int


SIZES: dict[Profile, Size] = {
    "quick": Size(300, 300, 300, 2, 0),
    "standard": Size(2000, 2000, 1000, 4, 1000),
    "full": Size(10_000, 10_000, 5000, 4, 10_000),
}
ASKED = 1000
"""Pictures of each role on which errors are measured, at most."""
UNTRAINED = 500
"""Pictures of each role that the untrained network is asked about, at most."""


@dataclass(frozen=True)
class Options:
    """What an audit shall do besides its size."""

    profile: Profile = "standard"
    seed: int = 0
    batch_size: int = 64
    flips: bool = False
    made: np.ndarray | None = None
    encoders: tuple[tuple[str, Encode], ...] = ()


@dataclass(frozen=True)
class Audit:
    """Everything that one audit found."""

    subject: Subject
    options: Options
    size: Size
    scored: tuple[Scored, ...]
    controls: tuple[Control, ...]
    verdict: Verdict
    shares: tuple[Share, ...]
    gap: tuple[float, float]
    classes: tuple[tuple[str, statistics.Auc], ...]
    groups: statistics.Auc | None
    apart: statistics.Auc | None
    set_p: float | None
    seconds: float
    made: np.ndarray | None

    @property
    def primary(self) -> Scored:
        """The statistic that was fixed in advance."""
        return self.scored[0]


# --- what it will cost -----------------------------------------------------------------------------------------------


def chosen(profile: Profile, denoiser: Denoiser, draws: int) -> list[Attack]:
    """The attacks of a profile."""
    if profile == "quick":
        return attacks.quick(draws)
    if profile == "standard":
        return attacks.standard(draws)
    by_masks = denoiser.patch_size < min(denoiser.image_size)
    return attacks.full(draws, classes=bool(denoiser.class_names), by_masks=by_masks)


def calls(subject: Subject, size: Size, options: Options, listed: Sequence[Attack]) -> int:
    """Of the network, over the whole audit."""
    pictures = len(subject.members) + len(subject.heldout) + len(subject.calibration)
    each = attacks.calls(listed) * (2 if options.flips else 1)
    few = sum(min(len(role), UNTRAINED) for role in (subject.members, subject.heldout, subject.calibration))
    fresh = attacks.calls(attacks.primary(size.draws)) * few
    made = 0 if options.made is not None else size.made * STEPS
    return pictures * each + fresh + made + min(len(subject.members), ASKED) + min(len(subject.heldout), ASKED)


def seconds_a_call(denoiser: Denoiser, subject: Subject, batch_size: int) -> float:
    """Of one picture, from three batches."""
    eye = ModelEye(denoiser)
    x_0 = tensor(subject.heldout.images[:batch_size]).to(eye.device)
    taken = []
    for _ in range(4):
        since = time.perf_counter()
        float(eye.eps(x_0, 0.17).sum())
        taken.append(time.perf_counter() - since)
    return median(taken[1:]) / len(x_0)


def fitted(
    subject: Subject, size: Size, options: Options, denoiser: Denoiser, *, minutes: float | None, each: float
) -> tuple[Subject, Size]:
    """As many pictures as a budget allows, and where a fifth of them is too much, one noise a loss; controls stay.

    Raises:
        InputError: not even 100 pictures of each role fit.
    """
    subject = subject.sized(size.members, size.heldout, size.calibration, options.seed)
    if minutes is None:
        return subject, size

    def cost(part: Subject, size: Size) -> float:
        return each * calls(part, size, options, chosen(options.profile, denoiser, size.draws))

    for draws, made in ((size.draws, size.made), (1, size.made), (1, min(size.made, 200)), (1, 0)):
        for share in (1, 0.75, 0.5, 0.35, 0.2, 0.1):
            less = Size(
                max(int(size.members * share), 100),
                max(int(size.heldout * share), 100),
                max(int(size.calibration * share), 100),
                draws,
                int(made * share),
            )
            part = subject.sized(less.members, less.heldout, less.calibration, options.seed)
            if cost(part, less) <= 60 * minutes:
                return part, less
            if share <= 0.2 and draws > 1:
                break
    raise InputError(
        f"--budget-minutes: got {minutes:g}, but 100 pictures of each role take about "
        f"{cost(part, less) / 60:.1f}; allow more, or take --profile quick"
    )


# --- doing it --------------------------------------------------------------------------------------------------------


def audit(
    denoiser: Denoiser,
    subject: Subject,
    size: Size,
    options: Options,
    console: Console,
) -> Audit:
    """Attacks, controls, generated pictures, verdict.

    Args:
        denoiser: of `subject.weights`.
        subject: with as many pictures as are to be used.
        size: draws and pictures to generate.
        options: everything else.
        console: shows how far it is.
    """
    since = time.perf_counter()
    listed = chosen(options.profile, denoiser, size.draws)
    eye = ModelEye(denoiser)
    pictures = len(subject.members) + len(subject.heldout) + len(subject.calibration)
    with console.bar("attacks", pictures * (2 if options.flips else 1)) as bar:
        scored = measure.score(
            eye, listed, subject, batch_size=options.batch_size, flips=options.flips, report=bar.update
        )
    few = subject.sized(UNTRAINED, UNTRAINED, UNTRAINED, options.seed + 7)
    with console.bar("controls", 2 * sum(len(role) for role in (few.members, few.heldout, few.calibration))) as bar:
        known = few.sized(measure.MEMORISED, UNTRAINED, UNTRAINED, options.seed + 8)
        ask = partial(measure.control_score, draws=size.draws, batch_size=options.batch_size, report=bar.update)
        controls = [
            measure.blind(subject),
            measure.untrained(ask(ModelEye(fresh(denoiser, subject)), few)),
            measure.memoriser(ask(measure.by_heart(known, denoiser.device), known)),
            measure.null(scored[0]),
        ]
    made = options.made if options.made is not None else generate(denoiser, size.made, options, console)
    shares = list(generation.copies(made, subject.members, subject.heldout)) if made is not None else []
    for name, encode in options.encoders if made is not None else ():
        assert made is not None, "there are pictures"
        shares += generation.copies(made, subject.members, subject.heldout, encode, name)
    primary = scored[0]
    return Audit(
        subject,
        options,
        size,
        tuple(scored),
        tuple(controls),
        verdict(primary, controls, smoke=options.profile == "quick"),
        tuple(shares),
        errors(denoiser, subject, options.batch_size),
        subgroups.by_class(primary, subject),
        subgroups.by_group(primary, subject),
        subgroups.least_like_others(primary, subject),
        subgroups.set_level(primary),
        time.perf_counter() - since,
        made,
    )


def fresh(denoiser: Denoiser, subject: Subject) -> Denoiser:
    """The same network before it learned anything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build.backbone(subject.spec)
        for tensor_ in network.parameters():  # where outputs begin at zero there would be nothing to ask
            if not tensor_.any():
                torch.nn.init.normal_(tensor_, std=0.02)
    return replace(denoiser, backbone=network.to(denoiser.device).eval().requires_grad_(False))


def generate(denoiser: Denoiser, count: int, options: Options, console: Console) -> np.ndarray | None:
    """Pictures of the model, (N, H, W, C) uint8, or None for none."""
    if not count:
        return None
    with console.bar("sampling", count * STEPS, "step") as bar:
        unit = sample(denoiser, count, batch_size=options.batch_size, report=bar.update)
    return to_uint8(unit).permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def errors(denoiser: Denoiser, subject: Subject, batch_size: int) -> tuple[float, float]:
    """Mean squared error of the estimated image on members and on held-out pictures, 1,000 of each at most."""
    found = []
    for role in (subject.members.some(ASKED, 0), subject.heldout.some(ASKED, 0)):
        x_0 = tensor(role.images)
        t, eps = fixed_questions(denoiser, x_0.shape)
        labels = None if role.labels is None else torch.from_numpy(role.labels)
        total = 0.0
        for start in range(0, len(x_0), batch_size):
            part = slice(start, start + batch_size)
            label = None if labels is None else labels[part].to(denoiser.device)
            given = (x_0[part], t[part].float(), eps[part])
            total += float(image_error(denoiser, *(each.to(denoiser.device) for each in given), label=label).sum())
        found.append(total / len(x_0))
    return found[0], found[1]


# --- the record ------------------------------------------------------------------------------------------------------


def record(found: Audit, command: str) -> dict[str, Any]:
    """As `audit.json`: its schema is versioned, and it names no picture."""
    secondary = found.scored[1:]
    adjusted = statistics.holm([each.auc.p_value for each in secondary])
    rows = [attack_row(each, p) for each, p in zip(found.scored, [found.primary.auc.p_value, *adjusted], strict=True)]
    return {
        "schema": SCHEMA,
        "statistic": VERSION,
        "maskdm": __version__,
        "command": command,
        "seed": found.options.seed,
        "profile": found.options.profile,
        "seconds": found.seconds,
        "verdict": asdict(found.verdict) | {"exit_code": found.verdict.exit_code},
        "subject": described(found.subject),
        "remarks": list(found.subject.remarks),
        "pictures": {
            "members": len(found.subject.members),
            "heldout": len(found.subject.heldout),
            "calibration": len(found.subject.calibration),
            "generated": 0 if found.made is None else len(found.made),
            "groups": None if found.primary.groups is None else [len(set(role)) for role in found.primary.groups],
        },
        "error": {"members": found.gap[0], "heldout": found.gap[1]},
        "attacks": rows,
        "set_p": found.set_p,
        "controls": [asdict(control) for control in found.controls],
        "generation": [asdict(share) for share in found.shares],
        "classes": [{"class": name, **auc_row(value)} for name, value in found.classes],
        "groups": None if found.groups is None else auc_row(found.groups),
        "least_like_others": None if found.apart is None else auc_row(found.apart),
    }


def auc_row(found: statistics.Auc) -> dict[str, Any]:
    """An AUC with its interval."""
    low, high = found.interval()
    return {"auc": found.value, "low": low, "high": high, "members": found.members, "heldout": found.heldout}


def attack_row(each: Scored, p: float) -> dict[str, Any]:
    """One attack, calibrated and raw, at its operating points."""
    points = {}
    for target in (0.01, 0.001):
        point = each.operating(target)
        points[f"{target:g}"] = (
            None
            if point is None
            else {
                "tpr": point.tpr,
                "tpr_interval": point.tpr_interval(),
                "fpr": point.fpr,
                "fpr_interval": point.fpr_interval(),
                "epsilon_lower_bound": point.epsilon(),
            }
        )
    return {
        "name": each.name,
        **auc_row(each.auc),
        "raw_auc": each.raw_auc.value,
        "balanced_accuracy": statistics.balanced_accuracy(each.members, each.heldout),
        "p": p,
        "at_fpr": points,
    }


def write_scores(path: Path, found: Audit) -> None:
    """`scores.npz`: the calibrated and raw scores of every picture, by the hashes of their pixels."""
    arrays: dict[str, Any] = {
        "member_ids": np.array(found.subject.members.ids),
        "heldout_ids": np.array(found.subject.heldout.ids),
    }
    if found.primary.groups is not None:  # numbers, no names: who belongs together
        for role, groups in zip(("member", "heldout"), found.primary.groups[:2], strict=True):
            arrays[f"{role}_groups"] = np.unique(np.array(groups), return_inverse=True)[1]
    for each in found.scored:
        arrays |= {f"{each.name}/members": each.members, f"{each.name}/heldout": each.heldout}
        arrays |= {f"{each.name}/raw_members": each.raw[0], f"{each.name}/raw_heldout": each.raw[1]}
    content = io.BytesIO()
    np.savez(content, **arrays)
    private(path, content.getvalue())


def private(path: Path, content: bytes) -> None:
    """A file that only its owner reads, whole or not at all: it says who was in the training set."""
    try:
        write_private(path, content)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, page: Mapping[str, Any]) -> None:
    """The record."""
    private(path, (json.dumps(page, indent=2) + "\n").encode())
