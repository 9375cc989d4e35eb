"""What a run will take, before it begins: memory, speed, hours and energy of each stage, from a few real steps."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import mean, median

import torch

from maskdm.diffusion.mask_schedule import MaskPlan
from maskdm.training import stages
from maskdm.training.step import Task
from maskdm.training.step_profiler import Need, Trial, even

WATTS_OF_A_CORE = 8.0
"""A guess for a server's core with its share of memory and fans, under load."""


@dataclass(frozen=True)
class Forecast:
    """One stage.

    Attributes:
        name, mask: in words.
        steps, images: of the whole stage.
        at_once: images of a micro-batch on a rank.
        need: its memory, or None where the system does not tell.
        seconds: of a step.
        hours: of the stage.
        kilowatt_hours: a guess.
        waiting: share of a step spent waiting for pictures.
    """

    name: str
    mask: str
    steps: int
    images: int
    at_once: int
    need: Need | None
    seconds: float
    hours: float
    kilowatt_hours: float
    waiting: float


def forecast(task: Task, *, seconds: float, watts: float) -> Iterator[Forecast]:
    """Every stage in turn, each measured for about `seconds`."""
    for number, stage in enumerate(task.config.stages):
        trial = Trial(task, number)
        need = trial.need()
        share = trial.batch_size
        most = need.largest if need is not None else share
        at_once = even(share, max(most, 1)) if stage.micro_batch == "auto" else stage.micro_batch or share
        trial.state.progress.micro_batch = at_once
        step, waiting = _time(trial, number, seconds)
        steps = stages.total_steps(stage)
        if steps is None:
            assert stage.minutes is not None, "a stage has one length"
            steps = max(int(60 * stage.minutes / step), 1)
        hours = steps * step / 3600 if stage.minutes is None else stage.minutes / 60
        yield Forecast(
            name=stage.name,
            mask=str(task.masks[number]),
            steps=steps,
            images=steps * stage.batch_size,
            at_once=at_once,
            need=need,
            seconds=step,
            hours=hours,
            kilowatt_hours=hours * watts * task.runtime.world_size / 1000,
            waiting=waiting,
        )


def _time(trial: Trial, number: int, seconds: float) -> tuple[float, float]:
    """Seconds of a step, on average over the moments of the stage's masks, and the share of them spent waiting."""
    task, times, waited = trial.task, [], 0.0
    moments = dict.fromkeys(task.masks[number].moments)
    measured = {}
    for moment in moments:
        masks = [MaskPlan((moment,))] * len(task.masks)
        trial.task = replace(task, masks=masks)
        trial.step()
        before = task.data.images.waited
        taken = trial.steps(seconds / len(moments))
        waited += (task.data.images.waited - before) / sum(taken)
        measured[moment] = median(taken)
    times = [measured[moment] for moment in task.masks[number].moments]
    return mean(times), waited / len(moments)


def power(device: torch.device) -> float:
    """Watts that the device is allowed (a GPU), or a guess from the number of cores."""
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


def lines(forecasts: list[Forecast]) -> list[str]:
    """For a person."""
    said = []
    for i, f in enumerate(forecasts):
        said.append(f"stage {i + 1}, {f.name}: {f.mask}")
        said.append(
            f"  {f.steps:,} steps of {f.seconds:.3g} s, {f.images:,} images at {f.images / f.steps / f.seconds:,.0f} a "
            f"second ({f.waiting:.1%} of it waiting for pictures)"
        )
        said.append(f"  {hours(f.hours)}, about {f.kilowatt_hours:.2g} kWh (a guess)")
        said.append("  " + _memory(i, f))
    total, energy = sum(f.hours for f in forecasts), sum(f.kilowatt_hours for f in forecasts)
    return [*said, f"in all {hours(total)}, about {energy:.2g} kWh; held-out errors and sample grids come on top"]


def _memory(number: int, f: Forecast) -> str:
    if f.need is None:
        return f"{f.at_once} images at once; this system does not tell how much memory they take"
    gib = 2**30
    said = (
        f"{f.at_once} images at once take {f.need.of(f.at_once) / gib:.2f} GiB "
        f"({f.need.fixed / gib:.2f} and {f.need.per_image / 2**20:.1f} MiB an image) of {f.need.free / gib:.1f} GiB"
    )
    if f.need.largest < f.at_once:
        return f"{said}: too many; write stages.{number}.micro_batch=auto for {f.need.largest} at most"
    return f"{said}; up to {f.need.largest:,} would fit"


def hours(number: float) -> str:
    """1.5 -> "1 h 30 min"."""
    minutes = number * 60
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    if minutes < 60:
        return f"{minutes:.3g} min"
    if number < 48:
        return f"{int(number)} h {round(minutes % 60)} min"
    return f"{number / 24:.1f} days"
