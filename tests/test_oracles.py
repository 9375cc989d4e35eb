"""Samplers against distributions whose denoiser is known exactly, and against the schedulers of diffusers.

The data are normal with correlated pixels, or a mixture of two round clouds. Of the normal everything is known: the
denoiser is affine in x_t, the path of the probability-flow ODE is a linear map in closed form, and since every sampler
is affine in its noises, the mean and covariance of what it makes follow without drawing anything.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import pytest
import torch
from test_schedules import DISCRETE, PAIRS, PROCESSES
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.prediction import EPS, PREDICTIONS, VELOCITY, X0, Prediction
from maskdm.diffusion.process import Process
from maskdm.diffusion.schedules import edm, flow, linear, ve, vp
from maskdm.sampling.guidance import Guidance, estimator
from maskdm.sampling.samplers import (
    Context,
    Sampler,
    ancestral_step,
    ddim_step,
    dpmpp_step,
    euler_step,
    heun_step,
    integrate,
    time_of,
)
from maskdm.sampling.timesteps import sampling_times

SIZE = (1, 2)
MEAN = torch.tensor([0.2, -0.1], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.09, 0.0375], [0.0375, 0.0625]], dtype=torch.float64)


# --- exact denoisers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Normal:
    """Images from N(mean, covariance)."""

    mean: Tensor = MEAN
    covariance: Tensor = COVARIANCE

    def image(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t], (B, d)."""
        variance, Q = torch.linalg.eigh(self.covariance)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return self.mean + ((x_t - alpha * self.mean) @ Q * gain) @ Q.T

    def moved(self, x_t: Tensor, t: tuple[float, float], s: tuple[float, float]) -> Tensor:
        """Where the probability-flow ODE takes x_t (B, d), both times given as (alpha, sigma)."""
        variance, Q = torch.linalg.eigh(self.covariance)
        wider = ((s[0] ** 2 * variance + s[1] ** 2) / (t[0] ** 2 * variance + t[1] ** 2)).sqrt()
        return s[0] * self.mean + ((x_t - t[0] * self.mean) @ Q * wider) @ Q.T


