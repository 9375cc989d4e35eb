"""maskdm compare."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskdm.cli.overrides import Words, check_words
from maskdm.cli.parsing import Commands, command, numbers
from maskdm.errors import InputError


def add_compare(commands: Commands) -> None:
    """Its options."""
    p = command(
        commands,
        "compare",
        "compare ways of training at equal compute",
        "  maskdm compare masks --data photos/\n"
        "  maskdm compare mine.yaml --data photos/ --output-dir compare --seeds 0,1,2 --minutes 30\n"
        "  maskdm compare masks --data photos/ --dry-run\n"
        "  maskdm compare --list\n"
        "  maskdm compare --show masks\n\n"
        "The same command again resumes. Arms are trained one after another; let nothing else run meanwhile.\n"
        "key.sub=value settings hold for every arm.",
    )
    p.add_argument("comparison", metavar="FILE|NAME", nargs="?", help="arms, budget and seeds; or a shipped comparison")
    p.add_argument("--data", metavar="DIR|FILE|hf:NAME", help="the images (data.path)")
    p.add_argument(
        "--output-dir", "--outdir", metavar="DIR", type=Path, default=Path("compare"), help="where (default: compare)"
    )
    p.add_argument("--pretrain-data", metavar="DIR|FILE|hf:NAME", help="the images of models that arms start from")
    p.add_argument("--minutes", type=float, metavar="M", help="another budget than the file's")
    p.add_argument("--seeds", metavar="0,1", help="other seeds than the file's")
    p.add_argument("-n", "--dry-run", action="store_true", help="check all arms and list them, train nothing")
    p.add_argument("--show", metavar="NAME", help="print a shipped comparison, to write one like it, and leave")
    p.add_argument("--list", action="store_true", help="list the shipped comparisons, and leave")
    p.set_defaults(call=call_compare, settings_follow=True)


def call_compare(a: argparse.Namespace, rest: Words) -> None:
    """Compares, and prints the conclusion; or lists what is shipped."""
    from maskdm.experiments.comparison import comparison_text, comparisons

    if a.show is not None:
        print(comparison_text(a.show), end="")
        return
    if a.list:
        for name, header in comparisons().items():
            print(f"{name:18} {header}")
        return
    if a.comparison is None:
        raise InputError("comparison", "missing", remedy=f"give a file, or one of {', '.join(comparisons())}")
    seeds = numbers(a.seeds, "seeds") if a.seeds is not None else None
    check_words(rest, "compare")
    from maskdm.commands.compare import compare
    from maskdm.experiments.conclusion import format_conclusions

    result = compare(
        a.comparison,
        a.data,
        settings=rest,
        pretrain_data=a.pretrain_data,
        minutes=a.minutes,
        seeds=seeds,
        output_dir=a.output_dir,
        dry_run=a.dry_run,
        quiet=a.quiet,
        command=a.typed,
    )
    if result.conclusions:
        print("\n".join(format_conclusions(result.conclusions)))
