"""From settings to what is to be learned: pictures read and split, network and masks checked, as a task.

Everything that can be wrong is looked at here, before a folder is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from maskdm.config.schema import Config, ModelSpec, as_size
from maskdm.data.dataset import Dataset, read_dataset
from maskdm.data.sources import settled_path
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
class Prepared:
    """Settings with nothing left on `auto` that decides the model, and the pictures they speak of.

    Attributes:
        config: the settings.
        dataset: all images that could be read, and their roles.
        spec: the model.
        masks: of every stage, on the model's grid.
    """

    config: Config
    dataset: Dataset
    spec: ModelSpec
    masks: tuple[MaskPlan, ...]


def check_settings(config: Config) -> Config:
    """Refuses what can be refused before anything is decoded; the settings with the model's sizes filled in.

    Raises:
        InputError: no data, or settings of the model and the process that do not fit.
    """
    if not config.data.path:
        raise InputError("--data: missing; give a folder of pictures, a .zip, .tar or .npz, or hf:NAME")
    if not isinstance(config.data.image_size, str):  # what can be refused before anything is decoded
        patch_grid(as_size(config.data.image_size), config.model.patch_size)
    config = config.model_copy(update={"model": build.settled(config.model)})
    side = config.model.patch_size
    with torch.device("meta"):
        build.backbone(ModelSpec(model=config.model, process=config.process, image_size=(side, side), channels=3))
    build.check_process(config.process)
    return config


def prepare(config: Config, console: Console, dataset: Dataset | None = None) -> Prepared:
    """Reads and splits the images, unless `dataset` has them already, resolves the model, checks its masks."""
    config = check_settings(config)
    dataset = dataset or read_dataset(config.data, console)
    height, width, channels = dataset.images.images.shape[1:]
    settled = config.data.model_copy(
        update={"path": settled_path(config.data.path), "image_size": (height, width), "channels": channels}
    )
    config = config.model_copy(update={"data": settled})
    spec = ModelSpec(
        model=config.model,
        process=config.process,
        image_size=(height, width),
        channels=channels,
        class_names=dataset.images.class_names if config.model.classes == "auto" else (),
    )
    try:
        sampling_times(build.process(spec.process), build.prediction(spec.process), config.eval.sample_steps)
    except InputError as error:
        raise InputError(f"eval.sample_steps: {error}") from None
    plans = masks.mask_plans(config, spec)
    return Prepared(masks.settled(config, spec), dataset, spec, plans)


def task_of(prepared: Prepared, runtime: Runtime, members: np.ndarray) -> Task:
    """What is learned from the pictures in the rows `members`, on this machine."""
    config, spec, pictures = prepared.config, prepared.spec, prepared.dataset.images
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
