"""Comparisons: the file, equal budgets, going on, and verdicts that say no more than their seeds show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from maskdm.cli.main import main
from maskdm.errors import InputError
from maskdm.experiments import runner as compare
from maskdm.experiments import throughput as pace
from maskdm.experiments.conclusion import reached, verdicts
from maskdm.experiments.runner import PACES, Look, Outcome
from maskdm.experiments.spec import Budget, arm_config, comparisons, read_comparison
from maskdm.models.flops import training_flops
from maskdm.runtime.console import Console
from maskdm.training.runs import list_runs, read_config, read_metrics
from maskdm.training.step_profiler import Trial

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


@pytest.mark.parametrize("name", comparisons())
def test_shipped_comparisons_are_whole(name):
    comparison = read_comparison(name)
    for arm in comparison.arms:
        config = arm_config(comparison, arm, 0, [])
        assert sum(stage.minutes or 0 for stage in config.stages) == pytest.approx(1)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("baseline: plain", "baseline: none", ["baseline", "plain, masked"]),
        ("share: 1,", "share: 1.1,", ["add up to 1 at most", "arms.plain"]),
        ("share: 1,", "share: 0.9,", ["a baseline", "add up to 1", "0.9"]),
        ("share: 1,", "", ["share above 0", "arms.plain"]),
        ("petaflops: 0.000003", "petaflops: 1, minutes: 1", ["budget", "one of them"]),
        ("looks: 4", "looks: 0", ["looks"]),
        ("looks: 4", "look: 4", ["unknown key 'look' (did you mean looks?)", "known here: title"]),
        ("budget: {", "budgt: {", ["unknown key 'budgt' (did you mean budget?)"]),
        (
            "  plain:\n    - {share: 1, batch_size: 8, lr: 1.0e-3}",
            "  plain: {stages.0.lr: 1}",
            ["arms.plain.stages.0.lr"],
        ),
        ("seeds: [0]", "seeds: [a]", ["seeds.0: got 'a', wanted"]),
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


def lengths(comparison, todo, tmp_path) -> dict[str, compare.Prepared]:
    arms = {arm: found for (arm, _), found in todo.arms.items()}
    cost = compare.costs(arms, comparison, tmp_path)
    return {arm: compare.spend(found, cost[arm], comparison, arm) for arm, found in arms.items()}


def test_arms_spend_the_same(small, digits_npz, tmp_path):
    comparison = read_comparison(str(small))
    todo = compare.plan(comparison, [f"data.path={digits_npz}"], Console(quiet=True))
    spent, images = {}, {}
    for arm, prepared in lengths(comparison, todo, tmp_path).items():
        stages = list(zip(prepared.config.stages, prepared.masks, strict=True))
        spent[arm] = sum((stage.images or 0) * training_flops(prepared.spec, plan.moments[0]) for stage, plan in stages)
        images[arm] = sum(stage.images or 0 for stage, _ in stages)
    assert spent["plain"] == pytest.approx(3e9, rel=0.02)
    assert spent["masked"] == pytest.approx(spent["plain"], rel=0.02)
    assert images["masked"] > 1.5 * images["plain"]


def test_an_arm_may_stop_early(small, digits_npz, tmp_path):
    text = small.read_text().replace("name: show, share: 0.5", "name: show, share: 0.1")
    small.write_text(text.replace("name: hide, share: 0.5", "name: hide, share: 0.15"))
    comparison = read_comparison(str(small))
    todo = compare.plan(comparison, [f"data.path={digits_npz}"], Console(quiet=True))
    assert {name: arm.budget for name, arm in comparison.arms.items()} == {"plain": 1.0, "masked": 0.25}
    prepared = lengths(comparison, todo, tmp_path)["masked"]
    stages = zip(prepared.config.stages, prepared.masks, strict=True)
    spent = sum((stage.images or 0) * training_flops(prepared.spec, plan.moments[0]) for stage, plan in stages)
    assert spent == pytest.approx(3e9 / 4, rel=0.02)
    assert prepared.config.stages[0].mask.kind == "patch"


def test_minutes_become_images_by_the_pace_of_each_stage(small, digits_npz, tmp_path, monkeypatch):
    """On a machine where a masked image takes 1 s and a whole one 3 s."""
    measured: list[int] = []

    def pretended(tasks):
        measured.append(len(tasks))
        return {key: 1.0 if task.masks[0].ratio else 3.0 for key, task in tasks.items()}

    monkeypatch.setattr(pace, "measure", pretended)
    comparison = read_comparison(str(small)).model_copy(update={"budget": Budget(minutes=10)})
    todo = compare.plan(comparison, [f"data.path={digits_npz}"], Console(quiet=True))
    (clocked,) = compare.paced(todo.arms["plain", 0], [3.0]).config.stages
    assert (clocked.minutes, clocked.images) == (None, 200)
    assert [stage.minutes for stage in todo.arms["masked", 0].config.stages] == [5, 5]
    found = lengths(comparison, todo, tmp_path)
    assert [stage.images for stage in found["plain"].config.stages] == [200]
    assert [stage.images for stage in found["masked"].config.stages] == [300, 100]
    assert found["masked"].config.eval.heldout_every == (150, 50)  # four looks, evenly over the budget
    assert measured == [2]  # whole images in batches of 8 cost the same in both arms
    lengths(comparison, todo, tmp_path)
    assert measured == [2]  # kept


def test_new_stages_are_laid_on_the_scale_of_the_old(small, digits_npz, tmp_path, monkeypatch):
    comparison = read_comparison(str(small)).model_copy(update={"budget": Budget(minutes=10)})
    todo = compare.plan(comparison, [f"data.path={digits_npz}"], Console(quiet=True))
    monkeypatch.setattr(pace, "measure", lambda tasks: dict.fromkeys(tasks, 3.0))
    first = {"plain": todo.arms["plain", 0]}
    assert compare.costs(first, comparison, tmp_path)["plain"] == pytest.approx([0.005])
    # Today everything takes twice as long.
    monkeypatch.setattr(
        pace, "measure", lambda tasks: {key: 2.0 if task.masks[0].ratio else 6.0 for key, task in tasks.items()}
    )
    both = compare.costs({**first, "masked": todo.arms["masked", 0]}, comparison, tmp_path)
    assert both["masked"] == pytest.approx([1 / 600, 3 / 600])


def test_what_else_the_machine_does_is_no_part_of_a_pace(small, digits_npz, tmp_path, monkeypatch):
    """Four of the five turns of either stage, whole and masked, are slowed down two- or threefold."""
    comparison = read_comparison(str(small))
    todo = compare.plan(comparison, [f"data.path={digits_npz}"], Console(quiet=True))
    turns: list[int] = []

    def steps(self, seconds, least=3, most=50):
        turns.append(1)
        return [8.0 * (1 if len(turns) in (3, 8) else 2 + len(turns) % 2)] * 3

    monkeypatch.setattr(Trial, "steps", steps)
    found = compare.seconds({arm: prepared for (arm, _), prepared in todo.arms.items()}, tmp_path)
    assert len(turns) == 2 * pace.ROUNDS  # stages that cost the same are measured once
    assert found == {"plain": [1.0], "masked": [1.0, 1.0]}


def test_paces_are_real_and_of_this_machine(small, digits_npz, tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "SECONDS", 0.01)
    comparison = read_comparison(str(small)).model_copy(update={"budget": Budget(minutes=10)})
    todo = compare.plan(comparison, [f"data.path={digits_npz}"], Console(quiet=True))
    found = lengths(comparison, todo, tmp_path)
    assert all(stage.images and stage.images > 8 for arm in found.values() for stage in arm.config.stages)
    path = tmp_path / PACES
    path.write_text(path.read_text().replace("cpu, ", "abacus, "))
    with pytest.raises(InputError, match=r"paces were measured on abacus, .* go on there, or compare in another"):
        lengths(comparison, todo, tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"cannot be read .* remove it"):
        lengths(comparison, todo, tmp_path)


def test_the_whole_way_and_going_on(small, digits_npz, tmp_path, capsys):
    words = ("compare", small, "--data", digits_npz, "--output-dir", tmp_path / "out", "--seeds", "0,1")
    assert run(*words) == 0
    said = capsys.readouterr()
    assert "measuring what an image costs in every stage" in said.err
    assert "  masked: hide " in said.err
    runs = list_runs(tmp_path / "out")
    assert len(runs) == 4
    assert [line.split()[0] for line in said.out.splitlines()] == ["arm", "plain", "masked"]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Small" in page
    assert "4 of 4 runs done" in page
    assert page.count("<img") == 4
    assert "masked against plain" in page
    assert "patch: 4 of 16 patches visible" in page  # the settings of every arm
    assert "digits.npz: " in page
    for folder in runs:
        looks = [e for e in read_metrics(folder) if e["event"] == "heldout"]
        assert 5 <= len(looks) <= 9
    assert run(*words) == 0  # nothing is trained again
    again = capsys.readouterr()
    assert again.out == said.out
    assert again.err.count("finished before") == 4
    assert list_runs(tmp_path / "out") == runs


def test_bad_input_makes_no_folder(small, digits_npz, tmp_path):
    small.write_text(SMALL.replace("ratio: 0.75", "ratio: 1.75"))
    assert run("compare", small, "--data", digits_npz, "--output-dir", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


TRANSFER = (
    SMALL.replace("looks: 4", "looks: 4\npretrained:\n  other: {stages: [{images: 16, batch_size: 8}]}")
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
    ("old", "new", "message"),
    [
        ("pretrained.other", "pretrained.another", "arm after to start from one of pretrained"),
        ("model.depth: 5", "eval.heldout_images: 9", "arms plain and own differ in eval.heldout_images"),
        ("model.depth: 5", "data.heldout: 0.5", "arms plain and own differ in data.heldout"),
        ("images: 16, batch", "imges: 16, batch", "pretrained other: "),
        ("  other: {stages", "  plain: {stages", "not both an arm's and a pre-trained model's, got plain"),
    ],
)
def test_wrong_transfers_are_one_line(old, new, message, small, digits_npz, tmp_path, capsys):
    assert old in TRANSFER
    small.write_text(TRANSFER.replace(old, new))
    assert run("compare", small, "--data", digits_npz, "--output-dir", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert message in said
    assert not (tmp_path / "out").exists()


def test_a_shipped_file_can_be_shown_and_used(tmp_path, digits_npz, capsys):
    assert run("compare", "--show", "digits") == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert run("compare", tmp_path / "mine.yaml", "--data", digits_npz, "--dry-run") == 0
    assert "8 runs, 2 minutes of training in all" in capsys.readouterr().err
    assert run("compare", "--show", "none") == 2
    assert "--show: got 'none', wanted one of digits" in capsys.readouterr().err


def test_pretrained_models_need_pictures_of_their_own(small, digits_npz, tmp_path, capsys):
    small.write_text(TRANSFER)
    assert run("compare", small, "--data", digits_npz, "--output-dir", tmp_path / "out") == 2
    assert "pretrained other: has the pictures of the arms; give others with --pretrain-data" in capsys.readouterr().err


def test_pretrain_data_in_vain(small, digits_npz, capsys):
    assert run("compare", small, "--data", digits_npz, "--pretrain-data", digits_npz) == 2
    assert "--pretrain-data: given, but no arm starts from another model" in capsys.readouterr().err


def test_stages_of_a_recipe_are_stretched_to_the_budget(small, digits_npz, tmp_path):
    stages = '[{"name": "a", "images": 32, "batch_size": 8}, {"name": "b", "images": 8, "batch_size": 8}]'
    small.write_text(SMALL + f"  own: {{settings: {{stages: {stages}}}}}\n")
    comparison = read_comparison(str(small))
    todo = compare.plan(comparison, [f"data.path={digits_npz}"], Console(quiet=True))
    found = lengths(comparison, todo, tmp_path)
    first, second = (stage.images or 0 for stage in found["own"].config.stages)
    assert first == pytest.approx(0.8 * (first + second), rel=0.02)
    plain = found["plain"].config.stages[0].images or 0
    assert first + second == pytest.approx(plain, rel=0.02)


def test_an_arm_may_be_a_recipe_and_another_process(small, digits_npz, tmp_path):
    own = "{recipe: digits, settings: {process.kind: flow, process.schedule: cosine}}"
    small.write_text(SMALL + f"  own: {own}\n")
    comparison = read_comparison(str(small)).model_copy(update={"budget": Budget(petaflops=0.001)})
    todo = compare.plan(comparison, [f"data.path={digits_npz}"], Console(quiet=True))
    found = lengths(comparison, todo, tmp_path)
    plain, recipe = found["plain"].config, found["own"].config
    assert (recipe.process.kind, recipe.model.width) == ("flow", 96)
    assert recipe.data == plain.data
    assert recipe.eval.heldout_images == plain.eval.heldout_images == 8
    steps = [stage.images or 0 for stage in recipe.stages]
    assert [stage.name for stage in recipe.stages] == ["pretrain", "finetune"]
    assert steps[0] / steps[1] == pytest.approx(1.5, rel=0.05)  # 3,000 and 2,000 steps of as many images


def test_scores_are_part_of_the_verdict(small, digits_npz, tmp_path, capsys):
    words = ["eval.scores=pixels", "eval.score_images=8"]
    assert run("compare", small, "--data", digits_npz, "--output-dir", tmp_path / "out", *words) == 0
    said = capsys.readouterr().out
    assert "Frechet distance" in said.splitlines()[2]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "over the baseline" in page
    assert "Frechet distance on pixels, n = 8" in page


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
    assert base.speed is not None
    assert (base.speed.value, base.words) == (1.0, "the baseline")
    assert found.speed is not None
    assert found.speed.value == pytest.approx(2, rel=0.02)
    assert found.speed.low is not None
    assert found.speed.low > 1.9
    assert found.words.endswith("better at equal compute")
    assert found.final.deviation == pytest.approx(0.001)


def test_one_seed_is_a_hint():
    _, found = verdicts([made("plain", 0, 1, 0.5, 0.2), made("fast", 0, 1, 0.2, 0.1)], "plain")
    assert found.speed is not None
    assert found.speed.value == pytest.approx(2)
    assert (found.speed.low, found.final.deviation) == (None, None)
    assert found.words.endswith("with one seed: a hint, no finding")


def test_seeds_that_disagree_show_nothing():
    plain = [made("plain", seed, 1.0, 0.5, 0.2) for seed in range(2)]
    other = [made("other", 0, 1.0, 0.2, 0.1), made("other", 1, 1.0, 0.6, 0.2)]
    _, found = verdicts([*plain, *other], "plain")
    assert found.speed is not None
    assert found.speed.low is not None
    assert found.speed.low < 1
    assert found.words.endswith("no difference that these seeds show")


def test_never_getting_there_is_worse():
    plain, slow = made("plain", 0, 1.0, 0.5, 0.2), made("slow", 0, 1.0, 0.8, 0.5)
    _, found = verdicts([plain, slow], "plain")
    assert found.speed is None
    assert found.words.endswith("with 1 of 1 seeds: a hint that it is worse, no finding")
    plain = [made("plain", seed, 1.0, 0.5, 0.2 + seed / 1000) for seed in range(3)]
    slow = [made("slow", seed, 1.0, 0.8, 0.5 + seed / 1000) for seed in range(3)]
    assert verdicts([*plain, *slow], "plain")[1].words.endswith("with 3 of 3 seeds: worse at equal compute")


def test_what_starts_ahead_counts_as_there_at_its_first_look():
    _, found = verdicts([made("plain", 0, 1.0, 0.5, 0.4), made("tuned", 0, 0.3, 0.2, 0.1)], "plain")
    assert found.speed is not None
    assert found.speed.value == pytest.approx(2)


def early(arm: str, seed: int, *errors: float) -> Outcome:
    """With a quarter of the budget."""
    found = made(arm, seed, *errors)
    return replace(found, looks=tuple(replace(look, spent=look.spent / 4) for look in found.looks), budget=0.25)


def test_an_arm_that_stops_early_says_so_and_is_not_called_worse():
    plain = [made("plain", seed, 1.0, 0.6, 0.4, 0.3, 0.2 + seed / 1000) for seed in range(3)]
    _, found = verdicts([*plain, *(early("fast", seed, 1.0, 0.5, 0.19) for seed in range(3))], "plain")
    assert found.words.startswith("with 25% of the budget; reached the baseline's last error 4.07 times")
    assert found.words.endswith("better at equal compute")
    _, found = verdicts([*plain, *(early("slow", seed, 1.0, 0.8, 0.5) for seed in range(3))], "plain")
    assert found.words == "with 25% of the budget; did not reach the baseline's last error with 3 of 3 seeds"

    def scored(outcome: Outcome, distance: float) -> Outcome:
        return replace(outcome, scores=(Look(1.0, distance + outcome.seed / 100),))

    plain = [scored(each, 1.0) for each in plain]
    far, near = ([scored(early("slow", seed, 1.0, 0.8, 0.5), d) for seed in range(3)] for d in (2.0, 0.5))
    assert "distance" not in verdicts([*plain, *far], "plain")[1].words
    assert "Frechet distance 50% lower" in verdicts([*plain, *near], "plain")[1].words


def test_distances_are_compared_over_seeds():
    def scored(arm: str, seed: int, distance: float) -> Outcome:
        return replace(made(arm, seed, 1.0, 0.5), scores=(Look(1.0, distance),))

    plain = [scored("plain", seed, 1.0 + seed / 100) for seed in range(3)]
    near = [scored("near", seed, 0.5 + seed / 100) for seed in range(3)]
    _, found = verdicts([*plain, *near], "plain")
    assert found.closer is not None
    assert found.closer.value == pytest.approx(0.505, abs=0.01)
    assert "Frechet distance 50% lower than the baseline's (ratio 0." in found.words
    alike = [scored("near", seed, 1.01 - seed / 50) for seed in range(3)]
    assert verdicts([*plain, *alike], "plain")[1].words.endswith("no difference that these seeds show)")


def test_an_unknown_comparison_names_those_there_are():
    with pytest.raises(InputError, match="masks"):
        read_comparison("mask")
