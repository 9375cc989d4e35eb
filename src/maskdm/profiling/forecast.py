"""What a run will take, before it begins: memory, speed, hours and energy of each stage, from a few real steps."""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median

import torch

from maskdm.config.schema import EvalConfig
from maskdm.diffusion.mask_schedule import MaskSchedule
from maskdm.runtime.console import duration
from maskdm.sampling.sample import STEPS, sample_images, sampling_config
from maskdm.training import stages
from maskdm.training.stage_specs import says_of_model
from maskdm.training.step import Task
from maskdm.training.step_profiler import MemoryEstimate, StepProfiler, equal_parts

FEW = 4
"""Images by which the pace of sampling is told."""
WATTS_OF_A_CORE = 8.0
"""A guess for a server's core with its share of memory and fans, under load."""


@dataclass(frozen=True)
class StageForecast:
    """What one stage will take.

    Attributes:
        name, mask: in words.
        steps, images: of the whole stage.
        micro_batch: images that a rank computes at once.
        memory: of a step, or None where the system does not tell.
        seconds: of a step.
        hours: of the stage.
        kilowatt_hours: likewise, estimated.
        waiting: share of a step spent waiting for images.
        measuring: hours that come on top: held-out errors, sample grids, scores.
        model: what it trains where that is not the run's model: smaller images, other patches; in words.
    """

    name: str
    mask: str
    steps: int
    images: int
    micro_batch: int
    memory: MemoryEstimate | None
    seconds: float
    hours: float
    kilowatt_hours: float
    waiting: float
    measuring: Mapping[str, float] = field(default_factory=dict)
    model: str = ""


def forecast_stages(task: Task, *, seconds: float, watts: float) -> Iterator[StageForecast]:
    """Every stage in turn.

    Args:
        task: whose stages are measured.
        seconds: of measuring for each, about.
        watts: of the device of one rank under load.
    """
    for number, stage in enumerate(task.config.stages):
        profiler = StepProfiler(task, number)
        memory = profiler.memory()
        most = profiler.batch_size if memory is None else memory.largest
        if stage.micro_batch == "auto":
            micro_batch = equal_parts(profiler.batch_size, max(most, 1))
        else:
            micro_batch = stage.micro_batch or profiler.batch_size
        profiler.state.progress.micro_batch = micro_batch
        step, waiting = _time(profiler, number, seconds)
        steps = stages.total_steps(stage)
        if steps is None:
            assert stage.minutes is not None, "a stage has one length"
            steps = max(int(60 * stage.minutes / step), 1)
        hours = steps * step / 3600 if stage.minutes is None else stage.minutes / 60
        scored = task.stage_spec(number).image_size == task.spec.image_size  # as in training
        config = task.config.eval if scored else task.config.eval.model_copy(update={"scores": None})
        per_call = seconds_per_call(profiler, number) / task.runtime.world_size
        measuring = measuring_hours(config, number, steps * stage.batch_size, per_call)
        yield StageForecast(
            name=stage.name,
            mask=str(task.masks[number]),
            steps=steps,
            images=steps * stage.batch_size,
            micro_batch=micro_batch,
            memory=memory,
            seconds=step,
            hours=hours,
            kilowatt_hours=hours * watts * task.runtime.world_size / 1000,
            waiting=waiting,
            measuring=measuring,
            model=says_of_model(task.spec, stage),
        )


def measuring_hours(config: EvalConfig, stage: int, images: int, seconds_per_call: float) -> dict[str, float]:
    """Hours that a stage spends on being measured, by what is measured.

    Args:
        config: how often, and how much each time.
        stage: its number, from 0.
        images: of the stage.
        seconds_per_call: of the network for one image.
    """
    every = config.heldout_every if isinstance(config.heldout_every, int) else config.heldout_every[stage]
    calls = {
        "held-out errors": (1 + math.ceil(images / every)) * 2 * config.heldout_images,
        "sample grids": math.ceil(images / config.samples_every) * config.samples * config.sample_steps,
        "scores": 0 if config.scores is None else math.ceil(images / config.scores_every) * config.score_images * STEPS,
    }
    return {name: count * seconds_per_call / 3600 for name, count in calls.items() if count}


