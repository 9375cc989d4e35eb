"""Processes as such: timesteps, and continuous time. `test_schedules` has what all of them promise."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskdm.diffusion.process import ContinuousProcess, DiscreteProcess, by_alpha, by_sum, exact, noise_level
from maskdm.diffusion.schedules import cosine, linear, shifted, zero_terminal


def flat(timesteps: int) -> DiscreteProcess:
    """For what depends on T alone."""
    return DiscreteProcess(torch.ones(timesteps + 1, dtype=torch.float64))


def straight(time_distribution=lambda u: u, ends: tuple[float, float] = (0.1, 0.9)) -> ContinuousProcess:
    """sigma = t, and nothing else to think of."""

    def ones(alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)

    return ContinuousProcess(
        lambda t: (1 - t, t), time_distribution, ends, c_noise=lambda t: t, c_in=ones, frame=by_sum
    )


# --- timesteps -------------------------------------------------------------------------------------------------------


def test_coefficients_of_timesteps_are_the_table_whatever_the_dtype_of_the_times():
    process = cosine(100)
    times = torch.tensor([[0, 3, 99], [-1, 7, 50]])
    alpha, sigma = process.alpha_sigma(times)
    torch.testing.assert_close(alpha**2, process.alpha_bar[times + 1])
    torch.testing.assert_close(sigma**2, 1 - process.alpha_bar[times + 1])
    for dtype in (torch.int32, torch.float32, torch.float64):
        for again, c in zip(process.alpha_sigma(times.to(dtype)), (alpha, sigma), strict=True):
            assert torch.equal(again, c)


def test_two_processes_do_not_share_a_table():
    first, second = linear(), cosine()
    before = first.alpha_sigma(torch.tensor(500))
    assert second.alpha_sigma(torch.tensor(500)) != before
    assert first.alpha_sigma(torch.tensor(500)) == before


def test_timesteps_have_two_ends_and_a_number():
    process = linear(100)
    assert (process.timesteps, process.ends, process.clean) == (100, (0.0, 99.0), -1.0)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([2, 10, 1000]), st.sampled_from([torch.float32, torch.float64]))
def test_training_times_are_uniform_on_all_timesteps(timesteps, dtype):
    u = (torch.arange(7 * timesteps, dtype=dtype) + 0.5) / (7 * timesteps)
    t = flat(timesteps).training_time(u)
    assert t.dtype == torch.int64
    assert t.bincount().tolist() == [7] * timesteps


@settings(deadline=None, max_examples=200)
@given(st.integers(2, 100_000), st.sampled_from([(torch.float32, 2**-24), (torch.float64, 2**-53)]))
def test_training_timesteps_stay_in_range_at_both_ends(timesteps, kind):
    dtype, ulp = kind
    u = torch.tensor([0, 1 - ulp], dtype=dtype)
    assert u[1] < 1
    assert flat(timesteps).training_time(u).tolist() == [0, timesteps - 1]


def test_the_frame_is_alpha_unless_the_last_timestep_has_next_to_none():
    for process, frame in [
        (linear(), by_alpha),
        (cosine(), by_sum),
        (zero_terminal(linear()), by_sum),
        (shifted(linear(), 4), by_sum),
    ]:
        alpha, sigma = process.alpha_sigma(torch.tensor([10, 999]))
        assert torch.equal(process.frame(alpha, sigma), frame(alpha, sigma))


# --- continuous time -------------------------------------------------------------------------------------------------


def test_training_times_stay_between_the_ends_whatever_the_distribution():
    u = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert straight(lambda u: u).training_time(u).tolist() == [0.1, 0.5, 0.9]
    assert straight(torch.special.ndtri).training_time(u).tolist() == [0.1, 0.1, 0.9]  # -inf and inf at the ends


def test_a_distribution_is_asked_in_double_precision_inside_the_unit_interval():
    asked: list[Tensor] = []

    def quantile(u: Tensor) -> Tensor:
        asked.append(u)
        return u

    straight(quantile).training_time(torch.tensor([0.0, 1.0]))
    assert asked[0].dtype == torch.float64
    assert 0 < asked[0][0] < asked[0][1] < 1


def test_coefficients_are_taken_in_double_precision():
    alpha, sigma = straight().alpha_sigma(torch.tensor(0.25, dtype=torch.float16))
    assert alpha.dtype == sigma.dtype == torch.float64
    assert exact(torch.tensor([1], dtype=torch.int64)).dtype == torch.float64


@settings(deadline=None, max_examples=100)
@given(st.floats(0, 1))
def test_a_time_is_found_by_its_noise_level_up_to_the_last(level):
    found = float(straight().time_at(torch.tensor(level, dtype=torch.float64)))
    assert abs(found - min(level, 0.9)) < 1e-15


def test_the_noise_level_goes_from_zero_to_one():
    alpha, sigma = torch.tensor([1.0, 0.5, 1.0, 0.0]), torch.tensor([0.0, 0.5, 3.0, 1.0])
    assert noise_level(alpha, sigma).tolist() == [0, 0.5, 0.75, 1]
