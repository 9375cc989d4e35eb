"""Comparisons: the file, equal budgets, going on, and verdicts that say no more than their seeds show."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from maskdm.cli import main
from maskdm.errors import InputError
from maskdm.measuring import compare
from maskdm.measuring.compare import Look, Outcome, reached, read_comparison, shipped, verdicts
from maskdm.training.console import Console
from maskdm.training.flops import training_flops
from maskdm.training.run import list_runs, read_metrics

SMALL = """
title: Small
settings: {model.patch_size: 2, model.width: 16, model.depth: 3, model.heads: 2, eval.samples: 4, eval.sample_steps: 2,
           eval.heldout_images: 8, data.salt: public, train.mixed_precision: "no", log.every: 1}
budget: {petaflops: 0.000003}
seeds: [0]
looks: 4
baseline: plain
arms:
  plain:
    - {share: 1, batch_size: 8, lr: 1.0e-3}
  masked:
    - {name: hide, share: 0.5, batch_size: 8, lr: 1.0e-3, mask: {kind: patch, ratio: 0.75}}
    - {name: show, share: 0.5, batch_size: 8, lr: 1.0e-3}
"""


@pytest.fixture
def small(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def run(*words: object) -> int:
    return main([str(word) for word in words])


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_shipped_comparisons_are_whole(name):
    comparison = read_comparison(name)
    for arm in comparison.arms:
        config = compare.arm_config(comparison, arm, 0, [])
        assert sum(stage.minutes or 0 for stage in config.stages) == pytest.approx(1)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("baseline: plain", "baseline: none", ["baseline", "plain, masked"]),
        ("share: 1,", "share: 0.9,", ["add up to 1", "arm plain"]),
        ("share: 1,", "", ["share above 0", "arm plain"]),
        ("petaflops: 0.000003", "petaflops: 1, minutes: 1", ["budget", "one of them"]),
        ("looks: 4", "looks: 0", ["looks"]),
        ("looks: 4", "look: 4", ["look"]),
        ("lr: 1.0e-3}\n  masked", "rate: 1.0e-3}\n  masked", ["arm plain", "rate"]),
        ("patch_size: 2", "patchsize: 2", ["arm plain", "patchsize"]),
    ],
)
def test_wrong_files_are_one_line(old, new, words, small, digits_npz, capsys):
    assert old in SMALL
    small.write_text(SMALL.replace(old, new, 1))
    assert run("compare", small, "--data", digits_npz, "--dry-run") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("maskdm: error: ")
    assert all(word in said for word in words), said


def test_equal_arms_are_refused(small, digits_npz, capsys):
    small.write_text(SMALL + "  again:\n    - {share: 1, batch_size: 8, lr: 1.0e-3}\n")
    assert run("compare", small, "--data", digits_npz, "--dry-run") == 2
    assert "arms plain and again have the same settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone.yaml"], "comparison: got 'gone.yaml', wanted a file, or one of digits, masks"),
        ([], "comparison: missing"),
        (["masks", "--seeds", "0,0"], "--seeds: got '0,0'"),
        (["masks", "--minutes", "0"], "--minutes: got 0"),
        (["masks"], "--data: missing"),
    ],
)
def test_wrong_commands(words, message, capsys):
    assert run("compare", *words) == 2
    assert message in capsys.readouterr().err


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_arms_spend_the_same(small, digits_npz):
    comparison = read_comparison(str(small))
    plans = compare.plan(comparison, [f"data.path={digits_npz}"], Console(quiet=True))
    spent = {}
    for (arm, _), prepared in plans.items():
        stages = zip(prepared.config.stages, prepared.masks, strict=True)
        spent[arm] = sum((stage.images or 0) * training_flops(prepared.spec, plan.moments[0]) for stage, plan in stages)
    assert spent["plain"] == pytest.approx(3e9, rel=0.02)
    assert spent["masked"] == pytest.approx(spent["plain"], rel=0.02)
    images = {arm: sum(s.images or 0 for s in p.config.stages) for (arm, _), p in plans.items()}
    assert images["masked"] > 1.5 * images["plain"]


def test_minutes_are_shared_out(small, digits_npz):
    comparison = read_comparison(str(small)).model_copy(update={"budget": compare.Budget(minutes=10)})
    plans = compare.plan(comparison, [f"data.path={digits_npz}"], Console(quiet=True))
    assert [stage.minutes for stage in plans["masked", 0].config.stages] == [5, 5]
    assert plans["masked", 0].config.eval.heldout_minutes == 2.5


def test_the_whole_way_and_going_on(small, digits_npz, tmp_path, capsys):
    words = ("compare", small, "--data", digits_npz, "--output-dir", tmp_path / "out", "--seeds", "0,1")
    assert run(*words) == 0
    said = capsys.readouterr()
    runs = list_runs(tmp_path / "out")
    assert len(runs) == 4
    assert [line.split()[0] for line in said.out.splitlines()] == ["plain", "masked"]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Small" in page
    assert "4 of 4 runs done" in page
    assert page.count("<img") == 4
    assert "masked against plain" in page
    for folder in runs:
        looks = [e for e in read_metrics(folder) if e["event"] == "heldout"]
        assert 5 <= len(looks) <= 9
    assert run(*words) == 0  # nothing is trained again
    again = capsys.readouterr()
    assert again.out == said.out
    assert again.err.count("finished before") == 4
    assert list_runs(tmp_path / "out") == runs


def test_looks_by_the_clock(digits_npz, tmp_path, tiny, capsys):
    words = [*tiny, "eval.heldout_every=1000000", "eval.heldout_minutes=0.002", "stages.0.steps=200"]
    assert run("train", "--data", digits_npz, "--output-dir", tmp_path, *words) == 0
    looks = [e for e in read_metrics(tmp_path / "00000-digits") if e["event"] == "heldout"]
    seconds = [float(str(e["seconds"])) for e in looks]
    assert seconds == sorted(seconds)
    assert len(looks) > 4  # more than the beginnings and ends of the stages


# --- verdicts --------------------------------------------------------------------------------------------------------


def made(arm: str, seed: int, *errors: float) -> Outcome:
    looks = tuple(Look(i / (len(errors) - 1), error) for i, error in enumerate(errors))
    return Outcome(arm, seed, Path(), looks, 100, 1.0)


def test_when_an_error_was_reached():
    looks = made("a", 0, 1.0, 0.5, 0.6, 0.1, 0.0).looks
    assert reached(looks, 1.0) == 0
    assert reached(looks, 0.75) == pytest.approx(0.125)
    assert reached(looks, 0.5) == pytest.approx(0.25)
    assert reached(looks, 0.05) == pytest.approx(0.875)
    assert reached(looks, -1) is None


def test_twice_as_fast_with_all_seeds_is_a_finding():
    plain = [made("plain", seed, 1.0, 0.6, 0.4, 0.3, 0.2 + seed / 1000) for seed in range(3)]
    fast = [made("fast", seed, 1.0, 0.5, 0.2, 0.15, 0.1 + seed / 1000) for seed in range(3)]
    base, found = verdicts([*plain, *fast], "plain")
    assert (base.speed, base.words) == (1.0, "the baseline")
    assert found.speed == pytest.approx(2, rel=0.02)
    assert found.low is not None
    assert found.low > 1.9
    assert found.words.endswith("better at equal compute")
    assert found.spread == pytest.approx(0.001)


def test_one_seed_is_a_hint():
    _, found = verdicts([made("plain", 0, 1, 0.5, 0.2), made("fast", 0, 1, 0.2, 0.1)], "plain")
    assert found.speed == pytest.approx(2)
    assert (found.low, found.spread) == (None, None)
    assert found.words.endswith("with one seed: a hint, no finding")


def test_seeds_that_disagree_show_nothing():
    plain = [made("plain", seed, 1.0, 0.5, 0.2) for seed in range(2)]
    other = [made("other", 0, 1.0, 0.2, 0.1), made("other", 1, 1.0, 0.6, 0.2)]
    _, found = verdicts([*plain, *other], "plain")
    assert found.low is not None
    assert found.low < 1
    assert found.words.endswith("no difference that these seeds show")
    assert math.isfinite(found.speed or math.nan)


def test_never_getting_there_is_worse():
    plain, slow = made("plain", 0, 1.0, 0.5, 0.2), made("slow", 0, 1.0, 0.8, 0.5)
    _, found = verdicts([plain, slow], "plain")
    assert found.speed is None
    assert "did not reach the baseline's last error with 1 of 1 seeds: worse at equal compute" in found.words


def test_an_unknown_comparison_names_those_there_are():
    with pytest.raises(InputError, match="masks"):
        read_comparison("mask")
