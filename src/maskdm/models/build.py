"""From a description of a model to its parts: backbone, process, prediction, weighting, denoiser."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from maskdm.config.schema import ModelConfig, ModelSpec, ProcessConfig
from maskdm.diffusion import schedules
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.prediction import PREDICTIONS, Prediction, bounded, carry, precondition
from maskdm.diffusion.process import Process
from maskdm.diffusion.weighting import Weighting, min_snr, p2, uniform, uniform_in
from maskdm.errors import InputError
from maskdm.models import jit, unet, uvit
from maskdm.models.haar import Haar, check_levels

BACKBONES: dict[str, type[nn.Module]] = {"uvit": uvit.UViT, "jit": jit.JiT, "unet": unet.UNet}
SIZES = {"uvit": uvit.SIZES, "jit": jit.SIZES, "unet": unet.SIZES}
SHARED = ("backbone", "size", "patch_size", "classes", "haar_levels", "options")
"""Settings of a model that do not go to the backbone by their names."""
GIVEN = ("image_size", "channels", "patch_size", "classes")
"""What every backbone is told of the images."""


def backbone(spec: ModelSpec) -> nn.Module:
    """A fresh backbone as `spec` says, from torch's global random state.

    Raises:
        InputError: settings that the backbone does not have, or that do not fit one another or the images.
    """
    m = spec.model
    levels = m.haar_levels
    check_levels(levels, m.patch_size)
    (height, width), scale = spec.image_size, 2**levels
    if height % m.patch_size or width % m.patch_size:
        raise InputError(
            f"model.patch_size: got {m.patch_size}, but it must divide the image size {height} x {width}; "
            "change model.patch_size or data.image_size"
        )
    inner = constructor(m)(
        image_size=(height // scale, width // scale),
        channels=spec.channels * scale**2,
        patch_size=m.patch_size // scale,
        classes=len(spec.class_names),
        **_own(m),
    )
    return Haar(inner, levels) if levels else inner


def constructor(model: ModelConfig) -> Callable[..., nn.Module]:
    """The class of the backbone; one of the user's own is imported, also from the folder where he stands.

    Raises:
        InputError: there is no such class.
    """
    if model.backbone in BACKBONES:
        return BACKBONES[model.backbone]
    module, _, name = model.backbone.partition(":")
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # as with python -m; last, so that it hides nothing
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise InputError(f"model.backbone: got {model.backbone!r}, which cannot be imported ({error})") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise InputError(f"model.backbone: got {model.backbone!r}, which is no class of torch modules")
    return found


def _own(model: ModelConfig) -> dict[str, object]:
    """The settings that this backbone has; others must have been left alone.

    A class of the user's own gets what he set, and keeps its defaults where those of ours have the same names.
    """
    parameters = inspect.signature(constructor(model)).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    ours = model.backbone in BACKBONES
    given: dict[str, object] = {}
    for key, field in type(model).model_fields.items():
        value = getattr(model, key)
        if key in SHARED:
            continue
        if (key in parameters or takes_all) and (ours or field.default is None):
            if value is not None:
                given[key] = value
        elif value != field.default:
            hint = "" if ours else f"; what it takes itself is model.options.{key}"
            raise InputError(f"model.{key}: got {value}, but the backbone {model.backbone} has no such setting{hint}")
    for key, value in model.options.items():
        if ours or key in GIVEN or not (key in parameters or takes_all):
            raise InputError(f"model.options.{key}: got {value}, but the backbone {model.backbone} has no such option")
        given[key] = value
    lacking = [] if takes_all else [key for key in GIVEN if key not in parameters]
    if lacking:
        raise InputError(
            f"model.backbone: {model.backbone} does not take {', '.join(lacking)}; see docs/backbones.md for what a "
            "backbone is given"
        )
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in (*given, *GIVEN)
    ]
    if missing:
        section = "model" if ours else "model.options"
        raise InputError(f"{section}.{missing[0]}: missing; the backbone {model.backbone} needs it")
    return given


def settled(model: ModelConfig) -> ModelConfig:
    """With width, depth and heads filled in from the size, and a class of the user's own by the name it has itself."""
    if model.backbone not in BACKBONES:
        found = constructor(model)
        module, name = found.__module__, found.__qualname__
        if getattr(sys.modules.get(module), name, None) is found:  # not where another module only passes it on
            return model.model_copy(update={"backbone": f"{module}:{name}"})
        return model
    sizes = SIZES.get(model.backbone, {}).get(model.size, {})
    return model.model_copy(update={k: v for k, v in sizes.items() if getattr(model, k) is None})


