"""What all commands share: parsers whose complaints are one line, and how their pages look."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn, TypeAlias

from maskdm.errors import InputError

MOST_NUMBERS = 1_000_000

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def command(commands: Commands, name: str, summary: str, examples: str) -> Parser:
    """A command with its summary and examples."""
    parser = commands.add_parser(
        name,
        help=summary,
        allow_abbrev=False,
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(settings_follow=False)  # words of the form key=value
    return parser


def add_machine(p: argparse.ArgumentParser) -> None:
    """Where a model is asked, and how many pictures at once."""
    p.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures at once (default: 64)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")


def numbers(text: str, option: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise InputError(f"{option}: got {text!r}, wanted numbers and rising ranges such as 0-63 or 1,5,9")
        if int(match[2] or match[1]) - int(match[1]) >= MOST_NUMBERS:
            raise InputError(f"{option}: got {text!r}, wanted at most {MOST_NUMBERS:,} at a time")
        found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


def own_backbone(name: str | None) -> type | None:
    """The class that --backbone names: whoever names it wants it imported."""
    from maskdm.config.schema import ModelConfig
    from maskdm.models import build

    if name is None:
        return None
    if ":" not in name:
        raise InputError(f"--backbone: got {name!r}, wanted module:Class; for one of ours leave it out")
    try:
        found = build.constructor(ModelConfig.model_construct(backbone=name))
    except InputError as error:
        raise InputError(str(error).replace("model.backbone", "--backbone", 1)) from None
    return found if isinstance(found, type) else None
