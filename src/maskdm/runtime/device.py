"""The device of one process: which it is, in what precision it computes, and what is compiled for it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, cast

import torch
from torch import nn

from maskdm.errors import ArgumentError, InputError

Precision = Literal["bf16", "fp16", "no"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FIXED_WORKSPACES = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""The variable by which cuBLAS, when it is first used, learns to add in a fixed order."""
MOST_GRAPHS = 64
"""Compiled graphs of a network: one for every shape of the masks."""


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """ "auto" or a device of torch -> the device; auto is a GPU where there is one. A GPU becomes the current one.

    It does so before anything is put on any GPU, so that no process takes memory of a GPU that it does not use.

    Args:
        name: auto, cpu, cuda (the GPU numbered `local_rank`), cuda:1, mps, ...
        local_rank: number of this process on its machine.

    Raises:
        ArgumentError: this machine has no such `device`.
    """
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    remedy = "try auto"
    try:
        device = torch.device("cuda" if name == "auto" else name)
        if device.type == "cuda" and torch.cuda.is_available():
            device = torch.device("cuda", local_rank if device.index is None else device.index)
            there = torch.cuda.device_count()
            remedy = f"this machine has {there} GPUs, 0 to {there - 1}; start at most as many processes"
            torch.cuda.set_device(device)
        _try(device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ArgumentError("device", got=name, wanted="a device of this machine", remedy=remedy) from None
    return device


def _try(device: torch.device) -> None:
    """Raises what torch raises where there is no such device."""
    torch.ones(1, device=device).item()


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
    """The mode of torch.compile, None for no compiling.

    auto compiles where that gains something and can be done: on a GPU, with the compilers that torch needs.

    Raises:
        ArgumentError: `compile` was asked for where there is no compiler.
    """
    if wanted == "auto":
        return "default" if device.type == "cuda" and missing_compiler(device) is None else None
    if wanted == "no":
        return None
    check_compiler(wanted, device)
    return wanted


def why_not_compiled(wanted: str, device: torch.device) -> str | None:
    """What kept auto from compiling on a GPU, in words; None where nothing did."""
    missing = missing_compiler(device) if wanted == "auto" and device.type == "cuda" else None
    return None if missing is None else f"torch.compile needs {missing}, and finds none"


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine, in words; None where it lacks nothing."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "triton"
        names = [os.environ.get("CC", ""), "gcc", "clang", "cc"]
        return None if any(name and shutil.which(name) for name in names) else "a C compiler"
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler  # seconds to import, and private
    except ImportError:
        return None
    try:
        get_cpp_compiler()
    except RuntimeError:
        return "a C++ compiler"
    return None


def check_compiler(mode: str | bool, device: torch.device) -> None:
    """Refuses to compile where torch has nothing to compile with.

    Raises:
        ArgumentError: of `compile`, whose value is `mode`.
    """
    missing = missing_compiler(device)
    if missing is not None:
        problem = f"torch.compile needs {missing}, and finds none"
        raise ArgumentError("compile", problem, got=mode, remedy="install one (such as g++), or leave compile out")


def cannot_compile(error: BaseException) -> str | None:
    """Why torch could not compile a network, in one line; None for errors of another kind."""
    if "torch._dynamo" not in sys.modules or not isinstance(error, torch._dynamo.exc.TorchDynamoException):
        return None
    cause = getattr(error, "inner_exception", None) or error
    first = next(iter(str(cause).strip().splitlines()), "")
    return f"{type(cause).__name__}: {first}"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which a network computes in `precision`; weights and what is outside stay as they are."""
    return nullcontext() if precision == "no" else torch.autocast(device.type, DTYPES[precision])


def compile_network(network: nn.Module, mode: str, graphs: int = MOST_GRAPHS) -> nn.Module:
    """`network` compiled: a graph for every shape of the masks; shapes are static, and by a schedule there are several.

    Args:
        network: any module.
        mode: of torch.compile: default, reduce-overhead, max-autotune.
        graphs: how many shapes there will be: torch gives up compiling beyond a limit, which is raised to this.
    """
    settings = torch._dynamo.config
    for new, old in (
        ("recompile_limit", "cache_size_limit"),
        ("accumulated_recompile_limit", "accumulated_cache_size_limit"),
    ):
        name = new if hasattr(settings, new) else old  # of older torch
        setattr(settings, name, max(getattr(settings, name), graphs))
    return cast(nn.Module, torch.compile(network, dynamic=False, mode=mode))


def has_static_graphs(mode: str | None) -> bool:
    """Whether a network compiled so computes in CUDA graphs, whose outputs lie where those of the next call will."""
    return mode in ("reduce-overhead", "max-autotune")


@contextmanager
def exact_float32() -> Iterator[None]:
    """What is float32 is computed in float32: not in TF32, which torch allows convolutions on a GPU by default.

    For everything that is measured or sampled, so that it is the same on every device but for rounding.
    """
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, torch takes kernels whose sums have a fixed order, and refuses operations that have none.

    Args:
        wanted: False changes nothing.

    Raises:
        InputError: of `train.deterministic`, where an operation has no such kernel.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault(*FIXED_WORKSPACES)
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        problem = f"the network has an operation without a deterministic kernel ({str(error).splitlines()[0]})"
        raise InputError("train.deterministic", problem, got=True, remedy="set it to false") from None
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
