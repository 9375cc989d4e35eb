"""A few real steps of a stage, measured and thrown away: what `plan`, `bench` and `micro_batch: auto` go by."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.mask_schedule import constant
from maskdm.errors import InputError
from maskdm.models import build
from maskdm.models.flops import forward_flops
from maskdm.runtime import memory
from maskdm.training import stages
from maskdm.training.checkpoint import Progress, State
from maskdm.training.step import Task, draw_parts, learn, training_step

USABLE = 0.85
"""Share of the free memory that a step may plan with; the rest is for fragments and for what else goes on."""


class Trial:
    """A stage as it would be trained, from fresh weights; nothing of it is kept.

    Attributes:
        task: what is trained.
        state: of the training, at the start of the stage.
        batch_size: images of a step on this rank.
    """

    def __init__(self, task: Task, stage: int = 0) -> None:
        self.task = task
        self.batch_size = task.config.stages[stage].batch_size // task.runtime.world_size
        self.state = stages.fresh_state(task.config, task.spec, task.runtime, Progress(stage=stage))
        self._model = task.runtime.wrap(self.state.model)
        self._learner = build.denoiser(task.spec, self._model)

    def use(self, task: Task) -> None:
        """Another task for the same network, with its own micro-batch."""
        at_once = task.stage(self.state.progress).micro_batch
        self.task, self.state.progress.micro_batch = task, at_once if isinstance(at_once, int) else None

    def step(self) -> float:
        """One step to its very end: seconds."""
        since = time.perf_counter()
        training_step(self.task, self.state, self._learner, self._model)
        self.task.runtime.synchronise()
        seconds = time.perf_counter() - since
        self.state.progress.advance(self.task.stage(self.state.progress).batch_size, 0.0)
        return seconds

    def need(self) -> Need | None:
        """See `measure_need`."""
        return measure_need(self.task, self.state, self._learner)

    def steps(self, seconds: float, least: int = 3, most: int = 50) -> list[float]:
        """As many steps as fit into `seconds`, but at least `least` and at most `most`: seconds of each."""
        taken: list[float] = []
        while len(taken) < least or (sum(taken) < seconds and len(taken) < most):
            taken.append(self.step())
        return taken


@dataclass(frozen=True)
class Need:
    """Memory of a step, in bytes: `fixed + per_image * micro_batch`.

    Attributes:
        fixed: weights, their average, gradients, the optimiser's moments, and what the process has anyway.
        per_image: activations of one image.
        free: what there is for both.
    """

    fixed: int
    per_image: float
    free: int

    @property
    def largest(self) -> int:
        """Images that fit at once, 0 where not even one does."""
        return max(int((USABLE * self.free - self.fixed) / max(self.per_image, 1.0)), 0)

    def of(self, images: int) -> int:
        """Bytes with a micro-batch of `images`."""
        return int(self.fixed + self.per_image * images)


def measure_need(task: Task, state: State, learner: Denoiser) -> Need | None:
    """The memory that steps of a stage at its start take; None where the system does not tell.

    By gradients of ever more images under the mask that hides least, and from there on in a straight line. Stops long
    before memory runs out; weights stay as they are.
    """
    device, progress = task.runtime.device, state.progress
    heaviest = max(task.masks[progress.stage].maskings, key=lambda masking: forward_flops(task.spec, masking))
    task = replace(task, masks=[constant(heaviest)] * len(task.masks))
    free = memory.available(device) + memory.in_use(device)
    share = task.stage(progress).batch_size // task.runtime.world_size
    found: list[tuple[int, int]] = []
    for size in sizes(share):
        part = draw_parts(task, learner, replace(progress, micro_batch=size))[0]
        _, most = memory.peak(device, partial(learn, task, state, learner, part))
        state.optimiser.zero_grad(set_to_none=True)
        if most is None:
            return None
        found.append((len(part), most))
        # Ranks stop together: gradients of divided weights are computed by all of them at once.
        if len(found) > 1 and task.runtime.agree(most > free / 4):
            break
    (small, low), (large, high) = found[0] if len(found) == 1 else found[-2], found[-1]
    # One image alone says nothing of what the next would add: all of it counts as the image's.
    per_image = max(high - low, 0) / (large - small) if large > small else float(high)
    moments = 0 if state.optimiser.state else 2 * sum(p.numel() * p.element_size() for p in state.model.parameters())
    return Need(int(high - per_image * large) + moments, per_image, free)


def choose_micro_batch(task: Task, state: State, learner: Denoiser) -> int | None:
    """As `micro_batch: auto`: the most that fits, in as few equal parts of the batch as possible.

    Raises:
        InputError: not even one image fits.
    """
    stage, number = task.stage(state.progress), state.progress.stage
    if stage.micro_batch != "auto":
        return stage.micro_batch
    need = measure_need(task, state, learner)
    if need is None:
        return None
    largest = int(task.runtime.least(need.largest))
    if not largest:
        raise InputError(
            f"stages.{number}.micro_batch: auto, but not even one image fits: {need.of(1):,} bytes are needed, "
            f"{int(USABLE * need.free):,} can be used; take a smaller model or larger patches"
        )
    return even(stage.batch_size // task.runtime.world_size, largest)


def sizes(share: int, most: int = 64) -> list[int]:
    """1, 2, 4, ... up to a rank's share of the batch, or `most`: what is tried."""
    return [2**i for i in range(most.bit_length()) if 2**i <= min(share, most)]


def even(batch: int, most: int) -> int:
    """The size of equal parts of a batch, none larger than `most`."""
    return math.ceil(batch / math.ceil(batch / min(most, batch)))
