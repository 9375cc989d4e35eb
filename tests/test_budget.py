"""Settings for a time: the rules, what is chosen, that it ends in time, that it resumes, and what is refused."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from conftest import write_digits
from data_helpers import refused

import maskdm
from maskdm.cli.main import main
from maskdm.commands.arguments import read_budget
from maskdm.config.resolve import changed_settings, given_lengths, resolve, to_config
from maskdm.config.yaml_files import as_yaml, parse_yaml
from maskdm.profiling import budget as budgets
from maskdm.profiling import rules
from maskdm.profiling.budget import TimeBudget
from maskdm.training import loop
from maskdm.training.find_run import REQUEST
from maskdm.training.read_run import list_runs, read_config, read_run
from maskdm.training.stages import total_steps

SMALL = {"model.width": 16, "model.depth": 3, "model.heads": 2, "data.salt": "public", "train.mixed_precision": "no"}
WORDS = [f"{key}={value}" for key, value in SMALL.items()]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures for a moment."""
    monkeypatch.setattr(budgets, "SECONDS_TO_MEASURE", 0.05)
    monkeypatch.setattr(budgets, "ENDING", 1.0)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    return write_digits(tmp_path / "digits.npz")


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "side"),
    [
        ((64, 64), 8),
        ((28, 28), 4),
        ((32, 32), 4),
        ((128, 128), 16),
        ((256, 256), 16),
        ((96, 64), 8),
        ((8, 8), 1),
        ((7, 7), 1),
        ((50, 50), 5),
    ],
)
def test_patches(size: tuple[int, int], side: int) -> None:
    assert rules.patch_side(size) == side


def test_a_larger_network_needs_more_images() -> None:
    enough = rules.IMAGES_PER_PARAMETER * 4_000_000
    assert rules.sees_enough(4_000_000, enough)
    assert not rules.sees_enough(4_000_000, enough - 1)


