"""The page of a run, `report.html`: one file, made from the run's own files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskdm.config import summary
from maskdm.files import write_text
from maskdm.reports.charts import MAX_SERIES, Boundary, Chart, Point, Series, line_chart
from maskdm.reports.formatting import format_count, format_duration, format_plural, format_value
from maskdm.reports.html import PageImage, Table, read_png, render_page
from maskdm.training.events import EndEvent, StageEvent, StoppedEvent
from maskdm.training.read_run import EvalRow, EvalTable, History, RunFolder, SampleGrid, read_run

MAX_GRIDS = 8
"""Grids of samples on a page."""
ROLES = {"member": "trained on", "heldout": "held out", "calibration": "calibration", "excluded": "excluded"}
BY_NOISE = "Held-out error by noise level"
Pairs = list[tuple[str, str]]


def write_run_page(run: Path) -> Path:
    """Writes `report.html` into the folder of a run; of an unfinished run, what there is so far.

    The same files give the same page, byte for byte.

    Args:
        run: its folder.

    Returns:
        The page.

    Raises:
        InputError: `run` is no run's folder.
        StorageError: the page cannot be written.
    """
    path = run / "report.html"
    write_text(path, render_page("run.html", **_values(read_run(run))))
    return path


def _values(run: RunFolder) -> dict[str, object]:
    """All that the template shows."""
    grids, broken = _grids(run.grids, run.history)
    return {
        "name": run.name,
        "lead": _lead(run),
        "remark_list": [*run.remarks, *(f"{name}: left out, it is no whole PNG." for name in broken)],
        "latest": grids[-1] if grids else None,
        "grids": grids if len(grids) > 1 else [],
        "score_tables": [_scores(table) for table in run.eval_tables],
        "curves": _curves(run.history),
        "has_heldout": bool(run.history.heldout),
        "has_sizes": len({event.image_size for event in run.history.heldout}) > 1,
        "by_noise": _by_noise(run.history),
        "stages": _stages(run.history),
        "model": _model(run.settings),
        "data": Table(
            ["images", "number"], [[ROLES[role], format_count(n)] for role, n in run.counts.items()], {"number"}
        ),
        "settings": [(section, _leaves(content)) for section, content in run.settings.items()],
        "environment": [(key.replace("_", " "), _as_yaml(value)) for key, value in run.env.items()],
    }


# --- state and result ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lead:
    """The first sentence of a page: the state, how far it got, on what, and the result."""

    state: Literal["good", "warn", "bad"]
    opening: str
    text: str


def _lead(run: RunFolder) -> Lead:
    history = run.history
    stopped = history.last.reason if isinstance(history.last, StoppedEvent) else None
    if not history.step:
        if stopped is not None:
            return Lead("bad", "Stopped before the first step:", f"{stopped or 'no reason was logged'}.")
        return Lead("warn", "Started:" if history.stages else "Not started:", "no step has been logged yet.")
    planned = run.settings.get("stages")
    total = max(len(planned) if isinstance(planned, list) else 0, len(history.stages))
    work = _work(run)
    if isinstance(history.last, EndEvent):
        text, learned = f"{format_plural(total, 'stage')}, {work}.", _learned(history)
        return Lead("warn" if learned else "good", "Finished:", f"{text}{learned}")
    stage = history.stage_at(history.step + 1)
    where = f" in stage {stage.index + 1} of {max(total, stage.index + 1)}, {stage.stage}" if stage else ""
    if stopped is not None:
        return Lead("bad", f"Stopped{f' ({stopped})' if stopped else ''}{where}:", f"{work}.")
    return Lead("warn", f"Unfinished{where}:", f"{work}. It is running, or was cut off.")


LITTLE = 0.5
"""Share of the error of the mean image from which on a model has learned little: a blur of every image has half."""


def _learned(history: History) -> str:
    """A warning where the samples cannot be expected to look like anything."""
    last = history.heldout[-1] if history.heldout else None
    if last is None or not last.error_mean or last.error_ema < LITTLE * last.error_mean:
        return ""
    return (
        f" The model has learned little yet: its held-out error is {last.error_ema / last.error_mean:.0%} of that of "
        "answering with the mean image. Its samples are noise or grey; train it for longer."
    )


def _work(run: RunFolder) -> str:
    """What was done: 4,000 steps, 384,000 images in 2 min 10 s on cpu; held-out error 0.083."""
    history = run.history
    work = f"{format_plural(history.step, 'step')}, {format_plural(history.images, 'image')}"
    if history.seconds:
        work += f" in {format_duration(history.seconds)}"
    if device := run.env.get("device"):
        work += f" on {device}"
    last = history.last_heldout
    if last is None:
        return work
    return f"{work}; held-out error{_at_size(last.image_size)} {format_value(last.error_ema, 3)}"


def _at_size(size: tuple[int, int] | None) -> str:
    """(32, 32) -> " at 32 x 32 px"; None, for the size of the run's model, -> ""."""
    return f" at {size[0]} x {size[1]} px" if size else ""