@dataclass(frozen=True)
class Mixture:
    """Two round clouds."""

    weights: tuple[float, float] = (0.7, 0.3)
    means: tuple[tuple[float, float], tuple[float, float]] = ((0.4, 0.1), (-0.5, -0.2))
    std: float = 0.08

    def image(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t], (B, d)."""
        means = torch.tensor(self.means, dtype=x_t.dtype)
        variance = alpha**2 * self.std**2 + sigma**2
        off = x_t[:, None] - alpha[..., None] * means  # (B, 2, d)
        logits = torch.tensor(self.weights, dtype=x_t.dtype).log() - (off**2).sum(dim=-1) / (2 * variance)
        clouds = means + (alpha * self.std**2 / variance)[..., None] * off
        return (logits.softmax(dim=1)[..., None] * clouds).sum(dim=1)


Data = Normal | Mixture


@dataclass(frozen=True)
class Oracle:
    """The exact denoiser as a backbone: it works out x_t and t from its input."""

    data: Data
    process: Process
    prediction: Prediction

    def __call__(self, x_in: Tensor, c_noise: Tensor, **_: Tensor | None) -> Tensor:
        if self.process.timesteps:
            t = c_noise
        elif self.process.ends[1] == 1:
            t = c_noise / 1000
        else:
            t = (c_noise / 250).exp()
        alpha, sigma = (c.to(x_in.dtype)[:, None] for c in self.process.alpha_sigma(t))
        x_t = x_in.flatten(1) / self.process.c_in(alpha, sigma)
        x_0 = self.data.image(x_t, alpha, sigma)
        out = self.prediction.target(x_0, (x_t - alpha * x_0) / sigma, alpha, sigma)
        return out.view_as(x_in)


def exact(process: Process, prediction: Prediction = X0, data: Data | None = None) -> Denoiser:
    return Denoiser(Oracle(data or Normal(), process, prediction), process, prediction, 1, SIZE)


STEP = {
    "ddim": ddim_step,
    "ancestral": ancestral_step,
    "euler": euler_step,
    "heun": heun_step,
    "dpm++": dpmpp_step,
    "dpm++sde": dpmpp_step,
}
CHURNED = ("euler", "heun")


def with_noise(name: str, amount: float) -> Sampler:
    """A sampler with so much fresh noise, also where `get_sampler` would refuse it."""
    return Sampler(STEP[name], s_churn=amount) if name in CHURNED else Sampler(partial(STEP[name], eta=amount))


def option(name: str) -> str:
    """What its amount of fresh noise is called."""
    return "s_churn" if name in CHURNED else "eta"


def silence() -> Tensor:
    raise AssertionError("no noise is needed here")


def run(
    denoiser: Denoiser,
    sampler: str,
    x_t: Tensor,
    times: Sequence[float],
    *,
    amount: float = 0.0,
    noise: Callable[[], Tensor] = silence,
) -> Tensor:
    """From x_t (B, d) at times[0] to the last of the times, (B, d)."""
    estimate = estimator(denoiser, Guidance(), None)
    context = Context(denoiser.process, estimate, lambda: noise().view(-1, 1, *SIZE))
    return integrate(with_noise(sampler, amount), context, x_t.view(-1, 1, *SIZE), times).flatten(1)


def random(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- the oracles themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [Normal(), Mixture()], ids=["normal", "mixture"])
@pytest.mark.parametrize("sigma", [0.1, 0.4, 2.0])
def test_the_oracles_are_right(data, sigma):
    """By importance: the mean of images, weighted by how well each explains x_t."""
    alpha, x_t = 0.8, torch.tensor([0.3, 0.0], dtype=torch.float64)
    images = draw(data, 150_000)
    weight = (-((x_t - alpha * images) ** 2).sum(dim=1) / (2 * sigma**2)).softmax(dim=0)
    by_hand = (weight[:, None] * images).sum(dim=0)
    found = data.image(x_t[None], *torch.tensor([[[alpha]], [[sigma]]], dtype=torch.float64))[0]
    torch.testing.assert_close(found, by_hand, rtol=0, atol=0.005)


def draw(data: Data, count: int) -> Tensor:
    """Images, (count, 2)."""
    if isinstance(data, Normal):
        return data.mean + random(count) @ torch.linalg.cholesky(data.covariance).T
    first = torch.arange(count) < data.weights[0] * count
    means = torch.tensor(data.means, dtype=torch.float64)
    return torch.where(first[:, None], means[0], means[1]) + data.std * random(count)


@pytest.mark.parametrize(("process", "prediction"), PAIRS.values(), ids=PAIRS.keys())
def test_every_prediction_of_every_process_says_the_same_of_a_picture(process, prediction):
    """The exact posterior comes back through what the network is given and puts out."""
    low, high = process.ends
    first = float(sampling_times(process, prediction, 1)[0])
    for t in (low, low + 0.1 * (high - low), low + 0.6 * (high - low), first):
        t = float(int(t)) if process.timesteps else t
        at = time_of(process, t)
        x_t = at.alpha * draw(Normal(), 50) + at.sigma * random(50, seed=1)
        x_0, eps = (part.flatten(1) for part in exact(process, prediction).estimate(x_t.view(-1, 1, *SIZE), t))
        known = Normal().image(x_t, *torch.tensor([[[at.alpha]], [[at.sigma]]], dtype=torch.float64))
        # Rounding of x_t, as an error of the image, is larger by sigma / alpha where the noise is predicted.
        torch.testing.assert_close(x_0, known, rtol=0, atol=1e-10 * max(1.0, at.sigma))
        torch.testing.assert_close(at.alpha * x_0 + at.sigma * eps, x_t, rtol=1e-10, atol=1e-10)


# --- mean and covariance ---------------------------------------------------------------------------------------------

RUNS = {
    "ddim": ("ddim", 0.0),
    "ddim-1/2": ("ddim", 0.5),
    "ddim-1": ("ddim", 1.0),
    "ancestral": ("ancestral", 1.0),
    "euler": ("euler", 0.0),
    "euler-churn": ("euler", 20.0),
    "heun": ("heun", 0.0),
    "heun-churn": ("heun", 20.0),
    "dpm++": ("dpm++", 0.0),
    "dpm++-1/2": ("dpm++", 0.5),
    "dpm++sde": ("dpm++sde", 1.0),
}
SECOND_ORDER = {"heun", "heun-churn", "dpm++", "dpm++-1/2", "dpm++sde"}
DIFFERENT = {  # what a sampler cannot tell from another is left out
    name: process for name, process in PROCESSES.items() if not name.endswith(("shift-4-zero-terminal", "unit", "1/2"))
}


def moments(denoiser: Denoiser, name: str, times: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what a sampler makes of x_t of the right law.

    Image i hears only the i-th of all noises, of size 1; the last hears none. The steps being affine, what the last
    becomes is the mean, and what the others differ from it is the square root of the covariance.
    """
    sampler, amount = RUNS[name]
    images = 2 * (2 * len(times) + 1) + 1
    impulses = torch.eye(images, dtype=torch.float64).split(2, dim=1)
    heard = iter(impulses[:-1])
    at, data = time_of(denoiser.process, times[0]), denoiser.backbone.data
    root = torch.linalg.cholesky(at.alpha**2 * data.covariance + at.sigma**2 * torch.eye(2, dtype=torch.float64))
    start = at.alpha * data.mean + next(heard) @ root.T
    made = run(denoiser, sampler, start, times, amount=amount, noise=heard.__next__)
    off = made[:-1] - made[-1]
    return made[-1], off.T @ off


