"""Errors that a user sees as one line instead of a traceback.

An error carries values (which argument, what it got, what was wanted, what to do) and becomes a sentence here and
nowhere else. Code that computes raises `ArgumentError`, a ValueError that knows its own arguments and no settings;
whoever knows where a value came from gives it the user's name with `within`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class _Missing:
    """Stands for a value that there is none of."""

    def __repr__(self) -> str:
        return "nothing"


MISSING = _Missing()
"""The `got` of an error that is about no value."""


class ArgumentError(ValueError):
    """An argument that cannot be used.

    Args:
        name: of the argument, setting, option or file: `ratio`, `stages.0.mask.ratio`, `--num`, `photos.zip`.
        problem: what is wrong with it, where `got` and `wanted` do not say it all.
        got: the value.
        wanted: what values would do.
        remedy: what to do about it.
    """

    def __init__(
        self, name: str = "", problem: str = "", *, got: object = MISSING, wanted: str = "", remedy: str = ""
    ) -> None:
        super().__init__(name, problem, got, wanted, remedy)
        self.name, self.problem, self.got, self.wanted, self.remedy = name, problem, got, wanted, remedy

    def __str__(self) -> str:
        return sentence(self)


class InputError(ArgumentError):
    """The same of something that a user gave: a setting, an option, a file.

    The command prints it alone and leaves with exit code 2; everything else that is raised is a fault of ours and keeps
    its traceback.
    """


class StorageError(OSError):
    """A file cannot be written, the disk being full, say. One line, exit code 1; what was saved before is intact."""


class TrainingError(RuntimeError):
    """Training cannot continue: a loss or gradient is not finite. One line, exit code 1; what was saved is intact."""


class Interrupted(Exception):
    """Ctrl-C or a termination signal, after the state was saved.

    Attributes:
        code: what a shell expects of a process ended so: 128 + the signal.
    """

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code


def sentence(error: ArgumentError) -> str:
    """One line: what, what was got, what was wanted, and the remedy."""
    got = [] if error.got is MISSING else [f"got {shown(error.got)}"]
    wanted = [f"wanted {error.wanted}"] if error.wanted else []
    said = ", ".join(part for part in (error.problem, *got, *wanted) if part)
    text = ": ".join(part for part in (error.name, said) if part)
    if error.remedy:
        text = f"{text}; {error.remedy}" if text else error.remedy
    return text.replace("\r", "\\r").replace("\n", "\\n")  # a file's name may hold anything


def shown(value: object) -> str:
    """A value as a message prints it: 0.5, 'text', [1, 2]."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value) if isinstance(value, str) else str(value)


@contextmanager
def within(prefix: str, **names: str) -> Iterator[None]:
    """Gives argument errors that are raised inside the user's name: `prefix` and the argument's own.

    Args:
        prefix: such as `stages.0.mask.`, `model.` or `--`.
        names: the rest of the name where it is another than the argument's, such as `levels="haar_levels"`.

    Raises:
        InputError: for every ArgumentError; an InputError has its name already and passes.
    """
    try:
        yield
    except InputError:
        raise
    except ArgumentError as error:
        name = prefix + names.get(error.name, error.name)
        raise InputError(name, error.problem, got=error.got, wanted=error.wanted, remedy=error.remedy) from None
