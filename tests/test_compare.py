"""Comparisons: the file, equal budgets, resuming, and conclusions that say no more than their seeds show."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from maskdm.cli.main import main
from maskdm.errors import MISSING, InputError
from maskdm.experiments import runner, throughput
from maskdm.experiments.comparison import (
    Budget,
    Comparison,
    arm_config,
    comparison_text,
    comparisons,
    override_comparison,
    read_comparison,
)
from maskdm.experiments.conclusion import NOTE, conclude, format_conclusions
from maskdm.experiments.duration import forecast_comparison
from maskdm.experiments.outcome import Evaluation, Outcome
from maskdm.experiments.ratios import LEVEL, Ratio, holm, reached, speedup, t_quantile
from maskdm.experiments.runner import THROUGHPUT, Runs, resolve_runs
from maskdm.models.flops import training_flops
from maskdm.runtime.console import Console
from maskdm.training.prepare import Prepared
from maskdm.training.read_run import list_runs, read_config, read_history
from maskdm.training.step_profiler import StepProfiler

SMALL = """
title: Small
settings: {model.patch_size: 2, model.width: 16, model.depth: 3, model.heads: 2, eval.samples: 4, eval.sample_steps: 2,
           eval.heldout_images: 8, data.salt: public, train.mixed_precision: "no", log.every: 1}
budget: {petaflops: 0.000003}
seeds: [0]
evaluations: 4
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


def resolved(comparison: Comparison, data: Path, *more: str) -> Runs:
    return resolve_runs(comparison, [f"data.path={data}", *more], Console(quiet=True))


def refusal(file: Path, data: Path) -> InputError:
    """What is said of the arms of a file."""
    with pytest.raises(InputError) as caught:
        resolved(read_comparison(str(file)), data)
    assert "\n" not in str(caught.value)
    return caught.value


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", comparisons())
def test_shipped_comparisons_are_whole(name):
    comparison = read_comparison(name)
    for arm in comparison.arms:
        config = arm_config(comparison, arm, 0, [])
        assert sum(stage.minutes or 0 for stage in config.stages) == pytest.approx(1)


@pytest.mark.parametrize(
    ("old", "new", "name", "got"),
    [
        ("baseline: plain", "baseline: none", "baseline", "none"),
        ("share: 1,", "share: 1.1,", "arms.plain.stages", [1.1]),
        ("share: 1,", "share: 0.9,", "arms.plain", 0.9),
        ("share: 1,", "", "arms.plain.stages", [None]),
        ("petaflops: 0.000003", "petaflops: 1, minutes: 1", "budget", MISSING),
        ("evaluations: 4", "evaluations: 0", "evaluations", 0),
        ("seeds: [0]", "seeds: [a]", "seeds.0", "a"),
        ("title: Small", "title: 3", "title", 3),
        ("baseline: plain", "", "baseline", MISSING),
        ("baseline: plain", "baseline: plain\ncontrol: none", "control", "none"),
        ("baseline: plain", "baseline: plain\ncontrol: plain", "control", "plain"),
        ("  plain:\n    - {share: 1, batch_size: 8, lr: 1.0e-3}", "  plain: 3", "arms.plain", MISSING),
    ],
)
def test_wrong_files_are_named_by_file_and_key(old, new, name, got, small):
    assert old in SMALL
    small.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        read_comparison(str(small))
    assert (caught.value.name, caught.value.got) == (f"{small}: {name}", got)
    assert caught.value.wanted or caught.value.problem == "missing"


@pytest.mark.parametrize(
    ("old", "new", "name", "meant"),
    [
        ("evaluations: 4", "evaluation: 4", "evaluation", "evaluations"),
        ("budget: {", "budgt: {", "budgt", "budget"),
        ("petaflops:", "petaflop:", "budget.petaflop", "petaflops"),
    ],
)
def test_unknown_keys_name_the_one_that_was_meant(old, new, name, meant, small):
    small.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        read_comparison(str(small))
    assert (caught.value.name, caught.value.problem) == (f"{small}: {name}", "unknown key")
    assert caught.value.remedy.startswith(f"did you mean {meant}? known here: ")


def test_keys_of_earlier_versions_are_refused_with_their_names_now(small):
    small.write_text(SMALL.replace("evaluations: 4", "looks: 4"))
    with pytest.raises(InputError) as caught:
        read_comparison(str(small))
    assert (caught.value.name, caught.value.remedy) == (f"{small}: looks", "it is now evaluations")


