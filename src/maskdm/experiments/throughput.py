"""What an image costs in every stage of a comparison, on this machine: measured once, side by side.

A budget in minutes becomes one in images. Whatever else the machine does later then slows a comparison down and changes
nothing in it, arms end where their learning rates say, and the same comparison gives the same weights again. The paces
are kept beside the runs, so that a comparison that goes on goes on with them.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import torch

from maskdm.diffusion.mask_schedule import MaskPlan, Portion
from maskdm.errors import InputError
from maskdm.runtime.distributed import Runtime
from maskdm.training.step import Task
from maskdm.training.step_profiler import Trial

ROUNDS, SECONDS = 5, 1.0
"""Rounds in which every stage has its turn, and how long a turn is (at least a step)."""

Moment = tuple[Portion, ...]


def key_of(task: Task) -> str:
    """Equal for stages that cost the same: of the settings of a task with one stage, those that make its work."""
    (stage,) = task.config.stages
    made = {
        "spec": task.spec.model_dump(mode="json"),
        "stage": stage.model_dump(mode="json", include={"batch_size", "micro_batch", "mask"}),
        "train": task.config.train.model_dump(mode="json", exclude={"seed", "save_every", "keep"}),
        "data": task.config.data.model_dump(mode="json", include={"flip", "store"}),
    }
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


def paces(tasks: Mapping[str, Task], path: Path) -> dict[str, float]:
    """Seconds an image, for tasks of one stage each by their keys; kept in the file `path`.

    Raises:
        InputError: the paces in the file are those of another machine.
    """
    first = next(iter(tasks.values()))
    known = _read(path, machine(first.runtime))
    missing = [key for key in tasks if key not in known]
    if missing:
        # What is new is measured beside something old, and laid on its scale.
        anchor = next((key for key in tasks if key in known), None)
        found = measure({key: tasks[key] for key in ([anchor] if anchor else []) + missing})
        scale = known[anchor] / found[anchor] if anchor else 1.0
        known |= {key: scale * found[key] for key in missing}
        page = {"machine": machine(first.runtime), "seconds_per_image": known}
        path.write_text(json.dumps(page, indent=2) + "\n")
    return {key: known[key] for key in tasks}


def measure(tasks: Mapping[str, Task]) -> dict[str, float]:
    """The same by real steps: every stage in turn, and again; averaged over a stage's masks.

    A turn counts by its median step, a stage by its best turn: what else the machine did in others is no cost.
    """
    trials: dict[str, Trial] = {}
    turns: list[tuple[str, Moment, Task, Trial]] = []
    for key, task in tasks.items():
        network = task.spec.model_dump_json() + task.config.train.model_dump_json()
        if network not in trials:  # one network, however many stages are tried on it
            trials[network] = Trial(task)
        trial = trials[network]
        moments = dict.fromkeys(task.masks[0].moments)
        turns += [(key, moment, replace(task, masks=[MaskPlan((moment,))]), trial) for moment in moments]
    best: dict[tuple[str, Moment], float] = {}
    for number in range(ROUNDS + 1):
        for key, moment, task, trial in turns:
            trial.use(task)
            steps = trial.steps(SECONDS) if number else [trial.step()]
            if number:  # the first round warms up
                best[key, moment] = min(median(steps), best.get((key, moment), math.inf))
    return {
        key: mean(best[key, moment] for moment in task.masks[0].moments) / task.config.stages[0].batch_size
        for key, task in tasks.items()
    }


def machine(runtime: Runtime) -> str:
    """What a pace depends on besides the work."""
    name = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else platform.machine()
    return f"{runtime.device.type}, {name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _read(path: Path, here: str) -> dict[str, float]:
    try:
        page = json.loads(path.read_text())
        there, known = str(page["machine"]), {str(k): float(v) for k, v in page["seconds_per_image"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}); remove it, and paces are measured again"
        ) from None
    if there != here:
        raise InputError(
            f"{path}: paces were measured on {there}, this is {here}; go on there, or compare in another --output-dir"
        )
    return known


__all__: Sequence[str] = ("key_of", "machine", "measure", "paces")