# --- samples and scores ----------------------------------------------------------------------------------------------


def _grids(all_grids: Sequence[SampleGrid], history: History) -> tuple[list[PageImage], list[str]]:
    """At most eight, evenly spaced, the first and the last among them; and the names of broken ones."""
    has_final = any(grid.step is None for grid in all_grids)
    grids = [g for g in all_grids if not (has_final and g.step == history.step)]  # two of the end are one too many
    images, broken = [], []
    for i in np.linspace(0, len(grids) - 1, min(len(grids), MAX_GRIDS)).round().astype(int):
        when = _when(grids[i], history)
        image = read_png(grids[i].path, f"Samples after {when}", when)
        if image is None:
            broken.append(grids[i].path.name)
        else:
            images.append(image)
    return images, broken


def _when(grid: SampleGrid, history: History) -> str:
    """384,000 images, finetune."""
    step = history.step if grid.step is None else grid.step
    images = history.images_at(step)
    if not images and step:
        return f"step {format_count(step)}"  # nothing in the metrics says how many images that is
    stage = history.stage_at(step)
    return format_plural(images, "image") + (f", {stage.stage}{_smaller(stage, history)}" if stage and step else "")


def _smaller(stage: StageEvent, history: History) -> str:
    """Where stages have images of several sizes, that of this one: " at 32 x 32 px"."""
    sizes = {each.image_size for each in history.stages}
    return _at_size(stage.image_size) if len(sizes) > 1 else ""


def _sizes(stage: StageEvent, history: History) -> str:
    """Where stages have images or patches of several sizes, those of this one: " at 32 x 32 px, patches of 8 px"."""
    several = len({(each.image_size, each.patch_size) for each in history.stages}) > 1
    patches = f", patches of {stage.patch_size} px" if several and stage.patch_size else ""
    return _smaller(stage, history) + patches


@dataclass(frozen=True)
class ScoreTable:
    """A file of `eval/` as the page shows it."""

    title: str
    note: str
    table: Table
    command: str


