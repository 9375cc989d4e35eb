"""The page of a comparison, `compare.html`: the conclusions first, then what they stand on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskdm.experiments.comparison import Comparison
from maskdm.experiments.conclusion import NOTE, Conclusion
from maskdm.experiments.outcome import ComparisonSetup, Evaluation, Outcome
from maskdm.files import write_text
from maskdm.reports.charts import Chart, Point, Series, line_chart
from maskdm.reports.formatting import format_count, format_duration, format_plural
from maskdm.reports.html import PageImage, Table, read_png, render_page

LINES = 3
"""Of a chart: the baseline, and arms beside it."""
Curves = Sequence[tuple[str, Sequence[Evaluation]]]
"""An arm, and what was measured of it with one seed."""


def write_comparison_page(
    folder: Path,
    comparison: Comparison,
    outcomes: Sequence[Outcome],
    conclusions: Sequence[Conclusion],
    *,
    setup: ComparisonSetup,
) -> Path:
    """Writes `compare.html`; of an unfinished comparison, what there is so far.

    Args:
        folder: where.
        comparison: what was to be done.
        outcomes: the runs that are finished.
        conclusions: what they show, every arm against the baseline.
        setup: what was compared on which machine.

    Returns:
        The page.

    Raises:
        StorageError: it cannot be written.
    """
    path = folder / "compare.html"
    text = render_page(
        "comparison.html",
        title=comparison.title,
        progress=_progress(comparison, outcomes),
        conclusions=[(each.arm, each.text) for each in conclusions],
        results=_results(conclusions),
        note=NOTE,
        charts=_charts(comparison, outcomes),
        runs=_runs(outcomes),
        grids=_grids(outcomes),
        stages=Table(
            ["arm", "stages"],
            [[arm, line] for arm, lines in setup.stages.items() for line in lines],
            prose={"stages"},
        ),
        setup=[("data", setup.data), ("machine", setup.machine), ("maskdm", setup.version), ("command", setup.command)],
    )
    write_text(path, text)
    return path


def _progress(comparison: Comparison, outcomes: Sequence[Outcome]) -> str:
    """2 arms, 3 seeds, 30 minutes of training each; 4 of 6 runs done."""
    arms, seeds, budget = comparison.arms, comparison.seeds, comparison.budget
    amount = f"{budget.minutes:g} minutes of training" if budget.minutes else f"{budget.petaflops:g} petaFLOPs"
    each = "each" if all(arm.budget == 1 for arm in arms.values()) else "each at most"
    done = f"{len(outcomes)} of {format_plural(len(arms) * len(seeds), 'run')} done"
    return f"{len(arms)} arms, {format_plural(len(seeds), 'seed')}, {amount} {each}; {done}."


def _results(conclusions: Sequence[Conclusion]) -> Table:
    """The numbers that conclusions are drawn from; distances have columns where any was measured."""
    scored = any(each.distance is not None for each in conclusions)
    distances = ["distance", "over the baseline's"] if scored else []
    controlled = ["as the control"] if any(each.over_control is not None for each in conclusions) else []
    numbers = ["last held-out error", *distances, "times as fast", *controlled, "corrected p"]
    rows = []
    for each in conclusions:
        of_distance = [str(each.distance or ""), str(each.distance_ratio or "")] if scored else []
        of_control = [str(each.over_control or "")] if controlled else []
        p = "" if each.p is None else f"{each.p:.2g}"
        rows.append([each.arm, str(each.error), *of_distance, str(each.speedup), *of_control, p])
    return Table(["arm", *numbers], rows, numbers=numbers)


def _charts(comparison: Comparison, outcomes: Sequence[Outcome]) -> list[Chart]:
    """Held-out errors, then distances."""
    errors = _charts_of(comparison, [(o.arm, o.evaluations) for o in outcomes], "held-out error, averaged weights")
    features = outcomes[0].features if outcomes else ""
    return [*errors, *_charts_of(comparison, [(o.arm, o.distances) for o in outcomes], features)]


def _charts_of(comparison: Comparison, curves: Curves, y_label: str) -> list[Chart]:
    """The baseline against as many arms a chart as can be told apart, every line a mean over seeds."""
    others = [arm for arm in comparison.arms if arm != comparison.baseline]
    charts = []
    for i in range(0, len(others), LINES - 1):
        arms = [comparison.baseline, *others[i : i + LINES - 1]]
        series = [Series(arm, _mean([curve for name, curve in curves if name == arm])) for arm in arms]
        title = f"{' and '.join(arms[1:])} against {comparison.baseline}"
        chart = line_chart(title, series, x_label="share of the budget spent, %", y_label=y_label, log_y=True)
        # A distance at the end alone is in the table.
        if chart is not None and max(len(line.points) for line in series) > 1:
            charts.append(chart)
    return charts


def _mean(seeds: Sequence[Sequence[Evaluation]]) -> list[Point]:
    """Mean over seeds, evaluation by evaluation."""
    columns = zip(*seeds, strict=False)  # a seed may have had one more
    return [
        Point(100 * sum(each.spent for each in column) / len(column), sum(each.value for each in column) / len(column))
        for column in columns
    ]


def _runs(outcomes: Sequence[Outcome]) -> Table:
    columns = ["run", "images", "training", "last held-out error", "folder"]
    rows = [
        [_name(o), format_count(o.images), format_duration(o.seconds), f"{o.final_error:.4f}", o.run.name]
        for o in outcomes
    ]
    return Table(columns, rows, numbers=columns[1:4])


def _grids(outcomes: Sequence[Outcome]) -> list[PageImage]:
    """The last grid of every run that has one."""
    grids = []
    for outcome in outcomes:
        paths = sorted((outcome.run / "samples").glob("step-*.png"))
        name = _name(outcome)
        grids.append(read_png(paths[-1], f"Samples of {name}", name) if paths else None)
    return [grid for grid in grids if grid is not None]


def _name(outcome: Outcome) -> str:
    return f"{outcome.arm}, seed {outcome.seed}"
