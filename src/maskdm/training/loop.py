"""The loop: runs a list of stages. Pre-training and fine-tuning are two values of one thing.

Nothing in a step waits for the device: losses stay where they were computed and are read every `log.every` steps. A
loss or gradient that is not finite is found there too, with the step at which it came, and always before anything is
saved. The device is waited for before anything else is done with it, so that the seconds of training are those of its
steps, all of them and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from maskdm.diffusion.denoiser import Denoiser
from maskdm.errors import Interrupted, StorageError, TrainingError
from maskdm.models.weights import Metadata, Weights
from maskdm.runtime.console import Bar
from maskdm.runtime.device import deterministic, why_not_compiled
from maskdm.runtime.distributed import Runtime
from maskdm.runtime.signals import interruptible
from maskdm.training import checkpoint, stages
from maskdm.training.checkpoint import State, find_sound_checkpoint
from maskdm.training.clock import Clock
from maskdm.training.events import (
    EndEvent,
    StageEndEvent,
    StageEvent,
    StoppedEvent,
    TrainEvent,
)
from maskdm.training.monitor import Training, due_now, evaluate_due, evaluate_heldout
from maskdm.training.progress import Progress, newest_checkpoint, read_progress
from maskdm.training.stage_specs import says_of_model
from maskdm.training.step import graph_count, training_step
from maskdm.training.step_profiler import choose_micro_batch
from maskdm.training.time_left import TimeLeft

LEAST_SCALE = 1.0
"""Of fp16's loss scaling: gradients that overflow without any scaling up are not its doing."""


def run_stages(training: Training) -> State:
    """Runs the stages, from the newest checkpoint where there is one.

    Raises:
        TrainingError: a loss or gradient was not finite.
        Interrupted: by Ctrl-C or a termination signal, after saving.
        StorageError: a file cannot be written.
    """
    with deterministic(training.config.train.deterministic):
        return _run_stages(training)


def _run_stages(training: Training) -> State:
    config, console, runtime = training.config, training.console, training.runtime
    found = agreed_checkpoint(training)
    progress = read_progress(found) if found else Progress()
    state = stages.init_state(config, training.stage_spec(progress.stage), runtime, progress)
    if found:
        checkpoint.restore_checkpoint(found, state, runtime)
    denoiser = training.denoiser(progress.stage, state.ema)
    learner = replace(denoiser, backbone=runtime.wrap(state.model, graph_count(training)))
    uncompiled = why_not_compiled(config.train.compile, runtime.device)
    if uncompiled is not None:
        console.warn(f"the network is not compiled, and steps are slower: {uncompiled}")
    if runtime.main:
        training.run.rewind(progress.recorded)
        checkpoint.clear_unfinished(training.run.checkpoints)
    with interruptible() as signals:
        if found:
            export_weights(training, state, found)
            console.say(f"resumed at step {state.progress.step:,} ({state.progress.images:,} images)")
            _say_changes(training, state.progress)
        else:
            if training.run.resumed and runtime.main:
                console.say("no checkpoint had been saved: it begins with its first step")
            denoiser, learner = start_stage(training, state, denoiser, learner)
        while True:
            run_stage(training, state, denoiser, learner, signals)
            if state.progress.stage == len(config.stages) - 1:
                _record_end(training, state.progress)
                return state
            state.progress.stage += 1
            denoiser, learner = start_stage(training, state, denoiser, learner)


def agreed_checkpoint(training: Training) -> Path | None:
    """The checkpoint from which all ranks go on, chosen by the first; None where nothing has been saved.

    Raises:
        InputError: none that was saved is as it was written.
    """
    found = find_sound_checkpoint(training.run.checkpoints, training.console.warn) if training.runtime.main else None
    name = training.runtime.broadcast_object(found.name if found else "")
    return training.run.checkpoints / name if name else None


def _say_changes(training: Training, progress: Progress) -> None:
    """What of the machine is not as it was before, and changes what is computed."""
    before, now = progress.precision, training.runtime.precision
    if before not in (None, now):
        training.console.warn(f"the network was trained in {before} so far, and is in {now} from here on")


