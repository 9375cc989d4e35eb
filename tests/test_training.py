"""The loop: what a run does from its first step to its last, whatever happens in between."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from maskdm.cli.main import main
from maskdm.config.resolve import resolve
from maskdm.config.schema import Config
from maskdm.data.manifest import read_manifest
from maskdm.diffusion.loss import fixed_noise, image_error
from maskdm.diffusion.pixels import to_model
from maskdm.errors import Interrupted, TrainingError
from maskdm.models.official import read_official
from maskdm.models.weights import load
from maskdm.runtime.console import Console
from maskdm.training import loop, step
from maskdm.training import start as start_module
from maskdm.training.events import AnyEvent, parse_event
from maskdm.training.monitor import Training
from maskdm.training.read_run import read_history
from maskdm.training.start import start_training
from maskdm.training.store import HostStore

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")

OFFICIAL = Path(__file__).parent / "data" / "official_uncond_linear.pt"
TINY = (
    "model.patch_size=2",
    "model.width=16",
    "model.depth=3",
    "model.heads=2",
    "eval.samples=4",
    "eval.sample_steps=2",
    "eval.heldout_images=8",
    "eval.heldout_every=40",
    "eval.samples_every=100",
    "log.every=2",
    "train.save_every=3",
    "train.mixed_precision=no",
    "data.salt=public",
)
STAGES = (
    "stages=[{name: pretrain, steps: 25, batch_size: 8, mask: {kind: patch, ratio: 0.75}, warmup_steps: 5},"
    " {name: finetune, images: 120, batch_size: 8, lr_schedule: cosine}]"
)
BY_NOISE = "{kind: patch, by_noise: [0.75, 0.5, 0]}"  # 3, 2 and 3 images of a batch of 8
MIXTURE = "{mixture: [{kind: crop, ratio: 0.5}, {kind: route, ratio: 0.5, share: 2}, {kind: none}]}"
UNEVEN = (
    f"stages=[{{name: pretrain, steps: 12, batch_size: 8, mask: {BY_NOISE}}},"
    f" {{name: finetune, steps: 6, batch_size: 10, micro_batch: 2, mask: {MIXTURE}}}]"
)


def settings(data: Path, *more: str, stages: str = STAGES) -> Config:
    return resolve(overrides=[f"data.path={data}", *TINY, stages, *more])


def run(config: Config, output_dir: Path, resume: str | None = None, *, quiet: bool = True) -> Path:
    return start_training(config, output_dir=output_dir, name="t", resume=resume, console=Console(quiet=quiet))


def tensors(run_folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{which}/{name}": t
        for which in ("ema", "raw")
        for name, t in load_file(run_folder / "weights" / f"{which}.safetensors").items()
    }


def assert_same_weights(a: Path, b: Path) -> None:
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, different


def recorded(run_folder: Path) -> list[AnyEvent]:
    """All events, as they were written."""
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(parse_event, lines) if event is not None]


def timeless(run_folder: Path) -> list[dict[str, object]]:
    """What was recorded, without times."""
    times = {"seconds", "images_per_second"}
    return [{k: v for k, v in event if k not in times} for event in recorded(run_folder)]


def train_in_child(data: Path, output_dir: Path, stages: str = STAGES) -> None:
    torch.set_num_threads(1)
    run(settings(data, stages=stages), output_dir)


@pytest.fixture(scope="module")
def forks():
    """Processes that start with everything imported, so that a kill lands in training and not in an import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maskdm.training.start"])
    return context


