"""Single steps of every sampler by hand, and what `sample` promises about seeds, labels, progress and messages.

What samplers make of whole distributions is in `test_oracles`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_oracles import RUNS, SECOND_ORDER, option, with_noise
from test_schedules import PROCESSES
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.pixels import to_unit
from maskdm.diffusion.prediction import EPS, VELOCITY, X0, Prediction, V, precondition
from maskdm.diffusion.process import Process
from maskdm.diffusion.schedules import cosine, edm, flow, linear, ve, vp
from maskdm.errors import ArgumentError
from maskdm.models.uvit import UViT
from maskdm.sampling.guidance import Guidance, estimator
from maskdm.sampling.sample import SeededNoise, sample_images, sampling_config
from maskdm.sampling.samplers import (
    SAMPLERS,
    Context,
    Sampler,
    ancestral_step,
    ddim_step,
    dpmpp_step,
    euler_step,
    get_sampler,
    heun_step,
    integrate,
    renoise,
    sigma_between,
    time_of,
)
from maskdm.sampling.timesteps import sampling_times

LINEAR, COSINE = linear(), cosine()


def silence() -> Tensor:
    raise AssertionError("no noise is needed here")


@dataclass
class Gray:
    """The exact denoiser of independent pixels from N(mean, std^2), as a backbone that knows its times."""

    process: Process
    prediction: Prediction
    mean: float
    std: float

    def __call__(self, x_in: Tensor, c_noise: Tensor, **_: Tensor | None) -> Tensor:
        vp_or_flow = self.process.ends[1] == 1
        t = c_noise if self.process.timesteps else c_noise / 1000 if vp_or_flow else (c_noise / 250).exp()
        alpha, sigma = (c.to(x_in.dtype)[:, None, None, None] for c in self.process.alpha_sigma(t))
        x_t = x_in / self.process.c_in(alpha, sigma)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        x_0 = self.mean + gain * (x_t - alpha * self.mean)
        return self.prediction.target(x_0, (x_t - alpha * x_0) / sigma, alpha, sigma)


@dataclass
class LabelOracle:
    """Answers (label + 1) / 8, and remembers which labels it was asked for."""

    asked: list[list[int] | None] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, *, label: Tensor | None = None, **_: None) -> Tensor:
        self.asked.append(None if label is None else label.tolist())
        return torch.zeros_like(x_t) if label is None else ((label + 1) / 8)[:, None, None, None].expand_as(x_t)


def gaussian(
    process: Process = LINEAR, prediction: Prediction = EPS, *, mean: float = 0.2, std: float = 0.1, side: int = 1
) -> Denoiser:
    return Denoiser(Gray(process, prediction, mean, std), process, prediction, 1, (side, side))


def labelled(*names: str) -> tuple[Denoiser, LabelOracle]:
    oracle = LabelOracle()
    return Denoiser(oracle, LINEAR, X0, 1, (2, 2), class_names=names), oracle


def tiny_uvit(*names: str, process: Process = COSINE, prediction: Prediction = V) -> Denoiser:
    torch.manual_seed(0)
    backbone = UViT(image_size=(8, 8), channels=1, patch_size=4, width=32, depth=3, heads=2, classes=len(names))
    for weight in backbone.parameters():
        weight.data.mul_(4)  # fresh weights hardly heed their input
    return Denoiser(backbone.eval().requires_grad_(False), process, prediction, 1, (8, 8), 4, names)


def sample(
    denoiser: Denoiser,
    num: int | None = None,
    *,
    seeds: Sequence[int] | None = None,
    sampler: str = "dpm++",
    eta: float | None = None,
    s_churn: float | None = None,
    batch_size: int = 64,
    callback: Callable[[int], None] = lambda units: None,
    **options,
) -> Tensor:
    """Images as `maskdm.sample` makes them."""
    num = len(seeds or ()) if num is None else num
    seeds = range(num) if seeds is None else seeds
    chosen = get_sampler(sampler, eta=eta, s_churn=s_churn)
    config = sampling_config(denoiser, sampler=chosen, seeds=seeds, **options)
    return sample_images(config, range(num), batch_size=batch_size, callback=callback)


# --- one step --------------------------------------------------------------------------------------------------------


@dataclass
class Constant:
    """Always sees the same image."""

    x_0: float

    def __call__(self, x_t: Tensor, t: Tensor, **_: Tensor | None) -> Tensor:
        return torch.full_like(x_t, self.x_0)


USUAL = {"ancestral": 1.0, "dpm++sde": 1.0} | dict.fromkeys(("ddim", "euler", "heun", "dpm++"), 0.0)
"""Amounts of fresh noise."""


def steps(
    sampler: str,
    process: Process,
    times: Sequence[float],
    amount: float,
    noise: Callable[[], Tensor] = silence,
    x_t: float = 1.5,
    x_0: float = 0.3,
) -> float:
    """From x_t at the first of the times, where the network always sees x_0."""
    denoiser = Denoiser(Constant(x_0), process, X0, 1, (1, 1))
    context = Context(process, estimator(denoiser, Guidance(), None), noise)
    start = torch.full((1, 1, 1, 1), x_t, dtype=torch.float64)
    return float(integrate(with_noise(sampler, amount), context, start, times))


def one_step(sampler: str, process: Process, t: float, s: float, amount: float, noise: float) -> float:
    """From x_t = 1.5 at t to s, where the network sees x_0 = 0.3 and every noise is the same."""
    return steps(sampler, process, [t, s], amount, lambda: torch.full((1, 1, 1, 1), noise, dtype=torch.float64))


@st.composite
def two_times(draw: st.DrawFn, clean: bool = True) -> tuple[Process, float, float]:
    """A process and two times of it, t noisier than s; s may be the clean image."""
    process = PROCESSES[draw(st.sampled_from(sorted(PROCESSES)))]
    if process.timesteps:
        t = draw(st.integers(1, process.timesteps - 1))
        return process, float(t), float(draw(st.integers(-1 if clean else 0, t - 1)))
    low, high = process.ends
    t = low + draw(st.floats(0.01, 1)) * (high - low)
    s = draw(st.one_of(st.just(0.0), st.floats(0.001, 0.99))) if clean else draw(st.floats(0.001, 0.99))
    return process, t, s * t


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm++sde"])
@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("t", [1, 2, 500, 990])
def test_a_step_between_neighbours_is_the_posterior_of_ddpm(sampler, process, t):
    """Ho et al. 2020, eq. 7, in the symbols of the paper; the SDE solver's first step is the same in mean."""
    alpha_bar, before = (time_of(process, s).alpha ** 2 for s in (t, t - 1))
    alpha = alpha_bar / before
    beta = 1 - alpha
    mean = (math.sqrt(before) * beta * 0.3 + math.sqrt(alpha) * (1 - before) * 1.5) / (1 - alpha_bar)
    variance = (1 - before) / (1 - alpha_bar) * beta
    quiet, loud = (one_step(sampler, process, t, t - 1, 1.0, noise) for noise in (0.0, 1.0))
    assert quiet == pytest.approx(mean, rel=1e-9)
    assert (loud - quiet) ** 2 == pytest.approx(variance, rel=1e-9)


