"""A run that goes on after its images were moved, its files damaged, its folders removed; and one that is finished."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, train
from PIL import Image
from safetensors.torch import load_file

import maskdm
from maskdm.cli.main import main
from maskdm.data.manifest import read_manifest
from maskdm.errors import InputError, StorageError
from maskdm.models import weights
from maskdm.training import loop
from maskdm.training.checkpoint import find_sound_checkpoint
from maskdm.training.progress import Progress, check_checkpoint, list_checkpoints, read_state, write_state_file
from maskdm.training.read_run import is_finished

FILES = ("raw.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")
LAST = Path("checkpoints", "step-0000007")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder of 40 gray images of 8 x 8 pixels, in the sub-folders cat and dog."""
    pixels = np.random.default_rng(0).integers(256, size=(40, 8, 8), dtype=np.uint8)
    for number, image in enumerate(pixels):
        file = tmp_path / "small" / ("cat", "dog")[number % 2] / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return tmp_path / "small"


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights" / "ema.safetensors") | load_file(run / "weights" / "raw.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def command(data: Path, output_dir: Path, *more: str) -> list[str]:
    return ["train", "--data", str(data), "--output-dir", str(output_dir), *TINY, *more]


def copied(run: Path, output_dir: Path, *, finished: bool = True) -> Path:
    """A run that may be touched; unfinished, it was killed between its last checkpoint and its last line."""
    copy = Path(shutil.copytree(run, output_dir / run.name, symlinks=True))
    if not finished:
        metrics = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
        (copy / "metrics.jsonl").write_text("".join(metrics[:-1]))
    return copy


def interrupted(words: list[str], monkeypatch: pytest.MonkeyPatch, *, at: int = 2) -> None:
    """Ctrl-C in a step; saved after it."""
    step = loop.training_step

    def cut(training, state, denoiser, model):
        if state.progress.step == at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(training, state, denoiser, model)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", cut)
        assert main(words) == 130


def flip(path: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.unlink()  # it may have other names
    path.write_bytes(content)


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1].rpartition("\r")[2]


# --- images that were moved ------------------------------------------------------------------------------------------


def test_the_same_images_elsewhere_and_renamed_resume_the_run(small, tmp_path, monkeypatch, capsys):
    whole = train(small, tmp_path / "whole")
    interrupted(command(small, tmp_path / "runs", "--name", "small"), monkeypatch)
    moved = small.rename(tmp_path / "moved")
    for folder in (moved / "cat", moved / "dog"):  # in another order, too
        for number, file in enumerate(sorted(folder.iterdir(), reverse=True)):
            file.rename(folder / f"again-{number:03d}{file.suffix}")
    run = tmp_path / "runs" / "00000-small"
    assert main(["train", "--resume", "latest", "--output-dir", str(tmp_path / "runs")]) == 2
    assert line_of(capsys).startswith("maskdm: error: --data: the images of ")
    assert main(command(moved, tmp_path / "runs")) == 0
    assert f"now in {moved}" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.name]
    assert is_finished(run)
    assert_same_weights(whole, run)
    assert read_manifest(run).sha256 == read_manifest(whole).sha256


def test_resume_evaluate_and_audit_take_the_new_place(small, tmp_path, monkeypatch, capsys):
    output_dir = tmp_path / "runs"
    interrupted(command(small, output_dir, "--name", "small"), monkeypatch)
    moved = small.rename(tmp_path / "moved")
    assert main(["train", "--resume", "latest", "--output-dir", str(output_dir), "--data", str(moved)]) == 0
    run = output_dir / "00000-small"
    capsys.readouterr()
    for words in (["eval", str(run), "--num", "8", "--steps", "1"], ["audit", str(run), "--profile", "quick"]):
        assert main(words) == 2
        line = line_of(capsys)
        assert line.startswith("maskdm: error: --data: the images of ")
        assert str(small) in line
    result = maskdm.evaluate(run, data=moved, num=8, steps=1, quiet=True)
    assert result.scores
    assert main(["audit", str(run), "--data", str(moved)]) == 2  # 40 images are too few, and are read
    assert "too few held-out images" in line_of(capsys)
    with pytest.raises(InputError) as caught:
        maskdm.evaluate(run, moved, data=moved, num=8, steps=1, quiet=True)
    assert caught.value.name == "data"


