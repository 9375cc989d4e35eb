"""What an image costs in every stage of a comparison, on this machine: measured once, side by side.

A budget in minutes becomes one in images. Whatever else the machine does later then slows a comparison down and changes
nothing in it, arms end where their learning rates say, and the same comparison gives the same weights again. What was
measured is kept beside the runs, so that a comparison that is resumed goes by it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import torch

from maskdm.diffusion.mask_schedule import MaskGroup, MaskSchedule
from maskdm.errors import InputError
from maskdm.files import write_json
from maskdm.runtime.distributed import Runtime
from maskdm.training.step import Task
from maskdm.training.step_profiler import StepProfiler

ROUNDS, SECONDS, STEPS = 9, 0.6, 3
"""Rounds in which every stage has its turn, and how long a turn is (at least STEPS steps)."""

Phase = tuple[MaskGroup, ...]


def task_key(task: Task) -> str:
    """Equal for stages that cost the same: of the settings of a task with one stage, those that make its work."""
    (stage,) = task.config.stages
    # Named only where it is another: of AdamW, speeds measured by earlier versions hold.
    optimizer = {} if stage.optimizer == "adamw" else {"optimizer": stage.optimizer}
    work = {
        "spec": task.spec.model_dump(mode="json"),
        "stage": stage.model_dump(mode="json", include={"batch_size", "micro_batch", "mask"}) | optimizer,
        "train": task.config.train.model_dump(mode="json", exclude={"seed", "save_every", "keep"}),
        "data": task.config.data.model_dump(mode="json", include={"flip", "store"}),
    }
    return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()[:16]


def seconds_per_image(tasks: Mapping[str, Task], path: Path) -> dict[str, float]:
    """Seconds of training for an image, for tasks of one stage each by their keys; kept in the file `path`.

    Raises:
        InputError: the file cannot be read, or is that of another machine.
    """
    first = next(iter(tasks.values()))
    known = _read(path, describe_machine(first.runtime))
    missing = [key for key in tasks if key not in known]
    if missing:
        # What is new is measured beside something old, and laid on its scale.
        anchor = next((key for key in tasks if key in known), None)
        found = measure_seconds({key: tasks[key] for key in ([anchor] if anchor else []) + missing})
        scale = known[anchor] / found[anchor] if anchor else 1.0
        known |= {key: scale * found[key] for key in missing}
        write_json(path, {"machine": describe_machine(first.runtime), "seconds_per_image": known})
    return {key: known[key] for key in tasks}


def measure_seconds(tasks: Mapping[str, Task]) -> dict[str, float]:
    """The same by real steps: every stage in turn, and again; averaged over the phases of a stage's masks.

    A turn counts by its median step, a stage by its median turn: what else the machine did in fewer than half of the
    turns is no cost, and stages of few slow steps are treated as those of many fast ones (the best of several turns
    would flatter the former, whose turns differ more).
    """
    profilers: dict[str, StepProfiler] = {}
    turns: list[tuple[str, Phase, Task, StepProfiler]] = []
    for key, task in tasks.items():
        network = task.spec.model_dump_json() + task.config.train.model_dump_json() + task.config.stages[0].optimizer
        if network not in profilers:  # one network and optimizer, however many stages are measured on them
            profilers[network] = StepProfiler(task)
        phases = dict.fromkeys(task.masks[0].phases)
        turns += [(key, phase, replace(task, masks=[MaskSchedule((phase,))]), profilers[network]) for phase in phases]
    taken: dict[tuple[str, Phase], list[float]] = {}
    for number in range(ROUNDS + 1):
        for key, phase, task, profiler in turns:
            profiler.use(task)
            steps = profiler.steps(SECONDS, STEPS) if number else [profiler.step()]
            if number:  # the first round warms up
                taken.setdefault((key, phase), []).append(median(steps))
    return {
        key: mean(median(taken[key, phase]) for phase in task.masks[0].phases) / task.config.stages[0].batch_size
        for key, task in tasks.items()
    }


def describe_machine(runtime: Runtime) -> str:
    """What throughput depends on besides the work: the device, its name, threads, the version of torch."""
    name = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else platform.machine()
    return f"{runtime.device.type}, {name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _read(path: Path, machine: str) -> dict[str, float]:
    """What was measured before on this machine."""
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        there, known = str(page["machine"]), {str(k): float(v) for k, v in page["seconds_per_image"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            str(path), f"cannot be read ({type(error).__name__})", remedy="remove it, and throughput is measured again"
        ) from None
    if there != machine:
        raise InputError(
            str(path),
            "throughput was measured on another machine",
            got=there,
            wanted=machine,
            remedy="resume there, or compare in another output folder",
        )
    return known
