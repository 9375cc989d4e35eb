"""What all commands share: parsers whose complaints are one line, how their help looks, lists of numbers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn, TypeAlias

from maskdm.errors import ArgumentError, InputError
from maskdm.files import expanded

MOST_NUMBERS = 1_000_000

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Raises what `main` prints."""
        raise InputError("", message, remedy=f"see {self.prog} --help")

    def option(self, name: str) -> str:
        """What a user types for the argument `name`: its longest-standing option, or its metavar; else `name`."""
        for action in self._actions:
            if action.dest == name:
                long = [option for option in action.option_strings if option.startswith("--")]
                return next(iter(long or action.option_strings), str(action.metavar or name))
        return name


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
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress and no notes: results and errors only")
    return parser


def add_model(p: argparse.ArgumentParser, weights: str) -> None:
    """Which weights of a run, and the class of a backbone that is not ours."""
    p.add_argument("--weights", metavar="ema|raw|STAGE", default="ema", help=weights)
    p.add_argument("--backbone", metavar="MODULE:CLASS", help="the class of a backbone of your own")


def add_precision(p: argparse.ArgumentParser) -> None:
    """In what precision a network samples."""
    p.add_argument(
        "--mixed-precision",
        choices=["auto", "bf16", "fp16", "no"],
        default="no",
        help="precision of the network: bf16 is faster, auto uses it where the device has it (default: no, float32)",
    )


def add_machine(p: argparse.ArgumentParser) -> None:
    """Where a model runs, and on how many images at once."""
    p.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at once (default: 64)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")


def with_home(words: Sequence[str]) -> list[str]:
    """Words as typed, with the home directory for `~` after `=`, where shells leave it: --data=~/x."""
    matches = ((word, re.fullmatch(r"(--?[\w-]+=|[A-Za-z_][\w.-]*=)(~.*)", word, re.DOTALL)) for word in words)
    return [word if match is None else match[1] + expanded(match[2]) for word, match in matches]


def numbers(text: str, name: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7].

    Raises:
        ArgumentError: it is not such a list, or one of more than a million.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise InputError(name, got=text, wanted="numbers and rising ranges such as 0-63 or 1,5,9")
        if int(match[2] or match[1]) - int(match[1]) >= MOST_NUMBERS:
            raise InputError(name, got=text, wanted=f"at most {MOST_NUMBERS:,} at a time")
        found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


def integer(text: str) -> int:
    """A whole number, however it is written: "1000", "1e3" and "1000.0" are one.

    Raises:
        ValueError: it is no whole number, in the words of argparse.
    """
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(number)


def floats(text: str, name: str, wanted: str) -> list[float]:
    """ "0.1,0.8" -> [0.1, 0.8].

    Raises:
        ArgumentError: a part that is no number.
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise InputError(name, got=text, wanted=wanted) from None


def as_typed(error: ArgumentError, parser: Parser) -> ArgumentError:
    """The same error under the name that the user typed: `num` -> `--num`; names of settings and files stay."""
    name = parser.option(error.name)
    return InputError(name, error.problem, got=error.got, wanted=error.wanted, remedy=error.remedy)
