"""Haar wavelets in front of a backbone: orthonormal, by hand, and nothing hidden shows through."""

from __future__ import annotations

import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import denoising_loss
from maskdm.diffusion.masks import Mask, masking
from maskdm.diffusion.patches import patchify
from maskdm.diffusion.prediction import PREDICTIONS
from maskdm.diffusion.schedules import linear
from maskdm.errors import ArgumentError
from maskdm.models.haar import Haar, check_levels, haar, unhaar
from maskdm.models.uvit import UViT


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def level_of(x: Tensor, levels: int) -> Tensor:
    for _ in range(levels):
        x = haar(x)
    return x


SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))


# --- the transform ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(SIZES, st.integers(0, 2**32 - 1))
def test_there_and_back_again(size, seed):
    B, C, h, w = size
    x = random(B, C, 2 * h, 2 * w, seed=seed)
    y = haar(x)
    assert y.shape == (B, 4 * C, h, w)
    torch.testing.assert_close(unhaar(y), x)
    torch.testing.assert_close(haar(unhaar(y)), y)


@pytest.mark.parametrize("levels", [1, 2])
def test_the_transform_is_orthonormal(levels):
    """As a matrix, whose columns are what becomes of single pixels."""
    pixels = torch.eye(2 * 8 * 8, dtype=torch.float64).view(-1, 2, 8, 8)
    matrix = level_of(pixels, levels).flatten(1)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(2 * 8 * 8, dtype=torch.float64))


def test_the_inverse_is_the_transpose():
    x, y = random(1, 2, 4, 6), random(1, 8, 2, 3, seed=1)
    assert float((haar(x) * y).sum()) == pytest.approx(float((x * unhaar(y)).sum()))


def test_by_hand():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 5.0]]]])
    assert haar(x).flatten().tolist() == [5.5, -1.5, -2.5, 0.5]  # sum, left less right, above less below, crosswise
    x = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]], [[1.0, -1.0], [1.0, -1.0]]]])
    assert haar(x).flatten().tolist() == [2, 0, 0, 2, 0, 0, 0, 0]  # all sums come before all differences


def test_it_is_the_haar_of_pywavelets():
    x = random(8, 6)
    sums, (down, across, both) = pywt.dwt2(x.numpy(), "haar")
    expected = torch.stack([torch.from_numpy(part) for part in (sums, across, down, both)])
    torch.testing.assert_close(haar(x[None, None])[0], expected)


def test_white_noise_stays_white_noise():
    y = level_of(random(4, 3, 64, 64), 2)
    covariance = torch.cov(y.transpose(0, 1).flatten(1))
    torch.testing.assert_close(covariance, torch.eye(48, dtype=torch.float64), rtol=0, atol=0.2)


# --- in front of a backbone ------------------------------------------------------------------------------------------

PATCH, GRID, CHANNELS = 8, (2, 3), 2


class Echo(torch.nn.Module):
    """Answers with what it is shown, and remembers it."""

    def forward(self, x_t: Tensor, t: Tensor, **more: Tensor | None) -> Tensor:
        self.seen, self.told, self.more = x_t, t, more
        return x_t


def wrapped(levels: int) -> Haar:
    torch.manual_seed(0)
    smaller = (GRID[0] * PATCH // 2**levels, GRID[1] * PATCH // 2**levels)
    inner = UViT(
        image_size=smaller,
        channels=CHANNELS * 4**levels,
        patch_size=PATCH // 2**levels,
        width=24,
        depth=3,
        heads=3,
        classes=3,
    )
    return Haar(inner, levels)


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_the_network_is_shown_coefficients_and_read_in_pixels(levels):
    network = Haar(echo := Echo(), levels)
    x, t, label, mask = random(2, 3, 16, 8), torch.tensor([1, 2]), torch.tensor([0, 1]), Mask(torch.tensor([[0], [1]]))
    torch.testing.assert_close(network(x, t, mask=mask, label=label), x)
    torch.testing.assert_close(echo.seen, level_of(x, levels))
    assert echo.told is t
    assert echo.more == {"mask": mask, "label": label}


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("kind", ["patch", "crop"])
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_hidden_pixels_change_no_bit_of_output_loss_and_gradients(levels, kind, prediction):
    network = wrapped(levels)
    mask = masking(kind, GRID, 0.5).draw(3, torch.Generator().manual_seed(0))
    shown = torch.zeros(3, GRID[0] * GRID[1]).scatter(1, mask.keep.flatten(1), 1.0).view(3, 1, *GRID)
    shown = shown.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3).bool()
    shape = (3, CHANNELS, GRID[0] * PATCH, GRID[1] * PATCH)
    first, second = (random(2, *shape, seed=seed).float() for seed in (1, 2))
    second = torch.where(shown, first, 10 * second)
    assert not torch.equal(first, second)
    t, label = torch.tensor([0, 500, 999]), torch.tensor([0, 1, 2])
    denoiser = Denoiser(network, linear(), prediction, CHANNELS, shape[2:], PATCH, ("a", "b", "c"))
    found = []
    for x_0, eps in (first, second):
        network.zero_grad()
        out = network(x_0 + eps, t, mask=mask, label=label)
        loss = denoising_loss(denoiser, x_0, t, eps, mask=mask, label=label)
        loss.sum().backward()
        found.append([out, loss, *(weight.grad.clone() for weight in network.parameters())])
        assert (out * ~shown == 0).all()
        assert (patchify(out, PATCH).abs().sum(dim=2) > 0).sum() == mask.keep.numel()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_patches_that_levels_do_not_divide_would_mix_and_are_refused():
    for levels, patch_size in ((0, 3), (1, 2), (2, 4), (1, 6), (3, 8)):
        check_levels(levels, patch_size)
    for levels, patch_size in ((1, 1), (1, 3), (2, 2), (2, 6), (3, 4)):
        with pytest.raises(ArgumentError, match=f"{2**levels} does not divide") as error:
            check_levels(levels, patch_size)
        assert (error.value.name, error.value.got) == ("levels", levels)