@pytest.mark.parametrize(
    ("old", "new", "arm", "key"),
    [
        ("lr: 1.0e-3}\n  masked", "rate: 1.0e-3}\n  masked", "plain", "rate"),
        ("patch_size: 2", "patchsize: 2", "plain", "patchsize"),
        ("ratio: 0.75", "ratio: 1.75", "masked", "stages.0.mask.ratio"),
    ],
)
def test_settings_of_an_arm_are_named_by_arm_and_key(old, new, arm, key, small, digits_npz):
    small.write_text(SMALL.replace(old, new, 1))
    error = refusal(small, digits_npz)
    assert error.name.startswith(f"arm {arm}: ")
    assert key in str(error)
    assert "command line" not in str(error)


def test_equal_arms_are_refused(small, digits_npz):
    small.write_text(SMALL + "  again:\n    - {share: 1, batch_size: 8, lr: 1.0e-3}\n")
    error = refusal(small, digits_npz)
    assert (error.name, error.problem) == ("arms.again", "has the same settings as plain")


@pytest.mark.parametrize(
    ("changes", "name", "got"),
    [
        ({"seeds": [0, 0]}, "seeds", [0, 0]),
        ({"seeds": []}, "seeds", []),
        ({"minutes": 0}, "minutes", 0),
        ({"minutes": float("nan")}, "minutes", MISSING),
    ],
)
def test_wrong_overrides(changes, name, got):
    with pytest.raises(InputError) as caught:
        override_comparison(read_comparison("masks"), **changes)
    assert caught.value.name == name
    assert got in (MISSING, caught.value.got)


def test_another_budget_and_other_seeds():
    comparison = override_comparison(read_comparison("masks"), minutes=3, seeds=[5, 6])
    assert (comparison.budget.minutes, comparison.seeds) == (3, (5, 6))
    assert override_comparison(comparison) == comparison


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone.yaml"], "got 'gone.yaml', wanted a file, or one of digits, masks"),
        ([], "missing"),
        (["masks", "--seeds", "0,0"], "--seeds: got"),
        (["masks", "--minutes", "0"], "--minutes: got 0"),
        (["masks"], "data"),
    ],
)
def test_wrong_commands(words, message, capsys):
    assert run("compare", *words) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("maskdm: error: ")
    assert message in said[-1]


# --- budgets ---------------------------------------------------------------------------------------------------------


def lengths(comparison: Comparison, runs: Runs, folder: Path) -> dict[str, Prepared]:
    arms = {arm: found for (arm, _), found in runs.arms.items()}
    costs = runner.image_costs(arms, comparison, folder)
    return {arm: runner.with_budget(found, costs[arm], comparison, arm) for arm, found in arms.items()}


def test_arms_spend_the_same(small, digits_npz, tmp_path):
    comparison = read_comparison(str(small))
    runs = resolved(comparison, digits_npz)
    spent, images = {}, {}
    for arm, prepared in lengths(comparison, runs, tmp_path).items():
        stages = list(zip(prepared.config.stages, prepared.masks, strict=True))
        spent[arm] = sum((stage.images or 0) * training_flops(prepared.spec, plan.phases[0]) for stage, plan in stages)
        images[arm] = sum(stage.images or 0 for stage, _ in stages)
    assert spent["plain"] == pytest.approx(3e9, rel=0.02)
    assert spent["masked"] == pytest.approx(spent["plain"], rel=0.02)
    assert images["masked"] > 1.5 * images["plain"]


def test_an_arm_may_stop_early(small, digits_npz, tmp_path):
    text = small.read_text().replace("name: show, share: 0.5", "name: show, share: 0.1")
    small.write_text(text.replace("name: hide, share: 0.5", "name: hide, share: 0.15"))
    comparison = read_comparison(str(small))
    runs = resolved(comparison, digits_npz)
    assert {name: arm.budget for name, arm in comparison.arms.items()} == {"plain": 1.0, "masked": 0.25}
    prepared = lengths(comparison, runs, tmp_path)["masked"]
    stages = zip(prepared.config.stages, prepared.masks, strict=True)
    spent = sum((stage.images or 0) * training_flops(prepared.spec, plan.phases[0]) for stage, plan in stages)
    assert spent == pytest.approx(3e9 / 4, rel=0.02)
    assert prepared.config.stages[0].mask.kind == "patch"


