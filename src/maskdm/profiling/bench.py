"""What a training step costs here, and how that compares with what it computes and with what the machine could.

Every row is a ratio of masked patches. Rows are measured in turn, one step of each after the other, so that whatever
else runs on the machine meets them all; between rounds a large matrix product is timed, the most that the machine
gives in that precision at that moment. Medians over the rounds. FLOPs are those of `maskdm.models.flops`: one forward
pass and a backward pass of twice as many; masks, noise, norms, optimizer and average are time without FLOPs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median

import torch

from maskdm.config.stage_config import MaskConfig
from maskdm.diffusion.mask_schedule import constant
from maskdm.diffusion.masks import Masking, masking
from maskdm.diffusion.patches import patch_grid
from maskdm.errors import within
from maskdm.models.flops import BACKWARD, forward_flops
from maskdm.runtime import memory
from maskdm.runtime.device import DTYPES
from maskdm.runtime.distributed import Runtime
from maskdm.training.stage_masks import mask_values
from maskdm.training.step import Task
from maskdm.training.step_profiler import StepProfiler

ROUNDS = 5
RATIOS = (0.0, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class BenchRow:
    """The cost of a step with one mask.

    Attributes:
        mask: in words.
        mask_ratio: share of patches masked or routed around the middle of the network, 0 to 1.
        batch_size, tokens: images and visible patches of a step.
        seconds: of a step, median.
        flops: of a step.
        of_peak: FLOP/s over those of the matrix product.
        waiting: share of the step spent waiting for images.
        memory: bytes at the worst moment, or None where the system does not tell.
        over_share: (seconds over those of the first row) over (FLOPs over those of the first row).
    """

    mask: str
    mask_ratio: float
    batch_size: int
    tokens: int
    seconds: float
    flops: float
    of_peak: float
    waiting: float
    memory: int | None
    over_share: float


def matrix_peak(runtime: Runtime, seconds: float = 0.3) -> float:
    """FLOP/s of a large square matrix product in the precision of the network, the best of several.

    Args:
        runtime: the device and the precision.
        seconds: to measure for, at least.
    """
    side = 8192 if runtime.device.type == "cuda" else 2048
    dtype = DTYPES.get(runtime.precision, torch.float32)
    a, b = (torch.randn(side, side, device=runtime.device).to(dtype) for _ in range(2))
    best, spent = 0.0, 0.0
    while spent < seconds or best == 0.0:
        since = time.perf_counter()
        torch.mm(a, b)
        runtime.synchronize()
        took = time.perf_counter() - since
        best, spent = max(best, 2 * side**3 / took), spent + took
    return best


def bench_masks(mask: MaskConfig, ratios: Sequence[float], task: Task) -> list[Masking]:
    """Masks of the kind that `mask` has, one for each ratio; of kind patch where it masks nothing.

    Raises:
        InputError: a ratio that the kind or the grid cannot give.
    """
    spec = task.stage_spec(0)
    grid = patch_grid(spec.image_size, spec.model.patch_size)
    kind, _, block = mask_values(mask, grid, spec.model.backbone)
    if kind == "none":
        kind = "patch"
    with within("", ratio="ratios"):
        found = [masking(kind if ratio else "none", grid, ratio, block=block, offset=mask.offset) for ratio in ratios]
    return list(dict.fromkeys(found))


def measure_masks(task: Task, masks: Sequence[Masking], *, rounds: int = ROUNDS) -> tuple[list[BenchRow], float]:
    """Rows for `masks` in place of the first stage's, and the FLOP/s of the matrix product (median).

    Args:
        task: whose first stage is measured.
        masks: one for each row; the first row is what the others are compared with.
        rounds: measurements of each.
    """
    tasks = [replace(task, masks=[constant(mask)] * len(task.masks)) for mask in masks]
    profiler = StepProfiler(task)

    def step(which: Task, count: int = 1) -> float:
        profiler.use(which)
        return profiler.step(count)

    most = []
    for changed in tasks:  # warms up, too
        step(changed)
        most.append(memory.peak_bytes(task.runtime.device, partial(step, changed))[1])
    seconds: list[list[float]] = [[] for _ in tasks]
    waited, peaks = [0.0] * len(tasks), []
    for _ in range(rounds):
        peaks.append(matrix_peak(task.runtime))
        for i, changed in enumerate(tasks):
            step(changed)  # caches and clocks as this mask leaves them
            before = task.data.images.waited
            seconds[i].append(step(changed, profiler.between))
            waited[i] += (task.data.images.waited - before) / profiler.between
    peak, batch = median(peaks), profiler.batch_size
    flops = [(1 + BACKWARD) * batch * forward_flops(task.stage_spec(0), mask) for mask in masks]
    times = [median(steps) for steps in seconds]
    rows = [
        BenchRow(
            mask=str(mask),
            mask_ratio=mask.ratio,
            batch_size=batch,
            tokens=batch * mask.num_visible,
            seconds=times[i],
            flops=flops[i],
            of_peak=flops[i] / times[i] / peak,
            waiting=waited[i] / sum(seconds[i]),
            memory=most[i],
            over_share=(times[i] / times[0]) / (flops[i] / flops[0]),
        )
        for i, mask in enumerate(masks)
    ]
    return rows, peak


def format_bench(rows: Sequence[BenchRow], peak: float) -> list[str]:
    """Rows and the FLOP/s of the matrix product as lines for a terminal."""
    lines = [
        f"matrix product {peak / 1e9:,.0f} GFLOP/s",
        "masked  patches  s/step   images/s   patches/s  GFLOP/s  of peak  memory    waiting  cost over FLOP share",
    ]
    for row in rows:
        used = "unknown" if row.memory is None else f"{row.memory / 2**30:.2f} GiB"
        rates = f"{row.batch_size / row.seconds:9,.1f}  {row.tokens / row.seconds:10,.0f}"
        work = f"{row.flops / row.seconds / 1e9:7,.0f}  {row.of_peak:7.1%}"
        lines.append(
            f"{row.mask_ratio:6.1%}  {row.tokens // row.batch_size:7,}  {row.seconds:6.3f}  {rates}  {work}  {used:8}  "
            f"{row.waiting:7.2%}  {row.over_share:6.2f}"
        )
    return lines


def bench_as_json(rows: Sequence[BenchRow], peak: float) -> dict[str, object]:
    """The same for programs: `matrix_flops_per_second`, and under `rows` the fields of `BenchRow`."""
    return {"matrix_flops_per_second": peak, "rows": [asdict(row) for row in rows]}
