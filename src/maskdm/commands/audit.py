"""`maskdm audit`: what a model leaks about its training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from maskdm.auditing import paired
from maskdm.auditing.audit import (
    SIZES,
    AuditCost,
    AuditOptions,
    Profile,
    check_audit_arguments,
    estimate_cost,
    load_audit_features,
    read_generated,
    run_audit,
)
from maskdm.auditing.paired import AuditComparison
from maskdm.auditing.record import read_audit, save_audit
from maskdm.auditing.subject import open_subject
from maskdm.auditing.verdict import AuditVerdict
from maskdm.commands.arguments import open_model
from maskdm.errors import InputError
from maskdm.files import check_folder
from maskdm.reports.audit_page import write_audit_pages
from maskdm.reports.formatting import format_duration
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import init_distributed


@dataclass(frozen=True)
class AuditResult:
    """What an audit concludes, or with `estimate` would cost.

    Attributes:
        verdict: one of four, and what may be said; None of an estimate.
        record: `audit.json`: attacks, controls, copies, remarks; it names no image. Empty of an estimate.
        report: the page, None of an estimate.
        exit_code: that of the verdict, but 0 for leakage up to `fail_above_auc`.
        calls: of the network, over the whole audit.
        seconds: that these were expected to take.
    """

    verdict: AuditVerdict | None
    record: Mapping[str, Any] = field(repr=False)
    report: Path | None
    exit_code: int
    calls: int
    seconds: float


def audit(
    model: str | Path,
    *,
    profile: Profile = "standard",
    stage: str | None = None,
    weights: str = "ema",
    backbone: str | type[nn.Module] | None = None,
    data: str | Path | None = None,
    members: str | Path | None = None,
    nonmembers: str | Path | None = None,
    num: int | None = None,
    generated: str | Path | None = None,
    features: Sequence[str] = (),
    group_by: str | None = None,
    budget_minutes: float | None = None,
    estimate: bool = False,
    fail_above_auc: float | None = None,
    include_training_images: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    output: str | Path | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> AuditResult:
    """Measures by membership inference, and by copies among generated images, what a model leaks.

    Args:
        model: a run, which says itself what it was trained on, or a weights file with `members` and `nonmembers`.
        profile: quick (an alarm, never an all-clear), standard or full.
        stage: of a run: a stage's name or number, for the weights as it left them; by default the last.
        weights: of a run: ema or raw.
        backbone: the class of a backbone of your own, or its name, module:Class.
        data: of a run: where its images are, if they were moved since.
        members: images that the model was trained on, where no run says so.
        nonmembers: images of the same source that it was not trained on.
        num: images to generate, 0 for none; by default as the profile has it.
        generated: images that the model generated before, in place of new ones.
        features: in which copies are looked for besides pixels; each as of `maskdm.evaluate`.
        group_by: images of one person or scene, as the setting data.group_by.
        budget_minutes: audit fewer images, until it takes no longer.
        estimate: measure how long it would take, and do no more.
        fail_above_auc: leakage up to this AUC (0.5 to 1) has exit code 0.
        include_training_images: show members in the report, which is then private.
        seed: of the choice of images.
        batch_size: images at once.
        device: auto, cpu, cuda, ...
        output: a folder; by default `audit` in the run's, or beside the weights file.
        quiet: no progress on standard error.
        command: the command line that this was, for the record.

    Returns:
        The verdict, the record and the page.

    Raises:
        InputError: no such run or weights, too few images of a role, images that are not as recorded, arguments that do
            not fit together.

    Example:
        >>> result = maskdm.audit("runs/00000-photos", profile="quick")
        >>> result.verdict.name
        'INCONCLUSIVE'
    """
    if profile not in SIZES:
        raise InputError("profile", got=profile, wanted=f"one of {', '.join(SIZES)}")
    check_audit_arguments(num=num, generated=generated, fail_above_auc=fail_above_auc)
    path, console = Path(model), Console(quiet=quiet)
    folder = Path(output) if output is not None else (path if path.is_dir() else path.parent) / "audit"
    if not estimate:
        check_folder(folder, "output")
    options = AuditOptions(profile, seed, batch_size, num=num, budget_minutes=budget_minutes)
    with init_distributed(device) as runtime:
        subject = open_subject(
            path,
            weights=weights,
            stage=stage,
            members=None if members is None else str(members),
            nonmembers=None if nonmembers is None else str(nonmembers),
            group_by=group_by,
            data=None if data is None else str(data),
            seed=seed,
            console=console,
        )
        denoiser = open_model(subject.weights, device=runtime.device, backbone=backbone)
        options = replace(
            options,
            generated=None if generated is None else read_generated(generated, subject.spec, console),
            features=load_audit_features(features, subject, runtime.device, console),
        )
        cost = estimate_cost(denoiser, subject, options)
        console.say(_describe_cost(cost))
        if estimate:
            return AuditResult(None, {}, None, 0, cost.calls, cost.seconds)
        found = run_audit(denoiser, cost.subject, cost.size, options, console)
        record = save_audit(folder, found, command or "")
        report = write_audit_pages(folder, found, record, include_training_images=include_training_images)
        console.say(f"report  {report}")
        exit_code = found.verdict.exit_code_above(fail_above_auc)
        return AuditResult(found.verdict, record, report, exit_code, cost.calls, cost.seconds)


def _describe_cost(cost: AuditCost) -> str:
    """How many images, and how long they take."""
    roles = cost.subject
    return (
        f"{len(roles.members):,} members, {len(roles.heldout):,} held out, {len(roles.calibration):,} for calibration; "
        f"{cost.calls:,} calls of the network, about {format_duration(cost.seconds)}"
    )


def compare_audits(a: str | Path, b: str | Path) -> AuditComparison:
    """Compares what two models leak, on the images that both audits used in the same roles.

    Args:
        a: an audited run, or the folder of an audit.
        b: another, of the same split, profile and seed.

    Returns:
        The difference of the AUCs with its interval, and what may be said of it.

    Raises:
        InputError: no audit there, too few images in common, another profile, or an audit that is invalid.

    Example:
        >>> print(maskdm.compare_audits("runs/00000-whole", "runs/00001-masked").summary)
    """
    return paired.compare_saved_audits(read_audit(Path(a)), read_audit(Path(b)))
