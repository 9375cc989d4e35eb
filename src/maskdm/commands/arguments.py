"""Arguments that several commands share: settings, a model, a backbone class."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from maskdm.config.resolve import COMMAND_LINE, resolve
from maskdm.config.schema import Config
from maskdm.errors import InputError, within
from maskdm.models import build
from maskdm.models.weights import load
from maskdm.profiling.budget import MOST_HOURS, TimeBudget
from maskdm.training.read_run import is_run

if TYPE_CHECKING:
    import torch
    from torch import nn

    from maskdm.diffusion.denoiser import Denoiser

Settings: TypeAlias = Mapping[str, object] | Sequence[str]
"""{"model.width": 64, "stages.0.steps": 100}, or ["model.width=64", "stages.0.steps=100"]."""
Precision: TypeAlias = Literal["auto", "bf16", "fp16", "no"]


def settings_words(settings: Settings | None) -> list[str]:
    """Settings as `key=value` words, in their order.

    Raises:
        InputError: one string in place of a list of them.
    """
    if settings is None:
        return []
    if isinstance(settings, str):
        raise InputError("settings", got=settings, wanted="a mapping, or a list of 'key=value'")
    if not isinstance(settings, Mapping):
        return list(settings)
    return [f"{key}={_as_word(value)}" for key, value in settings.items()]


def _as_word(value: object) -> str:
    """A value as it would be typed: text as it is, the rest as JSON, which is YAML too."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def read_settings(
    *,
    data: str | Path | None = None,
    recipe: str | None = None,
    config: str | Path | Config | None = None,
    settings: Settings | None = None,
) -> Config:
    """All settings: defaults < recipe < `config` < `data` and `settings`.

    Args:
        data: the images, `data.path`.
        recipe: the name of a shipped recipe.
        config: a YAML file, or settings that are resolved already.
        settings: single settings, over all others.

    Raises:
        InputError: an unknown recipe or setting, a value of the wrong type or out of its range, a recipe beside a
            `Config`.
    """
    words = [*([] if data is None else [f"data.path={data}"]), *settings_words(settings)]
    origin = "settings" if isinstance(settings, Mapping) else COMMAND_LINE
    if isinstance(config, Config):
        if recipe is not None:
            raise InputError("recipe", "is given with a Config, which has every setting", remedy="leave one out")
        return resolve(base=config, overrides=words, origin=origin) if words else config
    file = None if config is None else Path(config)
    return resolve(recipe=recipe, file=file, overrides=words, origin=origin)


def read_budget(
    minutes: float | None = None,
    hours: float | None = None,
    *,
    data: str | Path | None = None,
    recipe: str | None = None,
    config: str | Path | Config | None = None,
    settings: Settings | None = None,
) -> TimeBudget | None:
    """The time for which settings are to be chosen, and what is given of them; None where they have lengths.

    Args:
        minutes, hours: one of them, or neither.
        data, recipe, config, settings: as `read_settings`, whose errors come first.

    Raises:
        InputError: both times, or as `TimeBudget.of`.
    """
    if minutes is not None and hours is not None:
        raise InputError("hours", "is given with minutes", got=hours, remedy="leave one out")
    words = [*([] if data is None else [f"data.path={data}"]), *settings_words(settings)]
    base = config if isinstance(config, Config) else None
    file = None if config is None or base is not None else Path(str(config))
    for name, value, most in (("minutes", minutes, MOST_HOURS * 60), ("hours", hours, MOST_HOURS)):
        if value is not None and not 0 < value <= most:
            raise InputError(name, got=value, wanted=f"more than 0 and at most {most:,}")
    minutes = 60 * hours if hours is not None else minutes
    return TimeBudget.of(minutes, recipe=recipe, file=file, words=words, base=base)


def require_data(config: Config) -> None:
    """Refuses settings that name no images.

    Raises:
        InputError: `data.path` is empty.
    """
    if not config.data.path:
        raise InputError("data", "missing", remedy="give a folder of images, a .zip, .tar or .npz, or hf:NAME")


def backbone_class(name: str | type[nn.Module] | None) -> type[nn.Module] | None:
    """The class that the user named, `module:Class`: whoever names it wants it imported.

    Raises:
        InputError: one of ours, or no such class.
    """
    if not isinstance(name, str):
        return name
    if ":" not in name:
        raise InputError("backbone", got=name, wanted="module:Class", remedy="for one of ours leave it out")
    with within(""):
        found = build.constructor(name)
    return found if isinstance(found, type) else None


def open_model(
    model: str | Path,
    *,
    weights: str = "ema",
    device: torch.device,
    backbone: str | type[nn.Module] | None = None,
    mixed_precision: Precision = "no",
    compile: bool = False,
) -> Denoiser:
    """A denoiser from a run folder or a weights file; see `maskdm.load`.

    Raises:
        InputError: nothing there that can be read as a model, or a backbone that was not given.
    """
    return load(
        Path(model),
        weights=weights,
        device=device,
        backbone=backbone_class(backbone),
        mixed_precision=mixed_precision,
        compile=compile,
    )


def is_model(path: Path) -> bool:
    """Whether a path is a run or a weights file, rather than images."""
    return is_run(path) or path.suffix == ".safetensors"
