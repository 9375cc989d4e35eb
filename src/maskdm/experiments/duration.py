"""How long a comparison will take, from a few real steps of every network: training is often the least of it.

What a forward pass takes is taken from a training step by its FLOPs; so are stages that are not measured. The result is
about right, and of the machine as it is at this moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import mean, median

from maskdm.diffusion.mask_schedule import MaskSchedule
from maskdm.diffusion.masks import masking
from maskdm.diffusion.patches import patch_grid
from maskdm.evaluation.encoder import BATCH, training_seconds, trains_on_members
from maskdm.experiments import throughput
from maskdm.experiments.comparison import Comparison
from maskdm.experiments.runner import Runs, stage_tasks
from maskdm.experiments.throughput import task_key
from maskdm.models.flops import forward_flops, training_flops
from maskdm.models.spec import ModelSpec
from maskdm.profiling.forecast import format_hours
from maskdm.runtime.distributed import init_runtime
from maskdm.sampling.sample import STEPS
from maskdm.training import stages
from maskdm.training.prepare import Prepared
from maskdm.training.step import Task
from maskdm.training.step_profiler import StepProfiler

RUN_SECONDS = 3.0
"""Of a run that are none of the others: its folder, checkpoints, weights and page."""
MEASURED_STEPS = 3


@dataclass(frozen=True)
class ComparisonForecast:
    """Seconds of all runs together.

    Attributes:
        training: of the arms, and of what they start from.
        pace: measuring what an image costs in every stage.
        heldout: held-out errors.
        grids: images of sample grids.
        scores: images to be scored, and the training of an encoder.
        rest: folders, checkpoints and pages.
    """

    training: float = 0.0
    pace: float = 0.0
    heldout: float = 0.0
    grids: float = 0.0
    scores: float = 0.0
    rest: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(astuple(self)))


def forecast_comparison(comparison: Comparison, runs: Runs) -> ComparisonForecast:
    """Measures a few steps of every network; nothing is trained or kept.

    Args:
        comparison: the file.
        runs: what `resolve_runs` made of it.
    """
    first = comparison.seeds[0]
    everything = {
        **{f"pretrained {name}": found for (name, seed), found in runs.pretrained.items() if seed == first},
        **{name: found for (name, seed), found in runs.arms.items() if seed == first},
    }
    tasks = stage_tasks(everything)
    pace = {name: _seconds_per_flop(task) for name, task in _one_of_each_network(tasks).items()}
    per_flop = {name: [pace[_network_of(task)] for task in found] for name, found in tasks.items()}
    seeds = len(comparison.seeds)
    found = [_of_run(comparison, name, prepared, per_flop[name]) for name, prepared in everything.items()]
    sums = [seeds * sum(column) for column in zip(*map(astuple, found), strict=True)]
    whole = ComparisonForecast(*sums)
    minutes = {task_key(t): t for name, each in tasks.items() if _timed(comparison, everything, name) for t in each}
    return ComparisonForecast(
        training=whole.training,
        pace=sum(_pace_seconds(task, pace[_network_of(task)]) for task in minutes.values()),
        heldout=whole.heldout,
        grids=whole.grids,
        scores=whole.scores + _encoder_seconds(everything[comparison.baseline]),
        rest=whole.rest,
    )


def format_forecast(forecast: ComparisonForecast, runs: int) -> str:
    """A line for a terminal."""
    named = {
        "training": forecast.training,
        "measuring what an image costs": forecast.pace,
        "held-out errors": forecast.heldout,
        "sample grids": forecast.grids,
        "scores": forecast.scores,
        "the rest": forecast.rest,
    }
    parts = ", ".join(f"{format_hours(seconds / 3600)} {name}" for name, seconds in named.items() if seconds >= 0.5)
    return f"{runs} runs, about {format_hours(forecast.total / 3600)} here: {parts}"


def _one_of_each_network(tasks: Mapping[str, Sequence[Task]]) -> dict[str, Task]:
    """The first stage on each network under each optimizer, of the last run that has it."""
    return {_network_of(task): task for found in tasks.values() for task in reversed(found)}


def _network_of(task: Task) -> str:
    """Equal for tasks whose FLOPs take as long."""
    train = task.config.train.model_dump_json(exclude={"seed"})
    return task.spec.model_dump_json() + train + task.config.stages[0].optimizer


def _seconds_per_flop(task: Task) -> float:
    """Of training steps of a task's first stage, optimizer and all."""
    profiler = StepProfiler(task)
    profiler.step()  # warms up
    taken = median(profiler.steps(0.0, MEASURED_STEPS))
    return taken / _step_flops(task)


