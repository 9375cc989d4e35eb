"""The report of a run: one HTML file, made from the run's own files, that opens anywhere and loads nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.config import summary
from maskdm.reports import formatting as wording
from maskdm.reports import page
from maskdm.reports.charts import Boundary, Point, Series, line_chart
from maskdm.reports.markup import Html, join, tag
from maskdm.reports.read_run import (
    End,
    Grid,
    History,
    Picture,
    RunFolder,
    Score,
    Scores,
    Stopped,
    read_picture,
    read_run,
)

THUMBNAILS = 8


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder `run` and return its path.

    The same files give the same report, byte for byte. An unfinished run gives a report of what there is so far. The
    file appears whole or not at all.
    """
    text = _page(read_run(run))
    target = run / "report.html"
    unfinished = run / f".report.html.{os.getpid()}"
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _page(run: RunFolder) -> str:
    pictures, broken = _pictures(run)
    remarks = [*run.remarks, *(f"{name}: left out, it is no whole PNG." for name in broken)]
    body = tag(
        "body",
        tag("p", "maskdm training run", class_="kind"),
        tag("h1", run.name),
        _lead(run),
        tag("ul", *(tag("li", remark) for remark in remarks), class_="remarks") if remarks else "",
        _latest_grid(pictures, run.history),
        _scores(run.scores),
        _curves(run.history),
        _grids_over_time(pictures, run.history),
        _stages(run.history),
        _model(run.config),
        _data(run.counts),
        _settings(run.config),
        _environment(run.env),
    )
    return page.whole(f"{run.name} · maskdm", body)


# State and result ----------------------------------------------------------------------------------------------------


def _lead(run: RunFolder) -> Html:
    """One sentence: the state, how far it got, on what, and the result."""
    history = run.history
    planned = run.config.get("stages")
    total = max(len(planned) if isinstance(planned, list) else 0, len(history.stages))
    if isinstance(history.last, Stopped) and not history.step:
        return _sentence("bad", "Stopped before the first step:", f" {history.last.reason or 'no reason was logged'}.")
    if not history.step:
        state = "Started:" if history.stages else "Not started:"
        return _sentence("warn", state, " no step has been logged yet.")

    work = f"{wording.plural(history.step, 'step')}, {wording.plural(history.images, 'image')}"
    if history.seconds:
        work += f" in {wording.duration(history.seconds)}"
    if device := run.env.get("device"):
        work += f" on {device}"
    result = f"; held-out error {wording.value(history.heldout_error, 3)}" if history.heldout_error is not None else ""
    stage = history.stage_at(history.step + 1)
    where = f" in stage {stage.index + 1} of {max(total, stage.index + 1)}, {stage.stage}" if stage else ""
    match history.last:
        case End():
            return _sentence("good", "Finished:", f" {wording.plural(total, 'stage')}, {work}{result}.")
        case Stopped(reason=reason):
            return _sentence("bad", f"Stopped{f' ({reason})' if reason else ''}{where}:", f" {work}{result}.")
        case _:
            return _sentence("warn", f"Unfinished{where}:", f" {work}{result}. Running still, or cut off.")


def _sentence(state: str, opening: str, rest: str) -> Html:
    return tag("p", tag("b", opening), rest, class_=f"lead {state}")


# Samples -------------------------------------------------------------------------------------------------------------


def _pictures(run: RunFolder) -> tuple[list[tuple[Grid, Picture]], list[str]]:
    """Of all grids at most eight, evenly spaced, the first and the last among them; and the names of broken ones."""
    has_final = any(grid.step is None for grid in run.grids)
    grids = [g for g in run.grids if not (has_final and g.step == run.history.step)]  # two of the end are one too many
    read = [(grids[i], read_picture(grids[i])) for i in _evenly(len(grids), THUMBNAILS)]
    return [(g, p) for g, p in read if p is not None], [g.path.name for g, p in read if p is None]


def _evenly(total: int, wanted: int) -> list[int]:
    return [int(i) for i in np.linspace(0, total - 1, min(total, wanted)).round()]


def _latest_grid(pictures: Sequence[tuple[Grid, Picture]], history: History) -> Html:
    if not pictures:
        return page.section("Samples", empty="No samples yet.")
    grid, picture = pictures[-1]
    # Small pictures grow by a whole factor, so that every pixel stays a square of the same size.
    factor = page.COLUMN // picture.width
    style = f"width: {picture.width * factor if factor >= 2 else page.COLUMN}px"
    image = page.image(picture, f"Samples after {_moment(grid, history)}", style=style)
    caption = tag("figcaption", f"Latest samples, after {_moment(grid, history)}.")
    return tag("figure", image, caption, class_="hero")


