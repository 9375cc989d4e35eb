"""A model in a few words, from settings as they stand in a file, which may lack some or hold anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from maskdm.config.model_config import MODEL_VARIANTS
from maskdm.config.process_config import PROCESS_VARIANTS
from maskdm.config.section import Variants
from maskdm.errors import ArgumentError

Settings = Mapping[str, Any]


def summarize_model(model: Settings) -> str:
    """The network: "uvit, patches of 2 px, width 96, depth 5, heads 4"."""
    words = [str(model.get("backbone", "unknown"))]
    if model.get("patch_size"):
        words.append(f"patches of {model['patch_size']} px")
    sizes = ("width", "depth", "heads")
    words += [_option(key, model[key]) for key in sizes if model.get(key) is not None]
    changed = _changed(model, MODEL_VARIANTS)
    words += [_option(key, value) for key, value in changed.items() if key not in ("size", "options")]
    if model.get("haar_levels"):
        words.append(f"haar levels {model['haar_levels']}")
    options = model.get("options")
    words += [f"{key} {value}" for key, value in options.items()] if isinstance(options, Mapping) else []
    return ", ".join(words)


def summarize_process(process: Settings) -> str:
    """How images are noised: "ddpm, cosine schedule, 1000 timesteps"."""
    return ", ".join(_process_words(process))


def _process_words(process: Settings) -> Iterator[str]:
    kind = process.get("kind", PROCESS_VARIANTS.default)
    yield str(kind)
    if kind in PROCESS_VARIANTS.having("schedule"):
        yield f"{process.get('schedule', 'unknown')} schedule"
    if kind in PROCESS_VARIANTS.having("timesteps") and process.get("timesteps"):
        yield f"{process['timesteps']} timesteps"
    changed = _changed(process, PROCESS_VARIANTS)
    if "shift" in changed:
        yield f"shifted by {_number(changed['shift'])}"
    if changed.get("zero_terminal"):
        yield "noise alone at the end"
    for key in ("sigma_min", "sigma_max"):
        if key in changed:
            yield f"{key.replace('_', ' ')} {_number(changed[key])}"
    if "time_distribution" in changed:
        yield f"{changed['time_distribution']} distribution of t"
    for key in ("time_mean", "time_std"):
        if key in changed:
            yield f"{key.replace('time_', '')} {_number(changed[key])}"


def summarize_objective(process: Settings) -> str:
    """What is predicted and how errors count: "predicts x0, loss on velocity"."""
    words = [f"predicts {process.get('prediction', 'unknown')}"]
    if process.get("loss", "same") not in ("same", process.get("prediction")):
        words.append(f"loss on {process['loss']}")
    if process.get("weight", "uniform") != "uniform":
        words.append(f"weight {process['weight']}")
    return ", ".join(words)


def _changed(settings: Settings, variants: Variants) -> Settings:
    """Options of the backbone or process alone, of which `settings` have another value than the default."""
    try:
        section = variants.find(settings.get(variants.key, variants.default))
    except ArgumentError:
        return {}
    options = {key: field for key, field in section.model_fields.items() if key not in variants.base.model_fields}
    defaults = {key: list(f.default) if isinstance(f.default, tuple) else f.default for key, f in options.items()}
    return {key: settings[key] for key, usual in defaults.items() if settings.get(key, usual) != usual}


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _option(key: str, value: object) -> str:
    name = key.replace("_", " ")
    if value is True:
        return name
    return f"{name} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
