"""Every command as a function: what it takes, returns, writes and refuses; and that the command line does the same."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import train as trained
from conftest import write_photos
from PIL import Image
from safetensors.torch import load_file

import maskdm
from maskdm.cli.main import main
from maskdm.commands.arguments import read_settings
from maskdm.commands.audit import AuditResult
from maskdm.commands.bench import BenchResult
from maskdm.commands.compare import ComparisonResult
from maskdm.commands.convert import convert
from maskdm.commands.evaluate import EvaluationResult
from maskdm.commands.info import Info, info
from maskdm.commands.report import report
from maskdm.commands.train import TrainResult
from maskdm.errors import InputError
from maskdm.profiling.forecast import StageForecast

OFFICIAL = Path(__file__).parent / "data" / "official_uncond_linear.pt"
COMMANDS = ("train", "sample", "evaluate", "compare", "audit", "compare_audits", "plan", "bench")

COMPARISON = """
title: Small
recipe: digits
settings: {data.salt: public, model.width: 16, model.depth: 3, model.heads: 2, eval.samples: 0, eval.heldout_images: 8,
  train.mixed_precision: "no"}
budget: {petaflops: 0.000003}
evaluations: 2
baseline: plain
arms:
  plain: [{share: 1, batch_size: 8, lr: 1.0e-3}]
  masked: [{share: 1, batch_size: 8, lr: 1.0e-3, mask: {kind: patch, ratio: 0.5}}]
