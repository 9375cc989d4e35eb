"""Which images a step sees and what is drawn for them: a function of (seed, stage, step), whoever asks and when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskdm.diffusion import schedules
from maskdm.diffusion.mask_schedule import MaskGroup, by_noise, constant, group_slices, mixture, over_stage
from maskdm.diffusion.masks import Mask, Masking, masking
from maskdm.diffusion.process import Process
from maskdm.runtime.distributed import Runtime
from maskdm.training.batches import Batch, TrainingSet, draw_batch, member_order, seed_of
from maskdm.training.store import HostStore

CPU = torch.device("cpu")
ALONE = Runtime(CPU, "no")
PROCESS = schedules.cosine(1000)
MEMBERS = np.array([row for row in range(60) if row % 7])  # every seventh image is held out
GRID = (4, 4)
NOTHING, PATCHES = masking("none", GRID), masking("patch", GRID, 0.75)
MIXED = mixture([(PATCHES, 3), (masking("crop", GRID, 0.5), 1), (masking("route", GRID, 0.5), 2)]).phases[0]
BY_NOISE = by_noise([masking("patch", GRID, ratio) for ratio in (0.75, 0.5, 0.25)]).phases[0]


def training_set(*, labelled: bool = True) -> TrainingSet:
    """Pictures that are dark on the left and carry their own number on the right."""
    images = np.zeros((60, 8, 8, 1), np.uint8)
    images[:, :, 4:, 0] = np.arange(1, 61)[:, None, None]
    labels = np.arange(60, dtype=np.int64) % 5 if labelled else None
    return TrainingSet(HostStore(images, torch.device("cpu")), MEMBERS, labels, 5 if labelled else 0)


def drawn_parts(
    step: int = 0,
    *,
    groups: Sequence[MaskGroup] = MIXED,
    data: TrainingSet | None = None,
    process: Process = PROCESS,
    batch_size: int = 16,
    seed: tuple[object, ...] = (0, "stage", 0),
    flip: float = 0.5,
    label_dropout: float = 0.25,
    runtime: Runtime = ALONE,
) -> list[Batch]:
    return draw_batch(
        data or training_set(),
        groups,
        process,
        step=step,
        batch_size=batch_size,
        seed=seed,
        flip=flip,
        label_dropout=label_dropout,
        device=CPU,
        rank_slice=runtime.rank_slice,
    )


def drawn(step: int = 0, *, mask: Masking = PATCHES, **more: Any) -> Batch:
    """A batch with one mask."""
    (batch,) = drawn_parts(step, groups=constant(mask).phases[0], **more)
    return batch


def fields(batch: Batch) -> dict[str, Tensor | None]:
    found = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name != "weight"}
    return found | {"mask": None if batch.mask is None else batch.mask.keep}


def differing(a: Batch, b: Batch) -> set[str]:
    """Names of the fields that are not equal to the last bit."""
    left, right = fields(a), fields(b)
    return {
        name
        for name, value in left.items()
        if (value is None) != (right[name] is None) or (value is not None and not torch.equal(value, right[name]))
    }


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches with masks of one shape, one after another."""
    columns = zip(*(fields(batch).values() for batch in batches), strict=True)
    x_0, t, eps, keep, label = (None if column[0] is None else torch.cat(column) for column in columns)
    return Batch(x_0, t, eps, None if keep is None else Mask(keep, batches[0].mask.routed), label)


def rows_of(batch: Batch) -> list[int]:
    """Which images these are, mirrored or not."""
    return [int(row) - 1 for row in batch.x_0.amax(dim=(1, 2, 3)).add(1).mul(127.5).round()]


def mirrored(batch: Batch) -> Tensor:
    return batch.x_0[:, 0, 0, 0] > -1


# --- order -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(members=st.integers(1, 40), batch_size=st.integers(1, 60), seed=st.integers(0, 2**63))
def test_an_epoch_takes_every_member_once(members, batch_size, seed):
    steps = 3 * members // batch_size + 2  # at least three epochs, over batches that straddle them
    row = np.concatenate([member_order(members, batch_size, step, seed) for step in range(steps)])
    for epoch in range(3):
        assert sorted(row[epoch * members : (epoch + 1) * members]) == list(range(members))


