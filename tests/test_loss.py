"""The objective: over the visible patches, and over nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskdm.backbones.uvit import UViT
from maskdm.method.loss import denoising_loss, fixed_questions, visible_mean
from maskdm.method.masking import Masking, masking
from maskdm.method.prediction import EPS, PREDICTIONS, Prediction, V
from maskdm.method.process import Process, cosine, linear

PATCH, GRID = 4, (4, 6)
MASKS = [
    masking("patch", GRID, 0.7),
    masking("block", GRID, 0.5, block=2),
    masking("block", GRID, 0.5, block=3, offset=True),
    masking("crop", GRID, 0.75),
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


def loss_of(backbone: UViT, q: Question, visible: Tensor | None, prediction: Prediction = EPS) -> Tensor:
    return denoising_loss(
        backbone, PROCESS, prediction, q.x_0, q.t, q.eps, visible=visible, label=q.label, patch_size=PATCH
    )


def x_t_of(q: Question) -> Tensor:
    alpha, sigma = (c.float()[:, None, None, None] for c in PROCESS.alpha_sigma(q.t))
    return alpha * q.x_0 + sigma * q.eps


def drawn(mask: Masking, images: int, seed: int = 0) -> Tensor:
    visible = mask.draw(images, torch.Generator().manual_seed(seed))
    assert visible is not None
    return visible


def pixels(visible: Tensor) -> Tensor:
    """Which pixels are visible: (B, 1, H, W) bool, patch by patch."""
    shown = torch.zeros(len(visible), 1, GRID[0] * PATCH, GRID[1] * PATCH, dtype=torch.bool)
    for image, row in enumerate(visible.tolist()):
        for patch in row:
            y, x = patch // GRID[1] * PATCH, patch % GRID[1] * PATCH
            shown[image, :, y : y + PATCH, x : x + PATCH] = True
    return shown


# --- hidden is hidden ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_hidden_pixels_change_no_bit_of_output_loss_and_gradients(uvit, mask, prediction):
    first, second = question(seed=1), question(seed=2)
    visible = drawn(mask, 3)
    shown = pixels(visible)
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
        out = uvit(x_t_of(q), q.t, visible=visible, label=q.label)
        loss = loss_of(uvit, q, visible, prediction)
        loss.mean().backward()
        found.append([out, loss, *(weight.grad.clone() for weight in uvit.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_every_visible_patch_changes_the_loss_of_its_own_image_alone(uvit, mask):
    q, visible = question(), drawn(mask, 3)
    before = loss_of(uvit, q, visible)
    for column in range(mask.visible):
        one = pixels(visible[:1, [column]])
        x_0 = q.x_0.clone()
        x_0[0] += one[0]
        after = loss_of(uvit, Question(x_0, q.t, q.eps, q.label), visible)
        assert after[0] != before[0]
        assert torch.equal(after[1:], before[1:])


# --- what is averaged ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [masking("patch", GRID, 0.0), masking("block", GRID, 0.0, block=2)], ids=str)
def test_with_everything_visible_loss_and_output_are_the_unmasked_ones_bit_for_bit(uvit, mask):
    q, visible = question(), drawn(mask, 3)
    assert torch.equal(uvit(x_t_of(q), q.t, visible=visible, label=q.label), uvit(x_t_of(q), q.t, label=q.label))
    assert torch.equal(loss_of(uvit, q, visible), loss_of(uvit, q, None))


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_the_loss_is_the_mean_over_visible_patches(uvit, mask, prediction):
    """The paper's formula, one patch at a time."""
    q, visible = question(), drawn(mask, 3)
    out = uvit(x_t_of(q), q.t, visible=visible, label=q.label)
    alpha, sigma = (c.float()[:, None, None, None] for c in PROCESS.alpha_sigma(q.t))
    err = (out - prediction.target(q.x_0, q.eps, alpha, sigma)) ** 2
    expected = []
    for image, row in enumerate(visible.tolist()):
        patches = []
        for patch in row:
            y, x = patch // GRID[1] * PATCH, patch % GRID[1] * PATCH
            patches.append(err[image, :, y : y + PATCH, x : x + PATCH].mean())
        expected.append(sum(patches) / len(patches))
    loss = loss_of(uvit, q, visible, prediction)
    assert loss.shape == (3,)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.stack(expected))


