"""The objective: over the visible patches, and over nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schedules import PAIRS, PROCESSES
from torch import Tensor

from maskdm.diffusion.denoiser import Backbone, Denoiser
from maskdm.diffusion.loss import LEVELS, denoising_loss, fixed_noise, image_error, visible_mean
from maskdm.diffusion.mask_schedule import mixture
from maskdm.diffusion.masks import Mask, Masking
from maskdm.diffusion.masks import masking as make_masking
from maskdm.diffusion.prediction import EPS, PREDICTIONS, VELOCITY, X0, Prediction, V, precondition
from maskdm.diffusion.process import Process, noise_level
from maskdm.diffusion.schedules import cosine, edm, flow, linear, shifted, vp
from maskdm.diffusion.weighting import Weighting, min_snr, uniform, uniform_in
from maskdm.models.uvit import UViT

PATCH, GRID = 4, (4, 6)
MASKS = [
    make_masking("patch", GRID, 0.7),
    make_masking("block", GRID, 0.5, block=2),
    make_masking("block", GRID, 0.5, block=3, offset=True),
    make_masking("crop", GRID, 0.75),
]
PROCESS = linear()


@dataclass(frozen=True)
class Question:
    x_0: Tensor
    t: Tensor
    eps: Tensor
    label: Tensor


def question(images: int = 3, seed: int = 0) -> Question:
    generator = torch.Generator().manual_seed(seed)
    shape = (images, 2, GRID[0] * PATCH, GRID[1] * PATCH)
    return Question(
        torch.rand(shape, generator=generator) * 2 - 1,
        torch.randint(1000, (images,), generator=generator),
        torch.randn(shape, generator=generator),
        torch.randint(4, (images,), generator=generator),
    )


@pytest.fixture(scope="module")
def uvit() -> UViT:
    torch.manual_seed(0)
    size = (GRID[0] * PATCH, GRID[1] * PATCH)
    return UViT(image_size=size, channels=2, patch_size=PATCH, width=24, depth=3, heads=3, time_mlp=True, classes=3)


def asking(backbone: Backbone, process: Process, prediction: Prediction, weighting: Weighting = uniform) -> Denoiser:
    """A denoiser of the images of this file."""
    size = (GRID[0] * PATCH, GRID[1] * PATCH)
    return Denoiser(backbone, process, prediction, 2, size, PATCH, ("a", "b", "c"), weighting=weighting)


def loss_of(
    backbone: Backbone,
    q: Question,
    mask: Mask | None,
    prediction: Prediction = EPS,
    *,
    process: Process = PROCESS,
    weighting: Weighting = uniform,
) -> Tensor:
    denoiser = asking(backbone, process, prediction, weighting)
    return denoising_loss(denoiser, q.x_0, q.t, q.eps, mask=mask, label=q.label)


def x_t_of(q: Question) -> Tensor:
    alpha, sigma = (c.float()[:, None, None, None] for c in PROCESS.alpha_sigma(q.t))
    return alpha * q.x_0 + sigma * q.eps


def drawn(masking: Masking, images: int, seed: int = 0) -> Mask:
    mask = masking.draw(images, torch.Generator().manual_seed(seed))
    assert mask is not None
    return mask


def pixels(mask: Mask) -> Tensor:
    """Which pixels are visible: (B, 1, H, W) bool, patch by patch."""
    shown = torch.zeros(len(mask.keep), 1, GRID[0] * PATCH, GRID[1] * PATCH, dtype=torch.bool)
    for image, row in enumerate(mask.keep.flatten(1).tolist()):
        for patch in row:
            y, x = patch // GRID[1] * PATCH, patch % GRID[1] * PATCH
            shown[image, :, y : y + PATCH, x : x + PATCH] = True
    return shown


def pixel_weights(masking: Masking) -> Tensor:
    """The weight of every pixel's patch in the loss: (3, H, W)."""
    weight = (1 - masking.ratio) / masking.visibility()
    return weight.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1).expand(3, -1, -1)


