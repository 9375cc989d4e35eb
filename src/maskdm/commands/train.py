"""`maskdm train`: settings and images in, a run folder out."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from maskdm.commands.arguments import Settings, read_budget, read_settings, require_data, settings_words
from maskdm.config.resolve import changed_settings, to_config
from maskdm.config.schema import Config
from maskdm.config.yaml_files import as_yaml
from maskdm.data.dataset import Dataset
from maskdm.profiling.budget import TimeBudget, choose_settings
from maskdm.reports.run_page import write_run_page
from maskdm.runtime.console import Console, duration
from maskdm.runtime.distributed import Runtime
from maskdm.training import start
from maskdm.training.events import NoiseRange
from maskdm.training.find_run import REQUEST, find_chosen, find_resumable
from maskdm.training.read_run import read_config, read_data_config, read_run
from maskdm.training.start import Choice


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
        settings: of a dry run, the settings as the text of a file for `config`.
    """

    run: Path | None
    weights: Path | None = None
    samples: Path | None = None
    report: Path | None = None
    heldout_error: float | None = None
    heldout_by_noise: tuple[NoiseRange, ...] = ()
    finished: bool = False
    stages: tuple[str, ...] = ()
    settings: str | None = None


def train(
    data: str | Path | None = None,
    *,
    recipe: str | None = None,
    config: str | Path | Config | None = None,
    settings: Settings | None = None,
    minutes: float | None = None,
    hours: float | None = None,
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
        minutes, hours: the wall-clock time to train in, from the call to its end. The machine is measured for some
            seconds, and network, masks, batch and lengths are chosen for it, but for what is set; lengths that are set
            count as proportions. Where neither a time nor a recipe nor any length is given, it is 60 minutes.
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
        >>> result = maskdm.train("photos/", minutes=20)
        >>> images = maskdm.sample(result.run, 16)
    """
    since = time.monotonic()
    output_dir, resume = Path(output_dir), None if resume is None else str(resume)
    nothing_set = recipe is None and config is None and minutes is hours is None and not settings_words(settings)
    budget = None
    if resume not in (None, "never") and nothing_set:
        found = find_resumable(output_dir, resume)
        resolved = read_config(found).model_copy(update={"data": read_data_config(found, data)})
    else:
        resolved = read_settings(data=data, recipe=recipe, config=config, settings=settings)
        budget = read_budget(minutes, hours, data=data, recipe=recipe, config=config, settings=settings)
        if minutes is hours is None and resume not in (None, "never"):
            # A run that was begun with settings is resumed by these, and by nothing that would be measured now.
            budget = budget if (find_resumable(output_dir, resume) / REQUEST).is_file() else None
    require_data(resolved)
    console = Console(quiet=quiet)
    choose = None
    if budget is not None:
        if minutes is hours is None:
            console.say(f"no --minutes, --recipe or length of a stage is given: {duration(60 * budget.minutes)}")
        choose = partial(_choose, budget, output_dir, resume, console, since)
    if dry_run:
        plan = start.dry_run(resolved, output_dir=output_dir, resume=resume, console=console, choose=choose)
        text = as_yaml(changed_settings(plan.config), comments=plan.reasons)
        return TrainResult(run=plan.resumes, finished=plan.finished, stages=plan.stages, settings=text)
    run = start.start_training(
        resolved,
        output_dir=output_dir,
        name=_slug(name or recipe or Path(resolved.data.path).stem or "run"),
        resume=resume,
        console=console,
        command=command,
        choose=choose,
    )
    return _result(run, console)


def _choose(
    budget: TimeBudget,
    output_dir: Path,
    resume: str | None,
    console: Console,
    since: float,
    dataset: Dataset,
    runtime: Runtime,
) -> Choice:
    """The settings of the run for which the same was asked, or new ones by a measurement; the same on every rank."""
    there = None
    if runtime.main and resume != "never":
        there = find_chosen(output_dir, budget.request(), dataset.images)
    text = runtime.broadcast_object("" if there is None else there.model_dump_json())
    if text:
        return Choice(to_config(json.loads(text)), None, ())
    return choose_settings(budget, dataset, runtime, console, since=since)


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