@pytest.mark.parametrize("wanted", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_run_ends_with_the_same_weights(digits_npz, tmp_path, forks, wanted):
    child = forks.Process(target=train_in_child, args=(digits_npz, tmp_path / "whole"))
    began = time.monotonic()
    child.start()
    child.join()
    assert child.exitcode == 0
    length = time.monotonic() - began

    moments, kills, ends, finished = random.Random(0), 0, 0, False
    while not finished:
        child = forks.Process(target=train_in_child, args=(digits_npz, tmp_path / "killed"))
        child.start()
        # Until all kills have landed a child lives for a tenth to three tenths of a whole run: now before, now within,
        # now after a save.
        child.join(timeout=None if kills >= wanted else length * moments.uniform(0.1, 0.3))
        finished = child.exitcode == 0
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            kills += 1
        if finished and kills < wanted:  # it got through early; kill another run of the same settings
            ends += 1
            done = max((tmp_path / "killed").iterdir()).rename(tmp_path / f"done-{ends}")
            assert_same_weights(tmp_path / "whole" / "00000-t", done)
            finished = False
    whole = tmp_path / "whole" / "00000-t"
    for killed in (tmp_path / "killed").iterdir():  # several where a kill met a run that had just ended
        assert_same_weights(whole, killed)
        assert timeless(whole) == timeless(killed)
        assert not list(killed.glob("checkpoints/.step-*"))


def test_ctrl_c_saves_and_the_same_command_resumes(digits_npz, tmp_path, monkeypatch, capsys):
    whole = run(settings(digits_npz), tmp_path / "whole")
    step, before = loop.training_step, signal.getsignal(signal.SIGINT)

    def interrupted_step(training, state, denoiser, model):
        if state.progress.step == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return step(training, state, denoiser, model)

    command = ["train", "--data", str(digits_npz), "--output-dir", str(tmp_path / "cut"), "--name", "t", *TINY, STAGES]
    monkeypatch.setattr(loop, "training_step", interrupted_step)
    assert main(command) == 130
    said = capsys.readouterr().err
    assert "interrupted: saved at step 11; to resume, run the same command again" in said
    assert "Traceback" not in said
    assert recorded(tmp_path / "cut" / "00000-t")[-1].reason == "interrupted"
    monkeypatch.setattr(loop, "training_step", step)
    assert main(command) == 0
    assert_same_weights(whole, tmp_path / "cut" / "00000-t")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_termination_signal_is_143(digits_npz, tmp_path, monkeypatch):
    step = loop.training_step
    monkeypatch.setattr(
        loop,
        "training_step",
        lambda *a: (os.kill(os.getpid(), signal.SIGTERM), step(*a))[1],  # the scheduler's way
    )
    with pytest.raises(Interrupted) as caught:
        run(settings(digits_npz), tmp_path)
    assert caught.value.code == 143


def test_resume_by_latest_and_by_path_and_never(digits_npz, tmp_path, monkeypatch):
    step = loop.training_step

    def stop_at_4(training, state, denoiser, model):
        if state.progress.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(training, state, denoiser, model)

    monkeypatch.setattr(loop, "training_step", stop_at_4)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(settings(digits_npz), tmp_path, resume="never")
    monkeypatch.setattr(loop, "training_step", step)
    assert main(["train", "--resume", "latest", "--output-dir", str(tmp_path)]) == 0
    assert main(["train", "--resume", str(tmp_path / "00000-t" / "checkpoints" / "latest")]) == 0
    assert_same_weights(tmp_path / "00000-t", tmp_path / "00001-t")


def test_a_finished_run_is_not_touched_again(digits_npz, tmp_path):
    first = run(settings(digits_npz), tmp_path)
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file() and path.name != "log.txt"}
    assert run(settings(digits_npz), tmp_path) == first
    assert {path: path.read_bytes() for path in before} == before
    assert [path.name for path in tmp_path.iterdir()] == ["00000-t"]


def test_images_that_changed_stop_a_resumed_run(digits_npz, tmp_path, monkeypatch):
    step = loop.training_step
    monkeypatch.setattr(loop, "training_step", lambda *a: (os.kill(os.getpid(), signal.SIGINT), step(*a))[1])
    with pytest.raises(Interrupted):
        run(settings(digits_npz), tmp_path)
    with np.load(digits_npz) as archive:
        arrays = dict(archive)
    arrays["images"][0] ^= 1
    np.savez(digits_npz, **arrays)
    with pytest.raises(ValueError, match="1 changed"):
        run(settings(digits_npz), tmp_path)


