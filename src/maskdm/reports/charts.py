"""The charts of our pages: lines against images or compute, a ROC, a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maskdm.reports.drawing import (
    CHARACTER,
    MUTED,
    ROW,
    SERIES,
    WIDTH,
    ceiling,
    dot_at,
    draw,
    label_at,
    place,
    set_ticks,
    to_svg,
)
from maskdm.reports.formatting import format_count, format_value

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

HEIGHT = 250
"""Of a line chart, in pixels where its column is as wide as it is drawn."""
MAX_POINTS = 600
"""Points of a line: with more it gets heavier, not clearer."""
MAX_DOTS = 60
"""A line of no more points than this shows each as a dot that tells its values."""
MAX_SERIES = len(SERIES)
"""Lines that one chart tells apart."""
STYLES = ("-", "-", "--", ":")
"""Of lines: more than two colors alone are hard to tell apart; `style.css` has the same for legends."""
HUGE = 1e30
"""Values beyond it are not drawn, nor on a logarithmic axis those below one over it."""
ROC_FLOOR = 1e-4
"""Where the axes of a ROC begin."""
BINS = 40


class Point(NamedTuple):
    """A point of a line, in the units of the axes; points of different parts, such as stages, are not joined."""

    x: float
    y: float
    part: int = 0


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: in the legend, with the last value.
        points: in the order of x.
        faint: for noisy lines.
    """

    name: str
    points: Sequence[Point]
    faint: bool = False


@dataclass(frozen=True)
class Boundary:
    """A vertical line at `x`, where `name` begins."""

    x: float
    name: str


@dataclass(frozen=True)
class Chart:
    """A chart as a page shows it.

    Attributes:
        title: what is drawn.
        subtitle: what the vertical axis means.
        legend: lines in the order of their colors; empty where there is one.
        svg: the drawing, an element.
    """

    title: str
    subtitle: str
    legend: tuple[str, ...]
    svg: str


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    boundaries: Sequence[Boundary] = (),
    reference: float | None = None,
) -> Chart | None:
    """Lines against what begins at 0, as does the vertical axis unless it is logarithmic.

    Args:
        title: of the chart.
        series: no more than `MAX_SERIES`; points that are not finite are left out, and with `log_y` those that are not
            positive.
        x_label, y_label: of the axes.
        log_y: whether the vertical axis is logarithmic.
        boundaries: of stages.
        reference: a value that y is read against: a level line.

    Returns:
        The chart, or None where there is nothing to draw.
    """
    kept = [Series(s.name, thin([p for p in s.points if _drawable(p, log_y)]), s.faint) for s in series]
    drawn = [each for each in kept if each.points]
    if not drawn:
        return None
    with draw(HEIGHT, above=ROW + 6 if boundaries else 8) as axes:
        values = [point.y for each in drawn for point in each.points] + ([] if reference is None else [reference])
        _set_limits(axes, [point.x for each in drawn for point in each.points], values, log_y)
        if reference is not None:
            axes.axhline(reference, color=MUTED, lw=1)
        axes.set_xlabel(x_label)
        over = _draw_boundaries(axes, boundaries)
        for number, each in enumerate(drawn):
            over += _draw_line(axes, number, each, x_label)
        svg = to_svg(axes, f"{title}: {y_label} against {x_label}", over)
    last = [format_value(each.points[-1].y, 3) for each in drawn]
    subtitle = f"{y_label}, log scale" if log_y else y_label
    if len(drawn) == 1:
        return Chart(title, f"{subtitle} · last {last[0]}", (), svg)
    return Chart(title, subtitle, tuple(f"{each.name} {value}" for each, value in zip(drawn, last, strict=True)), svg)


def roc_chart(fpr: ArrayLike, tpr: ArrayLike, low: ArrayLike, high: ArrayLike, *, resolved: float) -> Chart:
    """A ROC on logarithmic axes from 10^-4 to 1, on which the small false positive rates can be seen.

    Args:
        fpr, tpr: rates of the curve, (N,), rising.
        low, high: the band around `tpr`, (N,).
        resolved: the false positive rate below which so many images say nothing; what lies left of it is shaded.
    """
    x, y, low, high = (np.maximum(np.asarray(each, np.float64), ROC_FLOOR) for each in (fpr, tpr, low, high))
    blurred = min(max(resolved, ROC_FLOOR), 1.0)
    with draw(WIDTH) as axes:
        axes.set(xscale="log", yscale="log", xlim=(ROC_FLOOR, 1), ylim=(ROC_FLOOR, 1), xlabel="false positive rate")
        set_ticks(axes, grid="both")
        axes.fill([ROC_FLOOR, blurred, blurred, ROC_FLOOR], [ROC_FLOOR, ROC_FLOOR, 1, 1], color=MUTED, alpha=0.14, lw=0)
        axes.fill(np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]]), color=SERIES[0], alpha=0.2, lw=0)
        axes.plot([ROC_FLOOR, 1], [ROC_FLOOR, 1], "--", color=MUTED, lw=1, clip_on=False)
        axes.plot(x, y, color=SERIES[0], clip_on=False)
        left, top = place(axes, ROC_FLOOR, 1)
        note = [label_at(left + 6, top + ROW - 3, "not resolved")] if blurred > 30 * ROC_FLOOR else []
        svg = to_svg(axes, "ROC of the primary statistic on logarithmic axes", note)
    return Chart("ROC of the primary statistic", "true positive rate and its 95 % band, log scales", (), svg)