"""


def as_mapping(overrides: list[str]) -> dict[str, object]:
    return dict(word.split("=", 1) for word in overrides)


# --- the package -----------------------------------------------------------------------------------------------------


def test_commands_are_public_and_cost_nothing_until_they_are_used():
    code = "import sys, maskdm; dir(maskdm); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "numpy", "pydantic", "maskdm.commands.train"}.isdisjoint(loaded)
    assert {*COMMANDS} <= {*maskdm.__all__}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_function_with_types_and_an_example(name):
    function = getattr(maskdm, name)
    assert inspect.isfunction(function)
    assert function.__module__.startswith("maskdm.commands.")
    doc = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in doc
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Parameter.empty
    described = doc.partition("Args:")[2].partition("Returns:")[0]
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert parameter.name in described


def test_a_command_stays_a_function_after_it_has_run(held_out_run):
    maskdm.audit(held_out_run, profile="quick", estimate=True, quiet=True)
    assert all(inspect.isfunction(getattr(maskdm, name)) for name in COMMANDS)


@pytest.mark.parametrize("result", [TrainResult, EvaluationResult, ComparisonResult, AuditResult, BenchResult, Info])
def test_results_are_frozen_dataclasses(result):
    assert is_dataclass(result)
    assert result.__dataclass_params__.frozen
    for field in fields(result):
        assert field.name in inspect.getdoc(result)


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_are_a_mapping_or_a_list_or_a_config(tmp_path):
    written = ["model.width=32", "stages.0.steps=7", "data.salt=public", "model.patch_size=2", "stages.1.lr=0.0001"]
    mapping = {
        "model.width": 32,
        "stages.0.steps": 7,
        "data.salt": "public",
        "model": {"patch_size": 2},
        "stages.1.lr": 1e-4,
    }
    config = read_settings(data=tmp_path, settings=written)
    assert read_settings(data=str(tmp_path), settings=mapping) == config
    assert read_settings(config=config) is config
    assert read_settings(config=config, settings={"model.width": 64}).model.width == 64
    assert read_settings(config=config, data="other").data.path == "other"
    assert (config.model.width, config.stages[0].steps, config.data.path) == (32, 7, str(tmp_path))


def test_none_in_a_mapping_is_null():
    assert read_settings(settings={"data.group_by": None, "stages.0.micro_batch": None}).data.group_by is None


@pytest.mark.parametrize(
    ("given", "name", "got"),
    [
        ({"settings": {"model.widht": 3}}, "model.widht", None),
        ({"settings": {"stages.0.lr": -1}}, "stages.0.lr", -1),
        ({"settings": "model.width=3"}, "settings", "model.width=3"),
        ({"recipe": "digit"}, "recipe", "digit"),
    ],
)
def test_settings_that_are_refused(given, name, got):
    with pytest.raises(InputError) as caught:
        read_settings(**given)
    assert caught.value.name == name
    assert got is None or caught.value.got == got


def test_a_config_has_a_recipe_already():
    with pytest.raises(InputError) as caught:
        read_settings(config=read_settings(), recipe="digits")
    assert caught.value.name == "recipe"


# --- train -----------------------------------------------------------------------------------------------------------


def test_train(photos, tiny, tmp_path, capsys):
    result = maskdm.train(photos, settings=as_mapping(tiny), output_dir=tmp_path / "runs", quiet=True)
    assert isinstance(result, TrainResult)
    assert capsys.readouterr() == ("", "")
    assert (result.run.name, result.finished) == ("00000-photos", True)
    assert result.weights == result.run / "weights" / "ema.safetensors"
    assert all(path.is_file() for path in (result.weights, result.samples, result.report))
    assert (result.run / "log.txt").is_file()
    assert 0 < result.heldout_error < 10
    events = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    assert result.heldout_error == [e["error_ema"] for e in events if e["event"] == "heldout"][-1]


def test_train_gives_the_files_of_the_command(photos, tiny, tmp_path):
    command = ["train", "--data", str(photos), "--output-dir", str(tmp_path / "command"), *tiny]
    assert main(command) == 0
    result = maskdm.train(photos, settings=tiny, output_dir=tmp_path / "function", quiet=True)
    theirs = tmp_path / "command" / "00000-photos"
    assert {p.relative_to(theirs) for p in theirs.rglob("*")} == {
        p.relative_to(result.run) for p in result.run.rglob("*")
    }
    ours, other = (load_file(run / "weights" / "ema.safetensors") for run in (result.run, theirs))
    assert all(torch.equal(ours[name], other[name]) for name in ours.keys() | other.keys())
    assert json.loads((theirs / "env.json").read_text())["command"].startswith("maskdm train --data ")


def test_a_run_that_is_named_needs_no_settings(digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "runs" / digits_run.name, symlinks=True)
    (run / "metrics.jsonl").write_text("".join((run / "metrics.jsonl").read_text().splitlines(True)[:-1]))
    result = maskdm.train(resume="latest", output_dir=run.parent, quiet=True)
    assert (result.run, result.finished) == (run, True)


def test_a_dry_run_returns_what_would_be_done(digits_npz, tiny, tmp_path):
    result = maskdm.train(digits_npz, settings=tiny, output_dir=tmp_path / "runs", dry_run=True, quiet=True)
    assert (result.run, result.report, result.finished) == (None, None, False)
    assert len(result.stages) == 2
    assert "pretrain" in result.stages[0]
    assert not (tmp_path / "runs").exists()


LENGTHS = {"stages.0.steps": 1, "stages.1.steps": 1}
"""With which nothing is chosen, and so nothing measured."""


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "data"),
        ({"data": "{digits}", "output_dir": "{digits}"}, "output_dir"),
        ({"data": "{digits}", "resume": "gone"}, "resume"),
        ({"data": "{digits}", "name": "x" * 300, "settings": LENGTHS}, "name"),
        ({"data": "{digits}", "settings": {"model.depth": 4, **LENGTHS}}, "model.depth"),
    ],
)
def test_train_refuses(given, name, digits_npz, tmp_path):
    given = {k: v.format(digits=digits_npz) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(InputError) as caught:
        maskdm.train(**{"output_dir": tmp_path / "runs", "quiet": True, **given})
    assert caught.value.name == name
    assert not (tmp_path / "runs").exists()


# --- sample ----------------------------------------------------------------------------------------------------------


def test_sample_of_a_denoiser_a_run_and_a_file_are_the_same_images(photos_run, capsys):
    denoiser = maskdm.load(photos_run)
    images = maskdm.sample(denoiser, 3, steps=2, quiet=True)
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    for model in (photos_run, str(photos_run), photos_run / "weights" / "ema.safetensors"):
        assert torch.equal(maskdm.sample(model, 3, steps=2, quiet=True), images)
    assert torch.allclose(maskdm.sample(denoiser, seeds=[0, 2], labels=["cat"], steps=2), images[[0, 2]], atol=1e-5)
    assert capsys.readouterr().out == ""


def test_sample_writes_the_files_of_the_command(photos_run, tmp_path):
    maskdm.sample(photos_run, seeds=range(4), steps=2, output=tmp_path / "function", quiet=True)
    assert main(["sample", str(photos_run), "--seeds", "0-3", "--steps", "2", "-o", str(tmp_path / "command")]) == 0
    names = sorted(path.name for path in (tmp_path / "command").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "function").iterdir())
    for name in names:
        assert (tmp_path / "command" / name).read_bytes() == (tmp_path / "function" / name).read_bytes()
    images = maskdm.sample(photos_run, seeds=range(4), steps=2, output=tmp_path / "images.npz", quiet=True)
    with np.load(tmp_path / "images.npz") as archive:
        stored = archive["images"]
    assert np.abs(stored / 255 - images.permute(0, 2, 3, 1).numpy()).max() < 0.003


def test_edits_take_files_or_tensors(photos_run, photos, tmp_path):
    path, other = photos / "cat" / "00.png", photos / "dog" / "00.png"
    tensors = [torch.from_numpy(np.array(Image.open(each))).permute(2, 0, 1) / 255 for each in (path, other)]
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:9, 6:12] = True
    Image.fromarray(mask.numpy()).convert("L").save(tmp_path / "mask.png")
    for by_file, by_tensor in (
        ({"init": path}, {"init": tensors[0]}),
        ({"init": path, "inpaint": tmp_path / "mask.png"}, {"init": tensors[0], "inpaint": mask}),
        ({"interpolate": [path, other]}, {"interpolate": tensors}),
    ):
        images = [maskdm.sample(photos_run, 3, steps=4, quiet=True, **each) for each in (by_file, by_tensor)]
        assert images[0].shape == (3, 3, 16, 16)
        torch.testing.assert_close(*images, atol=1e-4, rtol=0)
    inpainted = maskdm.sample(photos_run, 2, init=tensors[0], inpaint=mask, steps=2, quiet=True)
    torch.testing.assert_close(inpainted[:, :, ~mask], tensors[0][None, :, ~mask].expand(2, -1, -1))
    assert len(maskdm.sample(photos_run, init=path, steps=2, quiet=True)) == 16


def test_progress_is_counted_in_steps(digits_run):
    counted: list[int] = []
    maskdm.sample(digits_run, 3, steps=4, batch_size=2, callback=counted.append, quiet=True)
    assert sum(counted) == 12


@pytest.mark.parametrize(
    ("given", "name", "got"),
    [
        ({"num": 0}, "num", 0),
        ({"batch_size": 0}, "batch_size", 0),
        ({"steps": 0}, "steps", 0),
        ({"sampler": "dpm"}, "sampler", "dpm"),
        ({"eta": 1.5}, "eta", 1.5),
        ({"sampler": "heun", "s_churn": -1.0}, "s_churn", -1.0),
        ({"spacing": "cosine"}, "spacing", "cosine"),
        ({"shift": 0.0}, "shift", 0.0),
        ({"seeds": []}, "seeds", None),
        ({"labels": ["cat"]}, "labels", None),
        ({"guidance": 2.0}, "guidance", 2.0),
        ({"guide": "warmup", "guidance": 2.0}, "guide", "warmup"),
        ({"strength": 0.5}, "strength", None),
        ({"init": "{image}", "strength": 1.5}, "strength", 1.5),
        ({"inpaint": "{image}"}, "inpaint", None),
        ({"resample": 2}, "resample", None),
        ({"interpolate": ["{image}"]}, "interpolate", 1),
        ({"device": "banana"}, "device", "banana"),
        ({"backbone": "uvit"}, "backbone", "uvit"),
        ({"output": "images.png"}, "output", "images.png"),
        ({"init": torch.zeros(3, 4, 4)}, "init", (3, 4, 4)),
    ],
)
def test_sample_refuses(given, name, got, digits_run, photos):
    image = str(photos / "cat" / "00.png")
    filled = {k: v.format(image=image) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(InputError) as caught:
        maskdm.sample(digits_run, **{"num": 2, "steps": 2, "quiet": True, **filled})
    assert caught.value.name == name
    assert got is None or caught.value.got == got


@pytest.mark.parametrize(
    "given",
    [{"weights": "raw"}, {"backbone": "a:B"}, {"device": "cpu"}, {"mixed_precision": "bf16"}, {"compile": True}],
)
def test_a_denoiser_is_loaded_already(given, digits_run):
    with pytest.raises(InputError) as caught:
        maskdm.sample(maskdm.load(digits_run), 1, **given)
    assert caught.value.name == next(iter(given))


# --- evaluate --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out_run(tmp_path_factory) -> Path:
    """A run with enough held-out images to evaluate and to audit. Look, but do not touch."""
    folder = tmp_path_factory.mktemp("held-out-run")
    write_photos(folder / "photos")
    rng = np.random.default_rng(5)
    for i in range(18):
        Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(folder / f"photos/cat/more-{i}.png")
    return trained(folder / "photos", folder / "runs", "data.heldout=0.35", "data.calibration=0.35")


def test_evaluate(held_out_run, tmp_path, capsys):
    run = shutil.copytree(held_out_run, tmp_path / "run", symlinks=True)
    given = {"num": 12, "steps": 2, "output": tmp_path / "scores.json", "quiet": True}
    result = maskdm.evaluate(run, **given)
    assert isinstance(result, EvaluationResult)
    assert capsys.readouterr() == ("", "")
    assert result.features == "pixels"
    assert {score.n for score in result.scores} >= {12}
    assert all(path.is_file() for path in result.files)
    assert {path.parent.name for path in result.files} == {"eval", "run", tmp_path.name}
    command = ["eval", str(run), "--num", "12", "--steps", "2", "--output", str(tmp_path / "command.json")]
    assert main(command) == 0
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("scores", "command"))
    assert ours["scores"] == theirs["scores"]
    assert [score.value for score in result.scores] == [score["value"] for score in ours["scores"]]


def test_evaluate_images_against_images(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    result = maskdm.evaluate(str(tmp_path / "copy"), photos, quiet=True)
    assert result.scores[0].value == pytest.approx(0, abs=1e-6)
    assert result.files == ()


@pytest.mark.parametrize(
    ("given", "name", "got"),
    [
        ({"features": "fid"}, "features", "fid"),
        ({"features_weights": "x.pth"}, "features_weights", None),
        ({"num": 1}, "num", 1),
        ({"bootstrap": -1}, "bootstrap", -1),
        ({"device": "banana"}, "device", "banana"),
        ({"output": f"{__file__}/x.json"}, "output", None),
        ({"reference": "gone"}, "gone", None),
        ({"weights": str(OFFICIAL)}, "weights", str(OFFICIAL)),
    ],
)
def test_evaluate_refuses(given, name, got, held_out_run):
    with pytest.raises(InputError) as caught:
        maskdm.evaluate(held_out_run, **{"num": 4, "steps": 2, "quiet": True, **given})
    assert caught.value.name == name
    assert got is None or caught.value.got == got


@pytest.mark.parametrize(("subject", "name"), [("gone", "subject"), ("{photos}", "reference")])
def test_evaluate_refuses_subjects(subject, name, photos):
    with pytest.raises(InputError) as caught:
        maskdm.evaluate(subject.format(photos=photos), quiet=True)
    assert caught.value.name == name


# --- compare ---------------------------------------------------------------------------------------------------------


def test_compare(digits_npz, tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(COMPARISON)
    given = {"data": digits_npz, "output_dir": tmp_path / "compare", "quiet": True}
    planned = maskdm.compare(file, **given, dry_run=True)
    assert (planned.outcomes, planned.page) == ((), None)
    assert len(planned.runs) > 2
    assert not (tmp_path / "compare").exists()
    result = maskdm.compare(file, **given)
    assert isinstance(result, ComparisonResult)
    assert [(o.arm, o.seed) for o in result.outcomes] == [("plain", 0), ("masked", 0)]
    assert [c.arm for c in result.conclusions] == ["plain", "masked"]
    assert result.page == tmp_path / "compare" / "compare.html"
    assert result.page.is_file()
    again = maskdm.compare(file, **given)  # nothing is left to train
    assert again.outcomes == result.outcomes


@pytest.mark.parametrize(
    ("given", "name", "got"),
    [
        ({"comparison": "gone"}, "comparison", "gone"),
        ({"minutes": 0.0}, "minutes", 0.0),
        ({"seeds": [1, 1]}, "seeds", [1, 1]),
        ({"pretrain_data": "x"}, "pretrain_data", None),
        ({"output_dir": __file__}, "output_dir", None),
    ],
)
def test_compare_refuses(given, name, got, digits_npz, tmp_path):
    given = {"comparison": "masks", "data": digits_npz, "output_dir": tmp_path / "out", "quiet": True, **given}
    with pytest.raises(InputError) as caught:
        maskdm.compare(**given)
    assert caught.value.name == name
    assert got is None or caught.value.got == got


# --- audit -----------------------------------------------------------------------------------------------------------


def test_audit_and_compare_audits(held_out_run, tmp_path):
    given = {"profile": "quick", "batch_size": 32, "quiet": True}
    estimate = maskdm.audit(held_out_run, **given, estimate=True, output=tmp_path / "none")
    assert (estimate.verdict, estimate.report, estimate.exit_code) == (None, None, 0)
    assert estimate.seconds > 0
    assert not (tmp_path / "none").exists()
    result = maskdm.audit(held_out_run, **given, num=6, output=tmp_path / "a")
    assert isinstance(result, AuditResult)
    assert (result.verdict.name, result.exit_code) == ("INCONCLUSIVE", 4)
    assert result.report == tmp_path / "a" / "report.html"
    assert result.report.is_file()
    assert json.loads((tmp_path / "a" / "audit.json").read_text())["attacks"] == result.record["attacks"]
    command = ["audit", str(held_out_run), "--profile", "quick", "--batch-size", "32", "--num", "6"]
    assert main([*command, "--output", str(tmp_path / "b")]) == 4
    theirs = json.loads((tmp_path / "b" / "audit.json").read_text())
    assert theirs["attacks"] == result.record["attacks"]
    assert theirs["command"].startswith("maskdm audit ")
    with pytest.raises(InputError):  # too few images in both
        maskdm.compare_audits(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("given", "name", "got"),
    [
        ({"members": "x"}, "nonmembers", None),
        ({"nonmembers": "x"}, "members", None),
        ({"budget_minutes": 0.0}, "budget_minutes", 0.0),
        ({"fail_above_auc": 0.4}, "fail_above_auc", 0.4),
        ({"num": -1}, "num", -1),
        ({"num": 3, "generated": "x"}, "num", None),
        ({"batch_size": 0}, "batch_size", 0),
        ({"features": ["nothing"]}, "features", "nothing"),
        ({"stage": "7"}, "stage", "7"),
        ({"members": "x", "nonmembers": "y", "group_by": "z"}, "group_by", None),
        ({"output": __file__}, "output", None),
        ({"profile": "slow"}, "profile", "slow"),
    ],
)
def test_audit_refuses(given, name, got, held_out_run):
    with pytest.raises(InputError) as caught:
        maskdm.audit(held_out_run, quiet=True, **given)
    assert caught.value.name == name
    assert got is None or caught.value.got == got


def test_compare_audits_refuses_what_is_no_audit(tmp_path):
    with pytest.raises(InputError) as caught:
        maskdm.compare_audits(tmp_path, tmp_path)
    assert str(tmp_path) in str(caught.value)


# --- plan, bench -----------------------------------------------------------------------------------------------------


def test_plan(photos, tiny, tmp_path):
    forecasts = maskdm.plan(photos, settings=tiny, seconds=0.1, watts=100.0, quiet=True)
    assert [type(each) for each in forecasts] == [StageForecast, StageForecast]
    assert [each.name for each in forecasts] == ["pretrain", "finetune"]
    assert forecasts[0].steps == 4
    assert all(each.hours > 0 for each in forecasts)


def test_bench(tiny, tmp_path):
    settings = [*tiny, "data.image_size=8", "stages.0.mask.kind=patch"]
    result = maskdm.bench(settings=settings, ratios=[0, 0.75], rounds=1, output=tmp_path / "b.json", quiet=True)
    assert isinstance(result, BenchResult)
    assert len(result.rows) == 2
    assert result.peak > 1e8
    assert len(json.loads((tmp_path / "b.json").read_text())["rows"]) == 2


@pytest.mark.parametrize(
    ("function", "given", "name"),
    [
        ("plan", {}, "data"),
        ("plan", {"seconds": 0.0}, "seconds"),
        ("bench", {"ratios": [0, 1]}, "ratios"),
        ("bench", {"ratios": []}, "ratios"),
        ("bench", {"rounds": 0}, "rounds"),
        ("bench", {"output": f"{__file__}/x.json"}, "output"),
    ],
)
def test_plan_and_bench_refuse(function, given, name):
    with pytest.raises(InputError) as caught:
        getattr(maskdm, function)(quiet=True, **given)
    assert caught.value.name == name


# --- info, report, convert -------------------------------------------------------------------------------------------


def test_info(photos_run, tmp_path):
    found = info(photos_run)
    assert (found.run.path, found.run.finished, found.run.step) == (photos_run, True, 44)
    assert found.run.error_ema > 0
    assert found.weights.file == photos_run / "weights" / "ema.safetensors"
    assert found.weights.spec.class_names == ("cat", "dog")
    assert found.weights.metadata["stage"] == "finetune"
    of_file = info(str(photos_run / "weights" / "pretrain-raw.safetensors"))
    assert of_file.run is None
    assert (of_file.weights.metadata["which"], of_file.weights.metadata["stage"]) == ("raw", "pretrain")
    shutil.copy(photos_run / "config.yaml", tmp_path)
    assert info(tmp_path).weights is None
    with pytest.raises(InputError) as caught:
        info(tmp_path / "gone")
    assert caught.value.name == str(tmp_path / "gone")


def test_report(photos_run, tmp_path):
    run = shutil.copytree(photos_run, tmp_path / "run", symlinks=True)
    (run / "report.html").unlink(missing_ok=True)
    assert report(run) == run / "report.html"
    assert report(str(run)).is_file()


def test_convert(tmp_path):
    file = convert("official", OFFICIAL, tmp_path / "new" / "official.safetensors", heads=4)
    assert info(file).weights.metadata["source"] == "official"
    for given, name in (
        (("diffusers", OFFICIAL, "a.safetensors"), "source"),
        (("official", OFFICIAL, "a.pt"), "output"),
    ):
        with pytest.raises(InputError) as caught:
            convert(*given)
        assert caught.value.name == name
    with pytest.raises(InputError) as caught:
        convert("official", OFFICIAL, tmp_path / "a.safetensors", heads=5)
    assert (caught.value.name, caught.value.got) == ("heads", 5)


# --- names of errors on the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["sample", "{run}", "--num", "0"], "--num: got 0"),
        (["sample", "{run}", "--batch-size", "0"], "--batch-size: got 0"),
        (["sample", "{run}", "--guidance-interval", "0.5"], "--guidance-interval: got '0.5'"),
        (["sample", "{run}", "--sampler", "heun", "--s-churn=-1"], "--s-churn: got -1"),
        (["eval", "gone"], "RUN|FILE|IMAGES: "),
        (["eval", "{run}", "--features-weights", "x.pth"], "--features-weights: "),
        (["compare"], "FILE|NAME: missing"),
        (["compare", "masks", "--minutes", "0"], "--minutes: got 0"),
        (["bench", "--ratios", "0,1"], "--ratios: got "),
        (["train"], "--data: missing"),
        (["train", "model.widht=3"], "model.widht: "),
        (["train", "stages.0.lr=-1", "--data", "x"], "stages.0.lr: got -1"),
        (["audit", "{run}", "--budget-minutes", "0"], "--budget-minutes: got 0"),
        (["audit", "{run}", "--members", "x"], "--nonmembers: missing"),
        (["audit", "compare", "{run}"], "the following arguments are required: B; see maskdm audit compare --help"),
    ],
)
def test_an_argument_is_shown_as_it_is_typed_and_a_setting_stays(typed, shown, digits_run, capsys):
    assert main([word.format(run=digits_run) for word in typed]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"maskdm: error: {shown}")


def test_one_label_is_one_class_and_no_row_of_letters(photos_run):
    options = {"seeds": [0, 1], "steps": 2, "quiet": True}
    assert torch.equal(
        maskdm.sample(photos_run, labels="cat", **options), maskdm.sample(photos_run, labels=["cat"], **options)
    )
    with pytest.raises(maskdm.ArgumentError) as caught:
        maskdm.sample(photos_run, labels="cow", **options)
    assert (caught.value.name, caught.value.got) == ("labels", "cow")


def test_an_unknown_setting_of_a_mapping_is_in_the_settings(digits_npz, tmp_path):
    with pytest.raises(maskdm.InputError, match="settings") as caught:
        maskdm.train(digits_npz, settings={"model.widht": 3}, output_dir=tmp_path, quiet=True)
    assert "command line" not in str(caught.value)