@pytest.mark.parametrize("which", ["ema", "raw"])
def test_stage_two_starts_from_stage_one(digits_npz, tmp_path, which, monkeypatch):
    seen = {}
    start_stage = loop.start_stage

    def spy(training, state, denoiser, learner):
        result = start_stage(training, state, denoiser, learner)
        if state.progress.stage == 1:
            seen.update({k: v.clone() for k, v in state.model.state_dict().items()})
            seen["moments"] = len(state.optimizer.state)
            assert all(torch.equal(v, seen[k]) for k, v in state.ema.state_dict().items())
        return result

    monkeypatch.setattr(loop, "start_stage", spy)
    folder = run(settings(digits_npz, f"stages.1.weights={which}"), tmp_path)
    handed = load_file(folder / "weights" / f"pretrain-{which}.safetensors")
    assert seen.pop("moments") == 0
    assert handed.keys() == seen.keys()
    assert all(torch.equal(handed[k], seen[k]) for k in handed)
    heldout = read_history(folder).heldout
    end_of_first = [e for e in heldout if e.stage == "pretrain"][-1]
    start_of_second = next(e for e in heldout if e.stage == "finetune")
    assert start_of_second.step == end_of_first.step
    assert start_of_second.error_raw == getattr(end_of_first, f"error_{which}")


def test_a_later_run_starts_from_an_earlier_one(digits_npz, tmp_path):
    first = run(settings(digits_npz), tmp_path)
    second = run(settings(digits_npz, f"stages.0.init_from={first}", "stages.0.steps=1", "stages.0.lr=1e-30"), tmp_path)
    early = load_file(second / "weights" / "pretrain-raw.safetensors")
    late = load_file(first / "weights" / "ema.safetensors")
    assert all(torch.allclose(early[k], late[k], atol=1e-12) for k in late)


def test_init_from_another_image_size_resizes_positions_and_says_so(photos, tmp_path, capsys):
    first = run(settings(photos, "data.image_size=16"), tmp_path)
    arguments = ["--data", str(photos), "--output-dir", str(tmp_path), *TINY, STAGES]
    more = ["data.image_size=[16,24]", f"stages.0.init_from={first}"]
    assert main(["train", *arguments, *more]) == 0
    line, _ = (line for line in capsys.readouterr().err.splitlines() if "starts from" in line)
    assert f"starts from ema weights of {first}; {first / 'weights' / 'ema.safetensors'}; " in line
    assert "; fitted: position.weight; images (16, 24) instead of (16, 16)" in line


def test_init_from_a_model_of_other_images_says_what_became_of_its_weights(photos_run, digits_npz, tmp_path, capsys):
    words = ["--data", str(digits_npz), "--output-dir", str(tmp_path), *TINY, STAGES]
    assert main(["train", *words, f"stages.0.init_from={photos_run}"]) == 0
    line, _ = (line for line in capsys.readouterr().err.splitlines() if "starts from" in line)
    for part in ("(8, 8) instead of (16, 16)", "channels 1 instead of 3", "0 classes known, 10 new, 2 dropped"):
        assert part in line


def test_init_from_an_official_checkpoint(photos, tmp_path, capsys):
    words = ["--data", str(photos), "--output-dir", str(tmp_path), *TINY, STAGES, "model.classes=none"]
    network = ["model.patch_size=4", "model.width=48", "model.depth=5", "model.heads=1", *official_details()]
    assert main(["train", *words, *network, f"stages.0.init_from={OFFICIAL}"]) == 0
    said = capsys.readouterr().err
    assert f"starts from ema weights of {OFFICIAL}; {OFFICIAL}; " in said
    for part in ("trained for another process (", "schedule linear -> cosine", "prediction eps -> x0"):
        assert part in said