@settings(deadline=None, max_examples=150)
@given(two_times(), st.floats(-3, 3))
def test_ddim_with_eta_one_is_ancestral_sampling_and_the_first_step_of_the_sde_solver(case, noise):
    process, t, s = case
    ours, *theirs = (one_step(sampler, process, t, s, 1.0, noise) for sampler in ("ddim", "ancestral", "dpm++sde"))
    assert theirs == pytest.approx([ours] * 2, rel=1e-7, abs=1e-7)


@settings(deadline=None, max_examples=150)
@given(two_times())
def test_without_noise_a_first_step_keeps_the_image_and_the_noise_it_sees(case):
    process, t, s = case
    at, then = time_of(process, t), time_of(process, s)
    eps = (1.5 - at.alpha * 0.3) / at.sigma
    expected = then.alpha * 0.3 + then.sigma * eps
    for sampler in ("ddim", "euler", "heun", "dpm++"):  # the network sees the same image afterwards too
        assert one_step(sampler, process, t, s, 0.0, math.nan) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["ddim", "ancestral"]), two_times(clean=False), st.floats(0, 1))
def test_eta_scales_the_deviation_of_the_noise(sampler, case, eta):
    process, t, s = case

    def deviation(eta: float) -> float:
        return one_step(sampler, process, t, s, eta, 1.0) - one_step(sampler, process, t, s, eta, 0.0)

    assert deviation(eta) == pytest.approx(eta * deviation(1.0), rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["ddim", "dpm++"]), two_times(clean=False), st.floats(0, 1))
