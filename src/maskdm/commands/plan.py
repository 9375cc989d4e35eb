"""`maskdm plan`: what a run would take, from a few real steps of every stage."""

from __future__ import annotations

import time
from pathlib import Path

from maskdm.commands.arguments import Settings, read_budget, read_settings, require_data
from maskdm.config.schema import Config
from maskdm.data.dataset import read_dataset
from maskdm.errors import InputError
from maskdm.profiling.budget import choose_settings
from maskdm.profiling.forecast import StageForecast, estimate_watts, forecast_stages
from maskdm.runtime import distributed
from maskdm.runtime.console import Console
from maskdm.training.describe import describe_task
from maskdm.training.prepare import check_settings, make_task, prepare

SECONDS, SECONDS_AGAIN = 10.0, 3.0
"""To measure each stage for, and those whose settings were chosen by a measurement."""
LONGEST = 86_400


def plan(
    data: str | Path | None = None,
    *,
    recipe: str | None = None,
    config: str | Path | Config | None = None,
    settings: Settings | None = None,
    minutes: float | None = None,
    hours: float | None = None,
    seconds: float | None = None,
    watts: float | None = None,
    quiet: bool = False,
) -> list[StageForecast]:
    """Measures a few steps of every stage, and says what the run would take: memory, hours, energy. Trains nothing.

    Args:
        data, recipe, config, settings: as of `maskdm.train`.
        minutes, hours: the time to train in, for which settings are chosen, see `maskdm.train`.
        seconds: to measure each stage for; by default 10, or 3 where settings are chosen, by a measurement too.
        watts: of the device under load; by default what a GPU is allowed, or an estimate from the number of cores.
        quiet: no progress on standard error.

    Returns:
        A forecast of every stage.

    Raises:
        InputError: settings or images that cannot be used, no time to measure.

    Example:
        >>> hours = sum(stage.hours for stage in maskdm.plan("photos/", recipe="celeba64-s"))
    """
    since = time.monotonic()
    if seconds is not None and not 0 < seconds <= LONGEST:
        raise InputError("seconds", got=seconds, wanted=f"more than 0 and at most {LONGEST:,}")
    resolved = read_settings(data=data, recipe=recipe, config=config, settings=settings)
    budget = read_budget(minutes, hours, data=data, recipe=recipe, config=config, settings=settings)
    require_data(resolved)
    console = Console(quiet=quiet)
    if budget is None:
        resolved, _ = check_settings(resolved)
    runtime = distributed.init_runtime(resolved.train)
    with runtime:
        dataset = read_dataset(resolved.data, console)
        if budget is not None:
            choice = choose_settings(budget, dataset, runtime, console, since=since)
            resolved = choice.config
            for line in choice.reasons:
                console.say(f"  {line}")
        seconds = seconds or (SECONDS if budget is None else SECONDS_AGAIN)
        prepared = prepare(resolved, console, dataset)
        describe_task(prepared, runtime, console)
        task = make_task(prepared, runtime, prepared.dataset.rows("member"))
        forecasts = []
        watts = estimate_watts(runtime.device) if watts is None else watts
        for found in forecast_stages(task, seconds=seconds, watts=watts):
            console.say(f"measured {found.name}")
            forecasts.append(found)
    return forecasts
