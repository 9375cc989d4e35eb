"""Numbers passed on to TensorBoard or Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from maskdm.errors import InputError

Track = Callable[[Mapping[str, float], int], None]


def trackers(names: tuple[str, ...], folder: Path, settings: dict[str, object]) -> list[Track]:
    """Functions that pass on numbers to the services asked for.

    Raises:
        InputError: one that is not installed.
    """
    return [{"tensorboard": _tensorboard, "wandb": _wandb}[name](folder, settings) for name in names]


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuses a tracker that is not installed, before anything is made."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise InputError(f"log.track: {name} is not installed; pip install {name}") from None


def _tensorboard(folder: Path, settings: dict[str, object]) -> Track:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def track(values: Mapping[str, float], images: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, images)
        writer.flush()

    return track


def _wandb(folder: Path, settings: dict[str, object]) -> Track:
    wandb = importlib.import_module("wandb")
    run = wandb.init(
        project="maskdm", name=folder.name, id=folder.name, dir=str(folder), config=settings, resume="allow"
    )

    def track(values: Mapping[str, float], images: int) -> None:
        run.log({**values, "images": images})

    return track