def _grids_over_time(pictures: Sequence[tuple[Grid, Picture]], history: History) -> Html:
    if not pictures:
        return Html()  # the page has said so above
    figures = []
    for grid, picture in pictures:
        moment = _moment(grid, history)
        figures.append(tag("figure", page.image(picture, f"Samples after {moment}"), tag("figcaption", moment)))
    grids = tag("div", *figures, class_="grids") if len(figures) > 1 else ""
    return page.section("Samples over time", grids, empty="Only one grid so far, the one above.")


def _moment(grid: Grid, history: History) -> str:
    step = history.step if grid.step is None else grid.step
    images = history.images_at(step)
    if not images and step:
        return f"step {wording.count(step)}"  # nothing in the metrics says how many images that is
    stage = history.stage_at(step)
    return f"{wording.plural(images, 'image')}" + (f", {stage.stage}" if stage and step else "")


# Scores --------------------------------------------------------------------------------------------------------------


def _scores(scores: Iterable[Scores]) -> Html:
    return page.section(
        "Scores", *map(_score_table, scores), empty="None by maskdm eval; those along the way are below."
    )


def _score_table(scores: Scores) -> Html:
    columns = {
        "score": [row.name for row in scores.rows],
        "value": ["–" if row.value is None else wording.value(row.value) for row in scores.rows],
        "standard error": ["" if row.error is None else f"± {wording.value(row.error)}" for row in scores.rows],
        "95 % interval": [_interval(row) for row in scores.rows],
        "n": ["" if row.n is None else wording.count(row.n) for row in scores.rows],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    return join(
        [
            tag("h3", scores.title),
            tag("p", scores.note, class_="muted") if scores.note else "",
            page.table(
                list(filled),
                list(zip(*filled.values(), strict=True)),
                numbers=set(filled) - {"score"},
            ),
            tag("p", tag("code", scores.command), class_="command") if scores.command else "",
        ]
    )


def _interval(row: Score) -> str:
    if row.low is None or row.high is None:
        return ""
    return f"{wording.value(row.low)} to {wording.value(row.high)}"


# Curves --------------------------------------------------------------------------------------------------------------


HELDOUT = (
    "Held-out error is the mean squared error of the image that the network guesses from a noisy one, pixels in -1 to "
    "1, on pictures that are never trained on, always with the same noise: one unit for all processes and predictions. "
    "The training loss has the unit of what is predicted, and while patches are hidden it is about the visible ones."
)


def _curves(history: History) -> Html:
    train, heldout = history.train, history.heldout
    errors = [
        _series("averaged weights", ((e.images, e.loss_ema) for e in heldout)),
        _series("raw weights", ((e.images, e.loss_raw) for e in heldout)),
    ]
    distances = [_series("averaged weights", ((e.images, e.frechet_distance) for e in history.distances))]
    last = history.distances[-1] if history.distances else None
    distance = "" if last is None else f"{last.title}, {wording.plural(last.n or 0, 'picture')}"
    loss = _series("training loss", ((e.images, e.loss) for e in train), faint=True)
    rate = _series("learning rate", ((e.images, e.lr) for e in train))
    speed = _series("speed", ((e.images, e.images_per_second) for e in train))
    norm = _series("gradient norm", ((e.images, e.grad_norm) for e in train))

    boundaries = [Boundary(stage.images, stage.stage) for stage in history.stages]
    chart = partial(line_chart, x_label="images seen", boundaries=boundaries)
    # These are drawn for wide and for narrow screens: one drawing, scaled, would have tiny labels on a phone.
    main = {
        title: [
            tag("figure", svg, class_=screens)
            for screens, width, height in [("on-wide", page.COLUMN, 300), ("on-narrow", 360, 300)]
            if (svg := chart(title, series, y_label=y_label, log_y=True, width=width, height=height))
        ]
        for title, series, y_label in [
            ("Held-out error", errors, "squared error of the image"),
            ("Distance to held-out pictures", distances, distance),
            ("Training loss", [loss], "loss"),
        ]
    }
    small = [
        tag("figure", svg)
        for svg in [
            chart("Learning rate", [rate], y_label="per step"),
            chart("Speed", [speed], y_label="images/s"),
            chart("Gradient norm", [norm], y_label="norm", log_y=True),
        ]
        if svg
    ]
    return page.section(
        "Curves",
        *main["Held-out error"],
        tag("p", HELDOUT, class_="muted note") if main["Held-out error"] else "",
        *main["Distance to held-out pictures"],
        *main["Training loss"],
        tag("div", *small, class_="charts") if small else "",
        empty="Nothing to draw yet: no training has been logged.",
    )


def _series(name: str, values: Iterable[tuple[int, float | None]], faint: bool = False) -> Series:
    return Series(name, [Point(x, y) for x, y in values if y is not None], faint)


# Tables --------------------------------------------------------------------------------------------------------------


def _stages(history: History) -> Html:
    columns = ["stage", "mask", "hidden", "steps", "images", "batch", "started from", "time"]
    table = page.table(columns, list(_stage_rows(history)), numbers={"hidden", "steps", "images", "batch", "time"})
    return page.section(
        "Stages", tag("div", table, class_="stages") if history.stages else "", empty="No stage has begun."
    )


def _stage_rows(history: History) -> Iterator[list[str]]:
    """What each stage has done: from where it began to where the next one did, or to where the run is."""
    for stage, following in zip_longest(history.stages, history.stages[1:]):
        end = following.step if following else history.step
        steps = wording.count(end - stage.step)
        if stage.target_steps is not None and end - stage.step < stage.target_steps:
            steps += f" of {wording.count(stage.target_steps)}"
        yield [
            stage.stage,
            _lines(stage.mask),
            "–" if stage.hidden is None else f"{stage.hidden:.1%}",
            steps,
            wording.count(history.images_at(end) - stage.images),
            "–" if stage.batch_size is None else wording.count(stage.batch_size),
            stage.started_from,
            wording.duration(history.seconds_at(end) - history.seconds_at(stage.step)),
        ]


def _lines(mask: str) -> Html:
    """A mask; one with several parts has a line for each."""
    parts = re.split(r"; |(?<=on average): ", mask)
    return join([mask]) if len(parts) == 1 else join([tag("div", part) for part in parts])


def _model(config: Mapping[str, Any]) -> Html:
    """What was trained, in three lines; every setting stands further down."""
    model, process = (config.get(section) for section in ("model", "process"))
    rows = []
    if isinstance(model, Mapping):
        rows.append(_pair("network", summary.backbone(model)))
    if isinstance(process, Mapping):
        rows += [_pair("process", summary.process(process)), _pair("objective", summary.objective(process))]
    table = tag("div", tag("table", tag("tbody", *rows), class_="pairs"), class_="table")
    return page.section("Model", table if rows else "", empty="Nothing is known of the model.")


def _data(counts: Mapping[str, int]) -> Html:
    meaning = {"member": "trained on", "heldout": "held out", "calibration": "calibration", "excluded": "excluded"}
    rows = [[meaning[name], wording.count(number)] for name, number in counts.items()]
    return page.section(
        "Data",
        page.table(["pictures", "number"], rows, numbers={"number"}) if rows else "",
        empty="No counts of pictures.",
    )


def _settings(config: Mapping[str, Any]) -> Html:
    if not config:
        return page.section("Settings", empty="No settings were found.")
    rows = []
    for section, content in config.items():
        rows.append(tag("tr", tag("th", str(section), colspan=2), class_="section"))
        rows.extend(_pair(key, _as_written(content)) for key, content in _flatten(content))
    table = tag("table", tag("tbody", *rows), class_="pairs")
    return tag("details", tag("summary", tag("h2", "Settings")), tag("div", table, class_="table"))


def _flatten(content: object, key: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested mappings and lists with their paths: `optimiser.betas`, `[0].mask.block`."""
    if isinstance(content, dict) and content:
        for name, inner in content.items():
            yield from _flatten(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list) and any(isinstance(inner, dict | list) for inner in content):
        for i, inner in enumerate(content):
            yield from _flatten(inner, f"{key}[{i}]")
    else:
        yield key, content


def _as_written(content: object) -> str:
    """A leaf as YAML has it."""
    match content:
        case None:
            return "null"
        case bool():
            return str(content).lower()
        case list():
            return f"[{', '.join(map(_as_written, content))}]"
        case _:
            return str(content)


def _environment(env: Mapping[str, Any]) -> Html:
    rows = [_pair(key.replace("_", " "), _as_written(content)) for key, content in env.items()]
    table = tag("div", tag("table", tag("tbody", *rows), class_="pairs"), class_="table")
    return page.section("Environment", table if rows else "", empty="Nothing is known of the machine.")


def _pair(key: str, content: str) -> Html:
    return tag("tr", tag("th", key, scope="row"), tag("td", content))
