"""Signals that end a process: what was begun is finished first, and nobody sees a traceback.

Ctrl-C (SIGINT)                  training ends after its step, and saves; a second one ends the process at once
SIGTERM, of a scheduler          the same; more of them change nothing, as launchers and shells send it twice
SIGHUP, of a closed terminal     likewise, unless it was ignored (nohup), which it stays
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals after which training saves and ends; a shell sees 128 and the number of the signal."""
_LAUNCHER = "TORCHELASTIC_RUN_ID"
"""Set by torchrun, which forwards the Ctrl-C that its workers have had from the terminal already."""

_own = False
_interrupted = False


def own_process() -> None:
    """Says that this process does nothing but one command, so that a second Ctrl-C may end it at any moment.

    The first one raises KeyboardInterrupt as ever, or is collected by `interruptible`. Where the library is called, the
    process is its caller's, and a second one raises KeyboardInterrupt too.
    """
    global _own
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # else it is ignored, or somebody's
        _own = True
        signal.signal(signal.SIGINT, _interrupt)


def ending() -> None:
    """Says that the command is over: a Ctrl-C from here on ends the process at once."""
    global _interrupted
    _interrupted = True


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    if _interrupted:
        _end_at_once(number)
    _interrupted = True
    raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collects signals that end training, in their order, so that it can finish its step and save."""
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        global _interrupted
        again = number == signal.SIGINT and number in signals and _LAUNCHER not in os.environ
        if again and _own:
            _end_at_once(number)
        if again:
            raise KeyboardInterrupt
        signals.append(number)
        _interrupted = _interrupted or number == signal.SIGINT

    noted = [number for number in ENDING if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in noted}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_once(number: int) -> None:
    """Leaves without unwinding: what is half written has no name yet, and the next start removes it."""
    with suppress(OSError):
        os.write(2, b"\nmaskdm: interrupted, and ended at once; what was saved before is intact\n")
    os._exit(128 + number)
