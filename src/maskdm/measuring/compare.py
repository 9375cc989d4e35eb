"""Which way of training is better, at equal compute? Arms, a budget that is the same for all, seeds, and what came out.

An arm is a list of stages whose lengths are shares of the budget: minutes of training on this machine, or petaFLOPs of
the network forth and twice back. Arms and seeds are trained one after another and measured along the way on the same
held-out questions; time spent measuring is not part of a budget. What is asked in the end: when did an arm reach what
the baseline reached with all of its budget?
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from maskdm.errors import InputError
from maskdm.training.config import Config, Count, Positive, PositiveFloat, Section
from maskdm.training.console import Console
from maskdm.training.flops import training_flops
from maskdm.training.run import finished, list_runs, read_config, read_metrics, same_settings
from maskdm.training.settings import read_yaml, resolve
from maskdm.training.start import Prepared, prepare, start
from maskdm.training.transfer import Read

T_95: Mapping[int, float] = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t for 95 %, by degrees of freedom; beyond, 2."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]


class Budget(Section):
    """What every arm may spend."""

    minutes: PositiveFloat | None = None
    """Of training, on this machine."""
    petaflops: PositiveFloat | None = None
    """10^15 multiplications and additions of the network."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.minutes is None) == (self.petaflops is None):
            raise ValueError("minutes or petaflops, one of them")
        return self


