"""`maskdm report`: the page of a run."""

from __future__ import annotations

from pathlib import Path

from maskdm.reports.run_page import write_run_page


def report(run: str | Path) -> Path:
    """Writes the page of a run again, also of one that is still training.

    Args:
        run: its folder.

    Returns:
        The page, `report.html` in the folder.

    Raises:
        InputError: it is no run.

    Example:
        >>> report("runs/00000-photos")
        PosixPath('runs/00000-photos/report.html')
    """
    return write_run_page(Path(run))
