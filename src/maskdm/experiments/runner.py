"""Runs a comparison: which way of training is better, at equal compute?

Arms and seeds are trained one after another and measured along the way on the same held-out questions; time spent
measuring is not part of a budget. A budget in minutes is turned into images by the pace that each stage has here
(`maskdm.experiments.throughput`), one in petaFLOPs by the arithmetic of the network. What is asked in the end stands in
`maskdm.experiments.conclusion`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from maskdm.config.schema import Config
from maskdm.data.dataset import Dataset, read_dataset
from maskdm.errors import InputError
from maskdm.experiments.spec import PRETRAINED, Comparison, arm_config, check_alike, pretrained_config
from maskdm.experiments.throughput import key_of, paces
from maskdm.models.flops import training_flops
from maskdm.runtime import distributed as machine
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime
from maskdm.training import stages
from maskdm.training.batches import TrainingSet
from maskdm.training.prepare import Prepared, check_settings, prepare, task_of
from maskdm.training.runs import finished, list_runs, read_config, read_metrics, same_settings
from maskdm.training.start import start
from maskdm.training.step import Task

PACES = "paces.json"


@dataclass(frozen=True)
class Look:
    """One measurement: the budget spent so far, as a share, and the held-out error or the score."""

    spent: float
    error: float


@dataclass(frozen=True)
class Outcome:
    """One arm with one seed.

    Attributes:
        arm, seed: which.
        run: its folder.
        looks: held-out errors of the averaged weights.
        scores: Fréchet distances, where `eval.scores` asks for them.
        features: of the scores, in words.
        images, seconds: of training, in all.
        budget: the share that the arm was given.
    """

    arm: str
    seed: int
    run: Path
    looks: tuple[Look, ...]
    images: int
    seconds: float
    scores: tuple[Look, ...] = ()
    features: str = ""
    budget: float = 1.0

    @property
    def final(self) -> float:
        """The last error."""
        return self.looks[-1].error

    @property
    def distance(self) -> float | None:
        """The last score."""
        return self.scores[-1].error if self.scores else None


# --- planning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What would be trained, everything checked.

    Attributes:
        arms: (arm, seed) -> settings; lengths of stages are minutes of the budget, or as the settings say.
        pretrained: (name, seed) -> settings of what arms start from.
    """

    arms: dict[tuple[str, int], Prepared]
    pretrained: dict[tuple[str, int], Prepared]


def plan(comparison: Comparison, words: Sequence[str], console: Console, *, pretrain_words: Sequence[str] = ()) -> Plan:
    """Settings of all runs.

    Args:
        comparison: the file.
        words: key.sub=value for all.
        console: is told of pictures that are read.
        pretrain_words: key.sub=value for pre-trained models, over `words`.

    Raises:
        InputError: something in the settings of an arm; arms that are one, or that cannot be compared.
    """
    known: dict[str, Dataset] = {}

    def prepared(config: Config) -> Prepared:
        key = config.data.model_dump_json()
        if config.data.path and key not in known:
            check_settings(config)
            known[key] = read_dataset(config.data, console)
        return prepare(config, console, known.get(key))

    arms: dict[tuple[str, int], Prepared] = {}
    before: dict[tuple[str, int], Prepared] = {}
    for seed in comparison.seeds:
        configs = {arm: arm_config(comparison, arm, seed, words) for arm in comparison.arms}
        check_alike(configs)
        found = {arm: prepared(config) for arm, config in configs.items()}
        for one, other in itertools.combinations(found, 2):
            if found[one].config == found[other].config:
                raise InputError(f"arms {one} and {other} have the same settings; change one or leave it out")
        arms |= {(arm, seed): _in_minutes(each, comparison, arm) for arm, each in found.items()}
        for name in comparison.pretrained:
            config = pretrained_config(comparison, name, seed, [*words, *pretrain_words])
            before[name, seed] = prepared(config)
    pictures = next(iter(arms.values())).dataset.images
    same = next((name for (name, _), found in before.items() if found.dataset.images is pictures), None)
    if same is not None:
        raise InputError(
            f"pretrained {same}: has the pictures of the arms; give others with --pretrain-data, or set its data.path"
        )
    return Plan(arms, before)


