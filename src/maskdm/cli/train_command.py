"""maskdm train."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskdm.cli.overrides import Words, add_budget, add_settings, given
from maskdm.cli.parsing import Commands, command


def add_train(commands: Commands) -> None:
    """Its options."""
    p = command(
        commands,
        "train",
        "train a model on images, in stages",
        "  maskdm train --data photos/ --minutes 20\n"
        "  maskdm train --data photos/ --hours 6 --dry-run\n"
        "  maskdm train --data photos/ --recipe celeba64-s stages.0.mask.ratio=0.75 model.width=384\n"
        "  maskdm train --data photos/ --config mine.yaml --dry-run\n"
        "  maskdm train --resume latest --output-dir runs\n\n"
        "The same command again resumes an interrupted run. Sub-folders of --data are classes.\n"
        "Without --recipe and lengths of stages, settings are chosen for a time: --minutes, or 60.\n"
        "Settings: defaults < --recipe < --config < key.sub=value. --settings lists them, --recipes the recipes.",
    )
    add_settings(p)
    add_budget(p)
    p.add_argument(
        "--output-dir", "--outdir", metavar="DIR", type=Path, default=Path("runs"), help="where runs go (default: runs)"
    )
    p.add_argument("--name", help="name of a new run (default: the recipe's or the data's)")
    p.add_argument(
        "--resume", metavar="latest|PATH|never", help="a certain run; by default an unfinished one of the same settings"
    )
    p.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        help="read the images (into the cache), say what would be done and begin nothing; prints the settings",
    )
    p.add_argument("--settings", action="store_true", help="list every setting with its default, and leave")
    p.add_argument("--recipes", action="store_true", help="list the recipes, and leave")
    p.set_defaults(call=call_train, settings_follow=True)


def call_train(a: argparse.Namespace, rest: Words) -> None:
    """Trains, or lists what may be set."""
    if a.settings:
        return _print_settings()
    if a.recipes:
        return _print_recipes()
    from maskdm.commands.train import train

    result = train(
        **given(a, rest),
        minutes=a.minutes,
        hours=a.hours,
        output_dir=a.output_dir,
        name=a.name,
        resume=a.resume,
        dry_run=a.dry_run,
        quiet=a.quiet,
        command=a.typed,
    )
    if result.settings is not None:
        print(result.settings, end="")
    return None


def _print_settings() -> None:
    from maskdm.config.keys import all_settings, stages_as_overrides

    print("Without a recipe a run has two stages, whose settings differ from the defaults of stages.N in this:")
    print("\n".join(f"    {line}" for line in stages_as_overrides()) + "\n")
    for setting in all_settings():
        print(setting)


def _print_recipes() -> None:
    from maskdm.config.recipes import recipes

    for name, header in recipes().items():
        print(f"{name:18} {header}")
