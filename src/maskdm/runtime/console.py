"""What a person sees while a run is made: sentences, also kept in log.txt, and one progress bar at a time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from tqdm import tqdm

from maskdm.files import append_line

Bar: TypeAlias = tqdm


class Console:
    """Talks on standard error and, once a run has a folder, into its log.

    Attributes:
        quiet: nothing on standard error; the log is kept all the same.
        main: whether this is the rank that talks; others say nothing and keep no log.
        log: the file, None before there is one.
    """

    def __init__(self, *, quiet: bool = False, main: bool = True) -> None:
        self.quiet, self.main = quiet, main
        self.log: Path | None = None
        self._early: list[str] = []

    def say(self, text: str) -> None:
        """One line."""
        if not self.main:
            return
        if not self.quiet:
            with suppress(OSError):  # the terminal may be closed
                Bar.write(text, file=sys.stderr)
        self._keep(text)

    def warn(self, text: str) -> None:
        """One line that deserves attention."""
        self.say(f"warning: {text}")

    def attach(self, log: Path) -> None:
        """From now on, and for what was said before, a log is kept."""
        self.log = log
        early, self._early = self._early, []
        for line in early:
            append_line(log, line)

    def _keep(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
        if self.log is None:
            self._early.append(line)
        else:
            append_line(self.log, line)

    @contextmanager
    def bar(self, name: str, total: int | None, unit: str = "image", initial: int = 0) -> Iterator[Bar]:
        """A progress bar with rate and remaining time; redrawn on a terminal, a line now and then in a file."""
        seconds = 0.2 if sys.stderr.isatty() else 20.0
        with Bar(
            desc=name,
            total=total,
            unit=f" {unit}s",
            unit_scale=True,
            initial=initial,
            mininterval=seconds,
            maxinterval=max(seconds, 10.0),
            smoothing=0.1,
            dynamic_ncols=True,
            leave=False,
            disable=self.quiet or not self.main,
            file=sys.stderr,
        ) as bar:
            yield bar
