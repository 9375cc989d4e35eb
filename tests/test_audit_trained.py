"""The audit of a model that was trained until it had memorized its 128 digits. Minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskdm.auditing import statistics
from maskdm.auditing.attacks import standard_attacks
from maskdm.auditing.controls import Control, blind_control, null_control
from maskdm.auditing.scoring import ScoredAttack, score_attacks
from maskdm.auditing.subject import Subject, run_subject
from maskdm.auditing.target import ModelTarget
from maskdm.auditing.verdict import audit_verdict, leakage_detected
from maskdm.config.resolve import resolve
from maskdm.models.weights import load
from maskdm.runtime.console import Console
from maskdm.training.start import start_training

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STAGES = "stages=[{name: learn, steps: 6000, batch_size: 64, lr: 2e-3, warmup_steps: 100}]"


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    from maskdm.commands.demo import digits

    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    images, _ = digits()
    np.savez(path, images=images)
    return path


@pytest.fixture(scope="module")
def subject(digits, tmp_path_factory) -> Subject:
    split = ("data.heldout=0.62", "data.calibration=0.31")
    quiet = ("eval.samples=0", "eval.heldout_images=0", "model.classes=none")
    config = resolve(recipe="digits", overrides=[f"data.path={digits}", STAGES, *split, *quiet])
    folder = tmp_path_factory.mktemp("runs")
    run = start_training(config, output_dir=folder, name="run", resume="never", console=Console(quiet=True))
    return run_subject(run, "ema", seed=0, console=Console(quiet=True))


def score(subject: Subject) -> tuple[ScoredAttack, list[Control]]:
    found = score_attacks(ModelTarget(load(subject.weights)), standard_attacks(2), subject, batch_size=256)
    return found[0], [blind_control(subject), null_control(found[0])]


@pytest.fixture(scope="module")
def scored(subject) -> tuple[ScoredAttack, list[Control]]:
    return score(subject)


def test_must_flag(scored):
    primary, controls = scored
    assert audit_verdict(primary, controls).name == "LEAKAGE DETECTED"
    assert primary.auc.value > 0.95


def test_must_not_flag(subject):
    """The same model, asked about images that it never saw as if they were members."""
    half = len(subject.heldout) // 2
    order = np.random.default_rng(0).permutation(len(subject.heldout))
    pretended = replace(subject, members=subject.heldout.take(order[:half]), heldout=subject.heldout.take(order[half:]))
    primary, controls = score(pretended)
    low, high = primary.auc.interval(0.999)
    assert low < 0.5 < high
    assert audit_verdict(primary, controls).name in ("INCONCLUSIVE", "NO LEAKAGE DETECTED BY THESE ATTACKS")


def test_must_say_invalid(subject):
    """Members with 3 % less contrast: told apart by anybody."""
    faded = (subject.members.images * 0.97).round().astype(np.uint8)
    primary, controls = score(replace(subject, members=replace(subject.members, images=faded)))
    assert not controls[0].passed
    assert audit_verdict(primary, controls).name == "INVALID"


def test_must_say_inconclusive(subject):
    primary, controls = score(subject.subset(40, 40, 200, 0))
    assert audit_verdict(primary, [c for c in controls if c.passed]).name == "INCONCLUSIVE"


def test_false_alarms_on_images_that_nobody_was_trained_on(scored):
    """Scores of held-out images of a model that leaks, split again and again: 1 % nominal, three standard errors."""
    pool = scored[0].heldout
    alarms, rounds = 0, 400
    for seed in range(rounds):
        order = np.random.default_rng(seed).permutation(len(pool))
        half = len(pool) // 2
        m, h = pool[order[:half]], pool[order[half:]]
        alarms += leakage_detected(ScoredAttack("primary", (m, h), m, h, h))
    assert alarms / rounds <= 0.01 + 3 * (0.01 * 0.99 / rounds) ** 0.5


def test_five_percent_intervals_miss_one_half_five_times_in_a_hundred(scored):
    pool = scored[0].heldout
    missed, rounds = 0, 1000
    for seed in range(rounds):
        order = np.random.default_rng(10_000 + seed).permutation(len(pool))
        low, high = statistics.auc(pool[order[: len(pool) // 2]], pool[order[len(pool) // 2 :]]).interval()
        missed += not low <= 0.5 <= high
    assert missed / rounds == pytest.approx(0.05, abs=0.025)