def test_minutes_become_images_by_the_throughput_of_each_stage(small, digits_npz, tmp_path, monkeypatch):
    """On a machine where a masked image takes 1 s and a whole one 3 s."""
    measured: list[int] = []

    def pretended(tasks):
        measured.append(len(tasks))
        return {key: 1.0 if task.masks[0].ratio else 3.0 for key, task in tasks.items()}

    monkeypatch.setattr(throughput, "measure_seconds", pretended)
    comparison = read_comparison(str(small)).model_copy(update={"budget": Budget(minutes=10)})
    runs = resolved(comparison, digits_npz)
    (clocked,) = runner.minutes_as_images(runs.arms["plain", 0], [3.0]).config.stages
    assert (clocked.minutes, clocked.images) == (None, 200)
    assert [stage.minutes for stage in runs.arms["masked", 0].config.stages] == [5, 5]
    found = lengths(comparison, runs, tmp_path)
    assert [stage.images for stage in found["plain"].config.stages] == [200]
    assert [stage.images for stage in found["masked"].config.stages] == [300, 100]
    assert found["masked"].config.eval.heldout_every == (150, 50)  # four evaluations, evenly over the budget
    assert measured == [2]  # whole images in batches of 8 cost the same in both arms
    lengths(comparison, runs, tmp_path)
    assert measured == [2]  # kept


def test_new_stages_are_laid_on_the_scale_of_the_old(small, digits_npz, tmp_path, monkeypatch):
    comparison = read_comparison(str(small)).model_copy(update={"budget": Budget(minutes=10)})
    runs = resolved(comparison, digits_npz)
    monkeypatch.setattr(throughput, "measure_seconds", lambda tasks: dict.fromkeys(tasks, 3.0))
    first = {"plain": runs.arms["plain", 0]}
    assert runner.image_costs(first, comparison, tmp_path)["plain"] == pytest.approx([0.005])
    # Today everything takes twice as long.
    monkeypatch.setattr(
        throughput,
        "measure_seconds",
        lambda tasks: {key: 2.0 if task.masks[0].ratio else 6.0 for key, task in tasks.items()},
    )
    both = runner.image_costs({**first, "masked": runs.arms["masked", 0]}, comparison, tmp_path)
    assert both["masked"] == pytest.approx([1 / 600, 3 / 600])


def test_what_else_the_machine_does_is_no_part_of_throughput(small, digits_npz, tmp_path, monkeypatch):
    """Four of the nine turns of either stage, whole and masked, are slowed down two- or threefold."""
    comparison = read_comparison(str(small))
    runs = resolved(comparison, digits_npz)
    turns: list[int] = []

    def steps(self, seconds, least=3, most=50):
        turns.append(1)
        return [8.0 * (1 if len(turns) > 8 else 2 + len(turns) % 2)] * 3

    monkeypatch.setattr(StepProfiler, "steps", steps)
    found = runner.image_seconds({arm: prepared for (arm, _), prepared in runs.arms.items()}, tmp_path)
    assert len(turns) == 2 * throughput.ROUNDS  # stages that cost the same are measured once
    assert found == {"plain": [1.0], "masked": [1.0, 1.0]}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_stages_of_two_optimizers_are_measured_each_with_its_own(small, digits_npz, tmp_path, monkeypatch):
    small.write_text(small.read_text().replace("{share: 1,", "{share: 1, optimizer: muon,"))
    comparison = read_comparison(str(small)).model_copy(update={"budget": Budget(minutes=10)})
    runs = resolved(comparison, digits_npz)
    steps, used = StepProfiler.steps, {}

    def seen(self, *arguments):
        (stage,) = self.task.config.stages
        used.setdefault((stage.optimizer, stage.name), set()).add(type(self.state.optimizer).__name__)
        return steps(self, *arguments)

    monkeypatch.setattr(StepProfiler, "steps", seen)
    assert forecast_comparison(comparison, runs).pace > 0
    lengths(comparison, runs, tmp_path)
    assert {optimizer for optimizer, _ in used} == {"muon", "adamw"}
    for (optimizer, _), kinds in used.items():
        assert kinds == {"MuonWithAdamW" if optimizer == "muon" else "AdamW"}


