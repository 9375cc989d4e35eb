"""`maskdm plan`: what a run would take, from a few real steps of every stage."""

from __future__ import annotations

from pathlib import Path

from maskdm.commands.arguments import Settings, read_settings, require_data
from maskdm.config.schema import Config
from maskdm.errors import InputError
from maskdm.profiling.forecast import StageForecast, estimate_watts, forecast_stages
from maskdm.runtime import distributed
from maskdm.runtime.console import Console
from maskdm.training.prepare import make_task, prepare
from maskdm.training.start import describe_task


def plan(
    data: str | Path | None = None,
    *,
    recipe: str | None = None,
    config: str | Path | Config | None = None,
    settings: Settings | None = None,
    seconds: float = 10.0,
    watts: float | None = None,
    quiet: bool = False,
) -> list[StageForecast]:
    """Measures a few steps of every stage, and says what the run would take: memory, hours, energy. Trains nothing.

    Args:
        data, recipe, config, settings: as of `maskdm.train`.
        seconds: to measure each stage for.
        watts: of the device under load; by default what a GPU is allowed, or an estimate from the number of cores.
        quiet: no progress on standard error.

    Returns:
        A forecast of every stage.

    Raises:
        InputError: settings or images that cannot be used, no time to measure.

    Example:
        >>> hours = sum(stage.hours for stage in maskdm.plan("photos/", recipe="celeba64-s"))
    """
    if not seconds > 0:
        raise InputError("seconds", got=seconds, wanted="more than 0")
    resolved = read_settings(data=data, recipe=recipe, config=config, settings=settings)
    require_data(resolved)
    console = Console(quiet=quiet)
    prepared, runtime = prepare(resolved, console), distributed.init_runtime(resolved.train)
    with runtime:
        describe_task(prepared, runtime, console)
        task = make_task(prepared, runtime, prepared.dataset.rows("member"))
        forecasts = []
        watts = estimate_watts(runtime.device) if watts is None else watts
        for found in forecast_stages(task, seconds=seconds, watts=watts):
            console.say(f"measured {found.name}")
            forecasts.append(found)
    return forecasts
