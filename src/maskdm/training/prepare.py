"""From settings to what is to be learned: images read and split, network and masks checked, as a task.

Everything that can be wrong is looked at here, before a folder is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from maskdm.config.schema import Config, as_size
from maskdm.data.dataset import Dataset, read_dataset
from maskdm.data.sources import resolved_path
from maskdm.diffusion.mask_schedule import MaskSchedule
from maskdm.diffusion.patches import patch_grid
from maskdm.errors import InputError, within
from maskdm.evaluation.features import check_features
from maskdm.models import build
from maskdm.models.build import Objective
from maskdm.models.spec import ModelSpec
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime, init_runtime
from maskdm.runtime.host_memory import host_available_bytes, require_memory
from maskdm.runtime.memory import available_bytes
from maskdm.sampling.timesteps import sampling_times
from maskdm.training import stage_masks as masks
from maskdm.training.batches import TrainingSet
from maskdm.training.optim import check_optimizer, moment_bytes
from maskdm.training.stage_specs import check_stage_specs, stage_spec
from maskdm.training.step import Task
from maskdm.training.store import make_store


@dataclass(frozen=True)
class Prepared:
    """Settings with nothing left on `auto` that decides the model, and the images they speak of.

    Attributes:
        config: the settings.
        dataset: all images that could be read, and their roles.
        spec: the model, which the last stage trains.
        objective: that of the model's process.
        masks: of every stage, on the grid of its own model.
    """

    config: Config
    dataset: Dataset
    spec: ModelSpec
    objective: Objective
    masks: tuple[MaskSchedule, ...]

    def stage_spec(self, number: int) -> ModelSpec:
        """The model that stage `number` (from 0) trains."""
        return stage_spec(self.spec, self.config.stages[number])


def check_settings(config: Config) -> tuple[Config, Objective]:
    """Refuses what can be refused before anything is decoded; the settings with the model's sizes filled in.

    Returns:
        The settings, and the objective that they ask for.

    Raises:
        InputError: no data, or settings of the model and the process that do not fit.
    """
    if not config.data.path:
        raise InputError("data.path", "missing", wanted="a folder of images, a .zip, .tar or .npz, or hf:NAME")
    if not isinstance(config.data.image_size, str):
        with within("", image_size="data.image_size", patch_size="model.patch_size"):
            patch_grid(as_size(config.data.image_size), config.model.patch_size)
    if config.eval.scores is not None:
        with within("eval.", features="scores"):
            check_features(config.eval.scores)
    config = config.model_copy(update={"model": build.resolved_model(config.model)})
    side = config.model.patch_size
    check_optimizers(config, ModelSpec(model=config.model, process=config.process, image_size=(side, side), channels=3))
    objective = build.make_objective(config.process)
    if not isinstance(config.data.image_size, str):
        size = as_size(config.data.image_size)
        check_stage_specs(config, ModelSpec(model=config.model, process=config.process, image_size=size, channels=3))
    return config, objective


def check_optimizers(config: Config, spec: ModelSpec) -> None:
    """Whether every stage's optimizer can be had, and has something to do in this network.

    Raises:
        InputError: it has not; or the network cannot be.
    """
    with torch.device("meta"):
        network = build.backbone(spec)
    for i, stage in enumerate(config.stages):
        with within(f"stages.{i}."):
            check_optimizer(network, stage)


def prepare(config: Config, console: Console, dataset: Dataset | None = None) -> Prepared:
    """Reads and splits the images, resolves the model, checks its masks.

    Args:
        config: the settings.
        console: warns of what cannot be read, and shows progress.
        dataset: the images, where they were read before.

    Raises:
        InputError: settings or images that cannot be used.
    """
    config, objective = check_settings(config)
    dataset = dataset or read_dataset(config.data, console)
    height, width, channels = dataset.images.images.shape[1:]
    resolved = config.data.model_copy(
        update={"path": resolved_path(config.data.path), "image_size": (height, width), "channels": channels}
    )
    config = config.model_copy(update={"data": resolved})
    spec = ModelSpec(
        model=config.model,
        process=config.process,
        image_size=(height, width),
        channels=channels,
        class_names=dataset.images.class_names if config.model.classes == "auto" else (),
    )
    with within("eval.", steps="sample_steps"):
        sampling_times(objective.process, objective.prediction, config.eval.sample_steps)
    check_stage_specs(config, spec)
    schedules = masks.mask_schedules(config, spec)
    return Prepared(masks.resolved_masks(config, spec), dataset, spec, objective, schedules)


def check_memory(config: Config, spec: ModelSpec, runtime: Runtime) -> None:
    """Refuses, before any of it is taken, what no memory here could hold: the network with all that training keeps of
    it, the images of a batch, the images that are generated to be looked at.

    Args:
        config: the settings.
        spec: the model.
        runtime: the machine.

    Raises:
        InputError: it does not fit, by an estimate that leaves out the network's activations.
    """
    free, host = available_bytes(runtime.device), host_available_bytes()
    specs = [stage_spec(spec, stage) for stage in config.stages]
    with torch.device("meta"):
        networks = [build.backbone(own) for own in specs]
    parameters = max(sum(p.numel() for p in network.parameters()) for network in networks)
    image = 4 * spec.channels * math.prod(spec.image_size)
    kept = 3 * 4 * parameters  # weights, gradients and the average, in float32
    kept += max(moment_bytes(network, stage) for network, stage in zip(networks, config.stages, strict=True))
    shards = runtime.world_size if config.train.parallel == "fsdp" else 1
    with within(""):
        what = f"{parameters:,} parameters, their gradients, moments and average"
        remedy = "choose a smaller model.size, or model.width and model.depth"
        require_memory(kept // shards, free, "model", what=what, remedy=remedy)
        for i, stage in enumerate(config.stages):
            what, remedy = "the images of a batch and their noise", "choose a smaller batch"
            name = f"stages.{i}.batch_size"
            need = (image + 4 * spec.channels * math.prod(specs[i].image_size)) * stage.batch_size
            require_memory(need, free, name, got=stage.batch_size, what=what, remedy=remedy)
        generated = {"samples": config.eval.samples} | (
            {} if config.eval.scores is None else {"score_images": config.eval.score_images}
        )
        for key, count in generated.items():
            what, remedy = "the generated images", "choose fewer"
            require_memory(image * count, host, f"eval.{key}", got=count, what=what, remedy=remedy)


def make_task(prepared: Prepared, runtime: Runtime, members: np.ndarray) -> Task:
    """What is learned on this machine.

    Args:
        prepared: settings and images.
        runtime: the machine.
        members: (M,) rows of the images to train on.

    Raises:
        InputError: the images cannot lie where `data.store` wants them.
    """
    config, spec, images = prepared.config, prepared.spec, prepared.dataset.images
    store = make_store(images.images, runtime.device, config.data.store, runtime.local_world_size)
    labels = images.labels if spec.class_names else None
    data = TrainingSet(store, members, labels, len(spec.class_names))
    return Task(config, spec, prepared.objective, data, prepared.masks, runtime)


SYNTHETIC = 512
"""Images of a synthetic set: more than a cache of the CPU holds."""


def synthetic_task(config: Config) -> Task:
    """The same with images of noise in memory, at 64 px and in RGB where the settings leave that to the data.

    Raises:
        InputError: settings that do not fit.
    """
    data = config.data
    height, width = as_size(64 if isinstance(data.image_size, str) else data.image_size)
    channels = 3 if isinstance(data.channels, str) else data.channels
    config = config.model_copy(update={"model": build.resolved_model(config.model)})
    spec = ModelSpec(model=config.model, process=config.process, image_size=(height, width), channels=channels)
    objective = build.make_objective(config.process)
    runtime = init_runtime(config.train)
    check_stage_specs(config, spec)
    check_optimizers(config, spec)
    check_memory(config, spec, runtime)
    images = np.random.default_rng(0).integers(256, size=(SYNTHETIC, height, width, channels), dtype=np.uint8)
    store = make_store(images, runtime.device, data.store, runtime.local_world_size)
    schedules = masks.mask_schedules(config, spec)
    training_set = TrainingSet(store, np.arange(SYNTHETIC), None, 0)
    return Task(masks.resolved_masks(config, spec), spec, objective, training_set, schedules, runtime)
