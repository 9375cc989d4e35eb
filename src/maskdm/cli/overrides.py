"""Settings on the command line: --recipe, --config, a few flags, and key.sub=value."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from maskdm.errors import InputError

if TYPE_CHECKING:
    from maskdm.config.schema import Config

Words: TypeAlias = list[str]


def add_settings(p: argparse.ArgumentParser) -> None:
    """The options by which settings come in."""
    p.add_argument(
        "--data",
        metavar="DIR|FILE|hf:NAME",
        help="the pictures (data.path): a folder, .zip, .tar, .npz, or a hub's set",
    )
    p.add_argument("--recipe", metavar="NAME", help="shipped settings")
    p.add_argument("--config", metavar="FILE", type=Path, help="a file of settings (YAML)")
    p.add_argument("--image-size", "--resolution", metavar="N", help="pixels (data.image_size)")
    p.add_argument("--mixed-precision", metavar="bf16|fp16|no", help="arithmetic (train.mixed_precision)")
    p.add_argument("--seed", metavar="N", help="of everything random (train.seed)")


def settings_words(a: argparse.Namespace, words: Words) -> Words:
    """The flags as settings, before those that were written out, which win."""
    flags = {
        "data.path": a.data,
        "data.image_size": a.image_size,
        "train.mixed_precision": a.mixed_precision,
        "train.seed": a.seed,
    }
    return [f"{key}={value}" for key, value in flags.items() if value is not None] + words


def resolved(a: argparse.Namespace, words: Words) -> Config:
    """All settings, from `settings_words`."""
    from maskdm.config.resolve import resolve

    return resolve(recipe=a.recipe, file=a.config, overrides=words)


def check_words(words: Words, command: str) -> None:
    """Refuses what is no setting, with a hint where one was meant.

    Raises:
        InputError: an option, or the name of a file or folder.
    """
    stray = [word for word in words if word.startswith("-")]
    if stray:
        raise InputError(f"unknown option {stray[0]!r}; {_hint(stray[0])}see maskdm {command} --help")
    places = [word for word in words if "=" not in word and Path(word).exists()]
    if places:
        raise InputError(f"got {places[0]!r} by itself; for pictures to train on write --data {places[0]}")


def _hint(option: str) -> str:
    """--batch-size=8 -> where the setting of that name is, if there is one."""
    from maskdm.config.resolve import all_keys

    name = option.strip("-").partition("=")[0].replace("-", "_")
    keys = [key.replace(".N.", ".0.") for key in all_keys() if key.rpartition(".")[2] == name]
    return f"settings are written {keys[0]}=VALUE; " if keys else ""