class Comparison(Section):
    """A file of `maskdm compare`."""

    title: str = "Comparison"
    """What stands above the page."""
    recipe: str | None = None
    """Settings of all arms: a shipped recipe, and"""
    settings: dict[str, Any] = Field(default_factory=dict)
    """key.sub: value over it, as on the command line of `maskdm train`."""
    budget: Budget
    """The same for every arm."""
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)] = (0,)
    """Every arm is trained once with each."""
    looks: Positive = 20
    """How often the held-out error is measured in every arm."""
    baseline: Name
    """The arm that the others are compared with."""
    arms: Annotated[dict[Name, Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]], Field(min_length=2)]
    """Name: its stages. Each has a `share` of the budget and settings of a stage, without a length."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.baseline not in self.arms:
            raise ValueError(f"baseline, one of {', '.join(self.arms)}, got {self.baseline}")
        for name, stages in self.arms.items():
            given = [stage.get("share") for stage in stages]
            shares = [share for share in given if isinstance(share, (int, float)) and share > 0]
            if len(shares) < len(given):
                raise ValueError(f"a share above 0 for every stage, got {given} in arm {name}")
            if abs(sum(shares) - 1) > 1e-6:
                raise ValueError(f"shares that add up to 1, got {shares} in arm {name}")
        return self


@dataclass(frozen=True)
class Look:
    """One measurement: the budget spent so far, as a share, and the held-out error."""

    spent: float
    error: float


@dataclass(frozen=True)
class Outcome:
    """One arm with one seed."""

    arm: str
    seed: int
    run: Path
    looks: tuple[Look, ...]
    images: int
    seconds: float

    @property
    def final(self) -> float:
        """The last error."""
        return self.looks[-1].error


# --- the file --------------------------------------------------------------------------------------------------------


def shipped() -> dict[str, str]:
    """Comparisons that come with the package: name -> the first line of its header."""
    folder = resources.files("maskdm") / "comparisons"
    texts = {f.name.removesuffix(".yaml"): f.read_text() for f in folder.iterdir() if f.name.endswith(".yaml")}
    return {name: texts[name].partition("\n")[0].lstrip("# ") for name in sorted(texts)}


def read_comparison(name: str) -> Comparison:
    """A file, or a shipped comparison by its name.

    Raises:
        InputError: no such file, or not as it must be; it names the key.
    """
    known = shipped()
    path = Path(name)
    if name in known:
        path = Path(str(resources.files("maskdm") / "comparisons" / f"{name}.yaml"))
    elif not path.is_file():
        raise InputError(f"comparison: got {name!r}, wanted a file, or one of {', '.join(known)}")
    try:
        return Comparison.model_validate(read_yaml(path), strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{name}: {place or 'comparison'}: wanted {what[:1].lower()}{what[1:]}") from None


def arm_config(comparison: Comparison, arm: str, seed: int, words: Sequence[str]) -> Config:
    """The settings of one arm, its lengths still those of a budget of one minute."""
    stages = [{k: v for k, v in stage.items() if k != "share"} for stage in comparison.arms[arm]]
    for number, stage in enumerate(stages):
        stage.setdefault("name", f"stage{number + 1}")
        stage["minutes"] = comparison.arms[arm][number]["share"]
    # As on the command line: text as it is, and all else as JSON, which is YAML.
    given = comparison.settings.items()
    usual = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given]
    quiet = ["eval.heldout_every=1000000000000", "eval.samples_every=1000000000000"]
    overrides = [*usual, *quiet, f"stages={json.dumps(stages)}", f"train.seed={seed}", *words]
    try:
        return resolve(recipe=comparison.recipe, overrides=overrides)
    except InputError as error:
        raise InputError(f"arm {arm}: {error}") from None


def spend(prepared: Prepared, comparison: Comparison, arm: str) -> Prepared:
    """With stages as long as the budget allows, and as many looks as were asked for."""
    budget, shares = comparison.budget, [stage["share"] for stage in comparison.arms[arm]]
    stages, masks = prepared.config.stages, prepared.masks
    if budget.minutes is not None:
        long = [
            stage.model_copy(update={"minutes": share * budget.minutes})
            for stage, share in zip(stages, shares, strict=True)
        ]
        looks: dict[str, object] = {"heldout_minutes": budget.minutes / comparison.looks}
    else:
        assert budget.petaflops is not None, "a budget is one of two"
        per_image = [mean(training_flops(prepared.spec, moment) for moment in plan.moments) for plan in masks]
        images = [
            max(int(1e15 * budget.petaflops * share / cost), stage.batch_size)
            for share, cost, stage in zip(shares, per_image, stages, strict=True)
        ]
        long = [
            stage.model_copy(update={"minutes": None, "images": n}) for stage, n in zip(stages, images, strict=True)
        ]
        looks = {"heldout_every": max(sum(images) // comparison.looks, 1)}
    config = prepared.config
    settled = config.model_copy(update={"stages": tuple(long), "eval": config.eval.model_copy(update=looks)})
    return Prepared(settled, prepared.pictures, prepared.roles, prepared.groups, prepared.spec, masks)


# --- running ---------------------------------------------------------------------------------------------------------


def plan(comparison: Comparison, words: Sequence[str], console: Console) -> dict[tuple[str, int], Prepared]:
    """What would be trained, everything checked: (arm, seed) -> settings.

    Raises:
        InputError: something in the settings of an arm; two arms that are one.
    """
    prepared: dict[tuple[str, int], Prepared] = {}
    for seed in comparison.seeds:
        for arm in comparison.arms:
            config = arm_config(comparison, arm, seed, words)
            made = spend(prepare(config, Console(quiet=True) if prepared else console), comparison, arm)
            twin = next((other for other, found in prepared.items() if found.config == made.config), None)
            if twin is not None:
                raise InputError(f"arms {twin[0]} and {arm} have the same settings; change one or leave it out")
            prepared[arm, seed] = made
    return prepared


def compare(
    comparison: Comparison, words: Sequence[str], *, output_dir: Path, console: Console, read: Read
) -> Iterator[Outcome]:
    """Trains what has not been trained yet, one after another, and reads what came out."""
    todo = plan(comparison, words, console)
    for number, ((arm, seed), prepared) in enumerate(todo.items()):
        run = finished_run(output_dir, prepared.config)
        console.say(f"{number + 1} of {len(todo)}: {arm}, seed {seed}{', finished before' if run else ''}")
        if run is None:
            run = start(prepared.config, output_dir=output_dir, name=arm, resume=None, console=console, read=read)
        yield outcome(arm, seed, run, comparison.budget, prepared)


def stages_of(prepared: Prepared) -> list[str]:
    """What an arm does, a line for each stage."""
    said = []
    for stage, masks in zip(prepared.config.stages, prepared.masks, strict=True):
        length = f"{stage.minutes:g} minutes" if stage.minutes is not None else f"{stage.images:,} images"
        said.append(f"{stage.name}: {length}, batch {stage.batch_size}, lr {stage.lr:g}; {masks}")
    return said


def finished_run(output_dir: Path, config: Config) -> Path | None:
    """The run of these settings, if it is finished."""
    for path in reversed(list_runs(output_dir)):
        if finished(path) and same_settings(read_config(path), config):
            return path
    return None


def outcome(arm: str, seed: int, run: Path, budget: Budget, prepared: Prepared) -> Outcome:
    """What one run's files say."""
    events = read_metrics(run)
    flops = {
        stage.name: mean(training_flops(prepared.spec, m) for m in masks.moments)
        for stage, masks in zip(prepared.config.stages, prepared.masks, strict=True)
    }
    looks, begun, spent = [], 0, 0.0
    for event in events:
        if event["event"] == "heldout":
            if budget.minutes is not None:
                share = float(str(event["seconds"])) / (60 * budget.minutes)
            else:
                assert budget.petaflops is not None, "a budget is one of two"
                images = int(str(event["images"]))
                share = (spent + (images - begun) * flops[str(event["stage"])]) / (1e15 * budget.petaflops)
            looks.append(Look(share, float(str(event["loss_ema"]))))
        elif event["event"] == "stage_end":
            images = int(str(event["images"]))
            begun, spent = images, spent + (images - begun) * flops[str(event["stage"])]
    last = next(event for event in reversed(events) if event["event"] == "end")
    return Outcome(arm, seed, run, tuple(looks), int(str(last["images"])), float(str(last["seconds"])))


