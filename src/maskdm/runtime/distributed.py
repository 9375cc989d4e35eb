"""The machine: device, arithmetic, ranks. No other file knows that there may be several processes.

Launchers (torchrun, `accelerate launch`, SLURM wrappers of either) all set the same variables; with them present the
process group is joined, without them there is one rank and nothing to synchronise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskdm.config.schema import TrainConfig
from maskdm.errors import InputError
from maskdm.runtime import memory

Precision = Literal["bf16", "fp16", "no"]
Parallel = Literal["ddp", "fsdp"]
MOST_GRAPHS = 64
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """Where and how this process computes.

    Attributes:
        device: of this rank.
        precision: of the network's arithmetic; weights, moving average and sampling stay float32.
        rank, world_size: of this process, and how many there are.
        local_world_size: how many of them are on this machine.
        compile: the mode in which torch compiles the network, or None.
        parallel: whether every rank holds the whole model (ddp) or a part of each tensor (fsdp).
    """

    device: torch.device
    precision: Precision
    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    compile: str | None = None
    parallel: Parallel = "ddp"

    @property
    def main(self) -> bool:
        """Whether this rank writes files and talks."""
        return self.rank == 0

    @property
    def divides(self) -> bool:
        """Whether tensors are divided among ranks."""
        return self.world_size > 1 and self.parallel == "fsdp"

    def divide(self, network: nn.Module) -> nn.Module:
        """Leaves this rank its part of every tensor, where that is asked for; blocks are gathered one by one."""
        if self.divides:
            from torch.distributed.device_mesh import init_device_mesh  # a second to import
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (self.world_size,))
            blocks = [block for blocks in network.modules() if isinstance(blocks, nn.ModuleList) for block in blocks]
            for block in blocks:
                fully_shard(block, mesh=mesh)
            # The outermost too: between steps every tensor is in parts, whoever asks.
            fully_shard(network, mesh=mesh, reshard_after_forward=True)
        return network

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor, its parts gathered: all ranks must ask at the same time."""
        if not self.divides:
            return tensor
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def part(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """This rank's part of a whole tensor, divided and placed as `like`."""
        tensor = tensor.to(like.device)
        if not self.divides:
            return tensor
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor) or tensor.shape != like.shape:
            return tensor
        return distribute_tensor(tensor, like.device_mesh, like.placements)

    def state_of(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """The state dict, whole: all ranks must ask at the same time."""
        return {name: self.whole(tensor) for name, tensor in network.state_dict().items()}

    def fill(self, network: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        """Loads a whole state dict strictly, each rank its part."""
        if self.divides:
            own = network.state_dict()
            state = {name: self.part(tensor, own[name]) if name in own else tensor for name, tensor in state.items()}
        network.load_state_dict(state, strict=True)

    def turns(self, num: int) -> range:
        """This rank's numbers of `num` that are dealt out in turn: as many for every rank, the last perhaps beyond."""
        return range(self.rank, math.ceil(num / self.world_size) * self.world_size, self.world_size)

    def total(self, number: float) -> float:
        """The sum of what the ranks say, on every rank."""
        if self.world_size == 1:
            return number
        shared = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return float(shared.item())

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Tensors of one shape from all ranks, on every rank."""
        if self.world_size == 1:
            return [tensor]
        there = tensor.to(self.device)
        found = [torch.empty_like(there) for _ in range(self.world_size)]
        dist.all_gather(found, there)
        return [each.cpu() for each in found]

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the network is called in training."""
        if self.precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling; it does nothing but for fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as it is called in training: perhaps compiled, gradients averaged over ranks."""
        if self.compile is not None:
            # A graph for every shape of the masks; shapes are static, and by a schedule there may be several.
            settings = torch._dynamo.config
            name = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"  # of older torch
            setattr(settings, name, max(getattr(settings, name), MOST_GRAPHS))
            model = cast(nn.Module, torch.compile(model, dynamic=False, mode=self.compile))
        if self.world_size == 1 or self.parallel == "fsdp":
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def accumulate(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Around the backward pass of one micro-batch: only the last one synchronises."""
        if self.divides:
            wrapped.set_requires_gradient_sync(last)  # type: ignore[operator] # of the sharded module
        if last or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[object], wrapped.no_sync())

    def slice(self, whole: slice) -> slice:
        """This rank's part of a stretch of a row that is dealt out in turn.

        Of every stretch the ranks' parts differ by at most one, and of a whole row that the world size divides, not at
        all: no rank is without work.
        """
        first = whole.start + (self.rank - whole.start) % self.world_size
        return slice(first, whole.stop, self.world_size)

    def synchronise(self) -> None:
        """Waits until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main rank goes through the block first, the others find its work done."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()

    def agree(self, value: bool) -> bool:
        """Whether any rank says yes; every rank gets the same answer."""
        if self.world_size == 1:
            return value
        flag = torch.tensor(int(value), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def same(self, number: float) -> float:
        """What the main rank measured, on every rank."""
        if self.world_size == 1:
            return number
        shared = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return float(shared.item())

    def least(self, number: float) -> float:
        """The least of what the ranks say, on every rank."""
        if self.world_size == 1:
            return number
        shared = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MIN)
        return float(shared.item())

    def share(self, text: str) -> str:
        """What the main rank says, on every rank."""
        if self.world_size == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def close(self) -> None:
        """Leaves the process group."""
        if self.world_size > 1:
            dist.destroy_process_group()


class Light(nn.Module):
    """A network that answers in half precision, and perhaps compiled."""

    def __init__(self, network: nn.Module, runtime: Runtime) -> None:
        super().__init__()
        self.network, self.runtime = runtime.wrap(network), runtime

    def forward(self, *tensors: torch.Tensor, **masks: torch.Tensor | None) -> torch.Tensor:
        """See `maskdm.diffusion.denoiser.Backbone`; in the precision of x_t again."""
        with self.runtime.autocast():
            out: torch.Tensor = self.network(*tensors, **masks)
        return out.to(tensors[0].dtype)


def light(network: nn.Module, device: torch.device, mixed_precision: str, compiled: bool = False) -> nn.Module:
    """`network` as sampling may call it; itself where nothing is asked for."""
    precision = pick_precision(device) if mixed_precision == "auto" else cast(Precision, mixed_precision)
    if precision == "no" and not compiled:
        return network
    return Light(network, Runtime(device, precision, compile="default" if compiled else None))


def start(config: TrainConfig) -> Runtime:
    """The machine for training: see `join`."""
    runtime = join(config.device)
    precision = pick_precision(runtime.device) if config.mixed_precision == "auto" else config.mixed_precision
    compiled = pick_compile(config.compile, runtime.device)
    return replace(runtime, precision=precision, compile=compiled, parallel=config.parallel)


def join(device_name: str, setting: str = "train.device") -> Runtime:
    """Chooses the device and joins the other ranks, if there are any; float32.

    Raises:
        InputError: a device that does not exist.
    """
    try:
        world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    except ValueError:
        raise InputError("WORLD_SIZE or RANK in the environment is no number; unset them, or use torchrun") from None
    if world_size > 1 and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise InputError(f"WORLD_SIZE is {world_size}, but RANK, MASTER_ADDR or MASTER_PORT is missing; use torchrun")
    device = pick_device(device_name, setting)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cpu":
        memory.hold()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size > 1 else 1
    return Runtime(device, "no", rank, world_size, local)


def pick_device(name: str, setting: str = "train.device") -> torch.device:
    """ "auto" or a device of torch, as `setting` gives it -> the device.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"{setting}: got {name!r}, which this machine does not offer; try auto") from None
    return device


def pick_compile(wanted: str, device: torch.device) -> str | None:
    """The mode of torch.compile; by itself only on a GPU: a CPU gains nothing from a minute of compiling."""
    if wanted == "auto":
        return "default" if device.type == "cuda" else None
    return None if wanted == "no" else wanted


def pick_precision(device: torch.device) -> Precision:
    """bf16 where the device multiplies it natively, else float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "no"