def test_stages_of_few_slow_steps_are_measured_as_those_of_many_fast_ones(small, digits_npz, monkeypatch):
    """Steps of half a second and of a hundredth, with noise: neither gains by the number of its steps."""
    comparison = read_comparison(str(small))
    tasks = runner.stage_tasks({"masked": resolved(comparison, digits_npz).arms["masked", 0]})["masked"]
    rng = np.random.default_rng(0)

    class Pretended:
        def __init__(self, task):
            self.slow = False

        def use(self, task):
            self.slow = not task.masks[0].ratio

        def step(self, count=1):
            return float((0.5 if self.slow else 0.01) * np.exp(rng.normal(0, 0.1)))

        steps, between = StepProfiler.steps, 1

    monkeypatch.setattr(throughput, "StepProfiler", Pretended)
    monkeypatch.setattr(throughput, "SECONDS", 0.6)
    ratios = []
    for _ in range(100):
        found = throughput.measure_seconds({"fast": tasks[0], "slow": tasks[1]})
        ratios.append(math.log(found["slow"] / found["fast"] / 50))
    assert np.mean(ratios) == pytest.approx(0, abs=0.01)  # the best of five turns is 6 % short


def test_throughput_is_real_and_of_this_machine(small, digits_npz, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "SECONDS", 0.01)
    comparison = read_comparison(str(small)).model_copy(update={"budget": Budget(minutes=10)})
    runs = resolved(comparison, digits_npz)
    found = lengths(comparison, runs, tmp_path)
    assert all(stage.images and stage.images > 8 for arm in found.values() for stage in arm.config.stages)
    path = tmp_path / THROUGHPUT
    path.write_text(path.read_text().replace("cpu, ", "abacus, "))
    with pytest.raises(InputError) as caught:
        lengths(comparison, runs, tmp_path)
    assert caught.value.name == str(path)
    assert str(caught.value.got).startswith("abacus, ")
    assert caught.value.wanted.startswith("cpu, ")
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read") as caught:
        lengths(comparison, runs, tmp_path)
    assert caught.value.name == str(path)


def test_training_everything_and_resuming(small, digits_npz, tmp_path, capsys):
    words = ("compare", small, "--data", digits_npz, "--output-dir", tmp_path / "out", "--seeds", "0,1")
    assert run(*words) == 0
    said = capsys.readouterr()
    assert "measuring what an image costs in every stage" in said.err
    assert "  masked: hide " in said.err
    runs = list_runs(tmp_path / "out")
    assert len(runs) == 4
    *lines, last = said.out.splitlines()
    assert [line.split()[0] for line in lines] == ["arm", "plain", "masked"]
    assert last == NOTE
    assert "no verdict, with " in lines[-1]  # of the few steps that there were
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Small" in page
    assert "4 of 4 runs done" in page
    assert page.count("<img") == 4
    assert "masked against plain" in page
    assert "patch: 4 of 16 patches visible" in page  # the settings of every arm
    assert "digits.npz: " in page
    for folder in runs:
        assert 5 <= len(read_history(folder).heldout) <= 9
    assert run(*words) == 0  # nothing is trained again
    again = capsys.readouterr()
    assert again.out == said.out
    assert again.err.count("finished before") == 4
    assert list_runs(tmp_path / "out") == runs


def test_bad_input_makes_no_folder(small, digits_npz, tmp_path, capsys):
    small.write_text(SMALL.replace("ratio: 0.75", "ratio: 1.75"))
    assert run("compare", small, "--data", digits_npz, "--output-dir", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("maskdm: error: arm masked: stages.0.mask.ratio: ")
    assert not (tmp_path / "out").exists()


TRANSFER = (
    SMALL.replace("evaluations: 4", "evaluations: 4\npretrained:\n  other: {stages: [{images: 16, batch_size: 8}]}")
    + """
  after:
    - {share: 1, batch_size: 8, lr: 1.0e-3, init_from: pretrained.other}
  own:
    settings: {model.depth: 5}
    stages: [{share: 1, batch_size: 8, lr: 1.0e-3}]
"""
)


def test_arms_may_start_from_a_model_and_have_settings_of_their_own(small, digits_npz, photos, tmp_path, capsys):
    small.write_text(TRANSFER)
    size = ["data.image_size=8", "data.channels=1"]
    words = ["--data", digits_npz, "--pretrain-data", photos, "--output-dir", tmp_path / "out", *size]
    assert run("compare", small, *words) == 0
    said = capsys.readouterr()
    assert "1 of 5: other to start from, seed 0" in said.err
    runs = {folder.name.partition("-")[2]: folder for folder in list_runs(tmp_path / "out")}
    assert sorted(runs) == ["after", "masked", "other", "own", "plain"]
    assert read_config(runs["other"]).data.path == str(photos)
    assert read_config(runs["after"]).data.path == str(digits_npz)
    assert read_config(runs["after"]).stages[0].init_from == str(runs["other"])
    assert read_config(runs["own"]).model.depth == 5
    assert run("compare", small, *words) == 0
    assert capsys.readouterr().err.count("finished before") == 5


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("pretrained.other", "pretrained.another", "{file}: arms.after.init_from"),
        ("  other: {stages", "  plain: {stages", "{file}: pretrained"),
        ("model.depth: 5", "eval.heldout_images: 9", "arms.own"),
        ("model.depth: 5", "data.heldout: 0.5", "arms.own"),
        ("images: 16, batch", "imges: 16, batch", "pretrained other: "),
        ("title: Small", "title: Same", "pretrained.other"),  # it has the images of the arms
    ],
)
def test_wrong_transfers(old, new, name, small, digits_npz):
    assert old in TRANSFER
    text = TRANSFER.replace(old, new)
    # Both names of another model: what the file says of it is not what is asked about.
    small.write_text(text.replace("{plain: {stages", "{other: {stages"))
    assert refusal(small, digits_npz).name.startswith(name.format(file=small))