def official_details() -> list[str]:
    model = read_official(OFFICIAL, heads=1).spec.model
    return [f"model.{key}={str(getattr(model, key)).lower()}" for key in ("mlp_ratio", "qkv_bias", "time_mlp")]


@pytest.mark.parametrize("stages", [STAGES, UNEVEN], ids=["one mask", "several"])
def test_micro_batches_change_nothing_but_rounding(stages, digits_npz, tmp_path):
    sizes = [("stages.0.micro_batch=null", "stages.1.micro_batch=null")]
    sizes += [("stages.0.micro_batch=3", "stages.1.micro_batch=2")]
    whole, parts = (run(settings(digits_npz, *s, stages=stages), tmp_path / s[0]) for s in sizes)
    left, right = tensors(whole), tensors(parts)
    assert max(float((left[k] - right[k]).abs().max()) for k in left) < 1e-4
    assert any(not torch.equal(left[k], right[k]) for k in left)  # so it was not ignored


def test_a_loss_that_is_not_finite_names_its_step_and_spares_what_was_saved(digits_npz, tmp_path, monkeypatch):
    step = loop.training_step

    def poisoned(training, state, denoiser, model):
        if state.progress.step == 7:  # the step after it is the eighth
            with torch.no_grad():
                next(state.model.parameters()).fill_(float("inf"))
        return step(training, state, denoiser, model)

    monkeypatch.setattr(loop, "training_step", poisoned)
    with pytest.raises(TrainingError, match="not finite at step 8 of stage pretrain") as caught:
        run(settings(digits_npz, "log.every=1000", "train.save_every=6"), tmp_path)
    folder = tmp_path / "00000-t"
    assert f"the last good state is {folder / 'checkpoints' / 'step-0000006'}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.isfinite(t).all() for t in tensors(folder).values())
    assert [p.name for p in sorted((folder / "checkpoints").glob("step-*"))] == ["step-0000006"]


def test_training_sees_members_only(digits_npz, tmp_path, monkeypatch):
    fetched = []
    fetch = HostStore._fetch

    def spy(store, rows):
        fetched.append(rows)
        return fetch(store, rows)

    monkeypatch.setattr(HostStore, "_fetch", spy)
    folder = run(settings(digits_npz), tmp_path)
    records = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    roles = [record["role"] for record in records]
    assert {roles[i] for rows in fetched for i in rows} == {"member"}
    assert roles.count("heldout") > 0
    assert all(
        record["stages"] == (["pretrain", "finetune"] if record["role"] == "member" else []) for record in records
    )


def test_steps_between_logs_do_not_wait_for_the_device(digits_npz, tmp_path, monkeypatch):
    """Reading a number off a tensor is what makes a host wait; on the CPU it is counted.

    Times are looked at on a CPU alone, see `maskdm.diffusion.process.check_times` and tests/test_meta_device.py.
    """
    reads = []
    monkeypatch.setattr("maskdm.diffusion.process.check_times", lambda *_: None)

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                reads.append(func)
            return func(*args, **(kwargs or {}))

    step, meter = loop.training_step, loop.Meter.add

    def counted(*arguments):
        with Counter():
            return step(*arguments)

    def counted_add(*arguments):
        with Counter():
            return meter(*arguments)

    monkeypatch.setattr(loop, "training_step", counted)
    monkeypatch.setattr(loop.Meter, "add", counted_add)
    run(settings(digits_npz), tmp_path)
    assert not reads


def test_a_stage_of_minutes_ends_by_wall_clock_time(digits_npz, tmp_path):
    folder = run(settings(digits_npz, "stages.0.minutes=0.01", "stages.1.minutes=0.005"), tmp_path)
    first, second = (event.seconds for event in read_history(folder).stage_ends)
    assert 0.6 <= first < 2  # it ends with the step in which its time runs out, and on a busy machine a step is long
    assert 0.3 <= second < 2


