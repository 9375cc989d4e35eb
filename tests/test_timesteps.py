"""Sampling times: their ends, their steps, their spacing, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schedules import CONTINUOUS, DISCRETE, PAIRS, PROCESSES
from torch import Tensor

from maskdm.diffusion.prediction import EPS, VELOCITY, X0, V, precondition
from maskdm.diffusion.process import Process, noise_level
from maskdm.diffusion.schedules import cosine, edm, flow, linear, ve, vp, zero_terminal
from maskdm.errors import ArgumentError
from maskdm.sampling.timesteps import MAX_AMPLIFICATION, SPACINGS, noisiest_time, sampling_times

LINEAR = linear()


def log_ratio(process: Process, times: Tensor) -> Tensor:
    """log(sigma / alpha)."""
    alpha, sigma = process.alpha_sigma(times)
    return sigma.log() - alpha.log()


# --- every spacing ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(sorted(PAIRS)),
    st.sampled_from([None, *SPACINGS]),
    st.floats(0.05, 20),
    st.booleans(),
    st.floats(0, 1),
)
def test_the_times_fall_strictly_in_so_many_steps_to_the_clean_image(name, spacing, shift, shifts, part):
    process, prediction = PAIRS[name]
    first = noisiest_time(process, prediction)
    most = int(first) + 1 if process.timesteps else 300
    steps = 1 + int(part * (most - 1))
    times = sampling_times(process, prediction, steps, spacing=spacing, shift=shift if shifts else 1.0)
    assert (times.shape, times.dtype, times.device.type) == ((steps + 1,), torch.float64, "cpu")
    assert (float(times[0]), float(times[-1])) == (first, process.clean)
    assert (times.diff() < 0).all()
    if process.timesteps:
        assert torch.equal(times, times.trunc())
    assert noise_level(*process.alpha_sigma(times)).isfinite().all()


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shift", [1.0, 0.2, 5.0])
def test_as_many_steps_as_timesteps_visit_every_one(name, spacing, shift):
    process = DISCRETE[name]
    times = sampling_times(process, X0, process.timesteps, spacing=spacing, shift=shift)
    assert times.tolist() == list(range(process.timesteps - 1, -2, -1))


@pytest.mark.parametrize("spacing", ["karras", "logsnr"])
def test_many_steps_on_timesteps_take_each_where_they_are_closer_and_follow_the_spacing_elsewhere(spacing):
    times = sampling_times(LINEAR, X0, 400, spacing=spacing)
    continuous = sampling_times(vp("linear"), X0, 400, spacing=spacing)
    assert times[-40:].tolist() == list(range(38, -2, -1))
    followed = (LINEAR.alpha_sigma(times)[0] - vp("linear").alpha_sigma(continuous)[0]).abs() < 0.01
    assert followed[:100].all()


# --- the first time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "prediction"), PAIRS.values(), ids=PAIRS.keys())
def test_sampling_starts_at_the_noisiest_time_that_does_not_amplify_beyond_reason(process, prediction):
    first = torch.tensor(noisiest_time(process, prediction), dtype=torch.float64)
    step = 1 if process.timesteps else (process.ends[1] - process.ends[0]) / 10_000
    alpha, sigma = process.alpha_sigma(first)
    assert abs(sigma / prediction.determinant(alpha, sigma)) <= MAX_AMPLIFICATION
    if first < process.ends[1]:
        alpha, sigma = process.alpha_sigma(first + step)
        assert abs(sigma / prediction.determinant(alpha, sigma)) > MAX_AMPLIFICATION


def test_where_known_pairs_start():
    assert sampling_times(LINEAR, EPS, 50)[0] == 999
    assert sampling_times(cosine(), X0, 50)[0] == 999
    assert sampling_times(zero_terminal(cosine()), V, 50)[0] == 999
    first = sampling_times(cosine(), EPS, 50)[0]
    ratios = (lambda alpha, sigma: sigma / alpha)(*cosine().alpha_sigma(torch.stack([first, first + 1])))
    assert ratios[0] <= 200 < ratios[1]
    assert 990 < first < 999
    assert sampling_times(flow(), VELOCITY, 50)[0] == 1
    assert sampling_times(flow(), EPS, 50)[0] == pytest.approx(0.995, abs=1e-3)  # sigma / alpha = 199
    assert sampling_times(edm(), precondition(), 18)[0] == 80
    assert sampling_times(vp(), EPS, 50)[0] == 1


# --- their shapes ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(DISCRETE)), st.data())
def test_uniform_timesteps_fall_evenly(name, data):
    process = DISCRETE[name]
    steps = data.draw(st.integers(1, process.timesteps))
    times = sampling_times(process, X0, steps)
    gaps = -times.diff()
    assert (gaps >= 1).all()
    assert (gaps - (times[0] + 1) / steps).abs().max() < 1


def test_times_between_timesteps_are_truncated_as_in_the_official_sampler():
    assert sampling_times(LINEAR, EPS, 3).tolist() == [999, 665, 332, -1]


def test_uniform_times_are_evenly_spaced_where_time_is_continuous():
    for process in (vp(), flow(), flow(shift=3)):
        times = sampling_times(process, X0, 8)
        torch.testing.assert_close(times, torch.linspace(1, 0, 9, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_logsnr_falls_evenly_between_the_ends(name):
    process = CONTINUOUS[name]
    times = sampling_times(process, X0, 12, spacing="logsnr")
    ratio = log_ratio(process, times[:-1])
    first = min(float(ratio[0]), math.log(MAX_AMPLIFICATION))
    even = torch.linspace(first, float(ratio[-1]), 12, dtype=torch.float64)
    torch.testing.assert_close(ratio[1:], even[1:], rtol=0, atol=1e-6)
    assert float(times[-2]) == pytest.approx(process.ends[0], rel=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_karras_is_equation_5_of_edm(steps):
    times = sampling_times(edm(), precondition(), steps, spacing="karras")
    if steps > 1:
        for i in range(steps):
            expected = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
            assert float(times[i]) == pytest.approx(expected, rel=1e-9)
    assert times[0] == 80


def test_karras_spaces_sigma_over_alpha_in_other_processes():
    process = vp("linear")
    ratio = log_ratio(process, sampling_times(process, X0, 10, spacing="karras")[:-1]).exp()
    roots = ratio ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(9), rtol=1e-6, atol=0)


def test_every_process_has_its_usual_spacing():
    for process, spacing in [
        (LINEAR, "uniform"),
        (vp(), "uniform"),
        (flow(), "uniform"),
        (ve(), "logsnr"),
        (edm(), "karras"),
    ]:
        default, named = sampling_times(process, X0, 9), sampling_times(process, X0, 9, spacing=spacing)
        assert torch.equal(default, named)


# --- shift -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.floats(0.1, 10), st.integers(1, 60))
def test_the_shift_of_flow_is_the_closed_form(shift, steps):
    """Esser et al. 2024, eq. 23."""
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    expected = shift * t / (1 + (shift - 1) * t)
    found = sampling_times(flow(), VELOCITY, steps, shift=shift)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_shift_multiplies_sigma_over_alpha_where_sampling_starts_at_noise_alone():
    for process in (flow(), vp("cosine"), vp("sigmoid")):
        plain, moved = (sampling_times(process, V, 12, shift=shift)[1:-1] for shift in (1.0, 3.0))
        torch.testing.assert_close(
            log_ratio(process, moved), log_ratio(process, plain) + math.log(3), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_more_shift_dwells_where_there_is_more_noise(name, spacing):
    process = PROCESSES[name]
    less, plain, more = (sampling_times(process, X0, 10, spacing=spacing, shift=shift) for shift in (0.5, 1.0, 3.0))
    assert (less[1:-1] <= plain[1:-1]).all()
    assert (plain[1:-1] <= more[1:-1]).all()
    assert less[5] < plain[5] < more[5]
    for times in (less, more):
        assert (times[0], times[-1]) == (plain[0], plain[-1])


@pytest.mark.parametrize("name", ["vp-linear", "ve", "edm"])
def test_a_large_shift_does_not_heap_times_at_the_first(name):
    times = sampling_times(PROCESSES[name], X0, 50, shift=10.0)
    assert (times.diff() < 0).all()
    assert (times[1:] < times[0]).all()


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(*arguments, **options) -> ArgumentError:
    with pytest.raises(ArgumentError) as error:
        sampling_times(*arguments, **options)
    return error.value


@pytest.mark.parametrize(("process", "prediction", "timesteps"), [(LINEAR, EPS, 1000), (cosine(100), V, 100)])
def test_steps_that_the_process_does_not_have_are_refused(process, prediction, timesteps):
    for steps in (0, -1, timesteps + 1):
        error = refused(process, prediction, steps)
        assert (error.name, error.got) == ("steps", steps)
        assert error.wanted.startswith(f"1 to {timesteps} ")


def test_with_eps_the_last_timesteps_of_cosine_are_no_steps():
    timesteps = int(noisiest_time(cosine(), EPS)) + 1
    assert timesteps < 1000
    assert len(sampling_times(cosine(), EPS, timesteps)) == timesteps + 1
    assert refused(cosine(), EPS, timesteps + 1).wanted.startswith(f"1 to {timesteps} ")


def test_continuous_time_has_a_limit_too():
    for steps in (0, -1, 10_001):
        error = refused(vp(), X0, steps)
        assert (error.name, error.got) == ("steps", steps)
        assert error.wanted.startswith("1 to 10000 ")


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
def test_a_shift_that_is_not_positive_is_refused(shift):
    assert refused(flow(), X0, 10, shift=shift).name == "shift"


@pytest.mark.parametrize("spacing", ["linear", "Karras", "exponential"])
def test_an_unknown_spacing_is_refused(spacing):
    error = refused(vp(), X0, 10, spacing=spacing)
    assert (error.name, error.got, error.wanted) == ("spacing", spacing, "one of uniform, karras, logsnr")


def test_no_spacing_is_the_usual_one():
    assert torch.equal(sampling_times(edm(), X0, 5, spacing=None), sampling_times(edm(), X0, 5))
