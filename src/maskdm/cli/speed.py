"""maskdm plan, bench."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from maskdm.cli.overrides import Words, add_settings, check_words, resolved, settings_words
from maskdm.cli.parsing import Commands, command
from maskdm.errors import InputError

if TYPE_CHECKING:
    from maskdm.runtime.console import Console
    from maskdm.training.step import Task


def add_plan(commands: Commands) -> None:
    """Options of maskdm plan."""
    p = command(
        commands,
        "plan",
        "measure a few steps of every stage, and say what the run would take: memory, hours, energy",
        "  maskdm plan --data photos/\n  maskdm plan --data photos/ --recipe celeba64-s stages.0.batch_size=64",
    )
    add_settings(p)
    p.add_argument("--seconds", type=float, default=10.0, metavar="S", help="time for each stage (default: 10)")
    p.add_argument("--watts", type=float, metavar="W", help="of the device under load (default: a guess)")
    p.set_defaults(run=_plan, settings_follow=True)


def add_bench(commands: Commands) -> None:
    """Options of maskdm bench."""
    p = command(
        commands,
        "bench",
        "what a step costs here with more and less hidden, against what the machine could do",
        "  maskdm bench --recipe celeba64-s stages.0.batch_size=32\n"
        "  maskdm bench --recipe emoji64 --data emoji/ --ratios 0,0.5,0.9 --output bench.json\n\n"
        "The first stage of the recipe, with its kind of mask. Without --data the pictures are noise in memory.\n"
        "of peak: FLOP/s over those of a large matrix product. cost over FLOP share: a step's time over the first\n"
        "row's, divided by its FLOPs over the first row's; 1 is hiding that saves all that it could.",
    )
    add_settings(p)
    p.add_argument("--ratios", default="0,0.5,0.75,0.9", metavar="R,R", help="shares to hide (default: 0,0.5,0.75,0.9)")
    p.add_argument("--rounds", type=int, default=5, metavar="N", help="measurements of each (default: 5)")
    p.add_argument("--output", "-o", type=Path, metavar="FILE.json", help="also write the table there")
    p.set_defaults(run=_bench, settings_follow=True)


def _plan(a: argparse.Namespace, rest: Words) -> None:
    from maskdm.profiling.forecast import forecast, lines, power
    from maskdm.runtime.console import Console

    check_words(rest, "plan")
    if not a.seconds > 0:
        raise InputError(f"--seconds: got {a.seconds:g}, wanted more than 0")
    console = Console()
    task = _task(a, rest, console)
    if task is None:
        raise InputError("--data: missing; give a folder of pictures, a .zip, .tar or .npz, or hf:NAME")
    watts = power(task.runtime.device) if a.watts is None else a.watts
    forecasts = []
    for found in forecast(task, seconds=a.seconds, watts=watts):
        console.say(f"measured {found.name}")
        forecasts.append(found)
    print("\n".join(lines(forecasts)))


def _bench(a: argparse.Namespace, rest: Words) -> None:
    from maskdm.data.write import check_folder
    from maskdm.profiling.bench import as_json, bench, maskings, table
    from maskdm.runtime.console import Console

    check_words(rest, "bench")
    ratios = _ratios(a.ratios)
    if a.rounds < 1:
        raise InputError(f"--rounds: got {a.rounds}, wanted at least 1")
    if a.output is not None:
        check_folder(a.output.parent, "--output")
    console = Console()
    task = _task(a, rest, console) or _synthetic(a, rest)
    rows, peak = bench(task, maskings(task.config.stages[0].mask, ratios, task), rounds=a.rounds)
    print("\n".join(table(rows, peak)))
    if a.output is not None:
        a.output.write_text(json.dumps(as_json(rows, peak), indent=2) + "\n")


def _ratios(text: str) -> list[float]:
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= ratio < 1 for ratio in found):
        raise InputError(f"--ratios: got {text!r}, wanted shares from 0 to below 1 such as 0,0.5,0.9")
    return found


def _task(a: argparse.Namespace, rest: Words, console: Console) -> Task | None:
    """The task on the pictures that were given, or None where there are none."""
    from maskdm.runtime import distributed as machine
    from maskdm.training.prepare import prepare, task_of
    from maskdm.training.start import describe

    config = resolved(a, settings_words(a, rest))
    if not config.data.path:
        return None
    prepared, runtime = prepare(config, console), machine.start(config.train)
    describe(prepared, runtime, console)
    return task_of(prepared, runtime, prepared.dataset.rows("member"))


def _synthetic(a: argparse.Namespace, rest: Words) -> Task:
    """The task on noise in memory."""
    from maskdm.training.prepare import synthetic

    return synthetic(resolved(a, settings_words(a, rest)))
