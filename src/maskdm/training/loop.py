"""The loop: runs a list of stages. Pre-training and fine-tuning are two values of one thing.

Nothing in a step waits for the device: losses stay where they were computed and are read every `log.every` steps. A
loss or gradient that is not finite is found there too, with the step at which it came, and always before anything is
saved.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from maskdm.config.schema import EvalConfig
from maskdm.data.write import save_grid
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.patches import to_uint8
from maskdm.errors import Interrupted, StorageError, TrainingError
from maskdm.evaluation.heldout import CHUNK, HeldOut
from maskdm.evaluation.scorer import Scorer
from maskdm.models import build
from maskdm.models.weights import Facts, Weights
from maskdm.runtime.console import Bar, Console
from maskdm.runtime.distributed import Runtime
from maskdm.sampling import ranks
from maskdm.sampling.sample import STEPS, plan
from maskdm.training import checkpoint, stages
from maskdm.training.checkpoint import Progress, State
from maskdm.training.runs import Run
from maskdm.training.step import Task, training_step
from maskdm.training.step_profiler import choose_micro_batch
from maskdm.training.trackers import Track


@dataclass(frozen=True)
class Training(Task):
    """What stays the same for a whole run: the task, and where its outcome goes."""

    heldout: HeldOut | None
    facts: Facts
    run: Run
    console: Console
    scorer: Scorer | None = None
    track: Sequence[Track] = ()

    def record(self, event: str, progress: Progress, **values: float | str | None) -> None:
        """An event, for metrics.jsonl and the trackers."""
        if not self.runtime.main:
            return
        self.run.record(event, stage=self.stage(progress).name, step=progress.step, images=progress.images, **values)
        numbers = {f"{event}/{k}": v for k, v in values.items() if isinstance(v, float)}
        for track in self.track:
            track(numbers, progress.images)


def train(training: Training) -> State:
    """Runs the stages, from the newest checkpoint where there is one.

    Raises:
        TrainingError: a loss or gradient was not finite.
        Interrupted: by Ctrl-C or a termination signal, after saving.
    """
    config, console = training.config, training.console
    found = checkpoint.newest(training.run.checkpoints)
    progress = checkpoint.read_progress(found) if found else Progress()
    state = stages.fresh_state(config, training.spec, training.runtime, progress)
    denoiser = build.denoiser(training.spec, state.ema)
    if found:
        checkpoint.restore(found, state, training.runtime)
    if training.runtime.main:
        training.run.rewind(progress.recorded)
        checkpoint.clear(training.run.checkpoints)
    with interruptible() as signals:
        if found:
            publish(training, state, found)
            console.say(f"resumed at step {state.progress.step:,} ({state.progress.images:,} images)")
        else:
            begin_stage(training, state, denoiser)
        while True:
            run_stage(training, state, denoiser, signals)
            if state.progress.stage == len(config.stages) - 1:
                training.record("end", state.progress, seconds=state.progress.seconds)
                return state
            state.progress.stage += 1
            begin_stage(training, state, denoiser)


def begin_stage(training: Training, state: State, denoiser: Denoiser) -> None:
    """The hand-over: made, measured, written down and told."""
    progress, stage = state.progress, training.stage(state.progress)
    origin = stages.begin(state, training.config, training.spec, training.runtime)
    masks = training.masks[progress.stage]
    training.console.say(f"stage {progress.stage + 1} of {len(training.config.stages)}, {stage.name}: {masks}")
    training.console.say(f"  starts from {'; '.join(origin)}")
    progress.micro_batch = choose_micro_batch(training, state, replace(denoiser, backbone=state.model))
    if stage.micro_batch == "auto":
        training.console.say(f"  {progress.micro_batch or stage.batch_size} images at once")
    training.record(
        "stage",
        progress,
        index=progress.stage,
        mask=str(masks),
        hidden=masks.ratio,
        patches=masks.maskings[0].patches,
        batch_size=stage.batch_size,
        target_steps=stages.total_steps(stage),
        started_from=origin[0],
    )
    # Measured before the first step, so that whoever reads the log sees that the weights did arrive.
    measure_heldout(training, state, denoiser)


def run_stage(training: Training, state: State, denoiser: Denoiser, signals: Sequence[int]) -> None:
    """The steps of one stage, from wherever `state` is in it."""
    config, runtime, progress, stage = training.config, training.runtime, state.progress, training.stage(state.progress)
    model = runtime.wrap(state.model)
    learner = replace(denoiser, backbone=model)
    meter = Meter(runtime.device, progress)
    total = stages.total_steps(stage)
    images = None if total is None else total * stage.batch_size
    with training.console.bar(stage.name, images, initial=progress.stage_step * stage.batch_size) as bar:
        while not progress.stage_done:
            since = time.perf_counter()
            at_once = progress.micro_batch
            loss, norm = training_step(training, state, learner, model)
            if progress.micro_batch != at_once:
                training.console.warn(f"out of memory; from here on {progress.micro_batch} images at once")
            seconds = time.perf_counter() - since
            # Rates and masks follow the clock of such a stage: on every rank the same one.
            progress.advance(stage.batch_size, seconds if stage.minutes is None else runtime.same(seconds))
            meter.add(loss, norm, progress.step)
            bar.update(stage.batch_size)

            logging = progress.stage_step % config.log.every == 0
            # What a signal decides, ranks must agree on, which waits: several do so when they log.
            asking = logging or runtime.world_size == 1
            progress.stage_done = stages.through(stage, progress) >= 1
            interrupted = asking and runtime.agree(bool(signals))
            saving = progress.stage_done or interrupted or progress.stage_step % config.train.save_every == 0
            if saving or logging:
                read(training, state, meter, bar)
                meter = Meter(runtime.device, progress)
            try:
                look(training, state, denoiser)
            except StorageError:  # a full disk must not cost the steps since the last checkpoint too
                save(training, state)
                raise
            if saving:
                save(training, state)
            if interrupted:
                training.record("stopped", progress, reason="interrupted")
                raise Interrupted(f"saved at step {progress.step:,}", 128 + signals[0] if signals else 130)
    training.record("stage_end", progress, seconds=progress.stage_seconds)
    seen = progress.stage_step * stage.batch_size
    training.console.say(
        f"  {stage.name}: {progress.stage_step:,} steps, {seen:,} images, {progress.stage_seconds:,.0f} s"
    )


class Meter:
    """Means over the steps since the last look, summed on the device."""

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


def read(training: Training, state: State, meter: Meter, bar: Bar) -> None:
    """Reads the meter, the one place of a step that waits for the device; ends a run that is broken."""
    progress, stage = state.progress, training.stage(state.progress)
    bad = int(meter.bad)
    if bad >= 0:
        training.record("stopped", progress, reason=f"loss or gradient not finite at step {bad}")
        saved = checkpoint.newest(training.run.checkpoints)
        raise TrainingError(
            f"loss or gradient not finite at step {bad} of stage {stage.name}; "
            f"{f'the last good state is {saved}' if saved else 'nothing had been saved yet'}; "
            f"try a lower stages.{progress.stage}.lr (now {stage.lr:g}), warmup_steps, or clip=1.0"
        )
    steps, seconds = progress.step - meter.step, progress.seconds - meter.seconds
    loss = float(meter.loss) / steps
    training.record(
        "train",
        progress,
        loss=loss,
        grad_norm=float(meter.norm) / steps,
        lr=float(state.optimiser.param_groups[0]["lr"]),
        images_per_second=(progress.images - meter.images) / max(seconds, 1e-9),
        seconds=progress.seconds,
    )
    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
    if stage.minutes is not None:  # how many images the clock will allow
        bar.total = round(progress.stage_step * stage.batch_size / max(stages.through(stage, progress), 1e-9))


def look(training: Training, state: State, denoiser: Denoiser) -> None:
    """Held-out error, sample grid and scores, when their images have passed and at the end of a stage."""
    config, progress = training.config.eval, state.progress
    batch = training.stage(progress).batch_size
    seen = progress.stage_step * batch

    def due(every: int) -> bool:
        return progress.stage_done or seen // every > (seen - batch) // every

    every = config.heldout_every
    if due(every if isinstance(every, int) else every[progress.stage]):
        measure_heldout(training, state, denoiser)
    if due(config.samples_every) and config.samples:
        path = training.run.samples / f"{checkpoint.NAME.format(progress.step)}.png"
        own = len(training.runtime.turns(config.samples))
        with training.console.bar("samples", own * config.sample_steps, "call") as bar:
            write_samples(denoiser, config, path, training.runtime, bar.update)
    if training.scorer is not None and due(config.scores_every):
        measure_scores(training, state, denoiser, training.scorer)


def measure_heldout(training: Training, state: State, denoiser: Denoiser) -> None:
    """Held-out error of both kinds of weights, on questions that never change."""
    if training.heldout is None:
        return
    heldout, runtime = training.heldout, training.runtime
    ema, raw = (heldout.error(replace(denoiser, backbone=net), runtime) for net in (state.ema, state.model))
    seconds = state.progress.seconds
    training.record("heldout", state.progress, seconds=seconds, loss_ema=ema, loss_raw=raw, n=len(training.heldout))
    training.console.say(
        f"  {state.progress.images:>12,} images: held-out error {ema:.4f} (ema), {raw:.4f} (raw), "
        f"n = {len(training.heldout)}"
    )


def measure_scores(training: Training, state: State, denoiser: Denoiser, scorer: Scorer) -> None:
    """Generated pictures, made by all ranks, against held-out ones, as `maskdm eval` of these weights would say."""
    num, runtime = training.config.eval.score_images, training.runtime
    how = plan(denoiser, seeds=range(num), labels=scorer.labels)
    with training.console.bar("scores", len(runtime.turns(num)) * STEPS, "call") as bar:
        unit = ranks.make(how, num, runtime, batch_size=CHUNK, report=bar.update)
    if runtime.main:
        values = scorer(to_uint8(unit).permute(0, 2, 3, 1).numpy())
        training.record("score", state.progress, seconds=state.progress.seconds, n=num, **values)
        said = f"{values['title']} {values['frechet_distance']:.4g}, n = {num:,}"
        training.console.say(f"  {state.progress.images:>12,} images: {said}")
    runtime.barrier()


def save(training: Training, state: State) -> None:
    """A checkpoint, and the weights that others read."""
    tensors = checkpoint.whole(state, training.runtime) if training.runtime.main or training.runtime.divides else None
    if tensors is not None and training.runtime.main:
        stage = training.stage(state.progress)
        facts: Facts = training.facts | {"stage": stage.name, "mask": str(training.masks[state.progress.stage])}
        state.progress.recorded = training.run.recorded()
        model = Weights(training.spec, facts, {})
        keep = training.config.train.keep
        publish(training, state, checkpoint.save(training.run.checkpoints, state, tensors, model, keep))
    training.runtime.barrier()


def publish(training: Training, state: State, made: Path) -> None:
    """The weights of a checkpoint where others look for them; those that ended a stage under its name too."""
    if not training.runtime.main:
        return
    for source in (made / "ema.safetensors", made / "raw.safetensors"):
        checkpoint.publish(source, training.run.weights / source.name)
        if state.progress.stage_done:
            name = f"{training.stage(state.progress).name}-{source.name}"
            checkpoint.publish(source, training.run.weights / name)


def write_samples(
    denoiser: Denoiser, config: EvalConfig, path: Path, runtime: Runtime, report: Callable[[int], None]
) -> None:
    """A grid of pictures by DDIM from seeds 0, 1, ..., to be compared over time; every rank makes some."""
    how = plan(denoiser, sampler="ddim", steps=config.sample_steps, seeds=range(config.samples))
    unit = ranks.make(how, config.samples, runtime, batch_size=CHUNK, report=report)
    if runtime.main:
        save_grid(to_uint8(unit).permute(0, 2, 3, 1).numpy(), path)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that a step can end before the run does; a second one is not waited for."""
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
