"""Numbers as people read them: 1,234; 2.1 M; 0.083; 2 min 10 s."""

from __future__ import annotations

import math

_UNITS = [(86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")]


def format_count(number: float) -> str:
    """A whole number, exact below a million: 384,000; 2.1 M; 1.31 B."""
    for size, suffix in [(1e9, "B"), (1e6, "M")]:
        if abs(number) >= size:
            return f"{number / size:.3g} {suffix}" if abs(number) < 999.5 * size else f"{number / size:,.0f} {suffix}"
    return f"{number:,.0f}"


def format_compact(number: float) -> str:
    """A number where room is short, as on an axis: 500; 12.5 k; 1.2 M; 2e-4."""
    magnitude = abs(number)
    if magnitude >= 1e12:
        return f"{number:.3g}".replace("e+", "e")
    if magnitude >= 1e6:
        return format_count(number)
    if magnitude >= 1e4:
        return f"{number / 1e3:.4g} k"
    return format_value(number)


def format_value(number: float, digits: int = 4) -> str:
    """A measured value to `digits` significant digits: 0.0831; 1,235; 2.5e-4; nan."""
    if not math.isfinite(number):
        return str(number)
    magnitude = abs(number)
    if magnitude >= 1e7:
        return format_count(number)
    if magnitude >= 1e3:
        return f"{number:,.0f}"
    if number == 0 or magnitude >= 1e-3:
        return f"{number:.{digits}g}"
    mantissa, exponent = f"{number:.{digits - 1}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def format_duration(seconds: float) -> str:
    """9.4 s; 2 min 10 s; 3 h 5 min; 2 d 4 h."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for size, unit, smaller, smaller_unit in _UNITS:
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {smaller_unit}" if rest else f"{whole // size} {unit}"
    raise AssertionError(seconds)  # 59.95 s and more round to at least a minute


def format_plural(number: int, noun: str) -> str:
    """1 stage; 2 stages; 4,000 steps."""
    return f"{format_count(number)} {noun}" if number == 1 else f"{format_count(number)} {noun}s"