def covariance_error(process: Process, name: str, steps: int, spacing: str = "logsnr") -> float:
    times = sampling_times(process, X0, steps, spacing=spacing).tolist()
    mean, covariance = moments(exact(process), name, times)
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=1e-12)
    return float((covariance - COVARIANCE).norm() / COVARIANCE.norm())


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("process", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_forty_steps_reproduce_mean_and_covariance(process, name):
    assert covariance_error(process, name, 40) < (0.12 if name in SECOND_ORDER else 0.35)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("process", [linear(), vp("cosine"), edm(), flow()], ids=["ddpm", "vp", "edm", "flow"])
def test_more_steps_reproduce_the_covariance_better(process, name):
    coarse, fine = (covariance_error(process, name, steps) for steps in (40, 80))
    assert fine < 0.65 * coarse or fine < 0.004
    assert fine < (0.03 if name in SECOND_ORDER else 0.19)


# --- the probability-flow ODE ----------------------------------------------------------------------------------------

ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpm++": 2}


def falling(process: Process, steps: int) -> list[float]:
    """Evenly spaced levels, or evenly spaced log-SNRs, both far from either end."""
    if process.timesteps:
        top, span = 22 * process.timesteps // 25, 4 * process.timesteps // 5
        return [float(top - span * k // steps) for k in range(steps + 1)]
    ratio = 20.0 * 0.005 ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return process.time_at(ratio / (1 + ratio)).tolist()


def path_error(process: Process, sampler: str, times: Sequence[float]) -> float:
    """How far from the exact map of the ODE a sampler ends, over the deviation that pixels have there."""
    denoiser, data = exact(process), Normal()
    first, last = (time_of(process, t) for t in (times[0], times[-1]))
    points = torch.tensor([[1.5, -0.5], [-0.5, 1.5], [-0.5, -0.5]], dtype=torch.float64)
    x_t = first.alpha * data.mean + math.hypot(0.3 * first.alpha, first.sigma) * points
    exactly = data.moved(x_t, (first.alpha, first.sigma), (last.alpha, last.sigma))
    made = run(denoiser, sampler, x_t, times)
    return float((made - exactly).abs().max()) / math.hypot(0.3 * last.alpha, last.sigma)


@pytest.mark.parametrize("sampler", ORDERS)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_halving_the_step_divides_the_error_as_the_order_says(process, sampler):
    steps = (10, 20) if process.timesteps == 100 else (40, 80)
    coarse, fine = (path_error(process, sampler, falling(process, n)) for n in steps)
    slack = 0.45 if process.timesteps == 100 else 0.3 if sampler == "dpm++" else 0.1
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[sampler], abs=slack)
    assert fine < (0.06 if process.timesteps == 100 else 0.02)


@pytest.mark.parametrize("name", [n for n in PROCESSES if n not in ("ve", "edm", "edm-unit") and n not in DISCRETE])
def test_from_noise_alone_heun_is_of_second_order_too(name):
    process = PROCESSES[name]
    grids = [torch.linspace(1, 0.1, n + 1, dtype=torch.float64).tolist() for n in (40, 80)]
    coarse, fine = (path_error(process, "heun", grid) for grid in grids)
    assert 1.75 < math.log2(coarse / fine) < 2.25


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_euler_without_churn_is_ddim_without_noise(process):
    for spacing in ("uniform", "karras"):
        times = sampling_times(process, X0, 12, spacing=spacing).tolist()
        x_t = time_of(process, times[0]).sigma * random(20)
        ours, theirs = (run(exact(process, data=Mixture()), sampler, x_t, times) for sampler in ("euler", "ddim"))
        assert torch.equal(ours, theirs)


# --- two modes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    "process",
    [linear(), PROCESSES["ddpm-cosine-zero-terminal"], vp("cosine", shift=4), ve(), edm(), flow()],
    ids=["ddpm-linear", "ddpm-cosine-zero-terminal", "vp-cosine-shift-4", "ve", "edm", "flow"],
)
def test_both_modes_of_a_mixture_get_their_share(process, name):
    count, data = 1500, Mixture()
    sampler, amount = RUNS[name]
    times = sampling_times(process, X0, 40, spacing="logsnr").tolist()
    at = time_of(process, times[0])
    start = at.alpha * draw(data, count) + at.sigma * random(count, seed=1)
    generator = torch.Generator().manual_seed(2)

    def noise() -> Tensor:
        return torch.randn(count, 2, dtype=torch.float64, generator=generator)

    made = run(exact(process, data=data), sampler, start, times, amount=amount, noise=noise)
    means = torch.tensor(data.means, dtype=torch.float64)
    nearest = (made[:, None] - means).norm(dim=-1).argmin(dim=1)
    second = name in SECOND_ORDER
    for mode, weight in enumerate(data.weights):
        cloud = made[nearest == mode]
        assert len(cloud) / count == pytest.approx(weight, abs=0.03 if second else 0.04)
        torch.testing.assert_close(cloud.mean(dim=0), means[mode], rtol=0, atol=0.012 if second else 0.03)
        assert cloud.std(dim=0).tolist() == pytest.approx([data.std] * 2, rel=0.1 if second else 0.25)
    assert (made - means[nearest]).norm(dim=1).max() < 6 * data.std  # nothing between the clouds


# --- against the paper of EDM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("churn", [0.0, 5.0, 100.0])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_euler_and_heun_are_algorithm_2_of_edm(sampler, churn):
    """Karras et al. 2022, line by line, with S_tmin = 0, S_tmax = infinity, S_noise = 1."""
    process, data = edm(), Mixture()
    sigmas = sampling_times(process, X0, 18).tolist()[4:]  # so that what churn adds stays below the last time
    steps, noises = len(sigmas) - 1, list(random(200 * 18, seed=3).split(200))
    x = start = sigmas[0] * random(200)

    def slope(x: Tensor, sigma: float) -> Tensor:
        ones = torch.ones(len(x), 1, dtype=torch.float64)
        return (x - data.image(x, ones, sigma * ones)) / sigma

    for i in range(steps):
        gamma = min(churn / steps, math.sqrt(2) - 1)
        hat = sigmas[i] * (1 + gamma)
        x_hat = x + math.sqrt(hat**2 - sigmas[i] ** 2) * noises[i]
        d = slope(x_hat, hat)
        x = x_hat + (sigmas[i + 1] - hat) * d
        if sampler == "heun" and sigmas[i + 1] > 0:
            x = x_hat + (sigmas[i + 1] - hat) * (d + slope(x, sigmas[i + 1])) / 2

    ours = run(exact(process, data=data), sampler, start, sigmas, amount=churn, noise=iter(noises).__next__)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-10)


