"""From the settings of a mask to its schedule, on the grid of a model."""

from __future__ import annotations

from typing import NamedTuple

import torch

from maskdm.config.model_config import TransformerConfig, UNetConfig
from maskdm.config.schema import Config
from maskdm.config.stage_config import MaskConfig, MaskPart, StageConfig
from maskdm.diffusion import mask_schedule
from maskdm.diffusion.mask_schedule import MaskSchedule
from maskdm.diffusion.masks import Mask, Masking, MaskKind, masking
from maskdm.diffusion.patches import Grid, patch_grid
from maskdm.errors import ArgumentError, InputError, within
from maskdm.models import build
from maskdm.models.spec import ModelSpec
from maskdm.training.stage_specs import stage_spec

MANY = 256
"""Patches from which on masking most of them was measured to pay (docs/evidence.md)."""
OF_KIND: dict[MaskKind, float] = {"none": 0.0, "crop": 0.75, "route": 0.5}
"""Ratios that do not follow the number of patches: half of each side is cut off; as in TREAD."""
NO_BLOCK = 4
"""What stands in the settings of a run where there are no blocks."""


def mask_schedules(config: Config, spec: ModelSpec) -> tuple[MaskSchedule, ...]:
    """The masks of every stage, each on the grid of its own model.

    Args:
        config: the settings.
        spec: the run's model.

    Raises:
        InputError: patches that do not fit the image, or a mask that does not fit the grid, the batch or the backbone;
            it names the setting.
    """
    schedules = []
    for i, stage in enumerate(config.stages):
        own = stage_spec(spec, stage)
        with within("model."):
            grid = patch_grid(own.image_size, own.model.patch_size)
        schedule = mask_schedule_of(stage.mask, grid, spec.model.backbone, f"stages.{i}.mask.")
        if any(m.kind == "route" for m in schedule.maskings):
            _check_routes(own, f"stages.{i}.mask.kind")
        groups = schedule.phases[0]
        if any(part.start == part.stop for part in mask_schedule.group_slices(groups, stage.batch_size)):
            raise InputError(
                f"stages.{i}.batch_size",
                got=stage.batch_size,
                wanted=f"enough for {len(groups)} masks side by side",
                remedy="take more images, or fewer masks",
            )
        schedules.append(schedule)
    return tuple(schedules)


def _check_routes(spec: ModelSpec, setting: str) -> None:
    """Refuses a backbone without a middle that patches can bypass.

    Raises:
        InputError: of `setting`, or of the depth of the model.
    """
    if not build.routes(spec.model):
        problem = f"patches cannot bypass the middle of {spec.model.backbone}"
        raise InputError(setting, problem, got="route", wanted="patch, block or crop")
    if spec.model.backbone in build.BACKBONES:  # which say so themselves where they are too shallow
        with torch.device("meta"), within("model."):
            network = build.backbone(spec)
            x_t = torch.zeros(1, spec.channels, *spec.image_size)
            network(x_t, torch.zeros(1), mask=Mask(torch.zeros(1, 1, dtype=torch.int64), routed=True))


# --- settings on auto -------------------------------------------------------------------------------------------------


def usual_mask(patches: int) -> tuple[MaskKind, float]:
    """MaskKind and ratio for a number of patches: of many what gained most, of few what does no harm."""
    return ("block", 0.875) if patches >= MANY else ("patch", 0.5)


def resolved_masks(config: Config, spec: ModelSpec) -> Config:
    """The same settings with nothing left on auto in the masks of all stages."""

    def resolved(stage: StageConfig) -> StageConfig:
        own = stage_spec(spec, stage)
        grid = patch_grid(own.image_size, own.model.patch_size)
        return stage.model_copy(update={"mask": resolve_mask(stage.mask, grid, spec.model.backbone)})

    return config.model_copy(update={"stages": tuple(resolved(stage) for stage in config.stages)})


