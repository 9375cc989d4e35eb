"""Weights of the loss: the formulas of the papers, written out for every prediction."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schedules import PAIRS, PROCESSES
from torch import Tensor

from maskdm.diffusion.prediction import EPS, PREDICTIONS, VELOCITY, X0, V, precondition
from maskdm.diffusion.process import Process
from maskdm.diffusion.schedules import cosine, edm, flow, linear, vp, zero_terminal
from maskdm.diffusion.weighting import LARGEST, SMALLEST, min_snr, p2, uniform, uniform_in
from maskdm.sampling.timesteps import noisiest_time

F = precondition()
U = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
WEIGHTINGS = {
    "uniform": uniform,
    "min-snr": min_snr(),
    "p2": p2(),
    **{f"uniform-in-{name}": uniform_in(space) for name, space in PREDICTIONS.items()},
}


def coefficients(process: Process) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) at quantiles of training."""
    return process.alpha_sigma(process.training_time(U))


def snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    return alpha**2 / sigma**2


def same(ours: Tensor, formula: Tensor) -> None:
    torch.testing.assert_close(ours, formula.clamp(SMALLEST, LARGEST), rtol=1e-9, atol=1e-12)


# --- uniform ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "prediction"), PAIRS.values(), ids=PAIRS.keys())
def test_uniform_is_exactly_one(process, prediction):
    alpha, sigma = coefficients(process)
    assert torch.equal(uniform(alpha, sigma, prediction), torch.ones_like(alpha))
    assert torch.equal(uniform(alpha.float(), sigma.float(), prediction), torch.ones_like(alpha.float()))


@pytest.mark.parametrize(("process", "prediction"), PAIRS.values(), ids=PAIRS.keys())
def test_uniform_in_what_is_predicted_is_uniform(process, prediction):
    alpha, sigma = coefficients(process)
    assert torch.equal(uniform_in(prediction)(alpha, sigma, prediction), torch.ones_like(alpha))


# --- formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [linear(), cosine(), vp("sigmoid")], ids=["linear", "cosine", "vp"])
@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_is_that_of_its_paper(process, gamma):
    """Hang et al. 2023, section 3.4 and appendix: for x0, eps and v of a variance-preserving process."""
    alpha, sigma = coefficients(process)
    ratio = snr(alpha, sigma)
    clipped = torch.minimum(ratio, torch.tensor(gamma))
    weigh = min_snr(gamma)
    same(weigh(alpha, sigma, X0), clipped)
    same(weigh(alpha, sigma, EPS), clipped / ratio)
    same(weigh(alpha, sigma, V), clipped / (ratio + 1))


def test_min_snr_of_flow_and_edm_by_hand():
    alpha, sigma = coefficients(flow())
    clipped = snr(alpha, sigma).clamp(max=5)
    same(min_snr()(alpha, sigma, VELOCITY), clipped * sigma**2)  # x_0 = x_t - t v
    alpha, sigma = coefficients(edm())
    c_out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    same(min_snr()(alpha, sigma, F), snr(alpha, sigma).clamp(max=5) * c_out**2)


@pytest.mark.parametrize("process", [linear(), cosine(), vp("sigmoid")], ids=["linear", "cosine", "vp"])
@pytest.mark.parametrize(("gamma", "k"), [(0.5, 1.0), (1.0, 1.0), (1.0, 0.1)])
def test_p2_is_that_of_its_paper(process, gamma, k):
    """Choi et al. 2022, eq. 9: on the simple loss of DDPM, which is that of eps."""
    alpha, sigma = coefficients(process)
    ratio = snr(alpha, sigma)
    weight = 1 / (k + ratio) ** gamma
    weigh = p2(gamma, k)
    same(weigh(alpha, sigma, EPS), weight)
    same(weigh(alpha, sigma, X0), weight * ratio)  # an error of x_0 is one of eps by alpha / sigma
    same(weigh(alpha, sigma, V), weight * alpha**2)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_uniform_in_f_is_the_lambda_of_edm(sigma_data):
    """Karras et al. 2022, table 1, on the error of the denoised image."""
    alpha, sigma = coefficients(edm())
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    same(uniform_in(precondition(sigma_data))(alpha, sigma, X0), weight)


