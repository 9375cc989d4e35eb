"""Controls of an audit, and the AUC of parts of its images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from audit_cases import PASSED, flat, scored, subject

from maskdm.auditing import scoring, statistics
from maskdm.auditing.attacks import PRIMARY, primary_attacks
from maskdm.auditing.closed_forms import GaussianModel, Memorizer
from maskdm.auditing.controls import blind_control, memorizing_control, null_control, untrained_control
from maskdm.auditing.scoring import ScoredAttack
from maskdm.auditing.subgroups import auc_by_class, auc_of_groups, auc_of_outliers, most_exposed
from maskdm.auditing.subject import Subject
from maskdm.auditing.verdict import audit_verdict
from maskdm.config.model_config import UViTConfig
from maskdm.config.process_config import DDPMConfig
from maskdm.data.labelled import LabelledImages
from maskdm.diffusion.pixels import to_model
from maskdm.models.spec import ModelSpec


def test_a_memorizing_model_must_be_caught_and_an_untrained_one_must_not():
    caught, missed, chance = (statistics.auc(scored(shift).members, scored(shift).heldout) for shift in (9, 3, 0))
    assert memorizing_control(caught).passed
    assert not memorizing_control(missed).passed
    assert untrained_control(chance).passed
    assert not untrained_control(missed).passed
    assert null_control(scored(9)).passed  # members have no part in it


def test_blind_passes_one_pool_and_fails_another_contrast():
    assert blind_control(subject(1.0)).passed
    shifted = blind_control(subject(0.9))
    assert not shifted.passed
    assert shifted.value > 0.6


def test_near_duplicates_on_one_side_are_no_difference():
    """Groups of ten that look alike: who they are tells the sides apart, what they are of does not."""
    passed = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        roles = []
        for number in range(3):
            one = flat(40, 10 * seed + number)
            images = np.repeat(one.images, 10, axis=0)
            noisy = np.clip(images + rng.integers(-3, 4, images.shape), 0, 255).astype(np.uint8)
            groups = tuple(f"{number}-{i // 10}" for i in range(400))
            roles.append(LabelledImages(noisy, tuple(f"{number}-{i}" for i in range(400)), groups=groups))
        passed.append(
            blind_control(replace(subject(1.0), members=roles[0], heldout=roles[1], calibration=roles[2])).passed
        )
    assert sum(passed) >= 9


def test_no_attack_is_load_bearing(monkeypatch):
    """A model that knows the members a little is caught without any one of the five."""
    few = subject(1.0)
    known, nobody = Memorizer(to_model(few.members.images)), to_model(few.calibration.images)
    null = GaussianModel(nobody.mean(0), nobody.var(0))

    class Dose:
        device = torch.device("cpu")

        def nearest_sigma(self, sigma):
            return sigma

        def eps(self, x, sigma, label=None):
            return 0.2 * known.eps(x, sigma) + 0.8 * null.eps(x, sigma)

    for left_out in (None, *PRIMARY):
        monkeypatch.setattr(scoring, "PRIMARY", tuple(name for name in PRIMARY if name != left_out))
        found = scoring.score_attacks(Dose(), primary_attacks(1), few, batch_size=200)[0]
        assert audit_verdict(found, [PASSED]).name == "LEAKAGE DETECTED", left_out


# --- parts of the images ---------------------------------------------------------------------------------------------


def test_classes_and_groups_by_themselves():
    spec = ModelSpec(
        model=UViTConfig(), process=DDPMConfig(), image_size=(8, 8), channels=3, class_names=("a", "b", "c")
    )
    labels = np.arange(400) % 40  # of a and b ten each, of the others none that is known
    labels = np.where(labels < 20, 0, np.where(labels < 38, 1, 2))
    groups = tuple(f"g{i // 4}" for i in range(400))
    roles = [replace(flat(400, seed), labels=labels, groups=groups) for seed in (1, 2, 3)]
    found = Subject(Path(), "", spec, {}, *roles, certified=True)
    one = scored(0.0, 400)
    shifted = ScoredAttack("primary", one.raw, one.members + (labels == 1), one.heldout, one.calibration)
    classes = dict(auc_by_class(shifted, found))
    assert set(classes) == {"a", "b"}  # of c there are too few
    assert classes["b"].value > 0.65
    assert classes["a"].interval(0.999)[0] < 0.5
    grouped = auc_of_groups(ScoredAttack("primary", one.raw, one.members + 0.5, one.heldout, one.calibration), found)
    assert grouped is not None
    assert grouped.members == 100
    assert grouped.value > statistics.auc(one.members + 0.5, one.heldout).value + 0.1  # four images tell more


def test_outliers_are_the_images_that_are_least_like_others():
    """Every fourth image has a square that no other has, and leaks; the others do not."""
    rng = np.random.default_rng(0)
    odd = np.arange(400) % 4 == 0
    roles = [flat(400, seed) for seed in (1, 2, 3)]
    for role in roles[:2]:
        role.images[odd, 1:5, 1:5] = rng.integers(0, 256, (100, 4, 4, role.images.shape[-1]))
    spec = ModelSpec(model=UViTConfig(), process=DDPMConfig(), image_size=(8, 8), channels=3)
    found = Subject(Path(), "", spec, {}, *roles, certified=True)
    one = scored(0.0, 400)
    leaky = ScoredAttack("primary", one.raw, one.members + 2 * odd, one.heldout, one.calibration)
    outliers = auc_of_outliers(leaky, found)
    assert outliers is not None
    assert 90 <= outliers.members <= 110
    assert outliers.value > 0.85 > 0.7 > leaky.auc.value
    assert auc_of_outliers(scored(0.0, 20), found.subset(20, 20, 20, 0)) is None


def test_the_members_that_stand_out_most():
    one = scored(0.0, 100)
    members = np.arange(100.0)
    rows, shares = most_exposed(ScoredAttack("primary", one.raw, members, np.arange(0.5, 100.5), one.calibration), 3)
    assert rows.tolist() == [99, 98, 97]
    assert shares.tolist() == pytest.approx([0.01, 0.02, 0.03])