def start_stage(training: Training, state: State, denoiser: Denoiser, learner: Denoiser) -> tuple[Denoiser, Denoiser]:
    """The hand-over: weights put in place, micro-batch chosen, held-out error measured before the first step.

    Args:
        training: the run.
        state: what the stage starts from.
        denoiser: of the averaged weights of the stage before, or of the first stage.
        learner: likewise of the network as it is called in training.

    Returns:
        Both for this stage, whose images, patches and noise may be others.
    """
    progress, stage, runtime = state.progress, training.stage(state.progress), training.runtime
    network = state.model
    origin = stages.init_stage(state, training.config, training.spec, runtime)
    spec, changed = training.stage_spec(progress.stage), state.model is not network
    denoiser = training.denoiser(progress.stage, state.ema)
    # Wrapped once for all stages that have the same network: what is compiled stays compiled.
    learner = replace(
        denoiser, backbone=runtime.wrap(state.model, graph_count(training)) if changed else learner.backbone
    )
    masks = training.masks[progress.stage]
    training.console.say(f"stage {progress.stage + 1} of {len(training.config.stages)}, {stage.name}: {masks}")
    if said := says_of_model(training.spec, stage):
        training.console.say(f"  {said}")
    training.console.say(f"  starts from {'; '.join(origin)}")
    progress.micro_batch = choose_micro_batch(training, state, learner)
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
            image_size=spec.image_size,
            patch_size=spec.model.patch_size,
        )
    )
    # Measured before the first step, so that whoever reads the log sees that the weights did arrive.
    evaluate_heldout(training, state, denoiser, handed_over=changed and stage.init_from == "previous")
    return denoiser, learner