def test_uniform_in_velocity_is_the_loss_of_jit():
    """Li & He 2025: the network predicts the image, the loss is on the velocity, divided by at least 0.05."""
    alpha, sigma = coefficients(flow())
    assert sigma.min() < 0.05
    weight = 1 / sigma.clamp(min=0.05) ** 2
    torch.testing.assert_close(uniform_in(VELOCITY)(alpha, sigma, X0), weight, rtol=1e-9, atol=0)


def test_uniform_in_the_noise_is_the_simple_loss_of_ddpm_whatever_is_predicted():
    alpha, sigma = coefficients(linear())
    same(uniform_in(EPS)(alpha, sigma, X0), snr(alpha, sigma))
    same(uniform_in(EPS)(alpha, sigma, V), alpha**2)
    same(uniform_in(X0)(alpha, sigma, EPS), 1 / snr(alpha, sigma))
    same(uniform_in(V)(alpha, sigma, EPS), 1 / alpha**2)
    same(uniform_in(V)(alpha, sigma, X0), 1 / sigma**2)  # SNR + 1


# --- every process and prediction ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(PAIRS)), st.floats(0, 1, exclude_max=True), st.floats(-1, 1), st.floats(-3, 3))
def test_a_weighted_error_of_the_output_is_that_of_the_quantity_it_is_defined_on(name, u, x, e):
    """By changing the output a little and looking at what follows from it."""
    process, prediction = PAIRS[name]
    alpha, sigma = process.alpha_sigma(process.training_time(torch.tensor([u], dtype=torch.float64)))
    x_0, eps, error = (torch.tensor([value], dtype=torch.float64) for value in (x, e, 0.1))
    out, x_t = prediction.target(x_0, eps, alpha, sigma), alpha * x_0 + sigma * eps
    image, noise = (
        after - before
        for after, before in zip(
            prediction.invert(out + error, x_t, alpha, sigma), prediction.invert(out, x_t, alpha, sigma), strict=True
        )
    )
    ratio = float(snr(alpha, sigma))
    for weighting, quantity in [
        (min_snr(5.0), min(ratio, 5.0) * image**2),
        (p2(1.0, 1.0), noise**2 / (1 + ratio)),
        *((uniform_in(space), space.target(image, noise, alpha, sigma) ** 2) for space in (EPS, X0, VELOCITY, F)),
    ]:
        weight = weighting(alpha, sigma, prediction)
        if SMALLEST < float(weight) < LARGEST:
            assert float(weight * error**2) == pytest.approx(float(quantity), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("process", "prediction"), PAIRS.values(), ids=PAIRS.keys())
def test_weights_are_finite_between_nothing_and_the_largest(process, prediction):
    for dtype in (torch.float32, torch.float64):
        alpha, sigma = (c.to(dtype)[:, None, None, None] for c in coefficients(process))
        for weighting in WEIGHTINGS.values():
            weight = weighting(alpha, sigma, prediction)
            assert (weight.shape, weight.dtype) == (alpha.shape, dtype)
            assert (weight >= SMALLEST).all()
            assert (weight <= LARGEST).all()


@pytest.mark.parametrize(("process", "prediction"), PAIRS.values(), ids=PAIRS.keys())
def test_no_weight_vanishes_or_explodes_where_sampling_starts_or_ends(process, prediction):
    """Of the times of sampling, the noisiest and the least noisy: what counts for nothing is not learned."""
    ends = torch.tensor([process.ends[0], noisiest_time(process, prediction)], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        alpha, sigma = (c.to(dtype) for c in process.alpha_sigma(ends))
        for name, weighting in WEIGHTINGS.items():
            weight = weighting(alpha, sigma, prediction)
            assert weight.isfinite().all(), name
            assert (weight >= SMALLEST).all(), name
            assert (weight <= LARGEST).all(), name


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_images_that_are_noise_alone_count(name):
    process = zero_terminal(linear())
    alpha, sigma = process.alpha_sigma(torch.tensor([999]))
    assert float(alpha) == 0
    for prediction in (X0, V, VELOCITY, F):
        weight = float(WEIGHTINGS[name](alpha, sigma, prediction))
        assert SMALLEST <= weight <= LARGEST, prediction.name


def test_every_process_is_weighted_somewhere():
    for process in PROCESSES.values():
        assert float(min_snr()(*coefficients(process), X0).mean()) > 0.01