def test_arms_that_cannot_be_compared_are_told_why(small, digits_npz):
    small.write_text(TRANSFER.replace("model.depth: 5", "eval.heldout_images: 9"))
    error = refusal(small, digits_npz)
    assert "eval.heldout_images (9, not 8)" in error.problem


def test_a_shipped_file_can_be_shown_and_used(tmp_path, digits_npz, capsys):
    assert run("compare", "--show", "digits") == 0
    assert capsys.readouterr().out == comparison_text("digits")
    (tmp_path / "mine.yaml").write_text(comparison_text("digits"))
    assert run("compare", tmp_path / "mine.yaml", "--data", digits_npz, "--dry-run") == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("8 runs, about ")
    assert ": 2 min training, " in last
    assert "sample grids" in last
    assert not (tmp_path / "compare").exists()
    with pytest.raises(InputError) as caught:
        comparison_text("none")
    assert (caught.value.name, caught.value.got) == ("show", "none")


def test_the_time_that_is_promised_has_everything_in_it(small, digits_npz, tmp_path):
    """A hundred grids and scores beside little training: nobody would wait for the training alone."""
    more = ("eval.samples=64", "eval.sample_steps=25", "eval.scores=encoder", "eval.score_images=16")
    comparison = read_comparison(str(small))
    found = forecast_comparison(comparison, resolved(comparison, digits_npz, *more))
    assert found.pace == 0  # of petaFLOPs
    assert all(each > 0 for each in (found.training, found.heldout, found.grids, found.scores, found.rest))
    assert found.total == pytest.approx(sum((found.training, found.heldout, found.grids, found.scores, found.rest)))
    timed = comparison.model_copy(update={"budget": Budget(minutes=1), "seeds": (0, 1)})
    twice = forecast_comparison(timed, resolved(timed, digits_npz))
    assert (twice.training, twice.scores) == (240, 0)
    assert twice.pace > 2 * throughput.ROUNDS * throughput.SECONDS


def test_pretrain_data_in_vain(small, digits_npz, capsys):
    assert run("compare", small, "--data", digits_npz, "--pretrain-data", digits_npz) == 2
    assert "--pretrain-data: " in capsys.readouterr().err


def test_stages_of_a_recipe_are_stretched_to_the_budget(small, digits_npz, tmp_path):
    stages = '[{"name": "a", "images": 32, "batch_size": 8}, {"name": "b", "images": 8, "batch_size": 8}]'
    small.write_text(SMALL + f"  own: {{settings: {{stages: {stages}}}}}\n")
    comparison = read_comparison(str(small))
    runs = resolved(comparison, digits_npz)
    found = lengths(comparison, runs, tmp_path)
    first, second = (stage.images or 0 for stage in found["own"].config.stages)
    assert first == pytest.approx(0.8 * (first + second), rel=0.02)
    plain = found["plain"].config.stages[0].images or 0
    assert first + second == pytest.approx(plain, rel=0.02)


def test_an_arm_may_be_a_recipe_and_another_process(small, digits_npz, tmp_path):
    own = "{recipe: digits, settings: {process.kind: flow}}"
    small.write_text(SMALL + f"  own: {own}\n")
    comparison = read_comparison(str(small)).model_copy(update={"budget": Budget(petaflops=0.001)})
    runs = resolved(comparison, digits_npz)
    found = lengths(comparison, runs, tmp_path)
    plain, recipe = found["plain"].config, found["own"].config
    assert (recipe.process.kind, recipe.model.width) == ("flow", 96)
    assert recipe.data == plain.data
    assert recipe.eval.heldout_images == plain.eval.heldout_images == 8
    steps = [stage.images or 0 for stage in recipe.stages]
    assert [stage.name for stage in recipe.stages] == ["pretrain", "finetune"]
    assert steps[0] / steps[1] == pytest.approx(1.5, rel=0.05)  # 3,000 and 2,000 steps of as many images