def test_other_images_are_another_run_or_refused(small, tmp_path, monkeypatch, capsys):
    output_dir = tmp_path / "runs"
    interrupted(command(small, output_dir, "--name", "small"), monkeypatch)
    other = Path(shutil.copytree(small, tmp_path / "other"))
    first, second, *_ = sorted((other / "cat").iterdir())
    first.unlink()
    capsys.readouterr()
    resume = ["train", "--resume", "latest", "--output-dir", str(output_dir), "--data", str(other)]
    assert main(resume) == 2
    assert "the images are not those this run began with (0 added, 1 removed, 0 changed)" in line_of(capsys)
    assert main([*command(other, output_dir), "--dry-run"]) == 0
    assert "would begin a run" in capsys.readouterr().err
    small.rename(tmp_path / "before")
    other.rename(small)
    (small / "cat" / second.name).write_bytes((small / "dog" / "001.png").read_bytes())
    assert main(command(small, output_dir)) == 2
    assert "0 added, 1 removed, 1 changed" in line_of(capsys)
    assert [path.name for path in output_dir.iterdir()] == ["00000-small"]


# --- a run that is finished ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [None, "latest"])
def test_the_command_of_a_finished_run_says_so_and_writes_what_is_missing(resume, digits_run, tmp_path, capsys):
    run = copied(digits_run, tmp_path)
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    grid = run / "samples" / "step-0000007.png"
    grid.unlink()
    shutil.rmtree(run / "weights")
    assert not (run / "report.html").exists()
    data = digits_run.parent.parent / "digits.npz"
    words = ["--resume", resume] if resume else ["--data", str(data), *TINY, "model.classes=none"]
    assert main(["train", "--output-dir", str(tmp_path), *words]) == 0
    said = capsys.readouterr().err
    assert f"{run} is finished (7 steps, 56 images)" in said
    assert "--resume never" in said
    assert [path.name for path in tmp_path.iterdir()] == [run.name]
    assert (run / "report.html").is_file()
    assert grid.read_bytes() == before[Path("samples", grid.name)]
    assert_same_weights(run, digits_run)
    assert (run / "metrics.jsonl").read_bytes() == before[Path("metrics.jsonl")]