@settings(max_examples=30)
@given(members=st.integers(1, 40), sizes=st.lists(st.integers(1, 60), min_size=2, max_size=2), seed=st.integers(0))
def test_the_row_of_images_does_not_depend_on_the_batch_size(members, sizes, seed):
    rows = [
        np.concatenate([member_order(members, size, step, seed) for step in range(120 // size + 1)])[:120]
        for size in sizes
    ]
    assert (rows[0] == rows[1]).all()


def test_epochs_are_shuffled_afresh_and_by_the_seed():
    first, second = member_order(50, 50, 0, 7, "stage", 0), member_order(50, 50, 1, 7, "stage", 0)
    assert (first != second).any()
    assert (first != np.arange(50)).any()
    assert (first != member_order(50, 50, 0, 8, "stage", 0)).any()
    assert (first != member_order(50, 50, 0, 7, "stage", 1)).any()
    assert (first == member_order(50, 50, 0, 7, "stage", 0)).all()


def test_any_step_can_be_asked_for_first():
    far = member_order(11, 4, 10**12, 3)
    member_order(11, 4, 0, 3)
    assert (member_order(11, 4, 10**12, 3) == far).all()
    assert len(set(far)) == 4  # of one epoch, which begins four images earlier


def test_a_batch_larger_than_the_data():
    taken = member_order(5, 23, 0, 0)
    assert np.bincount(taken[:20], minlength=5).tolist() == [4] * 5


def test_seeds_depend_on_every_part():
    all_parts = [(0,), (1,), (10,), (1, 0), (0, "stage", 0), (0, "stage", 1), (0, "epoch", 0)]
    seeds = {seed_of(*parts) for parts in all_parts}
    assert len(seeds) == len(all_parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


# --- draw ------------------------------------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_stage_and_step_and_on_nothing_else():
    once = drawn(5)
    torch.manual_seed(1)
    np.random.default_rng().random()
    for step in (9, 0, 6):
        drawn(step, flip=0.1)
    torch.rand(3)
    assert differing(once, drawn(5)) == set()


@pytest.mark.parametrize(
    "other",
    [{"step": 6}, {"seed": (1, "stage", 0)}, {"seed": (0, "stage", 1)}],
    ids=["step", "seed", "stage"],
)
def test_another_step_seed_or_stage_draws_everything_anew(other):
    assert differing(drawn(step=5), drawn(**{"step": 5, **other})) == {"x_0", "t", "eps", "mask", "label"}
    a, b = drawn_parts(step=5), drawn_parts(**{"step": 5, **other})
    assert "mask" in differing(a[2], b[2])


def test_a_draw_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    drawn(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_mask_flip_and_dropout_change_only_what_they_are_about():
    plain = drawn(2, flip=0.0, label_dropout=0.0)
    assert differing(plain, drawn(2, flip=0.7, label_dropout=0.0)) == {"x_0"}
    assert differing(plain, drawn(2, flip=0.0, label_dropout=0.7)) == {"label"}
    assert differing(plain, drawn(2, mask=NOTHING, flip=0.0, label_dropout=0.0)) == {"mask"}


def test_shapes_and_ranges():
    batch = drawn()
    assert batch.x_0.shape == batch.eps.shape == (16, 1, 8, 8)
    assert batch.t.shape == batch.label.shape == (16,)
    assert batch.mask.visible.shape == (16, 4)
    assert batch.x_0.dtype == torch.float32
    assert batch.x_0.min() == -1
    assert batch.t.dtype == torch.int64
    assert batch.t.min() >= 0
    assert batch.t.max() < 1000


def test_images_labels_and_order_belong_together():
    data = training_set()
    batch = drawn(4, data=data, label_dropout=0.0)
    rows = MEMBERS[member_order(len(MEMBERS), 16, 4, 0, "stage", 0)]
    assert rows_of(batch) == rows.tolist()
    assert batch.label.tolist() == data.labels[rows].tolist()


def test_held_out_images_never_appear():
    seen = [row for step in range(40) for row in rows_of(drawn(step))]
    assert set(seen) == set(MEMBERS.tolist())


def test_without_classes_there_are_no_labels():
    assert drawn(data=training_set(labelled=False)).label is None


def test_without_a_mask_everything_is_visible():
    assert drawn(mask=NOTHING).mask is None


def test_what_is_routed_is_visible():
    batch = drawn(mask=masking("route", GRID, 0.75))
    assert batch.mask.visible is None
    assert batch.mask.keep.shape == (16, 4)
    assert torch.equal(batch.mask.keep, drawn(mask=PATCHES).mask.keep)  # the same patches, were they masked


@pytest.mark.parametrize("flip", [0.0, 0.3, 1.0])
def test_share_of_mirrored_images(flip):
    flags = torch.cat([mirrored(drawn(step, batch_size=64, flip=flip)) for step in range(60)]).float()
    assert float(flags.mean()) == pytest.approx(flip, abs=0.03 if 0 < flip < 1 else 0)


def test_mirrored_means_left_to_right():
    data = training_set()
    assert isinstance(data.images, HostStore)
    data.images.images[:, 0, 0, 0] = 200  # a corner
    batch = drawn(data=data, flip=1.0)
    assert batch.x_0[:, 0, 0, 7].tolist() == pytest.approx([200 / 127.5 - 1] * 16)
    assert batch.x_0[:, 0, 7, 7].tolist() == [-1.0] * 16


@pytest.mark.parametrize("dropout", [0.0, 0.2, 1.0])
def test_share_of_dropped_labels(dropout):
    batches = [drawn(step, batch_size=64, label_dropout=dropout) for step in range(60)]
    dropped = torch.cat([batch.label == 5 for batch in batches]).float()
    assert float(dropped.mean()) == pytest.approx(dropout, abs=0.03 if 0 < dropout < 1 else 0)


def test_what_is_drawn_for_an_image_is_independent_of_what_is_drawn_for_the_others():
    batches = [drawn(step, batch_size=64, flip=0.5, label_dropout=0.5) for step in range(60)]
    flipped = torch.cat([mirrored(batch) for batch in batches])
    dropped = torch.cat([batch.label == 5 for batch in batches])
    late = torch.cat([batch.t >= 500 for batch in batches])
    for a, b in ((flipped, dropped), (flipped, late), (dropped, late)):
        assert float((a & b).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert any(0 < int(mirrored(batch).sum()) < 64 for batch in batches)


# --- groups --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "lengths"), [(MIXED, [8, 3, 5]), (BY_NOISE, [5, 6, 5])], ids=["mixed", "noise"])
def test_every_group_has_its_share_of_a_batch(groups, lengths):
    batches = drawn_parts(groups=groups)
    assert [len(batch) for batch in batches] == lengths
    for group, batch in zip(groups, batches, strict=True):
        assert abs(len(batch) - 16 * group.share) <= 1
        patches = batch.mask.keep
        assert batch.mask.routed == (group.masking.kind == "route")
        assert patches.flatten(1).shape == (len(batch), group.masking.num_visible)
        assert patches.ndim == (3 if group.masking.kind == "crop" else 2)


def test_groups_share_out_one_batch():
    rows = MEMBERS[member_order(len(MEMBERS), 16, 2, 0, "stage", 0)]
    assert [row for batch in drawn_parts(2) for row in rows_of(batch)] == rows.tolist()
    whole, pieces = drawn(2), drawn_parts(2)
    for name in ("x_0", "t", "eps", "label"):  # what is masked changes nothing else
        assert torch.equal(torch.cat([fields(piece)[name] for piece in pieces]), fields(whole)[name])


@pytest.mark.parametrize("process", [PROCESS, schedules.flow(), schedules.edm()], ids=["ddpm", "flow", "edm"])
def test_a_group_of_the_noise_stays_in_its_quantiles(process):
    edges = process.training_time(torch.tensor([i / 3 for i in range(3)] + [1 - 1e-7], dtype=torch.float64))
    for step in range(20):
        for i, batch in enumerate(drawn_parts(step, groups=BY_NOISE, process=process)):
            assert (batch.t >= edges[i] - 1e-6).all()
            assert (batch.t <= edges[i + 1] + 1e-6).all()


@pytest.mark.parametrize("process", [PROCESS, schedules.flow(), schedules.edm()], ids=["ddpm", "flow", "edm"])
def test_over_a_whole_batch_the_law_of_noise_is_that_of_the_process(process):
    groups = by_noise([PATCHES] * 4).phases[0]  # 16 images: nothing to round
    times = torch.cat([b.t for step in range(250) for b in drawn_parts(step, groups=groups, process=process)])
    quantiles = torch.arange(1, 10, dtype=torch.float64) / 10
    below = (times.double()[:, None] < process.training_time(quantiles).double()).double().mean(dim=0)
    torch.testing.assert_close(below, quantiles, rtol=0, atol=0.02)


def test_a_image_is_not_bound_to_a_group():
    steps = [drawn_parts(step) for step in range(200)]
    seen = [{row for batches in steps for row in rows_of(batches[i])} for i in range(len(MIXED))]
    assert all(rows == set(MEMBERS.tolist()) for rows in seen)


def test_a_ratio_that_changes_over_the_stage_draws_what_that_ratio_draws():
    plan = over_stage([PATCHES, NOTHING])
    assert differing(drawn_parts(3, groups=plan.at(0.0))[0], drawn(3)) == set()
    assert differing(drawn_parts(3, groups=plan.at(0.5))[0], drawn(3, mask=NOTHING)) == set()


# --- ranks -----------------------------------------------------------------------------------------------------------

PLANS = {
    "one mask": constant(PATCHES).phases[0],
    "nothing masked": constant(NOTHING).phases[0],
    "mixture": MIXED,
    "by noise": BY_NOISE,
    "a mask each": mixture([(PATCHES, 1)] * 16).phases[0],
}


def ranks_of(world: int) -> list[Runtime]:
    return [Runtime(CPU, "no", rank, world) for rank in range(world)]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 7, 8, 16])  # also those that training refuses
@pytest.mark.parametrize("groups", PLANS.values(), ids=PLANS)
def test_the_parts_of_the_ranks_make_up_the_whole(groups, world):
    whole = drawn_parts(3, groups=groups)
    shared = [iter(drawn_parts(3, groups=groups, runtime=runtime)) for runtime in ranks_of(world)]
    for batch, rows in zip(whole, group_slices(groups, 16), strict=True):
        numbers = [range(16)[runtime.rank_slice(rows)] for runtime in ranks_of(world)]
        mine = [next(batches) for batches, taken in zip(shared, numbers, strict=True) if taken]
        places = torch.tensor([i for taken in numbers for i in taken]).argsort()
        for name, value in fields(batch).items():
            if value is None:
                assert all(fields(part)[name] is None for part in mine)
            else:
                assert torch.equal(torch.cat([fields(part)[name] for part in mine])[places], value)
    assert not [batch for batches in shared for batch in batches]


@pytest.mark.parametrize("world", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("groups", PLANS.values(), ids=PLANS)
def test_ranks_have_equally_much_to_do_and_of_every_kind(groups, world):
    counts = [[len(range(16)[r.rank_slice(rows)]) for rows in group_slices(groups, 16)] for r in ranks_of(world)]
    assert [sum(count) for count in counts] == [16 // world] * world  # so that none waits for the others in vain
    for of_group in zip(*counts, strict=True):
        assert max(of_group) - min(of_group) <= 1


@given(start=st.integers(0, 50), length=st.integers(0, 50), world=st.integers(1, 9))
def test_ranks_deal_out_any_stretch_of_a_row(start, length, world):
    row = range(start + length)
    dealt = [list(row[runtime.rank_slice(slice(start, start + length))]) for runtime in ranks_of(world)]
    assert sorted(i for part in dealt for i in part) == list(row)[start:]


# --- micro-batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "lengths"), [(16, [16]), (100, [16]), (5, [5, 5, 5, 1]), (1, [1] * 16)])
def test_micro_batches_cover_the_batch_in_order(size, lengths):
    batch = drawn()
    assert [len(part) for part in batch.split(size)] == lengths
    assert differing(joined(list(batch.split(size))), batch) == set()


def test_without_a_size_a_part_stays_whole():
    for batch in drawn_parts():
        (part,) = batch.split(None)
        assert differing(part, batch) == set()


def test_micro_batches_without_masks_and_labels():
    batch = replace(drawn(), mask=None, label=None)
    micro = list(batch.split(6))
    assert [len(part) for part in micro] == [6, 6, 4]
    assert all(part.mask is None and part.label is None for part in micro)
