"""From the settings of a mask to its plan, on the grid of a model."""

from __future__ import annotations

import torch

from maskdm.errors import InputError
from maskdm.method import mask_plan
from maskdm.method.mask_plan import MaskPlan
from maskdm.method.masking import Masking, masking
from maskdm.method.patches import Grid, patch_grid
from maskdm.training import build
from maskdm.training.config import Config, MaskConfig, MaskPart, ModelSpec


def mask_plans(config: Config, spec: ModelSpec) -> tuple[MaskPlan, ...]:
    """The masks of every stage.

    Raises:
        InputError: a mask that does not fit the grid, the batch or the backbone; it names the setting.
    """
    grid = patch_grid(spec.image_size, spec.model.patch_size)
    plans = []
    for i, stage in enumerate(config.stages):
        try:
            plan = plan_of(stage.mask, grid)
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


def plan_of(mask: MaskConfig, grid: Grid) -> MaskPlan:
    """The plan of one stage's mask."""
    if mask.mixture:
        return mask_plan.mixture([(_part(m, i, grid), m.share) for i, m in enumerate(mask.mixture)])
    if mask.by_noise:
        ratios: tuple[float, ...] = mask.by_noise
    elif isinstance(mask.ratio, tuple):
        ratios = mask_plan.ratios(mask.ratio, mask.schedule, mask.buckets)
    else:
        ratios = (mask.ratio,)
    # With nothing to hide there is nothing to gather: the dense path.
    kinds = [mask.kind if ratio or len(ratios) == 1 else "none" for ratio in ratios]
    if mask.kind == "none" and len(ratios) > 1:
        raise InputError("mask.kind: got none with several ratios; choose patch, block, crop or route")
    maskings = [
        masking(kind, grid, ratio, block=mask.block, offset=mask.offset)
        for kind, ratio in zip(kinds, ratios, strict=True)
    ]
    return mask_plan.by_noise(maskings) if mask.by_noise else mask_plan.over_stage(maskings)


def _part(part: MaskPart, number: int, grid: Grid) -> Masking:
    try:
        return masking(part.kind, grid, part.ratio, block=part.block, offset=part.offset)
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
