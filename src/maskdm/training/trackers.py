"""Numbers passed on to TensorBoard or Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from maskdm.errors import InputError

Tracker = Callable[[Mapping[str, float], int], None]
"""Passes on numbers by name, measured after so many images."""


def make_trackers(names: tuple[str, ...], folder: Path, settings: dict[str, object]) -> list[Tracker]:
    """Functions that pass on numbers to the services asked for.

    Args:
        names: tensorboard, wandb.
        folder: of the run.
        settings: of the run.
    """
    return [{"tensorboard": _tensorboard, "wandb": _wandb}[name](folder, settings) for name in names]


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuses a tracker that is not installed, before anything is made.

    Raises:
        InputError: `log.track` names one that is not there.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise InputError("log.track", "is not installed", got=name, remedy=f"pip install {name}") from None


def _tensorboard(folder: Path, settings: dict[str, object]) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def track(values: Mapping[str, float], images: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, images)
        writer.flush()

    return track


def _wandb(folder: Path, settings: dict[str, object]) -> Tracker:
    wandb = importlib.import_module("wandb")
    run = wandb.init(
        project="maskdm", name=folder.name, id=folder.name, dir=str(folder), config=settings, resume="allow"
    )

    def track(values: Mapping[str, float], images: int) -> None:
        run.log({**values, "images": images})

    return track
