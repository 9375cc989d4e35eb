"""Masks on auto: what they come to on grids of every size, and that a run keeps what it came to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskdm.cli.main import main
from maskdm.config.model_config import UViTConfig
from maskdm.config.process_config import DDPMConfig
from maskdm.config.resolve import resolve
from maskdm.config.stage_config import MaskConfig, MaskPart
from maskdm.errors import InputError
from maskdm.models.spec import ModelSpec
from maskdm.training.find_run import same_settings
from maskdm.training.read_run import read_config
from maskdm.training.stage_masks import (
    MANY,
    mask_schedule_of,
    mask_schedules,
    mask_values,
    resolve_mask,
    resolved_masks,
    usual_mask,
)

GRIDS = st.tuples(st.integers(1, 80), st.integers(1, 80))
AUTO = MaskConfig(kind="auto")


@pytest.mark.parametrize("patches", [1, 16, MANY - 1, MANY, 1024, 65_536])
def test_the_usual_mask_masks_more_of_more_patches(patches):
    kind, ratio = usual_mask(patches)
    assert kind in ("patch", "block")
    assert 0 < ratio < 1
    assert ratio >= usual_mask(max(patches // 2, 1))[1]


@given(GRIDS, st.sampled_from(["uvit", "jit", "unet", "mine:Own"]))
def test_what_is_on_auto_fits_every_grid(grid, backbone):
    kind, ratio, block = mask_values(AUTO, grid, backbone)
    assert (kind, ratio) == (("crop", 0.75) if backbone == "unet" else usual_mask(grid[0] * grid[1]))
    (masking,) = mask_schedule_of(AUTO, grid, backbone).maskings
    assert (masking.kind, masking.requested) == (kind, ratio)
    if kind == "block":
        assert masking.block == block == (min(grid) // 4 if min(grid) >= 4 else 1)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (MaskConfig(), ("none", 0.0, 4)),
        (AUTO, ("block", 0.875, 8)),
        (MaskConfig(kind="auto", ratio=0.5), ("block", 0.5, 8)),
        (MaskConfig(kind="auto", ratio=(0.9, 0.5)), ("block", (0.9, 0.5), 8)),
        (MaskConfig(kind="auto", by_noise=(0.9, 0.5)), ("block", 0.0, 8)),
        (MaskConfig(kind="auto", block=2), ("block", 0.875, 2)),
        (MaskConfig(kind="patch"), ("patch", 0.875, 4)),
        (MaskConfig(kind="patch", ratio=0), ("patch", 0, 4)),
        (MaskConfig(kind="crop"), ("crop", 0.75, 4)),
        (MaskConfig(kind="route"), ("route", 0.5, 4)),
        (MaskConfig(kind="block", ratio=0.3, block=4), ("block", 0.3, 4)),
    ],
    ids=str,
)
def test_only_what_is_on_auto_is_filled_in(mask, found):
    mask = resolve_mask(mask, (32, 32), "uvit")
    assert (mask.kind, mask.ratio, mask.block) == found
    assert resolve_mask(mask, (32, 32), "uvit") == mask
    assert MaskConfig.model_validate(mask.model_dump()) == mask  # it can be written down


def test_masks_of_a_mixture_are_resolved_each_by_itself():
    parts = (MaskPart(kind="auto"), MaskPart(kind="crop"), MaskPart(kind="block", ratio=0.5), MaskPart(kind="none"))
    mask = resolve_mask(MaskConfig(mixture=parts), (32, 32), "jit")
    found = [("block", 0.875, 8), ("crop", 0.75, 4), ("block", 0.5, 8), ("none", 0.0, 4)]
    assert [(part.kind, part.ratio, part.block) for part in mask.mixture] == found
    schedule = mask_schedule_of(MaskConfig(mixture=parts), (32, 32), "jit")
    assert schedule == mask_schedule_of(mask, (32, 32), "jit")
    assert [m.kind for m in schedule.maskings] == ["block", "crop", "block", "none"]


@pytest.mark.parametrize("given", [{"block": 2}, {"offset": True}])
def test_who_speaks_of_blocks_gets_blocks(given):
    for backbone in ("uvit", "unet"):
        assert mask_values(MaskConfig(kind="auto", **given), (4, 4), backbone).kind == "block"


def test_several_ratios_of_nothing_are_refused():
    with pytest.raises(InputError) as caught:
        mask_schedule_of(MaskConfig(by_noise=(0.5, 0.0)), (4, 4), "uvit", "stages.3.mask.")
    assert (caught.value.name, caught.value.got) == ("stages.3.mask.kind", "none")


def test_what_does_not_fit_is_named_as_the_setting():
    parts = (MaskPart(kind="patch"), MaskPart(kind="block", ratio=0.5, block=5))
    for mask, name in (
        (MaskConfig(kind="block", ratio=0.5, block=5), "mask.block"),
        (MaskConfig(mixture=parts), "mask.mixture.1.block"),
    ):
        with pytest.raises(InputError) as caught:
            mask_schedule_of(mask, (4, 4), "uvit")
        assert (caught.value.name, caught.value.got) == (name, 5)


@pytest.mark.parametrize("side", [8, 64, 128])
def test_what_is_resolved_stays(side):
    spec = ModelSpec(model=UViTConfig(patch_size=4), process=DDPMConfig(), image_size=(side, side), channels=3)
    config = resolved_masks(resolve(), spec)
    masks = [stage.mask for stage in config.stages]
    assert [mask.ratio for mask in masks] == [usual_mask((side // 4) ** 2)[1], 0.0]
    assert masks[1].kind == "none"
    assert resolved_masks(config, spec) == config
    assert mask_schedules(config, spec) == mask_schedules(resolve(), spec)
    assert resolve(overrides=[f"stages.0.mask.kind={masks[0].kind}"]) != config  # the rest is written down too


def test_a_run_of_the_defaults_keeps_its_masks(photos, tmp_path, tiny):
    command = ["train", "--data", str(photos), "--output-dir", str(tmp_path), "--image-size", "16", *tiny]
    assert main(command) == 0
    assert main([*command, "--resume", "never"]) == 0
    first, second = (read_config(run) for run in sorted(tmp_path.iterdir()))
    assert (first.stages[0].mask.kind, first.stages[0].mask.ratio) == usual_mask(64)
    assert same_settings(first, second)


def test_settings_of_a_run_from_before_there_was_auto_are_the_same():
    """Then a stage without blocks had mask.block 4 and one without a mask mask.ratio 0."""
    spec = ModelSpec(model=UViTConfig(patch_size=2), process=DDPMConfig(), image_size=(8, 8), channels=1)
    before = resolve(
        recipe="digits",
        overrides=["stages.0.mask.block=4", "stages.1.mask.block=4", "stages.1.mask.ratio=0"],
    )
    assert same_settings(before, resolved_masks(resolve(recipe="digits"), spec))
