"""Ranks: all have equally much to do, their buffers are alike, and one that fails does not leave the others waiting."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY
from torch import distributed as dist
from torch import nn

from maskdm.config.resolve import resolve
from maskdm.diffusion.mask_schedule import MaskGroup, by_noise, constant, mixture
from maskdm.diffusion.masks import masking
from maskdm.errors import ArgumentError, InputError, TrainingError
from maskdm.models.weights import load
from maskdm.runtime import device as devices
from maskdm.runtime import distributed, peers
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime, init_distributed
from maskdm.training import start
from maskdm.training.batches import most_micro_batches
from maskdm.training.start import start_training

GRID = (4, 4)
NONE, HALF, MOST = (masking(kind, GRID, ratio) for kind, ratio in (("none", 0), ("patch", 0.5), ("patch", 0.75)))
PLANS = {
    "one mask": constant(HALF),
    "halves": mixture([(HALF, 1), (NONE, 1)]),
    "two thirds": mixture([(HALF, 2), (NONE, 1)]),
    "three": mixture([(MOST, 3), (HALF, 1), (NONE, 2)]),
    "by noise": by_noise([MOST, HALF, NONE]),
}
BATCHES, WORLDS, SIZES = (6, 8, 12, 24, 36, 48, 64, 96), (2, 3, 4), (None, 1, 2, 3, 5)


# --- as many micro-batches on every rank -----------------------------------------------------------------------------


def parts_of(groups: tuple[MaskGroup, ...], batch: int, world: int, rank: int, micro_batch: int | None) -> int:
    """Counted as they are drawn."""
    runtime, count = Runtime(torch.device("cpu"), "no", rank, world), 0
    ends = [round(batch * sum(g.share for g in groups[:i])) for i in range(len(groups) + 1)]
    for start_, stop in itertools.pairwise(ends):
        own = len(range(batch)[runtime.rank_slice(slice(start_, stop))])
        count += len(range(0, own, micro_batch or max(own, 1)))
    return count


def test_the_most_micro_batches_of_any_rank_are_known_without_asking():
    settings = [s for s in itertools.product(PLANS, BATCHES, WORLDS, SIZES) if s[1] % s[2] == 0]
    uneven = 0
    for plan, batch, world, size in settings:
        groups = PLANS[plan].phases[0]
        counts = [parts_of(groups, batch, world, rank, size) for rank in range(world)]
        assert most_micro_batches(groups, batch, world, size) == max(counts)
        uneven += len(set(counts)) > 1
    assert len(settings) > 400
    assert uneven > 10  # for which ranks would have waited for ever


UNEVEN = {
    "three": (
        6,
        "null",
        "{mixture: [{kind: patch, ratio: .75, share: 3}, {kind: patch, ratio: .5}, {kind: none, share: 2}]}",
    ),
    "two to one": (64, "2", "{mixture: [{kind: patch, ratio: .5, share: 2}, {kind: none}]}"),
}
NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, *, image_size, channels, patch_size, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, channels, 1))
        self.blocks = nn.ModuleList([nn.Conv2d(channels, channels, 1)])

    def forward(self, x_t, t, *, mask=None, label=None):
        return self.blocks[0](self.layers(x_t))
"""


@pytest.fixture(scope="module")
def forks():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maskdm.training.start"])
    return context


