"""The forward process: noise levels, the law of t in training, the grid of t in sampling."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.errors import InputError
from maskdm.method.process import MAX_AMPLIFICATION, DiscreteProcess, cosine, linear
from maskdm.training.config import ProcessConfig
from maskdm.training.weights import SCHEDULES

PROCESSES = {f"linear-{T}": linear(T) for T in (21, 100, 1000)} | {f"cosine-{T}": cosine(T) for T in (2, 10, 100, 1000)}


@pytest.fixture(params=PROCESSES.values(), ids=PROCESSES.keys())
def process(request) -> DiscreteProcess:
    return request.param


def all_times(process: DiscreteProcess) -> torch.Tensor:
    return torch.arange(-1, process.timesteps)


def most_steps(process: DiscreteProcess) -> int:
    """Noise levels that sampling may use."""
    return sum(1 / float(process.alpha_sigma(t)[0]) <= MAX_AMPLIFICATION for t in all_times(process)[1:])


def flat(timesteps: int) -> DiscreteProcess:
    """For what depends on T alone."""
    return DiscreteProcess(torch.ones(timesteps + 1, dtype=torch.float64))


# --- noise levels ----------------------------------------------------------------------------------------------------


def test_the_signal_to_noise_ratio_falls_strictly(process):
    alpha, sigma = process.alpha_sigma(all_times(process)[1:])
    assert (alpha > 0).all()
    assert ((alpha.log() - sigma.log()).diff() < 0).all()


def test_variance_is_preserved(process):
    alpha, sigma = process.alpha_sigma(all_times(process))
    assert alpha.dtype == sigma.dtype == torch.float64
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-15)


def test_time_minus_one_is_the_clean_image(process):
    assert [float(c) for c in process.alpha_sigma(torch.tensor(-1))] == [1, 0]


def test_coefficients_have_the_shape_of_the_times_whatever_their_dtype():
    times = torch.tensor([[0, 3, 99], [-1, 7, 50]])
    alpha, sigma = PROCESSES["cosine-100"].alpha_sigma(times)
    assert alpha.shape == sigma.shape == (2, 3)
    for dtype in (torch.int32, torch.float32, torch.float64):
        assert torch.equal(PROCESSES["cosine-100"].alpha_sigma(times.to(dtype))[0], alpha)


@pytest.mark.parametrize("timesteps", [100, 1000])
def test_linear_betas_rise_evenly_from_1e_4_to_0_02_scaled_by_the_number_of_levels(timesteps):
    alpha, _ = linear(timesteps).alpha_sigma(torch.arange(-1, timesteps))
    betas = (1 - (alpha[1:] / alpha[:-1]) ** 2) * timesteps / 1000
    torch.testing.assert_close(betas, torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64), rtol=0, atol=1e-13)


def test_cosine_is_the_formula_of_its_paper():
    alpha, _ = cosine(1000).alpha_sigma(torch.arange(1000))
    for t in (0, 1, 500, 998):
        f = math.cos(((t + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        assert float(alpha[t]) ** 2 == pytest.approx(f, rel=1e-9)
    assert float(alpha[999] / alpha[998]) ** 2 == pytest.approx(0.001)  # beta clipped at 0.999


@pytest.mark.parametrize("name", get_args(ProcessConfig.model_fields["schedule"].annotation))
@pytest.mark.parametrize("timesteps", [2, 5, 10, 19, 20])
def test_few_noise_levels_make_a_process_or_are_refused(name, timesteps):
    ProcessConfig(schedule=name, timesteps=timesteps)  # the settings allow it
    try:
        process = SCHEDULES[name](timesteps)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right
        return
    alpha, sigma = process.alpha_sigma(all_times(process))
    assert alpha.isfinite().all()
    assert sigma.isfinite().all()
    assert (alpha.diff() < 0).all()


# --- the law of t in training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("timesteps", [2, 10, 1000])
def test_training_times_are_uniform_on_all_levels(timesteps, dtype):
    u = (torch.arange(7 * timesteps, dtype=dtype) + 0.5) / (7 * timesteps)
    t = flat(timesteps).training_time(u)
    assert t.dtype == torch.int64
    assert t.bincount().tolist() == [7] * timesteps


@settings(deadline=None, max_examples=200)
@given(st.integers(2, 100_000), st.sampled_from([(torch.float32, 2**-24), (torch.float64, 2**-53)]))
def test_training_times_stay_in_range_at_both_ends(timesteps, kind):
    dtype, ulp = kind
    u = torch.tensor([0, 1 - ulp], dtype=dtype)
    assert u[1] < 1
    assert flat(timesteps).training_time(u).tolist() == [0, timesteps - 1]


# --- the grid of t in sampling ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(PROCESSES)), st.data())
def test_sampling_times_fall_evenly_to_the_clean_image(name, data):
    process = PROCESSES[name]
    steps = data.draw(st.integers(1, most_steps(process)))
    times = process.sampling_times(steps)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert torch.equal(times, times.trunc())
    assert times[-1] == -1
    gaps = -times.diff()
    assert (gaps >= 1).all()
    assert (gaps - (times[0] + 1) / steps).abs().max() < 1


def test_sampling_starts_at_the_noisiest_time_that_does_not_amplify_beyond_reason(process):
    first = process.sampling_times(1)[0]
    assert 1 / process.alpha_sigma(first)[0] <= MAX_AMPLIFICATION
    if first < process.timesteps - 1:
        assert 1 / process.alpha_sigma(first + 1)[0] > MAX_AMPLIFICATION


def test_linear_is_sampled_from_its_end_and_cosine_is_not():
    assert linear().sampling_times(50)[0] == 999
    assert 990 < cosine().sampling_times(50)[0] < 999


def test_times_between_levels_are_truncated_as_in_the_official_sampler():
    assert linear().sampling_times(3).tolist() == [999, 665, 332, -1]


def test_as_many_steps_as_levels_visit_every_level(process):
    levels = most_steps(process)
    assert process.sampling_times(levels).tolist() == list(range(levels - 1, -2, -1))


def test_steps_that_the_process_does_not_have_are_refused(process):
    levels = most_steps(process)
    for steps in (0, -1, levels + 1):
        with pytest.raises(InputError, match=f"sampling steps: got {steps}, wanted 1 to {levels}") as error:
            process.sampling_times(steps)
        assert "\n" not in str(error.value)