def test_keep_and_latest(digits_npz, tmp_path):
    folder = run(settings(digits_npz, "train.keep=3"), tmp_path)
    names = [p.name for p in sorted((folder / "checkpoints").glob("step-*"))]
    assert names == ["step-0000034", "step-0000037", "step-0000040"]
    assert (folder / "checkpoints" / "latest").resolve().name == "step-0000040"


def test_killed_while_an_old_checkpoint_was_removed_after_the_last_save(digits_npz, tmp_path):
    folder = run(settings(digits_npz), tmp_path)
    left = folder / "checkpoints" / ".step-0000001"
    left.mkdir()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))  # as if its end had not been recorded
    assert run(settings(digits_npz), tmp_path) == folder
    assert not left.exists()
    assert read_history(folder).finished


def test_fp16_and_bf16_train(digits_npz, tmp_path):
    for precision in ("fp16", "bf16"):
        folder = run(settings(digits_npz, f"train.mixed_precision={precision}"), tmp_path)
        assert all(t.dtype == torch.float32 for t in tensors(folder).values())
        losses = [event.loss for event in read_history(folder).train]
        assert np.isfinite(losses).all()


def test_training_learns(digits_npz, tmp_path):
    folder = run(settings(digits_npz, "stages.0.steps=120", "stages.0.lr=3e-3", "stages.0.mask.ratio=0.5"), tmp_path)
    heldout = [event.error_ema for event in read_history(folder).heldout]
    assert heldout[-1] < 0.8 * heldout[0]


# --- masks -----------------------------------------------------------------------------------------------------------


def test_a_run_records_how_much_it_masks(digits_npz, tmp_path):
    folder = run(settings(digits_npz, stages=UNEVEN), tmp_path, quiet=False)
    first, second = read_history(folder).stages
    assert first.patches == second.patches == 16
    assert first.mask_ratio == pytest.approx((0.75 + 0.5 + 0) / 3)
    assert second.mask_ratio == pytest.approx((0.5 + 2 * 0.5 + 0) / 4, abs=0.04)  # the crop is as near as it can be
    assert "noise quantiles 0.33 to 0.67" in first.mask
    assert "50% of a batch route: 8 of 16 patches through every block" in second.mask
    log = (folder / "log.txt").read_text()
    assert f"stage 1 of 2, pretrain: {first.mask}" in log
    assert f"stage 2 of 2, finetune: {second.mask}" in log


CHANGING = (
    "stages=[{name: a, steps: 12, batch_size: 8, mask: {kind: patch, ratio: [0.75, 0], schedule: linear, buckets: 4}},"
    " {name: b, steps: 6, batch_size: 8, mask: {kind: block, ratio: [0.75, 0.25], block: 2}}]"
)


def test_a_ratio_that_changes_follows_the_stage(digits_npz, tmp_path, monkeypatch):
    ratios = []
    draw = step.draw_batch

    def spy(data, groups, *arguments, **named):
        ratios.append(groups[0].masking.ratio)
        return draw(data, groups, *arguments, **named)

    monkeypatch.setattr(step, "draw_batch", spy)
    run(settings(digits_npz, stages=CHANGING), tmp_path)
    assert ratios == [0.75] * 3 + [0.5] * 3 + [0.25] * 3 + [0.0] * 3 + [0.75] * 3 + [0.25] * 3


MUON = (
    "stages=[{name: pretrain, steps: 12, batch_size: 8, optimizer: muon, lr_schedule: wsd, decay_share: 0.5,"
    " mask: {kind: patch, ratio: 0.75}, warmup_steps: 3},"
    " {name: finetune, images: 40, batch_size: 8, optimizer: muon, lr_schedule: cosine, lr_floor: 0.1}]"
)


