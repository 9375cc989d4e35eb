"""What the network's output means: targets by hand, back to the image and the noise, and who can carry what."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schedules import PAIRS, PROCESSES, carried, every_time
from torch import Tensor

from maskdm.diffusion.prediction import EPS, PREDICTIONS, VELOCITY, X0, V, check_bounded, check_prediction, precondition
from maskdm.diffusion.schedules import cosine, edm, flow, linear, ve, vp, zero_terminal
from maskdm.errors import ArgumentError

TINY = torch.finfo(torch.float64).eps


def condition(prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """How much larger than the output's errors those of the image and the noise can be."""
    a, b = prediction.coefficients(alpha, sigma)
    largest = torch.stack([alpha, sigma, a.abs(), b.abs()]).max(dim=0).values
    return largest / prediction.determinant(alpha, sigma).abs()


@st.composite
def moments(draw: st.DrawFn) -> tuple:
    """A process and what it can carry, and (alpha, sigma) at any of its training times."""
    process, prediction = PAIRS[draw(st.sampled_from(sorted(PAIRS)))]
    u = torch.tensor(draw(st.floats(0, 1, exclude_max=True)), dtype=torch.float64)
    return prediction, *process.alpha_sigma(process.training_time(u))


def numbers(limit: float) -> st.SearchStrategy[Tensor]:
    return st.floats(-limit, limit).map(lambda x: torch.tensor(x, dtype=torch.float64))


# --- there and back --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(moments(), numbers(1), numbers(4))
def test_the_target_leads_back_to_the_image_and_the_noise(moment, x_0, eps):
    prediction, alpha, sigma = moment
    x_t = alpha * x_0 + sigma * eps
    found = prediction.invert(prediction.target(x_0, eps, alpha, sigma), x_t, alpha, sigma)
    # Rounding of x_t and of the target, both of size 4 max(1, sigma), times the condition of the two equations.
    unit = max(1.0, float(sigma))
    tolerance = max(1e-10 * unit, 16 * TINY * unit * float(condition(prediction, alpha, sigma)))
    torch.testing.assert_close(found, (x_0, eps), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("process", "prediction"), PAIRS.values(), ids=PAIRS.keys())
def test_over_all_times_the_target_leads_back(process, prediction):
    t = every_time(process)
    alpha, sigma = process.alpha_sigma(t)
    x_0, eps = torch.randn(2, len(t), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t = alpha * x_0 + sigma * eps
    unit = sigma.clamp(min=1)
    well = condition(prediction, alpha, sigma) * TINY < 1e-12  # all but eps from next to noise alone
    assert well.double().mean() > 0.99
    found = prediction.invert(prediction.target(x_0, eps, alpha, sigma), x_t, alpha, sigma)
    for ours, given_ in zip(found, (x_0, eps), strict=True):
        assert (((ours - given_) / unit).abs()[well] < 1e-10).all()


@settings(deadline=None, max_examples=300)
@given(moments(), numbers(4), numbers(4))
def test_any_output_at_all_explains_what_was_shown(moment, out, x_t):
    prediction, alpha, sigma = moment
    x_0, eps = prediction.invert(out, x_t, alpha, sigma)
    a, b = prediction.coefficients(alpha, sigma)
    size = max(1.0, *(float(abs(c)) for c in (alpha * x_0, sigma * eps, a * x_0, b * eps)))
    torch.testing.assert_close(alpha * x_0 + sigma * eps, x_t, rtol=1e-10, atol=1e-12 * size)
    torch.testing.assert_close(prediction.target(x_0, eps, alpha, sigma), out, rtol=1e-10, atol=1e-12 * size)


@settings(deadline=None, max_examples=300)
@given(moments(), numbers(1), numbers(4), numbers(1))
def test_errors_of_image_and_noise_are_those_of_the_output_over_the_determinant(moment, x_0, eps, error):
    prediction, alpha, sigma = moment
    x_t, out = alpha * x_0 + sigma * eps, prediction.target(x_0, eps, alpha, sigma)
    det = prediction.determinant(alpha, sigma)
    x_0_off, eps_off = prediction.invert(out + error, x_t, alpha, sigma)
    slack = 1e-9 * max(1.0, float(sigma)) * max(1.0, float(condition(prediction, alpha, sigma)))
    assert float(x_0_off - x_0) == pytest.approx(float(-sigma * error / det), rel=1e-6, abs=slack)
    assert float(eps_off - eps) == pytest.approx(float(alpha * error / det), rel=1e-6, abs=slack)


# --- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target"), [("eps", -1.0), ("x0", 0.5), ("v", 0.6 * -1.0 - 0.8 * 0.5), ("velocity", -1.0 - 0.5)]
)
def test_targets_by_hand(name, target):
    x_0, eps, alpha, sigma = torch.tensor([0.5, -1.0, 0.6, 0.8], dtype=torch.float64)
    assert float(PREDICTIONS[name].target(x_0, eps, alpha, sigma)) == pytest.approx(target, abs=1e-15)


