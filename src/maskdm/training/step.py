"""One step: a batch is drawn, the loss and its gradient computed in micro-batches, the optimizer stepped.

Nothing here waits for the device: what comes back stays where it was computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskdm.config.schema import Config
from maskdm.config.stage_config import StageConfig
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import denoising_loss
from maskdm.diffusion.mask_schedule import MaskSchedule
from maskdm.models.build import Objective
from maskdm.models.spec import ModelSpec
from maskdm.runtime import memory
from maskdm.runtime.distributed import Runtime
from maskdm.training import stages
from maskdm.training.batches import Batch, TrainingSet, draw_batch
from maskdm.training.checkpoint import State
from maskdm.training.ema import ema_decay, ema_update
from maskdm.training.optim import learning_rate
from maskdm.training.progress import Progress


@dataclass(frozen=True)
class Task:
    """What there is to learn, from what, and on what machine.

    Attributes:
        config: the settings.
        spec: the model.
        objective: that of its process.
        data: the members.
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
        try:
            loss = accumulate_gradients(task, state, learner, model)
            break
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error) or not halve_micro_batch(task, state):
                raise
    return loss, optimizer_step(task, state)


def accumulate_gradients(task: Task, state: State, learner: Denoiser, model: nn.Module) -> Tensor:
    """Gradients of this rank's part of the batch, micro-batch by micro-batch: its part of the loss, a scalar."""
    parts = draw_micro_batches(task, learner, state.progress)
    loss = torch.zeros((), device=task.runtime.device)
    for part in parts:
        with task.runtime.accumulate(model, last=part is parts[-1]):
            loss += forward_backward(task, state, learner, part)
    return loss


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
    share = losses.sum() * task.runtime.world_size / task.stage(state.progress).batch_size
    torch.autograd.backward(state.scaler.scale(share))
    return share.detach()


def optimizer_step(task: Task, state: State) -> Tensor:
    """Updates the weights by the accumulated gradients, then their average: the gradient's norm before clipping."""
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
    # Under fp16 an overflow is no fault: the step is skipped and the scale lowered.
    return torch.zeros_like(norm) if state.scaler.is_enabled() else norm


def draw_micro_batches(task: Task, denoiser: Denoiser, progress: Progress) -> list[Batch]:
    """This rank's part of the current step's batch as micro-batches, each with masks of one shape."""
    stage = task.stage(progress)
    batches = draw_batch(
        task.data,
        task.masks[progress.stage].at(stages.fraction_done(stage, progress)),
        denoiser.process,
        step=progress.stage_step,
        batch_size=stage.batch_size,
        seed=(task.config.train.seed, "stage", progress.stage),
        flip=task.config.data.flip,
        label_dropout=stage.label_dropout,
        device=task.runtime.device,
        rank_slice=task.runtime.rank_slice,
    )
    return [part for batch in batches for part in batch.split(progress.micro_batch)]
