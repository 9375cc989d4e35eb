"""From the settings of a mask to its plan, on the grid of a model."""

from __future__ import annotations

from typing import NamedTuple

import torch

from maskdm.config.schema import Config, MaskConfig, MaskPart, ModelSpec, StageConfig
from maskdm.diffusion import mask_schedule as mask_plan
from maskdm.diffusion.mask_schedule import MaskPlan
from maskdm.diffusion.masks import Kind, Masking, masking
from maskdm.diffusion.patches import Grid, patch_grid
from maskdm.errors import InputError
from maskdm.models import build


def mask_plans(config: Config, spec: ModelSpec) -> tuple[MaskPlan, ...]:
    """The masks of every stage.

    Raises:
        InputError: a mask that does not fit the grid, the batch or the backbone; it names the setting.
    """
    grid = patch_grid(spec.image_size, spec.model.patch_size)
    plans = []
    for i, stage in enumerate(config.stages):
        try:
            plan = plan_of(stage.mask, grid, spec.model.backbone)
        except InputError as error:
            raise InputError(f"stages.{i}.{error}") from None
        if any(m.kind == "route" for m in plan.maskings):
            _check_routes(spec, f"stages.{i}")
        portions = plan.moments[0]
        if any(part.start == part.stop for part in mask_plan.parts(portions, stage.batch_size)):
            raise InputError(
                f"stages.{i}.batch_size: got {stage.batch_size}, too few for {len(portions)} masks side by side; "
                "take more images, or fewer masks"
            )
        plans.append(plan)
    return tuple(plans)


def _check_routes(spec: ModelSpec, stage: str) -> None:
    """Refuses a backbone without a middle that patches can go around."""
    if not build.routes(spec.model):
        raise InputError(
            f"{stage}.mask.kind: got route, but patches cannot go around the middle of {spec.model.backbone}; "
            "choose patch, block or crop"
        )
    if spec.model.backbone in build.BACKBONES:  # which say so themselves where they are too shallow
        with torch.device("meta"):
            network = build.backbone(spec)
            x_t = torch.zeros(1, spec.channels, *spec.image_size)
            network(x_t, torch.zeros(1), through=torch.zeros(1, 1, dtype=torch.int64))


MANY = 256
"""Patches from which on hiding most of them was measured to pay (docs/evidence.md)."""
OF_KIND: dict[Kind, float] = {"none": 0.0, "crop": 0.75, "route": 0.5}
"""Ratios that do not follow the number of patches: half of each side is cut off; as in TREAD."""
NO_BLOCK = 4
"""What stands in the settings of a run where there are no blocks."""


def usual_mask(patches: int) -> tuple[Kind, float]:
    """Kind and ratio: of many patches what gained most, of few what does no harm."""
    return ("block", 0.875) if patches >= MANY else ("patch", 0.5)


def settled(config: Config, spec: ModelSpec) -> Config:
    """The same with nothing left on auto in the masks of all stages."""
    grid = patch_grid(spec.image_size, spec.model.patch_size)

    def of(stage: StageConfig) -> StageConfig:
        return stage.model_copy(update={"mask": settle(stage.mask, grid, spec.model.backbone)})

    return config.model_copy(update={"stages": tuple(of(stage) for stage in config.stages)})


def settle(mask: MaskConfig, grid: Grid, backbone: str) -> MaskConfig:
    """The same with nothing left on auto, in its mixture neither."""
    found = chosen(mask, grid, backbone)._asdict()
    if mask.by_noise:  # which stands instead of a ratio
        found["ratio"] = 0.0
    parts = tuple(part.model_copy(update=chosen(part, grid, backbone)._asdict()) for part in mask.mixture)
    return mask.model_copy(update=found | {"mixture": parts})


class Chosen(NamedTuple):
    """What of a mask may be on auto, when it is not any more."""

    kind: Kind
    ratio: float | tuple[float, ...]
    block: int


def chosen(mask: MaskConfig | MaskPart, grid: Grid, backbone: str) -> Chosen:
    """Kind, ratio and block of a mask, those on auto by the number of patches."""
    kind = mask.kind
    if kind == "auto":
        if mask.block != "auto" or mask.offset:  # which are for blocks
            kind = "block"
        elif backbone == "unet":  # which saves nothing on hidden patches
            kind = "crop"
        else:
            kind = usual_mask(grid[0] * grid[1])[0]
    ratio = mask.ratio
    if ratio == "auto":
        ratio = OF_KIND.get(kind, usual_mask(grid[0] * grid[1])[1])
    if mask.block != "auto":
        return Chosen(kind, ratio, mask.block)
    return Chosen(kind, ratio, max(min(grid) // 4, 1) if kind == "block" else NO_BLOCK)


def plan_of(mask: MaskConfig, grid: Grid, backbone: str) -> MaskPlan:
    """The plan of one stage's mask."""
    if mask.mixture:
        return mask_plan.mixture([(_part(m, i, grid, backbone), m.share) for i, m in enumerate(mask.mixture)])
    kind, ratio, block = chosen(mask, grid, backbone)
    if mask.by_noise:
        ratios: tuple[float, ...] = mask.by_noise
    elif isinstance(ratio, tuple):
        ratios = mask_plan.ratios(ratio, mask.schedule, mask.buckets)
    else:
        ratios = (ratio,)
    if kind == "none" and len(ratios) > 1:
        raise InputError("mask.kind: got none with several ratios; choose patch, block, crop or route")
    # With nothing to hide there is nothing to gather: the dense path.
    maskings = [
        masking(kind if each or len(ratios) == 1 else "none", grid, each, block=block, offset=mask.offset)
        for each in ratios
    ]
    return mask_plan.by_noise(maskings) if mask.by_noise else mask_plan.over_stage(maskings)


def _part(part: MaskPart, number: int, grid: Grid, backbone: str) -> Masking:
    kind, ratio, block = chosen(part, grid, backbone)
    assert not isinstance(ratio, tuple), "a part has one ratio"
    try:
        return masking(kind, grid, ratio, block=block, offset=part.offset)
    except InputError as error:
        raise InputError(str(error).replace("mask.", f"mask.mixture.{number}.", 1)) from None


def remarks(plan: MaskPlan, spec: ModelSpec) -> list[str]:
    """What a user should know of these masks on this model: ratios far from the asked ones, work that is not saved."""
    said = [m.warning for m in plan.maskings if m.warning]
    if spec.model.backbone == "unet" and any(m.kind in ("patch", "block") for m in plan.maskings):
        said.append("a unet fills hidden patches with zeros and saves no work on them; kind crop does")
    if spec.model.mixer_depth and any(m.kind not in ("none", "route") for m in plan.maskings):
        said.append("with model.mixer_depth hidden patches are not unseen: the mixer reads all of them")
    return said