def _in_minutes(prepared: Prepared, comparison: Comparison, arm: str) -> Prepared:
    """Minutes that are shares of the budget as minutes of it, to be shown; the rest is for `spend`.

    Raises:
        InputError: stages of a recipe whose lengths have no common measure.
    """
    if comparison.arms[arm].stages is None:
        timed = sum(stage.minutes is not None for stage in prepared.config.stages)
        if timed not in (0, len(prepared.config.stages)):
            raise InputError(f"arm {arm}: some stages are minutes long and some images; give it stages with shares")
        return prepared
    budget = comparison.budget.minutes
    if budget is None:
        return prepared
    long = [
        stage if stage.minutes is None else stage.model_copy(update={"minutes": stage.minutes * budget})
        for stage in prepared.config.stages
    ]
    return replace(prepared, config=prepared.config.model_copy(update={"stages": tuple(long)}))


def costs(arms: Mapping[str, Prepared], comparison: Comparison, folder: Path) -> dict[str, list[float]]:
    """Of an image in every stage of every arm, as a share of the budget."""
    if comparison.budget.petaflops is not None:
        whole = 1e15 * comparison.budget.petaflops
        return {
            arm: [mean(training_flops(p.spec, moment) for moment in masks.moments) / whole for masks in p.masks]
            for arm, p in arms.items()
        }
    assert comparison.budget.minutes is not None, "a budget is one of two"
    whole = 60 * comparison.budget.minutes
    return {arm: [each / whole for each in found] for arm, found in seconds(arms, folder).items()}


def seconds(runs: Mapping[str, Prepared], folder: Path) -> dict[str, list[float]]:
    """Of an image in every stage of every run, at the paces kept in `folder`."""
    data: dict[tuple[int, int], TrainingSet] = {}  # pictures are placed once, however many runs learn from them
    tasks: dict[str, list[Task]] = {}
    for name, prepared in runs.items():
        runtime = machine.start(prepared.config.train)
        key = (id(prepared.dataset.images), len(prepared.spec.class_names))
        if key not in data:
            data[key] = task_of(prepared, runtime, prepared.dataset.rows("member")).data
        tasks[name] = list(_stage_tasks(prepared, data[key], runtime))
    known = paces({key_of(task): task for found in tasks.values() for task in found}, folder / PACES)
    return {name: [known[key_of(task)] for task in found] for name, found in tasks.items()}


def paced(prepared: Prepared, each: Sequence[float]) -> Prepared:
    """With as many images as the minutes of its stages buy, at so many seconds an image."""
    long = [
        stage
        if stage.minutes is None
        else stage.model_copy(update={"minutes": None, "images": max(int(60 * stage.minutes / cost), stage.batch_size)})
        for stage, cost in zip(prepared.config.stages, each, strict=True)
    ]
    return replace(prepared, config=prepared.config.model_copy(update={"stages": tuple(long)}))


def _stage_tasks(prepared: Prepared, data: TrainingSet, runtime: Runtime) -> Iterator[Task]:
    """Every stage of a run as a task of its own."""
    for stage, masks in zip(prepared.config.stages, prepared.masks, strict=True):
        alone = stage.model_copy(update={"init_from": "none"})
        config = prepared.config.model_copy(update={"stages": (alone,)})
        yield Task(config, prepared.spec, data, [masks], runtime)


def spend(prepared: Prepared, cost: Sequence[float], comparison: Comparison, arm: str) -> Prepared:
    """With stages of as many images as the budget allows, and looks evenly over the budget."""
    config = prepared.config
    shares = [stage["share"] for stage in comparison.arms[arm].stages or ()]
    if not shares:
        shares = _stretched(prepared, cost)
    images = [
        max(int(share / each), stage.batch_size) for share, each, stage in zip(shares, cost, config.stages, strict=True)
    ]
    long = [
        stage.model_copy(update={"minutes": None, "steps": None, "images": n})
        for stage, n in zip(config.stages, images, strict=True)
    ]
    every = tuple(math.ceil(1 / comparison.looks / each) for each in cost)  # rounded up: the last look is the end
    looks = config.eval.model_copy(update={"heldout_every": every})
    return replace(prepared, config=config.model_copy(update={"stages": tuple(long), "eval": looks}))


