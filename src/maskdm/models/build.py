"""From a description of a model to its parts: backbone, objective, denoiser."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch
from torch import nn

from maskdm.config.model_config import ModelConfig, OwnBackboneConfig
from maskdm.config.process_config import (
    DDPMConfig,
    EDMConfig,
    FlowConfig,
    LogitTimeConfig,
    ProcessConfig,
    VEConfig,
    VPConfig,
)
from maskdm.diffusion import schedules, time_distributions
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.patches import patch_grid
from maskdm.diffusion.prediction import PREDICTIONS, Prediction, check_bounded, check_prediction, precondition
from maskdm.diffusion.process import DiscreteProcess, Process
from maskdm.diffusion.weighting import Weighting, min_snr, p2, uniform, uniform_in
from maskdm.errors import ArgumentError, within
from maskdm.models import jit, unet, uvit
from maskdm.models.haar import Haar, check_levels
from maskdm.models.spec import ModelSpec

BACKBONES: dict[str, type[nn.Module]] = {"uvit": uvit.UViT, "jit": jit.JiT, "unet": unet.UNet}
SIZES = {"uvit": uvit.SIZES, "jit": jit.SIZES, "unet": unet.SIZES}
GIVEN = ("image_size", "channels", "patch_size", "classes")
"""Arguments that every backbone is given beside its settings."""

# --- the network ------------------------------------------------------------------------------------------------------


def backbone(spec: ModelSpec) -> nn.Module:
    """A fresh backbone as `spec` says, from torch's global random state.

    Raises:
        InputError: options that the backbone does not have, or that do not fit one another or the images.
    """
    model, levels = spec.model, spec.model.haar_levels
    (height, width), scale = spec.image_size, 2**levels
    with within("model.", levels="haar_levels"):
        check_levels(levels, model.patch_size)
    with within("model."):
        patch_grid(spec.image_size, model.patch_size)
        network = constructor(model.backbone)
        if isinstance(model, OwnBackboneConfig):
            _check_signature(model, network)
        inner = network(
            image_size=(height // scale, width // scale),
            channels=spec.channels * scale**2,
            patch_size=model.patch_size // scale,
            classes=len(spec.class_names),
            **model.arguments(),
        )
    return Haar(inner, levels) if levels else inner


def constructor(backbone: str) -> Callable[..., nn.Module]:
    """The class of a backbone; one of the user's own is imported, also from the folder where he stands.

    Args:
        backbone: uvit, jit, unet or module:Class.

    Raises:
        ArgumentError: there is no such class.
    """
    if backbone in BACKBONES:
        return BACKBONES[backbone]
    module, _, name = backbone.partition(":")
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # as with python -m; last, so that it hides nothing
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ArgumentError("backbone", f"cannot import {backbone} ({error})") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ArgumentError("backbone", got=backbone, wanted="a class of torch modules")
    return found


def _check_signature(model: OwnBackboneConfig, network: Callable[..., nn.Module]) -> None:
    """Refuses arguments that a class of the user's own does not take, and such a class that lacks some.

    Raises:
        ArgumentError: one of the model's settings, `options.NAME` for one of those.
    """
    parameters = inspect.signature(network).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = model.arguments()
    for key, value in names.items():
        if key in GIVEN or not (takes_all or key in parameters):
            name = f"options.{key}" if key in model.options else key
            raise ArgumentError(name, f"the backbone {model.backbone} has no such option", got=value)
    lacking = [] if takes_all else [key for key in GIVEN if key not in parameters]
    if lacking:
        remedy = "see docs/backbones.md for what a backbone is given"
        raise ArgumentError("backbone", f"{model.backbone} does not take {', '.join(lacking)}", remedy=remedy)
    for key, parameter in parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if not optional and key not in (*names, *GIVEN):
            raise ArgumentError(f"options.{key}", f"missing; the backbone {model.backbone} needs it")


def resolved_model(model: ModelConfig) -> ModelConfig:
    """With width, depth and heads filled in from the size, and a class of the user's own by the name it has itself.

    Raises:
        InputError: there is no such class.
    """
    if isinstance(model, OwnBackboneConfig):
        with within("model."):
            found = constructor(model.backbone)
        module, name = found.__module__, found.__qualname__
        if getattr(sys.modules.get(module), name, None) is found:  # not where another module only passes it on
            return model.model_copy(update={"backbone": f"{module}:{name}"})
        return model
    sizes: Mapping[str, int] = SIZES[model.backbone][model.size]
    return model.model_copy(update={k: v for k, v in sizes.items() if getattr(model, k) is None})


def routes(model: ModelConfig) -> bool:
    """Whether patches can bypass the middle of this backbone."""
    with within("model."):
        return bool(getattr(constructor(model.backbone), "routes", False))


# --- the objective ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """What is learned: how images are noised, what of them is predicted, and how errors count.

    Attributes:
        process: the forward process.
        prediction: what the network's output means.
        weighting: of its errors at different noise levels.
    """

    process: Process
    prediction: Prediction
    weighting: Weighting


def make_objective(config: ProcessConfig) -> Objective:
    """The objective that settings ask for, checked.

    Raises:
        InputError: the process cannot be, or cannot carry the prediction or the quantity of the loss; see
            `maskdm.diffusion.prediction.check_prediction`.
    """
    with within("process."):
        process, prediction = _process(config), _prediction(config.prediction, config)
        check_prediction(process, prediction)
    if config.loss != "same":
        with within("process.", prediction="loss"):
            check_bounded(process, _prediction(config.loss, config))
    return Objective(process, prediction, _weighting(config))


def _process(config: ProcessConfig) -> Process:
    match config:
        case DDPMConfig():
            return _ddpm(config)
        case VPConfig():
            return schedules.vp(config.schedule, shift=config.shift, time_distribution=_logit_time(config))
        case FlowConfig():
            return schedules.flow(shift=config.shift, time_distribution=_logit_time(config))
        case VEConfig():
            return schedules.ve(config.sigma_min, config.sigma_max, config.sigma_data, _log_time(config))
        case EDMConfig():
            return schedules.edm(config.sigma_min, config.sigma_max, config.sigma_data, _log_time(config))
        case _:
            assert_never(config)


def _ddpm(config: DDPMConfig) -> DiscreteProcess:
    made = {"linear": schedules.linear, "cosine": schedules.cosine, "sigmoid": schedules.sigmoid}[config.schedule]
    table = schedules.shifted(made(config.timesteps), config.shift)
    return schedules.zero_terminal(table) if config.zero_terminal else table


def _logit_time(config: LogitTimeConfig) -> time_distributions.TimeDistribution:
    """Distribution of a time between 0 and 1."""
    if config.distribution == "uniform":
        return time_distributions.uniform_between(1e-3, 1.0)
    mean = 0.0 if config.time_mean is None else config.time_mean
    return time_distributions.logit_normal(mean, 1.0 if config.time_std is None else config.time_std)


def _log_time(config: VEConfig | EDMConfig) -> time_distributions.TimeDistribution:
    """Distribution of a time that is sigma."""
    if config.distribution == "uniform":
        return time_distributions.log_uniform(config.sigma_min, config.sigma_max)
    mean = -1.2 if config.time_mean is None else config.time_mean
    return time_distributions.log_normal(mean, 1.2 if config.time_std is None else config.time_std)


def _prediction(name: str, config: ProcessConfig) -> Prediction:
    return precondition(config.sigma_data) if name == "F" else PREDICTIONS[name]


def _weighting(config: ProcessConfig) -> Weighting:
    match config.weight:
        case "min-snr":
            return min_snr()
        case "p2":
            return p2()
        case "edm":
            return uniform_in(_prediction("F", config))
        case "uniform":
            if config.loss in ("same", config.prediction):
                return uniform
            return uniform_in(_prediction(config.loss, config))


# --- both -------------------------------------------------------------------------------------------------------------


def denoiser(spec: ModelSpec, network: nn.Module, objective: Objective | None = None) -> Denoiser:
    """The denoiser around a backbone; it follows the backbone's weights and device.

    Args:
        spec: the model.
        network: its backbone.
        objective: that of `spec.process`, where it exists already.
    """
    found = make_objective(spec.process) if objective is None else objective
    parameter = next(network.parameters(), None)
    return Denoiser(
        backbone=network,
        process=found.process,
        prediction=found.prediction,
        channels=spec.channels,
        image_size=spec.image_size,
        patch_size=spec.model.patch_size,
        class_names=spec.class_names,
        device=torch.device("cpu") if parameter is None else parameter.device,
        weighting=found.weighting,
    )