def test_whatever_eta_the_noise_after_a_step_is_that_of_its_time(sampler, case, eta):
    """Of an image that is known, old and fresh noise add up to sigma."""
    process, t, s = case
    at, then = time_of(process, t), time_of(process, s)
    middle, up = (steps(sampler, process, [t, s], eta, _zero, x_t=at.alpha * 0.3 + n * at.sigma) for n in (0.0, 1.0))
    assert middle == pytest.approx(then.alpha * 0.3, rel=1e-7, abs=1e-9)
    fresh = one_step(sampler, process, t, s, eta, 1.0) - one_step(sampler, process, t, s, eta, 0.0)
    # Near noise alone the deviation of what is added is a small difference of large numbers.
    assert math.hypot(up - middle, fresh) == pytest.approx(then.sigma, rel=1e-6)


def _zero() -> Tensor:
    return torch.zeros(1, 1, 1, 1, dtype=torch.float64)


@settings(deadline=None, max_examples=150)
@given(two_times(clean=False))
def test_noising_forward_adds_up(case):
    """From s to t, the image fades and the noise is that of t: the distribution of x_t of the process."""
    process, t, s = case
    at, then = time_of(process, t), time_of(process, s)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    kept = float(renoise(one, then, at, zero))
    added = float(renoise(zero, then, at, one))
    assert kept * then.alpha == pytest.approx(at.alpha, rel=1e-9, abs=1e-12)
    assert math.hypot(kept * then.sigma, added) == pytest.approx(at.sigma, rel=1e-9)
    assert added == pytest.approx(sigma_between(at, then))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("process", [LINEAR, vp("cosine"), ve(), flow()], ids=["ddpm", "vp", "ve", "flow"])
def test_the_last_step_gives_the_image_that_the_network_sees(sampler, process):
    t = float(process.ends[0] + (20 if process.timesteps else 0.02))
    assert steps(sampler, process, [t, process.clean], USUAL[sampler]) == pytest.approx(0.3)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", PROCESSES)
def test_an_image_that_is_known_comes_out_from_wherever_one_starts(sampler, name):
    """Noise alone included: nothing is divided by alpha there."""
    process = PROCESSES[name]
    times = sampling_times(process, X0, 7).tolist()
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(1, 1, 1, 1, dtype=torch.float64, generator=generator)

    made = steps(sampler, process, times, USUAL[sampler], noise, x_t=1.5 * time_of(process, times[0]).sigma)
    assert made == pytest.approx(0.3)


def test_the_estimate_clips_the_image_and_not_the_noise():
    denoiser = Denoiser(Constant(1.7), LINEAR, X0, 1, (1, 1))
    x_t = torch.full((1, 1, 1, 1), 1.5, dtype=torch.float64)
    at = time_of(LINEAR, 500.0)
    for x_0, eps, seen in (
        (*estimator(denoiser, Guidance(), None)(x_t, 500.0), 1.0),
        (*denoiser.estimate(x_t, 500.0), 1.7),
    ):
        assert float(x_0) == pytest.approx(seen)
        assert float(eps) == pytest.approx((1.5 - at.alpha * 1.7) / at.sigma)


# --- churn -----------------------------------------------------------------------------------------------------------


