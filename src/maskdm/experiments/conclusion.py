"""What a comparison shows, in numbers and in words that say no more than its seeds do.

Asked is, of every arm: when did it reach what the baseline reached with all of its budget, and how did both end?
Ratios are geometric means over seeds with Student's t interval of their logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from maskdm.experiments.runner import Look, Outcome

T_95: Mapping[int, float] = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t for 95 %, by degrees of freedom; beyond, 2.2, a little too much."""


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
class Verdict:
    """One arm against the baseline, over the seeds.

    Attributes:
        arm: its name.
        final: the last held-out error.
        speed: how many times sooner it reached the baseline's last one; None where it never did with some seed.
        error: its last held-out error over the baseline's; None for the baseline.
        distance: the last Fréchet distance, where there are scores.
        closer: its distance over the baseline's, likewise.
        words: what may be said.
    """

    arm: str
    final: Spread
    speed: Ratio | None
    error: Ratio | None
    distance: Spread | None
    closer: Ratio | None
    words: str


def reached(looks: Sequence[Look], error: float) -> float | None:
    """The share of the budget at which an arm first got down to `error`, by straight lines between looks."""
    before: Look | None = None
    for look in looks:
        if look.error <= error:
            if before is None or before.error <= look.error:
                return look.spent
            return before.spent + (look.spent - before.spent) * (before.error - error) / (before.error - look.error)
        before = look
    return None


def _sooner(looks: Sequence[Look], base: Sequence[Look]) -> float | None:
    """How many times sooner `looks` reached where `base` ended; None where they never did."""
    at = reached(looks, base[-1].error)
    if at is None:
        return None
    # What starts ahead was there before the first look: it counts as that look.
    return base[-1].spent / max(at, looks[min(1, len(looks) - 1)].spent)


def verdicts(outcomes: Sequence[Outcome], baseline: str) -> list[Verdict]:
    """Every arm, the baseline first."""
    by_arm: dict[str, dict[int, Outcome]] = {}
    for found in outcomes:
        by_arm.setdefault(found.arm, {})[found.seed] = found
    arms = [baseline, *(arm for arm in by_arm if arm != baseline)]
    return [_verdict(arm, by_arm[arm], by_arm[baseline], baseline) for arm in arms]


def _verdict(arm: str, runs: Mapping[int, Outcome], base: Mapping[int, Outcome], baseline: str) -> Verdict:
    final = _spread([run.final for run in runs.values()])
    scored = [run.distance for run in runs.values() if run.distance is not None]
    distance = _spread(scored) if len(scored) == len(runs) else None
    if arm == baseline:
        return Verdict(arm, final, Ratio(1.0, len(runs)), None, distance, None, "the baseline")
    pairs = [(runs[seed], base[seed]) for seed in sorted(runs.keys() & base.keys())]
    error = _ratio([here.final / there.final for here, there in pairs])
    distances = [(here.distance, there.distance) for here, there in pairs]
    closer = _ratio([here / there for here, there in distances if here is not None and there])
    sooner = [found for here, there in pairs if (found := _sooner(here.looks, there.looks)) is not None]
    never = len(pairs) - len(sooner)
    speed = None if never else _ratio(sooner)
    budget = min(run.budget for run in runs.values())
    early = budget < 1  # that it ends worse is no finding then
    words = [f"with {budget:.0%} of the budget"] if early else []
    words.append(_of_speed(speed, None if early else error, never, len(pairs)))
    if closer is not None and distance is not None and not (early and closer.value > 1):
        words.append(_of_distance(closer))
    return Verdict(arm, final, speed, error, distance, closer, "; ".join(words))


def _of_speed(speed: Ratio | None, error: Ratio | None, never: int, seeds: int) -> str:
    """`error`: over the baseline's, or None where budgets differ."""
    if speed is None:
        said = f"did not reach the baseline's last error with {never} of {seeds} seeds"
        if error is None:
            return said
        if seeds == 1:
            return f"{said}: a hint that it is worse, no finding"
        surely = error.low is not None and error.low > 1
        return f"{said}: {'worse at equal compute' if surely else 'no difference that these seeds show'}"
    said = f"reached the baseline's last error {speed.value:.2f} times as fast"
    if speed.low is None or speed.high is None:
        return f"{said}, with one seed: a hint, no finding"
    said += f" (95 % interval {speed.low:.2f} to {speed.high:.2f}, {speed.n} seeds)"
    return f"{said}: {'better at equal compute' if speed.low > 1 else 'no difference that these seeds show'}"


def _of_distance(closer: Ratio) -> str:
    change = f"{abs(1 - closer.value):.0%} {'lower' if closer.value < 1 else 'higher'}"
    said = f"Frechet distance {change} than the baseline's"
    if closer.low is None or closer.high is None:
        return f"{said}, with one seed: a hint"
    shown = closer.high < 1 or closer.low > 1
    interval = f"ratio {closer.low:.2f} to {closer.high:.2f}"
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
    half = T_95.get(len(logs) - 1, 2.2) * stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(middle), len(logs), math.exp(middle - half), math.exp(middle + half))


def lines(found: Sequence[Verdict]) -> list[str]:
    """For a person."""
    width = max(3, *(len(verdict.arm) for verdict in found))
    said = [f"{'arm':{width}}  last held-out error, mean and deviation over seeds; against the baseline"]
    for v in found:
        distance = "" if v.distance is None else f"  distance {v.distance}"
        said.append(f"{v.arm:{width}}  {v.final}{distance}  {v.words}")
    return said