def test_scores_are_part_of_the_conclusion(small, digits_npz, tmp_path, capsys):
    words = ["eval.scores=pixels", "eval.score_images=8"]
    assert run("compare", small, "--data", digits_npz, "--output-dir", tmp_path / "out", *words) == 0
    said = capsys.readouterr().out
    assert "Frechet distance" in said.splitlines()[2]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "over the baseline" in page
    assert "Frechet distance on pixels, n = 8" in page


# --- conclusions ------------------------------------------------------------------------------------------------------


def outcome(arm: str, seed: int, *errors: float) -> Outcome:
    found = tuple(Evaluation(i / (len(errors) - 1), error) for i, error in enumerate(errors))
    return Outcome(arm, seed, Path(), found, 100, 1.0)


def test_when_an_error_was_reached():
    found = outcome("a", 0, 1.0, 0.5, 0.6, 0.1, 0.0).evaluations
    assert reached(found, 1.0) == 0
    assert reached(found, 0.75) == pytest.approx(0.125)
    assert reached(found, 0.5) == pytest.approx(0.25)
    assert reached(found, 0.05) == pytest.approx(0.875)
    assert reached(found, -1) is None


def test_twice_as_fast_with_all_seeds_is_a_finding():
    plain = [outcome("plain", seed, 1.0, 0.6, 0.4, 0.3, 0.2 + seed / 1000) for seed in range(3)]
    fast = [outcome("fast", seed, 1.0, 0.5, 0.2, 0.15, 0.1 + seed / 1000) for seed in range(3)]
    base, found = conclude([*plain, *fast], "plain")
    assert (base.speedup.value, base.text) == (1.0, "the baseline")
    assert found.speedup.value == pytest.approx(2, rel=0.02)
    assert found.speedup.low is not None
    assert found.speedup.low > 1.9
    assert found.text.endswith("better at equal compute")
    assert found.error.deviation == pytest.approx(0.001)


def test_one_seed_is_a_hint():
    _, found = conclude([outcome("plain", 0, 1, 0.5, 0.2), outcome("fast", 0, 1, 0.2, 0.1)], "plain")
    assert found.speedup.value == pytest.approx(2)
    assert (found.speedup.low, found.error.deviation) == (None, None)
    assert found.text.endswith("with one seed: a hint, no finding")


def test_seeds_that_disagree_show_nothing():
    plain = [outcome("plain", seed, 1.0, 0.5, 0.2) for seed in range(2)]
    other = [outcome("other", 0, 1.0, 0.2, 0.1), outcome("other", 1, 1.0, 0.6, 0.2)]
    _, found = conclude([*plain, *other], "plain")
    assert found.speedup.low is not None
    assert found.speedup.low < 1
    assert found.text.endswith("no difference that these seeds show")


def test_never_getting_there_is_worse_and_how_far_it_got_is_said():
    plain, slow = outcome("plain", 0, 1.0, 0.5, 0.25), outcome("slow", 0, 1.0, 0.8, 0.5)
    _, found = conclude([plain, slow], "plain")
    assert (found.never, found.speedup.value) == (1, pytest.approx(0.5))  # the baseline was there after half
    assert "with 1 of 1 seeds: it ended 100% higher, where the baseline was with 50% of the budget" in found.text
    assert found.text.endswith("0.50 times as fast: with one seed: a hint that it is worse, no finding")
    plain = [outcome("plain", seed, 1.0, 0.5, 0.2 + seed / 1000) for seed in range(3)]
    slow = [outcome("slow", seed, 1.0, 0.8, 0.5 + seed / 1000) for seed in range(3)]
    _, found = conclude([*plain, *slow], "plain")
    assert found.never == 3
    assert found.text.endswith("worse at equal compute")


def test_one_seed_that_never_gets_there_counts_with_the_others():
    plain = [outcome("plain", seed, 1.0, 0.6, 0.4, 0.3, 0.2) for seed in range(2)]
    other = [outcome("other", 0, 1.0, 0.4, 0.2, 0.2, 0.2), outcome("other", 1, 1.0, 0.8, 0.7, 0.6, 0.4)]
    _, found = conclude([*plain, *other], "plain")
    assert found.never == 1
    assert found.speedup.value == pytest.approx(1)  # twice as fast, and half
    assert found.text.endswith("no difference that these seeds show")


