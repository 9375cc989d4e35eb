"""What is measured and recorded while a model is trained: events, held-out errors, sample grids, scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from maskdm.config.schema import EvalConfig
from maskdm.data.write import save_grid
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.pixels import to_uint8_nhwc
from maskdm.evaluation.heldout import CHUNK, HeldOut
from maskdm.evaluation.scorer import Scorer
from maskdm.models.weights import Metadata
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime
from maskdm.sampling.sample import STEPS, sample_across_ranks, sampling_config
from maskdm.training import stages
from maskdm.training.checkpoint import State
from maskdm.training.events import Event, HeldoutEvent, NoiseRange, ScoreEvent
from maskdm.training.progress import CHECKPOINT_NAME, Progress
from maskdm.training.runs import Run
from maskdm.training.stage_specs import px
from maskdm.training.step import Task
from maskdm.training.trackers import Tracker


@dataclass(frozen=True)
class Training(Task):
    """What stays the same for a whole run: the task, and where its outcome goes.

    Attributes:
        heldout: on which the error is measured, for each stage at its own image size; None where nothing is held out.
        metadata: of the weights.
        run: the folder.
        console: what a person sees.
        scorer: of generated images, None where no scores are asked for.
        trackers: services that receive the numbers.
    """

    heldout: Sequence[HeldOut] | None
    metadata: Metadata
    run: Run
    console: Console
    scorer: Scorer | None = None
    trackers: Sequence[Tracker] = ()

    def record(self, event: Event) -> None:
        """Writes an event to metrics.jsonl, and its numbers to the trackers."""
        if not self.runtime.main:
            return
        self.run.record(event)
        for tracker in self.trackers:
            tracker(event.numbers(), event.images)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Inside, a network is as it will be used: without dropout, by its running statistics, which stay as they are."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class Due:
    """What is measured after a step: when its images have passed, and at the end of a stage.

    Attributes:
        heldout, samples, scores: the held-out error, a sample grid, scores.
    """

    heldout: bool
    samples: bool
    scores: bool

    def __bool__(self) -> bool:
        return self.heldout or self.samples or self.scores


def due_now(training: Training, progress: Progress) -> Due:
    """What is to be measured when a run is so far."""
    config, batch = training.config.eval, training.stage(progress).batch_size
    seen = progress.stage_step * batch

    def due(every: int) -> bool:
        return progress.stage_done or seen // every > (seen - batch) // every

    every = config.heldout_every
    return Due(
        heldout=training.heldout is not None and due(every if isinstance(every, int) else every[progress.stage]),
        samples=config.samples > 0 and due(config.samples_every),
        scores=scores_at(training, progress.stage) and due(config.scores_every),
    )


def scores_at(training: Training, stage: int) -> bool:
    """Whether images of a stage are scored: only at the size of the held-out ones that they are compared with."""
    return training.scorer is not None and training.stage_spec(stage).image_size == training.spec.image_size


def evaluate_due(training: Training, state: State, denoiser: Denoiser, due: Due) -> None:
    """Held-out error, sample grid and scores, those that are due."""
    config, progress = training.config.eval, state.progress
    if due.heldout:
        evaluate_heldout(training, state, denoiser)
    if due.samples:
        path = training.run.samples / f"{CHECKPOINT_NAME.format(progress.step)}.png"
        own = len(training.runtime.rank_indices(config.samples))
        with training.console.sampling_bar("sample grid", own, config.sample_steps) as advance:
            write_samples(denoiser, config, path, training.runtime, advance)
    if training.scorer is not None and due.scores:
        evaluate_scores(training, state, denoiser, training.scorer)


def evaluate_heldout(training: Training, state: State, denoiser: Denoiser, *, handed_over: bool = False) -> None:
    """Held-out error of both kinds of weights, at noise levels and with noise that never change.

    Args:
        training: the run.
        state: whose weights.
        denoiser: of the averaged weights, at the image size of the stage.
        handed_over: whether these are weights of another size of images or patches, so that fresh ones are measured
            beside them.
    """
    if training.heldout is None:
        return
    runtime, progress = training.runtime, state.progress
    heldout, spec = training.heldout[progress.stage], training.stage_spec(progress.stage)
    with eval_mode(state.ema), eval_mode(state.model):
        ema, raw = (heldout.error(replace(denoiser, backbone=net), runtime) for net in (state.ema, state.model))
    fresh = None
    if handed_over:
        network = stages.init_network(training.config, spec, runtime).eval()
        fresh = heldout.error(replace(denoiser, backbone=network), runtime).mean
    smaller = spec.image_size != training.spec.image_size
    event = HeldoutEvent(
        stage=training.stage(progress).name,
        step=progress.step,
        images=progress.images,
        error_ema=ema.mean,
        error_raw=raw.mean,
        n=len(heldout),
        seconds=progress.seconds,
        error_mean=heldout.error_of_mean,
        image_size=spec.image_size if smaller else None,
        error_fresh=fresh,
        by_noise=tuple(
            NoiseRange(low=r.low, high=r.high, n=r.n, error_ema=a, error_raw=b, error_linear=r.error_linear)
            for r, a, b in zip(heldout.ranges, ema.by_range, raw.by_range, strict=True)
        ),
    )
    training.record(event)
    where = f" at {px(spec.image_size)}" if smaller else ""
    said = f"held-out error{where} {ema.mean:.4f} (ema), {raw.mean:.4f} (raw), n = {len(heldout)}"
    training.console.say(f"  {progress.images:>12,} images: {said}")
    if fresh is not None:
        said = f"of fresh weights {fresh:.4f}, of the mean image {event.error_mean:.4f}"
        training.console.say(f"  right after the change of size; {said}")
        _warn_of_loss(training, event, fresh)


def _warn_of_loss(training: Training, event: HeldoutEvent, fresh: float) -> None:
    """Where a network for other images or patches has nothing of what the stage before learned."""
    error, mean = event.error_ema, event.error_mean or 0.0
    worse = [f"fresh weights ({fresh:.4f})"] * (error >= fresh) + [f"the mean image ({mean:.4f})"] * (error >= mean)
    if worse:
        training.console.warn(
            f"stage {event.stage}: right after the change the held-out error is {error:.4f}, no better than that of "
            f"{' or '.join(worse)}: what the stage before learned is of no use here. Weights go best to larger "
            "images at one patch size, with process.prediction x0, and from a stage that has learned something; else "
            "leave its image_size and patch_size out"
        )


def evaluate_scores(training: Training, state: State, denoiser: Denoiser, scorer: Scorer) -> None:
    """Images generated by all ranks against held-out ones, as `maskdm eval` of these weights would score them."""
    num, runtime, progress = training.config.eval.score_images, training.runtime, state.progress
    sampling = sampling_config(denoiser, seeds=range(num), labels=scorer.labels)
    with training.console.sampling_bar("images to score", len(runtime.rank_indices(num)), STEPS) as advance:
        unit = sample_across_ranks(sampling, num, runtime, batch_size=CHUNK, callback=advance)
    if runtime.main:
        scores = scorer(to_uint8_nhwc(unit))
        event = ScoreEvent.model_validate(
            {
                "stage": training.stage(progress).name,
                "step": progress.step,
                "images": progress.images,
                "n": num,
                "seconds": progress.seconds,
                **scores,
            }
        )
        training.record(event)
        said = f"{event.title} {event.frechet_distance:.4g}, n = {num:,}"
        training.console.say(f"  {progress.images:>12,} images: {said}")
    runtime.barrier()


def write_samples(
    denoiser: Denoiser, config: EvalConfig, path: Path, runtime: Runtime, callback: Callable[[int], None]
) -> None:
    """A grid of images from seeds 0, 1, ..., sampled as `maskdm sample` does by default; every rank makes some."""
    sampling = sampling_config(denoiser, steps=config.sample_steps, seeds=range(config.samples))
    unit = sample_across_ranks(sampling, config.samples, runtime, batch_size=CHUNK, callback=callback)
    if runtime.main:
        captions = [sampling.class_name(i) for i in range(config.samples)]
        save_grid(to_uint8_nhwc(unit), path, captions=captions)