def run_stage(training: Training, state: State, denoiser: Denoiser, learner: Denoiser, signals: Sequence[int]) -> None:
    """The steps of one stage, from wherever `state` is in it.

    Args:
        training: the run.
        state: what the steps change.
        denoiser: of the averaged weights.
        learner: of the network as it is called in training.
        signals: those received so far; with the first, the run is saved and stops.
    """
    config, runtime, progress, stage = training.config, training.runtime, state.progress, training.stage(state.progress)
    model = cast(nn.Module, learner.backbone)
    meter, time_left = Meter(runtime, progress), TimeLeft(training, progress)
    total = stages.total_steps(stage)
    images = None if total is None else total * stage.batch_size
    # Rates and masks follow the wall-clock time of such a stage: on every rank the same.
    clock = Clock(runtime, shared=stage.minutes is not None)
    with training.console.bar(stage.name, images, initial=progress.stage_step * stage.batch_size) as bar:
        while not progress.stage_done:
            clock.start()
            micro_batch = progress.micro_batch
            loss, norm = training_step(training, state, learner, model)
            if progress.micro_batch != micro_batch:
                training.console.warn(f"out of memory; from here on micro-batches of {progress.micro_batch} images")
            progress.advance(stage.batch_size, clock.lap())
            meter.add(loss, norm, progress.step)
            bar.update(stage.batch_size)
            time_left.step_done()

            logging = progress.stage_step % config.log.every == 0
            # What a signal decides, ranks must agree on, which waits: several do so when they log.
            asking = logging or runtime.world_size == 1
            progress.stage_done = stages.fraction_done(stage, progress) >= 1
            interrupted = asking and runtime.any_rank(bool(signals))
            saving = progress.stage_done or interrupted or progress.stage_step % config.train.save_every == 0
            due = due_now(training, progress)
            if saving or logging or due:
                progress.spend(clock.lap(wait=True))
            if saving or logging:
                log_metrics(training, state, meter, bar)
                meter = Meter(runtime, progress)
            try:
                evaluate_due(training, state, denoiser, due)
            except StorageError:  # a full disk must not cost the steps since the last checkpoint too
                if not runtime.shards:  # which others would have to send
                    write_state(training, state)
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
        loss, norm: sums of losses and gradient norms, of skipped steps without their norms.
        skipped: steps whose gradients overflowed in fp16, which its loss scaling provides for.
        bad: the first step that was not finite, -1 where all were.
        step, images, seconds: of the progress when it began.
    """

    def __init__(self, runtime: Runtime, progress: Progress) -> None:
        self.scaled = runtime.precision == "fp16"
        self.loss, self.norm, self.skipped = (torch.zeros((), device=runtime.device) for _ in range(3))
        self.bad = torch.full((), -1, device=runtime.device)
        self.step, self.images, self.seconds = progress.step, progress.images, progress.seconds

    def add(self, loss: Tensor, norm: Tensor, step: int) -> None:
        """Adds a step, and remembers the first that is not finite."""
        skipped = ~torch.isfinite(norm) if self.scaled else torch.zeros_like(norm, dtype=torch.bool)
        norm = torch.where(skipped, 0.0, norm)
        broken = ~torch.isfinite(loss + norm) & (self.bad < 0)
        self.bad = torch.where(broken, step, self.bad)
        self.loss, self.norm, self.skipped = self.loss + loss, self.norm + norm, self.skipped + skipped


def log_metrics(training: Training, state: State, meter: Meter, bar: Bar) -> None:
    """Reads the meter; ends a run that is broken.

    Raises:
        TrainingError: a loss or gradient was not finite.
    """
    progress, stage = state.progress, training.stage(state.progress)
    bad, skipped = int(meter.bad), int(meter.skipped)
    if bad >= 0:
        raise broken_off(training, state, f"loss or gradient not finite at step {bad}")
    steps, seconds = progress.step - meter.step, progress.seconds - meter.seconds
    if skipped and state.scaler.get_scale() < LEAST_SCALE:
        reason = f"gradient not finite at any loss scale in {skipped} of {steps} steps up to step {progress.step}"
        raise broken_off(training, state, reason)
    loss = float(meter.loss) / steps
    training.record(
        TrainEvent(
            stage=stage.name,
            step=progress.step,
            images=progress.images,
            loss=loss,
            grad_norm=float(meter.norm) / max(steps - skipped, 1),
            skipped=skipped,
            lr=float(state.optimizer.param_groups[0]["lr"]),
            images_per_second=(progress.images - meter.images) / max(seconds, 1e-9),
            seconds=progress.seconds,
        )
    )
    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
    if stage.minutes is not None:  # how many images the time will allow
        done = stages.fraction_done(stage, progress)
        bar.total = round(progress.stage_step * stage.batch_size / max(done, 1e-9))


def broken_off(training: Training, state: State, reason: str) -> TrainingError:
    """The error that ends a run that is not finite any more; it is on record from here on."""
    progress, stage = state.progress, training.stage(state.progress)
    _record_stop(training, progress, reason)
    saved = newest_checkpoint(training.run.checkpoints)
    last = f"the last good state is {saved}" if saved else "nothing had been saved yet"
    number = progress.stage
    remedies = [
        f"a lower stages.{number}.lr (now {stage.lr:g})",
        f"more warmup_steps (now {stage.warmup_steps:,})",
        "clip=1.0 (now none)" if stage.clip is None else f"a lower clip (now {stage.clip:g})",
    ]
    if training.runtime.precision != "no":
        others = "bf16 or no" if training.runtime.precision == "fp16" else "no"
        remedies.append(f"train.mixed_precision={others} (now {training.runtime.precision})")
    return TrainingError(f"{reason} of stage {stage.name}; {last}; try {', '.join(remedies[:-1])} or {remedies[-1]}")


def save_state(training: Training, state: State) -> None:
    """A checkpoint, and the weights that others read, by all ranks together."""
    write_state(training, state)
    training.runtime.barrier()


def write_state(training: Training, state: State) -> None:
    """The same by the main rank alone, but where tensors are sharded."""
    runtime, progress = training.runtime, state.progress
    progress.precision = runtime.precision
    tensors = checkpoint.gather_state(state, runtime) if runtime.main or runtime.shards else None
    if tensors is not None and runtime.main:
        stage = training.stage(progress)
        metadata: Metadata = training.metadata | {"stage": stage.name, "mask": str(training.masks[progress.stage])}
        progress.recorded = training.run.recorded()
        model = Weights(training.stage_spec(progress.stage), metadata, {})
        keep = training.config.train.keep
        run = training.run
        saved = checkpoint.save_checkpoint(run.checkpoints, state, tensors, model, keep, run.config_sha256)
        export_weights(training, state, saved)


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
