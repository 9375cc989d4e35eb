"""The two drawings of an audit, as inline SVG in the colours of `report.css`: ROC on logarithmic axes, and scores."""

from __future__ import annotations

import math

import numpy as np

from maskdm.audit.scoring import Scored
from maskdm.audit.statistics import interval_of_share, roc, worth
from maskdm.reports.markup import Html, tag

LEAST = 1e-4
SIDE, LEFT, TOP, BOTTOM = 380.0, 46.0, 44.0, 42.0
POINTS = 120
BINS = 40


def roc_chart(scored: Scored) -> Html:
    """True against false positives, both from 10^-4 to 1, with Clopper-Pearson's 95 % band.

    What lies left of ten false positives is not resolved, and hatched.
    """
    fpr, tpr = roc(scored.members, scored.heldout)
    members, heldout = len(scored.members), len(scored.heldout)
    wide, high = LEFT + SIDE, TOP + SIDE

    def across(x: float) -> float:
        return round(LEFT + SIDE * (1 - math.log10(max(x, LEAST)) / math.log10(LEAST)), 1)

    def down(y: float) -> float:
        return round(high - SIDE * (1 - math.log10(max(y, LEAST)) / math.log10(LEAST)), 1)

    at = np.unique(np.concatenate([np.geomspace(LEAST, 1, POINTS), [1.0]]))
    curve = [float(tpr[np.searchsorted(fpr, x, "right") - 1]) for x in at]  # the best with no more false positives
    groups, thresholds = scored.groups and scored.groups[0], np.append(np.sort(scored.members), np.inf)
    found = [scored.members >= thresholds[round((1 - y) * members)] for y in curve]
    bands = [interval_of_share(y, worth(those, groups)) for y, those in zip(curve, found, strict=True)]
    path = " ".join(
        f"{'M' if i == 0 else 'L'}{across(x)} {down(y)}" for i, (x, y) in enumerate(zip(at, curve, strict=True))
    )
    outline = [(x, high_) for x, (_, high_) in zip(at, bands, strict=True)]
    outline += [(x, low) for x, (low, _) in reversed(list(zip(at, bands, strict=True)))]
    band = "M" + " L".join(f"{across(x)} {down(y)}" for x, y in outline) + "Z"
    blurred = across(min(10 / heldout, 1.0))
    ticks = []
    for power in range(-4, 1):
        x, y, label = across(10.0**power), down(10.0**power), f"{10.0**power:g}"
        ticks += [
            tag("line", class_="grid", x1=LEFT, x2=wide, y1=y, y2=y),
            tag("line", class_="grid", x1=x, x2=x, y1=TOP, y2=high),
            tag("text", label, x=LEFT - 6, y=y + 4, text_anchor="end"),
            tag("text", label, x=x, y=high + 16, text_anchor="middle"),
        ]
    return tag(
        "svg",
        tag("text", "ROC of the primary statistic", class_="chart-title", x=0, y=14),
        tag("text", "members found, against held-out pictures taken for members; both log scale", x=0, y=32),
        *ticks,
        tag("rect", x=LEFT, y=TOP, width=blurred - LEFT, height=SIDE, class_="unresolved"),
        tag("path", d=band, class_="band"),
        tag("line", class_="axis", x1=LEFT, x2=wide, y1=high, y2=TOP, stroke_dasharray="4 4"),
        tag("g", tag("path", d=path), class_="series series-0"),
        tag("text", "not resolved" if blurred - LEFT > 80 else "", x=LEFT + 6, y=TOP + 16),
        tag("text", "false positives", x=LEFT + SIDE / 2, y=high + 34, text_anchor="middle"),
        viewBox=f"0 0 {wide + 10:g} {high + BOTTOM:g}",
        role="img",
        aria_label="ROC of the primary statistic on logarithmic axes",
        class_="roc",
    )


def histogram(scored: Scored, width: float = 426.0, height: float = 240.0) -> Html:
    """How calibrated scores of members and of held-out pictures are spread."""
    both = np.concatenate([scored.members, scored.heldout])
    low, high = np.quantile(both, [0.002, 0.998])
    edges = np.linspace(low, max(high, low + 1e-9), BINS + 1)
    shares = [
        np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0] / len(part)
        for part in (scored.members, scored.heldout)
    ]
    most = max(float(share.max()) for share in shares)
    bottom = height - 24

    def steps(share: np.ndarray) -> str:
        points = []
        for i, value in enumerate(share):
            y = bottom - float(value) / most * (bottom - 56)
            points += [f"{i * width / BINS:.1f} {y:.1f}", f"{(i + 1) * width / BINS:.1f} {y:.1f}"]
        return "M" + " L".join(points)

    names = ("members", "held out")
    return tag(
        "svg",
        tag("text", "Calibrated scores", class_="chart-title", x=0, y=14),
        *(
            tag(
                "g",
                tag("path", d=f"M{i * 110} 32 L{i * 110 + 18} 32"),
                tag("text", name, x=i * 110 + 24, y=36),
                tag("path", d=steps(share)),
                class_=f"series series-{i}",
            )
            for i, (name, share) in enumerate(zip(names, shares, strict=True))
        ),
        tag("line", class_="axis", x1=0, x2=width, y1=bottom, y2=bottom),
        tag("text", f"{low:.1f}", x=0, y=height - 6),
        tag("text", "looks like a member", x=width / 2, y=height - 6, text_anchor="middle"),
        tag("text", f"{high:.1f}", x=width, y=height - 6, text_anchor="end"),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label="Calibrated scores of members and of held-out pictures",
        class_="roc",
    )