def run_ranks(forks, target: Callable[..., None], *arguments, world: int = 2, timeout: float = 120) -> list[int | None]:
    """Runs `target(*arguments)` as every rank; exit codes, None of those that had to be killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [forks.Process(target=as_rank, args=(rank, world, port, target, *arguments)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    deadline, codes = time.monotonic() + timeout, []
    for rank in ranks:
        rank.join(timeout=max(deadline - time.monotonic(), 0))
        codes.append(rank.exitcode)
        rank.kill()
        rank.join()
    return codes


def as_rank(rank: int, world: int, port: int, target: Callable[..., None], *arguments) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    target(*arguments)


def short(data: Path, folder: Path, parallel: str, *words: str) -> None:
    own = [f"data.path={data}", *TINY, "stages.0.steps=2", "stages.1.steps=1", f"train.parallel={parallel}", *words]
    start_training(resolve(overrides=own), output_dir=folder, name="t", resume=None, console=Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", UNEVEN)
def test_sharded_ranks_with_uneven_parts_end_like_one(name, digits_npz, tmp_path, forks):
    batch, size, mask = UNEVEN[name]
    words = (f"stages.0.batch_size={batch}", f"stages.0.micro_batch={size}", f"stages.0.mask={mask}")
    assert run_ranks(forks, short, digits_npz, tmp_path / "two", "fsdp", *words) == [0, 0]
    short(digits_npz, tmp_path / "one", "ddp", *words)
    one, two = (dict(load(tmp_path / which / "00000-t").backbone.named_parameters()) for which in ("one", "two"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5


MUON = ("stages.0.optimizer=muon", "stages.1.optimizer=muon", "model.width=15", "model.heads=3")  # odd: uneven shards


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_with_muon_end_like_one(parallel, digits_npz, tmp_path, forks):
    assert run_ranks(forks, short, digits_npz, tmp_path / "two", parallel, *MUON) == [0, 0]
    short(digits_npz, tmp_path / "one", "ddp", *MUON)
    one, two = (dict(load(tmp_path / which / "00000-t").backbone.named_parameters()) for which in ("one", "two"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5


def own_network(data: Path, folder: Path, parallel: str) -> None:
    import sys

    sys.path.insert(0, str(folder.parent))
    run_stages = start.run_stages

    def kept(training):
        state = run_stages(training)
        rank = training.runtime.rank
        torch.save(training.runtime.full_state_dict(state.model), folder.parent / f"{parallel}-{rank}.pt")
        return state

    start.run_stages = kept
    none = [f"model.{key}=null" for key in ("width", "depth", "heads")]
    short(data, folder, parallel, "model.backbone=netofranks:Net", *none)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_running_statistics_are_the_same_on_all_ranks(parallel, digits_npz, tmp_path, forks):
    (tmp_path / "netofranks.py").write_text(NET)
    assert run_ranks(forks, own_network, digits_npz, tmp_path / "runs", parallel) == [0, 0]
    first, second = (torch.load(tmp_path / f"{parallel}-{rank}.pt") for rank in range(2))
    assert first["layers.1.running_mean"].any()
    assert all(torch.equal(first[key], second[key]) for key in first)


# --- a rank that fails -----------------------------------------------------------------------------------------------


def fails(how: str, folder: Path) -> None:
    """Rank 1 fails; rank 0 waits for it, or for a collective that cannot be complete."""
    with init_distributed("cpu") as runtime:
        if runtime.rank == 1:
            runtime.barrier()
            raise InputError("data.path", got="nothing", wanted="images")
        runtime.barrier()
        began = time.monotonic()
        try:
            if how == "waits":
                runtime.barrier()
            elif how == "computes":
                runtime.any_rank(True)
            else:  # as in a kernel that waits for another GPU: nothing raises here
                time.sleep(60)
        except RuntimeError as error:
            (folder / "seconds").write_text(str(time.monotonic() - began))
            (folder / "said").write_text(str(runtime.peers.explain(error)))
            raise


@pytest.mark.slow
@pytest.mark.parametrize("how", ["waits", "computes", "hangs"])
def test_a_rank_that_fails_ends_the_others_within_seconds(how, tmp_path, forks):
    began = time.monotonic()
    assert run_ranks(forks, fails, how, tmp_path, timeout=50) == [1, 1]
    assert time.monotonic() - began < 45
    if how != "hangs":
        assert "process 1 failed: data.path: got 'nothing'" in (tmp_path / "said").read_text()


@pytest.fixture
def alone(monkeypatch) -> Iterator[peers.Peers]:
    """The peers of the only rank of a group."""
    monkeypatch.setattr(peers.dist, "new_group", lambda **given: given)
    monkeypatch.setattr(peers, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(peers, "GRACE", 0.01)
    found = peers.Peers(0, dist.HashStore())
    yield found
    found.leave()


def test_waits_are_long_and_on_the_cpu(alone):
    assert alone.waits == {"backend": "gloo", "timeout": peers.LONGEST_WAIT}
    assert peers.LONGEST_WAIT.total_seconds() > 24 * 3600


def test_the_failure_of_another_rank_explains_an_error_and_ones_own_does_not(alone, monkeypatch):
    error = RuntimeError("Connection closed by peer [127.0.0.1]:1")
    assert alone.explain(RuntimeError("mat1 and mat2")) is None
    assert str(alone.explain(error)) == "another process has ended"
    assert alone.explain(ValueError("of this rank")) is None
    ended = []
    monkeypatch.setattr(peers.os, "_exit", ended.append)
    peers.Peers.fail(type("Other", (), {"rank": 3, "store": alone.store})(), InputError("data.path", got=1))
    explained = alone.explain(RuntimeError("something is missing"))
    assert isinstance(explained, TrainingError)
    assert str(explained) == "process 3 failed: data.path: got 1"
    alone._watcher.join(timeout=5)
    assert ended == [1]  # it was waiting in vain


def test_ones_own_failure_is_no_reason_to_end(alone):
    alone.fail(InputError("data.path", got=1))
    assert alone.failure() is None


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch) -> list[object]:
    """A machine with two GPUs on which nothing can be computed: what was done to them."""
    done: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def current(device: torch.device) -> None:
        if device.index > 1:
            raise RuntimeError("CUDA error: invalid device ordinal")
        done.append(("current", device.index))

    monkeypatch.setattr(torch.cuda, "set_device", current)
    monkeypatch.setattr(devices, "_try", lambda device: done.append(("used", device.index)))
    return done


@pytest.mark.parametrize(("name", "rank", "index"), [("auto", 1, 1), ("cuda", 1, 1), ("cuda:1", 0, 1), ("cuda", 0, 0)])
def test_a_gpu_is_made_current_before_it_is_used_and_no_other_is_touched(name, rank, index, gpus):
    assert devices.pick_device(name, rank) == torch.device("cuda", index)
    assert gpus == [("current", index), ("used", index)]


def test_more_processes_than_gpus_is_one_line(gpus):
    with pytest.raises(ArgumentError) as caught:
        devices.pick_device("auto", 2)
    assert (caught.value.name, caught.value.got) == ("device", "auto")
    assert "2 GPUs" in caught.value.remedy
    assert gpus == []


def test_two_processes_do_not_share_a_gpu(gpus, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(InputError) as caught:
        init_distributed("cuda:1")
    assert (caught.value.name, caught.value.got) == ("device", "cuda:1")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK"])
def test_an_environment_without_numbers_is_one_line(name, monkeypatch):
    monkeypatch.setenv(name, "many")
    with pytest.raises(InputError) as caught:
        init_distributed("cpu")
    assert name in caught.value.name


def test_ddp_does_not_overwrite_buffers(monkeypatch):
    made = {}
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda network, **given: made.update(given) or network)
    Runtime(torch.device("cpu"), "no", 0, 2).wrap(nn.Linear(1, 1))
    assert made["broadcast_buffers"] is False
