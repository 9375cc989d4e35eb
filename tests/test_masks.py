"""Masks: what every kind promises of its rows, and how near the grid lets it come to the ratio asked for."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskdm.diffusion.masks import TOLERANCE, Masking, masking
from maskdm.diffusion.patches import Grid
from maskdm.errors import ArgumentError

SEEDS = st.integers(0, 2**32 - 1)
GRIDS = st.tuples(st.integers(1, 12), st.integers(1, 12))
RATIOS = st.floats(0, 1, exclude_max=True)


@st.composite
def masks(draw: st.DrawFn, *kinds: str) -> Masking:
    kind, grid, ratio = draw(st.sampled_from(kinds)), draw(GRIDS), draw(RATIOS)
    if kind != "block":
        return masking(kind, grid, ratio)
    return masking("block", grid, ratio, block=draw(st.integers(1, min(grid))), offset=draw(st.booleans()))


@st.composite
def aligned_blocks(draw: st.DrawFn) -> Masking:
    block, rows, columns = (draw(st.integers(1, 4)) for _ in range(3))
    return masking("block", (rows * block, columns * block), draw(RATIOS), block=block)


def drawn(mask: Masking, images: int, seed: int = 0) -> Tensor:
    found = mask.draw(images, torch.Generator().manual_seed(seed))
    assert found is not None
    return found.keep


def pictures(visible: Tensor, grid: Grid) -> Tensor:
    """(images, K) or (images, h, w) -> (images, rows, columns), true where visible."""
    shown = torch.zeros(len(visible), grid[0] * grid[1], dtype=torch.bool)
    return shown.scatter(1, visible.flatten(1), True).view(-1, *grid)


def cut_blocks(shown: Tensor, block: int, shift: tuple[int, int]) -> int:
    """Blocks of a (rows, columns) picture that are neither quite visible nor quite hidden, where the cut is shifted."""
    y, x = ((torch.arange(side) + s) // block for side, s in zip(shown.shape, shift, strict=True))
    number = y[:, None] * 1000 + x
    shares = [shown[number == b].float().mean() for b in number.unique()]
    return sum(0 < share < 1 for share in shares)


def fitting_shifts(shown: Tensor, block: int) -> list[tuple[int, int]]:
    """Every shift of the cut into blocks under which at most one block is cut."""
    return [s for s in itertools.product(range(block), repeat=2) if cut_blocks(shown, block, s) <= 1]


def attainable(mask: Masking) -> set[int]:
    """Every K that the kind could give on this grid."""
    if mask.kind == "crop":
        share = math.sqrt(1 - mask.requested)
        # The nudge keeps 7.999999 from being taken for "between 7 and 8".
        sides = [{max(math.floor(n * share + 1e-9), 1), max(math.ceil(n * share - 1e-9), 1)} for n in mask.grid]
        return {h * w for h, w in itertools.product(*sides)}
    whole = mask.kind == "block" and not mask.offset and not any(side % mask.block for side in mask.grid)
    unit = mask.block**2 if whole else 1
    return set(range(unit, mask.num_patches + 1, unit))


# --- rows ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(masks("patch", "block", "crop", "route"), st.integers(1, 5), SEEDS)
def test_every_row_is_k_different_patches_in_raster_order(mask, images, seed):
    visible = drawn(mask, images, seed)
    assert visible.shape == (images, *(mask.crop if mask.kind == "crop" else [mask.num_visible]))
    assert visible.dtype == torch.int64
    assert visible.device == torch.device("cpu")
    assert (visible.flatten(1).diff(dim=1) > 0).all()
    assert visible.min() >= 0
    assert visible.max() < mask.num_patches


@settings(deadline=None, max_examples=300)
@given(masks("patch", "block", "crop", "route"))
def test_the_ratio_is_the_nearest_that_the_grid_allows(mask):
    wanted = mask.num_patches * (1 - mask.requested)
    assert abs(mask.num_visible - wanted) <= min(abs(k - wanted) for k in attainable(mask)) + 1e-6
    assert mask.ratio == pytest.approx(1 - mask.num_visible / mask.num_patches)
    assert 0 <= mask.ratio < 1


@pytest.mark.parametrize(
    ("kind", "grid", "ratio", "block", "visible"),
    [
        ("patch", (16, 16), 0.9, 1, 26),
        ("patch", (3, 3), 0.999, 1, 1),
        ("block", (16, 16), 0.75, 4, 64),
        ("block", (16, 16), 0.9, 4, 32),
        ("block", (64, 64), 0.9, 4, 26 * 16),
        ("crop", (16, 16), 0.75, 1, 8 * 8),
        ("crop", (16, 16), 0.9, 1, 5 * 5),
        ("crop", (8, 16), 0.75, 1, 4 * 8),
        ("route", (16, 16), 0.5, 1, 128),
        ("route", (3, 3), 0.999, 1, 1),
    ],
)
def test_known_counts(kind, grid, ratio, block, visible):
    assert masking(kind, grid, ratio, block=block).num_visible == visible


@settings(deadline=None, max_examples=30)
@given(masks("patch", "block", "crop", "route"), SEEDS)
def test_a_seed_means_the_same_masks(mask, seed):
    assert torch.equal(drawn(mask, 3, seed), drawn(mask, 3, seed))


@pytest.mark.parametrize(
    "mask",
    [
        masking("patch", (8, 8), 0.5),
        masking("block", (8, 8), 0.5, block=2),
        masking("block", (8, 8), 0.5, block=3, offset=True),
        masking("crop", (8, 8), 0.75),
        masking("route", (8, 8), 0.5),
    ],
    ids=str,
)
def test_every_image_of_every_batch_has_a_mask_of_its_own(mask):
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([mask.draw(8, generator).keep, mask.draw(8, generator).keep])
    assert len(rows.unique(dim=0)) > 8  # 25 crops are possible: some repeat


def test_none_draws_nothing_and_shows_everything():
    mask = masking("none", (4, 6))
    assert mask.draw(3, torch.Generator()) is None
    assert (mask.num_visible, mask.ratio, mask.warning) == (24, 0, None)


@settings(deadline=None, max_examples=50)
@given(masks("patch", "block", "crop", "route").filter(lambda mask: mask.num_visible == mask.num_patches), SEEDS)
def test_nothing_hidden_is_every_patch(mask, seed):
    assert torch.equal(drawn(mask, 2, seed).flatten(1), torch.arange(mask.num_patches).repeat(2, 1))


@pytest.mark.parametrize("kind", ["patch", "block", "crop", "route"])
def test_only_routed_patches_are_all_visible(kind):
    mask = masking(kind, (4, 6), 0.5, block=2).draw(3, torch.Generator().manual_seed(0))
    assert mask.routed == (kind == "route")
    assert mask.visible is (None if mask.routed else mask.keep)
    assert torch.equal(mask.rows(slice(1, 3)).keep, mask.keep[1:3])
    assert mask.rows(slice(1, 3)).routed == mask.routed


# --- blocks ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(aligned_blocks(), SEEDS)
def test_aligned_blocks_are_whole(mask, seed):
    for shown in pictures(drawn(mask, 4, seed), mask.grid):
        assert cut_blocks(shown, mask.block, (0, 0)) == 0


@settings(deadline=None, max_examples=60)
@given(GRIDS, RATIOS, st.data(), SEEDS)
def test_where_blocks_do_not_divide_the_grid_at_most_one_is_cut(grid, ratio, data, seed):
    block = data.draw(st.integers(1, min(grid)))
    assume(grid[0] % block or grid[1] % block)
    for shown in pictures(drawn(masking("block", grid, ratio, block=block), 4, seed), grid):
        assert cut_blocks(shown, block, (0, 0)) <= 1


@settings(deadline=None, max_examples=60)
@given(GRIDS, RATIOS, st.data(), SEEDS)
def test_wherever_a_shifted_cut_falls_at_most_one_block_is_cut(grid, ratio, data, seed):
    block = data.draw(st.integers(1, min(min(grid), 5)))
    for shown in pictures(drawn(masking("block", grid, ratio, block=block, offset=True), 3, seed), grid):
        assert fitting_shifts(shown, block)


def test_every_image_has_a_shift_of_its_own_and_all_shifts_occur():
    mask = masking("block", (9, 9), 0.5, block=3, offset=True)
    fitting = [fitting_shifts(shown, 3) for shown in pictures(drawn(mask, 100), mask.grid)]
    certain = {shifts[0] for shifts in fitting if len(shifts) == 1}
    assert certain == set(itertools.product(range(3), repeat=2))


# --- crops -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(masks("crop"), SEEDS)
def test_a_crop_is_one_rectangle_of_the_stated_size(mask, seed):
    height, width = mask.crop
    assert height * width == mask.num_visible
    for shown in pictures(drawn(mask, 4, seed), mask.grid):
        rows, columns = shown.any(dim=1).nonzero()[:, 0], shown.any(dim=0).nonzero()[:, 0]
        assert (len(rows), len(columns)) == (height, width)
        assert rows[-1] - rows[0] == height - 1
        assert columns[-1] - columns[0] == width - 1


@settings(deadline=None, max_examples=100)
@given(masks("crop"), SEEDS)
def test_a_crop_is_drawn_as_the_rectangle_that_it_is(mask, seed):
    """Neighbours in the index are neighbours in the picture."""
    visible = drawn(mask, 4, seed)
    y, x = visible // mask.grid[1], visible % mask.grid[1]
    assert visible.shape == (4, *mask.crop)
    assert (y.diff(dim=1) == 1).all()
    assert (y.diff(dim=2) == 0).all()
    assert (x.diff(dim=1) == 0).all()
    assert (x.diff(dim=2) == 1).all()


@settings(deadline=None, max_examples=100)
@given(GRIDS, RATIOS)
def test_a_crop_has_the_proportions_of_the_grid(grid, ratio):
    share = math.sqrt(1 - ratio)
    for side, whole in zip(masking("crop", grid, ratio).crop, grid, strict=True):
        assert abs(side - whole * share) < 1 + 1e-9


def falls_of(mask: Masking) -> list[tuple[int, int]]:
    """The crop's upper left corner for every place where it meets the image, moved inside: all equally probable."""
    (rows, columns), (height, width) = mask.grid, mask.crop
    return [
        (min(max(y, 0), rows - height), min(max(x, 0), columns - width))
        for y in range(1 - height, rows)
        for x in range(1 - width, columns)
    ]