def heard(sampler: str, process: Process, times: Sequence[float], churn: float) -> list[float]:
    """At which times the network is asked."""
    asked: list[float] = []

    def estimate(x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        asked.append(t)
        return torch.zeros_like(x_t), x_t / time_of(process, t).sigma

    x_t = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    integrate(with_noise(sampler, churn), Context(process, estimate, _zero), x_t, times)
    return asked


@pytest.mark.parametrize("process", [vp("linear"), edm(), flow()], ids=["vp", "edm", "flow"])
@pytest.mark.parametrize(("churn", "factor"), [(1.0, 1.25), (100.0, math.sqrt(2))])
def test_churn_multiplies_sigma_over_alpha_and_at_most_by_root_two(process, churn, factor):
    levels = torch.tensor([0.8, 0.6, 0.4, 0.2], dtype=torch.float64)
    times = [*process.time_at(levels).tolist(), 0.0]
    for t, asked in zip(times[:-1], heard("euler", process, times, churn), strict=True):
        at, there = time_of(process, t), time_of(process, asked)
        assert there.sigma / there.alpha == pytest.approx(factor * at.sigma / at.alpha, rel=1e-9)


def test_churn_of_timesteps_goes_to_the_nearest_and_too_little_of_it_does_nothing():
    times = [800.0, 600.0, 400.0, 200.0, -1.0]
    plenty, little = heard("euler", LINEAR, times, 100.0), heard("euler", LINEAR, times, 1e-3)
    assert little == times[:-1]
    for t, asked in zip(times[:-1], plenty, strict=True):
        assert asked == int(asked) > t
    assert heard("heun", LINEAR, times, 0.0) == [800, 600, 600, 400, 400, 200, 200]


def test_churn_does_not_go_beyond_the_last_time_nor_above_noise_alone():
    assert heard("euler", edm(), [80.0, 60.0, 0.0], 100.0) == pytest.approx([80, 80])
    assert heard("euler", flow(), [1.0, 0.5, 0.0], 100.0)[0] == 1.0


# --- how often the network is asked ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_costs_one_call_but_heuns_two_and_the_last_one(sampler):
    calls: list[float] = []
    denoiser = Denoiser(lambda x_t, t, **_: calls.append(float(t[0])) or 0 * x_t, flow(), X0, 1, (1, 1))
    sample(denoiser, 1, steps=9, sampler=sampler)
    assert len(calls) == (17 if sampler == "heun" else 9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_is_enough_to_get_a_picture(sampler):
    for process in (LINEAR, vp("cosine"), edm(), flow()):
        pictures = sample(gaussian(process, X0), 2, steps=1, sampler=sampler)
        torch.testing.assert_close(pictures * 2 - 1, torch.full_like(pictures, 0.2), rtol=0, atol=0.02)


# --- drawn pictures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    ("process", "prediction"),
    [(COSINE, V), (vp("linear"), EPS), (edm(), precondition()), (flow(), VELOCITY)],
    ids=["ddpm", "vp", "edm", "flow"],
)
def test_pictures_drawn_have_the_right_moments(process, prediction, name):
    """By seeds, in single precision, the whole way of the public function."""
    sampler, amount = RUNS[name]
    how = {option(sampler): amount}
    denoiser = gaussian(process, prediction, std=0.15, side=16)
    pixels = sample(denoiser, 24, steps=40, sampler=sampler, spacing="logsnr", batch_size=24, **how) * 2 - 1
    noise = 5 * 0.15 / math.sqrt(pixels.numel())
    assert float(pixels.mean()) == pytest.approx(0.2, abs=noise + 0.003)
    assert float(pixels.std()) == pytest.approx(0.15, rel=0.05 if name in SECOND_ORDER else 0.18)
    neighbours = (pixels[..., 1:] - pixels.mean()) * (pixels[..., :-1] - pixels.mean())
    assert float(neighbours.mean()) == pytest.approx(0, abs=5 * 0.15**2 / math.sqrt(neighbours.numel()))


# --- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    ("process", "prediction"),
    [(COSINE, V), (flow(), VELOCITY), (edm(), precondition())],
    ids=["ddpm", "flow", "edm"],
)
def test_a_picture_does_not_depend_on_what_it_is_batched_with(process, prediction, name):
    denoiser = tiny_uvit("cat", "dog", process=process, prediction=prediction)
    sampler, amount = RUNS[name]
    how = {"sampler": sampler, option(sampler): amount, "guidance": 1.5}
    one, three, eight = (sample(denoiser, 8, steps=6, batch_size=batch_size, **how) for batch_size in (1, 3, 8))
    assert one.std() > 0.1  # pictures, not a flat grey
    torch.testing.assert_close(three, one, rtol=0, atol=1e-4)
    torch.testing.assert_close(eight, one, rtol=0, atol=1e-4)