def test_velocity_is_the_derivative_of_rectified_flow():
    x_0, eps = torch.tensor([0.5, -1.0], dtype=torch.float64)

    def x_at(t: float) -> Tensor:
        alpha, sigma = flow().alpha_sigma(torch.tensor(t, dtype=torch.float64))
        return alpha * x_0 + sigma * eps

    slope = (x_at(0.401) - x_at(0.399)) / 0.002
    found = VELOCITY.target(x_0, eps, *flow().alpha_sigma(torch.tensor(0.4, dtype=torch.float64)))
    assert float(found) == pytest.approx(float(slope))


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.002, 0.3, 80.0])
def test_f_is_the_preconditioning_of_edm(sigma_data, sigma):
    """Karras et al. 2022, table 1: D = c_skip x + c_out F."""
    x_0, eps = 0.5, -1.0
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / math.sqrt(sigma**2 + sigma_data**2)
    by_hand = (x_0 - c_skip * (x_0 + sigma * eps)) / c_out
    values = torch.tensor([x_0, eps, 1.0, sigma], dtype=torch.float64)
    assert float(precondition(sigma_data).target(*values)) == pytest.approx(by_hand, rel=1e-9)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([0.25, 0.5, 1.0]), st.sampled_from(sorted(PROCESSES)), st.floats(0, 1, exclude_max=True))
def test_targets_of_f_have_unit_variance_in_every_process(sigma_data, name, u):
    process = PROCESSES[name]
    t = process.training_time(torch.tensor(u, dtype=torch.float64))
    a, b = precondition(sigma_data).coefficients(*process.alpha_sigma(t))
    assert float((a * sigma_data) ** 2 + b**2) == pytest.approx(1)


def test_f_of_unit_data_is_minus_v_where_variance_is_preserved():
    alpha, sigma = linear().alpha_sigma(torch.arange(1000))
    ours, theirs = precondition(1.0).coefficients(alpha, sigma), V.coefficients(alpha, sigma)
    for f, v in zip(ours, theirs, strict=True):
        torch.testing.assert_close(f, -v)


def test_coefficients_broadcast_over_images():
    x_0, eps = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = (c[:, None, None, None] for c in linear().alpha_sigma(torch.tensor([0, 500, 999])))
    for prediction in PREDICTIONS.values():
        target = prediction.target(x_0, eps, alpha, sigma)
        assert target.shape == x_0.shape
        alone = [prediction.target(x_0[i], eps[i], alpha[i], sigma[i]) for i in range(3)]
        assert torch.equal(target, torch.stack(alone))


def test_predictions_are_known_by_their_names():
    assert list(PREDICTIONS) == ["eps", "x0", "v", "velocity", "F"]
    assert all(name == prediction.name for name, prediction in PREDICTIONS.items())


# --- who can carry what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_carries_all_but_what_makes_no_sense(name):
    without = {"eps"} if name.endswith("zero-terminal") else {"v"} if name[:2] in ("ve", "ed") else set()
    assert carried(PROCESSES[name]).keys() == PREDICTIONS.keys() - without


@pytest.mark.parametrize("process", [zero_terminal(linear()), zero_terminal(cosine())], ids=["linear", "cosine"])
def test_the_noise_says_nothing_about_the_image_where_there_is_none(process):
    with pytest.raises(ArgumentError, match="noise alone") as error:
        check_prediction(process, EPS)
    assert (error.value.name, error.value.got) == ("prediction", "eps")


@pytest.mark.parametrize("process", [ve(), edm()], ids=["ve", "edm"])
def test_targets_that_grow_with_sigma_are_refused(process):
    for check in (check_prediction, check_bounded):
        with pytest.raises(ArgumentError, match=r"v grows to \d+ times the image") as error:
            check(process, V)
        assert (error.value.name, error.value.got) == ("prediction", "v")
    for prediction in (EPS, X0, VELOCITY, precondition()):
        check_bounded(process, prediction)


def test_a_message_about_predictions_names_only_what_can_be_carried():
    for process, prediction in [(zero_terminal(linear()), EPS), (ve(), V), (edm(), V)]:
        with pytest.raises(ArgumentError) as error:
            check_prediction(process, prediction)
        advice = error.value.wanted.replace(" or ", ", ").split(", ")
        assert {name.strip() for name in advice if name.strip()} <= carried(process).keys()


def test_the_plain_pairs_of_the_papers_are_carried():
    pairs = [(linear(), EPS), (cosine(), V), (edm(), precondition()), (flow(), VELOCITY), (vp(), X0)]
    for process, prediction in pairs:
        check_prediction(process, prediction)
