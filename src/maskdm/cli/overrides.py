"""Settings on the command line: --recipe, --config, a few options, and key.sub=value."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TypeAlias

from maskdm.errors import InputError

Words: TypeAlias = list[str]


def add_settings(p: argparse.ArgumentParser) -> None:
    """The options by which settings come in."""
    p.add_argument(
        "--data",
        metavar="DIR|FILE|hf:NAME",
        help="the images (data.path): a folder, .zip, .tar, .npz, or a Hugging Face data set",
    )
    p.add_argument("--recipe", metavar="NAME", help="shipped settings")
    p.add_argument("--config", metavar="FILE", type=Path, help="a file of settings (YAML)")
    p.add_argument("--image-size", "--resolution", metavar="N", help="in pixels (data.image_size)")
    p.add_argument("--mixed-precision", metavar="bf16|fp16|no", help="precision of the network (train.mixed_precision)")
    p.add_argument("--seed", metavar="N", help="of everything random (train.seed)")


def add_budget(p: argparse.ArgumentParser) -> None:
    """The time for which settings are chosen."""
    p.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="the time to train in, from the command to its end: settings are chosen for it by measuring this machine "
        "(default: 60, where no recipe and no length of a stage is given)",
    )
    p.add_argument("--hours", type=float, metavar="N", help="the same in hours")


def given(a: argparse.Namespace, words: Words) -> dict[str, Any]:
    """What `add_settings` and key.sub=value gave, as the functions of `maskdm.commands` take it."""
    check_words(words, a.command)
    flags = {
        "data.image_size": a.image_size,
        "train.mixed_precision": a.mixed_precision,
        "train.seed": a.seed,
    }
    settings = [f"{key}={value}" for key, value in flags.items() if value is not None] + words
    return {"data": a.data, "recipe": a.recipe, "config": a.config, "settings": settings}


def check_words(words: Words, command: str) -> None:
    """Refuses what is no setting, with a hint where one was meant.

    Raises:
        InputError: an option, or the name of a file or folder.
    """
    stray = [word for word in words if word.startswith("-")]
    if stray:
        raise InputError("", f"unknown option {stray[0]!r}", remedy=f"{_hint(stray[0])}see maskdm {command} --help")
    places = [word for word in words if "=" not in word and Path(word).exists()]
    if places:
        raise InputError("", f"got {places[0]!r} by itself", remedy=f"for images to train on write --data {places[0]}")


def _hint(option: str) -> str:
    """--batch-size=8 -> where the setting of that name is, if there is one."""
    from maskdm.config.keys import all_keys

    name = option.strip("-").partition("=")[0].replace("-", "_")
    keys = [key for key in all_keys() if key.rpartition(".")[2] == name]
    return f"settings are written {keys[0]}=VALUE; " if keys else ""
