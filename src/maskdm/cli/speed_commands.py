"""maskdm plan, bench."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskdm.cli.overrides import Words, add_budget, add_settings, given
from maskdm.cli.parsing import Commands, command, floats, integer


def add_plan(commands: Commands) -> None:
    """Options of maskdm plan."""
    p = command(
        commands,
        "plan",
        "measure a few steps of every stage, and say what the run would take: memory, hours, energy",
        "  maskdm plan --data photos/\n  maskdm plan --data photos/ --recipe celeba64-s stages.0.batch_size=64",
    )
    add_settings(p)
    add_budget(p)
    p.add_argument(
        "--seconds", type=float, metavar="S", help="time for each stage (default: 10, or 3 where settings are chosen)"
    )
    p.add_argument("--watts", type=float, metavar="W", help="of the device under load (default: estimated)")
    p.set_defaults(call=call_plan, settings_follow=True)


def add_bench(commands: Commands) -> None:
    """Options of maskdm bench."""
    p = command(
        commands,
        "bench",
        "time training steps at several mask ratios, against what the device could do",
        "  maskdm bench --recipe celeba64-s stages.0.batch_size=32\n"
        "  maskdm bench --recipe emoji64 --data emoji/ --ratios 0,0.5,0.9 --output bench.json\n\n"
        "The first stage of the recipe, with its kind of mask. Without --data the images are noise in memory.\n"
        "of peak: FLOP/s over those of a large matrix product. cost over FLOP share: a step's time over the first\n"
        "row's, divided by its FLOPs over the first row's; 1 is masking that saves all that it could.",
    )
    add_settings(p)
    p.add_argument("--ratios", default="0,0.5,0.75,0.9", metavar="R,R", help="to mask (default: 0,0.5,0.75,0.9)")
    p.add_argument("--rounds", type=integer, default=5, metavar="N", help="measurements of each (default: 5)")
    p.add_argument("--output", "-o", type=Path, metavar="FILE.json", help="also write the table there")
    p.set_defaults(call=call_bench, settings_follow=True)


def call_plan(a: argparse.Namespace, rest: Words) -> None:
    """Measures, and prints the forecasts."""
    settings = given(a, rest)
    from maskdm.commands.plan import plan
    from maskdm.profiling.forecast import format_forecasts

    print(
        "\n".join(
            format_forecasts(
                plan(**settings, minutes=a.minutes, hours=a.hours, seconds=a.seconds, watts=a.watts, quiet=a.quiet)
            )
        )
    )


def call_bench(a: argparse.Namespace, rest: Words) -> None:
    """Measures, and prints the table."""
    settings = given(a, rest)
    ratios = floats(a.ratios, "ratios", "ratios from 0 to below 1 such as 0,0.5,0.9")
    from maskdm.commands.bench import bench
    from maskdm.profiling.bench import format_bench

    result = bench(**settings, ratios=ratios, rounds=a.rounds, output=a.output, quiet=a.quiet)
    print("\n".join(format_bench(result.rows, result.peak)))
