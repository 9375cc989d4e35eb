"""What `maskdm train` says and refuses before the first step, and how long it says it will take."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maskdm.cli.main import main
from maskdm.config.resolve import resolve
from maskdm.diffusion.mask_schedule import constant
from maskdm.evaluation.heldout import HeldOut
from maskdm.models.spec import ModelSpec
from maskdm.training import time_left
from maskdm.training.progress import Progress
from maskdm.training.stage_masks import mask_schedules
from maskdm.training.time_left import TimeLeft


def refused(capsys: pytest.CaptureFixture[str], data: Path, *words: str) -> str:
    """The same line by a dry run as by the run itself, and nothing is made."""
    lines = []
    for more in (["--dry-run"], []):
        out = data.parent / "runs"
        assert main(["train", "--data", str(data), "--output-dir", str(out), *words, *more]) == 2
        lines.append(capsys.readouterr().err.splitlines()[-1])
        assert not out.exists()
    assert lines[0] == lines[1]
    return lines[0]


@pytest.mark.parametrize(
    ("word", "start"),
    [
        ("eval.scores=red", "eval.scores: got 'red'"),
        ("eval.scores=dino", "eval.scores: got 'dino'"),
        ("eval.scores=gone.pt", "eval.scores: no such file: gone.pt"),
        ("eval.scores=nowhere:function", "eval.scores: "),
        ("eval.scores=pixels", "eval.scores: got 1, wanted at least 2 held-out images"),
        ("data.store=device", "data.store: the model is trained on cpu"),
        ("train.device=nowhere", "train.device: "),
        ("stages.1.init_from=gone", "gone: no such run or file"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(word, start, photos, tiny, capsys):
    line = refused(capsys, photos, *tiny, word, "train.device=cpu" if "device=" not in word else word)
    assert line.startswith(f"maskdm: error: {start}")


def test_features_have_a_nearest_name(photos, tiny, capsys):
    assert refused(capsys, photos, *tiny, "eval.scores=dino").endswith("; did you mean dinov2?")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "too few images for an audit of this run, which needs 10 of each kind: "),
        (["data.heldout=0"], "no image is held out, so that there will be no held-out error and no audit"),
        (["data.heldout=0.34", "data.calibration=0.33"], ""),
    ],
)
def test_a_split_without_an_audit_is_said_before_training(words, said, tmp_path, tiny, capsys):
    data = tmp_path / "many.npz"
    count = 30 if said else 90
    np.savez(data, images=np.random.default_rng(0).integers(0, 255, (count, 8, 8), dtype=np.uint8))
    assert main(["train", "--data", str(data), "--output-dir", str(tmp_path), "--dry-run", *tiny, *words]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    found = [line for line in warnings if "audit" in line]
    assert len(found) == bool(said)
    assert all(said in line for line in found)


# --- how long --------------------------------------------------------------------------------------------------------


class Said(list):
    def say(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time_left.time, "perf_counter", lambda: clock.now)
    return clock


def training(said: Said, *words: str) -> SimpleNamespace:
    small = ("model.patch_size=2", "model.width=16", "model.depth=3", "model.heads=2", "stages.0.mask.block=1")
    config = resolve(overrides=[*small, *words])
    spec = ModelSpec(model=config.model, process=config.process, image_size=(16, 16), channels=3)
    masks = mask_schedules(config, spec)
    runtime = SimpleNamespace(synchronize=lambda: None)
    return SimpleNamespace(config=config, spec=spec, masks=masks, runtime=runtime, console=said)


def walk(run: SimpleNamespace, clock: SimpleNamespace, seconds: list[float]) -> None:
    progress = Progress()
    left = TimeLeft(run, progress)
    for each in seconds:
        clock.now += each
        progress.advance(8, each)
        left.step_done()


def test_a_long_run_says_how_long_after_its_first_steps(clock):
    said = Said()
    run = training(said, "stages.0.steps=1004", "stages.1.minutes=60")
    walk(run, clock, [100.0, 10.0, 10.0, 10.0])  # the first sets everything up
    (line,) = said
    assert line.startswith("  about 3 h 47 min to go on this machine")  # 1,000 steps of 10 s, and an hour
    assert "Ctrl-C is safe" in line


def test_masked_steps_are_not_taken_for_whole_ones(clock):
    def estimate(mask: str) -> str:
        said = Said()
        walk(training(said, "stages.0.steps=104", mask, "stages.1.steps=1000"), clock, [1.0, 6.0, 6.0, 6.0])
        return said[0].split(" to go")[0]

    same = training(Said(), "stages.0.steps=104", "stages.0.mask.kind=none")
    assert same.masks[0] == constant(same.masks[1].maskings[0])
    assert estimate("stages.0.mask.kind=none") == "  about 110 min" or estimate("stages.0.mask.kind=none").endswith(
        "1 h 50 min"
    )
    masked = estimate("stages.0.mask.ratio=0.75")
    assert int(masked.split()[1]) >= 4  # hours: whole images take more than masked ones


def test_an_estimate_is_corrected_once(clock):
    said = Said()
    run = training(said, "stages.0.steps=1000", "stages.1.minutes=1")
    walk(run, clock, [1.0] * 4 + [4.0] * 100)
    assert len(said) == 2
    assert "by the pace of the last minute" in said[1]
    said.clear()
    walk(run, clock, [1.0] * 200)
    assert len(said) == 1  # it was right


def test_of_a_short_run_nothing_is_said(clock):
    said = Said()
    walk(training(said, "stages.0.steps=104", "stages.1.steps=10"), clock, [0.01] * 100)
    assert said == []


# --- having learned nothing ------------------------------------------------------------------------------------------


def test_the_error_of_the_mean_image_is_that_of_a_model_that_answers_with_it(photos_run):
    from dataclasses import replace

    import maskdm
    from maskdm.runtime.distributed import Runtime

    images = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
    denoiser = maskdm.load(photos_run)
    heldout = HeldOut.ask(images, None, denoiser, torch.device("cpu"))
    mean = heldout.x_0.mean(dim=0)

    def answer(x_t, t, *, mask=None, label=None):  # the run predicts x0
        return mean.expand_as(x_t)

    error = heldout.error(replace(denoiser, backbone=answer), Runtime(torch.device("cpu"), "no"))
    assert error.mean == pytest.approx(heldout.error_of_mean, rel=1e-4)
