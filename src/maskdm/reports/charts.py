"""Line charts as inline SVG. Colours, strokes and fonts are the page's (`report.css`); the geometry is all here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from maskdm.reports import formatting as wording
from maskdm.reports.markup import Html, join, tag

MAX_POINTS = 600  # a series has no more of them: beyond that a line gets heavier, not clearer
MAX_DOTS = 60  # a series with no more points than this shows each as a dot that names its values
HUGE = 1e100  # no float32 training logs more, nor less than 1 / HUGE; within, the arithmetic of axes is safe
TITLE, TEXT = 14, 12  # font sizes, those of `report.css`
ROW = 19  # height of a line of text


class Point(NamedTuple):
    x: float
    y: float


@dataclass(frozen=True)
class Series:
    """One line. `name` stands in the legend, with the last value."""

    name: str
    points: Sequence[Point]
    faint: bool = False  # for noisy lines


@dataclass(frozen=True)
class Boundary:
    """A vertical line at `x`, where `name` begins."""

    x: float
    name: str


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: list[tuple[float, str]]
    log: bool = False

    def fraction(self, value: float) -> float:
        """Where `value` lies, 0 at the axis' beginning and 1 at its end."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    boundaries: Sequence[Boundary] = (),
    width: float = 300,
    height: float = 240,
) -> Html | None:
    """An `<svg>` of `width` × `height`, or None if there is nothing to draw.

    x begins at 0; y too, unless it is logarithmic. Points that are not finite are skipped, and with `log_y` those that
    are not positive.
    """
    drawn = [
        Series(line.name, thin(kept), line.faint)
        for line in series
        if (kept := [p for p in line.points if _drawable(p, log_y)])
    ]
    if not drawn:
        return None
    xs = [p.x for line in drawn for p in line.points]
    ys = [p.y for line in drawn for p in line.points]

    # From the top: title, what y is, legend, names of the boundaries; then the plot; then tick labels, what x is.
    legend = _legend(drawn, width) if len(drawn) > 1 else []
    legend_rows = legend[-1].row + 1 if legend else 0
    top = TITLE + ROW * (1 + legend_rows + bool(boundaries)) + 12
    bottom = height - 2 * ROW - 2
    y_axis = (_log_axis if log_y else _linear_axis)(min(ys), max(ys), max(2, round((bottom - top) / 45)))
    left = 10 + max(_text_width(label) for _, label in y_axis.ticks)
    right = width - 8
    x_axis = _linear_axis(min(xs), max(xs), max(2, round((right - left) / 70)), to_data=True)

    def across(x: float) -> float:
        return round(left + x_axis.fraction(x) * (right - left), 1)

    def down(y: float) -> float:
        return round(bottom - y_axis.fraction(y) * (bottom - top), 1)

    subtitle = f"{y_label}, log scale" if log_y else y_label
    if len(drawn) == 1:
        subtitle += f" · last {wording.value(drawn[0].points[-1].y, 3)}"
    return tag(
        "svg",
        tag("text", title, class_="chart-title", x=0, y=TITLE),
        tag("text", subtitle, x=0, y=TITLE + ROW),
        *(entry.draw(TITLE + ROW * 2) for entry in legend),
        *(_y_tick(down(y), label, left, right) for y, label in y_axis.ticks),
        tag("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom),
        *(_x_tick(across(x), label, bottom, right) for x, label in x_axis.ticks),
        tag("text", x_label, x=(left + right) / 2, y=height - 4, text_anchor="middle"),
        *_boundaries(boundaries, across, x_axis.high, top, bottom, right),
        *(_line(i, line, across, down, x_label) for i, line in enumerate(drawn)),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=f"{title}: {y_label} against {x_label}",
    )


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


# Axes ----------------------------------------------------------------------------------------------------------------


def _linear_axis(low: float, high: float, wanted: int, to_data: bool = False) -> _Axis:
    """From zero, with about `wanted` ticks, ending on a tick or (`to_data`) where the data end."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1 / HUGE:
        high = 1.0
    step = _nice_step((high - low) / wanted)
    first = math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if to_data else math.ceil(high / step - 1e-9)
    values = [i * step for i in range(first, last + 1)]
    return _Axis(values[0], high if to_data else values[-1], list(zip(values, _even_labels(values, step), strict=True)))


def _log_axis(low: float, high: float, wanted: int) -> _Axis:
    """A little beyond the data, with ticks at 1, 2, 5 or sparser over decades, and at even steps within one."""
    margin = max((high / low) ** 0.05, 1.02)
    low, high = low / margin, high * margin
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in [(1, 2, 5), (1, 3), (1,)]:
        values = [v for decade in decades for digit in digits if low <= (v := digit * 10.0**decade) <= high]
        if len(values) <= wanted + 1:
            break
    if len(values) >= 3 or (len(values) >= 2 and high > 8 * low):
        every = math.ceil(len(values) / (wanted + 1))
        return _Axis(low, high, [(v, wording.compact(v)) for v in values[::every]], log=True)
    step = _nice_step((high - low) / max(3, wanted))  # with 3 at least one tick falls within
    values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return _Axis(low, high, list(zip(values, _even_labels(values, step), strict=True)), log=True)


def _nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no less than `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))


def _even_labels(values: list[float], step: float) -> list[str]:
    """Labels with the same number of decimals: 0.0, 0.5, 1.0."""
    if max(map(abs, values)) >= 1e4 or step < 1e-3:
        return [wording.compact(v) for v in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{v:,.{decimals}f}" for v in values]


def _y_tick(y: float, label: str, left: float, right: float) -> Html:
    text = tag("text", label, x=left - 6, y=y + 4, text_anchor="end")
    return join([tag("line", class_="grid", x1=left, x2=right, y1=y, y2=y), text])


def _x_tick(x: float, label: str, bottom: float, right: float) -> Html:
    # The last label would stand half outside; it ends with the plot instead.
    outside = x + _text_width(label) / 2 > right + 8
    text = tag("text", label, x=right if outside else x, y=bottom + ROW, text_anchor="end" if outside else "middle")
    return join([tag("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 4), text])


# What is drawn -------------------------------------------------------------------------------------------------------


def _line(index: int, line: Series, across: Callable[[float], float], down: Callable[[float], float], x: str) -> Html:
    path = "L".join(f"{across(p.x):g} {down(p.y):g}" for p in line.points)
    dots = [
        tag(
            "circle",
            tag("title", f"{line.name}: {wording.value(p.y)} at {wording.count(p.x)} {x}"),
            cx=across(p.x),
            cy=down(p.y),
            r=2.5,
        )
        for p in (line.points if len(line.points) <= MAX_DOTS else ())
    ]
    return tag("g", tag("path", d=f"M{path}"), *dots, class_=_classes(index, line))


def _boundaries(
    boundaries: Sequence[Boundary],
    across: Callable[[float], float],
    end: float,
    top: float,
    bottom: float,
    right: float,
) -> list[Html]:
    """Lines from the strip of names down through the plot; a name is cut, or left out, where its stage is narrow."""
    begun = sorted((b for b in boundaries if b.x <= end), key=lambda b: b.x)
    places = [across(b.x) for b in begun]
    drawn = []
    for boundary, place, following in zip(begun, places, [*places, right + 8][1:], strict=True):
        line = tag("line", x1=place, x2=place, y1=top - ROW + 4, y2=bottom)
        name = _cut(boundary.name, following - place - 6)
        text = [tag("text", name, x=place + 4, y=top - 6)] if name else []
        drawn.append(tag("g", tag("title", boundary.name), line, *text, class_="boundary"))
    return drawn


class _LegendEntry(NamedTuple):
    classes: str
    label: str
    x: float
    row: int

    def draw(self, top: float) -> Html:
        y = top + self.row * ROW
        swatch = tag("g", tag("path", d=f"M{self.x:g} {y - 4:g}h16"), class_=f"{self.classes} swatch")
        return join([swatch, tag("text", self.label, x=self.x + 22, y=y)])


def _legend(series: Sequence[Series], width: float) -> list[_LegendEntry]:
    entries: list[_LegendEntry] = []
    x, row = 0.0, 0
    for i, line in enumerate(series):
        label = f"{line.name} {wording.value(line.points[-1].y, 3)}"
        needed = 22 + _text_width(label)
        if x > 0 and x + needed > width:
            x, row = 0.0, row + 1
        entries.append(_LegendEntry(_classes(i, line), label, x, row))
        x += needed + 18
    return entries


def _classes(index: int, line: Series) -> str:
    return f"series series-{index}" + (" faint" if line.faint else "")


def _text_width(text: str) -> float:
    """About what `text` takes in a sans-serif face: fonts are not known here, so a little more than most need."""
    return 0.58 * TEXT * len(text)


def _cut(text: str, room: float) -> str:
    if _text_width(text) <= room:
        return text
    fitting = int(room / _text_width("x")) - 1
    return f"{text[:fitting].rstrip()}…" if fitting >= 3 else ""
