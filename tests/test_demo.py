"""The demo: its scores by themselves, and, slowly, the whole of it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from maskdm.commands.demo import demo, demo_scores, digits
from maskdm.data.write import to_image

CLOSED = "gap from noise to training digits, closed"


def test_the_digits_are_real_and_use_the_whole_range():
    images, labels = digits()
    assert images.shape == (1797, 8, 8)
    assert (images.min(), images.max()) == (0, 255)
    assert sorted(set(labels.tolist())) == list(range(10))
    assert to_image(images[0][..., None]).mode == "L"


def test_scores_run_from_noise_to_training_digits():
    images = digits()[0][..., None]
    member, heldout = images[::2], images[1::2]
    found = {row["name"]: row["value"] for row in demo_scores(member[::-1].copy(), member, heldout)}
    assert found[CLOSED] == pytest.approx(100)
    noise = np.random.default_rng(0).integers(0, 256, member.shape, dtype=np.uint8)
    found = {row["name"]: row["value"] for row in demo_scores(noise, member, heldout)}
    assert found[CLOSED] == pytest.approx(0, abs=2)


def test_the_demo_in_short_says_what_it_does_and_where_its_page_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("maskdm.commands.demo.GENERATED", 100)
    monkeypatch.setattr("maskdm.commands.demo.STEPS", 5)
    short = {
        "stages.0.steps": 4,
        "stages.1.steps": 2,
        "eval.samples": 4,
        "eval.sample_steps": 2,
        "eval.heldout_images": 8,
    }
    result = demo(tmp_path / "demo", settings=short)
    said = capsys.readouterr().err
    assert all(f"{i}/4  " in said for i in range(1, 5))
    assert [line.split()[-1] for line in said.splitlines()[-2:]] == [str(result.grid), str(result.report)]
    assert (result.grid, result.report) == (result.run / "samples" / "final.png", result.run / "report.html")
    assert CLOSED in [row["name"] for row in result.scores]
    assert CLOSED in result.report.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_closes_95_percent_of_the_gap(tmp_path):
    began = time.monotonic()
    found = {row["name"]: row["value"] for row in demo(tmp_path, quiet=True).scores}
    assert found[CLOSED] > 95
    print(f"{time.monotonic() - began:.0f} s, {found[CLOSED]} %")