def test_crops_fall_equally_often_wherever_they_meet_the_image():
    mask = masking("crop", (4, 6), 0.75)
    assert mask.crop == (2, 3)
    falls = Counter(6 * y + x for y, x in falls_of(mask))
    corners, counts = drawn(mask, 8000)[:, 0, 0].unique(return_counts=True)
    assert corners.tolist() == sorted(falls)
    for corner, count in zip(corners.tolist(), counts.tolist(), strict=True):
        expected = 8000 * falls[corner] / (5 * 8)
        assert abs(count - expected) < 5 * math.sqrt(expected)


@settings(deadline=None, max_examples=30)
@given(masks("crop"))
def test_patches_of_a_crop_are_weighed_by_how_seldom_they_are_visible(mask):
    """Counted over all places where the rectangle may fall."""
    (rows, columns), (height, width) = mask.grid, mask.crop
    count, falls = torch.zeros(mask.grid, dtype=torch.float64), falls_of(mask)
    for y, x in falls:
        count[y : y + height, x : x + width] += 1
    visibility = mask.visibility()
    torch.testing.assert_close(visibility.double(), count / len(falls), rtol=1e-6, atol=0)
    weight = (1 - mask.ratio) / visibility
    assert weight.min() > 0.25
    assert weight.max() <= (1 + (height - 1) / rows) * (1 + (width - 1) / columns) + 1e-6 < 4
    found = mask.draw(3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.weight, weight.flatten()[found.keep])
    torch.testing.assert_close(found.rows(slice(1, 3)).weight, found.weight[1:3])


