"""`maskdm train`: settings and images in, a run folder out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from maskdm.commands.arguments import Settings, read_settings, require_data, settings_words
from maskdm.config.schema import Config
from maskdm.reports.run_page import write_run_page
from maskdm.runtime.console import Console
from maskdm.training import start
from maskdm.training.events import NoiseRange
from maskdm.training.find_run import find_resumable
from maskdm.training.read_run import read_config, read_data_config, read_run


@dataclass(frozen=True)
class TrainResult:
    """What training left, or with `dry_run` would do.

    Attributes:
        run: the run's folder; of a dry run the one that would be resumed, None for a new one.
        weights: the file of its averaged weights (EMA), None before the first are saved.
        samples: the newest grid of samples, or None.
        report: its page, None on ranks other than the first and of a dry run.
        heldout_error: the last held-out error of the averaged weights, None where nothing is held out.
        heldout_by_noise: the same error by range of noise level, from nearly clean (fine detail) to nearly noise
            (layout); empty where nothing is held out.
        finished: whether the last stage has ended.
        stages: of a dry run, what each stage would do, a line each.
    """

    run: Path | None
    weights: Path | None = None
    samples: Path | None = None
    report: Path | None = None
    heldout_error: float | None = None
    heldout_by_noise: tuple[NoiseRange, ...] = ()
    finished: bool = False
    stages: tuple[str, ...] = ()


def train(
    data: str | Path | None = None,
    *,
    recipe: str | None = None,
    config: str | Path | Config | None = None,
    settings: Settings | None = None,
    output_dir: str | Path = "runs",
    name: str | None = None,
    resume: str | Path | None = None,
    dry_run: bool = False,
    quiet: bool = False,
    command: str | None = None,
) -> TrainResult:
    """Trains a model in a new run folder, or resumes an interrupted run of the same settings and images.

    Where that run is finished, nothing is trained, and what is missing of its page, weights and samples is written.
    Under torchrun every rank calls it; the first one writes files.

    Args:
        data: the images (`data.path`): a folder, .zip, .tar, .npz, or hf:NAME. Sub-folders are classes.
        recipe: shipped settings (`maskdm train --recipes`).
        config: a YAML file of settings over the recipe's, or a whole `Config`.
        settings: single settings over those: {"model.width": 64} or ["model.width=64"] (`maskdm train --settings`).
        output_dir: where runs lie.
        name: of a new run; by default the recipe's or the data's.
        resume: "latest" or a run's folder; "never" always begins a new run; by default a run of the same settings and
            images is resumed, wherever these lie now. A run that is named needs no settings, and no `data` unless its
            images were moved.
        dry_run: read the images and say what would be done; nothing is written but the cache of decoded images.
        quiet: no progress on standard error.
        command: the command line that this was, to be recorded in the run's env.json.

    Returns:
        The run's folder, weights, page and last held-out error.

    Raises:
        InputError: settings, images or a folder that cannot be used; nothing is left behind.
        TrainingError: a loss or gradient that is not finite; what was saved is intact.
        Interrupted: Ctrl-C or a termination signal; the state was saved, and the same call resumes.
        StorageError: a file cannot be written.

    Example:
        >>> result = maskdm.train("photos/", recipe="laptop64", settings={"stages.0.minutes": 2})
        >>> images = maskdm.sample(result.run, 16)
    """
    output_dir, resume = Path(output_dir), None if resume is None else str(resume)
    nothing_set = recipe is None and config is None and not settings_words(settings)
    if resume not in (None, "never") and nothing_set:
        found = find_resumable(output_dir, resume)
        resolved = read_config(found).model_copy(update={"data": read_data_config(found, data)})
    else:
        resolved = read_settings(data=data, recipe=recipe, config=config, settings=settings)
    require_data(resolved)
    console = Console(quiet=quiet)
    if dry_run:
        plan = start.dry_run(resolved, output_dir=output_dir, resume=resume, console=console)
        return TrainResult(run=plan.resumes, finished=plan.finished, stages=plan.stages)
    run = start.start_training(
        resolved,
        output_dir=output_dir,
        name=_slug(name or recipe or Path(resolved.data.path).stem or "run"),
        resume=resume,
        console=console,
        command=command,
    )
    return _result(run, console)


def _result(run: Path, console: Console) -> TrainResult:
    """What is in the run's folder now, with its page written again by the first rank."""
    found = read_run(run)
    weights = run / "weights" / "ema.safetensors"
    samples = found.grids[-1].path if found.grids else None
    report = write_run_page(run) if console.main else None
    console.say(f"weights  {weights}")
    if samples is not None:
        console.say(f"samples  {samples}")
    console.say(f"report   {report}")
    return TrainResult(
        run=run,
        weights=weights if "ema" in found.weights else None,
        samples=samples,
        report=report,
        heldout_error=found.history.heldout_error,
        heldout_by_noise=found.history.heldout_by_noise,
        finished=found.history.finished,
    )


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
