"""The loop: runs a list of stages. Pre-training and fine-tuning are two values of one thing.

Nothing in a step waits for the device: losses stay where they were computed and are read every `log.every` steps. A
loss or gradient that is not finite is found there too, with the step at which it came, and always before anything is
saved.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.errors import Interrupted, StorageError, TrainingError
from maskdm.models import build
from maskdm.models.weights import Metadata, Weights
from maskdm.runtime.console import Bar
from maskdm.runtime.signals import interruptible
from maskdm.training import checkpoint, stages
from maskdm.training.checkpoint import State, find_sound_checkpoint
from maskdm.training.events import (
    EndEvent,
    StageEndEvent,
    StageEvent,
    StoppedEvent,
    TrainEvent,
)
from maskdm.training.monitor import Training, evaluate_heldout, evaluate_when_due
from maskdm.training.progress import Progress, newest_checkpoint, read_progress
from maskdm.training.step import training_step
from maskdm.training.step_profiler import choose_micro_batch
from maskdm.training.time_left import TimeLeft


def run_stages(training: Training) -> State:
    """Runs the stages, from the newest checkpoint where there is one.

    Raises:
        TrainingError: a loss or gradient was not finite.
        Interrupted: by Ctrl-C or a termination signal, after saving.
        StorageError: a file cannot be written.
    """
    config, console = training.config, training.console
    found = agreed_checkpoint(training)
    progress = read_progress(found) if found else Progress()
    state = stages.init_state(config, training.spec, training.runtime, progress)
    denoiser = build.denoiser(training.spec, state.ema, training.objective)
    if found:
        checkpoint.restore_checkpoint(found, state, training.runtime)
    if training.runtime.main:
        training.run.rewind(progress.recorded)
        checkpoint.clear_unfinished(training.run.checkpoints)
    with interruptible() as signals:
        if found:
            export_weights(training, state, found)
            console.say(f"resumed at step {state.progress.step:,} ({state.progress.images:,} images)")
        else:
            if training.run.resumed and training.runtime.main:
                console.say("no checkpoint had been saved: it begins with its first step")
            start_stage(training, state, denoiser)
        while True:
            run_stage(training, state, denoiser, signals)
            if state.progress.stage == len(config.stages) - 1:
                _record_end(training, state.progress)
                return state
            state.progress.stage += 1
            start_stage(training, state, denoiser)


def agreed_checkpoint(training: Training) -> Path | None:
    """The checkpoint from which all ranks go on, chosen by the first; None where nothing has been saved.

    Raises:
        InputError: none that was saved is as it was written.
    """
    found = find_sound_checkpoint(training.run.checkpoints, training.console.warn) if training.runtime.main else None
    name = training.runtime.broadcast_object(found.name if found else "")
    return training.run.checkpoints / name if name else None


def start_stage(training: Training, state: State, denoiser: Denoiser) -> None:
    """The hand-over: weights put in place, micro-batch chosen, held-out error measured before the first step."""
    progress, stage = state.progress, training.stage(state.progress)
    origin = stages.init_stage(state, training.config, training.spec, training.runtime)
    masks = training.masks[progress.stage]
    training.console.say(f"stage {progress.stage + 1} of {len(training.config.stages)}, {stage.name}: {masks}")
    training.console.say(f"  starts from {'; '.join(origin)}")
    progress.micro_batch = choose_micro_batch(training, state, replace(denoiser, backbone=state.model))
    if stage.micro_batch == "auto":
        training.console.say(f"  micro-batches of {progress.micro_batch or stage.batch_size} images")
    training.record(
        StageEvent(
            stage=stage.name,
            step=progress.step,
            images=progress.images,
            index=progress.stage,
            mask=str(masks),
            mask_ratio=masks.ratio,
            patches=masks.maskings[0].num_patches,
            batch_size=stage.batch_size,
            target_steps=stages.total_steps(stage),
            started_from=origin[0],
        )
    )
    # Measured before the first step, so that whoever reads the log sees that the weights did arrive.
    evaluate_heldout(training, state, denoiser)


def run_stage(training: Training, state: State, denoiser: Denoiser, signals: Sequence[int]) -> None:
    """The steps of one stage, from wherever `state` is in it; `signals` says whether to save and stop."""
    config, runtime, progress, stage = training.config, training.runtime, state.progress, training.stage(state.progress)
    model = runtime.wrap(state.model)
    learner = replace(denoiser, backbone=model)
    meter, time_left = Meter(runtime.device, progress), TimeLeft(training, progress)
    total = stages.total_steps(stage)
    images = None if total is None else total * stage.batch_size
    with training.console.bar(stage.name, images, initial=progress.stage_step * stage.batch_size) as bar:
        while not progress.stage_done:
            since = time.perf_counter()
            micro_batch = progress.micro_batch
            loss, norm = training_step(training, state, learner, model)
            if progress.micro_batch != micro_batch:
                training.console.warn(f"out of memory; from here on micro-batches of {progress.micro_batch} images")
            seconds = time.perf_counter() - since
            # Rates and masks follow the wall-clock time of such a stage: on every rank the same.
            progress.advance(stage.batch_size, seconds if stage.minutes is None else runtime.broadcast(seconds))
            meter.add(loss, norm, progress.step)
            bar.update(stage.batch_size)
            time_left.step_done()

            logging = progress.stage_step % config.log.every == 0
            # What a signal decides, ranks must agree on, which waits: several do so when they log.
            asking = logging or runtime.world_size == 1
            progress.stage_done = stages.fraction_done(stage, progress) >= 1
            interrupted = asking and runtime.any_rank(bool(signals))
            saving = progress.stage_done or interrupted or progress.stage_step % config.train.save_every == 0
            if saving or logging:
                log_metrics(training, state, meter, bar)
                meter = Meter(runtime.device, progress)
            try:
                evaluate_when_due(training, state, denoiser)
            except StorageError:  # a full disk must not cost the steps since the last checkpoint too
                save_state(training, state)
                raise
            if saving:
                save_state(training, state)
            if interrupted:
                _record_stop(training, progress, "interrupted")
                raise Interrupted(f"saved at step {progress.step:,}", 128 + signals[0] if signals else 130)
    _record_stage_end(training, progress)


class Meter:
    """Sums over the steps since the last log line, kept on the device.

    Attributes:
        loss, norm: sums of losses and gradient norms.
        bad: the first step that was not finite, -1 where all were.
        step, images, seconds: of the progress when it began.
    """

    def __init__(self, device: torch.device, progress: Progress) -> None:
        self.loss = torch.zeros((), device=device)
        self.norm = torch.zeros((), device=device)
        self.bad = torch.full((), -1, device=device)
        self.step, self.images, self.seconds = progress.step, progress.images, progress.seconds

    def add(self, loss: Tensor, norm: Tensor, step: int) -> None:
        """Adds a step, and remembers the first that is not finite."""
        broken = ~torch.isfinite(loss + norm) & (self.bad < 0)
        self.bad = torch.where(broken, step, self.bad)
        self.loss, self.norm = self.loss + loss, self.norm + norm


def log_metrics(training: Training, state: State, meter: Meter, bar: Bar) -> None:
    """Reads the meter, the one place of a step that waits for the device; ends a run that is broken.

    Raises:
        TrainingError: a loss or gradient was not finite.
    """
    progress, stage = state.progress, training.stage(state.progress)
    bad = int(meter.bad)
    if bad >= 0:
        _record_stop(training, progress, f"loss or gradient not finite at step {bad}")
        saved = newest_checkpoint(training.run.checkpoints)
        raise TrainingError(
            f"loss or gradient not finite at step {bad} of stage {stage.name}; "
            f"{f'the last good state is {saved}' if saved else 'nothing had been saved yet'}; "
            f"try a lower stages.{progress.stage}.lr (now {stage.lr:g}), warmup_steps, or clip=1.0"
        )
    steps, seconds = progress.step - meter.step, progress.seconds - meter.seconds
    loss = float(meter.loss) / steps
    training.record(
        TrainEvent(
            stage=stage.name,
            step=progress.step,
            images=progress.images,
            loss=loss,
            grad_norm=float(meter.norm) / steps,
            lr=float(state.optimizer.param_groups[0]["lr"]),
            images_per_second=(progress.images - meter.images) / max(seconds, 1e-9),
            seconds=progress.seconds,
        )
    )
    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
    if stage.minutes is not None:  # how many images the time will allow
        done = stages.fraction_done(stage, progress)
        bar.total = round(progress.stage_step * stage.batch_size / max(done, 1e-9))


def save_state(training: Training, state: State) -> None:
    """A checkpoint, and the weights that others read."""
    runtime, progress = training.runtime, state.progress
    tensors = checkpoint.gather_state(state, runtime) if runtime.main or runtime.shards else None
    if tensors is not None and runtime.main:
        stage = training.stage(progress)
        metadata: Metadata = training.metadata | {"stage": stage.name, "mask": str(training.masks[progress.stage])}
        progress.recorded = training.run.recorded()
        model = Weights(training.spec, metadata, {})
        keep = training.config.train.keep
        run = training.run
        saved = checkpoint.save_checkpoint(run.checkpoints, state, tensors, model, keep, run.config_sha256)
        export_weights(training, state, saved)
    runtime.barrier()


def export_weights(training: Training, state: State, saved: Path) -> None:
    """The weights of a checkpoint where others look for them; those that ended a stage under its name too."""
    if training.runtime.main:
        stage = training.stage(state.progress).name if state.progress.stage_done else None
        checkpoint.publish_weights(saved, training.run.weights, stage)


def _record_stop(training: Training, progress: Progress, reason: str) -> None:
    name = training.stage(progress).name
    training.record(StoppedEvent(stage=name, step=progress.step, images=progress.images, reason=reason))


def _record_stage_end(training: Training, progress: Progress) -> None:
    stage, seconds = training.stage(progress), progress.stage_seconds
    training.record(StageEndEvent(stage=stage.name, step=progress.step, images=progress.images, seconds=seconds))
    seen = progress.stage_step * stage.batch_size
    training.console.say(f"  {stage.name}: {progress.stage_step:,} steps, {seen:,} images, {seconds:,.0f} s")


def _record_end(training: Training, progress: Progress) -> None:
    name = training.stage(progress).name
    training.record(EndEvent(stage=name, step=progress.step, images=progress.images, seconds=progress.seconds))
