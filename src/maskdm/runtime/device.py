"""The device of one process: which it is, in what precision it computes, and what is compiled for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, cast

import torch
from torch import nn

from maskdm.errors import ArgumentError

Precision = Literal["bf16", "fp16", "no"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MOST_GRAPHS = 64
"""Compiled graphs of a network: one for every shape of the masks."""


def pick_device(name: str) -> torch.device:
    """ "auto" or a device of torch -> the device; auto is a GPU where there is one.

    Raises:
        ArgumentError: this machine has no such `device`.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ArgumentError("device", got=name, wanted="a device of this machine", remedy="try auto") from None
    return device


def pick_precision(wanted: str, device: torch.device) -> Precision:
    """The precision of a network's arithmetic; auto is the fastest that `device` multiplies natively.

    Args:
        wanted: auto, bf16, fp16 or no (float32).
        device: where it computes.
    """
    if wanted != "auto":
        return cast(Precision, wanted)
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "no"


def pick_compile(wanted: str, device: torch.device) -> str | None:
    """The mode of torch.compile, None for no compiling; auto compiles on a GPU only: a CPU gains nothing by it."""
    if wanted == "auto":
        return "default" if device.type == "cuda" else None
    return None if wanted == "no" else wanted


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which a network computes in `precision`; weights and what is outside stay as they are."""
    return nullcontext() if precision == "no" else torch.autocast(device.type, DTYPES[precision])


def compile_network(network: nn.Module, mode: str) -> nn.Module:
    """`network` compiled: a graph for every shape of the masks; shapes are static, and by a schedule there are several.

    Args:
        network: any module.
        mode: of torch.compile: default, reduce-overhead, max-autotune.
    """
    settings = torch._dynamo.config
    name = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"  # of older torch
    setattr(settings, name, max(getattr(settings, name), MOST_GRAPHS))
    return cast(nn.Module, torch.compile(network, dynamic=False, mode=mode))


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