def _step_flops(task: Task) -> float:
    return task.config.stages[0].batch_size * _image_flops(task.spec, task.masks[0])


def _image_flops(spec: ModelSpec, masks: MaskSchedule) -> float:
    return mean(training_flops(spec, phase) for phase in masks.phases)


def _pace_seconds(task: Task, per_flop: float) -> float:
    """Of all turns of a stage, and the step that warms up."""
    step = _step_flops(task) * per_flop
    return throughput.ROUNDS * max(throughput.SECONDS, throughput.STEPS * step) + step


def _timed(comparison: Comparison, runs: Mapping[str, Prepared], name: str) -> bool:
    """Whether it is measured what images of this run cost."""
    if name in comparison.arms:
        return comparison.budget.minutes is not None
    return any(stage.minutes for stage in runs[name].config.stages)


def _encoder_seconds(prepared: Prepared) -> float:
    """Of training the encoder in which images are scored, where there is one."""
    if prepared.config.eval.scores != "encoder":
        return 0.0
    dataset, runtime = prepared.dataset, init_runtime(prepared.config.train)
    members, heldout = dataset.rows("member"), dataset.rows("heldout")
    rows = members if trains_on_members(len(members), len(heldout)) else heldout
    return training_seconds(dataset.images.take(rows[:BATCH]), len(rows), runtime.device)


def _of_run(comparison: Comparison, name: str, prepared: Prepared, per_flop: Sequence[float]) -> ComparisonForecast:
    """One run of an arm, or of what arms start from; `per_flop` has the seconds in each of its stages."""
    config = prepared.config
    specs = [prepared.stage_spec(i) for i in range(len(config.stages))]
    lengths = [
        60 * stage.minutes
        if stage.minutes
        else (stages.total_steps(stage) or 0) * stage.batch_size * _image_flops(spec, masks) * each
        for stage, spec, masks, each in zip(config.stages, specs, prepared.masks, per_flop, strict=True)
    ]
    training = sum(lengths)
    forward = [_whole_image_flops(spec) * each for spec, each in zip(specs, per_flop, strict=True)]
    evaluated = 2 * sum(forward)
    if name in comparison.arms:
        budget = comparison.budget
        whole = 60 * budget.minutes if budget.minutes else 1e15 * (budget.petaflops or 0) * per_flop[-1]
        training = comparison.arms[name].budget * whole
        evaluated += comparison.evaluations * mean(forward)
    scored = sum(each for each, spec in zip(forward, specs, strict=True) if spec.image_size == prepared.spec.image_size)
    counts = prepared.dataset.counts
    return ComparisonForecast(
        training=training,
        heldout=evaluated * 2 * min(config.eval.heldout_images, counts["heldout"]),
        grids=sum(forward) * config.eval.samples * config.eval.sample_steps,
        scores=scored * config.eval.score_images * STEPS if config.eval.scores else 0.0,
        rest=RUN_SECONDS,
    )


def _whole_image_flops(spec: ModelSpec) -> int:
    """Of a forward pass with nothing masked."""
    return forward_flops(spec, masking("none", patch_grid(spec.image_size, spec.model.patch_size)))