def test_rates_follow_the_schedule_of_their_stage(digits_npz, tmp_path):
    words = ("stages.0.optimizer=adamw", "stages.1.optimizer=adamw", "log.every=1", "stages.0.lr=1", "stages.1.lr=0.5")
    history = read_history(run(settings(digits_npz, *words, stages=MUON), tmp_path))
    rates = {name: [e.lr for e in history.train if e.stage == name] for name in ("pretrain", "finetune")}
    falling = [1 - (i / 6) ** 0.5 for i in range(6)]
    assert rates["pretrain"] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, *falling])
    assert rates["finetune"] == pytest.approx([0.5 * (0.1 + 0.45 * (1 + np.cos(np.pi * i / 5))) for i in range(5)])


@needs_muon
@pytest.mark.parametrize(("precision", "at"), [("no", 7), ("no", 13), ("fp16", 7)])
def test_an_interrupted_run_resumes_with_what_muon_remembers(precision, at, digits_npz, tmp_path, monkeypatch):
    config = settings(digits_npz, f"train.mixed_precision={precision}", stages=MUON)
    whole = run(config, tmp_path / "whole")
    step = loop.training_step

    def interrupted_step(training, state, learner, model):
        if state.progress.step == at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(training, state, learner, model)

    monkeypatch.setattr(loop, "training_step", interrupted_step)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "cut")
    saved = load_file(tmp_path / "cut" / "00000-t" / "checkpoints" / "latest" / "optimizer.safetensors")
    assert "block_mid.mlp.up.weight/momentum_buffer" in saved
    assert "embed.weight/exp_avg_sq" in saved
    monkeypatch.setattr(loop, "training_step", step)
    assert_same_weights(whole, run(config, tmp_path / "cut"))


@needs_muon
def test_muon_learns(digits_npz, tmp_path):
    words = ("stages.0.steps=120", "stages.0.lr=3e-3", "stages.0.mask.ratio=0.5")
    losses = [event.loss for event in read_history(run(settings(digits_npz, *words, stages=MUON), tmp_path)).train]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_an_interrupted_run_resumes_with_the_mask_it_was_at(digits_npz, tmp_path, monkeypatch):
    whole = run(settings(digits_npz, stages=CHANGING), tmp_path / "whole")
    step = loop.training_step

    def interrupted_step(training, state, learner, model):
        if state.progress.step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return step(training, state, learner, model)

    monkeypatch.setattr(loop, "training_step", interrupted_step)
    with pytest.raises(Interrupted):
        run(settings(digits_npz, stages=CHANGING), tmp_path / "cut")
    monkeypatch.setattr(loop, "training_step", step)
    assert_same_weights(whole, run(settings(digits_npz, stages=CHANGING), tmp_path / "cut"))


# --- held-out error --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "process", [(), ("process.kind=flow", "process.prediction=velocity")], ids=["ddpm, x0", "flow, velocity"]
)
def test_held_out_error_is_that_of_the_image_on_noise_that_stays(process, digits_npz, tmp_path):
    folder = run(settings(digits_npz, "eval.heldout_images=100", *process), tmp_path)
    last = read_history(folder).heldout[-1]
    rows = read_manifest(folder).indices("heldout")
    assert last.n == len(rows)  # fewer than were asked for
    with np.load(digits_npz) as archive:
        x_0 = to_model(archive["images"][rows][..., None])
        label = torch.from_numpy(archive["labels"][rows])
    for which in ("ema", "raw"):
        denoiser = load(folder, weights=which)
        error = image_error(denoiser, x_0, *fixed_noise(denoiser, x_0.shape), label=label)
        assert float(error.mean()) == pytest.approx(getattr(last, f"error_{which}"), rel=1e-4)


# --- several processes -----------------------------------------------------------------------------------------------


def train_as_rank(rank: int, world: int, port: int, data: Path, output_dir: Path, stages: str) -> None:
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    run_stages = start_module.run_stages

    def kept(training: Training) -> None:
        """Every rank's weights in the end: only the first one's are saved."""
        torch.save(run_stages(training).model.state_dict(), output_dir.parent / f"rank-{rank}.pt")

    start_module.run_stages = kept  # of this process
    run(settings(data, stages=stages), output_dir)


