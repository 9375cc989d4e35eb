"""Two ways of training in numbers: how many times as fast, over seeds, and what of it is chance.

Ratios are geometric means over seeds with Student's t interval of their logarithms. Where several arms are compared
with one baseline, their p-values are corrected by Holm's method (1979, "A simple sequentially rejective multiple test
procedure"): with 11 arms and nothing to find, one in five comparisons would find something without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy import stats

from maskdm.experiments.outcome import Evaluation

LEVEL = 0.05
"""Of all tests of one comparison together: how often something may be found where there is nothing."""


@dataclass(frozen=True)
class Ratio:
    """A geometric mean over `n` seeds.

    Attributes:
        value, n: the mean, and of how many seeds.
        low, high: its 95 % interval by itself, where there are two seeds or more.
        p: of the two-sided test that it is 1, likewise.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def __str__(self) -> str:
        between = "" if self.low is None or self.high is None else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{self.value:.2f}{between}"


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and their standard deviation where there are two or more."""

    value: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if self.deviation is None else f" ± {self.deviation:.2g}")


def spread_of(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


def ratio_of(values: Sequence[float]) -> Ratio | None:
    """The geometric mean of one value for each seed; None where there are none."""
    if not values:
        return None
    logs = [math.log(max(value, 1e-12)) for value in values]
    middle = mean(logs)
    if len(logs) == 1:
        return Ratio(math.exp(middle), 1)
    error = stdev(logs) / math.sqrt(len(logs))
    half = t_quantile(len(logs)) * error
    return Ratio(math.exp(middle), len(logs), math.exp(middle - half), math.exp(middle + half), _p(middle, error, logs))


def _p(middle: float, error: float, logs: Sequence[float]) -> float:
    """Of Student's t, two-sided."""
    if error == 0:
        return 1.0 if middle == 0 else 0.0
    return float(2 * stats.t.sf(abs(middle) / error, len(logs) - 1))


def t_quantile(n: int) -> float:
    """Student's t for a 95 % interval of a mean of `n` values, n >= 2."""
    return float(stats.t.ppf(0.975, n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min((len(p_values) - rank) * p_values[i], 1.0))
        adjusted[i] = largest
    return adjusted


def reached(evaluations: Sequence[Evaluation], error: float) -> float | None:
    """The share of the budget at which an arm first got down to `error`, by straight lines between evaluations."""
    before: Evaluation | None = None
    for now in evaluations:
        if now.value <= error:
            if before is None or before.value <= now.value:
                return now.spent
            return before.spent + (now.spent - before.spent) * (before.value - error) / (before.value - now.value)
        before = now
    return None


def speedup(arm: Sequence[Evaluation], baseline: Sequence[Evaluation]) -> float:
    """How many times as fast `arm` is as `baseline`, above 1 or below.

    How many times sooner the arm was where the baseline ended, over how many times sooner the baseline was where the
    arm ended; 1 for the one that never was. So exchanging the two gives the inverse, and where there is no difference a
    speedup is as often above 1 as below.
    """
    return (_times_sooner(arm, baseline) or 1.0) / (_times_sooner(baseline, arm) or 1.0)


def _times_sooner(arm: Sequence[Evaluation], other: Sequence[Evaluation]) -> float | None:
    """How many times sooner the arm was where the other ended; None where it never was."""
    spent = reached(arm, other[-1].value)
    if spent is None:
        return None
    # What starts ahead was there before the first evaluation: it counts as that one.
    return other[-1].spent / max(spent, arm[min(1, len(arm) - 1)].spent)