def test_never_trains_another(digits_run, tmp_path):
    run = copied(digits_run, tmp_path)
    data = digits_run.parent.parent / "digits.npz"
    assert main([*command(data, tmp_path, "model.classes=none"), "--resume", "never"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [run.name, "00001-digits"]
    assert_same_weights(run, tmp_path / "00001-digits")


def test_a_dry_run_of_a_finished_run(digits_run, tmp_path):
    run = copied(digits_run, tmp_path)
    result = maskdm.train(resume="latest", output_dir=tmp_path, dry_run=True, quiet=True)
    assert (result.run, result.finished) == (run, True)


# --- files that were damaged -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_or_a_cut_is_noticed_wherever_it_is(file, digits_run, tmp_path):
    check = read_state if file == "state.json" else check_checkpoint
    check_checkpoint(digits_run / LAST)
    size = (digits_run / LAST / file).stat().st_size
    offsets = range(size) if file == "state.json" else sorted({*range(16), *range(16, size, size // 16), size - 1})
    whole = Path(shutil.copytree(digits_run / LAST, tmp_path / "step-0000007"))
    content = (whole / file).read_bytes()
    for offset in offsets:
        flip(whole / file, offset, bit=offset % 8)
        with pytest.raises(InputError, match="is not a readable checkpoint"):
            check(whole)
        (whole / file).write_bytes(content)
    for length in (0, 1, size // 2, size - 2):
        (whole / file).write_bytes(content[:length])
        with pytest.raises(InputError, match="is not a readable checkpoint"):
            check(whole)
    (whole / file).unlink()
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        check(whole)


@pytest.mark.parametrize("file", FILES)
def test_the_checkpoint_before_is_used_and_ends_with_the_same_weights(file, digits_run, tmp_path, capsys):
    run = copied(digits_run, tmp_path, finished=False)
    flip(run / LAST / file, (run / LAST / file).stat().st_size // 2)
    assert main(["train", "--resume", str(run)]) == 0
    said = capsys.readouterr().err
    assert f"{run / LAST} is not a readable checkpoint (" in said
    assert "resumed at step 4" in said
    assert_same_weights(digits_run, run)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["damaged-step-0000007", "latest", "step-0000004", "step-0000007"]
    check_checkpoint(run / LAST)


def test_without_a_sound_checkpoint_it_is_refused_and_nothing_is_touched(digits_run, tmp_path, capsys):
    run = copied(digits_run, tmp_path, finished=False)
    for checkpoint in list_checkpoints(run / "checkpoints"):
        flip(checkpoint / "ema.safetensors", 1000)
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(run)]) == 2
    line = line_of(capsys)
    assert line.startswith(f"maskdm: error: {run / LAST}: is not a readable checkpoint (ema.safetensors")
    assert "--resume never" in line
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_an_earlier_version_has_no_digests_and_is_read(digits_run, tmp_path):
    run = copied(digits_run, tmp_path)
    state = json.loads((run / LAST / "state.json").read_text())
    (run / LAST / "state.json").write_text(json.dumps({key: state[key] for key in ("progress", "scaler")}))
    check_checkpoint(run / LAST)
    assert find_sound_checkpoint(run / "checkpoints", pytest.fail) == run / LAST


def test_a_damaged_checkpoint_that_cannot_be_set_aside(tmp_path, monkeypatch):
    for step in (1, 2):
        (tmp_path / f"step-000000{step}").mkdir()
        write_state_file(tmp_path / f"step-000000{step}", Progress(step=step), {}, None)
    (tmp_path / "step-0000002" / "state.json").write_text("{")

    def full(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StorageError, match=r"cannot move .*: Read-only file system"):
        find_sound_checkpoint(tmp_path, pytest.fail)


def test_settings_that_changed_are_not_resumed(digits_run, tmp_path, capsys):
    run = copied(digits_run, tmp_path, finished=False)
    settings = run / "config.yaml"
    text = settings.read_text()
    settings.write_text(text.replace("0.0002", "0.0006"))
    assert settings.read_text() != text
    assert main(["train", "--resume", "latest", "--output-dir", str(tmp_path)]) == 2
    assert line_of(capsys).startswith(f"maskdm: error: {settings}: is not as it was written")
    data = digits_run.parent.parent / "digits.npz"
    assert main(command(data, tmp_path, "model.classes=none")) == 0  # the command says what they were
    assert settings.read_text() == text
    assert_same_weights(digits_run, run)


def test_weights_that_hold_nan_are_refused_by_name(digits_run, tmp_path, capsys):
    run = copied(digits_run, tmp_path)
    file = run / "weights" / "ema.safetensors"
    found = weights.read_weights(file)
    name = sorted(found.tensors)[3]
    found.tensors[name].view(-1)[0] = float("nan")
    weights.write_weights(file, found)
    with pytest.raises(InputError, match=f"NaN, first in the tensor {name}"):
        weights.load(run)
    data = str(digits_run.parent.parent / "digits.npz")
    for words in (
        ["sample", str(run), "--num", "1", "--steps", "1", "--output", str(tmp_path / "out")],
        ["eval", str(run), "--num", "2", "--steps", "1"],
        ["train", "--data", data, "--output-dir", str(tmp_path / "more"), *TINY, f"stages.0.init_from={file}"],
    ):
        assert main(words) == 2
        assert f"first in the tensor {name}" in line_of(capsys)
    assert not (tmp_path / "more").exists()
    assert main(["info", str(run)]) == 0
    assert f"holds NaN, first in the tensor {name}" in capsys.readouterr().out
    assert weights.nan_tensor({"n": torch.arange(3), "e": torch.zeros(0)}) is None


def test_weights_have_the_mode_of_any_new_file(digits_run, tmp_path):
    (tmp_path / "usual").write_text("")
    usual = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    found = [*(digits_run / "weights").iterdir(), *(path for path in (digits_run / LAST).iterdir())]
    assert len(found) == 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {usual}


# --- folders that vanish ---------------------------------------------------------------------------------------------


def test_a_run_that_is_removed_while_it_trains_is_one_line(digits_npz, tmp_path, monkeypatch, capsys):
    step = loop.training_step

    def removed(training, state, denoiser, model):
        if state.progress.step == 2:
            shutil.rmtree(training.run.path)
        return step(training, state, denoiser, model)

    monkeypatch.setattr(loop, "training_step", removed)
    assert main(command(digits_npz, tmp_path / "runs")) == 1
    assert line_of(capsys).startswith(f"maskdm: error: {tmp_path / 'runs' / '00000-digits'} is gone")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("name", ["weights", "samples", "checkpoints"])
def test_a_folder_that_is_removed_before_resuming_is_made_again(name, digits_run, tmp_path, capsys):
    run = copied(digits_run, tmp_path, finished=False)
    shutil.rmtree(run / name)
    assert main(["train", "--resume", "latest", "--output-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert ("no checkpoint had been saved" in said) == (name == "checkpoints")
    assert_same_weights(digits_run, run)