def test_a_corner_is_seldom_visible_but_not_66_times_as_seldom():
    weight = 0.25 / masking("crop", (16, 16), 0.75).visibility()
    assert float(weight.max()) == float(weight[0, 0]) == pytest.approx((23 / 16) ** 2)
    assert float(weight.max() / weight.min()) == pytest.approx((15 / 8) ** 2)


@pytest.mark.parametrize("kind", ["patch", "block", "route"])
def test_other_masks_need_no_weights(kind):
    mask = masking(kind, (6, 8), 0.5, block=2)
    assert mask.draw(2, torch.Generator()).weight is None
    assert torch.equal(mask.visibility(), torch.full((6, 8), 1 - mask.ratio))


# --- distribution ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [
        masking("patch", (4, 6), 0.7),
        masking("block", (6, 8), 0.75, block=2),
        masking("block", (7, 10), 0.5, block=3),
        masking("block", (7, 10), 0.9, block=3),
        masking("block", (5, 5), 0.9, block=4),
        masking("block", (4, 4), 0.6, block=4, offset=True),
        masking("block", (6, 8), 0.75, block=2, offset=True),
        masking("block", (16, 16), 0.75, block=4, offset=True),
        masking("block", (7, 10), 0.25, block=3, offset=True),
        masking("route", (4, 6), 0.5),
    ],
    ids=str,
)
def test_every_patch_is_equally_often_visible(mask):
    images, p = 8000, 1 - mask.ratio
    share = pictures(drawn(mask, images), mask.grid).float().mean(dim=0)
    assert ((share - p).abs() < 5 * math.sqrt(p * (1 - p) / images)).all()


