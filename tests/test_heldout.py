"""The held-out error: by range of noise level, on one rank as on two, beside that of the best linear filter."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from test_ranks import run_ranks
from torch import Tensor

import maskdm
from maskdm.commands.info import info
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import LEVELS, fixed_levels, fixed_noise, image_error
from maskdm.diffusion.pixels import to_model
from maskdm.diffusion.prediction import X0
from maskdm.diffusion.process import Process, noise_level
from maskdm.diffusion.schedules import cosine, edm, flow, linear
from maskdm.evaluation.heldout import RANGES, HeldOut, linear_errors
from maskdm.reports.run_page import BY_NOISE
from maskdm.runtime.distributed import Runtime, init_distributed
from maskdm.training.events import NO_ERROR
from maskdm.training.read_run import read_history

SIDE = 8
CPU = torch.device("cpu")
ALONE = Runtime(CPU, "no")


def clipped(x_t: Tensor, t: Tensor, **_: object) -> Tensor:
    """In place of a network: an estimate that is better the less noise there is."""
    return x_t.clamp(-1, 1)


def denoiser(process: Process) -> Denoiser:
    return Denoiser(clipped, process, X0, 3, (SIDE, SIDE), 2)


def images(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, SIDE, SIDE, 3), dtype=np.uint8)


# --- ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 3, 4, 10, 256])
def test_the_errors_of_ranges_are_those_of_their_questions_and_sum_to_the_whole(num):
    asked = HeldOut.ask(images(num), None, denoiser(flow()), CPU)
    found = asked.error(denoiser(flow()), ALONE)
    errors = image_error(denoiser(flow()), asked.x_0, asked.t, asked.eps).double()
    assert sum(each.n for each in asked.ranges) == num
    assert len(found.by_range) == len(asked.ranges) == min(num, RANGES)
    for i, each in enumerate(asked.ranges):
        mine = (asked.t >= each.low) & (asked.t < each.high)  # of flow, times are noise levels
        assert int(mine.sum()) == each.n > 0
        assert found.by_range[i] == pytest.approx(float(errors[mine].mean()), rel=1e-9)
    total = sum(error * each.n for error, each in zip(found.by_range, asked.ranges, strict=True))
    assert found.mean == pytest.approx(total / num, rel=1e-12) == pytest.approx(float(errors.mean()), rel=1e-9)


@pytest.mark.parametrize("num", [4, 6, 10, 128, 250])
def test_ranges_are_equal_and_meet(num):
    ranges = HeldOut.ask(images(num), None, denoiser(flow()), CPU).ranges
    edges = np.linspace(*LEVELS, RANGES + 1)
    assert [(each.low, each.high) for each in ranges] == [pytest.approx(pair) for pair in pairwise(edges)]
    assert max(each.n for each in ranges) - min(each.n for each in ranges) <= 1


@pytest.mark.parametrize("process", [linear(), cosine(10), edm()], ids=["linear", "ten timesteps", "edm"])
def test_ranges_hold_the_same_questions_whatever_the_process(process):
    first, other = (HeldOut.ask(images(40), None, denoiser(each), CPU) for each in (flow(), process))
    assert torch.equal(first.within, other.within)
    assert torch.equal(first.eps, other.eps)
    assert other.error(denoiser(process), ALONE).by_range == pytest.approx(
        [float(image_error(denoiser(process), other.x_0, other.t, other.eps)[mine].mean()) for mine in other.within.T]
    )


def test_fixed_levels_are_those_of_the_fixed_noise():
    for seed in (0, 1):
        t, _ = fixed_noise(denoiser(flow()), torch.Size((50, 3, SIDE, SIDE)), seed)
        torch.testing.assert_close(noise_level(*flow().alpha_sigma(t)), fixed_levels(50, seed), rtol=0, atol=1e-9)


def test_an_error_that_is_not_a_number_stays_in_its_range():
    asked = HeldOut.ask(images(16), None, denoiser(flow()), CPU)

    def broken(x_t: Tensor, t: Tensor, **_: object) -> Tensor:
        return torch.where(t[:, None, None, None] > 700, torch.nan, x_t)  # as the network is given it: 1000 t

    found = asked.error(replace(denoiser(flow()), backbone=broken), ALONE)
    assert np.isfinite(found.by_range).tolist() == [True, True, False, False]
    assert not np.isfinite(found.mean)


# --- the best linear filter ------------------------------------------------------------------------------------------


def test_white_noise_as_images_is_answered_as_the_formula_has_it():
    generator = torch.Generator().manual_seed(0)
    x_0 = 0.1 * torch.randn(400, 3, SIDE, SIDE, generator=generator) + 0.2  # far from clipping
    asked = fixed_noise(denoiser(flow()), x_0.shape)
    errors = linear_errors(denoiser(flow()), x_0, *asked).double()
    alpha, sigma = flow().alpha_sigma(asked[0])
    expected = 0.01 * sigma**2 / (0.01 * alpha**2 + sigma**2)
    for mine in torch.tensor_split(asked[0].argsort(), 4):
        assert float(errors[mine].mean() / expected[mine].mean()) == pytest.approx(1, abs=0.03)


def smooth(num: int) -> np.ndarray:
    """Each is one wave over the whole image, at a place of its own."""
    rng = np.random.default_rng(0)
    across = 2 * np.pi * np.arange(SIDE) / SIDE
    waves = np.cos(across[None, :, None] + across[None, None, :] + rng.uniform(0, 6.28, (num, 1, 1)))
    return np.repeat((127 + 100 * waves)[..., None], 3, axis=3).astype(np.uint8)


def test_smooth_images_are_blurred_and_none_beats_the_filter_by_keeping_more_or_less():
    x_0 = to_model(smooth(64))
    t, eps = fixed_noise(denoiser(flow()), x_0.shape)
    filtered = linear_errors(denoiser(flow()), x_0, t, eps)
    x_t = (1 - t)[:, None, None, None].float() * x_0 + t[:, None, None, None].float() * eps
    for kept in (1.0, 0.5):
        other = ((kept * x_t).clamp(-1, 1) - x_0).square().mean(dim=(1, 2, 3))
        assert (filtered < other).float().mean() > 0.9
    assert filtered.mean() < 0.3 * x_0.square().mean()  # the mean image answers with about that


@pytest.mark.parametrize("num", [3, 5, 70])
def test_the_filter_is_made_of_the_other_images(num):
    x_0 = to_model(np.concatenate([smooth(num - 1), images(1)]))
    t, eps = fixed_noise(denoiser(flow()), x_0.shape)
    errors = linear_errors(denoiser(flow()), x_0, t, eps)
    for i in (0, num - 1):
        others, sigma = np.delete(x_0.double().numpy(), i, axis=0), float(t[i])
        mean, spectra = others.mean(axis=0), np.abs(np.fft.fft2(others - others.mean(axis=0), norm="ortho")) ** 2
        power = spectra.sum(axis=0) / (len(others) - 1)
        kept = power * (1 - sigma) / (power * (1 - sigma) ** 2 + sigma**2)
        noisy = (1 - sigma) * (x_0[i].double().numpy() - mean) + sigma * eps[i].double().numpy()
        estimate = np.clip(mean + np.fft.ifft2(kept * np.fft.fft2(noisy)).real, -1, 1)
        assert float(errors[i]) == pytest.approx(float(((estimate - x_0[i].numpy()) ** 2).mean()), rel=1e-3)


def test_one_image_has_no_others_and_is_answered_with_gray():
    x_0 = to_model(images(1))
    t, eps = fixed_noise(denoiser(flow()), x_0.shape)
    assert float(linear_errors(denoiser(flow()), x_0, t, eps)) == pytest.approx(float(x_0.square().mean()), rel=1e-5)


def test_images_that_are_all_alike_leave_the_filter_no_error():
    ranges = HeldOut.ask(np.repeat(images(1), 8, axis=0), None, denoiser(flow()), CPU).ranges
    assert all(each.error_linear < NO_ERROR for each in ranges)


# --- ranks, and runs -------------------------------------------------------------------------------------------------


def measure(folder: Path) -> None:
    with init_distributed("cpu") as runtime:
        asked = HeldOut.ask(images(27), None, denoiser(flow()), runtime.device)
        found = asked.error(denoiser(flow()), runtime)
        (folder / f"{runtime.rank}.json").write_text(json.dumps([found.mean, *found.by_range]))


def test_two_ranks_agree_with_one(tmp_path):
    forks = multiprocessing.get_context("forkserver")
    assert run_ranks(forks, measure, tmp_path) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    alone = HeldOut.ask(images(27), None, denoiser(flow()), CPU).error(denoiser(flow()), ALONE)
    assert first == second == pytest.approx([alone.mean, *alone.by_range], rel=1e-9)


def test_a_run_records_the_error_of_both_weights_by_noise_level(photos, tmp_path):
    result = maskdm.train(photos, settings=[*TINY, "data.heldout=0.3"], output_dir=tmp_path, quiet=True)
    history = read_history(result.run)
    for event in history.heldout:
        assert len(event.by_noise) == RANGES
        assert sum(part.n for part in event.by_noise) == event.n
        for which in ("error_ema", "error_raw"):
            total = sum(getattr(part, which) * part.n for part in event.by_noise)
            assert total / event.n == pytest.approx(getattr(event, which), rel=1e-9)
        linear_ones = [part.error_linear for part in event.by_noise]
        assert linear_ones == [part.error_linear for part in history.heldout[0].by_noise]
    assert result.heldout_by_noise == info(result.run).run.by_noise == history.heldout[-1].by_noise
    page = result.report.read_text(encoding="utf-8")
    assert page.count(BY_NOISE) == 2  # the chart, and what says so to those who do not see it


def test_without_held_out_images_there_is_nothing_by_noise_level(photos, tmp_path):
    result = maskdm.train(photos, settings=[*TINY, "data.heldout=0"], output_dir=tmp_path, quiet=True)
    assert result.heldout_by_noise == info(result.run).run.by_noise == ()
    assert BY_NOISE not in result.report.read_text(encoding="utf-8")