def resolve_mask(mask: MaskConfig, grid: Grid, backbone: str) -> MaskConfig:
    """The same mask with nothing left on auto, in its mixture neither."""
    found = mask_values(mask, grid, backbone)._asdict()
    if mask.by_noise:  # which stands instead of a ratio
        found["ratio"] = 0.0
    parts = tuple(part.model_copy(update=mask_values(part, grid, backbone)._asdict()) for part in mask.mixture)
    return mask.model_copy(update=found | {"mixture": parts})


class MaskValues(NamedTuple):
    """What of a mask may be on auto, when it is not any more; named as the settings."""

    kind: MaskKind
    ratio: float | tuple[float, ...]
    block: int


def mask_values(mask: MaskConfig | MaskPart, grid: Grid, backbone: str) -> MaskValues:
    """MaskKind, ratio and block of a mask, those on auto by the number of patches and the backbone."""
    kind = mask.kind
    if kind == "auto":
        if mask.block != "auto" or mask.offset:  # which are for blocks
            kind = "block"
        elif backbone == "unet":  # which saves nothing on masked patches
            kind = "crop"
        else:
            kind = usual_mask(grid[0] * grid[1])[0]
    ratio = mask.ratio
    if ratio == "auto":
        ratio = OF_KIND.get(kind, usual_mask(grid[0] * grid[1])[1])
    if mask.block != "auto":
        return MaskValues(kind, ratio, mask.block)
    return MaskValues(kind, ratio, max(min(grid) // 4, 1) if kind == "block" else NO_BLOCK)


# --- schedules --------------------------------------------------------------------------------------------------------


def mask_schedule_of(mask: MaskConfig, grid: Grid, backbone: str, prefix: str = "mask.") -> MaskSchedule:
    """The schedule of one stage's mask.

    Args:
        mask: its settings.
        grid: rows and columns of patches.
        backbone: name of the model's backbone.
        prefix: of the names of the settings, for errors.

    Raises:
        InputError: it does not fit the grid.
    """
    if mask.mixture:
        parts = []
        for number, part in enumerate(mask.mixture):
            with within(f"{prefix}mixture.{number}."):
                parts.append((_part_masking(part, grid, backbone), part.share))
        return mask_schedule.mixture(parts)
    with within(prefix):
        return _plain_schedule(mask, grid, backbone)


def _part_masking(part: MaskPart, grid: Grid, backbone: str) -> Masking:
    kind, ratio, block = mask_values(part, grid, backbone)
    assert not isinstance(ratio, tuple), "a part has one ratio"
    return masking(kind, grid, ratio, block=block, offset=part.offset)


def _plain_schedule(mask: MaskConfig, grid: Grid, backbone: str) -> MaskSchedule:
    """Of a mask that is no mixture."""
    kind, ratio, block = mask_values(mask, grid, backbone)
    if mask.by_noise:
        ratios: tuple[float, ...] = mask.by_noise
    elif isinstance(ratio, tuple):
        ratios = mask_schedule.ratios(ratio, mask.schedule, mask.buckets)
    else:
        ratios = (ratio,)
    if kind == "none" and len(ratios) > 1:
        raise ArgumentError("kind", got="none", wanted="patch, block, crop or route for several ratios")
    # With nothing to mask there is nothing to gather: the dense path.
    maskings = [
        masking(kind if each or len(ratios) == 1 else "none", grid, each, block=block, offset=mask.offset)
        for each in ratios
    ]
    return mask_schedule.by_noise(maskings) if mask.by_noise else mask_schedule.over_stage(maskings)


def remarks(schedule: MaskSchedule, spec: ModelSpec) -> list[str]:
    """What a user should know of these masks on this model: ratios far from the requested, work that is not saved."""
    model, kinds = spec.model, {m.kind for m in schedule.maskings}
    said = [m.warning for m in schedule.maskings if m.warning]
    if isinstance(model, UNetConfig) and kinds & {"patch", "block"}:
        said.append("a unet fills masked patches with zeros and saves no work on them; kind crop does")
    if isinstance(model, TransformerConfig) and model.mixer_depth and kinds - {"none", "route"}:
        said.append("with model.mixer_depth masked patches are not unseen: the mixer reads all of them")
    return said