# --- against diffusers -----------------------------------------------------------------------------------------------
#
# The same denoiser, start, noises and levels. Where a scheduler has tables of its own in single precision they are
# replaced with ours, so that what is compared is the step. Most schedulers compute it in single precision whatever they
# are given.

STEPS, COUNT = 20, 64
of_diffusers = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("diffusers", exc_type=ImportError)
        assert module.DDPMScheduler  # names are imported when they are first asked for
    return module


def fresh() -> Callable[[], Tensor]:
    """Noise in single precision, as schedulers round it, the same for both sides."""
    return iter([random(COUNT, seed=10 + i).float().double() for i in range(STEPS)]).__next__


def ratios(process: Process, times: Sequence[float]) -> Tensor:
    """sigma / alpha."""
    alpha, sigma = process.alpha_sigma(torch.tensor(times, dtype=torch.float64))
    return sigma / alpha


def take_tables(scheduler, process: Process) -> None:
    """Their alpha_bar is ours to single precision; from here on it is ours."""
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), process.alpha_bar[1:], rtol=1e-4, atol=1e-7)
    scheduler.alphas_cumprod = process.alpha_bar[1:]
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)


def take_sigmas(scheduler, sigmas: Tensor) -> None:
    """And so are its levels, one for each of its steps and the last."""
    assert len(sigmas) == len(scheduler.sigmas)
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(0)


