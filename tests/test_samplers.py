"""Samplers against a distribution whose denoiser is known exactly, and what `sample` promises about seeds and labels.

The data are independent normal pixels. Then E[x_0 | x_t] is affine in x_t, every sampler is affine in its noises, and
the mean and deviation of its pictures follow without drawing any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskdm.backbones.uvit import UViT
from maskdm.errors import InputError
from maskdm.method.denoiser import Denoiser
from maskdm.method.patches import to_unit
from maskdm.method.prediction import EPS, PREDICTIONS, X0, Prediction, V
from maskdm.method.process import DiscreteProcess, Process, cosine, linear
from maskdm.method.samplers import SAMPLERS, SeededNoise, sample

LINEAR, COSINE = linear(), cosine()
KINDS = [("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("ancestral", 1.0)]


@dataclass
class GaussianOracle:
    """The exact denoiser of pixels from N(mean, std^2), as a backbone."""

    process: Process
    prediction: Prediction
    mean: float
    std: float

    def __call__(self, x_t: Tensor, t: Tensor, *, visible: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        alpha, sigma = (c.to(x_t.dtype)[:, None, None, None] for c in self.process.alpha_sigma(t))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        x_0 = self.mean + gain * (x_t - alpha * self.mean)
        return self.prediction.target(x_0, (x_t - alpha * x_0) / sigma, alpha, sigma)


@dataclass
class LabelOracle:
    """Answers (label + 1) / 8, and remembers which labels it was asked for."""

    asked: list[list[int] | None] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, *, visible: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        self.asked.append(None if label is None else label.tolist())
        return torch.zeros_like(x_t) if label is None else ((label + 1) / 8)[:, None, None, None].expand_as(x_t)


def gaussian(
    process: Process = LINEAR, prediction: Prediction = EPS, *, mean: float = 0.2, std: float = 0.3, side: int = 1
) -> Denoiser:
    return Denoiser(GaussianOracle(process, prediction, mean, std), process, prediction, 1, (side, side))


def labelled(*names: str) -> tuple[Denoiser, LabelOracle]:
    oracle = LabelOracle()
    return Denoiser(oracle, LINEAR, X0, 1, (2, 2), names), oracle


def tiny_uvit(*names: str) -> Denoiser:
    torch.manual_seed(0)
    backbone = UViT(image_size=(8, 8), channels=1, patch_size=4, width=32, depth=3, heads=2, classes=len(names))
    for weight in backbone.parameters():
        weight.data.mul_(4)  # fresh weights hardly heed their input
    return Denoiser(backbone.eval().requires_grad_(False), COSINE, V, 1, (8, 8), names)


def silence() -> Tensor:
    raise AssertionError("no noise is needed here")


def run(
    denoiser: Denoiser, sampler: str, x_t: Tensor, times: list[float], *, eta: float = 0.0, noise=silence
) -> Tensor:
    return SAMPLERS[sampler](denoiser, x_t, times, noise=noise, label=None, guidance=1.0, eta=eta, report=lambda: None)


def exact_moments(denoiser: Denoiser, sampler: str, eta: float, steps: int) -> tuple[float, float]:
    """Mean and deviation of what a sampler makes: image i hears only the i-th noise, of size 1; the last hears none."""
    impulses = iter(torch.eye(steps + 2, dtype=torch.float64)[:-1, :, None, None, None])
    times = denoiser.process.sampling_times(steps).tolist()
    made = run(denoiser, sampler, next(impulses), times, eta=eta, noise=impulses.__next__).flatten()
    return float(made[-1]), float((made[:-1] - made[-1]).norm())


def coefficients(process: DiscreteProcess, t: int) -> tuple[float, float]:
    alpha, sigma = process.alpha_sigma(torch.tensor(t))
    return float(alpha), float(sigma)


# --- against the exact answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())
@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize(("sampler", "eta"), KINDS)
def test_many_steps_reproduce_the_distribution(sampler, eta, process, prediction):
    mean, std = exact_moments(gaussian(process, prediction), sampler, eta, steps=500)
    assert mean == pytest.approx(0.2, abs=1e-3)
    assert std == pytest.approx(0.3, rel=0.025)


@pytest.mark.parametrize(("sampler", "eta"), KINDS)
def test_halving_the_step_halves_the_error(sampler, eta):
    coarse, middle, fine = (abs(exact_moments(gaussian(), sampler, eta, n)[1] - 0.3) for n in (125, 250, 500))
    assert coarse / middle == pytest.approx(2, rel=0.15)
    assert middle / fine == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(("sampler", "eta"), KINDS)
def test_pictures_drawn_have_the_exact_moments(sampler, eta):
    denoiser = gaussian(COSINE, V, std=0.1, side=16)  # small enough that nothing is clipped
    mean, std = exact_moments(denoiser, sampler, eta, steps=20)
    pixels = sample(denoiser, 64, steps=20, sampler=sampler, eta=eta) * 2 - 1
    count = pixels.numel()
    assert float(pixels.mean()) == pytest.approx(mean, abs=5 * std / math.sqrt(count))
    assert float(pixels.std()) == pytest.approx(std, abs=5 * std / math.sqrt(2 * count))
    neighbours = (pixels[..., 1:] - mean) * (pixels[..., :-1] - mean)
    assert float(neighbours.mean()) == pytest.approx(0, abs=5 * std**2 / math.sqrt(neighbours.numel()))


# --- one step --------------------------------------------------------------------------------------------------------


@dataclass
class Constant:
    """Always sees the same image."""

    x_0: float

    def __call__(self, x_t: Tensor, t: Tensor, *, visible: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return torch.full_like(x_t, self.x_0)


def one_step(sampler: str, process: DiscreteProcess, t: int, s: int, eta: float, noise: float) -> float:
    """From x_t = 1.5 at t to s, where the network sees x_0 = 0.3."""
    denoiser, x_t = Denoiser(Constant(0.3), process, X0, 1, (1, 1)), torch.full((1, 1, 1, 1), 1.5, dtype=torch.float64)
    return float(run(denoiser, sampler, x_t, [t, s], eta=eta, noise=lambda: torch.full_like(x_t, noise)))


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("t", [1, 2, 500, 990])
def test_a_step_between_neighbours_is_the_posterior_of_ddpm(sampler, process, t):
    """Ho et al. 2020, eq. 7, in the symbols of the paper."""
    alpha_bar, before = coefficients(process, t)[0] ** 2, coefficients(process, t - 1)[0] ** 2
    alpha = alpha_bar / before
    beta = 1 - alpha
    mean = (math.sqrt(before) * beta * 0.3 + math.sqrt(alpha) * (1 - before) * 1.5) / (1 - alpha_bar)
    variance = (1 - before) / (1 - alpha_bar) * beta
    quiet, loud = (one_step(sampler, process, t, t - 1, 1.0, noise) for noise in (0.0, 1.0))
    assert quiet == pytest.approx(mean, rel=1e-9)
    assert (loud - quiet) ** 2 == pytest.approx(variance, rel=1e-9)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([LINEAR, COSINE]), st.integers(0, 995), st.data(), st.floats(-3, 3))
def test_ddim_with_eta_one_is_ancestral_sampling(process, t, data, noise):
    s = data.draw(st.integers(-1, t - 1))
    ours, theirs = (one_step(sampler, process, t, s, 1.0, noise) for sampler in ("ddim", "ancestral"))
    assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-8)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([LINEAR, COSINE]), st.integers(0, 995), st.data())
def test_ddim_without_noise_keeps_the_image_and_the_noise_it_sees(process, t, data):
    s = data.draw(st.integers(-1, t - 1))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(process, t), coefficients(process, s)
    eps = (1.5 - alpha_t * 0.3) / sigma_t
    assert one_step("ddim", process, t, s, 0.0, math.nan) == pytest.approx(alpha_s * 0.3 + sigma_s * eps, rel=1e-9)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(SAMPLERS)), st.integers(1, 995), st.data(), st.floats(0, 1))
def test_eta_scales_the_deviation_of_the_noise(sampler, t, data, eta):
    s = data.draw(st.integers(0, t - 1))

    def deviation(eta: float) -> float:
        return one_step(sampler, LINEAR, t, s, eta, 1.0) - one_step(sampler, LINEAR, t, s, eta, 0.0)

    assert deviation(eta) == pytest.approx(eta * deviation(1.0), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_step_gives_the_image_that_the_network_sees(sampler):
    assert one_step(sampler, LINEAR, 20, -1, 1.0, math.nan) == pytest.approx(0.3)


def test_the_estimate_clips_the_image_and_not_the_noise():
    denoiser = Denoiser(Constant(1.7), LINEAR, X0, 1, (1, 1))
    x_0, eps = denoiser.estimate(torch.full((1, 1, 1, 1), 1.5, dtype=torch.float64), 500.0)
    alpha, sigma = coefficients(LINEAR, 500)
    assert float(x_0) == 1
    assert float(eps) == pytest.approx((1.5 - alpha * 1.7) / sigma)


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_a_picture_does_not_depend_on_what_it_is_batched_with():
    denoiser = tiny_uvit("cat", "dog")
    one, three, eight = (
        sample(denoiser, 8, steps=6, eta=1.0, guidance=1.5, batch_size=batch_size) for batch_size in (1, 3, 8)
    )
    assert one.std() > 0.1  # pictures, not a flat grey
    torch.testing.assert_close(three, one, rtol=0, atol=1e-5)
    torch.testing.assert_close(eight, one, rtol=0, atol=1e-5)


def test_a_picture_does_not_depend_on_its_place():
    denoiser = tiny_uvit()
    pictures = sample(denoiser, seeds=[5, 2, 9], steps=4, eta=1.0)
    torch.testing.assert_close(sample(denoiser, seeds=[9, 5], steps=4, eta=1.0), pictures[[2, 0]], rtol=0, atol=1e-5)


def test_seeds_start_again_with_other_pictures():
    denoiser = gaussian(side=4)
    pictures = sample(denoiser, 6, seeds=[1, 2], steps=2)
    assert torch.equal(pictures[:2], sample(denoiser, seeds=[1, 2], steps=2))
    assert len(pictures.flatten(1).unique(dim=0)) == 6


def test_seeds_count_from_zero_by_default():
    assert torch.equal(sample(gaussian(side=4), 3, steps=2), sample(gaussian(side=4), seeds=[0, 1, 2], steps=2))


def test_without_a_number_there_are_as_many_pictures_as_seeds_or_64():
    assert len(sample(gaussian(), seeds=[3, 4], steps=1)) == 2
    assert len(sample(gaussian(), steps=1)) == 64


def test_a_seed_is_torchs_own():
    shape = (2, 3, 3)
    noise = SeededNoise([(3, 0), (3, 1)], shape, torch.device("cpu"))
    reference = torch.Generator().manual_seed(3)
    for _ in range(2):
        drawn = noise()
        assert torch.equal(drawn[0], torch.randn(shape, generator=reference))
        assert not torch.equal(drawn[0], drawn[1])


def test_sampling_leaves_the_global_random_state_alone():
    denoiser, before = tiny_uvit(), torch.get_rng_state()
    sample(denoiser, 2, steps=2, eta=1.0)
    assert torch.equal(torch.get_rng_state(), before)


# --- labels and guidance ---------------------------------------------------------------------------------------------


def test_labels_are_names_or_numbers_or_none():
    denoiser, _ = labelled("cat", "dog", "7")
    assert denoiser.labels(["dog", "cat", 1, "0", "7", 7, "none"]) == [1, 0, 1, 0, 2, 2, 3]


@pytest.mark.parametrize("label", ["bird", "Cat", 3, "3", -1, "-1", "1.5", ""])
def test_a_label_that_the_model_does_not_have_is_refused(label):
    denoiser, _ = labelled("cat", "dog", "7")
    with pytest.raises(InputError, match=r"wanted a name of cat, dog, 7, a number 0 to 2, or none") as error:
        denoiser.labels([label])
    assert repr(label) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_message_about_labels_does_not_list_a_thousand_names():
    denoiser, _ = labelled(*(f"n{i:08}" for i in range(1000)))
    with pytest.raises(InputError) as error:
        denoiser.labels(["bird"])
    assert len(str(error.value)) < 300


def test_labels_take_turns():
    for wanted, asked in [
        (None, [[0, 1], [2, 0], [1]]),
        (["dog"], [[1, 1], [1, 1], [1]]),
        (["none", 2], [[3, 2], [3, 2], [3]]),
    ]:
        denoiser, oracle = labelled("cat", "dog", "7")
        sample(denoiser, 5, steps=1, labels=wanted, batch_size=2)
        assert oracle.asked == asked


def test_a_model_without_classes_is_asked_for_none():
    denoiser, oracle = labelled()
    sample(denoiser, 2, steps=1)
    assert oracle.asked == [None]


@settings(deadline=None, max_examples=50)
@given(st.floats(-1, 2))
def test_guidance_is_linear_in_its_weight(weight):
    denoiser, _ = labelled("cat", "dog")  # which answer 1/8 and 2/8, and 3/8 where there is no class
    x_0, _ = denoiser.estimate(torch.ones(2, 1, 2, 2), 500.0, label=torch.tensor([0, 1]), guidance=weight)
    expected = [3 / 8 + weight * (1 / 8 - 3 / 8), 3 / 8 + weight * (2 / 8 - 3 / 8)]
    assert x_0.mean(dim=(1, 2, 3)).tolist() == pytest.approx(expected, abs=1e-5)


def test_guidance_of_one_is_the_conditional_answer_and_zero_the_unconditional():
    denoiser, x_t = tiny_uvit("cat", "dog"), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    label, t = torch.tensor([0, 1]), torch.tensor([300.0, 300.0])
    alpha, sigma = (c.float()[:, None, None, None] for c in COSINE.alpha_sigma(t))
    answers = [denoiser.backbone(x_t, t, label=label), denoiser.backbone(x_t, t)]
    assert (answers[0] - answers[1]).abs().max() > 0.01
    for weight, answer in zip((1.0, 0.0), answers, strict=True):
        _, eps = denoiser.estimate(x_t, 300.0, label=label, guidance=weight)
        torch.testing.assert_close(eps, V.invert(answer, x_t, alpha, sigma)[1], rtol=0, atol=1e-5)


def test_guidance_costs_a_second_answer_only_where_it_is_asked_for():
    for weight, asked in [(1.0, [[0, 1]]), (2.0, [[0, 1, 2, 2]])]:
        denoiser, oracle = labelled("cat", "dog")
        sample(denoiser, 2, steps=1, guidance=weight)
        assert oracle.asked == asked


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_reaches_the_pictures(sampler):
    denoiser, _ = labelled("cat", "dog")
    pictures = sample(denoiser, 1, steps=2, sampler=sampler, labels=["cat"], guidance=2.0)
    torch.testing.assert_close(pictures, to_unit(torch.full((1, 1, 2, 2), 3 / 8 - 2 * 2 / 8)))


# --- the public function ---------------------------------------------------------------------------------------------


def test_pictures_are_float32_between_0_and_1_without_gradient():
    denoiser = tiny_uvit()
    denoiser.backbone.requires_grad_(True)
    pictures = sample(denoiser, 5, steps=3, batch_size=2)
    assert pictures.shape == (5, 1, 8, 8)
    assert pictures.dtype == torch.float32
    assert not pictures.requires_grad
    assert pictures.min() >= 0
    assert pictures.max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_have_the_noise_they_are_known_for(sampler):
    given_eta, default = (
        sample(gaussian(side=4), 2, steps=3, sampler=sampler, eta=eta)
        for eta in ({"ddim": 0.0, "ancestral": 1.0}[sampler], None)
    )
    assert torch.equal(given_eta, default)
    other = sample(gaussian(side=4), 2, steps=3, sampler=sampler, eta=0.5)
    assert not torch.equal(other, default)


def test_progress_counts_every_step_of_every_picture():
    done: list[int] = []
    sample(gaussian(), 5, steps=3, batch_size=2, report=done.append)
    assert done == [2, 2, 2, 2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "euler"}, "sampler: got 'euler', wanted one of ddim, ancestral"),
        ({"eta": -0.1}, "eta: got -0.1"),
        ({"eta": 1.1}, "eta: got 1.1"),
        ({"eta": math.nan}, "eta: got nan"),
        ({"num": 0}, "num: got 0"),
        ({"seeds": []}, "num: got 0"),
        ({"num": 2, "seeds": []}, "seeds: wanted at least one"),
        ({"seeds": [1, -1]}, "seeds: .* 0 to 4294967295"),
        ({"steps": 0}, "sampling steps: got 0, wanted 1 to 1000"),
        ({"steps": 1001}, "sampling steps: got 1001, wanted 1 to 1000"),
        ({"guidance": 2.0}, "guidance: got 2, but this model has no classes"),
        ({"labels": ["cat"]}, "labels: got cat, but this model has no classes"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
    ids=str,
)
def test_what_cannot_be_sampled_is_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        sample(gaussian(), **arguments)
    assert "\n" not in str(error.value)
