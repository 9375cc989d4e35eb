"""What steps cost and fit; memory that runs out; activation checkpointing; compiled networks."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import train

from maskdm.cli.main import main
from maskdm.config.resolve import resolve
from maskdm.config.schema import EvalConfig
from maskdm.errors import InputError
from maskdm.models.weights import load
from maskdm.profiling.bench import BenchRow, bench_as_json, bench_masks, format_bench, matrix_peak, measure_masks
from maskdm.profiling.forecast import (
    StageForecast,
    estimate_watts,
    forecast_stages,
    format_forecasts,
    format_hours,
    measuring_hours,
)
from maskdm.runtime import memory
from maskdm.sampling.sample import STEPS
from maskdm.training import stages, step, step_profiler
from maskdm.training.prepare import synthetic_task
from maskdm.training.progress import Progress
from maskdm.training.step_profiler import MemoryEstimate, StepProfiler, choose_micro_batch, equal_parts

SMALL = ("data.image_size=16", "model.width=16", "model.depth=3", "model.heads=2", "stages.0.batch_size=8")
SHORTAGE = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def task(*words: str):
    return synthetic_task(resolve(overrides=(*SMALL, "stages.0.mask.block=1", "train.mixed_precision=no", *words)))


def gradients(profiler: StepProfiler) -> list[torch.Tensor]:
    step.accumulate_gradients(profiler.task, profiler.state, profiler._learner, profiler._model)
    return [p.grad.clone() for p in profiler.state.model.parameters()]


# --- memory ----------------------------------------------------------------------------------------------------------


def test_parts_are_equal():
    assert [equal_parts(32, most) for most in (1, 3, 5, 16, 31, 32, 500)] == [1, 3, 5, 16, 16, 32, 32]
    assert all(
        equal_parts(100, most) <= most and math.ceil(100 / equal_parts(100, most)) == math.ceil(100 / most)
        for most in range(1, 101)
    )


def test_what_fits():
    estimate = MemoryEstimate(fixed=100, per_image=10.0, free=1000)
    assert estimate.largest == int((step_profiler.USABLE * 1000 - 100) / 10)
    assert estimate.of(5) == 150
    assert replace(estimate, free=100).largest == 0


@pytest.mark.skipif(memory.peak_bytes(torch.device("cpu"), lambda: None)[1] is None, reason="the system does not tell")
def test_peak_sees_what_was_freed_again():
    cpu, size = torch.device("cpu"), 400 * 2**20
    _, before = memory.peak_bytes(cpu, lambda: None)
    _, during = memory.peak_bytes(cpu, lambda: torch.ones(size, dtype=torch.uint8).max())
    _, after = memory.peak_bytes(cpu, lambda: None)
    assert 0.9 * size < during - before < 1.2 * size
    assert after - before < 0.5 * size
    assert memory.available_bytes(cpu) > 0
    assert 0 < memory.bytes_in_use(cpu) <= during


def test_memory_is_estimated_and_leaves_the_weights_alone():
    profiler = StepProfiler(task("stages.0.batch_size=64", "data.image_size=64"))
    before = [p.clone() for p in profiler.state.model.parameters()]
    estimate = profiler.memory()
    assert estimate is not None
    assert estimate.fixed > 0
    # At least what the blocks keep for the backward pass: tokens times width, several times, in float32.
    assert estimate.per_image > 3 * 64 * 16 * 4
    assert all(
        torch.equal(a, b) and b.grad is None for a, b in zip(before, profiler.state.model.parameters(), strict=True)
    )


def test_sizes_are_of_images_that_are_there():
    assert [step_profiler.powers_of(2, share) for share in (1, 3, 8)] == [[1], [1, 2], [1, 2, 4, 8]]
    assert max(step_profiler.powers_of(2, 10_000)) == 64
    assert step_profiler.powers_of(4, 40) == [1, 4, 16]


@pytest.mark.parametrize("share", [1, 3, 5])
def test_the_slope_is_that_of_the_images_computed(share, monkeypatch):
    """A machine on which every image takes 1,000 bytes and everything else 5,000."""
    profiler = StepProfiler(task(f"stages.0.batch_size={share}"))
    seen: list[int] = []
    learn = step_profiler.forward_backward

    def counted(task, state, learner, part):
        seen.append(len(part))
        return learn(task, state, learner, part)

    monkeypatch.setattr(step_profiler, "forward_backward", counted)
    monkeypatch.setattr(memory, "peak_bytes", lambda device, work: (work(), 5000 + 1000 * seen[-1]))
    estimate = profiler.memory()
    assert estimate is not None
    assert max(seen) <= share
    moments = 2 * sum(4 * p.numel() for p in profiler.state.model.parameters())
    if share > 1:
        assert (estimate.per_image, estimate.fixed) == (1000, 5000 + moments)
    else:  # all that is known is what one takes
        assert (estimate.per_image, estimate.fixed) == (6000, moments)


@pytest.mark.parametrize(("free", "wanted"), [(100, 2), (150, 4), (10_000, 8)])
def test_auto_takes_what_fits(monkeypatch, free, wanted):
    monkeypatch.setattr(
        step_profiler, "estimate_memory", lambda *_: MemoryEstimate(fixed=40, per_image=20.0, free=free)
    )
    profiler = StepProfiler(task("stages.0.micro_batch=auto"))
    assert choose_micro_batch(profiler.task, profiler.state, profiler._learner) == wanted


def test_auto_says_when_nothing_fits(monkeypatch):
    monkeypatch.setattr(
        step_profiler, "estimate_memory", lambda *_: MemoryEstimate(fixed=400, per_image=20.0, free=100)
    )
    profiler = StepProfiler(task("stages.0.micro_batch=auto"))
    with pytest.raises(InputError) as caught:
        choose_micro_batch(profiler.task, profiler.state, profiler._learner)
    assert (caught.value.name, caught.value.got) == ("stages.0.micro_batch", "auto")
    assert "420 bytes" in caught.value.problem


def test_a_number_is_taken_as_it_is():
    for words, wanted in ((["stages.0.micro_batch=3"], 3), ([], None)):
        profiler = StepProfiler(task(*words))
        assert choose_micro_batch(profiler.task, profiler.state, profiler._learner) == wanted


def short_of_memory(monkeypatch, most: int) -> list[int]:
    """No more than `most` images fit; the sizes that were tried."""
    tried, learn = [], step.forward_backward

    def limited(task, state, learner, part):
        tried.append(len(part))
        if len(part) > most:
            raise SHORTAGE
        return learn(task, state, learner, part)

    monkeypatch.setattr(step, "forward_backward", limited)
    return tried


def test_a_shortage_halves_the_micro_batch_and_changes_nothing_else(digits_npz, tmp_path, monkeypatch):
    whole = train(digits_npz, tmp_path / "whole")
    tried = short_of_memory(monkeypatch, 4)
    halved = train(digits_npz, tmp_path / "halved")
    assert tried[:4] == [8, 4, 4, 4]
    assert tried.count(8) == 2  # once a stage
    a, b = (dict(load(run).backbone.named_parameters()) for run in (whole, halved))
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)
    saved = json.loads((halved / "checkpoints" / "latest" / "state.json").read_text())
    assert saved["progress"]["micro_batch"] == 4


def test_it_says_so(digits_npz, tmp_path, monkeypatch, tiny, capsys):
    short_of_memory(monkeypatch, 4)
    assert main(["train", "--data", str(digits_npz), "--output-dir", str(tmp_path), *tiny]) == 0
    assert capsys.readouterr().err.count("warning: out of memory; from here on micro-batches of 4 images") == 2


def test_a_single_image_too_many_is_one_line(digits_npz, tmp_path, monkeypatch, tiny, capsys):
    short_of_memory(monkeypatch, 0)
    assert main(["train", "--data", str(digits_npz), "--output-dir", str(tmp_path), *tiny]) == 1
    assert "error: out of memory; try" in capsys.readouterr().err


def test_other_faults_are_not_taken_for_a_shortage(monkeypatch):
    profiler = StepProfiler(task())

    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(step, "forward_backward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        profiler.step()


# --- the network, called otherwise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["uvit", "jit", "unet"])
def test_activation_checkpointing_gives_the_same_gradients(backbone):
    words = ["model.backbone=" + backbone, *(["stages.0.mask.kind=crop"] if backbone == "unet" else [])]
    plain, saving = (StepProfiler(task(*words, f"train.checkpoint_activations={on}")) for on in ("false", "true"))
    assert all(torch.equal(a, b) for a, b in zip(gradients(plain), gradients(saving), strict=True))
    assert plain.state.model.state_dict().keys() == saving.state.model.state_dict().keys()
    assert all("forward" not in vars(module) for module in saving.state.ema.modules())


def test_activation_checkpointing_keeps_less():
    def kept(on: str) -> int:
        profiler = StepProfiler(task(f"train.checkpoint_activations={on}", "model.depth=7"))
        held: dict[int, int] = {}

        def pack(tensor):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            part = step.draw_micro_batches(profiler.task, profiler._learner, profiler.state.progress)[0]
            step.denoising_loss(profiler._learner, part.x_0, part.t, part.eps, mask=part.mask)
        weights = sum(p.untyped_storage().nbytes() for p in profiler.state.model.parameters())
        return sum(held.values()) - weights

    assert kept("true") < 0.5 * kept("false")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
def test_a_compiled_network_trains_the_same(digits_npz, tmp_path):
    runs = [train(digits_npz, tmp_path / mode, f"train.compile={mode}") for mode in ("no", "default")]
    a, b = (dict(load(run).backbone.named_parameters()) for run in runs)
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


# --- profiling -------------------------------------------------------------------------------------------------------


def test_a_profiled_step_is_a_real_one():
    profiler = StepProfiler(task())
    before = [p.clone() for p in profiler.state.model.parameters()]
    assert profiler.step() > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, profiler.state.model.parameters(), strict=True))
    assert profiler.state.progress.stage_step == 1
    assert len(profiler.steps(0.0, least=3)) == 3
    assert len(profiler.steps(60.0, least=1, most=4)) == 4


def test_bench_rows():
    ours = task("stages.0.mask.kind=patch")
    masks = bench_masks(ours.config.stages[0].mask, [0.0, 0.5, 0.9], ours)
    assert [m.num_visible for m in masks] == [16, 8, 2]
    rows, peak = measure_masks(ours, masks, rounds=1)
    assert [row.tokens for row in rows] == [8 * 16, 8 * 8, 8 * 2]
    assert [row.mask_ratio for row in rows] == [0, 0.5, 0.875]
    assert rows[0].over_share == 1.0
    assert all(0 < row.of_peak < 1.5 and 0 <= row.waiting <= 1 for row in rows)
    assert rows[0].flops > rows[1].flops > rows[2].flops
    assert rows[1].over_share == pytest.approx((rows[1].seconds / rows[0].seconds) / (rows[1].flops / rows[0].flops))
    assert peak > 1e8


def test_a_ratio_that_the_grid_cannot_give():
    ours = task("stages.0.mask.kind=patch")
    with pytest.raises(InputError) as caught:
        bench_masks(ours.config.stages[0].mask, [0.0, 1.5], ours)
    assert (caught.value.name, caught.value.got) == ("ratios", 1.5)


def test_the_table_of_a_bench():
    row = BenchRow("none", 0.0, 8, 128, 0.5, 2e9, 0.4, 0.01, None, 1.0)
    masked = replace(row, mask_ratio=0.75, tokens=32, memory=2**31)
    first, header, *lines = format_bench([row, masked], 1e10)
    assert first == "matrix product 10 GFLOP/s"
    assert header.split()[:2] == ["masked", "patches"]
    assert [line.split()[:2] for line in lines] == [["0.0%", "16"], ["75.0%", "4"]]
    assert "unknown" in lines[0]
    assert "2.00 GiB" in lines[1]
    assert bench_as_json([row], 1e10)["matrix_flops_per_second"] == 1e10


def test_bench_at_the_command(tmp_path, capsys):
    output = tmp_path / "bench.json"
    words = [*SMALL, "stages.0.mask.block=1", "--ratios", "0,0.75", "--rounds", "1", "-o", str(output)]
    assert main(["bench", *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("matrix product")
    assert [line.split()[0] for line in said[2:]] == ["0.0%", "75.0%"]
    found = json.loads(output.read_text())
    assert {key for row in found["rows"] for key in row} == set(BenchRow.__dataclass_fields__)


def test_stages_are_forecast_one_by_one():
    words = ["stages.0.mask={kind: patch, ratio: [0.9, 0.5]}", "stages.0.steps=100", "stages.1.minutes=30"]
    first, second = forecast_stages(task(*words, "stages.1.micro_batch=2"), seconds=0.01, watts=100)
    assert (first.steps, first.images) == (100, 800)
    assert first.hours == pytest.approx(100 * first.seconds / 3600)
    assert (second.hours, second.micro_batch, second.kilowatt_hours) == (0.5, 2, 0.05)
    assert second.steps == int(1800 / second.seconds)


def test_forecasts_as_lines():
    estimate = MemoryEstimate(fixed=2**30, per_image=2.0**20, free=2**32)
    stage = StageForecast("pretrain", "patch", 100, 800, 8, estimate, 0.5, 1.5, 2.0, 0.01)
    tight = replace(stage, memory=replace(estimate, free=2**30), hours=0.5)
    lines = format_forecasts([stage, tight, replace(stage, memory=None)])
    assert lines[0] == "stage 1, pretrain: patch"
    assert "100 steps of 0.5 s, 800 images at 16 a second" in lines[1]
    assert lines[3].endswith("up to 2,457 would fit")
    assert lines[7].endswith("too many; write stages.1.micro_batch=auto for 0 at most")
    assert "does not tell" in lines[11]
    assert lines[-1].startswith("in all 3 h 30 min of training, about 6 kWh")
    measured = format_forecasts([replace(stage, measuring={"held-out errors": 0.5, "sample grids": 1.0})])
    assert measured[-2] == "  on top of that, measuring: held-out errors 30 min, sample grids 1 h 0 min"
    assert measured[-1].endswith(", and 1 h 30 min of measuring (settings eval.*)")


def test_what_measuring_costs():
    config = EvalConfig(
        heldout_every=(400, 100), heldout_images=10, samples_every=500, samples=4, sample_steps=5, score_images=3
    )
    hours = measuring_hours(config, 0, 1000, 3600.0)
    assert hours == {"held-out errors": (1 + 3) * 2 * 10, "sample grids": 2 * 4 * 5}
    scored = config.model_copy(update={"scores": "pixels", "scores_every": 300, "samples": 0, "heldout_images": 0})
    assert measuring_hours(scored, 1, 1000, 3600.0) == {"scores": 4 * 3 * STEPS}


def test_plan_at_the_command(photos, tmp_path, tiny, capsys):
    before = sorted(tmp_path.rglob("*"))
    words = [
        *tiny,
        "stages.0.mask={kind: patch, ratio: [0.9, 0.5]}",
        "stages.1.minutes=30",
        "stages.1.micro_batch=auto",
    ]
    assert main(["plan", "--data", str(photos), "--seconds", "0.1", "--watts", "100", *words]) == 0
    said = capsys.readouterr().out
    assert "stage 1, pretrain: patch" in said
    assert "4 steps of" in said
    assert "30 min, about 0.05 kWh (estimated)" in said
    assert "on top of that, measuring: held-out errors " in said
    assert "sample grids" in said
    assert "images at once" in said
    assert said.splitlines()[-1].startswith("in all 30")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "--ratios", "0,1"], "--ratios: got "),
        (["bench", "--ratios", "x"], "--ratios: got 'x'"),
        (["bench", "--rounds", "0"], "--rounds: got 0, wanted at least 1"),
        (["bench", "--output", f"{__file__}/x.json"], "--output: "),
        (["bench", "--batch-size", "3"], "unknown option '--batch-size'"),
        (["plan"], "--data: missing"),
        (["plan", "--seconds", "0"], "--seconds: got 0, wanted more than 0"),
    ],
)
def test_refusals(words, message, capsys):
    assert main(words) == 2
    assert f"maskdm: error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hours", "words"),
    [(0.001, "4 s"), (0.5, "30 min"), (1.5, "1 h 30 min"), (30.0, "30 h 0 min"), (72.0, "3.0 days")],
)
def test_hours_in_words(hours, words):
    assert format_hours(hours) == words


def test_watts_are_a_guess_without_a_gpu():
    assert estimate_watts(torch.device("cpu")) > 0


def test_matrix_peak_is_a_rate():
    assert matrix_peak(task().runtime, seconds=0.01) > 1e8


def test_fresh_state_is_as_before_the_first_step():
    profiler = task()
    state = stages.init_state(profiler.config, profiler.spec, profiler.runtime, Progress())
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), state.ema.parameters(), strict=True))