def _stretched(prepared: Prepared, cost: Sequence[float]) -> list[float]:
    """Shares of the budget for stages that have lengths of their own."""
    spent = []
    for stage, each in zip(prepared.config.stages, cost, strict=True):
        steps = stages.total_steps(stage)
        spent.append(stage.minutes if steps is None and stage.minutes else (steps or 0) * stage.batch_size * each)
    return [part / sum(spent) for part in spent]


# --- running ---------------------------------------------------------------------------------------------------------


def compare(
    comparison: Comparison,
    todo: Plan,
    *,
    output_dir: Path,
    console: Console,
) -> Iterator[Outcome]:
    """Trains what has not been trained yet, one after another, and reads what came out."""

    console.say("measuring what an image costs in every stage")

    def trained(prepared: Prepared, name: str, what: str) -> Path:
        run = finished_run(output_dir, prepared.config)
        console.say(f"{what}{', finished before' if run else ''}")
        return run or start(
            prepared.config,
            output_dir=output_dir,
            name=name,
            resume=None,
            console=console,
        )

    first = comparison.seeds[0]
    before = {
        name: found
        for (name, seed), found in todo.pretrained.items()
        if seed == first and any(stage.minutes for stage in found.config.stages)
    }
    pace = seconds(before, output_dir) if before else {}
    cost = costs({arm: found for (arm, seed), found in todo.arms.items() if seed == first}, comparison, output_dir)
    for arm in comparison.arms:
        lengths = spend(todo.arms[arm, first], cost[arm], comparison, arm).config.stages
        part = comparison.arms[arm].budget
        early = f", with {part:.0%} of the budget" if part < 1 else ""
        console.say(f"  {arm}: {', '.join(f'{stage.name} {stage.images:,} images' for stage in lengths)}{early}")
    number, whole = 0, len(todo.pretrained) + len(todo.arms)
    for seed in comparison.seeds:
        origins: dict[str, Path] = {}
        for name in comparison.pretrained:
            number += 1
            model = todo.pretrained[name, seed]
            long = paced(model, pace[name]) if name in pace else model
            origins[PRETRAINED + name] = trained(long, name, f"{number} of {whole}: {name} to start from, seed {seed}")
        for arm in comparison.arms:
            number += 1
            long = spend(_started_from(todo.arms[arm, seed], origins), cost[arm], comparison, arm)
            run = trained(long, arm, f"{number} of {whole}: {arm}, seed {seed}")
            found = outcome(arm, seed, run, dict(zip((s.name for s in long.config.stages), cost[arm], strict=True)))
            yield replace(found, budget=comparison.arms[arm].budget)


def _started_from(prepared: Prepared, origins: Mapping[str, Path]) -> Prepared:
    """With the folders of pre-trained models in place of their names."""
    settled = [
        stage.model_copy(update={"init_from": str(origins.get(stage.init_from, stage.init_from))})
        for stage in prepared.config.stages
    ]
    return replace(prepared, config=prepared.config.model_copy(update={"stages": tuple(settled)}))


def finished_run(output_dir: Path, config: Config) -> Path | None:
    """The run of these settings, if it is finished."""
    for path in reversed(list_runs(output_dir)):
        if finished(path) and same_settings(read_config(path), config):
            return path
    return None


def outcome(arm: str, seed: int, run: Path, cost: Mapping[str, float]) -> Outcome:
    """What one run's files say; `cost` is an image's share of the budget in every stage."""
    events = read_metrics(run)
    looks, scores, begun, spent, features = [], [], 0, 0.0, ""
    for event in events:
        if event["event"] in ("heldout", "score", "stage_end"):
            images = int(str(event["images"]))
            now = spent + (images - begun) * cost[str(event["stage"])]
            if event["event"] == "heldout":
                looks.append(Look(now, float(str(event["loss_ema"]))))
            elif event["event"] == "score":
                scores.append(Look(now, float(str(event["frechet_distance"]))))
                features = f"{event['title']}, n = {event['n']}"
            else:
                begun, spent = images, now
    last = next(event for event in reversed(events) if event["event"] == "end")
    seconds = float(str(last["seconds"]))
    return Outcome(arm, seed, run, tuple(looks), int(str(last["images"])), seconds, tuple(scores), features)
