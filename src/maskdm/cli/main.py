"""The `maskdm` command. Heavy modules are imported by the command that needs them, so that --help is quick."""

from __future__ import annotations

import argparse
import errno
import io
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress

from maskdm import __version__
from maskdm.cli.audit_command import add_audit, add_audit_compare
from maskdm.cli.compare_command import add_compare
from maskdm.cli.eval_command import add_eval
from maskdm.cli.model_commands import add_demo, add_import, add_info, add_report
from maskdm.cli.parsing import Parser, as_typed, with_home
from maskdm.cli.renamed import check_renamed
from maskdm.cli.sample_command import add_sample
from maskdm.cli.speed_commands import add_bench, add_plan
from maskdm.cli.train_command import add_train
from maskdm.errors import InputError, Interrupted, StorageError, TrainingError
from maskdm.runtime import signals

COMMANDS = (
    add_train,
    add_sample,
    add_eval,
    add_compare,
    add_audit,
    add_audit_compare,
    add_plan,
    add_bench,
    add_info,
    add_report,
    add_import,
    add_demo,
)
"""In the order in which --help lists them."""


DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT, errno.ENOTDIR),
    *(errno.ESTALE, errno.ENOTEMPTY, errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.ENAMETOOLONG),
)
"""Errors of a disk, a folder that has vanished, or a limit of the system: nothing that a traceback would explain."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    0; 1 training or writing failed; 2 bad input; 129 the terminal was closed, 130 Ctrl-C, 143 SIGTERM.

    Args:
        argv: the words after `maskdm`; None for those of this process, which then has nothing else to do.
    """
    if argv is not None:
        return _command(list(argv))
    signals.own_process()
    try:
        return _command(sys.argv[1:])
    finally:
        signals.ending()


def _command(words: list[str]) -> int:
    """One command, and one line for whatever ends it."""
    _print_anything()
    words = with_home(words)
    parser = make_parser()
    if not words:
        parser.print_help()
        return 0
    words = _one_command(words)
    command = _commands(parser).get(words[0], parser)
    try:
        return _run(parser, words)
    except InputError as error:
        return _fail(f"error: {as_typed(error, command)}", 2)
    except TrainingError as error:
        return _fail(f"error: {error}", 1)
    except Interrupted as error:
        return _fail(f"interrupted: {error}; to resume, run the same command again", error.code)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing had been saved", 130)
    except StorageError as error:
        return _fail(f"error: {error}; what was saved before is intact", 1)
    except BrokenPipeError:
        return 1
    except (RuntimeError, MemoryError) as error:
        from maskdm.runtime.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail(f"error: out of memory; {_less_memory(words[0])}; what was saved before is intact", 1)
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"error: {error.strerror}{where}; what was saved before is intact", 1)


def _run(parser: Parser, words: list[str]) -> int:
    check_renamed(words[0], words[1:])
    arguments, rest = parser.parse_known_args(words)
    arguments.typed = shlex.join(["maskdm", *_typed(words)])
    if rest and not arguments.settings_follow:
        raise InputError("", f"unknown argument {rest[0]!r}", remedy=f"see maskdm {arguments.command} --help")
    code = arguments.call(arguments, rest) if arguments.settings_follow else arguments.call(arguments)
    return int(code or 0)


def _less_memory(command: str) -> str:
    """What to try where memory has run out."""
    if command in ("train", "compare", "bench", "plan", "demo"):
        return "try stages.N.micro_batch (gradient accumulation, the same result), a smaller batch or a smaller model"
    return "try fewer images, or fewer at once (--num and --batch-size, where the command has them)"


def _one_command(words: list[str]) -> list[str]:
    """`audit compare` is a command of its own; a run of that name is audited as ./compare."""
    return ["audit compare", *words[2:]] if words[:2] == ["audit", "compare"] else words


def _typed(words: list[str]) -> list[str]:
    return [*words[0].split(" "), *words[1:]] if words[0] == "audit compare" else words


def _print_anything() -> None:
    """Paths and names may hold what the terminal's encoding has not: printed as \\xe9 instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(line: str, code: int) -> int:
    with suppress(OSError):  # the terminal may be closed
        print(f"maskdm: {line}", file=sys.stderr)
    return code


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="maskdm",
        allow_abbrev=False,
        description="Trains pixel-space diffusion models on any folder of images: masked pre-training first, then a "
        "short fine-tuning on whole images.",
        epilog="maskdm COMMAND --help shows the options and examples of a command.",
    )
    parser.add_argument("--version", action="version", version=f"maskdm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return parser


def _commands(parser: Parser) -> dict[str, Parser]:
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


if __name__ == "__main__":
    sys.exit(main())
