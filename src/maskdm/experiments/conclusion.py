"""What a comparison shows, in words that say no more than its seeds do.

Asked is, of every arm: when did it reach what the baseline reached with all of its budget, when did the baseline reach
what the arm ended with, and how did both end? The numbers are those of `maskdm.experiments.ratios`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from maskdm.experiments.outcome import Outcome
from maskdm.experiments.ratios import LEVEL, Ratio, Spread, holm, ratio_of, reached, speedup, spread_of

BETTER, WORSE = "better at equal compute", "worse at equal compute"
MIN_STEPS = 1000
"""Steps of the optimizer below which no arm is called better or worse: warm-up and averaging decide until then."""
NOTE = (
    "Intervals are of each arm by itself and cover training seeds, not the choice of held-out images; what is called "
    "better or worse is so after Holm's correction for all arms."
)
"""What holds for every conclusion."""

Seeds = Mapping[int, Outcome]
"""An arm's outcomes by their seeds."""


@dataclass(frozen=True)
class Conclusion:
    """One arm against the baseline, over the seeds.

    Attributes:
        arm: its name.
        error: the last held-out error.
        speedup: how many times as fast as the baseline, above 1 or below, see `maskdm.experiments.ratios.speedup`.
        never: seeds with which it did not reach the baseline's last error.
        error_ratio: its last held-out error over the baseline's; None for the baseline.
        distance: the last Fréchet distance, where there are any.
        distance_ratio: its distance over the baseline's, likewise; None where their features differ.
        over_control: how many times as fast as the control, where there is one.
        p: that of the speedup, corrected for the number of arms; None with one seed.
        text: what may be said.
    """

    arm: str
    error: Spread
    speedup: Ratio
    error_ratio: Ratio | None = None
    distance: Spread | None = None
    distance_ratio: Ratio | None = None
    over_control: Ratio | None = None
    never: int = 0
    p: float | None = None
    text: str = "the baseline"


