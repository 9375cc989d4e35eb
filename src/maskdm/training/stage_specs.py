"""The model of each stage: the run's, or the same network for smaller images or other patches (coarse to fine).

What is released is the run's model, which the last stage trains. A stage before it may see images averaged down, may
cut them into other patches, or both; where the next stage sees them otherwise, its network takes over the weights as
with `init_from` between runs (`maskdm.models.transfer`).

Averaging k x k pixels averages their noise too, to 1/k of it. So the whole of an image, which a smaller one is, has the
same signal-to-noise ratio in both where sigma / alpha of the smaller one is 1/k of the larger one's: the shift of
Hoogeboom et al. 2023 (arXiv 2301.11093, eq. 11) and Esser et al. 2024 (arXiv 2403.03206, eq. 23). That is `shift`, and
not the default: where the patch size stays, what a network knows of the noise of a patch stays right without, and both
the change and the end were better (docs/log.md).
"""

from __future__ import annotations

import math

import torch

from maskdm.config.process_config import LogTimeConfig, ProcessConfig, ShiftedConfig
from maskdm.config.schema import Config, as_size
from maskdm.config.stage_config import StageConfig
from maskdm.config.validate import validate
from maskdm.diffusion.patches import patch_grid
from maskdm.errors import ArgumentError, InputError
from maskdm.models import build, transfer
from maskdm.models.spec import ModelSpec


def stage_spec(spec: ModelSpec, stage: StageConfig) -> ModelSpec:
    """The model that a stage trains; `spec` itself where the stage says nothing of it.

    Args:
        spec: the run's model.
        stage: settings that `check_stage_specs` has passed.

    Raises:
        InputError: a shift that the process cannot take.
    """
    size = spec.image_size if stage.image_size is None else as_size(stage.image_size)
    patch_size = spec.model.patch_size if stage.patch_size is None else stage.patch_size
    if (size, patch_size, stage.shift) == (spec.image_size, spec.model.patch_size, 1.0):
        return spec
    return spec.model_copy(
        update={
            "image_size": size,
            "model": spec.model.model_copy(update={"patch_size": patch_size}),
            "process": shifted_process(spec.process, stage.shift),
        }
    )


def shifted_process(process: ProcessConfig, shift: float) -> ProcessConfig:
    """The process with sigma / alpha multiplied by `shift` throughout, in training too.

    Raises:
        InputError: options that get out of their range.
    """
    if shift == 1:
        return process
    changes: dict[str, float] = {}
    if isinstance(process, ShiftedConfig):
        changes = {"shift": process.shift * shift}
    elif isinstance(process, LogTimeConfig):  # whose time is sigma
        changes = {"sigma_min": process.sigma_min * shift, "sigma_max": process.sigma_max * shift}
        if process.distribution == "normal":
            mean = -1.2 if process.time_mean is None else process.time_mean
            changes["time_mean"] = mean + math.log(shift)
    made: ProcessConfig = validate(type(process), process.model_dump(mode="json") | changes)
    return made


