"""`maskdm compare`: several ways of training at equal compute, and what their seeds show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskdm.commands.arguments import Settings, settings_words
from maskdm.errors import InputError
from maskdm.experiments.comparison import Comparison, override_comparison, read_comparison
from maskdm.experiments.conclusion import Conclusion, conclude
from maskdm.experiments.duration import forecast_comparison, format_forecast
from maskdm.experiments.outcome import Outcome
from maskdm.experiments.runner import describe_runs, describe_setup, resolve_runs, run_comparison
from maskdm.files import check_folder
from maskdm.reports.comparison_page import write_comparison_page
from maskdm.runtime.console import Console


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison gave, or with `dry_run` would train.

    Attributes:
        outcomes: every arm with every seed, as its run's files have it.
        conclusions: every arm against the baseline, over the seeds.
        page: `compare.html`, or None of a dry run.
        runs: of a dry run, what would be trained, in lines.
    """

    outcomes: tuple[Outcome, ...] = ()
    conclusions: tuple[Conclusion, ...] = ()
    page: Path | None = None
    runs: tuple[str, ...] = ()


def compare(
    comparison: str | Path | Comparison,
    data: str | Path | None = None,
    *,
    settings: Settings | None = None,
    pretrain_data: str | Path | None = None,
    minutes: float | None = None,
    seeds: Sequence[int] | None = None,
    output_dir: str | Path = "compare",
    dry_run: bool = False,
    quiet: bool = False,
    command: str | None = None,
) -> ComparisonResult:
    """Trains the arms of a comparison one after another with the same budget, and concludes what the seeds show.

    The same call again resumes an interrupted comparison. Nothing else should run on the machine meanwhile.

    Args:
        comparison: a YAML file of arms, budget and seeds, or the name of a shipped one (`maskdm compare --list`).
        data: the images of all arms (`data.path`).
        settings: single settings for all arms, over the file's: {"model.width": 64} or ["model.width=64"].
        pretrain_data: the images of the models that arms start from.
        minutes: budget of every arm in place of the file's.
        seeds: in place of the file's.
        output_dir: where the runs and the page go.
        dry_run: check all arms, list what would be trained and how long all of it would take, by a few steps of every
            network; nothing is trained.
        quiet: no progress on standard error.
        command: the command line that this was, for the page.

    Returns:
        Outcomes, conclusions and the page.

    Raises:
        InputError: no such comparison, settings of an arm that cannot be used, arms that cannot be compared.
        TrainingError, Interrupted, StorageError: as of `maskdm.train`.

    Example:
        >>> result = maskdm.compare("masks", data="photos/", minutes=30, seeds=[0, 1, 2])
        >>> print(*(conclusion.text for conclusion in result.conclusions), sep="\\n")
    """
    if not isinstance(comparison, Comparison):
        comparison = read_comparison(str(comparison))
    if pretrain_data is not None and not comparison.pretrained:
        raise InputError("pretrain_data", "no arm starts from another model", remedy="leave it out")
    comparison = override_comparison(comparison, minutes=minutes, seeds=seeds)
    output_dir = Path(output_dir)
    check_folder(output_dir, "output_dir")
    console = Console(quiet=quiet)
    overrides = [*([] if data is None else [f"data.path={data}"]), *settings_words(settings)]
    pretrain = [] if pretrain_data is None else [f"data.path={pretrain_data}"]
    runs = resolve_runs(comparison, overrides, console, pretrain_overrides=pretrain)
    if dry_run:
        lines = describe_runs(runs)
        for line in lines:
            console.say(line)
        lines.append(format_forecast(forecast_comparison(comparison, runs), len(runs.arms) + len(runs.pretrained)))
        console.say(lines[-1])
        return ComparisonResult(runs=tuple(lines))
    setup = describe_setup(comparison, runs, command=command or "")
    outcomes: list[Outcome] = []
    conclusions: list[Conclusion] = []
    page = None
    for outcome in run_comparison(comparison, runs, output_dir=output_dir, console=console):
        outcomes.append(outcome)
        if any(each.arm == comparison.baseline for each in outcomes):
            conclusions = conclude(outcomes, comparison.baseline, comparison.control)
        # Again after every run: a page of what there is so far.
        page = write_comparison_page(output_dir, comparison, outcomes, conclusions, setup=setup)
    console.say(f"page  {page}")
    return ComparisonResult(tuple(outcomes), tuple(conclusions), page)
