"""maskdm audit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from maskdm.cli.parsing import Commands, add_machine, command, own_backbone
from maskdm.errors import InputError

if TYPE_CHECKING:
    from maskdm.audit.audit import Audit
    from maskdm.audit.conclusion import Verdict
    from maskdm.audit.copies import Encode
    from maskdm.audit.subject import Subject
    from maskdm.runtime.console import Console


def add(commands: Commands) -> None:
    """Its options."""
    p = command(
        commands,
        "audit",
        "measure what a model leaks about the pictures it was trained on",
        "  maskdm audit runs/00000-photos --estimate\n"
        "  maskdm audit runs/00000-photos\n"
        "  maskdm audit runs/00000-photos --profile quick --stage pretrain\n"
        "  maskdm audit runs/00000-photos --budget-minutes 10 --group-by people.csv\n"
        "  maskdm audit model.safetensors --members theirs/ --nonmembers others/\n"
        "  maskdm audit compare runs/00000-a/audit runs/00001-b/audit\n\n"
        "Members are told from held-out pictures of the same source by published attacks, calibrated for how\n"
        "difficult a picture is, with controls that can declare the audit itself invalid. A finding is a lower bound\n"
        "of what leaks; finding nothing is no guarantee. Exit code: 0 nothing detected, 3 leakage, 4 inconclusive,\n"
        "5 invalid.",
    )
    p.add_argument("subject", metavar="RUN|FILE", nargs="+", type=Path, help="a run, or weights; or: compare A B")
    p.add_argument(
        "--profile",
        choices=["quick", "standard", "full"],
        default="standard",
        help="how much: quick (an alarm, never an all-clear), standard, full (default: standard)",
    )
    p.add_argument("--stage", metavar="NAME|N", help="the weights as this stage left them (default: the last)")
    p.add_argument("--weights", choices=["ema", "raw"], default="ema", help="of a run (default: ema)")
    p.add_argument("--backbone", metavar="MODULE:CLASS", help="the class of a backbone of your own")
    p.add_argument("--members", metavar="DATA", help="pictures that the model was trained on, where no run says so")
    p.add_argument("--nonmembers", metavar="DATA", help="pictures of the same source that it was not trained on")
    p.add_argument("--num", type=int, metavar="N", help="pictures to generate, 0 for none (default: by the profile)")
    p.add_argument("--generated", metavar="DATA", help="pictures that the model made before, instead")
    p.add_argument(
        "--encoder", metavar="MODULE:CALLABLE", action="append", default=[], help="another way to compare pictures"
    )
    p.add_argument("--group-by", metavar="CSV|REGEX", help="pictures of one person or scene, as data.group_by")
    p.add_argument("--budget-minutes", type=float, metavar="M", help="fewer pictures, until it takes no longer")
    p.add_argument("--estimate", action="store_true", help="say how long it would take, and leave")
    p.add_argument("--fail-above-auc", type=float, metavar="X", help="exit with 0 for leakage up to this AUC")
    p.add_argument(
        "--include-training-images",
        action="store_true",
        help="show members that stand out, and that generated pictures are near to, in the report (private)",
    )
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of pictures (default: 0)")
    add_machine(p)
    p.add_argument("--output", "-o", "--out", type=Path, metavar="DIR", help="default: audit, in the run's folder")
    p.set_defaults(run=_audit)


def _audit(a: argparse.Namespace) -> int:
    if str(a.subject[0]) == "compare" and (len(a.subject) > 1 or not a.subject[0].exists()):
        return _compare(a.subject[1:])
    if len(a.subject) != 1:
        raise InputError(
            f"audit: got {len(a.subject)} runs, wanted one; to compare two audits: maskdm audit compare A B"
        )
    _check(a)
    return _one(a, a.subject[0])


def _check(a: argparse.Namespace) -> None:
    if (a.members is None) != (a.nonmembers is None):
        missing = "--nonmembers" if a.nonmembers is None else "--members"
        raise InputError(f"{missing}: missing; give both --members and --nonmembers, or neither for a run")
    if a.members is not None and a.group_by is not None:
        raise InputError("--group-by: only for a run, whose pictures have the names that it was trained on")
    if a.budget_minutes is not None and not a.budget_minutes > 0:
        raise InputError(f"--budget-minutes: got {a.budget_minutes:g}, wanted more than 0")
    if a.fail_above_auc is not None and not 0.5 <= a.fail_above_auc <= 1:
        raise InputError(f"--fail-above-auc: got {a.fail_above_auc:g}, wanted 0.5 to 1")
    if a.num is not None and a.num < 0:
        raise InputError(f"--num: got {a.num}, wanted 0 or more")
    if a.num and a.generated is not None:
        raise InputError("--num: given with --generated, which are made already; leave one out")
    if a.batch_size < 1:
        raise InputError(f"--batch-size: got {a.batch_size}, wanted at least 1")


def _one(a: argparse.Namespace, path: Path) -> int:
    from dataclasses import replace

    from maskdm.audit.audit import (
        SIZES,
        Options,
        audit,
        calls,
        chosen,
        fitted,
        record,
        seconds_a_call,
        write_json,
        write_scores,
    )
    from maskdm.audit.subject import pictures_of
    from maskdm.data.write import check_folder, make_folder
    from maskdm.evaluation.scores import without_grid
    from maskdm.models.weights import load
    from maskdm.reports.audit_page import write_pages
    from maskdm.runtime.console import Console
    from maskdm.runtime.distributed import join

    console, runtime = Console(), join(a.device, "--device")
    output = a.output or (path if path.is_dir() else path.parent) / "audit"
    if not a.estimate:
        check_folder(output, "--output")
    encoders = tuple((name, _encoder(name)) for name in a.encoder)
    subject, flips = _subject(a, path, console)
    denoiser = load(subject.weights, device=runtime.device, backbone=own_backbone(a.backbone))
    made = None
    if a.generated is not None:
        made = without_grid(pictures_of(a.generated, "--generated", subject.spec, console))
    options = Options(a.profile, a.seed, a.batch_size, flips, made, encoders)
    size = SIZES[a.profile]
    if a.num is not None or made is not None:
        size = replace(size, made=a.num or 0)
    each = seconds_a_call(denoiser, subject, a.batch_size)
    subject, size = fitted(subject, size, options, denoiser, minutes=a.budget_minutes, each=each)
    total = calls(subject, size, options, chosen(a.profile, denoiser, size.draws))
    console.say(
        f"{len(subject.members):,} members, {len(subject.heldout):,} held out, {len(subject.calibration):,} for "
        f"calibration; {total:,} calls of the network, about {_minutes(total * each)}"
    )
    if a.estimate:
        return 0
    found = audit(denoiser, subject, size, options, console)
    make_folder(output)
    page = record(found, a.typed)
    write_json(output / "audit.json", page)
    write_scores(output / "scores.npz", found)
    report = write_pages(output, found, page, include_training_images=a.include_training_images)
    _tell(found)
    console.say(f"report  {report}")
    return _exit_code(found.verdict, a.fail_above_auc)


def _tell(found: Audit) -> None:
    print(f"{found.verdict.name}\n{found.verdict.words}")
    for remark in found.subject.remarks:
        print(remark)
    if found.made is None:
        print("No pictures were generated: copies were not looked for.")


def _exit_code(verdict: Verdict, allowed: float | None) -> int:
    """That of the verdict, but 0 for leakage up to an AUC that was allowed."""
    tolerated = allowed is not None and verdict.auc is not None and verdict.auc <= allowed
    return 0 if verdict.name == "LEAKAGE DETECTED" and tolerated else verdict.exit_code


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _subject(a: argparse.Namespace, path: Path, console: Console) -> tuple[Subject, bool]:
    """What is audited, and whether training mirrored pictures."""
    from maskdm.audit.subject import of_folders, of_run, stage_weights
    from maskdm.training.runs import read_config

    run = (path / "config.yaml").is_file()
    if a.stage is not None and not run:
        raise InputError(f"--stage: {path} is no run, and has no stages; leave it out")
    which = stage_weights(path, a.stage, a.weights) if run else a.weights
    if a.members is not None:
        return of_folders(path, which, a.members, a.nonmembers, console, a.seed), False
    subject = of_run(path, which, console, seed=a.seed, group_by=a.group_by)
    return subject, read_config(path).data.flip > 0


def _encoder(name: str) -> Encode:
    """A function (N, H, W, C) uint8 -> (N, D) of the user's own; importing it is what was asked for."""
    import importlib

    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"--encoder: got {name!r}, wanted module:callable")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--encoder: {name} cannot be imported ({error}); is its folder on PYTHONPATH?") from None
    if not callable(found):
        raise InputError(
            f"--encoder: {name} is {type(found).__name__}, wanted a function of (N, H, W, C) uint8 pictures"
        )
    encode: Encode = found
    return encode


def _compare(folders: list[Path]) -> int:
    from maskdm.audit.paired import compare, read_audit

    if len(folders) != 2:
        raise InputError(
            f"audit compare: got {len(folders)} audits, wanted two, such as runs/00000-a/audit runs/00001-b/audit"
        )
    print(compare(*(read_audit(folder) for folder in folders)))
    return 0
