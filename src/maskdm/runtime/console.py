"""What a person sees while a command runs: sentences, also kept in a run's log.txt, and progress.

On a terminal progress is a bar that is redrawn. Where standard error is a file or a pipe it is a line now and then, and
nothing that only a terminal understands: no carriage return, no escape code.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from maskdm.files import append_line

FIRST_LINE, LONGEST_PAUSE = 30.0, 600.0
"""Seconds until the first line of progress in a file, and at most between two of them."""


class Bar(Protocol):
    """Progress of one piece of work.

    Attributes:
        total: units in all; None where nobody knows.
    """

    total: float | None

    def update(self, n: int) -> object:
        """`n` units more are done."""
        ...

    def set_postfix(self, *, refresh: bool = True, **values: str) -> object:
        """Values that are shown beside it from now on."""
        ...


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
                tqdm.write(text, file=sys.stderr)
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
        """Progress with rate and remaining time: a bar on a terminal, elsewhere a line now and then."""
        if self.quiet or not self.main or not sys.stderr.isatty():
            yield ProgressLines(name, total, unit, initial, self._show if self.main and not self.quiet else _nothing)
            return
        with tqdm(
            desc=name,
            total=total,
            unit=f" {unit}s",
            unit_scale=True,
            initial=initial,
            mininterval=0.2,
            maxinterval=10.0,
            smoothing=0.1,
            dynamic_ncols=True,
            leave=False,
            file=sys.stderr,
        ) as bar:
            yield bar

    @contextmanager
    def sampling_bar(self, name: str, images: int, steps: int, more: int = 0) -> Iterator[Callable[[int], None]]:
        """Progress of sampling in images, the unit of all our bars.

        Args:
            name: of the work.
            images: how many there will be.
            steps: of each.
            more: (image x step) units that are none of an image's own.

        Yields:
            What is to be called with the number of (image x step) units done, as samplers do.
        """
        units = images * steps + more
        with self.bar(name, images) as bar:
            done = shown = 0

            def advance(count: int) -> None:
                nonlocal done, shown
                done += count
                whole = done * images // max(units, 1)
                bar.update(whole - shown)
                shown = whole

            yield advance

    def _show(self, text: str) -> None:
        with suppress(OSError):  # the terminal may be closed
            print(text, file=sys.stderr, flush=True)


class ProgressLines:
    """Progress as lines of text, the first after half a minute and then ever more rarely; see `Bar`.

    Args:
        name: of the work.
        total: units in all, or None.
        unit: what is counted.
        initial: how many are done already.
        show: takes a line.
    """

    def __init__(self, name: str, total: int | None, unit: str, initial: int, show: Callable[[str], None]) -> None:
        self.name, self.unit, self.show = name, unit, show
        self.total: float | None = total
        self.done = self._initial = initial
        self._begun = self._clock()
        self._next = self._begun + FIRST_LINE
        self._values: dict[str, str] = {}

    @staticmethod
    def _clock() -> float:
        return time.monotonic()

    def update(self, n: int) -> None:
        """`n` units more are done."""
        self.done += n
        now = self._clock()
        if now >= self._next:
            self._next = now + min(max(FIRST_LINE, now - self._begun), LONGEST_PAUSE)
            self.show(self._line(now - self._begun))

    def set_postfix(self, *, refresh: bool = True, **values: str) -> None:
        """Values that are shown behind it from now on."""
        self._values = values

    def _line(self, seconds: float) -> str:
        rate = (self.done - self._initial) / seconds
        of = f" of {self.total:,.0f}" if self.total else ""
        parts = [f"{self.name}: {self.done:,}{of} {self.unit}s", f"{rate:,.3g} a second"]
        if self.total and rate:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        return ", ".join([*parts, *(f"{key} {value}" for key, value in self._values.items())])


def _nothing(text: str) -> None:
    """Shows nothing."""


def duration(seconds: float) -> str:
    """A time to wait in words: 4 s; 30 min; 1 h 30 min; 3.0 days."""
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes:.3g} min"
    if minutes < 48 * 60:
        hours, rest = divmod(round(minutes), 60)
        return f"{hours} h {rest} min"
    return f"{minutes / 60 / 24:.1f} days"
