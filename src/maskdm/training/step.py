"""One step: a batch is drawn, the objective and its gradient computed in parts, the optimiser moved.

Nothing here waits for the device: what comes back stays where it was computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskdm.config.schema import Config, ModelSpec, StageConfig
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import denoising_loss
from maskdm.diffusion.mask_schedule import MaskPlan
from maskdm.runtime import memory
from maskdm.runtime.distributed import Runtime
from maskdm.training import stages
from maskdm.training.batches import Batch, TrainingSet, draw
from maskdm.training.checkpoint import Progress, State
from maskdm.training.ema import decay_at, update
from maskdm.training.optim import rate


@dataclass(frozen=True)
class Task:
    """What there is to learn, from what, and on what machine."""

    config: Config
    spec: ModelSpec
    data: TrainingSet
    masks: Sequence[MaskPlan]
    runtime: Runtime

    def stage(self, progress: Progress) -> StageConfig:
        """The current one."""
        return self.config.stages[progress.stage]


def training_step(task: Task, state: State, learner: Denoiser, model: nn.Module) -> tuple[Tensor, Tensor]:
    """One step on one batch: (loss, gradient norm), both still on the device.

    Where memory runs out, micro-batches have half their size from then on (`state.progress.micro_batch`).
    """
    while True:
        try:
            loss = gradient(task, state, learner, model)
            break
        except (RuntimeError, MemoryError) as error:
            if not memory.is_shortage(error) or not halve(task, state):
                raise
    return loss, move(task, state)


def gradient(task: Task, state: State, learner: Denoiser, model: nn.Module) -> Tensor:
    """Of this rank's part of the batch, in micro-batches: the loss."""
    parts = draw_parts(task, learner, state.progress)
    loss = torch.zeros((), device=task.runtime.device)
    for part in parts:
        with task.runtime.accumulate(model, last=part is parts[-1]):
            loss += learn(task, state, learner, part)
    return loss


def halve(task: Task, state: State) -> bool:
    """Half the micro-batch, and no gradient; False where that is impossible.

    Several ranks would have to agree on it while some of them wait for a gradient: they stop instead.
    """
    size = state.progress.micro_batch or task.stage(state.progress).batch_size
    if size == 1 or task.runtime.world_size > 1:
        return False
    state.progress.micro_batch = (size + 1) // 2
    state.optimiser.zero_grad(set_to_none=True)
    if task.runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    return True


def learn(task: Task, state: State, learner: Denoiser, part: Batch) -> Tensor:
    """Adds a micro-batch to the gradient, as its share of the batch: that share of the loss."""
    with task.runtime.autocast():
        losses = denoising_loss(
            learner, part.x_0, part.t, part.eps, visible=part.visible, through=part.through, label=part.label
        )
    # Ranks are averaged.
    share = losses.sum() * task.runtime.world_size / task.stage(state.progress).batch_size
    torch.autograd.backward(state.scaler.scale(share))
    return share.detach()


def move(task: Task, state: State) -> Tensor:
    """Moves the weights along the gradient, and their average after them: the gradient's norm."""
    stage, progress = task.stage(state.progress), state.progress
    for group in state.optimiser.param_groups:
        group["lr"] = rate(stage, progress.stage_step, stages.through(stage, progress))
    state.scaler.unscale_(state.optimiser)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), stage.clip or math.inf, foreach=True)
    norm = task.runtime.whole(norm)
    state.scaler.step(state.optimiser)
    state.scaler.update()
    state.optimiser.zero_grad(set_to_none=True)
    decay = decay_at(task.config.ema, progress.stage_step + 1)
    update(state.ema.parameters(), state.model.parameters(), decay)
    # Under fp16 an overflow is no fault: the step is skipped and the scale lowered.
    return torch.zeros_like(norm) if state.scaler.is_enabled() else norm


def draw_parts(task: Task, denoiser: Denoiser, progress: Progress) -> list[Batch]:
    """This rank's part of the batch of the current step as micro-batches, each with masks of one shape."""
    stage = task.stage(progress)
    batches = draw(
        task.data,
        task.masks[progress.stage].at(stages.through(stage, progress)),
        denoiser.process,
        step=progress.stage_step,
        batch_size=stage.batch_size,
        seed=(task.config.train.seed, "stage", progress.stage),
        flip=task.config.data.flip,
        label_dropout=stage.label_dropout,
        device=task.runtime.device,
        share=task.runtime.slice,
    )
    return [part for batch in batches for part in batch.split(progress.micro_batch)]
