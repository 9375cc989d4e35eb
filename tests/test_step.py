"""A step: how images count, what fp16 skips, how compiling and determinism are asked for, what is timed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from conftest import TINY, train
from torch import Tensor, nn

from maskdm.cli.main import main
from maskdm.config.resolve import resolve
from maskdm.diffusion.mask_schedule import MaskGroup, by_noise, group_slices, mixture
from maskdm.diffusion.masks import masking
from maskdm.errors import ArgumentError, InputError, TrainingError
from maskdm.evaluation.heldout import HeldOut
from maskdm.models import inference
from maskdm.runtime import device as devices
from maskdm.runtime.distributed import Runtime
from maskdm.sampling import sample
from maskdm.training import loop, step
from maskdm.training.batches import group_weight
from maskdm.training.clock import Clock
from maskdm.training.prepare import synthetic_task
from maskdm.training.progress import Progress
from maskdm.training.step_profiler import StepProfiler, choose_micro_batch
from maskdm.training.time_left import TimeLeft

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
GRID = (4, 4)
MASKS = [masking("patch", GRID, ratio) for ratio in (0.75, 0.5, 0.25)]
GROUPS = [by_noise(MASKS).phases[0], mixture(list(zip(MASKS, (3, 1, 2), strict=True))).phases[0]]
SMALL = ("data.image_size=16", "model.width=16", "model.depth=3", "model.heads=2", "stages.0.batch_size=8")


def task(*words: str) -> step.Task:
    return synthetic_task(resolve(overrides=(*SMALL, "stages.0.mask.block=1", "train.mixed_precision=no", *words)))


# --- how images count ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", range(3, 40))
@pytest.mark.parametrize("groups", GROUPS)
def test_a_group_has_its_share_of_the_loss_at_every_batch_size(groups, batch):
    sizes = [rows.stop - rows.start for rows in group_slices(groups, batch)]
    if not all(sizes):  # which is refused
        return
    weights = [group_weight(group, size, batch) for group, size in zip(groups, sizes, strict=True)]
    shares = [weight * size / batch for weight, size in zip(weights, sizes, strict=True)]
    assert shares == pytest.approx([group.share for group in groups])
    assert sum(shares) == pytest.approx(1)


def test_three_ranges_of_noise_in_a_batch_of_eight():
    weights = [group_weight(MaskGroup(MASKS[0], 1 / 3), images, 8) for images in (3, 2, 3)]
    assert weights == pytest.approx([8 / 9, 4 / 3, 8 / 9])
    assert group_weight(MaskGroup(MASKS[0], 1 / 3), 3, 9) == 1.0  # to the last bit: nothing to make good


def test_the_loss_of_a_step_is_the_mean_over_equally_likely_ranges(monkeypatch):
    profiler = StepProfiler(task("stages.0.mask={kind: patch, by_noise: [0.75, 0.5, 0]}"))
    drawn = []
    monkeypatch.setattr(step, "denoising_loss", lambda learner, x_0, t, eps, **more: spread(len(x_0), drawn, learner))
    loss = step.accumulate_gradients(profiler.task, profiler.state, profiler._learner, profiler._model)
    assert drawn == [3, 2, 3]
    assert float(loss) == pytest.approx((1 + 2 + 3) / 3)


def spread(images: int, drawn: list[int], learner) -> Tensor:
    """Losses of 1 in the first group, 2 in the second, 3 in the third."""
    drawn.append(images)
    weight = next(learner.backbone.parameters())
    return torch.full((images,), float(len(drawn))) + 0 * weight.sum()


def test_a_rank_with_fewer_micro_batches_repeats_one_that_does_not_count():
    ours = task(
        "stages.0.mask={mixture: [{kind: patch, ratio: 0.5, share: 2}, {kind: none}]}", "stages.0.batch_size=64"
    )
    denoiser = StepProfiler(ours)._learner
    found = []
    for rank in range(2):
        there = replace(ours, runtime=replace(ours.runtime, rank=rank, world_size=2))
        found.append(step.draw_micro_batches(there, denoiser, Progress(micro_batch=2)))
    assert len(found[0]) == len(found[1]) == 17
    repeated = [part for parts in found for part in parts if part.weight == 0]
    assert len(repeated) == 1
    assert sum(part.weight * len(part) for parts in found for part in parts) == pytest.approx(64)


# --- fp16 ------------------------------------------------------------------------------------------------------------


def test_fp16_records_gradients_and_skipped_steps(digits_npz, tmp_path, monkeypatch):
    optimizer_step = loop.training_step

    def overflowing(training, state, learner, model):
        loss, norm = optimizer_step(training, state, learner, model)
        return loss, torch.full_like(norm, torch.inf) if state.progress.step == 1 else norm

    monkeypatch.setattr(loop, "training_step", overflowing)
    folder = train(digits_npz, tmp_path, "train.mixed_precision=fp16", "log.every=2")
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "train"]
    assert steps[0]["skipped"] >= 1  # as the scale is sought there may be more
    assert all(0 < event["grad_norm"] < 1e4 for event in steps if event["skipped"] < 2)
    assert steps[-1]["skipped"] == 0


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=needs_muon)])
def test_an_overflow_leaves_weights_and_halves_the_scale(optimizer):
    profiler = StepProfiler(task("train.mixed_precision=fp16", f"stages.0.optimizer={optimizer}"))
    profiler.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = [p.clone() for p in profiler.state.model.parameters()]
    _, norm = step.training_step(profiler.task, profiler.state, profiler._learner, profiler._model)
    assert not norm.isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, profiler.state.model.parameters(), strict=True))
    assert profiler.state.scaler.get_scale() == 2.0**59


def test_gradients_that_overflow_at_any_scale_end_the_run(digits_npz, tmp_path, monkeypatch):
    training_step = loop.training_step

    def overflowing(training, state, learner, model):
        loss, norm = training_step(training, state, learner, model)
        state.scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
        return loss, torch.full_like(norm, torch.nan)

    monkeypatch.setattr(loop, "training_step", overflowing)
    with pytest.raises(TrainingError, match="gradient not finite at any loss scale in 1 of 1 steps up to step 1"):
        train(digits_npz, tmp_path, "train.mixed_precision=fp16")


@pytest.mark.parametrize(("before", "now"), [("bf16", "fp16"), ("fp16", "bf16"), ("no", "no")])
def test_a_run_is_resumed_in_another_precision_and_says_so(before, now, digits_npz, tmp_path, monkeypatch, capsys):
    picked, training_step = [before], loop.training_step
    monkeypatch.setattr("maskdm.runtime.distributed.pick_precision", lambda wanted, device: picked[0])

    def interrupted(training, state, learner, model):
        if state.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(training, state, learner, model)

    command = ["train", "--data", str(digits_npz), "--output-dir", str(tmp_path), *TINY]
    command = [word for word in command if not word.startswith("train.mixed")]
    monkeypatch.setattr(loop, "training_step", interrupted)
    assert main(command) == 130
    picked[0] = now
    monkeypatch.setattr(loop, "training_step", training_step)
    capsys.readouterr()
    assert main(command) == 0
    said = f"warning: the network was trained in {before} so far, and is in {now} from here on"
    assert (said in capsys.readouterr().err) == (before != now)


# --- what to do about a loss that is not finite ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "advice", "not_advised"),
    [
        ((), "a lower clip (now 1)", "clip=1.0"),
        (("stages.0.clip=null",), "clip=1.0 (now none)", "a lower clip"),
        (("stages.0.warmup_steps=7",), "more warmup_steps (now 7)", "mixed_precision"),
        (("train.mixed_precision=fp16",), "train.mixed_precision=bf16 or no (now fp16)", "clip=1.0"),
    ],
)
def test_the_advice_knows_what_is_set(words, advice, not_advised, digits_npz, tmp_path, monkeypatch):
    training_step = loop.training_step
    monkeypatch.setattr(loop, "training_step", lambda *a: (torch.tensor(torch.nan), training_step(*a)[1]))
    with pytest.raises(TrainingError) as caught:
        train(digits_npz, tmp_path, *words)
    assert "loss or gradient not finite at step 1 of stage pretrain; nothing had been saved yet" in str(caught.value)
    assert advice in str(caught.value)
    assert not_advised not in str(caught.value)


# --- seconds ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_device(monkeypatch) -> list[float]:
    """A device that is waited for longer than steps take on the host: the moments of the waits."""
    waits: list[float] = []

    def wait(runtime: Runtime) -> None:
        time.sleep(0.05)
        waits.append(time.monotonic())

    monkeypatch.setattr(Runtime, "synchronize", wait)
    monkeypatch.setattr(TimeLeft, "step_done", lambda _: None)  # which waits for the first steps of a stage
    return waits


def test_seconds_are_those_of_the_device_and_it_is_waited_for_at_log_lines_alone(digits_npz, tmp_path, slow_device):
    words = ("stages.0.steps=12", "log.every=4", "eval.samples=0", "eval.heldout_images=0", "train.save_every=100")
    folder = train(digits_npz, tmp_path, *words)
    assert len(slow_device) == 12 / 4 + 1  # and the end of the second stage
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "train"]
    assert steps[-1]["seconds"] >= 0.05 * len(slow_device)
    seconds = [event["seconds"] for event in steps[:3]]
    assert min(b - a for a, b in itertools.pairwise([0.0, *seconds])) >= 0.05
    assert all(event["images_per_second"] <= 4 * 8 / 0.05 for event in steps[:3])


def test_what_a_device_owes_is_not_charged_to_what_is_measured_after(digits_npz, tmp_path, slow_device):
    words = ("stages.0.steps=12", "log.every=100", "eval.samples=0", "eval.heldout_every=32", "train.save_every=100")
    train(digits_npz, tmp_path, *words)
    assert len(slow_device) == 12 * 8 / 32 + 1


def test_a_clock_runs_from_wait_to_wait(slow_device):
    clock = Clock(Runtime(CPU, "no"))
    assert clock.lap() < 0.05 <= clock.lap(wait=True)


def test_steps_of_a_gpu_are_timed_several_at_a_time(monkeypatch):
    profiler = StepProfiler(task())
    assert profiler.between == 1
    waits, done = [], []
    monkeypatch.setattr(StepProfiler, "between", 10)
    monkeypatch.setattr(Runtime, "synchronize", lambda runtime: waits.append(len(done)))
    monkeypatch.setattr("maskdm.training.step_profiler.training_step", lambda *_: done.append(time.sleep(0.002)))
    taken = profiler.steps(0.0, least=3)
    assert waits == [10, 20, 30]
    assert all(0.002 <= seconds < 0.02 for seconds in taken)


# --- compiling -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_compiler(monkeypatch) -> None:
    monkeypatch.setattr(devices, "missing_compiler", lambda device: "a C++ compiler")


def test_without_a_compiler_compiling_is_one_line(no_compiler, digits_npz, tmp_path, capsys):
    words = ["train", "--data", str(digits_npz), "--output-dir", str(tmp_path / "runs"), *TINY, "train.compile=default"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("maskdm: error: train.compile: torch.compile needs a C++ compiler")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ArgumentError) as caught:
        inference.for_inference(nn.Identity(), CPU, compiled=True)
    assert caught.value.name == "compile"


def test_auto_does_not_compile_without_a_compiler(no_compiler):
    assert devices.pick_compile("auto", CUDA) is None
    assert devices.pick_compile("auto", CPU) is None
    assert devices.pick_compile("no", CUDA) is None
    assert devices.why_not_compiled("auto", CUDA) == "torch.compile needs a C++ compiler, and finds none"
    assert devices.why_not_compiled("auto", CPU) is devices.why_not_compiled("no", CUDA) is None


def test_a_gpu_needs_triton_and_a_c_compiler(monkeypatch):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert devices.missing_compiler(CUDA) == "triton"
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    assert devices.missing_compiler(CUDA) == "a C compiler"
    monkeypatch.setattr(devices.shutil, "which", lambda name: name)
    assert devices.missing_compiler(CUDA) is None
    assert devices.pick_compile("auto", CUDA) == "default"


def test_a_network_that_cannot_be_compiled_is_one_line(monkeypatch):
    import torch._dynamo.exc

    def broken(*_):
        raise torch._dynamo.exc.Unsupported("a graph break\nand where it is")

    profiler = StepProfiler(task())
    monkeypatch.setattr(step, "forward_backward", broken)
    with pytest.raises(InputError) as caught:
        profiler.step()
    assert caught.value.name == "train.compile"
    assert caught.value.problem == "Unsupported: a graph break"


def test_there_are_as_many_graphs_as_masks_have_shapes(monkeypatch):
    ratios = "{kind: patch, ratio: [0.9, 0.1], schedule: linear, buckets: 100}"
    many = task(f"stages.0.mask={ratios}", "data.image_size=64")
    assert len(many.masks[0].maskings) > devices.MOST_GRAPHS
    graphs = step.graph_count(many)
    assert graphs >= len(many.masks[0].maskings)
    assert step.graph_count(task()) < graphs
    settings = torch._dynamo.config
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        monkeypatch.setattr(settings, name, 8)
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    devices.compile_network(nn.Identity(), "default", graphs)
    assert settings.recompile_limit == settings.accumulated_recompile_limit == graphs


class Static(torch.autograd.Function):
    """x w, whose gradient lies where that of the call before lay, as in a CUDA graph."""

    memory = torch.zeros(1)

    @staticmethod
    def forward(ctx, w: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return w * x

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (x,) = ctx.saved_tensors
        Static.memory.copy_((gradient * x).sum().view(1))
        return Static.memory.view(1), None


class Line(nn.Module):
    """Calls `Static`."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return Static.apply(self.w, x)


