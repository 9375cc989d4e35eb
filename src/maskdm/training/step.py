"""One step: a batch is drawn, the loss and its gradient computed in micro-batches, the optimizer stepped.

Nothing here waits for the device: what comes back stays where it was computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from maskdm.config.schema import Config
from maskdm.config.stage_config import StageConfig
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import denoising_loss
from maskdm.diffusion.mask_schedule import MaskSchedule, group_slices
from maskdm.errors import InputError
from maskdm.models import build
from maskdm.models.build import Objective
from maskdm.models.spec import ModelSpec
from maskdm.runtime import device as devices
from maskdm.runtime import memory
from maskdm.runtime.distributed import Runtime
from maskdm.training import stages
from maskdm.training.batches import Batch, TrainingSet, draw_batch, most_micro_batches, seed_of
from maskdm.training.checkpoint import State
from maskdm.training.ema import ema_decay, ema_update, ema_update_buffers
from maskdm.training.optim import learning_rate
from maskdm.training.progress import Progress
from maskdm.training.stage_specs import stage_spec


@dataclass(frozen=True)
class Task:
    """What there is to learn, from what, and on what machine.

    Attributes:
        config: the settings.
        spec: the model, which the last stage trains; `stage_spec` has those of the others.
        objective: that of its process.
        data: the members, at the model's image size.
        masks: of every stage.
        runtime: device and ranks.
    """

    config: Config
    spec: ModelSpec
    objective: Objective
    data: TrainingSet
    masks: Sequence[MaskSchedule]
    runtime: Runtime

    def stage(self, progress: Progress) -> StageConfig:
        """The current one."""
        return self.config.stages[progress.stage]

    def stage_spec(self, number: int) -> ModelSpec:
        """The model that stage `number` (from 0) trains."""
        return stage_spec(self.spec, self.config.stages[number])

    def denoiser(self, number: int, network: nn.Module) -> Denoiser:
        """The denoiser around a network of stage `number`."""
        spec = self.stage_spec(number)
        return build.denoiser(spec, network, self.objective if spec.process == self.spec.process else None)


def training_step(task: Task, state: State, learner: Denoiser, model: nn.Module) -> tuple[Tensor, Tensor]:
    """One step on one batch: (loss, gradient norm), scalars on the device.

    Where memory runs out, micro-batches have half their size from then on (`state.progress.micro_batch`).

    Args:
        task: what is learned.
        state: what the step changes.
        learner: a denoiser of `model`.
        model: the network of `state` as it is called in training, see `Runtime.wrap`.
    """
    while True:
        buffers = state.buffers.keep()
        try:
            loss = accumulate_gradients(task, state, learner, model)
            break
        except (RuntimeError, MemoryError) as error:
            if memory.is_out_of_memory(error) and halve_micro_batch(task, state):
                state.buffers.restore(buffers)
                continue
            problem = devices.cannot_compile(error)
            if problem is None:
                raise
            raise InputError(
                "train.compile", problem, got=task.config.train.compile, remedy="write train.compile=no"
            ) from None
    task.runtime.average(state.buffers.floating)
    return loss, optimizer_step(task, state)


def accumulate_gradients(task: Task, state: State, learner: Denoiser, model: nn.Module) -> Tensor:
    """Gradients of this rank's part of the batch, micro-batch by micro-batch: its part of the loss, a scalar."""
    parts = draw_micro_batches(task, learner, state.progress)
    loss = torch.zeros((), device=task.runtime.device)
    seed_modules(task, state.progress)
    static = devices.has_static_graphs(task.runtime.compile)
    if static and len(parts) > 1:
        own_gradients(state.model)
    for number, part in enumerate(parts, start=1):
        if static:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with task.runtime.accumulate(model, last=number == len(parts)):
            loss += forward_backward(task, state, learner, part)
    return loss


def seed_modules(task: Task, progress: Progress) -> None:
    """Seeds what modules draw by themselves, such as dropout: a function of seed, stage, step and rank.

    It is drawn from torch's global generators, which are in no checkpoint. Micro-batches draw one after another.
    """
    runtime = task.runtime
    first = seed_of(task.config.train.seed, "modules", progress.stage)
    # Generators of the CPU keep 32 bits of a seed: counted up, no two ranks or steps share one.
    seed = (first + progress.stage_step * runtime.world_size + runtime.rank) % 2**32
    torch.default_generator.manual_seed(seed)
    if runtime.device.type == "cuda":
        torch.cuda.manual_seed(seed)  # of this rank's device alone
    elif runtime.device.type == "mps":
        torch.mps.manual_seed(seed)