def test_the_unmasked_loss_is_the_mean_over_all_pixels(uvit):
    q = question()
    err = (uvit(x_t_of(q), q.t, label=q.label) - q.eps) ** 2
    torch.testing.assert_close(loss_of(uvit, q, None), err.mean(dim=(1, 2, 3)))


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(MASKS), st.integers(0, 2**32 - 1))
def test_the_mean_of_ones_on_visible_patches_is_one_whatever_is_hidden(mask, seed):
    visible = drawn(mask, 2, seed)
    err = torch.where(pixels(visible), 1.0, 1e6).expand(-1, 3, -1, -1)
    assert visible_mean(err, visible, PATCH).tolist() == pytest.approx([1, 1])


@dataclass
class PointOracle:
    """The exact denoiser of a data set of one image."""

    x_0: Tensor
    process: Process
    prediction: Prediction

    def __call__(self, x_t: Tensor, t: Tensor, *, visible: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        alpha, sigma = (c.to(x_t.dtype)[:, None, None, None] for c in self.process.alpha_sigma(t))
        out = self.prediction.target(self.x_0, (x_t - alpha * self.x_0) / sigma, alpha, sigma)
        return out if visible is None else out * pixels(visible)


@pytest.mark.parametrize("process", [linear(), cosine()], ids=["linear", "cosine"])
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())
@pytest.mark.parametrize("mask", [None, *MASKS], ids=str)
def test_a_perfect_answer_has_no_loss(process, prediction, mask):
    q = question()
    x_0, eps = q.x_0.double(), q.eps.double()
    visible = None if mask is None else drawn(mask, 3)
    oracle = PointOracle(x_0, process, prediction)
    loss = denoising_loss(oracle, process, prediction, x_0, q.t, eps, visible=visible, patch_size=PATCH)
    assert loss.max() < 1e-12
    wrong = denoising_loss(
        PointOracle(-x_0, process, prediction), process, prediction, x_0, q.t, eps, visible=visible, patch_size=PATCH
    )
    assert wrong.min() > 1e-6


def test_the_error_of_saying_nothing_is_the_power_of_the_noise():
    q = question(images=64)
    loss = denoising_loss(lambda x_t, t, **_: torch.zeros_like(x_t), PROCESS, EPS, q.x_0, q.t, q.eps)
    assert float(loss.mean()) == pytest.approx(1, abs=0.03)


def test_bfloat16_is_near_float32(uvit):
    q, visible = question(), drawn(MASKS[0], 3)
    full = loss_of(uvit, q, visible, V)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert uvit(x_t_of(q), q.t, visible=visible, label=q.label).dtype == torch.bfloat16
        half = loss_of(uvit, q, visible, V)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)
    assert not torch.equal(half, full)


# --- questions that never change -------------------------------------------------------------------------------------


def test_fixed_questions_never_change():
    t, eps = fixed_questions(PROCESS, torch.Size((6, 1, 4, 4)))
    assert t.tolist() == [416, 916, 583, 83, 250, 750]
    assert eps[3, 0, 2].tolist() == pytest.approx([-1.234135, 1.819725, -0.551529, -1.325326], abs=1e-5)


@pytest.mark.parametrize("images", [1, 10, 256, 3000])
def test_fixed_questions_spread_evenly_over_the_times(images):
    t, _ = fixed_questions(PROCESS, torch.Size((images, 1, 1, 1)))
    assert t.sort().values.tolist() == [int((i + 0.5) / images * 1000) for i in range(images)]
    if images > 1:
        assert t.tolist() != sorted(t.tolist())


def test_other_seeds_ask_other_questions():
    first, second = (fixed_questions(PROCESS, torch.Size((64, 1, 2, 2)), seed) for seed in (0, 1))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