@pytest.mark.parametrize("own", [False, True])
def test_gradients_of_micro_batches_do_not_overwrite_one_another(own):
    network = Line()
    if own:
        step.own_gradients(network)
    for x in (1.0, 2.0):
        torch.autograd.backward(network(torch.tensor(x)))
    assert network.w.grad.item() == (3.0 if own else 4.0)  # 4: the second was added to itself


@pytest.mark.parametrize(
    ("mode", "parts", "owned"), [("reduce-overhead", 2, 1), ("default", 2, 0), ("max-autotune", 1, 0)]
)
def test_gradients_have_memory_of_their_own_where_graphs_are_static(mode, parts, owned, monkeypatch):
    profiler, calls = StepProfiler(task()), []
    ours = replace(profiler.task, runtime=replace(profiler.task.runtime, compile=mode))
    profiler.state.progress.micro_batch = 8 // parts
    monkeypatch.setattr(step, "own_gradients", calls.append)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    step.accumulate_gradients(ours, profiler.state, profiler._learner, profiler._model)
    assert len(calls) == owned


def test_auto_measures_the_network_that_is_trained(digits_npz, tmp_path, monkeypatch):
    measured = []

    def chosen(task, state, learner):
        measured.append(learner.backbone)
        return choose_micro_batch(task, state, learner)

    class Wrapped(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, *arguments, **named):
            return self.network(*arguments, **named)

    monkeypatch.setattr(Runtime, "wrap", lambda runtime, network, graphs: Wrapped(network))
    monkeypatch.setattr(loop, "choose_micro_batch", chosen)
    train(digits_npz, tmp_path, "stages.0.micro_batch=auto")
    assert len(measured) == 2
    assert measured[0] is measured[1]  # what is compiled stays compiled
    assert type(measured[0]) is Wrapped