def same_network(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether a network for one is a network for the other, whatever their processes."""
    return (one.model, one.image_size) == (other.model, other.image_size)


def says_of_model(spec: ModelSpec, stage: StageConfig) -> str:
    """What a stage's model has other than the run's, in words; "" where nothing."""
    own = stage_spec(spec, stage)
    if own == spec:
        return ""
    side, patches = own.model.patch_size, math.prod(patch_grid(own.image_size, own.model.patch_size))
    said = f"images of {px(own.image_size)}, {patches:,} patches of {side} px"
    return said if stage.shift == 1 else f"{said}, sigma / alpha times {stage.shift:g}"


def px(size: tuple[int, int]) -> str:
    """(32, 64) -> 32 x 64 px."""
    return f"{size[0]} x {size[1]} px"


# --- what can be refused before training ------------------------------------------------------------------------------


def check_stage_specs(config: Config, spec: ModelSpec) -> None:
    """Refuses sizes that stages cannot have, or between which weights cannot be handed over.

    Args:
        config: the settings.
        spec: the run's model.

    Raises:
        InputError: it names the setting of the stage.
    """
    last = len(config.stages) - 1
    before = spec
    for i, stage in enumerate(config.stages):
        name = f"stages.{i}."
        if stage.image_size is not None:
            _check_size(name, as_size(stage.image_size), spec.image_size)
        if i == last:
            _check_last(name, stage, spec)
        try:
            own = stage_spec(spec, stage)
        except InputError as error:
            raise InputError(f"{name}shift", f"process.{error}", got=stage.shift) from None
        if own != spec:
            _check_network(name, stage, own)
        if i and stage.init_from == "previous" and not same_network(before, own):
            _check_hand_over(i, before, own)
        before = own


def _check_size(name: str, size: tuple[int, int], run: tuple[int, int]) -> None:
    (h, w), (height, width) = size, run
    if height % h == 0 and width % w == 0 and height // h == width // w:
        return
    most = math.gcd(height, width)
    smaller = [k for k in range(2, most + 1) if most % k == 0][:3]
    sizes = [str(height // k) if height == width else f"[{height // k}, {width // k}]" for k in smaller]
    raise InputError(
        f"{name}image_size",
        got=size,
        wanted=f"{px(run)}, the run's, with both sides divided by one whole number",
        remedy=f"try {' or '.join(sizes)}" if sizes else "leave it out",
    )


def _check_last(name: str, stage: StageConfig, spec: ModelSpec) -> None:
    """What is sampled, evaluated and audited is what the last stage leaves."""
    remedy = "leave it out, or add a stage after this one"
    if stage.image_size is not None and as_size(stage.image_size) != spec.image_size:
        wanted = f"the run's {px(spec.image_size)} in the last stage, whose model the run is for"
        raise InputError(f"{name}image_size", got=stage.image_size, wanted=wanted, remedy=remedy)
    if stage.patch_size not in (None, spec.model.patch_size):
        wanted = f"model.patch_size, {spec.model.patch_size}, in the last stage, whose model the run is for"
        raise InputError(f"{name}patch_size", got=stage.patch_size, wanted=wanted, remedy=remedy)
    if stage.shift != 1:
        wanted = "1 in the last stage, whose model the run is for"
        raise InputError(f"{name}shift", got=stage.shift, wanted=wanted, remedy=f"{remedy}, or set process.shift")


def _check_network(name: str, stage: StageConfig, own: ModelSpec) -> None:
    """Whether there is such a network."""
    setting = f"{name}{'image_size' if stage.patch_size is None else 'patch_size'}"
    other = "patch_size" if stage.patch_size is None else "image_size"
    try:
        with torch.device("meta"):
            build.backbone(own)
    except ArgumentError as error:
        problem = error.problem or (f"wanted {error.wanted}" if error.wanted else str(error))
        got = own.image_size if stage.patch_size is None else own.model.patch_size
        size, side = px(own.image_size), own.model.patch_size
        problem = f"there is no network for images of {size} with patches of {side} px ({problem})"
        raise InputError(setting, problem, got=got, remedy=f"choose another, or {name}{other} to go with it") from None


def _check_hand_over(number: int, old: ModelSpec, new: ModelSpec) -> None:
    """Whether the weights of one stage fit the next.

    Raises:
        InputError: of the stage that differs from the run's model.
    """
    lost = transfer.unfitted(old, new)
    if not lost:
        return
    what = "image_size" if old.image_size != new.image_size else "patch_size"
    raise InputError(
        f"stages.{number - 1}.{what}",
        f"stage {number} could not take over {', '.join(lost)}, whose shape depends on it",
        remedy=f"say in the layout of {new.model.backbone} how it is fitted (docs/backbones.md), or leave this out",
    )
