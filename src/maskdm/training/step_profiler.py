"""A few real steps of a stage, measured and thrown away: what `plan`, `bench` and `micro_batch: auto` go by."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.mask_schedule import constant
from maskdm.errors import InputError
from maskdm.models.flops import forward_flops
from maskdm.runtime import memory
from maskdm.runtime.device import deterministic
from maskdm.training import stages
from maskdm.training.checkpoint import State
from maskdm.training.clock import Clock
from maskdm.training.optim import moment_bytes
from maskdm.training.progress import Progress
from maskdm.training.step import (
    Task,
    draw_micro_batches,
    forward_backward,
    graph_count,
    training_step,
)

STEPS_BETWEEN_WAITS = 10
"""On a GPU, while steps are timed."""
USABLE = 0.85
"""Share of the free memory that a step may plan with; the rest is for fragments and for what else runs."""


class StepProfiler:
    """A stage as it would be trained, from fresh weights; nothing of it is kept.

    Args:
        task: what is trained.
        stage: the stage, from 0.

    Attributes:
        task: what is trained.
        state: of the training, at the start of the stage.
        batch_size: images of a step on this rank.
    """

    def __init__(self, task: Task, stage: int = 0) -> None:
        self.task = task
        self.batch_size = task.config.stages[stage].batch_size // task.runtime.world_size
        self.state = stages.init_state(task.config, task.stage_spec(stage), task.runtime, Progress(stage=stage))
        self._model = task.runtime.wrap(self.state.model, graph_count(task))
        self._learner = task.denoiser(stage, self._model)

    def use(self, task: Task) -> None:
        """Another task for the same network, with its own micro-batch."""
        micro_batch = task.stage(self.state.progress).micro_batch
        self.task = task
        self.state.progress.micro_batch = micro_batch if isinstance(micro_batch, int) else None

    @property
    def between(self) -> int:
        """Steps between two waits for the device. In training there are many: while a GPU computes one, the host is
        ahead, which shows most where steps are short; to wait for every single one would charge that to them."""
        return STEPS_BETWEEN_WAITS if self.task.runtime.device.type == "cuda" else 1

    def step(self, count: int = 1) -> float:
        """`count` steps to their very end: seconds of one."""
        with deterministic(self.task.config.train.deterministic):
            clock = Clock(self.task.runtime)
            for _ in range(count):
                training_step(self.task, self.state, self._learner, self._model)
                self.state.progress.advance(self.task.stage(self.state.progress).batch_size, 0.0)
            return clock.lap(wait=True) / count

    def steps(self, seconds: float, least: int = 3, most: int = 50) -> list[float]:
        """Steps for `seconds`, waited for every `between`: seconds of one between each two waits.

        Args:
            seconds: for how long.
            least, most: waits.
        """
        taken: list[float] = []
        while len(taken) < least or (self.between * sum(taken) < seconds and len(taken) < most):
            taken.append(self.step(self.between))
        return taken

    def memory(self) -> MemoryEstimate | None:
        """Memory of its steps, see `estimate_memory`."""
        return estimate_memory(self.task, self.state, self._learner)


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a step, in bytes: `fixed + per_image * micro_batch`.

    Attributes:
        fixed: weights, their average, gradients, the optimizer's moments, and what the process has anyway.
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


def estimate_memory(task: Task, state: State, learner: Denoiser) -> MemoryEstimate | None:
    """The memory that steps of a stage at its start take; None where the system does not tell.

    By gradients of ever more images under the mask that leaves most visible, and from there on in a straight line.
    Stops long before memory runs out; weights and buffers stay as they are.

    Args:
        task: what is trained.
        state: at the start of the stage.
        learner: a denoiser of its network as it is called in training, compiled and wrapped.
    """
    device, progress = task.runtime.device, state.progress
    spec = task.stage_spec(progress.stage)
    heaviest = max(task.masks[progress.stage].maskings, key=lambda masking: forward_flops(spec, masking))
    task = replace(task, masks=[constant(heaviest)] * len(task.masks))
    free = memory.available_bytes(device) + memory.bytes_in_use(device)
    share = task.stage(progress).batch_size // task.runtime.world_size
    found: list[tuple[int, int]] = []
    # Every size that is tried is compiled, which takes a minute: then fewer, further apart.
    apart = 4 if task.runtime.compile else 2
    buffers = state.buffers.keep()
    for size in powers_of(apart, share):
        part = draw_micro_batches(task, learner, replace(progress, micro_batch=size))[0]
        _, most = memory.peak_bytes(device, partial(forward_backward, task, state, learner, part))
        state.optimizer.zero_grad(set_to_none=True)
        if most is None:
            state.buffers.restore(buffers)
            return None
        found.append((len(part), most))
        # Ranks stop together: gradients of sharded weights are computed by all of them at once.
        if len(found) > 1 and task.runtime.any_rank(most > free / (2 * apart)):
            break
    state.buffers.restore(buffers)
    (small, low), (large, high) = found[0] if len(found) == 1 else found[-2], found[-1]
    # One image alone says nothing of what the next would add: all of it counts as the image's.
    per_image = max(high - low, 0) / (large - small) if large > small else float(high)
    moments = 0 if state.optimizer.state else moment_bytes(state.model, task.stage(progress))
    return MemoryEstimate(int(high - per_image * large) + moments, per_image, free)


def choose_micro_batch(task: Task, state: State, learner: Denoiser) -> int | None:
    """As `micro_batch: auto`: the most that fits, in as few equal parts of the batch as possible.

    Returns:
        Images of a micro-batch on a rank, None for all of the rank's.

    Raises:
        InputError: not even one image fits.
    """
    stage, number = task.stage(state.progress), state.progress.stage
    if stage.micro_batch != "auto":
        return stage.micro_batch
    estimate = estimate_memory(task, state, learner)
    if estimate is None:
        return None
    largest = int(task.runtime.all_reduce_min(estimate.largest))
    if not largest:
        raise InputError(
            f"stages.{number}.micro_batch",
            f"one image takes {estimate.of(1):,} bytes, and {int(USABLE * estimate.free):,} can be used",
            got="auto",
            remedy="take a smaller model or larger patches",
        )
    return equal_parts(stage.batch_size // task.runtime.world_size, largest)


def powers_of(base: int, share: int, most: int = 64) -> list[int]:
    """1, `base`, `base`^2, ... up to a rank's share of the batch, or `most`: the micro-batches that are tried."""
    return [base**i for i in range(most.bit_length()) if base**i <= min(share, most)]


def equal_parts(batch: int, most: int) -> int:
    """The size of equal parts of a batch, none larger than `most`."""
    return math.ceil(batch / math.ceil(batch / min(most, batch)))
