"""Audits from the command to the page: what is refused, what is kept, what is concluded."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import train, write_photos
from PIL import Image

from maskdm.auditing.attacks import calls_per_image, primary_attacks, quick_attacks
from maskdm.auditing.verdict import EXIT_CODES
from maskdm.cli.main import main
from maskdm.commands.audit import audit
from maskdm.errors import InputError
from maskdm.training.read_run import read_config

SPLIT = ("data.heldout=0.35", "data.calibration=0.35")
QUICK = ("--profile", "quick", "--batch-size", "32")


def many(folder: Path) -> Path:
    """48 images, so that every role has some."""
    write_photos(folder)
    rng = np.random.default_rng(5)
    for i in range(18):
        Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(folder / "cat" / f"more-{i}.png")
    return folder


@pytest.fixture(scope="module")
def audited(tmp_path_factory) -> Path:
    """A run of a small model on 48 images, audited. Look, but do not touch."""
    folder = tmp_path_factory.mktemp("audited")
    run = train(many(folder / "photos"), folder / "runs", *SPLIT)
    assert main(["audit", str(run), *QUICK, "--num", "6"]) == EXIT_CODES["INCONCLUSIVE"]
    return run


def run_command(*words: object) -> int:
    return main(["audit", *(str(word) for word in words)])


def read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    return record


def refused(run: Path, **arguments: object) -> InputError:
    """The error of a quick audit."""
    with pytest.raises(InputError) as caught:
        audit(run, **{"profile": "quick", "quiet": True} | arguments)
    return caught.value


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_record(audited):
    record = read_record(audited / "audit")
    assert record["schema"] == "maskdm-audit/2"
    assert record["statistic"] == "maskdm-audit-v1"
    assert record["command"].startswith("maskdm audit ")
    assert record["verdict"]["name"] == "INCONCLUSIVE"
    assert record["subject"]["split"] == "certified"
    head = json.loads((audited / "manifest.head.json").read_text(encoding="utf-8"))
    assert record["subject"]["manifest_sha256"] == head["records_sha256"]
    assert record["images"]["heldout"] == head["counts"]["heldout"]
    assert [control["name"] for control in record["controls"]] == [
        "blind",
        "untrained network",
        "memorizing model",
        "calibration against held-out",
    ]
    assert record["attacks"][0]["name"] == "primary"
    assert all(attack["at_fpr"]["0.001"] is None for attack in record["attacks"])
    assert {share["n"] for share in record["generation"]} == {6}


def test_pages_name_no_image_and_show_none(audited):
    folder = audited / "audit"
    for name in ("report.html", "report.md", "audit.json"):
        text = (folder / name).read_text(encoding="utf-8")
        assert ".png" not in text
        assert "photos/" not in text.replace("runs/00000-photos", "")
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert html.index("INCONCLUSIVE") < html.index("Attacks")
    assert "What this audit cannot show" in html
    assert "n/a: needs 1,000 at 1 % and 10,000 at 0.1 % held-out" in html
    assert "<img" not in html
    assert (folder / "roc.svg").read_text(encoding="utf-8").startswith("<svg xmlns=")


def test_what_says_who_was_in_the_set_is_private(audited):
    for name in ("scores.npz", "audit.json"):
        assert stat.S_IMODE((audited / "audit" / name).stat().st_mode) == 0o600
    with np.load(audited / "audit" / "scores.npz") as arrays:
        assert len(arrays["member_ids"]) == len(arrays["primary/members"])
        assert len(arrays["heldout_ids"]) == len(arrays["sima 0.17/raw_heldout"])


def test_training_images_only_on_request(audited, tmp_path):
    words = (*QUICK, "--num", "4", "--include-training-images", "--output", tmp_path / "out")
    assert run_command(audited, *words) == EXIT_CODES["INCONCLUSIVE"]
    report = tmp_path / "out" / "report.html"
    page = report.read_text(encoding="utf-8")
    assert page.count("<img") == 4 + 10  # every generated image with its neighbors, and all members
    assert stat.S_IMODE(report.stat().st_mode) == 0o600


def test_the_same_again(audited, tmp_path):
    assert run_command(audited, *QUICK, "--num", "6", "--output", tmp_path) == EXIT_CODES["INCONCLUSIVE"]
    first, again = (read_record(folder) for folder in (audited / "audit", tmp_path))
    assert first["attacks"] == again["attacks"]
    assert first["generation"] == again["generation"]
    assert first["controls"] == again["controls"]


FEATURES = """
import numpy as np

def halves(images):
    return images.reshape(len(images), -1)[:, ::2] / np.float64(255)
