"""The demo: its scores by themselves, and, slowly, the whole of it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from maskdm.commands.demo import demo, digits, scores
from maskdm.data.write import to_picture


def test_the_digits_are_real_and_use_the_whole_range():
    images, labels = digits()
    assert images.shape == (1797, 8, 8)
    assert (images.min(), images.max()) == (0, 255)
    assert sorted(set(labels.tolist())) == list(range(10))
    assert to_picture(images[0][..., None]).mode == "L"


def test_scores_run_from_noise_to_training_digits():
    images = digits()[0][..., None]
    member, heldout = images[::2], images[1::2]
    closed = {row["name"]: row["value"] for row in scores(member[::-1].copy(), member, heldout)}
    assert closed["way from noise to training digits"] == pytest.approx(100)
    noise = np.random.default_rng(0).integers(0, 256, member.shape, dtype=np.uint8)
    closed = {row["name"]: row["value"] for row in scores(noise, member, heldout)}
    assert closed["way from noise to training digits"] == pytest.approx(0, abs=2)


def test_the_demo_in_short_says_what_it_does_and_where_its_page_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("maskdm.commands.demo.GENERATED", 100)
    monkeypatch.setattr("maskdm.commands.demo.STEPS", 5)
    short = ("stages.0.steps=4", "stages.1.steps=2", "eval.samples=4", "eval.sample_steps=2", "eval.heldout_images=8")
    run = demo(tmp_path / "demo", short)
    said = capsys.readouterr().err
    assert all(f"{i}/4  " in said for i in range(1, 5))
    assert said.splitlines()[-2:] == [
        f"sample grid  {run / 'samples' / 'final.png'}",
        f"report       {run / 'report.html'}",
    ]
    assert "way from noise to training digits" in (run / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_closes_95_percent_of_the_gap(tmp_path, capsys):
    began = time.monotonic()
    demo(tmp_path)
    said = capsys.readouterr().err
    closed = float(said.split("way from noise to training digits")[1].split("%")[0])
    assert closed > 95
    print(f"{time.monotonic() - began:.0f} s, {closed} %")