@pytest.mark.parametrize(
    "mask", [masking("patch", (2, 2), 0.5), masking("block", (4, 4), 0.5, block=2)], ids=["patch", "block"]
)
def test_every_choice_of_two_out_of_four_is_equally_likely(mask):
    choices, counts = drawn(mask, 6000).unique(dim=0, return_counts=True)
    assert len(choices) == 6
    assert ((counts - 1000).abs() < 5 * math.sqrt(1000 * 5 / 6)).all()


# --- what the user is told -------------------------------------------------------------------------------------------


def test_a_coarse_grid_is_told():
    mask = masking("block", (16, 16), 0.9, block=4)
    assert mask.ratio == 0.875
    assert "masks 87.5% where 90.0% was requested" in mask.warning
    assert "32 of 256 patches visible, 87.5% masked (requested 90.0%)" in str(mask)


def test_a_mask_that_hides_nothing_is_told():
    mask = masking("block", (16, 16), 0.1, block=8)
    assert mask.ratio == 0
    assert "masks nothing where 10.0% was requested" in mask.warning


def test_an_exact_ratio_passes_without_a_word():
    mask = masking("block", (16, 16), 0.75, block=4)
    assert (mask.ratio, mask.warning) == (0.75, None)


def test_routing_says_what_it_does_with_patches():
    mask = masking("route", (4, 4), 0.5)
    assert str(mask) == "route: 8 of 16 patches through every block, 50.0% around the middle (requested 50.0%)"
    assert mask.warning is None
    assert "mask route routes nothing where 10.0% was requested" in masking("route", (2, 2), 0.1).warning


@settings(deadline=None, max_examples=100)
@given(masks("patch", "block", "crop", "route"))
def test_a_warning_is_one_line_and_comes_beyond_two_points(mask):
    off = abs(mask.ratio - mask.requested)
    assume(abs(off - TOLERANCE) > 1e-6)
    assert (mask.warning is not None) == (off > 0.02)
    assert "\n" not in (mask.warning or "") + str(mask)


@settings(deadline=None, max_examples=300)
@given(masks("block", "crop"))
def test_the_remedy_of_a_warning_would_come_nearer(mask):
    assume(mask.warning)
    off, better = abs(mask.ratio - mask.requested), []
    if "offset: true" in mask.warning:
        better.append(masking("block", mask.grid, mask.requested, block=mask.block, offset=True))
    if "kind: patch" in mask.warning:
        better.append(masking("patch", mask.grid, mask.requested))
    assert all(abs(other.ratio - other.requested) < off for other in better)


@pytest.mark.parametrize("kind", ["none", "patch", "block", "crop", "route"])
@pytest.mark.parametrize("ratio", [1.0, -0.1, 1.5, math.nan])
def test_a_ratio_outside_the_unit_interval_is_refused(kind, ratio):
    with pytest.raises(ArgumentError) as error:
        masking(kind, (4, 4), ratio)
    assert error.value.name == "ratio"
    assert error.value.got is ratio


@pytest.mark.parametrize("block", [0, -1, 5])
@pytest.mark.parametrize("offset", [False, True])
def test_a_block_that_does_not_fit_the_grid_is_refused(block, offset):
    with pytest.raises(ArgumentError, match=r"wanted 1 to 4, .* 4 x 6 patches") as error:
        masking("block", (4, 6), 0.5, block=block, offset=offset)
    assert (error.value.name, error.value.got) == ("block", block)


def test_a_ratio_without_a_kind_is_refused():
    with pytest.raises(ArgumentError) as error:
        masking("none", (4, 4), 0.5)
    assert (error.value.name, error.value.got) == ("ratio", 0.5)
