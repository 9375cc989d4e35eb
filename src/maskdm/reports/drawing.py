"""matplotlib's axes as SVG within a page, in the page's colors and font.

matplotlib is imported where the first chart is drawn, and by its objects alone: no pyplot, no state, no settings of a
user. Of its SVG the geometry is kept; colors become variables of `style.css`, so that charts follow light and dark
pages, text has the page's font, and numbers have one decimal. The same data give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from maskdm.reports.formatting import format_compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 400
"""Of a drawing, in pixels where its column is as wide."""
TEXT, ROW, CHARACTER = 12, 18, 7
"""Of labels: the font's size, the height of a line, and about the width of a character."""
COLORS = {  # what matplotlib is told: the variable of the page, and its color where there is no page
    "#010101": ("muted", "#5a6370"),
    "#020202": ("rule", "#dfe3e8"),
    "#030303": ("series-0", "#0072b2"),
    "#040404": ("series-1", "#d55e00"),
    "#050505": ("series-2", "#009e73"),
    "#060606": ("series-3", "#b8578f"),
}
MUTED, RULE, *SERIES = COLORS
LOG_DIGITS = ((1, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3))
"""First digits of ticks on a logarithmic axis: the first of these that gives not too many, else powers of ten."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "maskdm",
    "font.size": TEXT,
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 1,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": RULE,
    "grid.linewidth": 1,
    "lines.linewidth": 2,
    "xtick.bottom": False,
    "xtick.major.pad": 5,
    "ytick.left": False,
    "ytick.major.pad": 5,
}
SVG = "{http://www.w3.org/2000/svg}"


@contextmanager
def draw(height: int, *, above: int = 8) -> Iterator[Axes]:
    """Axes to draw in and to give to `to_svg` before the block ends.

    Args:
        height: of the drawing; its width is `WIDTH`.
        above: what is left free above the axes, in pixels.
    """
    import matplotlib
    from matplotlib.figure import Figure

    below = 2 * ROW + 4  # labels of ticks, and of the axis
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)  # of 72 to an inch, points are pixels
        yield figure.add_axes((0.1, below / height, 0.87, 1 - (above + below) / height))


def ceiling(high: float, low: float = 0.0) -> tuple[float, float]:
    """The nearest round ticks around `low` to `high`, for the limits of a linear axis."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    return float(ticks[0]), float(ticks[-1])


def set_ticks(axes: Axes, grid: str = "y") -> None:
    """Few round ticks, room for their labels, and lines at those of `grid` (x, y or both). After limits are set."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    for axis, wanted in ((axes.xaxis, 5), (axes.yaxis, 4)):
        axis.set_major_locator(MaxNLocator(wanted, steps=[1, 2, 5, 10]))
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            fitting = (digits for digits in LOG_DIGITS if len(digits) * math.log10(high / low) <= wanted + 1)
            axis.set_major_locator(LogLocator(subs=next(fitting, (1,)), numticks=wanted + 2))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: format_compact(value))
    low, high = axes.get_ylim()
    labels = [format_compact(value) for value in axes.get_yticks() if low <= value <= high]
    left, box = (12 + CHARACTER * max(map(len, labels), default=0)) / WIDTH, axes.get_position()
    axes.set_position((left, box.y0, 1 - left - 12 / WIDTH, box.height))
    axes.grid(axis=grid, clip_on=False)  # type: ignore[arg-type]


def place(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """A point of the data in pixels from the upper left."""
    across, up = axes.transData.transform((x, y))
    return float(across), float(_figure(axes).bbox.height - up)


def label_at(x: float, y: float, text: str) -> Element:
    """Text from a user for `to_svg`, which may be in letters that matplotlib has no font for; `x`, `y` in pixels."""
    element = Element("text", {"x": f"{x:.1f}", "y": f"{y:.1f}"})
    element.text = text
    return element


def dot_at(x: float, y: float, series: int, text: str) -> Element:
    """A dot of a series for `to_svg`, with what is shown where a mouse points at it; `x`, `y` in pixels."""
    dot = Element("circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "2.5", "class": f"dot series-{series}"})
    ElementTree.SubElement(dot, "title").text = text
    return dot


def to_svg(axes: Axes, label: str, over: Sequence[Element] = ()) -> str:
    """A drawing as an element of a page.

    Args:
        axes: as `draw` gave them.
        label: for those who do not see it.
        over: elements that lie above what matplotlib has drawn.
    """
    root = _matplotlib_svg(axes)
    svg = Element("svg", {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label})
    for element in root.iter():
        style = element.attrib.get("style")
        if style and element.tag == f"{SVG}path":
            ElementTree.SubElement(svg, "path", {"d": _rounded(element.attrib["d"]), "style": _in_page_colors(style)})
        elif style and element.tag == f"{SVG}text":
            anchor = re.search(r"text-anchor: (\w+)", style)
            text = label_at(float(element.attrib["x"]), float(element.attrib["y"]), element.text or "")
            text.set("text-anchor", anchor[1] if anchor else "start")
            svg.append(text)
    svg.extend(over)
    return ElementTree.tostring(svg, encoding="unicode")


def standalone(svg: str) -> str:
    """A drawing as a file of its own, in the colors of a light page."""
    variables = "".join(f"--{name}:{color};" for name, color in COLORS.values())
    style = f"<style>:root{{{variables}}}text{{font:{TEXT}px sans-serif;fill:var(--muted)}}</style>"
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{style}", 1) + "\n"


def _matplotlib_svg(axes: Axes) -> Element:
    """All that matplotlib writes but dates, its name and a white background."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure, written = _figure(axes), io.BytesIO()
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(written, metadata=nothing)  # type: ignore[no-untyped-call]
    return ElementTree.fromstring(written.getvalue())


def _figure(axes: Axes) -> Figure:
    return cast("Figure", axes.get_figure())  # no figure within a figure


def _rounded(path: str) -> str:
    """The same path with one decimal, and no space that it does not need."""
    path = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), path)
    return re.sub(r"\s*([MLQCz])\s*", r"\1", path.strip())


def _in_page_colors(style: str) -> str:
    for color, (name, _) in COLORS.items():
        style = style.replace(color, f"var(--{name})")
    return style.replace(": ", ":").replace("; ", ";")
