"""The `maskdm` command. Heavy modules are imported by the command that needs them, so that --help is quick."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Sequence

from maskdm import __version__
from maskdm.cli import audit, compare, eval, models, sample, speed, train
from maskdm.cli.parsing import Parser
from maskdm.errors import InputError, Interrupted, StorageError, TrainingError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 1 (training failed), 2 (bad input), 130 (Ctrl-C)."""
    try:
        arguments, rest = _parser().parse_known_args(argv)
        arguments.typed = shlex.join(["maskdm", *(sys.argv[1:] if argv is None else argv)])
        if rest and not arguments.settings_follow:
            raise InputError(f"unknown argument {rest[0]!r}; see maskdm {arguments.command} --help")
        code = arguments.run(arguments, rest) if arguments.settings_follow else arguments.run(arguments)
        return int(code or 0)
    except InputError as error:
        return _fail(f"error: {error}", 2)
    except TrainingError as error:
        return _fail(f"error: {error}", 1)
    except Interrupted as error:
        return _fail(f"interrupted: {error}; to go on, run the same command again", error.code)
    except KeyboardInterrupt:
        return _fail("interrupted before anything was to be saved", 130)
    except StorageError as error:
        return _fail(f"error: {error}; what was saved before is intact", 1)
    except BrokenPipeError:
        return 1
    except (RuntimeError, MemoryError) as error:
        from maskdm.runtime.memory import is_shortage

        if not is_shortage(error):
            raise
        return _fail(
            "error: out of memory; try stages.N.micro_batch (the batch in parts, the same result), a smaller batch or "
            "a smaller model; what was saved before is intact",
            1,
        )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"error: {error.strerror}{where}; what was saved before is intact", 1)


def _fail(line: str, code: int) -> int:
    print(f"maskdm: {line}", file=sys.stderr)
    return code


def _parser() -> Parser:
    parser = Parser(
        prog="maskdm",
        allow_abbrev=False,
        description="Trains pixel-space diffusion models on any folder of pictures: masked pre-training first, then "
        "a short fine-tuning on whole images.",
        epilog="maskdm COMMAND --help shows the options and examples of a command.",
    )
    parser.add_argument("--version", action="version", version=f"maskdm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (
        train.add,
        sample.add,
        eval.add,
        compare.add,
        audit.add,
        speed.add_plan,
        speed.add_bench,
        models.add_info,
        models.add_report,
        models.add_import,
        models.add_demo,
    ):
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
