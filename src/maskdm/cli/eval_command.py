"""maskdm eval."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskdm.cli.parsing import Commands, add_machine, add_model, add_precision, command, integer


def add_eval(commands: Commands) -> None:
    """Its options."""
    p = command(
        commands,
        "eval",
        "measure how near generated images come to real ones",
        "  maskdm eval runs/00000-photos\n"
        "  maskdm eval runs/00000-photos --features encoder --num 2000 --bootstrap 200\n"
        "  maskdm eval samples/ --reference photos/ --features inception\n"
        "  maskdm eval runs/00000-photos --features dinov2 --num 5000 --mixed-precision bf16\n"
        "  maskdm eval model.safetensors --reference statistics.npz --features inception --features-weights fid.pth\n\n"
        "A run is compared with its own held-out images unless --reference says otherwise. Frechet distance (with\n"
        "inception: FID), KID, precision, recall, density, coverage, and how near images are to the training set.\n"
        "Scores compare only in the same features and with as many images.",
    )
    p.add_argument("subject", metavar="RUN|FILE|IMAGES", type=Path, help="a model, or generated images")
    p.add_argument("--reference", metavar="DATA|NPZ", help="real images, or an .npz with mu and sigma")
    p.add_argument("--data", metavar="DATA", help="where the run's images are now, if they were moved")
    p.add_argument(
        "--features",
        default="pixels",
        metavar="NAME|FILE",
        help="pixels, inception, dinov2, clip, encoder, a TorchScript or torch.export file, or module:callable "
        "(default: pixels)",
    )
    p.add_argument(
        "--features-weights",
        type=Path,
        metavar="PATH",
        help="of inception (a file), dinov2 or clip (a folder): no download",
    )
    p.add_argument("--num", type=integer, default=1000, metavar="N", help="images to generate (default: 1000)")
    p.add_argument("--sampler", default="dpm++", help="of a model (default: dpm++)")
    p.add_argument("--steps", type=integer, default=25, metavar="N", help="of the sampler (default: 25)")
    p.add_argument("--guidance", type=float, default=1.0, metavar="W", help="of a model (default: 1, none)")
    p.add_argument("--first-seed", type=integer, default=0, metavar="N", help="seeds count from here (default: 0)")
    add_model(p, "of a run, or of a stage of it: pretrain, pretrain-raw (default: ema)")
    add_precision(p)
    p.add_argument(
        "--bootstrap", type=integer, default=0, metavar="B", help="resamples for an interval of the distance"
    )
    add_machine(p)
    p.add_argument("--output", "-o", type=Path, metavar="FILE.json", help="also write the scores there")
    p.set_defaults(call=call_eval)


def call_eval(a: argparse.Namespace) -> None:
    """Evaluates, and prints the scores."""
    from maskdm.commands.evaluate import evaluate
    from maskdm.evaluation.scores import format_scores

    result = evaluate(
        a.subject,
        a.reference,
        a.features,
        data=a.data,
        features_weights=a.features_weights,
        num=a.num,
        sampler=a.sampler,
        steps=a.steps,
        guidance=a.guidance,
        first_seed=a.first_seed,
        weights=a.weights,
        backbone=a.backbone,
        mixed_precision=a.mixed_precision,
        bootstrap=a.bootstrap,
        batch_size=a.batch_size,
        device=a.device,
        output=a.output,
        quiet=a.quiet,
        command=a.typed,
    )
    if result.scores:  # the first rank has them
        print("\n".join([f"features   {result.features}", *format_scores(result.scores), result.note]))
