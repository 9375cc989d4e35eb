"""maskdm train."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from maskdm.cli.overrides import Words, add_settings, check_words, resolved, settings_words
from maskdm.cli.parsing import Commands, command


def add(commands: Commands) -> None:
    """Its options."""
    p = command(
        commands,
        "train",
        "train a model on pictures, in stages",
        "  maskdm train --data photos/ --output-dir runs\n"
        "  maskdm train --data photos/ --recipe celeba64-s stages.0.mask.ratio=0.75 model.width=384\n"
        "  maskdm train --data photos/ --config mine.yaml --dry-run\n"
        "  maskdm train --resume latest --output-dir runs\n\n"
        "Run the same command again to go on with an interrupted run. Sub-folders of --data are classes.\n"
        "Settings: defaults < --recipe < --config < key.sub=value. --settings lists them, --recipes the recipes.",
    )
    add_settings(p)
    p.add_argument(
        "--output-dir", "--outdir", metavar="DIR", type=Path, default=Path("runs"), help="where runs go (default: runs)"
    )
    p.add_argument("--name", help="name of a new run (default: the recipe's or the data's)")
    p.add_argument(
        "--resume", metavar="latest|PATH|never", help="a certain run; by default an unfinished one of the same settings"
    )
    p.add_argument(
        "-n", "--dry-run", action="store_true", help="read the pictures, say what would be done, make nothing"
    )
    p.add_argument("--settings", action="store_true", help="list every setting with its default, and leave")
    p.add_argument("--recipes", action="store_true", help="list the recipes, and leave")
    p.set_defaults(run=_train, settings_follow=True)


def _train(a: argparse.Namespace, rest: Words) -> None:
    from maskdm.config.resolve import all_keys, recipes, stages_as_words

    if a.settings:
        print("Without a recipe a run has two stages, whose settings differ from the defaults of stages.N in this:")
        print("\n".join(f"    {line}" for line in stages_as_words()) + "\n")
        for key, (kind, default, text) in all_keys().items():
            print(f"{key} = {default}\n    {text} [{kind}]")
        return
    if a.recipes:
        for name, header in recipes().items():
            print(f"{name:18} {header}")
        return
    check_words(rest, "train")
    _start_training(a, rest)


def _start_training(a: argparse.Namespace, words: Words) -> None:
    words = settings_words(a, words)
    config = None
    if a.resume not in (None, "never") and not (words or a.recipe or a.config):
        from maskdm.training.runs import find_resumable, read_config

        config = read_config(find_resumable(a.output_dir, a.resume))
    config = config or resolved(a, words)

    from maskdm.reports.run_page import write_report
    from maskdm.runtime.console import Console
    from maskdm.training.start import dry_run, start

    console = Console()
    if a.dry_run:
        dry_run(config, output_dir=a.output_dir, resume=a.resume, console=console)
        return
    name = a.name or a.recipe or Path(config.data.path).stem or "run"
    path = start(
        config,
        output_dir=a.output_dir,
        name=_slug(name),
        resume=a.resume,
        console=console,
    )
    if not console.quiet:
        report = write_report(path)
        grids = sorted((path / "samples").glob("step-*.png"))
        console.say(f"weights  {path / 'weights' / 'ema.safetensors'}")
        if grids:
            console.say(f"samples  {grids[-1]}")
        console.say(f"report   {report}")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