def seconds_per_call(profiler: StepProfiler, number: int) -> float:
    """Of the network for one image, by sampling a few in two steps."""
    task = profiler.task
    config = sampling_config(task.denoiser(number, profiler.state.ema), steps=2)
    since = time.perf_counter()
    sample_images(config, range(FEW))
    task.runtime.synchronize()
    return (time.perf_counter() - since) / (2 * FEW)


def _time(profiler: StepProfiler, number: int, seconds: float) -> tuple[float, float]:
    """Seconds of a step, on average over the phases of the stage's masks, and the share of them spent on waiting."""
    task, waited = profiler.task, 0.0
    phases = dict.fromkeys(task.masks[number].phases)
    measured = {}
    for phase in phases:
        profiler.task = replace(task, masks=[MaskSchedule((phase,))] * len(task.masks))
        profiler.step()
        before = task.data.images.waited
        taken = profiler.steps(seconds / len(phases))
        waited += (task.data.images.waited - before) / (profiler.between * sum(taken))
        measured[phase] = median(taken)
    return mean(measured[phase] for phase in task.masks[number].phases), waited / len(phases)


def estimate_watts(device: torch.device) -> float:
    """Watts that the device is allowed (a GPU, by nvidia-smi), or an estimate from the number of cores."""
    if device.type == "cuda":
        question = [
            "nvidia-smi",
            f"--id={device.index or 0}",
            "--query-gpu=power.limit",
            "--format=csv,noheader,nounits",
        ]
        try:
            return float(subprocess.run(question, capture_output=True, text=True, check=True, timeout=20).stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            return 400.0
    return WATTS_OF_A_CORE * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 30.0


def format_forecasts(forecasts: Sequence[StageForecast]) -> list[str]:
    """Lines for a terminal: every stage, and all of them together."""
    lines = []
    for i, f in enumerate(forecasts):
        lines.append(f"stage {i + 1}, {f.name}: {f'{f.model}; ' if f.model else ''}{f.mask}")
        lines.append(
            f"  {f.steps:,} steps of {f.seconds:.3g} s, {f.images:,} images at {f.images / f.steps / f.seconds:,.0f} a "
            f"second ({f.waiting:.1%} of it waiting for images)"
        )
        lines.append(f"  {format_hours(f.hours)}, about {f.kilowatt_hours:.2g} kWh (estimated)")
        lines.append("  " + _format_memory(i, f))
        if f.measuring:
            parts = [f"{name} {format_hours(hours)}" for name, hours in f.measuring.items()]
            lines.append(f"  on top of that, measuring: {', '.join(parts)}")
    total, energy = sum(f.hours for f in forecasts), sum(f.kilowatt_hours for f in forecasts)
    measuring = sum(sum(f.measuring.values()) for f in forecasts)
    more = f", and {format_hours(measuring)} of measuring (settings eval.*)" if measuring else ""
    return [*lines, f"in all {format_hours(total)} of training, about {energy:.2g} kWh{more}"]


def _format_memory(number: int, f: StageForecast) -> str:
    """What stage `number` takes, and how large a micro-batch could be."""
    if f.memory is None:
        return f"{f.micro_batch} images at once; this system does not tell how much memory they take"
    gib = 2**30
    said = (
        f"{f.micro_batch} images at once take {f.memory.of(f.micro_batch) / gib:.2f} GiB "
        f"({f.memory.fixed / gib:.2f} and {f.memory.per_image / 2**20:.1f} MiB an image) "
        f"of {f.memory.free / gib:.1f} GiB"
    )
    if f.memory.largest < f.micro_batch:
        return f"{said}: too many; write stages.{number}.micro_batch=auto for {f.memory.largest} at most"
    return f"{said}; up to {f.memory.largest:,} would fit"


def format_hours(hours: float) -> str:
    """4 s; 30 min; 1 h 30 min; 3.0 days."""
    return duration(3600 * hours)