def test_exchanging_two_arms_gives_the_inverse():
    rng = np.random.default_rng(0)
    for _ in range(50):
        one, other = (outcome("a", 0, *np.minimum.accumulate(rng.random(6) + 0.1)).evaluations for _ in range(2))
        assert speedup(one, other) * speedup(other, one) == pytest.approx(1)
    wavy = outcome("a", 0, 1.0, 0.1, 0.3).evaluations  # was below its own end, and below the other's
    assert speedup(wavy, outcome("b", 0, 1.0, 0.1, 0.3).evaluations) == 1


def null_comparison(rng: np.random.Generator, arms: int, seeds: int) -> list[Outcome]:
    """Curves that differ by chance alone: in how fast each run learns, in its level, and in every measurement."""
    spent = np.linspace(0, 1, 11)
    found = []
    for arm in range(arms + 1):
        for seed in range(seeds):
            pace, level = np.exp(rng.normal(0, 0.15)), np.exp(rng.normal(0, 0.03))
            errors = level * (0.05 + 0.3 * np.exp(-4 * pace * spent)) * np.exp(rng.normal(0, 0.01, len(spent)))
            name = "plain" if arm == 0 else f"arm{arm}"
            found.append(outcome(name, seed, *errors))
    return found


@pytest.mark.parametrize("seeds", [2, 3])
def test_eleven_arms_with_nothing_to_find_find_nothing(seeds):
    """Of 60 comparisons each; without the correction a dozen find an arm that is better."""
    rng = np.random.default_rng(seeds)
    better = uncorrected = 0
    for _ in range(60):
        conclusions = conclude(null_comparison(rng, 11, seeds), "plain")[1:]
        better += any(each.text.endswith("better at equal compute") for each in conclusions)
        uncorrected += any(each.speedup.p < LEVEL and each.speedup.value > 1 for each in conclusions)
    assert better <= 3
    assert uncorrected > better + 5


def test_corrected_p_values_are_holms():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_what_is_better_alone_may_not_be_among_many():
    plain = [outcome("plain", seed, 1.0, 0.6, 0.4, 0.3, 0.2) for seed in range(3)]
    fast = [outcome("fast", seed, 1.0, 0.5, last, last, 0.1) for seed, last in enumerate((0.23, 0.24, 0.27))]
    alone = conclude([*plain, *fast], "plain")[1]
    assert alone.p == alone.speedup.p
    assert alone.text.endswith("better at equal compute")
    same = [outcome(f"same{i}", seed, 1.0, 0.6, 0.4, 0.3, 0.2) for i in range(20) for seed in range(3)]
    among = conclude([*plain, *fast, *same], "plain")[1]
    assert among.p == pytest.approx(21 * alone.p)
    assert "after Holm's correction for 21 arms" in among.text
    assert among.text.endswith("no difference that these seeds show")
    assert format_conclusions([among])[-1] == NOTE


@pytest.mark.parametrize(
    ("control", "said"),
    [((0.5, 0.2, 0.1), "but not shown to be better than the control two"), ((0.6, 0.4, 0.2), "better than it too")],
)
def test_the_control_is_weighed(control, said):
    """Arms that are better than plain; the control is as good, or no better than plain."""
    plain = [outcome("plain", seed, 1.0, 0.6, 0.4, 0.2 + seed / 1000) for seed in range(3)]
    fast = [outcome("fast", seed, 1.0, 0.5, 0.2, 0.1 + seed / 1000) for seed in range(3)]
    two = [outcome("two", seed, 1.0, *control[:-1], control[-1] + seed / 1000) for seed in range(3)]
    found = {each.arm: each for each in conclude([*plain, *fast, *two], "plain", "two")}
    assert found["fast"].p < LEVEL
    assert said in found["fast"].text
    assert found["two"].over_control is None
    assert "control" not in found["two"].text


def test_few_steps_give_no_verdict():
    plain = [replace(outcome("plain", seed, 1.0, 0.6, 0.2 + seed / 1000), steps=5000) for seed in range(3)]
    fast = [replace(outcome("fast", seed, 1.0, 0.2, 0.1 + seed / 1000), steps=999) for seed in range(3)]
    assert conclude([*plain, *fast], "plain")[1].text.endswith("no verdict, with 999 steps (at least 1,000 are needed)")
    enough = [replace(each, steps=1000) for each in fast]
    assert conclude([*plain, *enough], "plain")[1].text.endswith("better at equal compute")