def conclude(outcomes: Sequence[Outcome], baseline: str, control: str | None = None) -> list[Conclusion]:
    """Every arm that has a seed in common with the baseline, the baseline first.

    Args:
        outcomes: every arm with every seed that is finished.
        baseline: the arm that the others are compared with.
        control: the arm that must be beaten too before a gain is put down to what the others do and it does not.
    """
    by_arm: dict[str, dict[int, Outcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.arm, {})[outcome.seed] = outcome
    base = by_arm[baseline]
    others = {arm: runs for arm, runs in by_arm.items() if arm != baseline and runs.keys() & base.keys()}
    speedups = {arm: _speedup(runs, base) for arm, runs in others.items()}
    distances = {arm: found for arm, runs in others.items() if (found := _distance_ratio(runs, base)) is not None}
    against = by_arm.get(control) if control else None
    over = {
        arm: _speedup(runs, against)
        for arm, runs in others.items()
        if against is not None and arm != control and runs.keys() & against.keys()
    }
    p, distance_p, over_p = (_corrected(found) for found in (speedups, distances, over))
    conclusions = [Conclusion(baseline, _error(base), Ratio(1.0, len(base)), distance=_distance(base))]
    for arm, runs in others.items():
        verdict = _verdict(runs, base, speedups[arm], p.get(arm))
        said = [
            *_of_speed(runs, base, speedups[arm], p.get(arm), len(others), verdict),
            *_of_control(verdict, control, (over[arm], over_p.get(arm)) if arm in over else None),
            *_of_distance(runs, base, distances.get(arm), distance_p.get(arm)),
        ]
        conclusions.append(
            Conclusion(
                arm,
                _error(runs),
                speedups[arm],
                error_ratio=_error_ratio(runs, base),
                distance=_distance(runs),
                distance_ratio=distances.get(arm),
                over_control=over.get(arm),
                never=len(_never(runs, base)),
                p=p.get(arm),
                text="; ".join(said),
            )
        )
    return conclusions


# --- numbers ---------------------------------------------------------------------------------------------------------


def _pairs(runs: Seeds, base: Seeds) -> list[tuple[Outcome, Outcome]]:
    """Of every seed that both have."""
    return [(runs[seed], base[seed]) for seed in sorted(runs.keys() & base.keys())]


def _speedup(runs: Seeds, base: Seeds) -> Ratio:
    found = ratio_of([speedup(here.evaluations, there.evaluations) for here, there in _pairs(runs, base)])
    assert found is not None, "only arms with a seed in common are compared"
    return found


def _never(runs: Seeds, base: Seeds) -> list[tuple[Outcome, Outcome]]:
    """The pairs in which the arm did not reach the baseline's last error."""
    pairs = _pairs(runs, base)
    return [(here, there) for here, there in pairs if reached(here.evaluations, there.final_error) is None]


def _error(runs: Seeds) -> Spread:
    return spread_of([run.final_error for run in runs.values()])


def _error_ratio(runs: Seeds, base: Seeds) -> Ratio | None:
    return ratio_of([here.final_error / there.final_error for here, there in _pairs(runs, base)])


def _distance(runs: Seeds) -> Spread | None:
    """Of arms whose seeds all have one."""
    measured = [run.final_distance for run in runs.values() if run.final_distance is not None]
    return spread_of(measured) if len(measured) == len(runs) else None


def _distance_ratio(runs: Seeds, base: Seeds) -> Ratio | None:
    if _other_features(runs, base):
        return None
    distances = [(here.final_distance, there.final_distance) for here, there in _pairs(runs, base)]
    return ratio_of([here / there for here, there in distances if here is not None and there])


def _other_features(runs: Seeds, base: Seeds) -> list[str]:
    """The features of both, where they are not one and the same."""
    names = {run.features for pair in _pairs(runs, base) for run in pair if run.distances}
    return sorted(names) if len(names) > 1 else []


def _corrected(ratios: Mapping[str, Ratio]) -> dict[str, float]:
    """P-values after Holm's correction, of the arms that have one."""
    known = {arm: ratio.p for arm, ratio in ratios.items() if ratio.p is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def _steps(runs: Seeds, base: Seeds) -> int | None:
    """Of the shortest run, None where nobody knows."""
    return min((run.steps for pair in _pairs(runs, base) for run in pair if run.steps is not None), default=None)


def _budget(runs: Seeds) -> float:
    return min(run.budget for run in runs.values())


# --- words -----------------------------------------------------------------------------------------------------------


def _verdict(runs: Seeds, base: Seeds, ratio: Ratio, p: float | None) -> str:
    """better, worse, or why neither may be said."""
    steps, early = _steps(runs, base), _budget(runs) < 1
    if steps is not None and steps < MIN_STEPS:
        return f"no verdict, with {steps:,} steps (at least {MIN_STEPS:,} are needed)"
    if p is None:
        return f"with one seed: a hint{' that it is worse' if ratio.value < 1 and not early else ''}, no finding"
    if p <= LEVEL and ratio.value > 1:
        return BETTER
    if p <= LEVEL and ratio.value < 1 and not early:
        return WORSE
    return "no difference that these seeds show"


def _of_speed(runs: Seeds, base: Seeds, ratio: Ratio, p: float | None, arms: int, verdict: str) -> list[str]:
    """How fast, how far where it did not get there, and the verdict."""
    budget, never = _budget(runs), _never(runs, base)
    said = [f"with {budget:.0%} of the budget"] if budget < 1 else []
    if never:
        said.append(_of_never(never, ratio.n))
        if budget < 1:  # that it ends worse is no finding then
            return said
    said.append(f"{_fast(ratio, p, arms)}: {verdict}")
    return said


def _of_never(never: Sequence[tuple[Outcome, Outcome]], seeds: int) -> str:
    """How far an arm got, and when the baseline was there."""
    higher = mean(here.final_error / there.final_error for here, there in never) - 1
    shares = [reached(there.evaluations, here.final_error) for here, there in never]
    share = mean(1.0 if each is None else each for each in shares)
    return (
        f"did not reach the baseline's last error with {len(never)} of {seeds} seeds: it ended {higher:.0%} higher, "
        f"where the baseline was with {share:.0%} of the budget"
    )


def _fast(ratio: Ratio, p: float | None, arms: int) -> str:
    """3.61 times as fast (95 % interval 2.03 to 6.42, 3 seeds; p = 0.011 after Holm's correction for 4 arms)."""
    said = f"{ratio.value:.2f} times as fast"
    if ratio.low is None or ratio.high is None or p is None:
        return said
    corrected = f" after Holm's correction for {arms} arms" if arms > 1 else ""
    return f"{said} (95 % interval {ratio.low:.2f} to {ratio.high:.2f}, {ratio.n} seeds; {_p(p)}{corrected})"


def _p(p: float) -> str:
    """A p-value as people write it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _of_control(verdict: str, control: str | None, over: tuple[Ratio, float | None] | None) -> list[str]:
    """Whether the control gains as much, of an arm that is better; `over`: the arm over it, and the corrected p."""
    if verdict != BETTER or over is None:
        return []
    ratio, p = over
    if p is not None and p <= LEVEL and ratio.value > 1:
        return [f"{ratio} times as fast as the control {control}: better than it too"]
    return [f"but not shown to be better than the control {control} ({ratio} times as fast)"]


def _of_distance(runs: Seeds, base: Seeds, ratio: Ratio | None, p: float | None) -> list[str]:
    if names := _other_features(runs, base):
        return [f"Frechet distances are in different features and not compared ({', '.join(names)})"]
    if ratio is None or _distance(runs) is None or (_budget(runs) < 1 and ratio.value > 1):
        return []
    change = f"{abs(1 - ratio.value):.0%} {'lower' if ratio.value < 1 else 'higher'}"
    said = f"Frechet distance {change} than the baseline's"
    if ratio.low is None or ratio.high is None or p is None:
        return [f"{said}, with one seed: a hint"]
    interval = f"ratio {ratio.low:.2f} to {ratio.high:.2f}, {_p(p)}"
    return [f"{said} ({interval}{'' if p <= LEVEL else ': no difference that these seeds show'})"]


def format_conclusions(conclusions: Sequence[Conclusion]) -> list[str]:
    """Lines for a terminal: a header, one for every arm, and what holds for all."""
    width = max(3, *(len(found.arm) for found in conclusions))
    lines = [f"{'arm':{width}}  last held-out error, mean and deviation over seeds; against the baseline"]
    for found in conclusions:
        distance = "" if found.distance is None else f"  distance {found.distance}"
        lines.append(f"{found.arm:{width}}  {found.error}{distance}  {found.text}")
    return [*lines, NOTE]