def test_batches_grow_with_the_run_and_are_shared_evenly() -> None:
    sizes = [rules.pick_batch(images, gpu=False) for images in (1, 10**5, 10**6, 10**7, 10**9)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (rules.LEAST_BATCH, rules.LARGEST_BATCH)
    assert rules.pick_batch(1, gpu=True) == rules.GPU_BATCH
    assert rules.pick_batch(1, gpu=False, ranks=3) % 3 == 0


def test_rates_fall_with_the_width_and_rise_with_the_batch() -> None:
    assert rules.pick_rate(128, 16) == rules.pick_rate(256, 16) == rules.RATE
    assert rules.pick_rate(512, 16) == rules.RATE / 2
    assert rules.pick_rate(256, 64) == 2 * rules.RATE == rules.pick_rate(256, 256)


@pytest.mark.parametrize("backbone", rules.SIZES)
def test_every_size_is_a_network(backbone: str) -> None:
    for size in rules.SIZES[backbone]:
        config = to_config(rules.usual_tree(backbone, size, (64, 64), 16))
        assert config.model.backbone == backbone
        assert (config.model.width, config.model.depth) == (size.width, size.depth)


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_a_time_is_taken_where_nothing_says_how_long() -> None:
    usual = TimeBudget.of(None, words=["data.path=x"])
    assert usual is not None
    assert (usual.minutes, usual.lengths) == (60, False)
    assert TimeBudget.of(None, words=["data.path=x", "stages.0.steps=5"]) is None
    assert TimeBudget.of(None, recipe="digits") is None
    assert TimeBudget.of(None, base=resolve()) is None
    asked = TimeBudget.of(5, recipe="digits")
    assert asked is not None
    assert asked.lengths
    assert given_lengths(overrides=["stages.1.minutes=5"]) == [False, True]


def test_times_that_cannot_be() -> None:
    with refused("hours", "is given with minutes"):
        read_budget(1, 1, data="x")
    for minutes in (0, -1, math.inf, math.nan):
        with refused("minutes", wanted="more than 0"):
            read_budget(minutes, data="x")
    with refused("hours", wanted="at most 100,000"):
        read_budget(hours=10**6, data="x")
    with refused("stages.1.steps", "missing, where other stages have a length"):
        read_budget(5, data="x", settings=["stages.0.steps=5"])


# --- what is chosen --------------------------------------------------------------------------------------------------


def dry(data: Path, minutes: float, settings: dict[str, object] | None = None, **more: object) -> maskdm.Config:
    result = maskdm.train(data, minutes=minutes, settings=settings, dry_run=True, quiet=True, **more)  # type: ignore[arg-type]
    assert result.settings is not None
    return to_config(parse_yaml(result.settings, "the dry run"))


def test_a_longer_time_is_spent_on_a_larger_network_and_more_images(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = tuple(rules.NetworkSize(width, 2, 2) for width in (16, 32, 64, 128))
    monkeypatch.setattr(rules, "SIZES", {"jit": sizes})
    monkeypatch.setattr(rules, "IMAGES_PER_PARAMETER", 0.3)
    few, many = (dry(digits, minutes, {"eval.samples": 0}) for minutes in (1, 200))
    assert few.model.width < many.model.width  # type: ignore[operator]
    assert sum((total_steps(stage) or 0) * stage.batch_size for stage in many.stages) > sum(
        (total_steps(stage) or 0) * stage.batch_size for stage in few.stages
    )


def test_what_is_set_stays(digits: Path) -> None:
    config = dry(
        digits, 3, {**SMALL, "stages.1.lr": 5e-5, "stages.0.mask.kind": "none", "eval.samples": 0, "log.every": 7}
    )
    assert (config.model.width, config.model.depth, config.model.heads) == (16, 3, 2)
    assert (config.stages[1].lr, config.stages[0].mask.kind) == (5e-5, "none")
    assert (config.eval.samples, config.log.every) == (0, 7)


@pytest.mark.parametrize("backbone", ["uvit", "unet"])
def test_another_backbone(backbone: str, digits: Path) -> None:
    config = dry(digits, 20, {"model.backbone": backbone, "model.width": 16})
    assert (config.model.backbone, config.model.width) == (backbone, 16)


def test_an_image_size_that_the_default_patches_do_not_divide(digits: Path) -> None:
    assert dry(digits, 20, {**SMALL, "data.image_size": 10, "eval.samples": 0}).model.patch_size == 1


def test_sizes_as_far_as_they_are_given() -> None:
    def sizes(*words: str) -> list[tuple[int, int, int | None]]:
        model = resolve(overrides=["model.backbone=jit", *words]).model
        return [(s.width, s.depth, s.heads) for s in rules.sizes_of("jit", model) if s is not None]

    assert len(sizes()) == len(rules.SIZES["jit"])
    assert sizes("model.width=320") == [(320, 8, 5)]
    assert sizes("model.width=60") == [(60, 4, 1)]
    assert {width % 12 for width, _, _ in sizes("model.heads=3")} == {0}


def test_lengths_of_a_recipe_are_proportions(digits: Path) -> None:
    steps = {"stages.0.steps": 300, "stages.1.steps": 100, "stages.0.mask.kind": "none", "stages.0.batch_size": 8}
    config = dry(digits, 20, {**SMALL, **steps, "stages.1.batch_size": 8})
    first, second = (stage.steps or 0 for stage in config.stages)
    assert first != 300
    assert 2 < first / second < 4.5  # both are steps of the same kind, as measured
    assert (
        dry(digits, 20, {**SMALL, "eval.samples": 4}, recipe="digits").model.backbone
        == resolve(recipe="digits").model.backbone
    )


def test_the_settings_of_a_dry_run_are_all_that_matter(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", str(digits), "--minutes", "20", "--dry-run", "-q", *WORDS]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# cpu, fp32: ")
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    config = resolve(file=file)
    assert as_yaml(changed_settings(config)) == "".join(line for line in text.splitlines(True) if line[0] != "#")
    assert given_lengths(file=file) == [True, True]


def test_what_no_memory_could_hold_is_not_measured(digits: Path) -> None:
    with refused("model", "parameters, their gradients, moments and average", remedy="smaller"):
        dry(digits, 20, {"model.width": 65_536, "model.depth": 1024})


def test_too_little_time(digits: Path) -> None:
    with refused("minutes", "would go to reading, measuring and evaluating", wanted="at least"):
        dry(digits, 0.01)


# --- a run -----------------------------------------------------------------------------------------------------------


def test_the_same_request_finds_its_run_again(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, minutes, real_median = tmp_path / "runs", 1.0, budgets.median
    monkeypatch.setattr(budgets, "median", lambda values: 30 * real_median(values))  # a machine that is as slow
    monkeypatch.setattr(budgets, "LEAST_STEPS", 1)
    words = ["train", "--data", str(digits), "--minutes", str(minutes), "--output-dir", str(runs), *WORDS]
    words += ["eval.samples=0", "eval.heldout_images=0", "stages.0.batch_size=8", "stages.1.batch_size=8"]
    saves: list[int] = []
    real = loop.training_step

    def interrupted(*arguments: object) -> object:
        if len(saves) == 3:
            raise KeyboardInterrupt
        saves.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", interrupted)
        assert main(words) != 0
    (run,) = list_runs(runs)
    before = read_config(run)
    assert main(words) == 0  # the same request: the same run, with the lengths that it began with
    assert list_runs(runs) == [run]
    assert read_config(run) == before
    assert read_run(run).history.finished
    request = json.loads((run / REQUEST).read_text())
    assert request["minutes"] == minutes
    assert len(request["reasons"]) >= 4
    assert "resuming" in capsys.readouterr().err
    assert main(words) == 0
    assert "is finished" in capsys.readouterr().err
    assert main([*words, "train.seed=1", "--resume", "never"]) == 0
    assert len(list_runs(runs)) == 2


def test_no_length_and_no_recipe_says_so(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", str(digits), "--dry-run", *WORDS]) == 0
    said = capsys.readouterr().err
    assert "no --minutes, --recipe or length of a stage is given: 1 h 0 min" in said
    assert "measuring this machine, for a run of 1 h 0 min" in said


def test_plan_takes_it_too(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    assert main(["plan", "--data", str(digits), "--seconds", "0.05", *WORDS]) == 0
    assert time.monotonic() - begun < 30
    said = capsys.readouterr()
    assert "for a run of 1 h 0 min" in said.err
    hours = [float(line.split()[2]) for line in said.out.splitlines() if line.startswith("in all")]
    assert len(hours) == 1


def test_a_network_of_ones_own(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ownbudget.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, *, image_size, channels, patch_size, classes=0):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(channels, channels, 3, padding=1)\n"
        "    def forward(self, x_t, t, *, mask=None, label=None):\n"
        "        return self.conv(x_t)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = dry(digits, 20, {"model.backbone": "ownbudget:Net", "stages.0.mask.kind": "none"})
    assert config.model.backbone == "ownbudget:Net"
    assert config.model.width is None