def test_a_picture_does_not_depend_on_its_place():
    denoiser = tiny_uvit()
    pictures = sample(denoiser, seeds=[5, 2, 9], steps=4, eta=1.0)
    torch.testing.assert_close(sample(denoiser, seeds=[9, 5], steps=4, eta=1.0), pictures[[2, 0]], rtol=0, atol=1e-5)


def test_seeds_start_again_with_other_pictures():
    denoiser = gaussian(side=4)
    pictures = sample(denoiser, 6, seeds=[1, 2], steps=2)
    assert torch.equal(pictures[:2], sample(denoiser, seeds=[1, 2], steps=2))
    assert len(pictures.flatten(1).unique(dim=0)) == 6


def test_a_seed_is_torchs_own():
    shape = (2, 3, 3)
    noise = SeededNoise([(3, 0), (3, 1)], shape, torch.device("cpu"))
    reference = torch.Generator().manual_seed(3)
    for _ in range(2):
        drawn = noise()
        assert torch.equal(drawn[0], torch.randn(shape, generator=reference))
        assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("name", RUNS)
def test_a_picture_of_a_seed_is_the_same_bit_for_bit_where_the_network_is(name):
    sampler, amount = RUNS[name]
    how = {"steps": 5, "sampler": sampler, option(sampler): amount}
    denoiser = gaussian(flow(), V, side=4)
    many = sample(denoiser, seeds=[7, 3, 11], batch_size=3, **how)
    for k, seed in enumerate((7, 3, 11)):
        assert torch.equal(sample(denoiser, seeds=[seed], **how)[0], many[k])


def test_sampling_leaves_the_global_random_state_alone():
    denoiser, before = tiny_uvit(), torch.get_rng_state()
    sample(denoiser, 2, steps=2, eta=1.0)
    assert torch.equal(torch.get_rng_state(), before)


# --- labels and guidance ---------------------------------------------------------------------------------------------


def test_labels_are_names_or_numbers_or_none():
    denoiser, _ = labelled("cat", "dog", "7")
    assert denoiser.labels(["dog", "cat", 1, "0", "7", 7, "none"]) == [1, 0, 1, 0, 2, 2, 3]
    assert denoiser.labels(" dog, cat,1,none ") == [1, 0, 1, 3]


def test_a_class_that_is_called_like_a_number_or_none_is_meant_by_its_name():
    denoiser, _ = labelled("1", "none", "0")
    assert denoiser.labels(["1", "none", "0", 2, "2"]) == [0, 1, 2, 2, 2]


@pytest.mark.parametrize("label", ["bird", "Cat", 3, "3", -1, "-1", "1.5", ""])
def test_a_label_that_the_model_does_not_have_is_refused(label):
    denoiser, _ = labelled("cat", "dog", "7")
    with pytest.raises(ArgumentError, match=r"wanted one of cat, dog, 7, a number 0 to 2, or none") as error:
        denoiser.labels([label])
    assert (error.value.name, error.value.got) == ("labels", label)


def test_a_message_about_labels_does_not_list_a_thousand_names():
    denoiser, _ = labelled(*(f"n{i:08}" for i in range(1000)))
    with pytest.raises(ArgumentError) as error:
        denoiser.labels(["bird"])
    assert len(str(error.value)) < 300


