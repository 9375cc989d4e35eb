"""What the network's output means: targets by hand, and back to the image and the noise."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskdm.method.prediction import PREDICTIONS
from maskdm.method.process import DiscreteProcess, cosine, linear
from maskdm.training.config import ProcessConfig

PROCESSES = [linear(100), linear(1000), cosine(2), cosine(10), cosine(1000)]
NAMES = st.sampled_from(sorted(PREDICTIONS))


@st.composite
def moments(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) at any noise level of any process."""
    process: DiscreteProcess = draw(st.sampled_from(PROCESSES))
    return process.alpha_sigma(torch.tensor(draw(st.integers(0, process.timesteps - 1))))


def numbers(limit: float) -> st.SearchStrategy[Tensor]:
    return st.floats(-limit, limit).map(lambda x: torch.tensor(x, dtype=torch.float64))


@settings(deadline=None, max_examples=500)
@given(NAMES, moments(), numbers(1), numbers(4))
def test_the_target_leads_back_to_the_image_and_the_noise(name, moment, x_0, eps):
    alpha, sigma = moment
    target = PREDICTIONS[name].target(x_0, eps, alpha, sigma)
    found = PREDICTIONS[name].invert(target, alpha * x_0 + sigma * eps, alpha, sigma)
    torch.testing.assert_close(found, (x_0, eps), rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=500)
@given(NAMES, moments(), numbers(4), numbers(4))
def test_any_output_at_all_explains_what_was_shown(name, moment, out, x_t):
    alpha, sigma = moment
    x_0, eps = PREDICTIONS[name].invert(out, x_t, alpha, sigma)
    torch.testing.assert_close(alpha * x_0 + sigma * eps, x_t, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(PREDICTIONS[name].target(x_0, eps, alpha, sigma), out, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "target"), [("eps", -1.0), ("x0", 0.5), ("v", 0.6 * -1.0 - 0.8 * 0.5)])
def test_targets_by_hand(name, target):
    x_0, eps, alpha, sigma = torch.tensor([0.5, -1.0, 0.6, 0.8], dtype=torch.float64)
    assert float(PREDICTIONS[name].target(x_0, eps, alpha, sigma)) == pytest.approx(target, abs=1e-15)


def test_coefficients_broadcast_over_images():
    x_0, eps = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = (c[:, None, None, None] for c in linear().alpha_sigma(torch.tensor([0, 500, 999])))
    for prediction in PREDICTIONS.values():
        target = prediction.target(x_0, eps, alpha, sigma)
        assert target.shape == x_0.shape
        alone = [prediction.target(x_0[i], eps[i], alpha[i], sigma[i]) for i in range(3)]
        assert torch.equal(target, torch.stack(alone))


def test_every_prediction_of_the_settings_exists():
    assert set(PREDICTIONS) == set(get_args(ProcessConfig.model_fields["prediction"].annotation))
    assert all(name == prediction.name for name, prediction in PREDICTIONS.items())
