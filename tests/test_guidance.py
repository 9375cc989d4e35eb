"""Guidance: what it costs, where it applies, by what, and that other processes and predictions say the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_oracles import SIZE, Mixture, Normal, exact
from test_samplers import sample
from test_schedules import CONTINUOUS, DISCRETE, PROCESSES
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.prediction import EPS, PREDICTIONS, VELOCITY, X0, V, precondition
from maskdm.diffusion.process import Process
from maskdm.diffusion.schedules import cosine, edm, flow, linear, shifted, ve, vp
from maskdm.sampling.guidance import Guidance, estimator, translated
from maskdm.sampling.samplers import time_of
from maskdm.sampling.timesteps import noisiest_time

NAMES = ("cat", "dog")


@dataclass
class Labelled:
    """Answers with something of its own for every label, and remembers what it was asked."""

    asked: list[tuple[list[int] | None, Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, *, label: Tensor | None = None, **_: None) -> Tensor:
        self.asked.append((None if label is None else label.tolist(), x_t, t))
        number = torch.full((len(x_t),), len(NAMES)) if label is None else label
        return (0.1 * (number + 1))[:, None, None, None] + 0.2 * x_t


def labelled(process: Process | None = None, prediction=X0) -> tuple[Denoiser, Labelled]:
    backbone = Labelled()
    return Denoiser(backbone, process or linear(), prediction, 1, (2, 2), class_names=NAMES), backbone


def pictures(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABEL = torch.tensor([0, 1])


# --- classifier-free -------------------------------------------------------------------------------------------------


def test_no_guidance_asks_the_network_once_for_the_labels_alone():
    denoiser, backbone = labelled()
    estimator(denoiser, Guidance(), LABEL)(pictures(), 500.0)
    assert [asked for asked, _, _ in backbone.asked] == [[0, 1]]


def test_guidance_asks_once_too_for_twice_the_pictures():
    denoiser, backbone = labelled()
    x_t = pictures()
    estimator(denoiser, Guidance(2.0), LABEL)(x_t, 500.0)
    [(asked, x_in, t)] = backbone.asked
    assert asked == [0, 1, 2, 2]
    assert torch.equal(x_in, torch.cat([x_t, x_t]))
    assert t.tolist() == [500] * 4


@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.5, 4.0])
def test_classifier_free_guidance_by_hand(prediction, weight):
    """In x_0, in eps, and in what the network predicts: the same."""
    denoiser, _ = labelled(vp("cosine"), prediction)
    x_t, t = 0.3 * pictures(), 0.4
    strong, weak = denoiser.estimate(x_t, t, label=LABEL), denoiser.estimate(x_t, t, label=torch.tensor([2, 2]))
    x_0, eps = estimator(denoiser, Guidance(weight), LABEL)(x_t, t)
    torch.testing.assert_close(x_0, (weak[0] + weight * (strong[0] - weak[0])).clamp(-1, 1))
    torch.testing.assert_close(eps, weak[1] + weight * (strong[1] - weak[1]))
    out = denoiser.forward(x_t, torch.tensor([t, t], dtype=torch.float64), label=LABEL)
    none = denoiser.forward(x_t, torch.tensor([t, t], dtype=torch.float64), label=torch.tensor([2, 2]))
    at = denoiser.alpha_sigma(torch.tensor([t, t], dtype=torch.float64), torch.float64)
    by_output = prediction.invert(none + weight * (out - none), x_t, *at)
    torch.testing.assert_close(x_0, by_output[0].clamp(-1, 1))
    torch.testing.assert_close(eps, by_output[1])


def test_guidance_of_one_is_the_conditional_answer_and_of_zero_the_unconditional():
    denoiser, _ = labelled()
    x_t = pictures()
    for weight, label in ((1.0, LABEL), (0.0, torch.tensor([2, 2])), (0.0, None)):
        _, eps = estimator(denoiser, Guidance(weight), LABEL)(x_t, 500.0)
        torch.testing.assert_close(eps, denoiser.estimate(x_t, 500.0, label=label)[1])


def test_a_label_that_is_no_class_cannot_be_guided():
    denoiser, _ = labelled()
    x_t, none = pictures(), torch.tensor([2, 2])
    plain, guided = (estimator(denoiser, Guidance(weight), none)(x_t, 500.0) for weight in (1.0, 5.0))
    torch.testing.assert_close(guided, plain)


@settings(deadline=None, max_examples=50)
@given(st.floats(-1, 3))
def test_guidance_is_linear_in_its_weight(weight):
    denoiser, _ = labelled()
    x_t = pictures()
    _, eps = estimator(denoiser, Guidance(weight), LABEL)(x_t, 500.0)
    ends = [estimator(denoiser, Guidance(w), LABEL)(x_t, 500.0)[1] for w in (0.0, 1.0)]
    torch.testing.assert_close(eps, (1 - weight) * ends[0] + weight * ends[1])


def test_the_image_is_clipped_after_guidance_and_the_noise_is_that_before():
    denoiser, _ = labelled()
    x_t = torch.full((2, 1, 2, 2), 3.0, dtype=torch.float64)  # answers of 0.7 and more
    x_0, eps = estimator(denoiser, Guidance(-10.0), LABEL)(x_t, 500.0)
    assert torch.equal(x_0, torch.ones_like(x_0))
    at = time_of(linear(), 500.0)
    assert (at.alpha * x_0 + at.sigma * eps - x_t).abs().max() > 0.01
    _, unclipped = estimator(denoiser, Guidance(1.0), LABEL)(x_t, 500.0)
    assert torch.equal(unclipped, denoiser.estimate(x_t, 500.0, label=LABEL)[1])


# --- where it applies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [linear(), flow(), edm()], ids=["ddpm", "flow", "edm"])
def test_guidance_applies_within_its_interval_of_noise_levels(process):
    guidance = Guidance(2.0, interval=(0.3, 0.7))
    for level, applies in ((0.05, False), (0.28, False), (0.32, True), (0.5, True), (0.68, True), (0.72, False)):
        t = float(process.time_at(torch.tensor(level, dtype=torch.float64)))
        assert guidance.applies(process, t) == applies
        assert not Guidance(1.0, interval=(0.3, 0.7)).applies(process, t)
        assert Guidance(2.0).applies(process, t)


def test_outside_its_interval_guidance_costs_and_changes_nothing():
    denoiser, backbone = labelled(flow())
    guided = estimator(denoiser, Guidance(3.0, interval=(0.3, 0.7)), LABEL)
    plain = estimator(denoiser, Guidance(), LABEL)
    for t, applies in ((0.9, False), (0.5, True), (0.1, False)):
        backbone.asked.clear()
        ours = guided(pictures(), t)
        assert [len(x_in) for _, x_in, _ in backbone.asked] == [4 if applies else 2]
        for a, b in zip(ours, plain(pictures(), t), strict=True):
            assert torch.equal(a, b) != applies


def test_guidance_by_interval_reaches_the_pictures():
    denoiser, _ = labelled(flow())
    full, part, none = (
        sample(denoiser, 2, steps=5, guidance=weight, **interval)
        for weight, interval in ((3.0, {}), (3.0, {"guidance_interval": (0.3, 0.7)}), (1.0, {}))
    )
    assert not torch.equal(full, part)
    assert not torch.equal(part, none)


# --- autoguidance ----------------------------------------------------------------------------------------------------


def test_a_model_cannot_guide_itself():
    denoiser, backbone = labelled(vp("cosine"), V)
    x_t = pictures()
    plain = estimator(denoiser, Guidance(), LABEL)(x_t, 0.5)
    backbone.asked.clear()
    guided = estimator(denoiser, Guidance(3.0, weak=denoiser), LABEL)(x_t, 0.5)
    assert [asked for asked, _, _ in backbone.asked] == [[0, 1], [0, 1]]
    torch.testing.assert_close(guided, plain, rtol=1e-10, atol=1e-10)


def test_autoguidance_goes_beyond_a_weaker_model():
    strong, weak = exact(flow(), VELOCITY, Mixture()), exact(flow(), VELOCITY, Normal())
    x_t, t = torch.full((3, 1, *SIZE), 0.2, dtype=torch.float64), 0.6
    x_0, eps = estimator(strong, Guidance(1.5, weak=weak), None)(x_t, t)
    for ours, better, worse in zip((x_0, eps), strong.estimate(x_t, t), weak.estimate(x_t, t), strict=True):
        torch.testing.assert_close(ours, worse + 1.5 * (better - worse))


@pytest.mark.parametrize("weak", ["ddpm-cosine", "vp-linear", "edm", "flow-shift-3"])
@pytest.mark.parametrize("strong", ["ddpm-linear", "vp-cosine-shift-4", "ve", "flow"])
def test_a_guide_of_another_process_that_says_the_same_changes_nothing(strong, weak):
    for name in (strong, weak):
        assert name in PROCESSES
    ours, theirs = exact(PROCESSES[strong], X0, Mixture()), exact(PROCESSES[weak], VELOCITY, Mixture())
    plain, guided = (
        sample(ours, 8, steps=12, guidance=weight, guide=guide) for weight, guide in ((1.0, None), (2.0, theirs))
    )
    # A guide of timesteps is asked at the nearest, one that never saw so much noise about its last time.
    torch.testing.assert_close(guided, plain, rtol=0, atol=0.02 if weak in DISCRETE else 0.005)
    assert plain.std() > 0.1


def test_a_guide_without_classes_is_asked_for_none():
    denoiser, _ = labelled()
    guide, backbone = labelled()
    for names, asked in ((NAMES, [0, 1]), ((), None)):
        backbone.asked.clear()
        weak = Denoiser(backbone, guide.process, X0, 1, (2, 2), class_names=names)
        estimator(denoiser, Guidance(2.0, weak=weak), LABEL)(pictures(), 500.0)
        assert [seen for seen, _, _ in backbone.asked] == [asked]


# --- translation -----------------------------------------------------------------------------------------------------


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("level", [0.05, 0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("there", ["vp-linear", "vp-cosine", "vp-sigmoid-shift-4", "ve", "edm", "flow", "flow-shift-3"])
@pytest.mark.parametrize("here", ["vp-linear", "vp-sigmoid", "ve", "edm", "flow"])
def test_a_denoiser_of_another_process_says_the_same_of_an_image(here, there, level):
    """To eight digits: VP to VE to flow."""
    ours, theirs = exact(CONTINUOUS[here], X0, Mixture()), exact(CONTINUOUS[there], VELOCITY, Mixture())
    t = float(ours.process.time_at(torch.tensor(level, dtype=torch.float64)))
    at = time_of(ours.process, t)
    generator = torch.Generator().manual_seed(0)
    x_t = at.alpha * 0.2 + at.sigma * torch.randn(50, 1, *SIZE, dtype=torch.float64, generator=generator)
    for a, b in zip(translated(theirs, ours, x_t, t), ours.estimate(x_t, t), strict=True):
        assert relative(a, b) < 1e-8


def test_translation_goes_there_and_back_again():
    chain = [exact(process, prediction, Mixture()) for process, prediction in VP_VE_FLOW]
    x_t, t = pictures(20).reshape(-1, 1, *SIZE), 0.4
    first = chain[0].estimate(x_t, t)
    for a, b in pairwise(chain):
        at = time_of(a.process, t)
        found = translated(b, a, x_t, t)
        for part, known in zip(found, first, strict=True):
            assert relative(part, known) < 1e-8
        t = float(b.process.time_at(torch.tensor(at.sigma / (at.alpha + at.sigma), dtype=torch.float64)))
        there = time_of(b.process, t)
        x_t = x_t * (there.alpha + there.sigma) / (at.alpha + at.sigma)


VP_VE_FLOW = [(vp("linear"), EPS), (ve(), precondition()), (flow(), VELOCITY), (edm(), X0), (vp("linear"), V)]


@dataclass
class Witness:
    """Remembers the times it was given, and answers nothing."""

    times: list[float] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, **_: None) -> Tensor:
        self.times.append(float(t[0]))
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("prediction", [EPS, X0, V], ids=["eps", "x0", "v"])
@pytest.mark.parametrize("here", ["flow", "edm", "ddpm-linear"])
@pytest.mark.parametrize(
    "there",
    [linear(), shifted(linear(), 8), linear(30), cosine(), vp("cosine"), flow()],
    ids=["linear", "linear-shift-8", "linear-30", "cosine", "vp-cosine", "flow"],
)
def test_a_guide_is_never_asked_where_it_cannot_say(here, there, prediction):
    """Neither about the clean image nor where the noise would be divided by nothing."""
    ours, witness = exact(PROCESSES[here], X0, Mixture()), Witness()
    theirs = Denoiser(witness, there, prediction, 1, SIZE)
    for t in PROCESSES[here].ends:
        x_t = torch.randn(4, 1, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x_0, eps = translated(theirs, ours, x_t, t)
        assert x_0.isfinite().all()
        assert eps.isfinite().all()
        assert x_0.abs().max() < 1e3
    low, high = sorted(witness.times)
    known = there.c_noise(torch.tensor([there.ends[0], noisiest_time(there, prediction)], dtype=torch.float64)).tolist()
    assert high <= known[1] + 1e-9
    assert low >= known[0] if there.timesteps else low > 0


def test_pictures_guided_by_any_process_are_finite():
    for guide in (exact(flow(), EPS, Normal()), exact(shifted(linear(), 8), X0, Normal())):
        for name in ("edm", "flow", "vp-cosine"):
            made = sample(exact(PROCESSES[name], X0, Mixture()), 4, steps=30, guidance=1.5, guide=guide)
            assert made.isfinite().all()
