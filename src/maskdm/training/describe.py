"""What a person is told before a run: the task, its stages, and what its split will not allow."""

from __future__ import annotations

import torch

from maskdm.data.split import LEAST_TO_AUDIT
from maskdm.models import build
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime
from maskdm.training.prepare import Prepared
from maskdm.training.stage_masks import remarks
from maskdm.training.stage_specs import says_of_model
from maskdm.training.stages import total_steps


def warn_of_roles(prepared: Prepared, console: Console) -> None:
    """Says before a run what its split will not allow after it."""
    counts = prepared.dataset.counts
    if not counts["heldout"]:
        console.warn("no image is held out, so that there will be no held-out error and no audit; see data.heldout")
        return
    names = {"member": "to train on", "heldout": "held out", "calibration": "for calibration"}
    few = [f"{counts[role]:,} {name}" for role, name in names.items() if counts[role] < LEAST_TO_AUDIT]
    if few:
        console.warn(
            f"too few images for an audit of this run, which needs {LEAST_TO_AUDIT} of each kind: {', '.join(few)}; "
            "data.heldout and data.calibration are shares of all images"
        )


def describe_task(prepared: Prepared, runtime: Runtime, console: Console) -> None:
    """Says what is about to be trained, on what, and where a mask is not what was requested."""
    spec, counts = prepared.spec, prepared.dataset.counts
    height, width = spec.image_size
    classes = f", {len(spec.class_names)} classes" if spec.class_names else ""
    console.say(
        f"{len(prepared.dataset.images):,} images at {height} x {width} x {spec.channels}{classes}: "
        f"{counts['member']:,} to train on, {counts['heldout']:,} held out, {counts['calibration']:,} for calibration"
    )
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build.backbone(spec).parameters())
    patches, side = prepared.masks[0].maskings[0].num_patches, spec.model.patch_size
    precision = "fp32" if runtime.precision == "no" else runtime.precision
    processes = f", {runtime.world_size} processes" if runtime.world_size > 1 else ""
    console.say(
        f"{spec.model.backbone}, {parameters / 1e6:.2f} M parameters, {patches:,} patches of {side} px; "
        f"{runtime.device}, {precision}{processes}"
    )
    for i, (stage, masks) in enumerate(zip(prepared.config.stages, prepared.masks, strict=True)):
        for line in remarks(masks, prepared.stage_spec(i)):
            console.warn(f"stage {stage.name}: {line}")
        steps, decay = total_steps(stage), prepared.config.ema.decay
        if steps and decay != "power" and steps * (1 - decay) < 1:
            console.warn(
                f"stage {stage.name}: ema.decay {decay:g} averages over about {1 / (1 - decay):,.0f} steps, but the "
                f"stage has {steps:,}; its average will still resemble its start"
            )


def describe_stages(prepared: Prepared) -> tuple[str, ...]:
    """What would be done, stage by stage, a line each."""
    lines = []
    for i, (stage, mask) in enumerate(zip(prepared.config.stages, prepared.masks, strict=True)):
        steps, own = total_steps(stage), says_of_model(prepared.spec, stage)
        length = f"{steps:,} steps, {steps * stage.batch_size:,} images" if steps else f"{stage.minutes:g} minutes"
        start = stage.init_from if stage.init_from != "previous" or i else "fresh weights"
        rate = f"{stage.optimizer}, lr {stage.lr:g} {stage.lr_schedule}"
        lines.append(
            f"stage {i + 1}, {stage.name}: {length}, batch {stage.batch_size}, {rate}; "
            f"{f'{own}; ' if own else ''}{mask}; from {start}"
        )
    return tuple(lines)
