"""Masks over a stage, a batch and the noise: which images get which, and that the distribution of t stays."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.diffusion.mask_schedule import (
    MaskGroup,
    MaskSchedule,
    by_noise,
    constant,
    group_slices,
    mixture,
    over_stage,
    ratios,
)
from maskdm.diffusion.masks import Masking, masking
from maskdm.diffusion.schedules import edm, flow, linear

GRID = (4, 4)
HALF, QUARTER, NONE, CROP = (
    masking("patch", GRID, 0.5),
    masking("patch", GRID, 0.25),
    masking("none", GRID),
    masking("crop", GRID, 0.75),
)
KINDS = st.sampled_from([HALF, QUARTER, NONE, CROP])


@st.composite
def schedules(draw: st.DrawFn) -> MaskSchedule:
    maskings = draw(st.lists(KINDS, min_size=1, max_size=5))
    kind = draw(st.sampled_from(["constant", "mixture", "by_noise", "over_stage"]))
    if kind == "mixture":
        return mixture([(m, draw(st.floats(0.1, 10))) for m in maskings])
    return {"constant": lambda m: constant(m[0]), "by_noise": by_noise, "over_stage": over_stage}[kind](maskings)


# --- over a stage ----------------------------------------------------------------------------------------------------


def test_one_masking_for_everything():
    schedule = constant(HALF)
    for progress in (0.0, 0.5, 1.0):
        assert schedule.at(progress) == (MaskGroup(HALF, 1.0, (0.0, 1.0)),)
    assert schedule.maskings == (HALF,)
    assert schedule.ratio == HALF.ratio
    assert str(schedule) == str(HALF)


def test_a_stage_has_equal_parts_in_order():
    schedule = over_stage([HALF, QUARTER, HALF, NONE])
    for progress, mask in [(0, HALF), (0.24, HALF), (0.25, QUARTER), (0.49, QUARTER), (0.5, HALF), (0.75, NONE)]:
        assert [p.masking for p in schedule.at(progress)] == [mask]
    assert [p.masking for p in schedule.at(1.0)] == [NONE]  # the last step is still of the last part
    assert schedule.maskings == (HALF, QUARTER, NONE)
    assert schedule.ratio == pytest.approx((0.5 + 0.25 + 0.5 + 0) / 4)
    assert str(schedule) == "patch, over the stage 50%, 25%, 50%, 0% masked"


@settings(deadline=None, max_examples=100)
@given(schedules(), st.floats(0, 1))
def test_there_is_a_phase_at_any_time_and_its_shares_add_up_to_one(schedule, progress):
    groups = schedule.at(progress)
    assert sum(p.share for p in groups) == pytest.approx(1)
    assert all(p.masking in schedule.maskings for p in groups)
    assert 0 <= schedule.ratio < 1
    assert "\n" not in str(schedule)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), schedules())
def test_phases_follow_each_other(progresses, schedule):
    places = (
        [schedule.phases.index(schedule.at(t)) for t in sorted(progresses)] if len(set(schedule.phases)) > 1 else [0]
    )
    firsts = [i for i, phase in enumerate(schedule.phases) if schedule.phases.index(phase) == i]
    if len(firsts) == len(schedule.phases):  # where no two are alike
        assert places == sorted(places)


# --- ratios over a stage ---------------------------------------------------------------------------------------------


def test_ratios_by_steps_are_as_given():
    assert ratios([0.75, 0.5, 0.0], "steps", 8) == (0.75, 0.5, 0.0)


def test_linear_ratios_change_evenly_and_include_both_ends():
    assert ratios([0.8, 0.0], "linear", 5) == pytest.approx((0.8, 0.6, 0.4, 0.2, 0.0))
    assert ratios([0.0, 0.9], "linear", 2) == pytest.approx((0.0, 0.9))


def test_cosine_ratios_are_slow_at_both_ends():
    found = ratios([0.8, 0.0], "cosine", 5)
    assert found == pytest.approx(tuple(0.8 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)))
    gaps = [a - b for a, b in pairwise(found)]
    assert gaps[0] < gaps[1]
    assert gaps[3] < gaps[2]


@settings(deadline=None, max_examples=100)
@given(st.floats(0, 0.99), st.floats(0, 0.99), st.sampled_from(["linear", "cosine"]), st.integers(2, 50))
def test_scheduled_ratios_go_from_the_first_to_the_last_and_nowhere_else(first, last, schedule, buckets):
    found = ratios([first, last], schedule, buckets)
    assert len(found) == buckets
    assert (found[0], found[-1]) == pytest.approx((first, last), abs=1e-12)
    low, high = sorted([first, last])
    assert all(low - 1e-12 <= ratio <= high + 1e-12 for ratio in found)
    steps = [b - a for a, b in pairwise(found)]
    assert all(step * (last - first) >= -1e-12 for step in steps)


# --- parts of a batch ------------------------------------------------------------------------------------------------


def test_weights_of_a_mixture_need_not_add_up_to_one():
    [groups] = mixture([(HALF, 3.0), (NONE, 1.0)]).phases
    assert [(p.masking, p.share, p.noise) for p in groups] == [(HALF, 0.75, (0.0, 1.0)), (NONE, 0.25, (0.0, 1.0))]
    schedule = mixture([(HALF, 3.0), (NONE, 1.0)])
    assert schedule.ratio == pytest.approx(0.375)
    assert str(schedule).startswith("37.5% masked on average: 75% of a batch patch:")
    assert "25% of a batch none:" in str(schedule)


@settings(deadline=None, max_examples=300)
@given(schedules(), st.integers(1, 300), st.floats(0, 1))
def test_parts_cover_the_batch_once_and_in_order(schedule, batch_size, progress):
    groups = schedule.at(progress)
    slices = group_slices(groups, batch_size)
    assert len(slices) == len(groups)
    images = [i for s in slices for i in range(batch_size)[s]]
    assert images == list(range(batch_size))
    for group, s in zip(groups, slices, strict=True):
        assert abs((s.stop - s.start) - group.share * batch_size) < 1 + 1e-9


def test_parts_by_hand():
    groups = mixture([(HALF, 3.0), (NONE, 1.0)]).at(0.0)
    assert group_slices(groups, 8) == [slice(0, 6), slice(6, 8)]
    assert group_slices(groups, 1) == [slice(0, 1), slice(1, 1)]
    assert group_slices(constant(HALF).at(0.0), 5) == [slice(0, 5)]
    thirds = by_noise([HALF, QUARTER, NONE]).at(0.0)
    assert [s.stop - s.start for s in group_slices(thirds, 9)] == [3, 3, 3]


# --- by noise --------------------------------------------------------------------------------------------------------


def test_ranges_of_noise_go_from_the_least_to_the_most_and_meet():
    [groups] = by_noise([NONE, QUARTER, HALF, CROP]).phases
    assert [p.masking for p in groups] == [NONE, QUARTER, HALF, CROP]
    assert [p.noise for p in groups] == [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]
    assert [p.share for p in groups] == [0.25] * 4
    assert "(noise quantiles 0.25 to 0.50)" in str(by_noise([NONE, QUARTER, HALF, CROP]))


@settings(deadline=None, max_examples=100)
@given(schedules(), st.floats(0, 1))
def test_every_quantile_of_noise_gets_its_due(schedule, progress):
    """The density of u over the whole batch is one everywhere."""
    groups = schedule.at(progress)
    edges = sorted({edge for p in groups for edge in p.noise})
    for a, b in pairwise(edges):
        u = (a + b) / 2
        density = sum(p.share / (p.noise[1] - p.noise[0]) for p in groups if p.noise[0] <= u < p.noise[1])
        assert density == pytest.approx(1)


@pytest.mark.parametrize("process", [linear(), edm(), flow()], ids=["ddpm", "edm", "flow"])
@pytest.mark.parametrize("ranges", [2, 3, 5])
def test_by_noise_keeps_the_distribution_of_t(process, ranges):
    """As training draws it: u uniform in the quantiles of each group, for so many images as are its part."""
    batch = 60
    groups = by_noise([HALF, QUARTER, NONE, CROP, HALF][:ranges]).at(0.0)
    evenly = (torch.arange(batch, dtype=torch.float64) + 0.5) / batch
    drawn = []
    for group, s in zip(groups, group_slices(groups, batch), strict=True):
        count, (low, high) = s.stop - s.start, group.noise
        u = low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
        drawn.append(process.training_time(u))
    # A timestep may change where a quantile is rounded to the border between two.
    slack = 1 if process.timesteps else 1e-9
    torch.testing.assert_close(torch.cat(drawn), process.training_time(evenly), rtol=0, atol=slack)
    assert all(a.max() <= b.min() for a, b in pairwise(drawn))


def test_a_schedule_holds_every_masking_once():
    assert mixture([(HALF, 1.0), (NONE, 1.0), (HALF, 2.0)]).maskings == (HALF, NONE)
    assert isinstance(over_stage([HALF]).at(0.3)[0].masking, Masking)
