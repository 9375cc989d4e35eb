"""The moving average against EDM2's formulas, and against the weights that its steps really have in it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maskdm.config.schema import EMAConfig
from maskdm.training.ema import ema_decay, ema_update, power_gamma

STEPS = 2000
WIDTHS = [0.02, 0.05, 0.10, 0.15, 0.20, 0.25]


def weights_of_steps(config: EMAConfig, steps: int) -> np.ndarray:
    """Share of the network after step 0 (the start), 1, ..., `steps` in the average after the last."""
    weights = np.zeros(steps + 1)
    weights[0] = 1.0
    for step in range(1, steps + 1):
        decay = ema_decay(config, step)
        weights *= decay
        weights[step] += 1 - decay
    return weights


def test_a_constant_decay_is_that_decay_from_the_first_step():
    config = EMAConfig(decay=0.9999)
    assert [ema_decay(config, step) for step in (1, 2, 10, 1000, 10**6)] == [0.9999] * 5


def test_a_constant_decay_weighs_steps_geometrically():
    weights = weights_of_steps(EMAConfig(decay=0.9), 50)
    assert weights[0] == pytest.approx(0.9**50)
    assert weights[1:] == pytest.approx([0.1 * 0.9 ** (50 - step) for step in range(1, 51)])


@pytest.mark.parametrize("sigma_rel", WIDTHS)
def test_the_power_average_forgets_its_start_at_once(sigma_rel):
    config = EMAConfig(sigma_rel=sigma_rel)
    assert ema_decay(config, 1) == 0
    assert weights_of_steps(config, 5)[0] == 0


@pytest.mark.parametrize("sigma_rel", WIDTHS)
def test_gamma_gives_back_its_width(sigma_rel):
    gamma = power_gamma(sigma_rel)
    width = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))  # EDM2, equation 126
    assert gamma > 0
    assert width == pytest.approx(sigma_rel, rel=1e-9)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_gamma_as_edm2_states_it(sigma_rel, gamma):
    assert power_gamma(sigma_rel) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma_rel", WIDTHS)
def test_the_average_really_has_that_width(sigma_rel):
    weights = weights_of_steps(EMAConfig(sigma_rel=sigma_rel), STEPS)
    steps = np.arange(STEPS + 1)
    mean = (weights * steps).sum()
    width = math.sqrt((weights * (steps - mean) ** 2).sum())
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert width / STEPS == pytest.approx(sigma_rel, rel=0.01)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.20])
def test_the_width_is_relative_to_the_steps_so_far(sigma_rel):
    means = []
    for steps in (200, 2000):
        weights = weights_of_steps(EMAConfig(sigma_rel=sigma_rel), steps)
        means.append((weights * np.arange(steps + 1)).sum() / steps)
    gamma = power_gamma(sigma_rel)
    assert means == pytest.approx([(gamma + 1) / (gamma + 2)] * 2, rel=0.01)


@pytest.mark.parametrize("config", [EMAConfig(sigma_rel=0.1), EMAConfig(decay=0.7)], ids=["power", "constant"])
def test_update_averages_what_it_is_given(config):
    average, current = torch.tensor([5.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for step in range(1, 101):
        current.fill_(step)
        ema_update([average], [current], ema_decay(config, step))
    weights = weights_of_steps(config, 100)
    assert float(average) == pytest.approx(5.0 * weights[0] + (weights[1:] * np.arange(1, 101)).sum())


def test_update_works_in_place_on_all_tensors_and_leaves_the_current_ones():
    average = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(2, 2))]
    current = [torch.nn.Parameter(torch.full((3,), 4.0)), torch.nn.Parameter(torch.full((2, 2), 5.0))]
    places = [tensor.data_ptr() for tensor in average]
    ema_update(iter(average), iter(current), 0.75)
    assert [tensor.data_ptr() for tensor in average] == places
    assert [tensor.tolist() for tensor in average] == [[1.0] * 3, [[2.0] * 2] * 2]
    assert [tensor.tolist() for tensor in current] == [[4.0] * 3, [[5.0] * 2] * 2]
    assert all(tensor.is_leaf and tensor.grad_fn is None for tensor in average)


def test_decay_0_takes_over_the_current_weights():
    average = torch.full((4,), 1e30)  # a start that is to be forgotten leaves no rounding error behind
    ema_update([average], [torch.arange(4.0)], 0.0)
    assert average.tolist() == [0, 1, 2, 3]
