"""Options that are called otherwise now: refused in one line that names the new spelling."""

from __future__ import annotations

from collections.abc import Sequence

from maskdm.errors import InputError

NEW_NAMES = {
    "sample": {"--churn": "--s-churn", "--grid": "--spacing"},
    "eval": {"--model-weights": "--weights"},
    "audit": {"--encoder": "--features"},
}
"""Command -> old option -> new one."""


def check_renamed(command: str, words: Sequence[str]) -> None:
    """Refuses an option under its old name.

    Raises:
        InputError: it names the new one.
    """
    known = NEW_NAMES.get(command, {})
    for word in words:
        old = word.partition("=")[0]
        if old in known:
            raise InputError(old, f"is called {known[old]} now", remedy=f"see maskdm {command} --help")
