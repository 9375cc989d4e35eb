"""A model in a few words, from settings as they stand in a file; knows no torch, so that the report can use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Settings = Mapping[str, Any]

ALWAYS = ("width", "depth", "heads")
"""Settings of a model that are told where there are any."""
DEFAULTS = {
    "levels": [1, 2, 2],
    "attention_levels": 1,
    "qkv_bias": False,
    "time_mlp": False,
    "mixer_depth": 0,
    "bottleneck": 128,
    "class_tokens": 8,
    "haar_levels": 0,
}
"""Those that are told where they are not these."""


def backbone(model: Settings) -> str:
    """The network: "uvit, patches of 2 px, width 96, depth 5, heads 4"."""
    words = [str(model.get("backbone", "unknown"))]
    if model.get("patch_size"):
        words.append(f"patches of {model['patch_size']} px")
    words += [_one(key, model[key]) for key in ALWAYS if model.get(key) is not None]
    words += [_one(key, model[key]) for key, usual in DEFAULTS.items() if model.get(key, usual) != usual]
    options = model.get("options")
    words += [f"{key} {value}" for key, value in options.items()] if isinstance(options, Mapping) else []
    return ", ".join(words)


def process(settings: Settings) -> str:
    """How noise is mixed in: "ddpm, cosine schedule, 1000 levels"."""
    return ", ".join(_process(settings))


def _process(p: Settings) -> Iterator[str]:
    kind = p.get("kind", "ddpm")
    yield str(kind)
    if kind in ("ddpm", "vp"):
        yield f"{p.get('schedule', 'unknown')} schedule"
    if kind == "ddpm" and p.get("timesteps"):
        yield f"{p['timesteps']} levels"
    if p.get("shift", 1) != 1:
        yield f"shifted by {_number(p['shift'])}"
    if p.get("zero_terminal"):
        yield "noise alone at the end"
    for key in ("sigma_min", "sigma_max"):
        if p.get(key) is not None:
            yield f"{key.replace('_', ' ')} {_number(p[key])}"
    if p.get("time_law", "auto") != "auto":
        yield f"{p['time_law']} law of t"
    for key in ("time_mean", "time_std"):
        if p.get(key) is not None:
            yield f"{key.replace('time_', '')} {_number(p[key])}"


def objective(settings: Settings) -> str:
    """What is predicted and how errors count: "predicts x0, loss on velocity"."""
    words = [f"predicts {settings.get('prediction', 'unknown')}"]
    if settings.get("loss", "same") not in ("same", settings.get("prediction")):
        words.append(f"loss on {settings['loss']}")
    if settings.get("weight", "uniform") != "uniform":
        words.append(f"weight {settings['weight']}")
    return ", ".join(words)


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _one(key: str, value: object) -> str:
    name = key.replace("_", " ")
    if value is True:
        return name
    return f"{name} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