def routes(model: ModelConfig) -> bool:
    """Whether patches can go around the middle of this backbone."""
    return bool(getattr(constructor(model), "routes", False))


def process(config: ProcessConfig) -> Process:
    """The forward process."""
    c = config
    if c.kind == "ddpm":
        made = {"linear": schedules.linear, "cosine": schedules.cosine, "sigmoid": schedules.sigmoid}[c.schedule]
        table = schedules.shifted(made(c.timesteps), c.shift)
        return schedules.zero_terminal(table) if c.zero_terminal else table
    if c.kind in ("ve", "edm"):
        usual = {"ve": (0.01, 50.0), "edm": (0.002, 80.0)}[c.kind]
        ends = (c.sigma_min or usual[0], c.sigma_max or usual[1])
        make = {"ve": schedules.ve, "edm": schedules.edm}[c.kind]
        return make(*ends, sigma_data=c.sigma_data, law=_law(c, -1.2, 1.2, schedules.log_normal, ends))
    law = _law(c, 0.0, 1.0, schedules.logit_normal, (1e-3, 1.0))
    return (
        schedules.vp(c.schedule, shift=c.shift, law=law) if c.kind == "vp" else schedules.flow(shift=c.shift, law=law)
    )


def _law(
    c: ProcessConfig,
    mean: float,
    std: float,
    normal: Callable[[float, float], schedules.Law],
    ends: tuple[float, float],
) -> schedules.Law | None:
    """The law of t where it is not the usual one of the process, else None."""
    if c.time_law == "uniform":
        return (schedules.log_uniform if c.kind in ("ve", "edm") else schedules.uniform)(*ends)
    if c.time_law == "auto" and c.time_mean is None and c.time_std is None:
        return None
    return normal(mean if c.time_mean is None else c.time_mean, std if c.time_std is None else c.time_std)


def prediction(config: ProcessConfig, name: str | None = None) -> Prediction:
    """What the network predicts, or the quantity called `name`."""
    name = name or config.prediction
    return precondition(config.sigma_data) if name == "F" else PREDICTIONS[name]


def weighting(config: ProcessConfig) -> Weighting:
    """How errors count."""
    if config.weight != "uniform":
        return {"min-snr": min_snr(), "p2": p2(), "edm": uniform_in(prediction(config, "F"))}[config.weight]
    if config.loss in ("same", config.prediction):
        return uniform
    return uniform_in(prediction(config, config.loss))


def check_process(config: ProcessConfig) -> None:
    """Refuses a prediction, or a quantity of the loss, that the process cannot carry.

    Raises:
        InputError: see `maskdm.diffusion.prediction.carry`.
    """
    carry(process(config), prediction(config))
    if config.loss != "same":
        bounded(process(config), prediction(config, config.loss), "process.loss")


def denoiser(spec: ModelSpec, network: nn.Module) -> Denoiser:
    """The denoiser around a backbone; it follows the backbone's weights and device."""
    parameter = next(network.parameters(), None)
    return Denoiser(
        backbone=network,
        process=process(spec.process),
        prediction=prediction(spec.process),
        channels=spec.channels,
        image_size=spec.image_size,
        patch_size=spec.model.patch_size,
        class_names=spec.class_names,
        device=torch.device("cpu") if parameter is None else parameter.device,
        weighting=weighting(spec.process),
    )
