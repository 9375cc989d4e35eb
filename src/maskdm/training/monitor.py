"""Looking at a model along the way: held-out error, sample grids, trackers. Nothing here changes what is learned."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskdm.config.schema import EvalConfig
from maskdm.data.write import save_grid
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import fixed_questions, image_error
from maskdm.diffusion.patches import from_uint8, to_uint8
from maskdm.errors import InputError
from maskdm.runtime.distributed import Runtime
from maskdm.sampling import ranks as dealing
from maskdm.sampling.sample import plan

CHUNK = 64


@dataclass(frozen=True)
class HeldOut:
    """Questions about held-out images that stay the same for a whole run, on the device."""

    x_0: Tensor
    t: Tensor
    eps: Tensor
    label: Tensor | None

    @staticmethod
    def ask(images: np.ndarray, labels: np.ndarray | None, denoiser: Denoiser, device: torch.device) -> HeldOut:
        """From (N, H, W, C) uint8 pictures and their labels."""
        x_0 = from_uint8(torch.from_numpy(images)).permute(0, 3, 1, 2).contiguous()
        t, eps = fixed_questions(denoiser, x_0.shape)
        label = None if labels is None else torch.from_numpy(labels).to(device)
        return HeldOut(x_0.to(device), t.to(device, torch.float32), eps.to(device), label)

    def __len__(self) -> int:
        return len(self.x_0)

    @torch.no_grad()
    def error(self, denoiser: Denoiser, runtime: Runtime) -> float:
        """Mean squared error of the estimated image over the questions, in float32; see `image_error`.

        Every rank answers as many of them, a few perhaps for the second time, which does not count; all hear the mean.
        """
        total = 0.0
        for numbers in torch.split(torch.tensor(runtime.turns(len(self)), device=self.x_0.device), CHUNK):
            part = numbers % len(self)
            label = None if self.label is None else self.label[part]
            errors = image_error(denoiser, self.x_0[part], self.t[part], self.eps[part], label=label)
            total += float((errors * (numbers < len(self))).sum())
        return runtime.total(total) / len(self)


def write_samples(
    denoiser: Denoiser, config: EvalConfig, path: Path, runtime: Runtime, report: Callable[[int], None]
) -> None:
    """A grid of pictures by DDIM from seeds 0, 1, ..., to be compared over time; every rank makes some."""
    how = plan(denoiser, sampler="ddim", steps=config.sample_steps, seeds=range(config.samples))
    unit = dealing.make(how, config.samples, runtime, batch_size=CHUNK, report=report)
    if runtime.main:
        save_grid(to_uint8(unit).permute(0, 2, 3, 1).numpy(), path)


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