# --- hidden is hidden ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", MASKS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_hidden_pixels_change_no_bit_of_output_loss_and_gradients(uvit, masking, prediction):
    first, second = question(seed=1), question(seed=2)
    mask = drawn(masking, 3)
    shown = pixels(mask)
    assert not shown.all()
    second = Question(  # another image, another noise: ten times as large, where nobody may look
        torch.where(shown, first.x_0, 10 * second.x_0),
        first.t,
        torch.where(shown, first.eps, 10 * second.eps),
        first.label,
    )
    assert not torch.equal(first.x_0, second.x_0)

    found = []
    for q in (first, second):
        uvit.zero_grad()
        out = uvit(x_t_of(q), q.t, mask=mask, label=q.label)
        loss = loss_of(uvit, q, mask, prediction)
        loss.mean().backward()
        found.append([out, loss, *(weight.grad.clone() for weight in uvit.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("masking", MASKS, ids=str)
def test_every_visible_patch_changes_the_loss_of_its_own_image_alone(uvit, masking):
    q, mask = question(), drawn(masking, 3)
    before = loss_of(uvit, q, mask)
    for column in range(masking.num_visible):
        one = pixels(Mask(mask.keep.flatten(1)[:1, [column]]))
        x_0 = q.x_0.clone()
        x_0[0] += one[0]
        after = loss_of(uvit, Question(x_0, q.t, q.eps, q.label), mask)
        assert after[0] != before[0]
        assert torch.equal(after[1:], before[1:])


# --- what is averaged ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "masking", [make_masking("patch", GRID, 0.0), make_masking("block", GRID, 0.0, block=2)], ids=str
)
def test_with_everything_visible_loss_and_output_are_the_unmasked_ones_bit_for_bit(uvit, masking):
    q, mask = question(), drawn(masking, 3)
    assert torch.equal(uvit(x_t_of(q), q.t, mask=mask, label=q.label), uvit(x_t_of(q), q.t, label=q.label))
    assert torch.equal(loss_of(uvit, q, mask), loss_of(uvit, q, None))


@pytest.mark.parametrize("masking", MASKS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_the_loss_is_the_mean_over_visible_patches(uvit, masking, prediction):
    """The paper's formula, one patch at a time."""
    q, mask = question(), drawn(masking, 3)
    out = uvit(x_t_of(q), q.t, mask=mask, label=q.label)
    alpha, sigma = (c.float()[:, None, None, None] for c in PROCESS.alpha_sigma(q.t))
    err = (out - prediction.target(q.x_0, q.eps, alpha, sigma)) ** 2
    weight, expected = pixel_weights(masking), []
    for image, row in enumerate(mask.keep.flatten(1).tolist()):
        patches = []
        for patch in row:
            y, x = patch // GRID[1] * PATCH, patch % GRID[1] * PATCH
            patches.append(float(weight[image, y, x]) * err[image, :, y : y + PATCH, x : x + PATCH].mean())
        expected.append(sum(patches) / len(patches))
    loss = loss_of(uvit, q, mask, prediction)
    assert loss.shape == (3,)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.stack(expected))


def test_the_unmasked_loss_is_the_mean_over_all_pixels(uvit):
    q = question()
    err = (uvit(x_t_of(q), q.t, label=q.label) - q.eps) ** 2
    torch.testing.assert_close(loss_of(uvit, q, None), err.mean(dim=(1, 2, 3)))


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(MASKS), st.integers(0, 2**32 - 1))
def test_the_mean_of_ones_on_visible_patches_is_one_whatever_is_hidden(masking, seed):
    mask = drawn(masking, 2, seed)
    err = torch.where(pixels(mask), 1 / pixel_weights(masking)[:1], 1e6).expand(-1, 3, -1, -1)
    assert visible_mean(err, mask, PATCH).tolist() == pytest.approx([1, 1])


ALL_KINDS = [
    make_masking("patch", (4, 6), 0.75),
    make_masking("block", (4, 6), 0.75, block=2),
    make_masking("block", (7, 10), 0.5, block=3),  # blocks of 9, 3 and 1 patches
    make_masking("block", (7, 10), 0.5, block=3, offset=True),
    make_masking("block", (16, 16), 0.75, block=4, offset=True),
    make_masking("block", (5, 5), 0.9, block=4),
    make_masking("block", (5, 5), 0.9, block=4, offset=True),
    make_masking("crop", (4, 6), 0.75),
    make_masking("crop", (16, 16), 0.75),
    make_masking("crop", (16, 16), 0.1),
    make_masking("crop", (3, 9), 0.9),
    make_masking("route", (4, 6), 0.5),
]


def averaged_over_masks(masking: Masking, errors: list[Tensor]) -> list[tuple[float, float]]:
    """The mean loss, and its standard error, of each of some errors (rows, columns) that depend on the place alone."""
    images = 8000
    mask = masking.draw(images, torch.Generator().manual_seed(0))
    losses = [visible_mean(err.expand(images, 1, *masking.grid), mask, 1) for err in errors]
    return [(float(found.mean()), float(found.std()) / images**0.5) for found in losses]


@pytest.mark.parametrize("masking", ALL_KINDS, ids=str)
def test_averaged_over_masks_the_loss_is_that_of_the_whole_image(masking):
    y, x = (torch.linspace(-1, 1, side) for side in masking.grid)
    far = torch.maximum(y.abs()[:, None], x.abs()[None])
    edge, last, corner = (far == 1).float(), (x == 1).float().expand(masking.grid), (y.abs()[:, None] * x.abs() == 1)
    errors = [edge, last, corner.float(), (far < 0.5).float(), 2 + y[:, None] + x]
    for err, (mean, error) in zip(errors, averaged_over_masks(masking, errors), strict=True):
        assert abs(mean - float(err.mean())) <= 5 * error + 1e-6


def test_averaged_over_masks_a_mixture_has_the_loss_of_the_whole_image():
    grid, err = (6, 6), torch.arange(36.0).view(6, 6) ** 2
    mixed = mixture([(make_masking("crop", grid, 0.75), 3.0), (make_masking("block", grid, 0.5, block=4), 1.0)])
    found = [(group.share, *averaged_over_masks(group.masking, [err])[0]) for group in mixed.at(0.0)]
    mean = sum(share * mean for share, mean, _ in found)
    assert abs(mean - float(err.mean())) < 5 * max(error for _, _, error in found)


def test_routed_patches_are_asked_for_like_the_others(uvit):
    q, mask = question(), drawn(make_masking("route", GRID, 0.5), 3)
    assert mask.visible is None
    denoiser = asking(uvit, PROCESS, EPS)
    loss = denoising_loss(denoiser, q.x_0, q.t, q.eps, mask=mask, label=q.label)
    err = (uvit(x_t_of(q), q.t, mask=mask, label=q.label) - q.eps) ** 2
    torch.testing.assert_close(loss, err.mean(dim=(1, 2, 3)))
    assert not torch.equal(loss, denoising_loss(denoiser, q.x_0, q.t, q.eps, label=q.label))


@dataclass
class PointOracle:
    """The exact denoiser of a data set of one image, at known noise levels."""

    x_0: Tensor
    process: Process
    prediction: Prediction
    t: Tensor

    def __call__(self, x_in: Tensor, c_noise: Tensor, *, mask: Mask | None = None, **_: Tensor | None) -> Tensor:
        assert torch.equal(c_noise, self.process.c_noise(self.t))
        alpha, sigma = (c.to(x_in.dtype)[:, None, None, None] for c in self.process.alpha_sigma(self.t))
        x_t = x_in / self.process.c_in(alpha, sigma)
        out = self.prediction.target(self.x_0, (x_t - alpha * self.x_0) / sigma, alpha, sigma)
        return out if mask is None else out * pixels(mask)


@pytest.mark.parametrize(("process", "prediction"), PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("masking", [None, MASKS[0]], ids=str)
def test_a_perfect_answer_has_no_loss(process, prediction, masking):
    q = question()
    x_0, eps = q.x_0.double(), q.eps.double()
    t = process.training_time(torch.tensor([0.1, 0.5, 0.97], dtype=torch.float64))
    mask = None if masking is None else drawn(masking, 3)
    right, wrong = (
        denoising_loss(asking(PointOracle(x, process, prediction, t), process, prediction), x_0, t, eps, mask=mask)
        for x in (x_0, -x_0)
    )
    assert right.max() < 1e-12
    assert wrong.min() > 1e-8


@pytest.mark.parametrize("masking", MASKS, ids=str)
def test_under_every_mask_a_perfect_answer_has_no_loss(masking):
    q = question()
    oracle = PointOracle(q.x_0.double(), PROCESS, V, q.t)
    denoiser = asking(oracle, PROCESS, V)
    assert denoising_loss(denoiser, q.x_0.double(), q.t, q.eps.double(), mask=drawn(masking, 3)).max() < 1e-12


def test_the_error_of_saying_nothing_is_the_power_of_the_noise():
    q = question(images=64)
    loss = loss_of(lambda x_t, t, **_: torch.zeros_like(x_t), q, None)
    assert float(loss.mean()) == pytest.approx(1, abs=0.03)


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", [None, *MASKS], ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_uniform_weights_leave_the_loss_bit_for_bit(uvit, prediction, masking):
    q, mask = question(), None if masking is None else drawn(masking, 3)
    alpha, sigma = (c.float()[:, None, None, None] for c in PROCESS.alpha_sigma(q.t))
    out = uvit(x_t_of(q), q.t, mask=mask, label=q.label)
    plain = visible_mean((out - prediction.target(q.x_0, q.eps, alpha, sigma)) ** 2, mask, PATCH)
    assert torch.equal(loss_of(uvit, q, mask, prediction), plain)


@pytest.mark.parametrize("masking", [None, MASKS[0]], ids=str)
def test_a_weight_multiplies_the_loss_of_every_image(uvit, masking):
    q, mask = question(), None if masking is None else drawn(masking, 3)
    alpha, sigma = PROCESS.alpha_sigma(q.t)
    for weighting in (min_snr(), uniform_in(X0)):
        weight = weighting(alpha, sigma, V).float()
        assert weight.std() > 0
        expected = weight * loss_of(uvit, q, mask, V)
        torch.testing.assert_close(loss_of(uvit, q, mask, V, weighting=weighting), expected)


def test_jit_by_hand():
    """Li & He 2025: the network answers with the image, the loss is on (x - x_t) / t, with t at least 0.05."""
    q, process = question(images=8), flow()
    t = torch.tensor([0.01, 0.04, 0.05, 0.1, 0.3, 0.6, 0.9, 0.999], dtype=torch.float64)
    x_0, eps, guess = q.x_0.double(), q.eps.double(), 0.3 * q.eps.double()
    over = t.clamp(min=0.05)[:, None, None, None]
    by_hand = (((guess - x_0) / over) ** 2).mean(dim=(1, 2, 3))
    denoiser = asking(lambda *_, **__: guess, process, X0, uniform_in(VELOCITY))
    torch.testing.assert_close(denoising_loss(denoiser, x_0, t, eps), by_hand, rtol=1e-9, atol=0)


def test_edm_by_hand():
    """Karras et al. 2022, eq. 8: F against (x_0 - c_skip x) / c_out, which is lambda on the denoised image."""
    q, process = question(images=3), edm()
    t = torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    x_0, eps = q.x_0.double(), q.eps.double()
    sigma = t[:, None, None, None]
    seen: list[Tensor] = []

    def network(x_in: Tensor, c_noise: Tensor, **_: None) -> Tensor:
        seen.extend([x_in, c_noise])
        return 0.3 * x_in

    loss = denoising_loss(asking(network, process, precondition()), x_0, t, eps)
    x = x_0 + sigma * eps
    c_in = 1 / (sigma**2 + 0.25).sqrt()
    denoised = 0.25 / (sigma**2 + 0.25) * x + sigma * 0.5 / (sigma**2 + 0.25).sqrt() * 0.3 * c_in * x
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    torch.testing.assert_close(seen[0], c_in * x)
    torch.testing.assert_close(seen[1], 1000 * t.log() / 4)
    torch.testing.assert_close(loss, (weight * (denoised - x_0) ** 2).mean(dim=(1, 2, 3)), rtol=1e-9, atol=0)


def test_bfloat16_is_near_float32(uvit):
    q, mask = question(), drawn(MASKS[0], 3)
    full = loss_of(uvit, q, mask, V)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert uvit(x_t_of(q), q.t, mask=mask, label=q.label).dtype == torch.bfloat16
        half = loss_of(uvit, q, mask, V)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)
    assert not torch.equal(half, full)


# --- fixed noise -----------------------------------------------------------------------------------------------------

SHAPE = torch.Size((6, 1, 4, 4))


def nothing(process: Process, prediction: Prediction = X0) -> Denoiser:
    return asking(lambda x_t, t, **_: torch.zeros_like(x_t), process, prediction)


def test_fixed_noise_never_changes():
    t, eps = fixed_noise(nothing(PROCESS), SHAPE)
    assert t.tolist() == [
        200,
        658,
        321,
        30,
        103,
        465,
    ]  # nearest to levels of 0.42, 0.9, 0.58, 0.1, ...
    assert eps[3, 0, 2].tolist() == pytest.approx([-1.234135, 1.819725, -0.551529, -1.325326], abs=1e-5)


@pytest.mark.parametrize("images", [1, 10, 256, 3000])
def test_fixed_noise_spreads_evenly_over_the_noise_levels(images):
    process = vp("linear")
    t, _ = fixed_noise(nothing(process), torch.Size((images, 1, 1, 1)))
    low, high = LEVELS
    even = low + (high - low) * (torch.arange(images, dtype=torch.float64) + 0.5) / images
    level = noise_level(*process.alpha_sigma(t))
    torch.testing.assert_close(level.sort().values, even, rtol=0, atol=1e-9)
    if images > 1:
        assert t.tolist() != sorted(t.tolist())


def test_every_process_has_the_same_fixed_noise():
    first, eps = fixed_noise(nothing(flow()), SHAPE)
    for process in PROCESSES.values():
        t, same = fixed_noise(nothing(process), SHAPE)
        assert torch.equal(same, eps)
        level = noise_level(*process.alpha_sigma(t))  # of flow, t itself
        torch.testing.assert_close(level, first, rtol=0, atol=0.02 if process.timesteps else 1e-9)


@pytest.mark.parametrize(
    "process",
    [linear(21), linear(50), shifted(linear(), 8), cosine(2), cosine(10), linear(), edm()],
    ids=["linear-21", "linear-50", "linear-shift-8", "cosine-2", "cosine-10", "linear", "edm"],
)
def test_fixed_times_are_never_that_of_the_clean_image(process):
    t, eps = fixed_noise(nothing(process), torch.Size((500, 1, 4, 4)))
    assert t.min() >= process.ends[0]
    assert t.max() <= process.ends[1]
    x_0 = torch.rand(500, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for prediction in (X0, V, VELOCITY):
        denoiser = nothing(process, prediction)
        assert denoising_loss(denoiser, x_0, t, eps).isfinite().all()
        assert image_error(denoiser, x_0, t, eps).isfinite().all()


def test_other_seeds_are_other_noise():
    first, second = (fixed_noise(nothing(PROCESS), torch.Size((64, 1, 2, 2)), seed) for seed in (0, 1))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


# --- the error of the image ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "prediction"), PAIRS.values(), ids=PAIRS.keys())
def test_the_error_of_the_image_has_its_unit_whatever_is_predicted(process, prediction):
    """A network that sees the same wrong image everywhere is wrong by as much everywhere."""
    q = question()
    x_0, eps = q.x_0.double(), q.eps.double()
    t = process.training_time(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    wrong = x_0 * 0.9
    denoiser = asking(PointOracle(wrong, process, prediction, t), process, prediction)
    expected = ((0.1 * x_0) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(image_error(denoiser, x_0, t, eps), expected, rtol=1e-6, atol=0)


def test_an_image_beyond_its_range_is_clipped_before_it_is_compared():
    q, t = question(), torch.tensor([100, 500, 900])
    denoiser = asking(lambda x_t, t, **_: torch.full_like(x_t, 7.0), PROCESS, X0)
    torch.testing.assert_close(image_error(denoiser, q.x_0, t, q.eps), ((1 - q.x_0) ** 2).mean(dim=(1, 2, 3)))
