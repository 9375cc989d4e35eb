"""What a comparison shows, in numbers and in words that say no more than its seeds do.

Asked is, of every arm: when did it reach what the baseline reached with all of its budget, and how did both end?
Ratios are geometric means over seeds with Student's t interval of their logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy import stats

from maskdm.experiments.outcome import Evaluation, Outcome


@dataclass(frozen=True)
class Ratio:
    """A geometric mean over `n` seeds, and its 95 % interval where there are two or more."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None

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


@dataclass(frozen=True)
class Conclusion:
    """One arm against the baseline, over the seeds.

    Attributes:
        arm: its name.
        error: the last held-out error.
        speedup: how many times sooner it reached the baseline's last one; None where it never did with some seed.
        error_ratio: its last held-out error over the baseline's; None for the baseline.
        distance: the last Fréchet distance, where there are any.
        distance_ratio: its distance over the baseline's, likewise.
        text: what may be said.
    """

    arm: str
    error: Spread
    speedup: Ratio | None
    error_ratio: Ratio | None
    distance: Spread | None
    distance_ratio: Ratio | None
    text: str


def t_quantile(n: int) -> float:
    """Student's t for a 95 % interval of a mean of `n` values, n >= 2."""
    return float(stats.t.ppf(0.975, n - 1))


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


def _speedup(arm: Sequence[Evaluation], baseline: Sequence[Evaluation]) -> float | None:
    """How many times sooner the arm reached where the baseline ended; None where it never did."""
    spent = reached(arm, baseline[-1].value)
    if spent is None:
        return None
    # What starts ahead was there before the first evaluation: it counts as that one.
    return baseline[-1].spent / max(spent, arm[min(1, len(arm) - 1)].spent)


def conclude(outcomes: Sequence[Outcome], baseline: str) -> list[Conclusion]:
    """Every arm, the baseline first."""
    by_arm: dict[str, dict[int, Outcome]] = {}
    for found in outcomes:
        by_arm.setdefault(found.arm, {})[found.seed] = found
    arms = [baseline, *(arm for arm in by_arm if arm != baseline)]
    return [_conclude(arm, by_arm[arm], by_arm[baseline], baseline) for arm in arms]


def _conclude(arm: str, runs: Mapping[int, Outcome], base: Mapping[int, Outcome], baseline: str) -> Conclusion:
    """One arm; outcomes by their seeds."""
    error = _spread([run.final_error for run in runs.values()])
    measured = [run.final_distance for run in runs.values() if run.final_distance is not None]
    distance = _spread(measured) if len(measured) == len(runs) else None
    if arm == baseline:
        return Conclusion(arm, error, Ratio(1.0, len(runs)), None, distance, None, "the baseline")
    pairs = [(runs[seed], base[seed]) for seed in sorted(runs.keys() & base.keys())]
    error_ratio = _ratio([here.final_error / there.final_error for here, there in pairs])
    distances = [(here.final_distance, there.final_distance) for here, there in pairs]
    distance_ratio = _ratio([here / there for here, there in distances if here is not None and there])
    speedups = [found for here, there in pairs if (found := _speedup(here.evaluations, there.evaluations)) is not None]
    never = len(pairs) - len(speedups)
    speedup = None if never else _ratio(speedups)
    budget = min(run.budget for run in runs.values())
    early = budget < 1  # that it ends worse is no finding then
    said = [f"with {budget:.0%} of the budget"] if early else []
    said.append(_of_speed(speedup, None if early else error_ratio, never, len(pairs)))
    if distance_ratio is not None and distance is not None and not (early and distance_ratio.value > 1):
        said.append(_of_distance(distance_ratio))
    return Conclusion(arm, error, speedup, error_ratio, distance, distance_ratio, "; ".join(said))


def _of_speed(speedup: Ratio | None, error_ratio: Ratio | None, never: int, seeds: int) -> str:
    """`error_ratio`: over the baseline's, or None where budgets differ."""
    if speedup is None:
        said = f"did not reach the baseline's last error with {never} of {seeds} seeds"
        if error_ratio is None:
            return said
        if seeds == 1:
            return f"{said}: a hint that it is worse, no finding"
        surely = error_ratio.low is not None and error_ratio.low > 1
        return f"{said}: {'worse at equal compute' if surely else 'no difference that these seeds show'}"
    said = f"reached the baseline's last error {speedup.value:.2f} times as fast"
    if speedup.low is None or speedup.high is None:
        return f"{said}, with one seed: a hint, no finding"
    said += f" (95 % interval {speedup.low:.2f} to {speedup.high:.2f}, {speedup.n} seeds)"
    return f"{said}: {'better at equal compute' if speedup.low > 1 else 'no difference that these seeds show'}"


def _of_distance(ratio: Ratio) -> str:
    change = f"{abs(1 - ratio.value):.0%} {'lower' if ratio.value < 1 else 'higher'}"
    said = f"Frechet distance {change} than the baseline's"
    if ratio.low is None or ratio.high is None:
        return f"{said}, with one seed: a hint"
    shown = ratio.high < 1 or ratio.low > 1
    interval = f"ratio {ratio.low:.2f} to {ratio.high:.2f}"
    return f"{said} ({interval}{'' if shown else ': no difference that these seeds show'})"


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


def _ratio(values: Sequence[float]) -> Ratio | None:
    """None where there is nothing to take it of."""
    if not values:
        return None
    logs = [math.log(max(value, 1e-12)) for value in values]
    middle = mean(logs)
    if len(logs) == 1:
        return Ratio(math.exp(middle), 1)
    half = t_quantile(len(logs)) * stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(middle), len(logs), math.exp(middle - half), math.exp(middle + half))


def format_conclusions(conclusions: Sequence[Conclusion]) -> list[str]:
    """Lines for a terminal: a header, and one for every arm."""
    width = max(3, *(len(found.arm) for found in conclusions))
    lines = [f"{'arm':{width}}  last held-out error, mean and deviation over seeds; against the baseline"]
    for found in conclusions:
        distance = "" if found.distance is None else f"  distance {found.distance}"
        lines.append(f"{found.arm:{width}}  {found.error}{distance}  {found.text}")
    return lines
