"""Curves of several seeds for each arm as an SVG that stands alone, for docs/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

COLOURS = ("#5a6370", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 380, 60, 30, 50
Curve = Sequence[tuple[float, float]]


def curves(path: Path, arms: Mapping[str, Sequence[Curve]], x_label: str, y_label: str) -> None:
    """Every arm in its colour, a thin line for each curve; x falls from left to right."""
    points = [point for curve in arms.values() for line in curve for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    right, bottom = WIDTH - 150, HEIGHT - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = (max(xs) - x) / (max(xs) - min(xs))
        up = (y - min(ys)) / (max(ys) - min(ys))
        return round(LEFT + across * (right - LEFT), 1), round(bottom - up * (bottom - TOP), 1)

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', text(LEFT, 16, y_label)]
    for i in range(5):
        x, y = (min(v) + (max(v) - min(v)) * i / 4 for v in (xs, ys))
        a, b = place(x, y)
        parts += [
            f'<path d="M{LEFT} {b}H{right}" stroke="#dfe3e8"/>',
            text(LEFT - 6, b + 4, f"{y:.3g}", "end"),
            text(a, bottom + 18, f"{x:.3g}", "middle"),
        ]
    parts.append(text((LEFT + right) / 2, HEIGHT - 8, f"{x_label}, falling", "middle"))
    for i, (name, lines) in enumerate(arms.items()):
        colour = COLOURS[i % len(COLOURS)]
        for line in lines:
            placed = [place(x, y) for x, y in line]
            d = "M" + "L".join(f"{a} {b}" for a, b in placed)
            parts.append(f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            parts += [f'<circle cx="{a}" cy="{b}" r="3" fill="{colour}"/>' for a, b in placed]
        row = TOP + 20 * i
        parts.append(f'<path d="M{right + 14} {row}h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(text(right + 38, row + 4, name))
    look = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {look}>'
    path.write_text("\n".join([head, *parts, "</svg>"]) + "\n", encoding="utf-8")


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    """Words at a place."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="#333">{escape(words)}</text>'
