"""Attacks on models whose knowledge is known: everything memorized, nothing, or a dose of it. No training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from maskdm.auditing import attacks, statistics
from maskdm.auditing.attacks import Attack, attack_scores, linear_sigmas, normalized_eps, shared_noise, vp_mixture
from maskdm.auditing.calibration import DifficultyFeatures, Ridge, assign_folds, cross_fitted_residuals, downsampled
from maskdm.auditing.closed_forms import GaussianModel, Memorizer
from maskdm.auditing.target import ModelTarget
from maskdm.config.process_config import DDPMConfig, EDMConfig, FlowConfig, VEConfig, VPConfig
from maskdm.diffusion.denoiser import Denoiser
from maskdm.models import build

SIDE = 6


def blurred(count: int, seed: int) -> Tensor:
    """Blurred noise in [-1, 1], like nothing and unlike each other."""
    x = torch.randn(count, 3, SIDE + 2, SIDE + 2, generator=torch.Generator().manual_seed(seed))
    return torch.tanh(torch.nn.functional.avg_pool2d(x, 3, 1) * 2)


MEMBERS, HELDOUT = blurred(150, 0), blurred(150, 1)
OTHERS = blurred(400, 2)
NULL = GaussianModel(OTHERS.mean(0), OTHERS.var(0))


@dataclass(frozen=True)
class Dose:
    """So much of a model that knows the members, and for the rest one that knows no image."""

    share: float

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def nearest_sigma(self, sigma: float) -> float:
        return sigma

    def eps(self, x: Tensor, sigma: float, label: Tensor | None = None) -> Tensor:
        known = Memorizer(MEMBERS).eps(x, sigma)
        return self.share * known + (1 - self.share) * NULL.eps(x, sigma)


ALL = [
    *attacks.standard_attacks(),
    *attacks.pia_attacks([0.17], normalized=True),
    attacks.loss_attack(0.17, 1),
]
LISTED = list({attack.name: attack for attack in ALL}.values())


def found(target, attack: Attack) -> statistics.Auc:
    m, h = (attack_scores(target, [attack], x, None, batch_size=64)[attack.name] for x in (MEMBERS, HELDOUT))
    return statistics.auc(m, h)


@pytest.mark.parametrize("attack", LISTED, ids=lambda attack: attack.name)
def test_a_memorizer_is_caught_by_every_attack(attack):
    assert found(Memorizer(MEMBERS), attack).value > 0.999


@pytest.mark.parametrize("attack", LISTED, ids=lambda attack: attack.name)
def test_a_model_that_knows_no_image_is_accused_by_none(attack):
    low, high = found(NULL, attack).interval(0.999)
    assert low < 0.5 < high


def test_orientation():
    """Memorized members score high; with the roles exchanged they score low."""
    attack = attacks.sima_attack(0.17)
    assert found(Memorizer(HELDOUT), attack).value < 0.001


@pytest.mark.parametrize(
    "attack", [attacks.loss_attack(0.17, 4), attacks.sima_attack(0.17)], ids=lambda attack: attack.name
)
def test_the_more_is_known_the_more_is_found(attack):
    values = [found(Dose(share), attack).value for share in (0, 0.03, 0.1, 0.3, 0.6)]
    assert all(b >= a - 1e-3 for a, b in pairwise(values))
    assert values[0] < 0.6
    assert values[-1] > 0.99


# --- against the formulas --------------------------------------------------------------------------------------------


def by_hand(target, x: np.ndarray, sigma: float) -> np.ndarray:
    return target.eps(torch.from_numpy(x).float(), sigma).double().numpy()


def test_scores_are_the_formulas():
    target, x_0 = Dose(0.4), HELDOUT[:5]
    x, a, s = x_0.double().numpy(), math.sqrt(1 - 0.17**2), 0.17
    size = (1, 2, 3)
    noises = [shared_noise(x_0.shape, k, x_0.device).double().numpy() for k in range(4)]
    wanted = {
        "loss 0.17": np.mean([((by_hand(target, a * x + s * e, s) - e) ** 2).mean(axis=size) for e in noises], axis=0),
        "sima 0.17": (by_hand(target, x, s) ** 4).mean(axis=size),
    }
    e_0 = by_hand(target, x, 0.02)
    wanted["pia 0.17"] = ((by_hand(target, a * x + s * e_0, s) - e_0) ** 4).mean(axis=size)
    e_n = e_0 / np.abs(e_0).mean(axis=size, keepdims=True) * math.sqrt(2 / math.pi)
    wanted["pian 0.17"] = ((by_hand(target, a * x + s * e_n, s) - e_n) ** 4).mean(axis=size)
    listed = [
        attacks.loss_attack(s, 4),
        attacks.sima_attack(s),
        *attacks.pia_attacks([s]),
        *attacks.pia_attacks([s], normalized=True),
    ]
    ours = attack_scores(target, listed, x_0, None, batch_size=2)
    for name, q in wanted.items():
        np.testing.assert_allclose(ours[name], -np.log(q), atol=2e-4, err_msg=name)


def test_secmi_is_one_step_on_and_back_after_a_chain():
    target, x = Dose(0.4), HELDOUT[:4].double().numpy()
    sigma = [0.0, *linear_sigmas()[10:111:10].tolist()]

    def step(x, here, there):
        eps = by_hand(target, x, max(here, 0.02))
        x_0 = (x - here * eps) / math.sqrt(1 - here**2)
        return math.sqrt(1 - there**2) * x_0 + there * eps

    for here, there in pairwise(sigma[:11]):
        x = step(x, here, there)
    back = step(step(x, sigma[10], sigma[11]), sigma[11], sigma[10])
    attack = attacks.secmi_attack()
    assert attack.calls == 12
    ours = attack_scores(target, [attack], HELDOUT[:4], None, batch_size=4)[attack.name]
    np.testing.assert_allclose(ours, -np.log(((back - x) ** 2).mean(axis=(1, 2, 3))), atol=5e-3)


def test_the_linear_schedule_of_the_papers():
    alpha_bar = 1 - linear_sigmas() ** 2
    assert alpha_bar[100] == pytest.approx(0.90, abs=0.006)
    assert alpha_bar[200] == pytest.approx(0.66, abs=0.006)


def test_pian_has_the_mean_size_of_a_normal_number():
    sizes = normalized_eps(torch.randn(4, 3, 5, 5) * 7).abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(sizes, torch.full((4,), math.sqrt(2 / math.pi)))


def test_noise_is_the_same_for_every_image_and_batch():
    attack = attacks.loss_attack(0.32, 2)
    whole, parts = (attack_scores(NULL, [attack], HELDOUT[:20], None, batch_size=size)[attack.name] for size in (20, 3))
    np.testing.assert_allclose(whole, parts, atol=1e-5)


@dataclass
class Counting:
    """The closed form, and how many images it was asked about."""

    asked: int = 0
    device = torch.device("cpu")

    def nearest_sigma(self, sigma: float) -> float:
        return sigma

    def eps(self, x: torch.Tensor, sigma: float, label: torch.Tensor | None = None) -> torch.Tensor:
        self.asked += len(x)
        return NULL.eps(x, sigma, label)


def test_quick_and_standard_cost_what_they_say():
    quick, standard, primary = attacks.quick_attacks(), attacks.standard_attacks(), attacks.primary_attacks(2)
    assert attacks.calls_per_image(quick) == 9
    assert attacks.calls_per_image(standard) == 36
    twice = [*standard, *(attacks.unconditional_attack(attack) for attack in attacks.primary_attacks(4))]
    assert attacks.calls_per_image(twice) == 36 + 12
    for listed in (quick, standard, attacks.standard_attacks(1), primary, twice):
        target = Counting()
        together = attack_scores(target, listed, HELDOUT[:7], None, batch_size=3)
        assert target.asked == 7 * attacks.calls_per_image(listed)
        for attack in listed:  # the first answer is that of its own batch
            alone = attack_scores(Counting(), [attack], HELDOUT[:7], None, batch_size=7)
            np.testing.assert_allclose(together[attack.name], alone[attack.name], atol=1e-4)
    assert set(attacks.PRIMARY) <= {attack.name for attack in standard}
    assert set(attacks.PRIMARY) <= {attack.name for attack in quick}
    assert [attack.name for attack in primary] == [a.name for a in standard if a.name in attacks.PRIMARY]


# --- any process and prediction --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        DDPMConfig(schedule="linear", prediction="eps"),
        DDPMConfig(prediction="x0"),
        VPConfig(prediction="v"),
        VEConfig(prediction="eps"),
        EDMConfig(prediction="F"),
        FlowConfig(prediction="velocity"),
    ],
    ids=lambda c: f"{c.kind} {c.prediction}",
)
@pytest.mark.parametrize("sigma", [0.09, 0.17, 0.46])
def test_one_target_for_every_process_and_prediction(config, sigma, monkeypatch):
    """The same knowledge in another process and another output gives the same eps."""
    objective = build.make_objective(config)
    denoiser = Denoiser(torch.nn.Identity(), objective.process, objective.prediction, 3, (SIDE, SIDE))
    target = ModelTarget(denoiser)

    def forward(self, x_t, t, **_):
        alpha, noise = self.alpha_sigma(t, x_t.dtype)
        n = (alpha**2 + noise**2).sqrt()
        level = float((noise / n)[0])
        eps = NULL.eps(x_t / n, level)
        x_0 = (x_t - noise * eps) / alpha
        return self.prediction.target(x_0, eps, alpha, noise)

    monkeypatch.setattr(Denoiser, "forward", forward)
    level = target.nearest_sigma(sigma)
    assert level == pytest.approx(sigma, abs=0.003)
    x = vp_mixture(HELDOUT[:3], torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), level)
    torch.testing.assert_close(target.eps(x, sigma), NULL.eps(x, level), atol=2e-3, rtol=2e-3)


# --- difficulty ------------------------------------------------------------------------------------------------------


def unit8(x: Tensor) -> np.ndarray:
    return ((x.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def test_difficulty_is_taken_off_and_membership_stays():
    """Scores that are mostly a property of the image, and a little membership."""
    rng = np.random.default_rng(0)
    sets = [unit8(blurred(n, seed)) for n, seed in ((400, 10), (400, 11), (400, 12))]
    features = DifficultyFeatures.fit(sets[2])
    inputs = [features(images) for images in sets]
    difficulty = [3 * x[:, 0] + 2 * x[:, -4] * 10 for x in inputs]
    raw = [d + rng.normal(size=len(d)) + (member * 1.0) for d, member in zip(difficulty, (1, 0, 0), strict=True)]
    ridge = Ridge.fit(inputs[2], raw[2])
    before = statistics.auc(raw[0], raw[1]).value
    after = statistics.auc(ridge.residuals(inputs[0], raw[0]), ridge.residuals(inputs[1], raw[1])).value
    assert after > before + 0.08
    assert after > 0.7
    left = cross_fitted_residuals(inputs[2], raw[2])
    assert left.mean() == pytest.approx(0, abs=0.1)
    assert left.std() == pytest.approx(1, abs=0.15)


def test_folds_keep_groups_together():
    rng = np.random.default_rng(0)
    groups = [f"g{i // 3}" for i in range(60)]
    fold = assign_folds(60, groups, rng)
    assert all(len(set(fold[i : i + 3])) == 1 for i in range(0, 60, 3))
    assert set(fold) == set(assign_folds(60, None, rng)) == set(assign_folds(60, ["one"] * 60, rng)) == {0, 1, 2, 3, 4}


def test_noise_alone_is_not_fitted():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(100, 60)), rng.normal(size=100)
    assert np.abs(Ridge.fit(x, y)(rng.normal(size=(50, 60)))).std() < 0.4


def test_images_are_averaged_down():
    assert downsampled(np.zeros((2, 64, 96, 3), np.uint8)).shape == (2, 21 * 32 * 3)
    assert downsampled(np.full((1, 7, 5, 1), 255, np.uint8)).tolist() == [[1.0] * 35]
    assert DifficultyFeatures.fit(unit8(blurred(40, 3))).components.shape[0] == 5
