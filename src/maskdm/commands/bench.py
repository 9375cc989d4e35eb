"""`maskdm bench`: what a training step costs with more and fewer patches masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskdm.commands.arguments import Settings, read_settings
from maskdm.config.schema import Config
from maskdm.errors import InputError
from maskdm.files import check_folder, make_folder, write_json
from maskdm.profiling.bench import RATIOS, ROUNDS, BenchRow, bench_as_json, bench_masks, measure_masks
from maskdm.runtime import distributed
from maskdm.runtime.console import Console
from maskdm.training.describe import describe_task
from maskdm.training.prepare import make_task, prepare, synthetic_task
from maskdm.training.step import Task


@dataclass(frozen=True)
class BenchResult:
    """What steps cost.

    Attributes:
        rows: one for each mask.
        peak: FLOP/s of a large matrix product in the same precision, the most that the device gives.
    """

    rows: tuple[BenchRow, ...]
    peak: float


def bench(
    data: str | Path | None = None,
    *,
    recipe: str | None = None,
    config: str | Path | Config | None = None,
    settings: Settings | None = None,
    ratios: Sequence[float] = RATIOS,
    rounds: int = ROUNDS,
    output: str | Path | None = None,
    quiet: bool = False,
) -> BenchResult:
    """Times steps of the first stage with its kind of mask at several ratios, against the device's matrix product.

    Args:
        data: the images; without them images of noise in memory.
        recipe, config, settings: as of `maskdm.train`.
        ratios: shares of patches to mask, 0 to below 1.
        rounds: measurements of each.
        output: a .json that the rows are written to.
        quiet: no progress on standard error.

    Returns:
        A row for each ratio that the grid of patches can give, and the peak.

    Raises:
        InputError: settings or images that cannot be used, ratios out of range, a place that cannot be written to.

    Example:
        >>> for row in maskdm.bench(recipe="celeba64-s", ratios=[0, 0.75]).rows:
        ...     print(row.mask, row.seconds)
    """
    if not ratios or not all(0 <= ratio < 1 for ratio in ratios):
        raise InputError("ratios", got=list(ratios), wanted="ratios from 0 to below 1 such as 0, 0.5, 0.9")
    if rounds < 1:
        raise InputError("rounds", got=rounds, wanted="at least 1")
    if output is not None:
        check_folder(Path(output).parent, "output")
    task = _task(read_settings(data=data, recipe=recipe, config=config, settings=settings), Console(quiet=quiet))
    with task.runtime:
        masks = bench_masks(task.config.stages[0].mask, ratios, task)
        rows, peak = measure_masks(task, masks, rounds=rounds)
    if output is not None:
        make_folder(Path(output).parent, "output")
        write_json(Path(output), bench_as_json(rows, peak))
    return BenchResult(tuple(rows), peak)


def _task(config: Config, console: Console) -> Task:
    """What is learned: the images that the settings name, else noise."""
    if not config.data.path:
        return synthetic_task(config)
    prepared, runtime = prepare(config, console), distributed.init_runtime(config.train)
    describe_task(prepared, runtime, console)
    return make_task(prepared, runtime, prepared.dataset.rows("member"))
