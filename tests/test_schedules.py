"""The processes of the literature: what every one promises, and the formulas of their papers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskdm.diffusion import schedules, time_distributions
from maskdm.diffusion.prediction import PREDICTIONS, Prediction, check_prediction
from maskdm.diffusion.process import ContinuousProcess, DiscreteProcess, Process, noise_level
from maskdm.diffusion.schedules import cosine, edm, flow, linear, shifted, sigmoid, ve, vp, zero_terminal
from maskdm.errors import ArgumentError

DDPM = {"linear": linear, "cosine": cosine, "sigmoid": sigmoid}
DISCRETE: dict[str, DiscreteProcess] = {
    name: process
    for schedule, make in DDPM.items()
    for name, process in {
        f"ddpm-{schedule}": make(),
        f"ddpm-{schedule}-100": make(100),
        f"ddpm-{schedule}-shift-4": shifted(make(), 4),
        f"ddpm-{schedule}-zero-terminal": zero_terminal(make()),
        f"ddpm-{schedule}-shift-4-zero-terminal": zero_terminal(shifted(make(), 4)),
    }.items()
}
CONTINUOUS: dict[str, ContinuousProcess] = {
    name: process
    for schedule in DDPM
    for name, process in {
        f"vp-{schedule}": vp(schedule),
        f"vp-{schedule}-shift-4": vp(schedule, shift=4),
        f"vp-{schedule}-shift-1/2": vp(schedule, shift=0.5),
    }.items()
} | {"ve": ve(), "edm": edm(), "edm-unit": edm(sigma_data=1.0), "flow": flow(), "flow-shift-3": flow(shift=3)}
PROCESSES: dict[str, Process] = DISCRETE | CONTINUOUS


def carried(process: Process) -> dict[str, Prediction]:
    """The predictions that a process can carry."""
    able = {}
    for name, prediction in PREDICTIONS.items():
        try:
            check_prediction(process, prediction)
        except ArgumentError:
            continue
        able[name] = prediction
    return able


PAIRS = {
    f"{process}-{name}": (PROCESSES[process], prediction)
    for process in PROCESSES
    for name, prediction in carried(PROCESSES[process]).items()
}


@pytest.fixture(params=PROCESSES.values(), ids=PROCESSES.keys())
def process(request) -> Process:
    return request.param


@pytest.fixture(params=CONTINUOUS.values(), ids=CONTINUOUS.keys())
def continuous(request) -> ContinuousProcess:
    return request.param


def every_time(process: Process) -> Tensor:
    """All timesteps, or 2001 times over the whole range."""
    low, high = process.ends
    return torch.linspace(low, high, process.timesteps or 2001, dtype=torch.float64)


def ratio(process: Process, t: Tensor) -> Tensor:
    alpha, sigma = process.alpha_sigma(t)
    return sigma / alpha


# --- what every process promises -------------------------------------------------------------------------------------


def test_noise_rises_strictly_with_time(process):
    alpha, sigma = process.alpha_sigma(every_time(process))
    assert alpha.dtype == sigma.dtype == torch.float64
    assert alpha.min() >= 0
    assert sigma.min() > 0
    assert (alpha.diff() <= 0).all()
    assert (sigma.diff() >= 0).all()
    assert ((alpha[1:] * sigma[:-1]) < (alpha[:-1] * sigma[1:])).all()  # SNR, without dividing by zero
    assert (noise_level(alpha, sigma).diff() > 0).all()


@pytest.mark.parametrize("name", [name for name in PROCESSES if name.startswith(("ddpm", "vp"))])
def test_variance_is_preserved_where_that_is_claimed(name):
    alpha, sigma = PROCESSES[name].alpha_sigma(every_time(PROCESSES[name]))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-15)


def test_at_the_clean_time_there_is_no_noise(process):
    assert [float(c) for c in process.alpha_sigma(torch.tensor(process.clean))] == [1, 0]
    assert process.clean < process.ends[0] < process.ends[1]


def test_coefficients_have_the_shape_of_the_times_whatever_their_dtype(process):
    times = torch.tensor(process.ends, dtype=torch.float64).repeat(3, 1)
    for dtype in (torch.float32, torch.float64):
        for c in process.alpha_sigma(times.to(dtype)):
            assert (c.shape, c.dtype) == ((3, 2), torch.float64)
    assert all(c.shape == () for c in process.alpha_sigma(times[0, 0]))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(PROCESSES)), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_training_times_rise_with_their_quantile_and_stay_between_the_ends(name, a, b):
    process = PROCESSES[name]
    low, high = process.training_time(torch.tensor(sorted([a, b]), dtype=torch.float64)).tolist()
    assert process.ends[0] <= low <= high <= process.ends[1]


def test_training_times_of_single_precision_quantiles_are_those_of_double(process):
    u = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    single, double = process.training_time(u), process.training_time(u.double())
    # A timestep may change where a quantile is rounded to the border between two.
    torch.testing.assert_close(single, double, rtol=0, atol=1 if process.timesteps else 0)


def test_no_two_quantiles_of_training_mean_the_same_time(continuous):
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    assert (continuous.training_time(u).diff() > 0).all()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_time_of_a_noise_level_is_found(name):
    process = CONTINUOUS[name]
    t = torch.cat([every_time(process), torch.tensor([process.clean], dtype=torch.float64)])
    found = process.time_at(noise_level(*process.alpha_sigma(t)))
    assert found.dtype == torch.float64
    # Near noise alone many times have, to rounding, the same noise level.
    torch.testing.assert_close(noise_level(*process.alpha_sigma(found)), noise_level(*process.alpha_sigma(t)))
    near = t < 0.99 * process.ends[1]
    torch.testing.assert_close(found[near], t[near], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_timestep_of_a_noise_level_is_found_and_between_two_the_nearest(name):
    process = DISCRETE[name]
    t = torch.arange(-1, process.timesteps).double()
    level = noise_level(*process.alpha_sigma(t))
    assert torch.equal(process.time_at(level), t)
    gaps = level.diff()
    assert torch.equal(process.time_at(level[:-1] + 0.4 * gaps), t[:-1])
    assert torch.equal(process.time_at(level[:-1] + 0.6 * gaps), t[1:])
    assert process.time_at(level.reshape(1, -1)).shape == (1, len(level))


def test_beyond_the_noise_levels_of_a_process_its_last_time_is_the_nearest(process):
    assert float(process.time_at(torch.tensor(1.0))) == pytest.approx(process.ends[1])
    assert float(process.time_at(torch.tensor(0.0))) == pytest.approx(process.clean)


def test_the_network_is_given_numbers_of_about_a_thousand(process):
    told = process.c_noise(every_time(process))
    assert told.abs().max() < 2500
    assert (told.diff() > 0).all()
    if (process.timesteps or 1000) >= 1000:
        assert told.max() - told.min() > 900


def test_the_network_is_told_the_same_in_training_and_sampling(process):
    t = process.training_time(torch.tensor([0.1, 0.6], dtype=torch.float64))
    torch.testing.assert_close(process.c_noise(t).double(), process.c_noise(t.float()).double(), rtol=1e-6, atol=1e-6)


def test_the_network_sees_about_unit_variance(process):
    """Of images with deviation 1/2, of 1 where the process says so."""
    alpha, sigma = process.alpha_sigma(every_time(process))
    for deviation in (0.5, 1.0):
        seen = process.c_in(alpha, sigma) ** 2 * (alpha**2 * deviation**2 + sigma**2)
        assert seen.max() < 4.01
        assert seen.min() > 0.2
    if process in (PROCESSES["edm"], PROCESSES["ve"]):
        seen = process.c_in(alpha, sigma) ** 2 * (alpha**2 * 0.25 + sigma**2)
        torch.testing.assert_close(seen, torch.ones_like(seen))


def test_the_frame_of_samplers_never_vanishes(process):
    alpha, sigma = process.alpha_sigma(every_time(process))
    n = process.frame(alpha, sigma)
    assert n.min() > 1 / 500
    assert torch.equal(n, alpha) or torch.equal(n, alpha + sigma)


# --- DDPM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [100, 1000])
def test_linear_betas_rise_evenly_from_1e_4_to_0_02_scaled_by_the_number_of_timesteps(timesteps):
    alpha, _ = linear(timesteps).alpha_sigma(torch.arange(-1, timesteps))
    betas = (1 - (alpha[1:] / alpha[:-1]) ** 2) * timesteps / 1000
    torch.testing.assert_close(betas, torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64), rtol=0, atol=1e-13)


def test_cosine_is_the_formula_of_its_paper():
    alpha, _ = cosine(1000).alpha_sigma(torch.arange(1000))
    for t in (0, 1, 500, 998):
        f = math.cos(((t + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        assert float(alpha[t]) ** 2 == pytest.approx(f, rel=1e-9)
    assert float(alpha[999] / alpha[998]) ** 2 == pytest.approx(0.001)  # beta clipped at 0.999


def test_sigmoid_is_the_formula_of_its_paper():
    alpha, _ = sigmoid(1000).alpha_sigma(torch.arange(1000))
    start, end = (1 / (1 + math.exp(-x)) for x in (-3, 3))
    for t in (0, 1, 500, 998):
        here = 1 / (1 + math.exp(-((t + 1) / 1000 * 6 - 3)))
        assert float(alpha[t]) ** 2 == pytest.approx((end - here) / (end - start), rel=1e-9)
    assert float(alpha[999] / alpha[998]) ** 2 == pytest.approx(0.001)


@pytest.mark.parametrize("name", DDPM)
@pytest.mark.parametrize("timesteps", [2, 5, 10, 19, 20, 21])
def test_few_timesteps_make_a_process_or_are_refused(name, timesteps):
    try:
        process = DDPM[name](timesteps)
    except ArgumentError as error:
        assert (error.name, error.got) == ("timesteps", timesteps)  # noqa: PT017 - either is right
        assert (name, timesteps < 21) == ("linear", True)
        return
    alpha, sigma = process.alpha_sigma(torch.arange(-1, timesteps))
    assert alpha.isfinite().all()
    assert sigma.isfinite().all()
    assert (alpha.diff() < 0).all()


def test_a_shift_multiplies_sigma_over_alpha_of_every_level():
    for make in DDPM.values():
        t = torch.arange(1000)
        torch.testing.assert_close(ratio(shifted(make(), 4), t), 4 * ratio(make(), t), rtol=1e-9, atol=0)
    process = linear()
    assert shifted(process, 1) is process


def test_a_shift_of_noise_alone_stays_noise_alone():
    alpha, sigma = shifted(zero_terminal(linear()), 3).alpha_sigma(torch.tensor([500, 999]))
    assert (float(alpha[1]), float(sigma[1])) == (0, 1)
    assert alpha.isfinite().all()


@pytest.mark.parametrize("make", DDPM.values(), ids=DDPM.keys())
def test_zero_terminal_ends_in_noise_alone_and_begins_as_before(make):
    """Lin et al. 2023, algorithm 1, line by line."""
    root = make().alpha_bar[1:].sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * first / (first - last)
    process = zero_terminal(make())
    torch.testing.assert_close(process.alpha_bar[1:], root**2, rtol=1e-12, atol=0)
    alpha, sigma = process.alpha_sigma(torch.tensor([0, 999]))
    assert float(alpha[0]) == pytest.approx(float(first), rel=1e-12)
    assert (float(alpha[1]), float(sigma[1])) == (0, 1)


# --- continuous time -------------------------------------------------------------------------------------------------


def test_vp_linear_is_the_integral_of_its_betas():
    """Song et al. 2021, eq. 33: alpha = exp(-1/2 times the integral of beta), beta from 0.1 to 20."""
    t = torch.tensor([0.05, 0.3, 0.7, 1.0], dtype=torch.float64)
    alpha, _ = vp("linear").alpha_sigma(t)
    for time, found in zip(t.tolist(), alpha.tolist(), strict=True):
        s = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000 * time
        assert found == pytest.approx(math.exp(-0.5 * float((0.1 + 19.9 * s).mean()) * time), rel=1e-9)


def test_vp_linear_is_the_limit_of_ddpm():
    process = linear(100_000)
    t = torch.tensor([0.05, 0.3, 0.7, 1.0], dtype=torch.float64)
    there, _ = process.alpha_sigma((t * 100_000 - 1).round())
    torch.testing.assert_close(vp("linear").alpha_sigma(t)[0], there, rtol=1e-3, atol=0)


def test_vp_cosine_and_sigmoid_by_hand():
    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    assert vp("cosine").alpha_sigma(t)[0].tolist() == pytest.approx([math.cos(math.pi / 8), math.sqrt(0.5)])
    there, _ = sigmoid(1000).alpha_sigma(torch.tensor([249, 499]))
    torch.testing.assert_close(vp("sigmoid").alpha_sigma(t)[0], there, rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", DDPM)
@pytest.mark.parametrize("shift", [0.5, 4.0])
def test_a_shift_multiplies_sigma_over_alpha_at_every_time(schedule, shift):
    t = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    torch.testing.assert_close(ratio(vp(schedule, shift=shift), t), shift * ratio(vp(schedule), t), rtol=1e-9, atol=0)


def test_flow_mixes_linearly_and_its_shift_is_one_of_times():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    alpha, sigma = flow().alpha_sigma(t)
    assert torch.equal(alpha, 1 - t)
    assert torch.equal(sigma, t)
    moved = 3 * t / (1 + 2 * t)  # Esser et al. 2024, eq. 23
    for ours, theirs in zip(flow(shift=3).alpha_sigma(t), flow().alpha_sigma(moved), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)


@pytest.mark.parametrize("process", [ve(), edm()], ids=["ve", "edm"])
def test_with_variance_exploding_time_is_sigma(process):
    t = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    alpha, sigma = process.alpha_sigma(t)
    assert alpha.tolist() == [1, 1, 1]
    assert torch.equal(sigma, t)


def test_the_input_of_edm_is_that_of_its_paper():
    """Karras et al. 2022, table 1: c_in, and c_noise = ln(sigma) / 4, here on a scale of a thousand."""
    t = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    torch.testing.assert_close(edm().c_in(*edm().alpha_sigma(t)), 1 / (t**2 + 0.5**2).sqrt())
    torch.testing.assert_close(edm().c_noise(t), 1000 * t.log() / 4)


U = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)


def normal_moments(x: Tensor) -> tuple[float, float, float]:
    """Mean, deviation, and the share within one deviation."""
    return float(x.mean()), float(x.std()), float(((x - x.mean()).abs() < x.std()).double().mean())


def test_the_distributions_of_training_times_are_those_of_the_papers():
    """Uniform for VP, log-uniform for NCSN, N(-1.2, 1.2) of log(sigma) for EDM, N(0, 1) of logit(t) for flow."""
    t = vp().training_time(U)
    torch.testing.assert_close(t, 1e-3 + 0.999 * U, rtol=0, atol=1e-12)
    log = ve().training_time(U).log()
    torch.testing.assert_close(log, math.log(0.01) + U * math.log(5000), rtol=0, atol=1e-9)
    assert normal_moments(edm().training_time(U).log()) == pytest.approx((-1.2, 1.2, 0.6827), abs=0.01)
    t = flow().training_time(U)
    assert normal_moments((t / (1 - t)).log()) == pytest.approx((0, 1, 0.6827), abs=0.01)


def test_another_distribution_takes_its_place():
    half = schedules.uniform_between(0.2, 0.3)
    for make in (vp, flow, edm, ve):
        process = make(time_distribution=half)
        assert process.training_time(torch.tensor([0.5], dtype=torch.float64)).tolist() == pytest.approx([0.25])
    mean = time_distributions.logit_normal(1.0, 0.5)(torch.tensor(0.5, dtype=torch.float64))
    assert float(mean) == pytest.approx(1 / (1 + math.exp(-1)))
    median = time_distributions.log_normal(1.0, 0.5)(torch.tensor(0.5, dtype=torch.float64))
    assert float(median) == pytest.approx(math.e)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0, 1.0)])
def test_noise_from_more_to_less_is_refused(low, high):
    for make in (ve, edm):
        with pytest.raises(ArgumentError) as error:
            make(sigma_min=low, sigma_max=high)
        assert (error.value.name, error.value.got) == ("sigma_min", low)
