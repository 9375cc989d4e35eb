"""Memory of the host, asked without torch: how much can still be had, and what would not fit."""

from __future__ import annotations

import os
import re
from pathlib import Path

from maskdm.errors import MISSING, ArgumentError


def host_available_bytes() -> int:
    """Bytes that can still be had: what the system and this container allow."""
    found = [kilobytes_of("/proc/meminfo", "MemAvailable")]
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        found.append(limit - used + _cached_files())
    sizes = [size for size in found if size is not None]
    if sizes:
        return max(min(sizes), 0)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no /proc: half of what is built in


def require_memory(need: int, free: int, name: str, *, got: object = MISSING, what: str, remedy: str) -> None:
    """Refuses what could not be held in memory, before any of it is taken.

    Args:
        need: bytes.
        free: bytes that can be had.
        name: of the argument that asks for so much.
        got: its value.
        what: needs them, such as "the images of a batch".
        remedy: what to do.

    Raises:
        ArgumentError: there are fewer.
    """
    if need > free:
        problem = f"{what} would take {need / 1e9:,.1f} GB of memory, where {free / 1e9:,.1f} GB are free"
        raise ArgumentError(name, problem, got=got, remedy=remedy)


def kilobytes_of(file: str, key: str) -> int | None:
    """`key:   N kB` in a file of the system, in bytes; None where there is none."""
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _cached_files() -> int:
    """Bytes of files that this container holds in memory only as long as nobody else wants it."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    return sum(map(int, re.findall(r"^(?:in)?active_file (\d+)$", lines, re.MULTILINE)))


def _number(file: str) -> int | None:
    try:
        return int(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or "max"
        return None
