"""Charts as inline SVG, drawn by matplotlib in the colors and the font of the page.

matplotlib is imported where the first chart is drawn, and by its objects alone: no pyplot, no state, nothing of a user's
own matplotlib settings. Of its SVG the geometry is kept; colors become variables of `style.css`, so that charts follow
light and dark pages, text has the page's font, and numbers have one decimal. The same data give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

import numpy as np

from maskdm.reports.formatting import format_compact, format_count, format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

WIDTH, HEIGHT = 400, 250
"""Of a chart, in pixels where its column is as wide."""
TEXT, ROW, CHARACTER = 12, 18, 7
"""Of labels: the font's size, the height of a line, and about the width of a character."""
MAX_POINTS = 600
"""Points of a line: with more it gets heavier, not clearer."""
MAX_DOTS = 60
"""A line of no more points than this shows each as a dot that tells its values."""
HUGE = 1e30
"""Values beyond it are not drawn, nor on a logarithmic axis those below one over it."""
ROC_FLOOR = 1e-4
"""Where the axes of a ROC begin."""
BINS = 40
LOG_DIGITS = ((1, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3))
"""First digits of ticks on a logarithmic axis: the first of these that gives not too many, else powers of ten."""
COLORS = {  # what matplotlib is told: the variable of the page, and its color where there is no page
    "#010101": ("muted", "#5a6370"),
    "#020202": ("rule", "#dfe3e8"),
    "#030303": ("series-0", "#0072b2"),
    "#040404": ("series-1", "#d55e00"),
    "#050505": ("series-2", "#009e73"),
}
MUTED, RULE, *SERIES = COLORS
MAX_SERIES = len(SERIES)
"""Lines that one chart tells apart."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "maskdm",
    "font.size": TEXT,
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 1,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.xmargin": 0,
    "grid.color": RULE,
    "grid.linewidth": 1,
    "lines.linewidth": 2,
    "xtick.bottom": False,
    "ytick.left": False,
    "ytick.minor.left": False,
}
SVG = "{http://www.w3.org/2000/svg}"


class Point(NamedTuple):
    """A point of a line, in the units of the axes."""

    x: float
    y: float


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
) -> Chart | None:
    """Lines against what begins at 0, as does the vertical axis unless it is logarithmic.

    Args:
        title: of the chart.
        series: no more than `MAX_SERIES`; points that are not finite are left out, and with `log_y` those that are not
            positive.
        x_label, y_label: of the axes.
        log_y: whether the vertical axis is logarithmic.
        boundaries: of stages.

    Returns:
        The chart, or None where there is nothing to draw.
    """
    kept = [Series(s.name, thin([p for p in s.points if _drawable(p, log_y)]), s.faint) for s in series]
    drawn = [each for each in kept if each.points]
    if not drawn:
        return None
    with _axes(HEIGHT, top=ROW + 6 if boundaries else 8) as axes:
        _set_limits(axes, [point for each in drawn for point in each.points], log_y)
        axes.grid(axis="y", clip_on=False)
        axes.set_xlabel(x_label)
        names, dots = _draw_boundaries(axes, boundaries), list[_Dot]()
        for number, each in enumerate(drawn):
            style = "--" if number == MAX_SERIES - 1 else "-"  # a third color alone is hard to tell from the first
            axes.plot(*zip(*each.points, strict=True), style, color=SERIES[number], lw=1 if each.faint else 2, clip_on=False)
            if len(each.points) <= MAX_DOTS:
                dots += [_dot(axes, number, point, f"{each.name}: {{}} at {{}} {x_label}") for point in each.points]
        svg = _svg(axes, f"{title}: {y_label} against {x_label}", names, dots)
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
    with _axes(WIDTH, top=8) as axes:
        axes.set(xscale="log", yscale="log", xlim=(ROC_FLOOR, 1), ylim=(ROC_FLOOR, 1), xlabel="false positive rate")
        _format_ticks(axes)
        axes.grid(clip_on=False)
        axes.fill([ROC_FLOOR, blurred, blurred, ROC_FLOOR], [ROC_FLOOR, ROC_FLOOR, 1, 1], color=MUTED, alpha=0.14, lw=0)
        band = np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]])
        axes.fill(*band, color=SERIES[0], alpha=0.2, lw=0)
        axes.plot([ROC_FLOOR, 1], [ROC_FLOOR, 1], "--", color=MUTED, lw=1, clip_on=False)
        axes.plot(x, y, color=SERIES[0], clip_on=False)
        if blurred > 30 * ROC_FLOOR:
            axes.annotate("not resolved", (0, 1), (6, -ROW + 3), "axes fraction", "offset points")
        title = "ROC of the primary statistic"
        svg = _svg(axes, f"{title} on logarithmic axes")
    return Chart(title, "true positive rate and its 95 % band, log scales", (), svg)


def score_histogram(members: ArrayLike, heldout: ArrayLike) -> Chart:
    """How calibrated scores are spread, as shares of the images of each role.

    Args:
        members, heldout: scores of images of these roles, (N,) and (M,).
    """
    roles = [np.asarray(each, np.float64) for each in (members, heldout)]
    low, high = np.quantile(np.concatenate(roles), [0.002, 0.998])
    edges = np.linspace(low, max(high, low + 1e-9), BINS + 1)
    with _axes(WIDTH, top=8) as axes:
        for each, color in zip(roles, SERIES, strict=False):
            counts, _ = np.histogram(np.clip(each, edges[0], edges[-1]), edges)
            axes.stairs(counts / len(each), edges, baseline=None, color=color, lw=2, clip_on=False)
        axes.set(xlim=(edges[0], edges[-1]), xlabel="score: higher is more like a member")
        axes.set_ylim(bottom=0)
        _format_ticks(axes)
        axes.grid(axis="y", clip_on=False)
        svg = _svg(axes, "Calibrated scores of members and of held-out images")
    return Chart("Calibrated scores", "share of the images", ("members", "held out"), svg)


def standalone(svg: str) -> str:
    """A drawing as a file of its own, in the colors of a light page."""
    variables = "".join(f"--{name}:{color};" for name, color in COLORS.values())
    style = f"<style>:root{{{variables}}}text{{font:{TEXT}px sans-serif;fill:var(--muted)}}</style>"
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{style}", 1) + "\n"


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


# --- axes ------------------------------------------------------------------------------------------------------------


@contextmanager
def _axes(height: int, *, top: int) -> Iterator[Axes]:
    """Axes in a figure of `WIDTH` x `height`, `top` below its upper edge, in our style and nobody else's."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)  # of 72 to an inch, points are pixels
        FigureCanvasSVG(figure)
        bottom = 2 * ROW + 4
        yield figure.add_axes((0.1, bottom / height, 0.88, 1 - (top + bottom) / height))


