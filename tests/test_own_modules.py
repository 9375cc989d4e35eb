"""Networks of the user's own with modules that have a mode, a state or a randomness of their own."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_digits
from safetensors.torch import load_file
from torch import nn

import maskdm
from maskdm.config.resolve import resolve
from maskdm.data.manifest import read_manifest
from maskdm.diffusion.loss import fixed_noise, image_error
from maskdm.diffusion.pixels import to_model
from maskdm.errors import Interrupted
from maskdm.models import build, weights
from maskdm.runtime.console import Console
from maskdm.training import loop, monitor, step
from maskdm.training.buffers import Buffers, buffers_aside
from maskdm.training.ema import ema_update_buffers
from maskdm.training.prepare import synthetic_task
from maskdm.training.read_run import read_history
from maskdm.training.start import start_training
from maskdm.training.step_profiler import StepProfiler

NAME = "modal"
NET = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Dropout(0.2))

    def forward(self, x):
        return x + self.inner(x)


class Net(nn.Module):
    def __init__(self, *, image_size, channels, patch_size, classes):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)
        self.blocks = nn.ModuleList([Block(8)])
        self.register_buffer("hidden", torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.drawn, self.modes = [], []

    def forward(self, x_t, t, *, mask=None, label=None):
        self.modes.append(self.training)
        if self.training:
            self.scratch += 1
            self.drawn.append(torch.nn.functional.dropout(torch.ones(64), 0.5))
        x = self.enter(x_t)
        for block in self.blocks:
            x = block(x)
        return self.leave(x)
"""
OWN = (
    *(word for word in TINY if not word.startswith("model.")),
    f"model.backbone={NAME}:Net",
    "model.patch_size=2",
    "stages.0.mask={kind: patch, ratio: 0.5}",
    "stages.0.steps=12",
    "stages.0.lr=1e-2",
    "stages.1.lr=1e-2",
    "train.save_every=5",
)


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch) -> Iterator[None]:
    """The network, where it can be imported."""
    (tmp_path / f"{NAME}.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    sys.modules.pop(NAME, None)


def net() -> type[nn.Module]:
    return importlib.import_module(NAME).Net


def run(folder: Path, *more: str) -> Path:
    data = folder.parent / "digits.npz"
    config = resolve(overrides=[f"data.path={data if data.exists() else write_digits(data)}", *OWN, *more])
    return start_training(config, output_dir=folder, name="t", resume=None, console=Console(quiet=True))


def profiler(*words: str) -> StepProfiler:
    own = (f"model.backbone={NAME}:Net", "model.patch_size=2", "data.image_size=8", "stages.0.batch_size=8")
    mask = "stages.0.mask={kind: patch, ratio: 0.5}"
    return StepProfiler(synthetic_task(resolve(overrides=[*own, mask, "train.mixed_precision=no", *words])))


def buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- modes -----------------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_the_error_of_the_released_weights(tmp_path):
    folder = run(tmp_path / "runs")
    last = read_history(folder).heldout[-1]
    with np.load(tmp_path / "digits.npz") as archive:
        rows = read_manifest(folder).indices("heldout")
        rows = rows[np.linspace(0, len(rows) - 1, last.n).round().astype(int)]
        x_0, label = to_model(archive["images"][rows][..., None]), torch.from_numpy(archive["labels"][rows])
    for which in ("ema", "raw"):
        denoiser = weights.load(folder, weights=which, backbone=net())
        with torch.no_grad():
            error = image_error(denoiser, x_0, *fixed_noise(denoiser, x_0.shape), label=label)
        assert float(error.mean()) == pytest.approx(getattr(last, f"error_{which}"), rel=1e-5)


def test_measuring_changes_neither_modes_nor_buffers_nor_what_is_learned(tmp_path, monkeypatch):
    evaluate, seen = loop.evaluate_due, []

    def watched(training, state, denoiser, due):
        networks = (state.model, state.ema)
        before = [(buffers(network), [m.training for m in network.modules()]) for network in networks]
        state.ema.modes.clear()
        evaluate(training, state, denoiser, due)
        after = [(buffers(network), [m.training for m in network.modules()]) for network in networks]
        assert all(same(a[0], b[0]) and a[1] == b[1] for a, b in zip(before, after, strict=True))
        assert state.model.training
        assert not any(state.ema.modes)
        seen.append(len(state.ema.modes))

    monkeypatch.setattr(loop, "evaluate_due", watched)
    often = run(tmp_path / "often", "eval.heldout_every=16", "eval.samples_every=32")
    assert sum(map(bool, seen)) > 4
    seldom = run(tmp_path / "seldom", "eval.heldout_images=0", "eval.samples=0")
    assert same(*(load_file(folder / "weights" / "raw.safetensors") for folder in (often, seldom)))


def test_the_mode_of_every_module_comes_back():
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2))
    network[1].eval()  # frozen by whoever made it
    with monitor.eval_mode(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, False]


def test_what_is_loaded_is_in_eval_mode(tmp_path):
    folder = run(tmp_path / "runs", "stages.0.steps=1", "stages.1.steps=1")
    denoiser = maskdm.load(folder, backbone=net())
    assert not any(module.training for module in denoiser.backbone.modules())
    assert torch.equal(maskdm.sample(denoiser, 2, steps=2), maskdm.sample(denoiser, 2, steps=2))


