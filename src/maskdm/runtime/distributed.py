"""Ranks: the processes that train or sample together. No other file knows that there may be several.

Launchers (torchrun, `accelerate launch`, SLURM wrappers of either) all set the same variables; with them present the
process group is joined, without them there is one rank and nothing to synchronize.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Self, cast

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskdm.config.schema import TrainConfig
from maskdm.errors import ArgumentError, InputError, within
from maskdm.runtime import device as devices
from maskdm.runtime import memory
from maskdm.runtime.device import (
    FIXED_WORKSPACES,
    MOST_GRAPHS,
    Precision,
    compile_network,
    pick_compile,
    pick_device,
    pick_precision,
)
from maskdm.runtime.peers import Peers, join_peers

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Runtime:
    """Where and how this process computes.

    As a context it leaves the group in the end, and lets the other ranks know where it ends by an error.

    Attributes:
        device: of this rank.
        precision: of the network's arithmetic; weights, moving average and sampling stay float32.
        rank, world_size: of this process, and how many there are.
        local_world_size: how many of them are on this machine.
        compile: the mode in which torch compiles the network, or None.
        parallel: whether every rank holds the whole model (ddp) or a shard of each tensor (fsdp).
        peers: the other ranks, None where there are none.
    """

    device: torch.device
    precision: Precision
    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    compile: str | None = None
    parallel: Parallel = "ddp"
    peers: Peers | None = None

    @property
    def main(self) -> bool:
        """Whether this rank writes files and talks."""
        return self.rank == 0

    # --- shards ------------------------------------------------------------------------------------------------------

    @property
    def shards(self) -> bool:
        """Whether tensors are sharded among ranks (FSDP)."""
        return self.world_size > 1 and self.parallel == "fsdp"

    def shard(self, network: nn.Module) -> nn.Module:
        """Leaves this rank its shard of every tensor, where that is asked for; blocks are gathered one by one."""
        if self.shards:
            from torch.distributed.device_mesh import init_device_mesh  # a second to import
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (self.world_size,))
            blocks = [block for blocks in network.modules() if isinstance(blocks, nn.ModuleList) for block in blocks]
            for block in blocks:
                fully_shard(block, mesh=mesh)
            # The outermost too: between steps every tensor is sharded, whoever asks.
            fully_shard(network, mesh=mesh, reshard_after_forward=True)
        return network

    def full_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor gathered from its shards: all ranks must ask at the same time."""
        if not self.shards:
            return tensor
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def shard_like(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """This rank's shard of a full tensor, sharded and placed as `like`."""
        tensor = tensor.to(like.device)
        if not self.shards:
            return tensor
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor) or tensor.shape != like.shape:
            return tensor
        return distribute_tensor(tensor, like.device_mesh, like.placements)

    def full_state_dict(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """The state dict of full tensors: all ranks must ask at the same time."""
        return {name: self.full_tensor(tensor) for name, tensor in network.state_dict().items()}

    def load_full_state_dict(self, network: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        """Loads a state dict of full tensors strictly, each rank its shards.

        Raises:
            RuntimeError: of torch, where names or shapes differ.
        """
        if self.shards:
            own = network.state_dict()
            state = {name: self.shard_like(t, own[name]) if name in own else t for name, t in state.items()}
        network.load_state_dict(state, strict=True)

    # --- the network in training -------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the network is called in training."""
        return devices.autocast(self.device, self.precision)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling; it does nothing but for fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def wrap(self, network: nn.Module, graphs: int = MOST_GRAPHS) -> nn.Module:
        """The network as it is called in training: perhaps compiled, gradients averaged over ranks.

        Args:
            network: the bare one.
            graphs: how many shapes it will be called with, see `compile_network`.
        """
        if self.compile is not None:
            network = compile_network(network, self.compile, graphs)
        if self.world_size == 1 or self.parallel == "fsdp":
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are averaged after the step, see `average`, and not set to the first rank's before it.
        return DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)

    def accumulate(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Around the backward pass of one micro-batch: only the last one synchronizes gradients."""
        if self.shards:
            wrapped.set_requires_gradient_sync(last)  # type: ignore[operator] # of the sharded module
        if last or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[object], wrapped.no_sync())

    def synchronize(self) -> None:
        """Waits until the device has done all that it was given."""
        devices.synchronize(self.device)

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Puts the mean over ranks into tensors that every rank holds whole."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.world_size

    # --- the work of each rank ---------------------------------------------------------------------------------------

    def rank_indices(self, num: int) -> range:
        """This rank's numbers of 0 to num - 1, every world_size-th: as many on every rank, the last perhaps beyond."""
        return range(self.rank, math.ceil(num / self.world_size) * self.world_size, self.world_size)

    def rank_slice(self, rows: slice) -> slice:
        """This rank's part of consecutive rows of a batch, see `share_of_rank`."""
        return share_of_rank(rows, self.rank, self.world_size)

    # --- talking among ranks -----------------------------------------------------------------------------------------

    def barrier(self) -> None:
        """Waits for all ranks, for as long as it takes."""
        if self.peers is not None:
            self.peers.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main rank goes through the block first, the others find its work done."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Tensors of one shape from all ranks, on every rank, in the memory of the host where there are several."""
        if self.world_size == 1:
            return [tensor]
        there = tensor.to(self.device)
        found = [torch.empty_like(there) for _ in range(self.world_size)]
        dist.all_gather(found, there)
        return [each.cpu() for each in found]

    def all_reduce_sum(self, numbers: Sequence[float]) -> list[float]:
        """The sum over ranks of each of as many numbers, on every rank."""
        if self.world_size == 1:
            return list(numbers)
        shared = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return [float(number) for number in shared.tolist()]

    def all_reduce_min(self, number: float) -> float:
        """The smallest over ranks, on every rank."""
        return self._reduce(number, dist.ReduceOp.MIN)

    def any_rank(self, value: bool) -> bool:
        """Whether it is true on any rank; every rank gets the same answer."""
        return bool(self._reduce(float(value), dist.ReduceOp.MAX))

    def broadcast(self, number: float) -> float:
        """The main rank's number, on every rank."""
        if self.world_size == 1:
            return number
        shared = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return float(shared.item())

    def broadcast_object(self, text: str) -> str:
        """The main rank's text, on every rank."""
        return text if self.peers is None else self.peers.broadcast_object(text)

    def _reduce(self, number: float, operation: dist.ReduceOp.RedOpType) -> float:
        if self.world_size == 1:
            return number
        shared = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared, op=operation)
        return float(shared.item())

    def close(self) -> None:
        """Leaves the process group, once all ranks are done."""
        if self.peers is not None:
            self.barrier()
            self.peers.leave()
            _leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leaves the process group.

        Raises:
            TrainingError: in place of an error that another rank's failure has caused here.
        """
        if self.peers is None:
            return
        if error is None:
            try:
                self.close()
            except RuntimeError as lost:
                self._fail(lost)
                raise
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Leaves a group that will not be whole again, this rank having failed by `error`."""
        assert self.peers is not None, "others are told"
        explained = self.peers.explain(error)
        self.peers.fail(error)  # while the group is still there: others find the reason, and not the loss alone
        _leave()
        self.peers.leave()
        if explained is not None:
            raise explained from None


def share_of_rank(rows: slice, rank: int, world_size: int) -> slice:
    """A rank's part of consecutive rows of a batch, every world_size-th.

    The ranks' parts differ by at most one, and of a whole batch that the world size divides, not at all: no rank is
    without work.
    """
    first = rows.start + (rank - rows.start) % world_size
    return slice(first, rows.stop, world_size)


def init_runtime(config: TrainConfig) -> Runtime:
    """The machine for training: device and ranks as `init_distributed`, precision and compiling by the settings.

    Raises:
        InputError: `train.device` does not exist; the environment describes no process group.
    """
    if config.deterministic:
        os.environ.setdefault(*FIXED_WORKSPACES)
    with within("train."):
        runtime = _join(config.device)
        compiled = pick_compile(config.compile, runtime.device)
    return replace(
        runtime,
        precision=pick_precision(config.mixed_precision, runtime.device),
        compile=compiled,
        parallel=config.parallel,
    )


def init_distributed(device: str) -> Runtime:
    """Chooses the device and joins the other ranks, if there are any; float32.

    Args:
        device: auto, or a device of torch: cpu, cuda, cuda:1, mps.

    Raises:
        InputError: `device` does not exist; the environment describes no process group.
    """
    with within(""):
        return _join(device)


def _join(device: str) -> Runtime:
    try:
        world_size, rank, local_rank = (
            int(os.environ.get(name, usual))
            for name, usual in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
        )
    except ValueError:
        got = f"{os.environ.get('WORLD_SIZE')}, {os.environ.get('RANK')}, {os.environ.get('LOCAL_RANK')}"
        remedy = "unset them, or use torchrun"
        name = "WORLD_SIZE, RANK, LOCAL_RANK"
        raise InputError(name, got=got, wanted="numbers in the environment", remedy=remedy) from None
    if world_size > 1 and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        problem = "RANK, MASTER_ADDR or MASTER_PORT is missing from the environment"
        raise InputError("WORLD_SIZE", problem, got=world_size, remedy="use torchrun")
    picked = pick_device(device, local_rank)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size > 1 else 1
    if picked.type == "cuda" and local > 1 and device not in ("auto", "cuda"):
        wanted = f"auto or cuda for {local} processes on a machine, since each needs a GPU of its own"
        raise ArgumentError("device", got=device, wanted=wanted)
    if picked.type == "cpu":
        memory.keep_freed_memory()
    return Runtime(picked, "no", rank, world_size, local, peers=_peers(picked, rank) if world_size > 1 else None)


_JOINED: list[Peers] = []
"""The peers, from joining the process group until leaving it: a process has one group, as in torch."""


def _peers(device: torch.device, rank: int) -> Peers:
    if not dist.is_initialized():
        _JOINED.clear()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if not _JOINED:
        _JOINED.append(join_peers(rank))
    return _JOINED[0]


def _leave() -> None:
    _JOINED.clear()
    if dist.is_initialized():
        dist.destroy_process_group()
