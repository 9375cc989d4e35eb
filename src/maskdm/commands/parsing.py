"""What all commands share: parsers whose complaints are one line, and how their pages look."""

from __future__ import annotations

import argparse
from typing import NoReturn, TypeAlias

from maskdm.errors import InputError

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def command(commands: Commands, name: str, summary: str, examples: str) -> Parser:
    """A command with its summary and examples."""
    return commands.add_parser(
        name,
        help=summary,
        allow_abbrev=False,
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