"""


def test_the_full_profile_and_features_of_ones_own(audited, tmp_path, monkeypatch, capsys):
    (tmp_path / "features_of_mine.py").write_text(FEATURES)
    monkeypatch.syspath_prepend(tmp_path)
    words = ("--profile", "full", "--num", "5", "--features", "features_of_mine:halves", "--output", tmp_path / "out")
    assert run_command(audited, *words) == EXIT_CODES["INCONCLUSIVE"]
    record = read_record(tmp_path / "out")
    names = [attack["name"] for attack in record["attacks"]]
    assert {"gradient", "masked 0.17", "secmi 0.32", "pian 0.32", "sima 0.17, no class"} <= set(names)
    assert all(
        0 <= attack["auc"] <= 1 and attack["low"] <= attack["auc"] <= attack["high"] for attack in record["attacks"]
    )
    assert any("features_of_mine:halves" in share["name"] for share in record["generation"])
    assert record["images"]["generated"] == 5


def test_images_that_were_generated_before(audited, tmp_path):
    assert main(["sample", str(audited), "--num", "9", "--steps", "2", "--output", str(tmp_path / "samples")]) == 0
    words = ("--generated", tmp_path / "samples", "--output", tmp_path / "out")
    assert run_command(audited, *QUICK, *words) == EXIT_CODES["INCONCLUSIVE"]
    record = read_record(tmp_path / "out")
    assert record["images"]["generated"] == 9  # without the grid of all of them


def test_a_backbone_of_ones_own(own_run, tmp_path):
    data = {}
    for seed, name in enumerate(("members", "nonmembers")):
        images = np.random.default_rng(seed).integers(256, size=(40, 8, 8), dtype=np.uint8)
        data[name] = tmp_path / f"{name}.npz"
        np.savez(data[name], images=images)
    assert "ownnet:Net" in str(refused(own_run, **data))
    result = audit(own_run, profile="quick", backbone="ownnet:Net", output=tmp_path / "out", quiet=True, **data)
    assert result.exit_code in (4, 5)
    assert result.report == tmp_path / "out" / "report.html"
    assert result.report.is_file()


# --- which weights, which images -------------------------------------------------------------------------------------


def test_a_stage_by_itself(audited, tmp_path):
    for stage in ("pretrain", "0"):
        audit(audited, profile="quick", stage=stage, weights="raw", output=tmp_path / stage, quiet=True)
    records = [read_record(tmp_path / stage) for stage in ("pretrain", "0")]
    assert {record["subject"]["weights"] for record in records} == {"pretrain-raw.safetensors"}
    assert records[0]["subject"]["metadata"]["stage"] == "pretrain"
    error = refused(audited, stage="7")
    assert (error.name, error.got, error.wanted) == ("stage", "7", "one of 0 (pretrain), 1 (finetune)")


def test_an_estimate_writes_nothing(audited, tmp_path, capsys):
    assert run_command(audited, *QUICK, "--estimate", "--output", tmp_path / "out") == 0
    assert "calls of the network, about" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_estimate_counts_calls(audited):
    result = audit(audited, profile="quick", num=0, estimate=True, quiet=True)
    counts = read_record(audited / "audit")["images"]
    roles = [counts[role] for role in ("members", "heldout", "calibration")]
    per_image = calls_per_image(quick_attacks(2)) + calls_per_image(primary_attacks(2))
    assert result.calls == per_image * sum(roles) + roles[0] + roles[1]  # attacks, untrained control, errors
    assert result.seconds > 0


def test_a_budget_that_is_too_small(audited):
    error = refused(audited, profile="standard", budget_minutes=1e-6)
    assert (error.name, error.got) == ("budget_minutes", 1e-6)


def test_one_flipped_byte_of_an_image_stops_it(audited, tmp_path):
    copy = shutil.copytree(audited.parent.parent, tmp_path / "copy")
    run = copy / "runs" / audited.name
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace(str(audited.parent.parent), str(copy)), encoding="utf-8")
    assert read_config(run).data.path == str(copy / "photos")
    assert audit(run, profile="quick", quiet=True).exit_code == 4
    path = sorted((copy / "photos").rglob("*.png"))[3]
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    error = refused(run)
    assert error.name == "data.path"
    assert "1 removed" in error.problem  # its checksum no longer fits, so it cannot be read


def test_flipped_bytes_of_the_cache_are_noticed_and_it_is_built_again(tmp_path, capsys):
    cache = tmp_path / "cache"
    run = train(many(tmp_path / "photos"), tmp_path / "runs", *SPLIT, f"data.cache_dir={cache}")
    (path,) = cache.glob("*/images.npy")
    whole = path.read_bytes()
    content = bytearray(whole)
    for i in range(200, len(content), 768):  # one pixel of every image
        content[i] ^= 1
    path.write_bytes(content)
    assert audit(run, profile="quick").exit_code == 4
    assert "is damaged and is built again" in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_weights_of_another_run(audited, photos_run, tmp_path):
    copy = shutil.copytree(audited, tmp_path / audited.name)
    weights = copy / "weights" / "ema.safetensors"
    shutil.copy(photos_run / "weights" / "ema.safetensors", weights)
    error = refused(copy)
    assert error.name == str(weights)
    assert "was not trained by the manifest" in error.problem


def test_no_membership_without_held_out_images(digits_npz, tmp_path):
    run = train(digits_npz, tmp_path, "data.heldout=0", "data.calibration=0")
    error = refused(run)
    assert (error.name, error.got, error.wanted) == (str(run), 0, "at least 10 images")
    assert "too few held-out images" in error.problem


def test_folders_in_place_of_a_manifest(audited, photos, tmp_path, capsys):
    others = write_photos(tmp_path / "others")
    for path in others.rglob("*.png"):
        Image.eval(Image.open(path), lambda value: value ^ 3).save(path)
    words = ("--members", photos, "--nonmembers", others, "--output", tmp_path / "out")
    weights = audited / "weights" / "ema.safetensors"
    assert run_command(weights, *QUICK, *words) in (4, 5)
    assert read_record(tmp_path / "out")["subject"]["split"] == "not certified"
    assert "split not certified by the trainer" in capsys.readouterr().out
    error = refused(weights, members=photos, nonmembers=photos)
    assert error.name == "nonmembers"
    assert error.problem.startswith("30 of its images")


@pytest.mark.parametrize(("name", "images", "wanted"), [("members", 8, "10"), ("nonmembers", 29, "30")])
def test_too_few_images_in_place_of_a_manifest(name, images, wanted, audited, photos, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "few.npz", images=rng.integers(256, size=(images, 16, 16, 3), dtype=np.uint8))
    data = {"members": photos, "nonmembers": photos} | {name: tmp_path / "few.npz"}
    error = refused(audited / "weights" / "ema.safetensors", **data)
    assert (error.name, error.got, error.wanted) == (name, images, f"at least {wanted} images")


def test_a_given_split_is_not_certified(tmp_path):
    run = train(many(tmp_path / "photos"), tmp_path / "runs", "data.heldout_by=[159]\\.png$", "data.calibration=0.5")
    assert audit(run, profile="quick", quiet=True).exit_code in (4, 5)
    record = read_record(run / "audit")
    assert record["subject"]["split"] == "not certified"
    assert any("data.heldout_by" in remark for remark in record["remarks"])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"members": "x"}, "nonmembers"),
        ({"nonmembers": "x"}, "members"),
        ({"members": "x", "nonmembers": "y", "group_by": "folder"}, "group_by"),
        ({"budget_minutes": 0}, "budget_minutes"),
        ({"fail_above_auc": 0.4}, "fail_above_auc"),
        ({"num": -1}, "num"),
        ({"num": 3, "generated": "{run}/samples"}, "num"),
        ({"batch_size": 0}, "batch_size"),
        ({"group_by": "("}, "group_by"),
        ({"profile": "slow"}, "profile"),
        ({"features": ["nothing"]}, "features"),
        ({"features": ["json:nothing"]}, "features"),
    ],
)
def test_arguments_that_cannot_be(arguments, name, audited):
    given = {
        key: value.replace("{run}", str(audited)) if isinstance(value, str) else value
        for key, value in arguments.items()
    }
    assert refused(audited, **given).name == name


@pytest.mark.parametrize(
    ("subject", "arguments", "name", "problem"),
    [
        ("weights/ema.safetensors", {}, "{path}", "belongs to a run"),
        ("samples", {}, "{path}", "is not a run folder"),
        ("weights/ema.safetensors", {"stage": "0"}, "stage", "{path} is not a run folder, and has no stages"),
    ],
)
def test_what_is_no_run(subject, arguments, name, problem, audited):
    path = audited / subject
    error = refused(path, **arguments)
    assert error.name == name.format(path=path)
    assert error.problem == problem.format(path=path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--members", "x"], "--nonmembers: missing"),
        (["{run}", "--budget-minutes", "0"], "--budget-minutes: got 0"),
        (["{run}", "--stage", "7"], "--stage: got '7'"),
        (["compare", "{run}", "gone"], "gone: holds no audit"),
    ],
)
def test_the_command_names_what_was_typed(words, message, audited, capsys):
    assert run_command(*(word.format(run=audited) for word in words)) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_command_compares_two_audits(audited, capsys):
    copy = shutil.copytree(audited, audited.parent / "copy")
    assert run_command("compare", audited, copy) == 2  # of ten members nothing can be said
    assert "members and" in capsys.readouterr().err
