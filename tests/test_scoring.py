"""Scores during training: the same numbers as `maskdm eval` gives afterwards, and nothing learned from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from maskdm.cli.main import main
from maskdm.config.resolve import resolve
from maskdm.errors import InputError
from maskdm.evaluation.evaluate import labels_like
from maskdm.evaluation.features import Features
from maskdm.evaluation.scorer import Scorer
from maskdm.runtime.console import Console
from maskdm.training.events import ScoreEvent
from maskdm.training.read_run import read_history
from maskdm.training.start import start_training

SCORES = ["eval.scores=pixels", "eval.score_images=12", "eval.scores_every=16"]


def run(data: Path, output_dir: Path, *words: str) -> Path:
    command = ["train", "--data", str(data), "--output-dir", str(output_dir), "--name", "t", "data.heldout=0.3", *words]
    assert main(command) == 0
    return max(output_dir.iterdir())


def scores(folder: Path) -> list[ScoreEvent]:
    return read_history(folder).scores


def test_they_are_those_of_eval(photos, tiny, tmp_path, capsys):
    folder = run(photos, tmp_path / "runs", *tiny, *SCORES)
    found = scores(folder)
    assert len(found) > 2  # along the way, and as each stage ended
    assert {event.stage for event in found} == {event.stage for event in read_history(folder).stages}
    output = tmp_path / "scores.json"
    assert main(["eval", str(folder), "--num", "12", "--output", str(output)]) == 0
    first = json.loads(output.read_text())["scores"][0]
    assert first["name"] == "Frechet distance on pixels, generated"
    assert found[-1].frechet_distance == pytest.approx(first["value"], rel=1e-9)
    assert found[-1].n == 12
    assert "Frechet distance on pixels" in capsys.readouterr().err
    assert "Frechet distance on pixels" in (folder / "report.html").read_text()


def test_nothing_is_learned_from_them(digits_npz, tiny, tmp_path):
    with_scores = run(digits_npz, tmp_path / "a", *tiny, *SCORES)
    without = run(digits_npz, tmp_path / "b", *tiny)
    a, b = (load_file(folder / "weights" / "ema.safetensors") for folder in (with_scores, without))
    assert all(np.array_equal(a[name], b[name]) for name in b)
    assert not scores(without)


@pytest.mark.parametrize(
    ("words", "name", "got"),
    [
        (["eval.scores=fid"], "eval.scores", "fid"),
        (["eval.scores=gone:features"], "eval.scores", "gone:features"),
        (["eval.scores=pixels", "eval.score_images=1"], "eval.score_images", 1),
        (["eval.scores=pixels", "data.heldout=0"], "eval.scores", 0),
    ],
)
def test_refusals_leave_nothing_behind(words, name, got, digits_npz, tiny, tmp_path):
    def begin() -> None:
        config = resolve(overrides=[f"data.path={digits_npz}", *tiny, *words])
        start_training(config, output_dir=tmp_path / "runs", name="t", resume=None, console=Console(quiet=True))

    with pytest.raises(InputError) as caught:
        begin()
    assert (caught.value.name, caught.value.got) == (name, got)
    assert not (tmp_path / "runs").exists()


def test_a_file_of_features_that_is_not_there(digits_npz, tiny, tmp_path, capsys):
    words = ["--data", str(digits_npz), "--output-dir", str(tmp_path / "runs"), *tiny, "eval.scores=gone.pt"]
    assert main(["train", *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "maskdm: error: eval.scores: no such file: gone.pt"
    assert not (tmp_path / "runs").exists()


def test_features_that_are_not_finite_name_the_setting():
    broken = Features("broken", "distance", lambda images: np.full((len(images), 2), np.nan))
    scorer = Scorer(broken, np.zeros((5, 2)), None)
    with pytest.raises(InputError) as caught:
        scorer(np.zeros((5, 4, 4, 1), np.uint8))
    assert caught.value.name == "eval.scores"


def test_classes_come_as_often_as_among_the_held_out():
    labels = np.array([0] * 30 + [1] * 60 + [2] * 10)
    for num in (10, 100, 1000):
        chosen = np.bincount(labels_like(labels, num), minlength=3) / num
        np.testing.assert_allclose(chosen, [0.3, 0.6, 0.1], atol=0.06)