def score_histogram(members: ArrayLike, heldout: ArrayLike) -> Chart:
    """How calibrated scores are spread, as shares of the images of each role.

    Args:
        members, heldout: scores of images of these roles, (N,) and (M,).
    """
    roles = [np.asarray(each, np.float64) for each in (members, heldout)]
    low, high = np.quantile(np.concatenate(roles), [0.002, 0.998])
    edges = np.linspace(low, max(high, low + 1e-9), BINS + 1)
    shares = [np.histogram(np.clip(each, edges[0], edges[-1]), edges)[0] / len(each) for each in roles]
    with draw(WIDTH) as axes:
        axes.set(xlim=(edges[0], edges[-1]), ylim=ceiling(max(float(each.max()) for each in shares)))
        axes.set_xlabel("score: higher is more like a member")
        set_ticks(axes)
        for each, color in zip(shares, SERIES, strict=False):
            axes.stairs(each, edges, baseline=None, color=color, lw=2, clip_on=False)
        svg = to_svg(axes, "Calibrated scores of members and of held-out images")
    return Chart("Calibrated scores", "share of the images", ("members", "held out"), svg)


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> Sequence[Point]:
    """At most `limit` of the points, in order: both ends, and the lowest and highest of each stretch between them.

    Peaks stay, which neither taking every n-th point nor averaging would do; a spike in a loss is what one looks for.
    """
    if len(points) <= limit:
        return points
    stretches = (limit - 2) // 2
    edges = [1 + (len(points) - 2) * i // stretches for i in range(stretches + 1)]
    kept = {0, len(points) - 1}
    for start, end in pairwise(edges):
        kept.add(min(range(start, end), key=lambda i: points[i].y))
        kept.add(max(range(start, end), key=lambda i: points[i].y))
    return [points[i] for i in sorted(kept)]


def _drawable(point: Point, log_y: bool) -> bool:
    return abs(point.x) <= HUGE and (1 / HUGE if log_y else -HUGE) <= point.y <= HUGE  # false for NaN as well


def _set_limits(axes: Axes, xs: Sequence[float], ys: Sequence[float], log_y: bool) -> None:
    """From 0 to the last x; and from 0 to a tick above all y, or a little beyond all y."""
    first, last = min(0.0, *xs), max(0.0, *xs)
    low, high = min(ys), max(ys)
    axes.set_xlim(first, last if last > first else 1.0)
    if log_y:
        margin = max((high / low) ** 0.05, 1.02)
        axes.set_yscale("log")
        axes.set_ylim(low / margin, high * margin)
    else:
        axes.set_ylim(ceiling(max(high, 0.0) or 1.0, min(low, 0.0)))
    set_ticks(axes)


def _draw_line(axes: Axes, number: int, line: Series, x_label: str) -> list[Element]:
    """A line, and the dots that go over it where there are few."""
    parts = [list(points) for _, points in groupby(line.points, key=lambda point: point.part)]
    for points in parts:
        xs, ys, _ = zip(*points, strict=True)
        axes.plot(xs, ys, STYLES[number], color=SERIES[number], lw=1 if line.faint else 2, clip_on=False)
    dotted = line.points
    if len(line.points) > MAX_DOTS:
        dotted = [points[0] for points in parts if len(points) == 1]  # of one point no line is seen
    return [
        dot_at(*place(axes, x, y), number, f"{line.name}: {format_value(y)} at {format_count(x)} {x_label}")
        for x, y, _ in dotted
    ]


def _draw_boundaries(axes: Axes, boundaries: Sequence[Boundary]) -> list[Element]:
    """Dotted lines, and the names above them as far as there is room before the next."""
    begun = sorted((each for each in boundaries if each.x <= axes.get_xlim()[1]), key=lambda each: each.x)
    places = [place(axes, each.x, 1.0)[0] for each in begun]
    names = []
    for boundary, left, following in zip(begun, places, [*places, WIDTH][1:], strict=True):
        axes.axvline(boundary.x, 0, 1.04, ls=(0, (2, 3)), color=MUTED, lw=1, clip_on=False)
        if name := _cut(boundary.name, int((following - left - 6) / CHARACTER)):
            names.append(label_at(left + 4, ROW, name))
    return names


def _cut(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    return f"{text[: characters - 1].rstrip()}…" if characters >= 4 else ""
