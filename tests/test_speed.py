"""Trials, plans, benches; memory that runs out; blocks that are computed again; compiled networks."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import train

from maskdm.cli.main import main
from maskdm.config.resolve import resolve
from maskdm.errors import InputError
from maskdm.models.weights import load
from maskdm.profiling import bench as benching
from maskdm.profiling import forecast as planning
from maskdm.profiling.bench import Row, bench, maskings
from maskdm.runtime import memory
from maskdm.training import stages, step
from maskdm.training import step_profiler as trial
from maskdm.training.checkpoint import Progress
from maskdm.training.prepare import synthetic
from maskdm.training.step_profiler import Need, Trial, choose_micro_batch, even

SMALL = ("data.image_size=16", "model.width=16", "model.depth=3", "model.heads=2", "stages.0.batch_size=8")
SHORTAGE = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def task(*words: str):
    return synthetic(resolve(overrides=(*SMALL, "stages.0.mask.block=1", "train.mixed_precision=no", *words)))


def gradients(made: Trial) -> list[torch.Tensor]:
    step.gradient(made.task, made.state, made._learner, made._model)
    return [p.grad.clone() for p in made.state.model.parameters()]


# --- memory ----------------------------------------------------------------------------------------------------------


def test_parts_are_even():
    assert [even(32, most) for most in (1, 3, 5, 16, 31, 32, 500)] == [1, 3, 5, 16, 16, 32, 32]
    assert all(
        even(100, most) <= most and math.ceil(100 / even(100, most)) == math.ceil(100 / most) for most in range(1, 101)
    )


def test_what_fits():
    need = Need(fixed=100, per_image=10.0, free=1000)
    assert need.largest == int((trial.USABLE * 1000 - 100) / 10)
    assert need.of(5) == 150
    assert replace(need, free=100).largest == 0


@pytest.mark.skipif(memory.peak(torch.device("cpu"), lambda: None)[1] is None, reason="the system does not tell")
def test_peak_sees_what_was_freed_again():
    cpu, size = torch.device("cpu"), 400 * 2**20
    _, before = memory.peak(cpu, lambda: None)
    _, during = memory.peak(cpu, lambda: torch.ones(size, dtype=torch.uint8).max())
    _, after = memory.peak(cpu, lambda: None)
    assert 0.9 * size < during - before < 1.2 * size
    assert after - before < 0.5 * size
    assert memory.available(cpu) > 0
    assert 0 < memory.in_use(cpu) <= during


def test_need_is_measured_and_leaves_the_weights_alone():
    made = Trial(task("stages.0.batch_size=64", "data.image_size=64"))
    before = [p.clone() for p in made.state.model.parameters()]
    need = made.need()
    assert need is not None
    assert need.fixed > 0
    # At least what the blocks keep for the way back: tokens times width, several times, in float32.
    assert need.per_image > 3 * 64 * 16 * 4
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, made.state.model.parameters(), strict=True))


def test_sizes_are_of_images_that_are_there():
    assert [trial.sizes(share) for share in (1, 3, 8)] == [[1], [1, 2], [1, 2, 4, 8]]
    assert max(trial.sizes(10_000)) == 64


@pytest.mark.parametrize("share", [1, 3, 5])
def test_the_slope_is_that_of_the_images_computed(share, monkeypatch):
    """A machine on which every image takes 1,000 bytes and everything else 5,000."""
    made = Trial(task(f"stages.0.batch_size={share}"))
    seen: list[int] = []
    learn = trial.learn

    def counted(task, state, learner, part):
        seen.append(len(part))
        return learn(task, state, learner, part)

    monkeypatch.setattr(trial, "learn", counted)
    monkeypatch.setattr(memory, "peak", lambda device, work: (work(), 5000 + 1000 * seen[-1]))
    need = made.need()
    assert need is not None
    assert max(seen) <= share
    moments = 2 * sum(4 * p.numel() for p in made.state.model.parameters())
    if share > 1:
        assert (need.per_image, need.fixed) == (1000, 5000 + moments)
    else:  # all that is known is what one takes
        assert (need.per_image, need.fixed) == (6000, moments)


@pytest.mark.parametrize(("free", "wanted"), [(100, 2), (150, 4), (10_000, 8)])
def test_auto_takes_what_fits(monkeypatch, free, wanted):
    monkeypatch.setattr(trial, "measure_need", lambda *_: Need(fixed=40, per_image=20.0, free=free))
    made = Trial(task("stages.0.micro_batch=auto"))
    assert choose_micro_batch(made.task, made.state, made._learner) == wanted


def test_auto_says_when_nothing_fits(monkeypatch):
    monkeypatch.setattr(trial, "measure_need", lambda *_: Need(fixed=400, per_image=20.0, free=100))
    made = Trial(task("stages.0.micro_batch=auto"))
    with pytest.raises(InputError, match=r"^stages\.0\.micro_batch: auto, but not even one image fits: 420 bytes"):
        choose_micro_batch(made.task, made.state, made._learner)


def test_a_number_is_taken_as_it_is():
    for words, wanted in ((["stages.0.micro_batch=3"], 3), ([], None)):
        made = Trial(task(*words))
        assert choose_micro_batch(made.task, made.state, made._learner) == wanted


def short_of_memory(monkeypatch, most: int) -> list[int]:
    """No more than `most` images fit; the sizes that were tried."""
    tried, learn = [], step.learn

    def limited(task, state, learner, part):
        tried.append(len(part))
        if len(part) > most:
            raise SHORTAGE
        return learn(task, state, learner, part)

    monkeypatch.setattr(step, "learn", limited)
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
    assert capsys.readouterr().err.count("warning: out of memory; from here on 4 images at once") == 2


def test_a_single_image_too_many_is_one_line(digits_npz, tmp_path, monkeypatch, tiny, capsys):
    short_of_memory(monkeypatch, 0)
    assert main(["train", "--data", str(digits_npz), "--output-dir", str(tmp_path), *tiny]) == 1
    assert "error: out of memory; try" in capsys.readouterr().err


def test_other_faults_are_not_taken_for_a_shortage(monkeypatch):
    made = Trial(task())

    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(step, "learn", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        made.step()


# --- the network, called otherwise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["uvit", "jit", "unet"])
def test_blocks_computed_again_give_the_same_gradients(backbone):
    words = ["model.backbone=" + backbone, *(["stages.0.mask.kind=crop"] if backbone == "unet" else [])]
    plain, again = (Trial(task(*words, f"train.checkpoint_activations={on}")) for on in ("false", "true"))
    assert all(torch.equal(a, b) for a, b in zip(gradients(plain), gradients(again), strict=True))
    assert plain.state.model.state_dict().keys() == again.state.model.state_dict().keys()
    assert all("forward" not in vars(module) for module in again.state.ema.modules())


def test_blocks_computed_again_keep_less():
    def kept(on: str) -> int:
        made = Trial(task(f"train.checkpoint_activations={on}", "model.depth=7"))
        held: dict[int, int] = {}

        def pack(tensor):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            part = step.draw_parts(made.task, made._learner, made.state.progress)[0]
            step.denoising_loss(made._learner, part.x_0, part.t, part.eps, visible=part.visible)
        weights = sum(p.untyped_storage().nbytes() for p in made.state.model.parameters())
        return sum(held.values()) - weights

    assert kept("true") < 0.5 * kept("false")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
def test_a_compiled_network_trains_the_same(digits_npz, tmp_path):
    runs = [train(digits_npz, tmp_path / mode, f"train.compile={mode}") for mode in ("no", "default")]
    a, b = (dict(load(run).backbone.named_parameters()) for run in runs)
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


# --- trials, benches, plans ------------------------------------------------------------------------------------------


def test_a_trial_is_a_real_step():
    made = Trial(task())
    before = [p.clone() for p in made.state.model.parameters()]
    assert made.step() > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, made.state.model.parameters(), strict=True))
    assert made.state.progress.stage_step == 1
    assert len(made.steps(0.0, least=3)) == 3
    assert len(made.steps(60.0, least=1, most=4)) == 4


def test_bench_rows():
    made = task("stages.0.mask.kind=patch")
    masks = maskings(made.config.stages[0].mask, [0.0, 0.5, 0.9], made)
    assert [m.visible for m in masks] == [16, 8, 2]
    rows, peak = bench(made, masks, rounds=1)
    assert [row.tokens for row in rows] == [8 * 16, 8 * 8, 8 * 2]
    assert rows[0].over_share == 1.0
    assert all(0 < row.of_peak < 1.5 and 0 <= row.waiting <= 1 for row in rows)
    assert rows[0].flops > rows[1].flops > rows[2].flops
    assert rows[1].over_share == pytest.approx((rows[1].seconds / rows[0].seconds) / (rows[1].flops / rows[0].flops))
    assert peak > 1e8


def test_bench_at_the_command(tmp_path, capsys):
    output = tmp_path / "bench.json"
    assert (
        main(["bench", *SMALL, "stages.0.mask.block=1", "--ratios", "0,0.75", "--rounds", "1", "-o", str(output)]) == 0
    )
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("matrix product")
    assert [line.split()[0] for line in said[2:]] == ["0.0%", "75.0%"]
    found = json.loads(output.read_text())
    assert {key for row in found["rows"] for key in row} == set(Row.__dataclass_fields__)


def test_plan_at_the_command(photos, tmp_path, tiny, capsys):
    before = sorted(tmp_path.rglob("*"))
    words = [
        *tiny,
        "stages.0.mask={kind: patch, ratio: [0.9, 0.5]}",
        "stages.1.minutes=30",
        "stages.1.micro_batch=auto",
    ]
    assert main(["plan", "--data", str(photos), "--seconds", "0.1", "--watts", "100", *tiny, *words]) == 0
    said = capsys.readouterr().out
    assert "stage 1, pretrain: patch, over the stage 91%, 50% hidden" in said or "stage 1, pretrain: patch" in said
    assert "4 steps of" in said
    assert "30 min, about 0.05 kWh (a guess)" in said
    assert "images at once" in said
    assert said.splitlines()[-1].startswith("in all 30")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "--ratios", "0,1"], "--ratios: got '0,1', wanted shares from 0 to below 1 such as 0,0.5,0.9"),
        (["bench", "--ratios", "x"], "--ratios: got 'x', wanted shares"),
        (["bench", "--rounds", "0"], "--rounds: got 0, wanted at least 1"),
        (["bench", "--output", f"{__file__}/x.json"], "--output: "),
        (
            ["bench", "--batch-size", "3"],
            "unknown option '--batch-size'; settings are written stages.0.batch_size=VALUE",
        ),
        (["plan"], "--data: missing; give a folder of pictures"),
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
    assert planning.hours(hours) == words


def test_matrix_peak_is_a_rate():
    assert benching.matrix_peak(task().runtime, seconds=0.01) > 1e8


def test_fresh_state_is_as_before_the_first_step():
    made = task()
    state = stages.fresh_state(made.config, made.spec, made.runtime, Progress())
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), state.ema.parameters(), strict=True))