# --- determinism and float32 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["true", "false"])
def test_deterministic_kernels_are_asked_for_while_training(wanted, digits_npz, tmp_path, monkeypatch):
    seen, training_step = set(), loop.training_step
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def watched(*arguments):
        seen.add((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic))
        return training_step(*arguments)

    monkeypatch.setattr(loop, "training_step", watched)
    train(digits_npz, tmp_path, f"train.deterministic={wanted}")
    assert seen == {(wanted == "true",) * 2}
    assert not torch.are_deterministic_algorithms_enabled()
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == (wanted == "true")
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_an_operation_without_a_deterministic_kernel_is_one_line():
    with pytest.raises(InputError) as caught, devices.deterministic(True):
        raise RuntimeError("kthvalue CUDA does not have a deterministic implementation, but you set ...")
    assert caught.value.name == "train.deterministic"
    with pytest.raises(RuntimeError, match="mat1"), devices.deterministic(True):
        raise RuntimeError("mat1 and mat2")


def test_what_is_measured_is_not_tf32():
    assert torch.backends.cudnn.allow_tf32  # as torch begins
    seen = []

    class Batches:
        def batches(self, *_):
            seen.append(torch.backends.cudnn.allow_tf32)
            return ()

    with pytest.raises((RuntimeError, ValueError), match="non-empty"):
        sample.make_images(Batches(), None, range(1), 1)
    with pytest.raises(AttributeError):
        HeldOut(*torch.zeros(3, 1), None, torch.ones(1, 1), ()).error(None, Recorder(seen))
    assert seen == [False, False]
    assert torch.backends.cudnn.allow_tf32


class Recorder:
    """In place of a runtime."""

    def __init__(self, seen: list[bool]) -> None:
        self.seen = seen

    def rank_indices(self, num: int) -> range:
        self.seen.append(torch.backends.cudnn.allow_tf32)
        return range(num)
