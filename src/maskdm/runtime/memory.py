"""Memory of the device: how much is free, and how much a piece of work needs at its worst."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

from maskdm.runtime.host_memory import host_available_bytes, kilobytes_of

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt."""


def keep_freed_memory() -> None:
    """What is freed stays with this process, for the next step to use: a tenth to a fifth of a step on a CPU.

    By default glibc gives every large block back to the system, which has to clear each page of the next one.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another libc
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_THRESHOLD, 2**30)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """What is held and not used goes back to the system."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be had: on a GPU, what is free there; else, what the system and this container allow."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return host_available_bytes()


def bytes_in_use(device: torch.device) -> int:
    """Bytes that this process holds: on a GPU, of tensors; else, all of it."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return kilobytes_of("/proc/self/status", "VmRSS") or 0


def peak_bytes(device: torch.device, work: Callable[[], T]) -> tuple[T, int | None]:
    """What `work` gives, and the bytes that were in use at its worst moment; None where the system does not tell.

    On a GPU, of tensors; else, of the whole process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        done = work()
        torch.cuda.synchronize(device)
        return done, torch.cuda.max_memory_allocated(device)
    return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the highest so far
    except OSError:
        return work(), None
    done = work()
    return done, kilobytes_of("/proc/self/status", "VmHWM")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch raises when memory runs out; it has a class of its own on a GPU only."""
    words = r"out of memory|can't allocate|not enough mem"
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and re.search(words, str(error)) is not None
    )
