"""From settings to what is to be learned: pictures read and split, network and masks checked, as a task.

Everything that can be wrong is looked at here, before a folder is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from maskdm.config.schema import Config, ModelSpec, as_size
from maskdm.data.image_set import ImageSet, load_images
from maskdm.data.sources import open_source, settled_path
from maskdm.data.split import Role, assign_roles, given_roles, group_names, matching, read_salt
from maskdm.diffusion.mask_schedule import MaskPlan
from maskdm.diffusion.patches import patch_grid
from maskdm.errors import InputError
from maskdm.models import build
from maskdm.runtime import distributed as machine
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime
from maskdm.sampling.timesteps import sampling_times
from maskdm.training import stage_masks as masks
from maskdm.training.batches import TrainingSet
from maskdm.training.step import Task
from maskdm.training.store import place


@dataclass(frozen=True)
class Data:
    """All pictures that could be read, and of every one of them its role and, where there are groups, its group."""

    pictures: ImageSet
    roles: list[Role]
    groups: list[str] | None


ReadData = Callable[[Config, Console], Data]


@dataclass(frozen=True)
class Prepared:
    """Settings with nothing left on `auto` that decides the model, and the pictures they speak of.

    Attributes:
        config: the settings.
        pictures: all that could be read.
        roles: of every picture, in the same order.
        groups: likewise, or None.
        spec: the model.
        masks: of every stage, on the model's grid.
    """

    config: Config
    pictures: ImageSet
    roles: list[Role]
    groups: list[str] | None
    spec: ModelSpec
    masks: tuple[MaskPlan, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Pictures of every role."""
        return {role: self.roles.count(role) for role in get_args(Role)} | {"excluded": len(self.pictures.bad)}

    def rows(self, role: Role) -> np.ndarray:
        """Of the pictures that have this role."""
        return np.flatnonzero([each == role for each in self.roles])


def prepare(config: Config, console: Console, read: ReadData | None = None) -> Prepared:
    """Reads (by `read_data`, if nothing else is given) and splits the pictures, settles the model, checks its masks."""
    if not config.data.path:
        raise InputError("--data: missing; give a folder of pictures, a .zip, .tar or .npz, or hf:NAME")
    if not isinstance(config.data.image_size, str):  # what can be refused before anything is decoded
        patch_grid(as_size(config.data.image_size), config.model.patch_size)
    config = config.model_copy(update={"model": build.settled(config.model)})
    side = config.model.patch_size
    with torch.device("meta"):
        build.backbone(ModelSpec(model=config.model, process=config.process, image_size=(side, side), channels=3))
    build.check_process(config.process)
    data = (read or read_data)(config, console)
    pictures = data.pictures
    height, width, channels = pictures.images.shape[1:]
    settled = config.data.model_copy(
        update={"path": settled_path(config.data.path), "image_size": (height, width), "channels": channels}
    )
    config = config.model_copy(update={"data": settled})
    spec = ModelSpec(
        model=config.model,
        process=config.process,
        image_size=(height, width),
        channels=channels,
        class_names=pictures.class_names if config.model.classes == "auto" else (),
    )
    try:
        sampling_times(build.process(spec.process), build.prediction(spec.process), config.eval.sample_steps)
    except InputError as error:
        raise InputError(f"eval.sample_steps: {error}") from None
    plans = masks.mask_plans(config, spec)
    return Prepared(masks.settled(config, spec), pictures, data.roles, data.groups, spec, plans)


def read_data(config: Config, console: Console) -> Data:
    """Reads and splits the pictures."""
    data, cache = config.data, cache_dir(config)
    pictures = load_images(
        open_source(data.path),
        cache_dir=cache,
        say=console.warn,
        image_size=data.image_size,
        channels=data.channels,
        background=data.background,
        on_bad_image=data.on_bad_image,
        keep=data.store != "stream",
        progress=console.bar,
    )
    groups = group_names(pictures.names, data.group_by)
    salt = read_salt(data.salt, cache)
    if data.heldout_by is not None:
        given = matching(pictures.names, data.heldout_by)
        roles = given_roles(
            pictures.sha256_px, groups, given, salt=salt, files=pictures.sha256, calibration=data.calibration
        )
    else:
        roles = assign_roles(
            pictures.sha256_px,
            groups,
            salt=salt,
            files=pictures.sha256,
            heldout=data.heldout,
            calibration=data.calibration,
        )
    return Data(pictures, roles, groups)


def cache_dir(config: Config) -> Path:
    """Where decoded pictures are kept."""
    return usual_cache() if config.data.cache_dir == "auto" else Path(config.data.cache_dir).expanduser()


def usual_cache() -> Path:
    """The same where nobody says otherwise."""
    return Path(os.environ.get("MASKDM_CACHE") or Path.home() / ".cache" / "maskdm")


def load_as(path: str, console: Console, size: tuple[int, int, int] | None = None) -> ImageSet:
    """Pictures by themselves, with no role: as (H, W, C), or in the size and colour that they have."""
    return load_images(
        open_source(path),
        cache_dir=usual_cache(),
        say=console.warn,
        image_size="auto" if size is None else size[:2],
        channels="auto" if size is None else size[2],
        progress=console.bar,
    )


def task_of(prepared: Prepared, runtime: Runtime, members: np.ndarray) -> Task:
    """What is learned from the pictures in the rows `members`, on this machine."""
    config, spec, pictures = prepared.config, prepared.spec, prepared.pictures
    images = place(pictures.images, runtime.device, config.data.store, runtime.local_world_size)
    labels = pictures.labels if spec.class_names else None
    return Task(config, spec, TrainingSet(images, members, labels, len(spec.class_names)), prepared.masks, runtime)


SYNTHETIC = 512
"""Pictures of a synthetic set: more than a cache of the CPU holds."""


def synthetic(config: Config) -> Task:
    """The same with pictures of noise in memory, at 64 px and in RGB where the settings leave that to the data."""
    data = config.data
    height, width = as_size(64 if isinstance(data.image_size, str) else data.image_size)
    channels = 3 if isinstance(data.channels, str) else data.channels
    config = config.model_copy(update={"model": build.settled(config.model)})
    spec = ModelSpec(model=config.model, process=config.process, image_size=(height, width), channels=channels)
    build.check_process(config.process)
    runtime = machine.start(config.train)
    images = np.random.default_rng(0).integers(256, size=(SYNTHETIC, height, width, channels), dtype=np.uint8)
    store = place(images, runtime.device, data.store, runtime.local_world_size)
    plans = masks.mask_plans(config, spec)
    return Task(masks.settled(config, spec), spec, TrainingSet(store, np.arange(SYNTHETIC), None, 0), plans, runtime)
