"""The page of a comparison: the verdict first, then what it stands on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskdm.experiments.conclusion import Verdict
from maskdm.experiments.runner import Look, Outcome
from maskdm.experiments.spec import Comparison
from maskdm.reports import formatting as wording
from maskdm.reports import page
from maskdm.reports.charts import Point, Series, line_chart
from maskdm.reports.markup import Html, tag
from maskdm.reports.read_run import Grid, read_picture


@dataclass(frozen=True)
class About:
    """What stands below a page: settings of the arms, data, machine, version, command."""

    stages: Mapping[str, Sequence[str]]
    data: str
    machine: str
    version: str
    command: str


Looks = tuple[str, Sequence[Look]]
"""An arm, and what one of its seeds gave."""
COLOURS = 3
"""Lines that one chart can tell apart."""


def write_page(
    folder: Path, comparison: Comparison, outcomes: Sequence[Outcome], found: Sequence[Verdict], *, about: About
) -> Path:
    """`compare.html` in `folder`; of an unfinished comparison, what there is so far."""
    runs = len(comparison.arms) * len(comparison.seeds)
    seeds = wording.plural(len(comparison.seeds), "seed")
    each = "each" if all(arm.budget == 1 for arm in comparison.arms.values()) else "each at most"
    body = tag(
        "body",
        tag("p", "maskdm comparison", class_="kind"),
        tag("h1", comparison.title),
        tag(
            "p",
            f"{len(comparison.arms)} arms, {seeds}, {_budget(comparison)} {each}; {len(outcomes)} of {runs} runs done.",
        ),
        _verdicts(found),
        _curves(comparison, outcomes),
        _runs(outcomes),
        _grids(outcomes),
        _about(about),
    )
    path = folder / "compare.html"
    path.write_text(page.whole(f"{comparison.title} · maskdm", body), encoding="utf-8", newline="\n")
    return path


def _about(about: About) -> Html:
    """What was compared, so that the page can stand alone."""
    stages = [[arm, line] for arm, lines in about.stages.items() for line in lines]
    facts = [["data", about.data], ["machine", about.machine], ["maskdm", about.version], ["command", about.command]]
    return page.section(
        "What was compared",
        page.table(["arm", "stages"], stages, numbers=()),
        page.table(["", ""], facts, numbers=()),
        empty="",
    )


def _budget(comparison: Comparison) -> str:
    budget = comparison.budget
    return f"{budget.minutes:g} minutes of training" if budget.minutes else f"{budget.petaflops:g} petaFLOPs"


def _verdicts(found: Sequence[Verdict]) -> Html:
    scored = any(v.distance is not None for v in found)
    columns = ["arm", "last held-out error", *(["distance", "over the baseline's"] if scored else []), "times as fast"]
    rows = []
    for v in found:
        distance = [str(v.distance or ""), str(v.closer or "")] if scored else []
        rows.append([v.arm, str(v.final), *distance, "never" if v.speed is None else str(v.speed), v.words])
    note = (
        "Held-out error: mean squared error of the estimated image at fixed noise levels. Times as fast: all of the "
        "budget over what the arm had spent when it first reached the baseline's last error. Means over seeds with "
        "their deviation; ratios as geometric means with 95 % intervals (Student's t)."
    )
    table = page.table([*columns, "verdict"], rows, numbers=set(columns[1:]))
    return page.section(
        "Verdict", *([table, tag("p", note, class_="muted")] if rows else []), empty="No run is finished."
    )


def _curves(comparison: Comparison, outcomes: Sequence[Outcome]) -> Html:
    """The baseline against two arms a chart, every line a mean over seeds; first the errors, then the scores."""
    charts = [*_charts(comparison, [(o.arm, o.looks) for o in outcomes], "held-out error, averaged weights")]
    charts += _charts(comparison, [(o.arm, o.scores) for o in outcomes], outcomes[0].features if outcomes else "")
    return page.section("Quality against compute", *charts, empty="Nothing has been measured yet.")


def _charts(comparison: Comparison, found: Sequence[Looks], y_label: str) -> Iterator[Html]:
    others = [arm for arm in comparison.arms if arm != comparison.baseline]
    for i in range(0, len(others), COLOURS - 1):
        arms = [comparison.baseline, *others[i : i + COLOURS - 1]]
        series = [Series(arm, _mean([looks for name, looks in found if name == arm])) for arm in arms]
        if max(len(line.points) for line in series) < 2:  # a distance at the end alone is in the table
            continue
        for screens, width in (("on-wide", page.COLUMN), ("on-narrow", 360)):
            chart = line_chart(
                f"{' and '.join(arms[1:])} against {comparison.baseline}",
                series,
                x_label="share of the budget spent, %",
                y_label=y_label,
                log_y=True,
                width=width,
                height=320,
            )
            if chart is not None:
                yield tag("div", chart, class_=screens)


def _mean(seeds: Sequence[Sequence[Look]]) -> list[Point]:
    """Mean over seeds, look by look."""
    columns = list(zip(*seeds, strict=False))  # a seed may have had one look more
    return [
        Point(100 * sum(look.spent for look in column) / len(column), sum(look.error for look in column) / len(column))
        for column in columns
    ]


def _runs(outcomes: Sequence[Outcome]) -> Html:
    rows = [
        [f"{o.arm}, seed {o.seed}", wording.count(o.images), wording.duration(o.seconds), f"{o.final:.4f}", o.run.name]
        for o in outcomes
    ]
    columns = ["run", "images", "training", "last held-out error", "folder"]
    table = page.table(columns, rows, numbers={"images", "training", "last held-out error"})
    return page.section("Runs", *([table] if rows else []), empty="No run is finished.")


def _grids(outcomes: Sequence[Outcome]) -> Html:
    figures = []
    for found in outcomes:
        paths = sorted((found.run / "samples").glob("step-*.png"))
        picture = read_picture(Grid(paths[-1], None)) if paths else None
        if picture is not None:
            name = f"{found.arm}, seed {found.seed}"
            figures.append(tag("figure", page.image(picture, f"Samples of {name}"), tag("figcaption", name)))
    grids = [tag("div", *figures, class_="grids")] if figures else []
    return page.section("Samples at the end, the same seeds", *grids, empty="No samples.")
