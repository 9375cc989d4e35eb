"""maskdm compare."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from maskdm.cli.overrides import Words, check_words
from maskdm.cli.parsing import Commands, command, numbers
from maskdm.errors import InputError

if TYPE_CHECKING:
    from maskdm.experiments.runner import Plan
    from maskdm.experiments.spec import Comparison
    from maskdm.reports.compare_page import About
    from maskdm.runtime.console import Console


def add(commands: Commands) -> None:
    """Its options."""
    p = command(
        commands,
        "compare",
        "train in several ways with the same compute, and say which was better",
        "  maskdm compare masks --data photos/\n"
        "  maskdm compare mine.yaml --data photos/ --output-dir compare --seeds 0,1,2 --minutes 30\n"
        "  maskdm compare masks --data photos/ --dry-run\n"
        "  maskdm compare --list\n"
        "  maskdm compare --show masks\n\n"
        "Run the same command again to go on. Arms are trained one after another; let nothing else run meanwhile.\n"
        "key.sub=value settings hold for every arm.",
    )
    p.add_argument("config", metavar="FILE|NAME", nargs="?", help="arms, budget and seeds; or a shipped comparison")
    p.add_argument("--data", metavar="DIR|FILE|hf:NAME", help="the pictures (data.path)")
    p.add_argument(
        "--output-dir", "--outdir", metavar="DIR", type=Path, default=Path("compare"), help="where (default: compare)"
    )
    p.add_argument("--pretrain-data", metavar="DIR|FILE|hf:NAME", help="the pictures of models that arms start from")
    p.add_argument("--minutes", type=float, metavar="M", help="another budget than the file's")
    p.add_argument("--seeds", metavar="0,1", help="other seeds than the file's")
    p.add_argument("-n", "--dry-run", action="store_true", help="check all arms and list them, train nothing")
    p.add_argument("--show", metavar="NAME", help="print a shipped comparison, to write one like it, and leave")
    p.add_argument("--list", action="store_true", help="list the shipped comparisons, and leave")
    p.set_defaults(run=_compare, settings_follow=True)


def _compare(a: argparse.Namespace, rest: Words) -> None:
    from maskdm.data.write import check_folder
    from maskdm.experiments import runner as compare
    from maskdm.experiments.spec import comparisons, shown
    from maskdm.runtime.console import Console

    if a.show is not None:
        print(shown(a.show), end="")
        return
    if a.list:
        for name, header in comparisons().items():
            print(f"{name:18} {header}")
        return
    comparison = _comparison(a)
    check_words(rest, "compare")
    check_folder(a.output_dir, "--output-dir")
    words = [*([f"data.path={a.data}"] if a.data is not None else []), *rest]
    elsewhere = [f"data.path={a.pretrain_data}"] if a.pretrain_data is not None else []
    console = Console()
    todo = compare.plan(comparison, words, console, pretrain_words=elsewhere)
    (_list if a.dry_run else _run)(a, comparison, todo, console)


def _comparison(a: argparse.Namespace) -> Comparison:
    """The file, and what the command line says instead."""
    from maskdm.experiments.spec import Budget, comparisons, read_comparison

    if a.config is None:
        raise InputError(f"comparison: missing; give a file, or one of {', '.join(comparisons())}")
    comparison = read_comparison(a.config)
    if a.pretrain_data is not None and not comparison.pretrained:
        raise InputError("--pretrain-data: given, but no arm starts from another model; leave it out")
    changes: dict[str, object] = {}
    if a.minutes is not None:
        if not a.minutes > 0:
            raise InputError(f"--minutes: got {a.minutes:g}, wanted more than 0")
        changes["budget"] = Budget(minutes=a.minutes)
    if a.seeds is not None:
        seeds = numbers(a.seeds, "--seeds")
        if len(set(seeds)) < len(seeds):
            raise InputError(f"--seeds: got {a.seeds!r}, wanted different numbers such as 0,1,2")
        changes["seeds"] = tuple(seeds)
    return comparison.model_copy(update=changes)


def _list(a: argparse.Namespace, comparison: Comparison, todo: Plan, console: Console) -> None:
    """What would be trained, for --dry-run."""
    from maskdm.training.start import plan

    runs = [*todo.pretrained.items(), *todo.arms.items()]
    for (name, seed), prepared in runs:
        console.say(f"{name}, seed {seed}")
        for line in plan(prepared):
            console.say(f"  {line}")
    minutes = sum(stage.minutes or 0 for _, prepared in runs for stage in prepared.config.stages)
    console.say(f"{len(runs)} runs" + (f", {minutes:g} minutes of training in all" if minutes else ""))


def _run(a: argparse.Namespace, comparison: Comparison, todo: Plan, console: Console) -> None:
    """Trains, and writes the page anew after every run."""
    from maskdm.data.write import make_folder
    from maskdm.experiments.conclusion import lines, verdicts
    from maskdm.experiments.runner import Outcome, compare
    from maskdm.reports.compare_page import write_page

    make_folder(a.output_dir)
    about = _about(a, comparison, todo)
    done: list[Outcome] = []
    for found in compare(comparison, todo, output_dir=a.output_dir, console=console):
        done.append(found)
        so_far = verdicts(done, comparison.baseline) if any(o.arm == comparison.baseline for o in done) else []
        path = write_page(a.output_dir, comparison, done, so_far, about=about)
    print("\n".join(lines(verdicts(done, comparison.baseline))))
    console.say(f"page  {path}")


def _about(a: argparse.Namespace, comparison: Comparison, todo: Plan) -> About:
    from maskdm import __version__
    from maskdm.experiments.throughput import machine
    from maskdm.reports.compare_page import About
    from maskdm.runtime import distributed as runtime
    from maskdm.training.start import plan

    arms = {arm: found for (arm, seed), found in todo.arms.items() if seed == comparison.seeds[0]}
    first = arms[comparison.baseline]
    counts = first.dataset.counts
    return About(
        stages={arm: plan(found) for arm, found in arms.items()},
        data=f"{Path(first.config.data.path).name}: {counts['member']:,} pictures to train on, "
        f"{counts['heldout']:,} held out",
        machine=machine(runtime.start(first.config.train)),
        version=__version__,
        command=a.typed,
    )