def _set_limits(axes: Axes, points: Sequence[Point], log_y: bool) -> None:
    """Of lines: from 0 to the last x; and from 0 to a tick above all y, or a little beyond all y."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(point.y for point in points), max(point.y for point in points)
    axes.set_xlim(min(0.0, *(point.x for point in points)), max(point.x for point in points) or 1.0)
    if log_y:
        margin = max((high / low) ** 0.05, 1.02)
        axes.set_yscale("log")
        axes.set_ylim(low / margin, high * margin)
    else:
        ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(min(low, 0.0), max(high, 0.0) or 1.0)
        axes.set_ylim(ticks[0], ticks[-1])
    _format_ticks(axes)


def _format_ticks(axes: Axes) -> None:
    """Few round ticks, none of them minor, and room for their labels; the last step, since it asks where they are."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    for axis, wanted in ((axes.xaxis, 5), (axes.yaxis, 4)):
        axis.set_major_locator(MaxNLocator(wanted, steps=[1, 2, 5, 10]))
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            fitting = (each for each in LOG_DIGITS if len(each) * math.log10(high / low) <= wanted + 1)
            digits = next(fitting, (1,))
            axis.set_major_locator(LogLocator(subs=digits, numticks=wanted + 2))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: format_compact(value))
        axis.set_tick_params(pad=5, labelcolor=MUTED)
    low, high = axes.get_ylim()
    labels = [format_compact(value) for value in axes.get_yticks() if low <= value <= high]
    left, box = (12 + CHARACTER * max(map(len, labels), default=0)) / WIDTH, axes.get_position()
    axes.set_position((left, box.y0, 1 - left - 12 / WIDTH, box.height))