def follow(
    scheduler, denoiser: Denoiser, state: Tensor, asked: Sequence[float], **extra: Callable[[], Tensor]
) -> Tensor:
    """Where a scheduler goes from a state (B, d), if our network is asked at these times: (B, d)."""
    assert len(asked) == len(scheduler.timesteps)
    state = state.view(-1, 1, *SIZE)
    for t, name in zip(asked, scheduler.timesteps, strict=True):
        scale = getattr(scheduler, "scale_model_input", lambda state, name: state)
        told = denoiser.process.c_noise(torch.full((len(state),), t, dtype=torch.float64))
        out = denoiser.backbone(scale(state, name), told)
        more = {key: value() for key, value in extra.items()}
        state = scheduler.step(out, name, state, **more).prev_sample
    return state.flatten(1)


def agree(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert ours.std() > 0.1
    assert float((ours - theirs).abs().max()) < tolerance


@of_diffusers
@pytest.mark.parametrize("times", [range(999, -1, -50), range(19, -1, -1)], ids=["strides", "neighbours"])
@pytest.mark.parametrize(("prediction", "name"), [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")])
def test_ancestral_is_the_ddpm_scheduler_of_diffusers(diffusers, prediction, name, times):
    denoiser = exact(linear(), PREDICTIONS[prediction], Mixture())
    scheduler = diffusers.DDPMScheduler(
        variance_type="fixed_small", clip_sample=False, prediction_type=name, beta_start=1e-4, beta_end=0.02
    )
    take_tables(scheduler, linear())
    scheduler.set_timesteps(timesteps=list(times))
    start = time_of(linear(), times[0]).sigma * random(COUNT)
    theirs, ours = (torch.Generator().manual_seed(7) for _ in range(2))
    made = follow(scheduler, denoiser, start, list(times), generator=lambda: theirs)

    def noise() -> Tensor:
        return torch.randn(COUNT, 1, *SIZE, dtype=torch.float64, generator=ours)

    # Their last variance is 1e-20 where it should be 0.
    agree(run(denoiser, "ancestral", start, [*map(float, times), -1.0], amount=1.0, noise=noise), made, 1e-9)


@of_diffusers
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("prediction", "name"), [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")])
def test_ddim_is_the_ddim_scheduler_of_diffusers(diffusers, prediction, name, eta):
    denoiser = exact(linear(), PREDICTIONS[prediction], Mixture())
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False, prediction_type=name, timestep_spacing="trailing", beta_start=1e-4, beta_end=0.02
    )
    take_tables(scheduler, linear())
    scheduler.set_timesteps(STEPS)
    times = sampling_times(linear(), denoiser.prediction, STEPS).tolist()
    assert times[:-1] == scheduler.timesteps.tolist()
    heard, start = fresh(), random(COUNT)
    made = follow(
        scheduler,
        denoiser,
        start,
        times[:-1],
        eta=lambda: eta,
        variance_noise=lambda: heard().view(-1, 1, *SIZE) if eta else None,
    )
    agree(run(denoiser, "ddim", start, times, amount=eta, noise=fresh()), made, 1e-10)


@of_diffusers
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("name", ["ddpm-linear", "ddpm-cosine", "vp-linear", "vp-sigmoid", "flow"])
def test_dpmpp_is_the_multistep_scheduler_of_diffusers(diffusers, name, algorithm):
    process, straight = PROCESSES[name], name == "flow"
    denoiser = exact(process, VELOCITY if straight else EPS, Mixture())
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type=algorithm,
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        lower_order_final=True,
        prediction_type="flow_prediction" if straight else "epsilon",
        use_flow_sigmas=straight,
    )
    times = sampling_times(process, denoiser.prediction, STEPS).tolist()
    scheduler.set_timesteps(STEPS)
    take_sigmas(scheduler, torch.tensor(times, dtype=torch.float64) if straight else ratios(process, times))
    heard, start = fresh(), time_of(process, times[0]).sigma * random(COUNT)
    made = follow(scheduler, denoiser, start, times[:-1], variance_noise=lambda: heard().view(-1, 1, *SIZE))
    sampler, amount = ("dpm++", 0.0) if algorithm == "dpmsolver++" else ("dpm++sde", 1.0)
    agree(run(denoiser, sampler, start, times, amount=amount, noise=fresh()), made, 1e-5)


@of_diffusers
@pytest.mark.parametrize("name", ["ddpm-linear", "vp-linear", "vp-sigmoid"])
def test_euler_is_the_discrete_scheduler_of_diffusers(diffusers, name):
    """Which goes in x / alpha."""
    process = PROCESSES[name]
    denoiser = exact(process, EPS, Mixture())
    times = sampling_times(process, EPS, STEPS).tolist()
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    take_sigmas(scheduler, ratios(process, times))
    start = random(COUNT)
    made = follow(scheduler, denoiser, start / time_of(process, times[0]).alpha, times[:-1])
    agree(run(denoiser, "euler", start, times), made, 1e-4)


@of_diffusers
@pytest.mark.parametrize("name", ["ddpm-linear", "vp-linear"])
def test_heun_is_the_discrete_scheduler_of_diffusers(diffusers, name):
    """Which goes in x / alpha, as ours where alpha does not vanish."""
    process = PROCESSES[name]
    denoiser = exact(process, EPS, Mixture())
    times = sampling_times(process, EPS, STEPS).tolist()
    scheduler = diffusers.HeunDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    twice = [times[0], *(t for t in times[1:-1] for _ in range(2))]
    take_sigmas(scheduler, ratios(process, [*twice, times[-1]]))
    start = random(COUNT)
    made = follow(scheduler, denoiser, start / time_of(process, times[0]).alpha, twice)
    agree(run(denoiser, "heun", start, times), made, 1e-9)


@of_diffusers
def test_euler_and_the_karras_grid_are_those_of_the_edm_scheduler_of_diffusers(diffusers):
    """So are the input's factor and the meaning of F."""
    denoiser = exact(edm(), PREDICTIONS["F"], Mixture())
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    scheduler.set_timesteps(STEPS)
    times = sampling_times(edm(), denoiser.prediction, STEPS)
    torch.testing.assert_close(scheduler.sigmas.double(), times, rtol=1e-6, atol=0)
    take_sigmas(scheduler, times)
    start = 80 * random(COUNT)
    made = follow(scheduler, denoiser, start, times[:-1].tolist())
    agree(run(denoiser, "euler", start, times.tolist()), made, 1e-5)


@of_diffusers
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_and_the_shift_of_flows_are_those_of_the_flow_scheduler_of_diffusers(diffusers, shift):
    process = flow(shift=shift)
    denoiser = exact(process, VELOCITY, Mixture())
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    times = sampling_times(process, VELOCITY, STEPS)
    scheduler.set_timesteps(sigmas=times[:-1].tolist())
    torch.testing.assert_close(scheduler.sigmas.double(), process.alpha_sigma(times)[1], rtol=1e-6, atol=0)
    take_sigmas(scheduler, process.alpha_sigma(times)[1])
    start = random(COUNT)
    # Their velocity is over the shifted time, which is sigma: eps - x_0 as it is.
    made = follow(scheduler, denoiser, start, times[:-1].tolist())
    agree(run(denoiser, "euler", start, times.tolist()), made, 1e-5)


@of_diffusers
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_is_the_flow_scheduler_of_diffusers(diffusers, shift):
    process = flow(shift=shift)
    denoiser = exact(process, VELOCITY, Mixture())
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    times = sampling_times(process, VELOCITY, STEPS).tolist()
    twice = [times[0], *(t for t in times[1:-1] for _ in range(2))]
    take_sigmas(scheduler, process.alpha_sigma(torch.tensor([*twice, times[-1]], dtype=torch.float64))[1])
    start = random(COUNT)
    made = follow(scheduler, denoiser, start, twice)
    agree(run(denoiser, "heun", start, times), made, 1e-5)