# --- buffers ---------------------------------------------------------------------------------------------------------


def test_buffers_are_averaged_as_weights_are_and_counts_copied():
    average, current = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    current.running_mean.fill_(8.0)
    current.num_batches_tracked.fill_(7)
    current.register_buffer("hidden", torch.tensor([0.0, -torch.inf]))
    average.register_buffer("hidden", torch.tensor([0.0, -torch.inf]))
    for module in (average, current):
        module.register_buffer("scratch", torch.full((1,), float(module is current)), persistent=False)
    ema_update_buffers(Buffers(average), Buffers(current), 0.75)
    assert average.running_mean.tolist() == [2.0, 2.0]
    assert average.num_batches_tracked == 7
    assert average.hidden.tolist() == [0.0, -torch.inf]
    assert average.scratch == 0  # no weights file has it
    assert len(list(Buffers(average))) == len(average.state_dict()) - 2


def test_trying_micro_batches_leaves_the_buffers_alone():
    ours = profiler()
    before = buffers(ours.state.model)
    assert ours.memory() is not None
    kept = {name for name, _ in ours.state.model.named_buffers() if name != "scratch"}
    assert all(torch.equal(before[name], ours.state.model.get_buffer(name)) for name in kept)


def test_a_step_that_ran_out_of_memory_counts_once(monkeypatch):
    whole, halved = profiler(), profiler()
    halved.state.progress.micro_batch = whole.state.progress.micro_batch = 4
    forward_backward, calls = step.forward_backward, []

    def short(task, state, learner, part):
        loss = forward_backward(task, state, learner, part)
        calls.append(len(part))
        if len(calls) == 1:
            raise MemoryError
        return loss

    whole.step()
    halved.state.progress.micro_batch = 8
    monkeypatch.setattr(step, "forward_backward", short)
    halved.step()
    assert calls == [8, 4, 4]
    assert same(dict(whole.state.model.state_dict()), dict(halved.state.model.state_dict()))


def test_blocks_that_are_computed_again_count_once_and_draw_the_same():
    plain, saving = (profiler(f"train.checkpoint_activations={on}") for on in ("false", "true"))
    for _ in range(3):
        plain.step()
        saving.step()
    assert same(dict(plain.state.model.state_dict()), dict(saving.state.model.state_dict()))
    assert plain.state.model.blocks[0].inner[1].num_batches_tracked == 3


def test_checkpointed_buffers_are_the_modules_own_again():
    block = nn.Sequential(nn.BatchNorm1d(2))
    mean = block[0].running_mean
    with buffers_aside(block):
        block(torch.randn(4, 2))
        assert block[0].running_mean is not mean
    assert block[0].running_mean is mean
    assert not mean.any()


# --- randomness ------------------------------------------------------------------------------------------------------


def drawn_by(ours: StepProfiler, *, steps: int = 1) -> list[torch.Tensor]:
    """What the modules drew in some steps."""
    network = ours.state.model
    ours.use(ours.task)  # with its micro-batch
    network.drawn.clear()
    for _ in range(steps):
        torch.rand(3)  # whatever else draws
        ours.step()
    return list(network.drawn)


def test_modules_draw_by_seed_stage_step_rank_and_micro_batch_alone():
    first = drawn_by(profiler("stages.0.micro_batch=4"), steps=2)
    torch.manual_seed(99)
    later = profiler("stages.0.micro_batch=4")
    later.state.progress.stage_step = 1
    again = drawn_by(later)
    assert len({tuple(mask.tolist()) for mask in first}) == len(first) == 4  # two steps of two micro-batches
    assert all(torch.equal(a, b) for a, b in zip(first[2:], again, strict=True))
    other = drawn_by(profiler("train.seed=1"))
    assert not any(torch.equal(other[0], mask) for mask in first)


def test_ranks_stages_and_steps_share_no_draw():
    task, seen = profiler().task, []
    for world in (1, 4):
        for rank in range(world):
            for number in (0, 1):
                for stage_step in range(3):
                    ours = replace(task, runtime=replace(task.runtime, rank=rank, world_size=world))
                    step.seed_modules(ours, loop.Progress(stage=number, stage_step=stage_step))
                    seen.append((world, tuple(torch.rand(4).tolist())))
    for world in (1, 4):
        of_world = [draw for where, draw in seen if where == world]
        assert len(set(of_world)) == len(of_world)


def test_an_interrupted_run_ends_with_the_same_weights_and_buffers(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    training_step = loop.training_step

    def interrupted(training, state, learner, model):
        if state.progress.step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(training, state, learner, model)

    monkeypatch.setattr(loop, "training_step", interrupted)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut")
    monkeypatch.setattr(loop, "training_step", training_step)
    torch.manual_seed(5)
    cut = run(tmp_path / "cut")
    for which in ("ema", "raw"):
        assert same(*(load_file(folder / "weights" / f"{which}.safetensors") for folder in (whole, cut)))
    files = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (whole, cut)]
    errors = [[e["error_ema"] for e in map(json.loads, lines) if e["event"] == "heldout"] for lines in files]
    assert errors[0] == errors[1]
    assert build.constructor(f"{NAME}:Net") is net()
