"""What a run will take, before it begins: memory, speed, hours and energy of each stage, from a few real steps."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

import torch

from maskdm.diffusion.mask_schedule import MaskSchedule
from maskdm.training import stages
from maskdm.training.step import Task
from maskdm.training.step_profiler import MemoryEstimate, StepProfiler, equal_parts

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
        kilowatt_hours: likewise, a guess.
        waiting: share of a step spent waiting for images.
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
        )


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
    """Watts that the device is allowed (a GPU, by nvidia-smi), or a guess from the number of cores."""
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
        lines.append(f"stage {i + 1}, {f.name}: {f.mask}")
        lines.append(
            f"  {f.steps:,} steps of {f.seconds:.3g} s, {f.images:,} images at {f.images / f.steps / f.seconds:,.0f} a "
            f"second ({f.waiting:.1%} of it waiting for images)"
        )
        lines.append(f"  {format_hours(f.hours)}, about {f.kilowatt_hours:.2g} kWh (a guess)")
        lines.append("  " + _format_memory(i, f))
    total, energy = sum(f.hours for f in forecasts), sum(f.kilowatt_hours for f in forecasts)
    end = f"in all {format_hours(total)}, about {energy:.2g} kWh; held-out errors and sample grids come on top"
    return [*lines, end]


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
    minutes = hours * 60
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    if minutes < 60:
        return f"{minutes:.3g} min"
    if hours < 48:
        return f"{int(hours)} h {round(minutes % 60)} min"
    return f"{hours / 24:.1f} days"