def test_names_of_classes_with_commas():
    denoiser, _ = labelled("tabby, tabby cat", "dog")
    assert denoiser.labels("tabby, tabby cat") == [0]
    assert denoiser.labels('dog, "tabby, tabby cat",none') == [1, 0, 2]
    assert denoiser.labels(["tabby, tabby cat", "dog"]) == [0, 1]
    with pytest.raises(ArgumentError) as caught:
        denoiser.labels("dog, tabby, tabby cat")
    assert caught.value.got == "tabby"
    assert "double quotes" in caught.value.remedy


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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures_are_float32_between_0_and_1_without_gradient(sampler):
    denoiser = tiny_uvit()
    denoiser.backbone.requires_grad_(True)
    pictures = sample(denoiser, 5, steps=3, batch_size=2, sampler=sampler)
    assert pictures.shape == (5, 1, 8, 8)
    assert pictures.dtype == torch.float32
    assert not pictures.requires_grad
    assert pictures.min() >= 0
    assert pictures.max() <= 1


@pytest.mark.parametrize(
    ("sampler", "usual", "other"),
    [
        ("ddim", {"eta": 0.0}, {"eta": 0.5}),
        ("ancestral", {"eta": 1.0}, {"eta": 0.5}),
        ("euler", {"s_churn": 0.0}, {"s_churn": 5.0}),
        ("heun", {"s_churn": 0.0}, {"s_churn": 5.0}),
        ("dpm++", {"eta": 0.0}, {"eta": 0.5}),
        ("dpm++sde", {"eta": 1.0}, {"eta": 0.5}),
    ],
)
def test_samplers_have_the_noise_they_are_known_for(sampler, usual, other):
    named, default, changed = (
        sample(gaussian(side=4), 2, steps=5, sampler=sampler, **how) for how in (usual, {}, other)
    )
    assert torch.equal(named, default)
    assert not torch.equal(changed, default)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_progress_counts_every_step_of_every_picture(sampler):
    done: list[int] = []
    sample(gaussian(), 5, steps=3, batch_size=2, sampler=sampler, callback=done.append)
    assert done == [2, 2, 2, 2, 2, 2, 1, 1, 1]


def test_sampling_starts_from_the_deviation_of_the_first_time():
    for process in (LINEAR, edm(), flow()):
        started: list[Tensor] = []

        def watch(x_t: Tensor, t: Tensor, started=started, **_: None) -> Tensor:
            started.append(x_t)
            return torch.zeros_like(x_t)

        sample(Denoiser(watch, process, X0, 1, (16, 16)), 16, steps=2)
        first = time_of(process, float(sampling_times(process, X0, 2)[0]))
        c_in = process.c_in(torch.tensor(first.alpha), torch.tensor(first.sigma))
        assert float(started[0].std()) == pytest.approx(first.sigma * float(c_in), rel=0.05)


def test_the_spacing_and_the_shift_reach_the_sampler():
    for how in ({}, {"spacing": "karras"}, {"spacing": "logsnr", "shift": 2.0}):
        made = sampling_config(gaussian(vp()), steps=7, **how)
        expected = sampling_times(vp(), EPS, 7, **how)
        assert made.times == tuple(expected.tolist())


# --- what is refused -------------------------------------------------------------------------------------------------


def test_samplers_by_their_names():
    assert SAMPLERS == ("ddim", "ancestral", "euler", "heun", "dpm++", "dpm++sde")
    for name, step, eta in (
        ("ddim", ddim_step, 0.0),
        ("ancestral", ancestral_step, 1.0),
        ("dpm++", dpmpp_step, 0.0),
        ("dpm++sde", dpmpp_step, 1.0),
    ):
        for chosen in (None, 0.5):
            sampler = get_sampler(name, eta=chosen)
            assert (sampler.step.func, sampler.step.keywords) == (step, {"eta": eta if chosen is None else chosen})
            assert (sampler.s_churn, sampler.stochastic) == (0.0, bool(sampler.step.keywords["eta"]))
    assert get_sampler("euler") == Sampler(euler_step)
    assert get_sampler("heun", s_churn=40.0) == Sampler(heun_step, s_churn=40.0, stochastic=True)