# --- what came out ---------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Verdict:
    """One arm against the baseline, over the seeds.

    Attributes:
        arm: its name.
        final, spread: mean and standard deviation of the last error (None with one seed).
        speed: how many times sooner it reached what the baseline reached; None where it never did with some seed.
        low, high: a 95 % interval of `speed` over seeds, or None.
        words: what may be said.
    """

    arm: str
    final: float
    spread: float | None
    speed: float | None
    low: float | None
    high: float | None
    words: str


def verdicts(outcomes: Sequence[Outcome], baseline: str) -> list[Verdict]:
    """Every arm, the baseline first."""
    by_arm: dict[str, dict[int, Outcome]] = {}
    for found in outcomes:
        by_arm.setdefault(found.arm, {})[found.seed] = found
    base = by_arm[baseline]
    arms = [baseline, *(arm for arm in by_arm if arm != baseline)]
    return [_verdict(arm, by_arm[arm], base, baseline) for arm in arms]


def _verdict(arm: str, runs: Mapping[int, Outcome], base: Mapping[int, Outcome], baseline: str) -> Verdict:
    finals = [run.final for run in runs.values()]
    spread = stdev(finals) if len(finals) > 1 else None
    if arm == baseline:
        return Verdict(arm, mean(finals), spread, 1.0, None, None, "the baseline")
    seeds = sorted(runs.keys() & base.keys())
    times = [(base[seed].looks[-1].spent, reached(runs[seed].looks, base[seed].final)) for seed in seeds]
    ratios = [math.log(whole / max(at, 1e-9)) for whole, at in times if at is not None]
    if len(ratios) < len(seeds):
        never = len(seeds) - len(ratios)
        words = f"did not reach the baseline's last error with {never} of {len(seeds)} seeds: worse at equal compute"
        return Verdict(arm, mean(finals), spread, None, None, None, words)
    speed, low, high = math.exp(mean(ratios)), None, None
    if len(ratios) > 1:
        half = T_95.get(len(ratios) - 1, 2.0) * stdev(ratios) / math.sqrt(len(ratios))
        low, high = math.exp(mean(ratios) - half), math.exp(mean(ratios) + half)
    return Verdict(arm, mean(finals), spread, speed, low, high, _words(speed, low, high, len(ratios)))


def _words(speed: float, low: float | None, high: float | None, seeds: int) -> str:
    found = f"reached the baseline's last error {speed:.2f} times as fast"
    if low is None or high is None:
        return f"{found}, with one seed: a hint, no finding"
    interval = f"95 % interval {low:.2f} to {high:.2f}, {seeds} seeds"
    if low > 1:
        return f"{found} ({interval}): better at equal compute"
    return f"{found} ({interval}): no difference that these seeds show"


def lines(found: Sequence[Verdict]) -> list[str]:
    """For a person."""
    width = max(len(verdict.arm) for verdict in found)
    return [
        f"{v.arm:{width}}  {v.final:.4f}" + (f" ± {v.spread:.4f}" if v.spread is not None else "") + f"  {v.words}"
        for v in found
    ]