def _scores(scores: EvalTable) -> ScoreTable:
    """Columns in which no score has anything are left out."""
    columns = {
        "score": [row.name for row in scores.rows],
        "value": ["–" if row.value is None else format_value(row.value) for row in scores.rows],
        "standard error": ["" if row.error is None else f"± {format_value(row.error)}" for row in scores.rows],
        "95 % interval": [_interval(row) for row in scores.rows],
        "n": ["" if row.n is None else format_count(row.n) for row in scores.rows],
        "note": [row.note for row in scores.rows],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(
        list(filled),
        list(zip(*filled.values(), strict=True)),
        numbers=filled.keys() - {"score", "note"},
        prose={"score", "note"},
    )
    return ScoreTable(scores.title, scores.note, table, scores.command)


def _interval(row: EvalRow) -> str:
    if row.low is None or row.high is None:
        return ""
    return f"{format_value(row.low)} to {format_value(row.high)}"


# --- curves ----------------------------------------------------------------------------------------------------------


def _curves(history: History) -> list[Chart]:
    train = history.train
    scores = [score for score in history.scores if score.title == history.scores[-1].title]  # others do not compare
    stages = {stage.stage: i for i, stage in enumerate(history.stages)}

    def line(name: str, values: Iterable[tuple[str, int, float]], faint: bool = False) -> Series:
        return Series(name, [Point(x, y, stages.get(stage, 0)) for stage, x, y in values], faint)

    ranges: dict[str, list[tuple[str, int, float]]] = {}
    latest = history.heldout[-1].image_size if history.heldout else None  # errors at another size are of another task
    measured = [event for event in history.heldout if event.image_size == latest]
    for event in (
        measured if len(measured) == 1 else (e for e in measured if e.images)
    ):  # untrained, it is off the scale
        for part in event.by_noise:
            if part.times_linear is not None:
                point = (event.stage, event.images, part.times_linear)
                ranges.setdefault(f"{part.hidden} ({part.levels})", []).append(point)
    distance = line("averaged weights", ((e.stage, e.images, e.frechet_distance) for e in scores))
    distance_label = f"{scores[-1].title}, {format_plural(scores[-1].n, 'image')}" if scores else ""
    loss = line("training loss", ((e.stage, e.images, e.loss) for e in train), faint=True)
    rate = line("learning rate", ((e.stage, e.images, e.lr) for e in train))
    throughput = line("throughput", ((e.stage, e.images, e.images_per_second) for e in train), faint=True)
    norm = line("gradient norm", ((e.stage, e.images, e.grad_norm) for e in train), faint=True)

    boundaries = [Boundary(stage.images, stage.stage) for stage in history.stages]
    chart = partial(line_chart, x_label="images seen", boundaries=boundaries)
    # Errors at several sizes of images are of several tasks: a chart for each.
    errors = []
    for size in sorted({e.image_size for e in history.heldout}, key=lambda size: (size is not None, size or ())):
        own = [e for e in history.heldout if e.image_size == size]
        both = [
            line("averaged weights", ((e.stage, e.images, e.error_ema) for e in own)),
            line("raw weights", ((e.stage, e.images, e.error_raw) for e in own)),
        ]
        title = f"Held-out error{_at_size(size)}"
        errors.append(chart(title, both, y_label="squared error of the image", log_y=True))
    drawn = [
        *errors,
        chart(
            BY_NOISE,
            [line(name, values) for name, values in list(ranges.items())[:MAX_SERIES]],
            y_label="times that of the best blur",
            log_y=True,
            reference=1.0,
        ),
        chart("Distance to held-out images", [distance], y_label=distance_label, log_y=True),
        chart("Training loss", [loss], y_label="loss", log_y=True),
        chart("Gradient norm", [norm], y_label="norm", log_y=True),
        chart("Learning rate", [rate], y_label="per step"),
        chart("Throughput", [throughput], y_label="images/s"),
    ]
    return [each for each in drawn if each is not None]


# --- tables ----------------------------------------------------------------------------------------------------------


def _stages(history: History) -> Table:
    """What each stage has done: from where it began to where the next one did, or to where the run is."""
    columns = ["stage", "mask", "masked", "steps", "images", "batch", "started from", "time"]
    rows = []
    for stage, following in zip_longest(history.stages, history.stages[1:]):
        end = following.step if following else history.step
        steps = format_count(end - stage.step)
        if stage.target_steps is not None and end - stage.step < stage.target_steps:
            steps += f" of {format_count(stage.target_steps)}"
        rows.append(
            [
                stage.stage + _sizes(stage, history),
                re.split(r"; |(?<=on average): ", stage.mask),  # a line for every group
                f"{stage.mask_ratio:.1%}",
                steps,
                format_count(history.images_at(end) - stage.images),
                format_count(stage.batch_size),
                stage.started_from,
                format_duration(history.seconds_at(end) - history.seconds_at(stage.step)),
            ]
        )
    return Table(columns, rows, numbers={"masked", "steps", "images", "batch", "time"})


def _by_noise(history: History) -> Table:
    """The latest held-out error by range of noise level; no rows where none was recorded."""
    columns = ["noise level", "hides", "averaged", "raw", "best blur", "times that", "share of the error"]
    parts = history.heldout_by_noise
    total = sum(part.error_ema * part.n for part in parts)
    rows = [
        [
            part.levels,
            part.hidden,
            format_value(part.error_ema, 3),
            format_value(part.error_raw, 3),
            format_value(part.error_linear, 3),
            "–" if part.times_linear is None else format_value(part.times_linear, 3),
            f"{part.error_ema * part.n / total:.0%}" if total else "–",
        ]
        for part in parts
    ]
    return Table(columns, rows, numbers=columns[2:])


def _model(settings: Mapping[str, Any]) -> Pairs:
    """What was trained, in three lines; every setting stands further down."""
    model, process = settings.get("model"), settings.get("process")
    rows: Pairs = []
    if isinstance(model, Mapping):
        rows.append(("network", summary.summarize_model(model)))
    if isinstance(process, Mapping):
        rows.append(("process", summary.summarize_process(process)))
        rows.append(("objective", summary.summarize_objective(process)))
    return rows


def _data(counts: Mapping[str, int]) -> Table:
    return Table(["images", "number"], [[ROLES[role], format_count(n)] for role, n in counts.items()], {"number"})


def _leaves(content: object) -> Pairs:
    return [(key, _as_yaml(value)) for key, value in _flatten(content)]


def _flatten(content: object, key: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested mappings and lists with their paths: `betas`, `0.mask.block`."""
    if isinstance(content, dict) and content:
        for name, inner in content.items():
            yield from _flatten(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list) and any(isinstance(inner, dict | list) for inner in content):
        for i, inner in enumerate(content):
            yield from _flatten(inner, f"{key}.{i}" if key else str(i))
    else:
        yield key, content


def _as_yaml(content: object) -> str:
    """A leaf as YAML has it."""
    match content:
        case None:
            return "null"
        case bool():
            return str(content).lower()
        case list():
            return f"[{', '.join(map(_as_yaml, content))}]"
        case _:
            return str(content)