@pytest.mark.parametrize(
    ("name", "amounts", "option", "got"),
    [
        ("plms", {}, "sampler", "plms"),
        ("heun", {"eta": 0.5}, "eta", 0.5),
        ("ddim", {"s_churn": 1.0}, "s_churn", 1.0),
        ("ddim", {"eta": -0.1}, "eta", -0.1),
        ("ddim", {"eta": 1.1}, "eta", 1.1),
        ("dpm++sde", {"eta": 1.1}, "eta", 1.1),
        ("ddim", {"eta": math.nan}, "eta", math.nan),
        ("euler", {"s_churn": math.nan}, "s_churn", math.nan),
        ("euler", {"s_churn": math.inf}, "s_churn", math.inf),
        ("euler", {"s_churn": -1.0}, "s_churn", -1.0),
        ("ancestral", {"eta": 0.0}, "eta", 0),
        ("dpm++sde", {"eta": 0.0}, "eta", 0),
    ],
    ids=str,
)
def test_a_sampler_or_option_that_there_is_not_is_refused(name, amounts, option, got):
    with pytest.raises(ArgumentError) as error:
        get_sampler(name, **amounts)
    assert error.value.name == option
    assert error.value.got == pytest.approx(got, nan_ok=True) if isinstance(got, float) else error.value.got == got


def test_a_message_about_samplers_names_those_that_there_are():
    with pytest.raises(ArgumentError) as error:
        get_sampler("plms")
    assert error.value.wanted == "one of ddim, ancestral, euler, heun, dpm++, dpm++sde"
    with pytest.raises(ArgumentError) as error:
        get_sampler("heun", eta=0.5)
    assert error.value.remedy.endswith("ddim, ancestral, dpm++, dpm++sde")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"sampler": "plms"}, "sampler"),
        ({"eta": -0.1}, "eta"),
        ({"num": 0, "seeds": [1]}, "num"),
        ({"num": 2, "seeds": []}, "seeds"),
        ({"seeds": [1, -1]}, "seeds"),
        ({"seeds": [2**32]}, "seeds"),
        ({"num": 1, "steps": 0}, "steps"),
        ({"num": 1, "steps": 1001}, "steps"),
        ({"num": 1, "spacing": "even"}, "spacing"),
        ({"num": 1, "shift": 0.0}, "shift"),
        ({"num": 1, "guidance": 2.0}, "guidance"),
        ({"num": 1, "guidance": math.nan}, "guidance"),
        ({"num": 1, "guidance": math.inf}, "guidance"),
        ({"num": 1, "labels": ["cat"]}, "labels"),
        ({"num": 1, "labels": []}, "labels"),
        ({"num": 1, "batch_size": 0}, "batch_size"),
        ({"num": 1, "guidance_interval": (0.2, 0.8)}, "guidance_interval"),
        ({"num": 1, "guide": gaussian()}, "guide"),
        ({"num": 1, "guide": gaussian(side=2), "guidance": 2.0}, "guide"),
        ({"num": 1, "guide": tiny_uvit("cat"), "guidance": 2.0}, "guide"),
        *[
            ({"num": 1, "guidance": 2.0, "guide": gaussian(), "guidance_interval": interval}, "guidance_interval")
            for interval in ((0.8, 0.2), (-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (math.nan, 1.0))
        ],
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(arguments, name):
    with pytest.raises(ArgumentError) as error:
        sample(gaussian(), **arguments)
    assert error.value.name == name


def test_a_guide_of_other_classes_is_refused():
    denoiser, _ = labelled("cat", "dog")
    other, _ = labelled("bird")
    with pytest.raises(ArgumentError, match="has other classes than the model") as error:
        sampling_config(denoiser, guidance=2.0, guide=other)
    assert error.value.name == "guide"
    same, _ = labelled("cat", "dog")
    none, _ = labelled()
    for guide in (same, none):
        assert sampling_config(denoiser, guidance=2.0, guide=guide).guidance.weak is guide