def train_in_ranks(forks, world: int, data: Path, output_dir: Path, stages: str) -> list[dict[str, torch.Tensor]]:
    """Trains in several processes; gives back the raw weights of each."""
    start_ranks(forks, train_as_rank, world, data, output_dir, stages)
    return [torch.load(output_dir.parent / f"rank-{rank}.pt") for rank in range(world)]


def start_ranks(forks, target, world: int, *arguments) -> None:
    """Runs `target(rank, world, port, *arguments)` in several processes, which must all end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [forks.Process(target=target, args=(rank, world, port, *arguments)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
        rank.kill()  # where it waits for the others in vain
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * world


@pytest.mark.parametrize("stages", [STAGES, UNEVEN], ids=["one mask", "several"])
def test_two_processes_end_like_one(stages, digits_npz, tmp_path, forks):
    alone = forks.Process(target=train_in_child, args=(digits_npz, tmp_path / "one", stages))
    alone.start()
    alone.join()
    train_in_ranks(forks, 2, digits_npz, tmp_path / "two", stages)
    assert [p.name for p in (tmp_path / "two").iterdir()] == ["00000-t"]
    one, two = tensors(tmp_path / "one" / "00000-t"), tensors(tmp_path / "two" / "00000-t")
    difference = max(float((one[k] - two[k]).abs().max()) for k in one)
    print("largest difference", difference)
    assert difference < 1e-6


def train_sharded(rank: int, world: int, port: int, data: Path, output_dir: Path, words: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    steps = []
    step = loop.training_step

    def stop_at_20(training, state, learner, model):
        steps.append(sum(p.to_local().numel() for p in state.model.parameters()))
        if "stop" in words and state.progress.step == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(training, state, learner, model)

    loop.training_step = stop_at_20  # of this process
    settings_ = settings(data, "train.parallel=fsdp", *(word for word in words if word != "stop"))
    with suppress(Interrupted):
        run(settings_, output_dir)
    whole = sum(p.numel() for p in load(output_dir / "00000-t").backbone.parameters())
    assert max(steps) < 0.6 * whole  # this rank's part


def test_a_sharded_model_ends_like_a_whole_one_and_resumes_alone(digits_npz, tmp_path, forks):
    alone = forks.Process(target=train_in_child, args=(digits_npz, tmp_path / "one", STAGES))
    alone.start()
    alone.join()
    one = tensors(tmp_path / "one" / "00000-t")
    for name, words in {"through": (), "stopped": ("stop",)}.items():
        start_ranks(forks, train_sharded, 2, digits_npz, tmp_path / name, words)
        folder = tmp_path / name / "00000-t"
        if "stop" in words:
            assert not read_history(folder).finished
            run(settings(digits_npz, "train.parallel=fsdp"), tmp_path / name)  # at another world size
        two = tensors(folder)
        assert one.keys() == two.keys()
        assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-5
        grids = [sorted((tmp_path / which / "00000-t" / "samples").iterdir())[-1] for which in ("one", name)]
        a, b = (np.asarray(Image.open(grid), dtype=int) for grid in grids)
        assert abs(a - b).max() <= 1
        errors = [
            [event.error_ema for event in read_history(tmp_path / which / "00000-t").heldout] for which in ("one", name)
        ]
        assert errors[0] == pytest.approx(errors[1], rel=1e-4)


def test_wall_clock_time_is_the_same_for_all_processes(digits_npz, tmp_path, forks):
    stage = "{name: a, minutes: 0.02, batch_size: 8, lr_schedule: cosine, mask: {kind: patch, ratio: [0.75, 0.5, 0]}}"
    first, second = train_in_ranks(forks, 2, digits_npz, tmp_path / "two", f"stages=[{stage}]")
    assert all(torch.equal(first[name], second[name]) for name in first)  # the same rates and masks, step by step