def _draw_boundaries(axes: Axes, boundaries: Sequence[Boundary]) -> list[_Label]:
    """Dotted lines, and the names above them as far as there is room before the next."""
    begun = sorted((each for each in boundaries if each.x <= axes.get_xlim()[1]), key=lambda each: each.x)
    places = [axes.transData.transform((each.x, 1.0))[0] for each in begun]
    labels = []
    for boundary, place, following in zip(begun, places, [*places, WIDTH][1:], strict=True):
        axes.plot([boundary.x] * 2, [0, 1.04], ls=(0, (2, 3)), color=MUTED, lw=1, clip_on=False,
                  transform=axes.get_xaxis_transform())
        name = _cut(boundary.name, int((following - place - 6) / CHARACTER))
        labels.append(_Label(place + 4, ROW, name))
    return [label for label in labels if label.text]


def _cut(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    return f"{text[: characters - 1].rstrip()}…" if characters >= 4 else ""


# --- drawings --------------------------------------------------------------------------------------------------------


class _Label(NamedTuple):
    """Text from a user, which may be in letters that matplotlib has no font for; in pixels from the upper left."""

    x: float
    y: float
    text: str


class _Dot(NamedTuple):
    """Where a value is, in pixels from the upper left, and what it is."""

    number: int
    x: float
    y: float
    text: str


def _dot(axes: Axes, number: int, point: Point, text: str) -> _Dot:
    x, y = axes.transData.transform(point)
    said = text.format(format_value(point.y), format_count(point.x))
    return _Dot(number, x, axes.figure.bbox.height - y, said)


def _svg(axes: Axes, label: str, names: Sequence[_Label] = (), dots: Sequence[_Dot] = ()) -> str:
    """The figure of `axes` as an element for a page, with `label` for those who do not see it."""
    figure, drawn = axes.figure, io.BytesIO()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.canvas.print_svg(drawn, metadata=nothing)
    root = ElementTree.fromstring(drawn.getvalue())
    viewbox = f"0 0 {WIDTH} {figure.bbox.height:g}"
    svg = ElementTree.Element("svg", {"viewBox": viewbox, "role": "img", "aria-label": label})
    for element in root.iter():
        if element.tag == f"{SVG}path" and "style" in element.attrib:
            path = {"d": _rounded(element.attrib["d"]), "style": _in_page_colors(element.attrib["style"])}
            ElementTree.SubElement(svg, "path", path)
        elif element.tag == f"{SVG}text":
            anchor = re.search(r"text-anchor: (\w+)", element.attrib["style"])
            place = {key: _rounded(element.attrib[key]) for key in ("x", "y")}
            text = ElementTree.SubElement(svg, "text", place | ({"text-anchor": anchor[1]} if anchor else {}))
            text.text = element.text
    for name in names:
        ElementTree.SubElement(svg, "text", {"x": f"{name.x:.1f}", "y": f"{name.y:g}"}).text = name.text
    for dot in dots:
        place = {"cx": f"{dot.x:.1f}", "cy": f"{dot.y:.1f}", "r": "2.5", "class": f"dot series-{dot.number}"}
        ElementTree.SubElement(ElementTree.SubElement(svg, "circle", place), "title").text = dot.text
    return ElementTree.tostring(svg, encoding="unicode")


def _rounded(geometry: str) -> str:
    numbers = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), geometry)
    return re.sub(r"\s*([MLzQC])\s*", r"\1", numbers.strip())


def _in_page_colors(style: str) -> str:
    for color, (name, _) in COLORS.items():
        style = style.replace(color, f"var(--{name})")
    return style.replace(": ", ":").replace("; ", ";")
