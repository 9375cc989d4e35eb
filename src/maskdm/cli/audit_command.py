"""maskdm audit, and maskdm audit compare."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskdm.cli.parsing import Commands, add_machine, add_model, command, integer


def add_audit(commands: Commands) -> None:
    """Options of maskdm audit."""
    p = command(
        commands,
        "audit",
        "measure what a model leaks about its training images",
        "  maskdm audit runs/00000-photos --estimate\n"
        "  maskdm audit runs/00000-photos\n"
        "  maskdm audit runs/00000-photos --profile quick --stage pretrain\n"
        "  maskdm audit runs/00000-photos --budget-minutes 10 --group-by people.csv\n"
        "  maskdm audit model.safetensors --members theirs/ --nonmembers others/\n\n"
        "Membership inference: published attacks distinguish members from held-out images of the same source,\n"
        "calibrated for how difficult an image is, with controls that can declare the audit itself invalid. A finding\n"
        "is a lower bound of what leaks; finding nothing is no guarantee. Exit code: 0 nothing detected, 3 leakage,\n"
        "4 inconclusive, 5 invalid. maskdm audit compare compares two audits.",
    )
    p.add_argument("model", metavar="RUN|FILE", type=Path, help="a run, or weights")
    p.add_argument(
        "--profile",
        choices=["quick", "standard", "full"],
        default="standard",
        help="how much: quick (an alarm, never an all-clear), standard, full (default: standard)",
    )
    p.add_argument("--stage", metavar="NAME|N", help="the weights as this stage left them (default: the last)")
    add_model(p, "of a run (default: ema)")
    p.add_argument("--data", metavar="DATA", help="where the run's images are now, if they were moved")
    p.add_argument("--members", metavar="DATA", help="images that the model was trained on, where no run says so")
    p.add_argument("--nonmembers", metavar="DATA", help="images of the same source that it was not trained on")
    p.add_argument("--num", type=integer, metavar="N", help="images to generate, 0 for none (default: by the profile)")
    p.add_argument("--generated", metavar="DATA", help="images that the model generated before, instead")
    p.add_argument(
        "--features",
        metavar="NAME|FILE|MODULE:CALLABLE",
        action="append",
        default=[],
        help="features, as of maskdm eval, in which copies are looked for besides pixels; may be repeated",
    )
    p.add_argument("--group-by", metavar="CSV|REGEX", help="images of one person or scene, as data.group_by")
    p.add_argument("--budget-minutes", type=float, metavar="M", help="fewer images, until it takes no longer")
    p.add_argument("--estimate", action="store_true", help="say how long it would take, and leave")
    p.add_argument("--fail-above-auc", type=float, metavar="X", help="exit with 0 for leakage up to this AUC")
    p.add_argument(
        "--include-training-images",
        action="store_true",
        help="show members that stand out, and that generated images are near to, in the report (private)",
    )
    p.add_argument("--seed", type=integer, default=0, metavar="N", help="of the choice of images (default: 0)")
    add_machine(p)
    p.add_argument("--output", "-o", "--out", type=Path, metavar="DIR", help="default: audit, in the run's folder")
    p.set_defaults(call=call_audit)


def add_audit_compare(commands: Commands) -> None:
    """Options of maskdm audit compare."""
    p = command(
        commands,
        "audit compare",
        "compare what two models leak, on the images that both audits used",
        "  maskdm audit compare runs/00000-a runs/00001-b\n"
        "  maskdm audit compare runs/00000-a/audit other/audit\n\n"
        "Audits of the same split, profile and seed. A run folder called compare is audited as ./compare.",
    )
    p.add_argument("a", metavar="A", type=Path, help="an audited run, or an audit's folder")
    p.add_argument("b", metavar="B", type=Path, help="another")
    p.set_defaults(call=call_audit_compare)


def call_audit(a: argparse.Namespace) -> int:
    """Audits, prints the verdict, and returns its exit code."""
    from maskdm.commands.audit import audit

    result = audit(
        a.model,
        profile=a.profile,
        stage=a.stage,
        weights=a.weights,
        backbone=a.backbone,
        data=a.data,
        members=a.members,
        nonmembers=a.nonmembers,
        num=a.num,
        generated=a.generated,
        features=a.features,
        group_by=a.group_by,
        budget_minutes=a.budget_minutes,
        estimate=a.estimate,
        fail_above_auc=a.fail_above_auc,
        include_training_images=a.include_training_images,
        seed=a.seed,
        batch_size=a.batch_size,
        device=a.device,
        output=a.output,
        quiet=a.quiet,
        command=a.typed,
    )
    if result.verdict is not None:
        print("\n".join([result.verdict.name, result.verdict.summary, *result.record["remarks"]]))
        if not result.record["images"]["generated"]:
            print("No images were generated: copies were not looked for.")
    return result.exit_code


def call_audit_compare(a: argparse.Namespace) -> None:
    """Prints what may be said of A against B."""
    from maskdm.auditing.paired import comparison_lines
    from maskdm.commands.audit import compare_audits

    print("\n".join(comparison_lines(compare_audits(a.a, a.b))))