def test_distances_in_different_features_are_not_compared():
    def scored(arm: str, features: str) -> list[Outcome]:
        runs = [outcome(arm, seed, 1.0, 0.5) for seed in range(2)]
        return [replace(run, distances=(Evaluation(1.0, 1.0),), features=features) for run in runs]

    _, found = conclude([*scored("plain", "encoder 1"), *scored("other", "encoder 2")], "plain")
    assert found.distance_ratio is None
    assert found.text.endswith("Frechet distances are in different features and not compared (encoder 1, encoder 2)")


def test_what_starts_ahead_counts_as_there_at_its_first_evaluation():
    _, found = conclude([outcome("plain", 0, 1.0, 0.5, 0.4), outcome("tuned", 0, 0.3, 0.2, 0.1)], "plain")
    assert found.speedup.value == pytest.approx(2)


def early(arm: str, seed: int, *errors: float) -> Outcome:
    """With a quarter of the budget."""
    found = outcome(arm, seed, *errors)
    quarter = tuple(replace(each, spent=each.spent / 4) for each in found.evaluations)
    return replace(found, evaluations=quarter, budget=0.25)


def test_an_arm_that_stops_early_says_so_and_is_not_called_worse():
    plain = [outcome("plain", seed, 1.0, 0.6, 0.4, 0.3, 0.2 + seed / 1000) for seed in range(3)]
    _, found = conclude([*plain, *(early("fast", seed, 1.0, 0.5, 0.19) for seed in range(3))], "plain")
    assert found.text.startswith("with 25% of the budget; 4.07 times as fast (95 % interval ")
    assert found.text.endswith("better at equal compute")
    _, found = conclude([*plain, *(early("slow", seed, 1.0, 0.8, 0.5) for seed in range(3))], "plain")
    assert found.text.startswith("with 25% of the budget; did not reach the baseline's last error with 3 of 3 seeds: ")
    assert "worse" not in found.text

    def scored(found: Outcome, distance: float) -> Outcome:
        return replace(found, distances=(Evaluation(1.0, distance + found.seed / 100),))

    plain = [scored(each, 1.0) for each in plain]
    far, near = ([scored(early("slow", seed, 1.0, 0.8, 0.5), d) for seed in range(3)] for d in (2.0, 0.5))
    assert "distance" not in conclude([*plain, *far], "plain")[1].text
    assert "Frechet distance 50% lower" in conclude([*plain, *near], "plain")[1].text


def test_distances_are_compared_over_seeds():
    def scored(arm: str, seed: int, distance: float) -> Outcome:
        return replace(outcome(arm, seed, 1.0, 0.5), distances=(Evaluation(1.0, distance),))

    plain = [scored("plain", seed, 1.0 + seed / 100) for seed in range(3)]
    near = [scored("near", seed, 0.5 + seed / 100) for seed in range(3)]
    _, found = conclude([*plain, *near], "plain")
    assert found.distance_ratio is not None
    assert found.distance_ratio.value == pytest.approx(0.505, abs=0.01)
    assert "Frechet distance 50% lower than the baseline's (ratio 0." in found.text
    alike = [scored("near", seed, 1.01 - seed / 50) for seed in range(3)]
    assert conclude([*plain, *alike], "plain")[1].text.endswith("no difference that these seeds show)")


def test_an_unknown_comparison_names_those_there_are():
    with pytest.raises(InputError) as caught:
        read_comparison("mask")
    assert (caught.value.name, caught.value.got) == ("comparison", "mask")
    assert "masks" in caught.value.wanted


def test_intervals_are_students_for_any_number_of_seeds():
    assert t_quantile(2) == pytest.approx(12.7062, abs=1e-4)
    assert t_quantile(11) == pytest.approx(2.2281, abs=1e-4)
    assert t_quantile(1000) == pytest.approx(1.9623, abs=1e-4)
    errors = [0.1, 0.12, 0.15, 0.11]
    runs = [outcome("plain", seed, 1.0, 0.2) for seed in range(4)]
    runs += [outcome("other", seed, 1.0, error) for seed, error in enumerate(errors)]
    found = conclude(runs, "plain")[1].error_ratio
    logs = [math.log(error / 0.2) for error in errors]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(logs), scale=stats.sem(logs))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))


def test_ratios_as_text():
    assert str(Ratio(1.234, 1)) == "1.23"
    assert str(Ratio(1.234, 3, 0.9, 2.0)) == "1.23 (0.90 to 2.00)"