def own_gradients(network: nn.Module) -> None:
    """Gives every weight a gradient of zero in memory of its own.

    Without, it would take over the first micro-batch's, which lies in a CUDA graph where the next one's will.
    """
    for parameter in network.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def halve_micro_batch(task: Task, state: State) -> bool:
    """Half the micro-batch, and no gradient; False where that is impossible.

    Several ranks would have to agree on it while some of them wait for a gradient: they stop instead.
    """
    size = state.progress.micro_batch or task.stage(state.progress).batch_size
    if size == 1 or task.runtime.world_size > 1:
        return False
    state.progress.micro_batch = (size + 1) // 2
    state.optimizer.zero_grad(set_to_none=True)
    if task.runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    return True


def forward_backward(task: Task, state: State, learner: Denoiser, part: Batch) -> Tensor:
    """Adds the gradient of a micro-batch, weighted as its share of the batch: that share of the loss, a scalar."""
    with task.runtime.autocast():
        losses = denoising_loss(learner, part.x_0, part.t, part.eps, mask=part.mask, label=part.label)
    # Ranks are averaged.
    share = part.weight * losses.sum() * task.runtime.world_size / task.stage(state.progress).batch_size
    torch.autograd.backward(state.scaler.scale(share))
    return share.detach()


def optimizer_step(task: Task, state: State) -> Tensor:
    """Updates the weights by the accumulated gradients, then their average: the gradient's norm before clipping.

    Under fp16 an overflow is no fault: the norm is not finite, the step is skipped and the scale lowered.
    """
    stage, progress = task.stage(state.progress), state.progress
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(stage, progress.stage_step, stages.fraction_done(stage, progress))
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), stage.clip or math.inf, foreach=True)
    norm = task.runtime.full_tensor(norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    decay = ema_decay(task.config.ema, progress.stage_step + 1)
    ema_update(state.ema.parameters(), state.model.parameters(), decay)
    ema_update_buffers(state.ema_buffers, state.buffers, decay)
    return norm


def graph_count(task: Task) -> int:
    """How many graphs a compiled network will have at most: one for every shape of the masks and size of a micro-batch.

    Of a group of masks, ranks have two numbers of images, and equal micro-batches of them two sizes. `MOST_GRAPHS` come
    on top, for micro-batches that are tried and those that are halved.
    """
    shapes, world_size = set(), task.runtime.world_size
    for number, (stage, masks) in enumerate(zip(task.config.stages, task.masks, strict=True)):
        spec = task.stage_spec(number)
        for groups in masks.phases:
            for group, rows in zip(groups, group_slices(groups, stage.batch_size), strict=True):
                images = rows.stop - rows.start
                for own in (images // world_size, math.ceil(images / world_size)):
                    shapes.add((spec.image_size, spec.model.patch_size, group.masking, own, stage.micro_batch))
    return 2 * len(shapes) + devices.MOST_GRAPHS


def draw_micro_batches(task: Task, denoiser: Denoiser, progress: Progress) -> list[Batch]:
    """This rank's part of the current step's batch as micro-batches, each with masks of one shape.

    As many on every rank, since gathering weights (FSDP), and whatever else ranks do together in a forward or backward
    pass, needs all of them: a rank with fewer repeats its last one with weight 0.
    """
    stage, runtime = task.stage(progress), task.runtime
    groups = task.masks[progress.stage].at(stages.fraction_done(stage, progress))
    batches = draw_batch(
        task.data,
        groups,
        denoiser.process,
        step=progress.stage_step,
        batch_size=stage.batch_size,
        seed=(task.config.train.seed, "stage", progress.stage),
        flip=task.config.data.flip,
        label_dropout=stage.label_dropout,
        device=runtime.device,
        rank_slice=runtime.rank_slice,
        image_size=denoiser.image_size,
    )
    parts = [part for batch in batches for part in batch.split(progress.micro_batch)]
    if runtime.world_size > 1:
        most = most_micro_batches(groups, stage.batch_size, runtime.world_size, progress.micro_batch)
        parts += [replace(parts[-1], weight=0.0)] * (most - len(parts))
    return parts
