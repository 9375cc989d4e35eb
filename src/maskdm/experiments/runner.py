"""Runs a comparison: which way of training is better, at equal compute?

Arms and seeds are trained one after another and measured during training on the same held-out questions; time spent
measuring is not part of a budget. A budget in minutes is turned into images by the throughput that each stage has here
(`maskdm.experiments.throughput`), one in petaFLOPs by the operations of the network. What is asked in the end stands in
`maskdm.experiments.conclusion`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from maskdm import __version__
from maskdm.config.schema import Config
from maskdm.config.stage_config import StageConfig
from maskdm.data.dataset import Dataset, read_dataset
from maskdm.data.image_set import ImageSet
from maskdm.errors import InputError
from maskdm.experiments.comparison import PRETRAINED, Arm, Comparison, arm_config, check_alike, pretrained_config
from maskdm.experiments.outcome import ComparisonSetup, Evaluation, Outcome
from maskdm.experiments.throughput import describe_machine, seconds_per_image, task_key
from maskdm.files import make_folder
from maskdm.models import build
from maskdm.models.flops import training_flops
from maskdm.runtime import distributed
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime
from maskdm.training import stages
from maskdm.training.batches import TrainingSet
from maskdm.training.describe import describe_stages
from maskdm.training.events import HeldoutEvent, ScoreEvent
from maskdm.training.find_run import find_run
from maskdm.training.prepare import Prepared, check_settings, make_task, prepare
from maskdm.training.read_run import is_finished, read_history
from maskdm.training.start import start_training
from maskdm.training.step import Task

THROUGHPUT = "throughput.json"
"""The file beside the runs that keeps what an image costs."""

# --- before anything is trained --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """What would be trained, everything checked.

    Attributes:
        arms: (arm, seed) -> settings; lengths of stages are minutes of the budget, or as the settings say.
        pretrained: (name, seed) -> settings of what arms start from.
    """

    arms: dict[tuple[str, int], Prepared]
    pretrained: dict[tuple[str, int], Prepared]


def resolve_runs(
    comparison: Comparison, overrides: Sequence[str], console: Console, *, pretrain_overrides: Sequence[str] = ()
) -> Runs:
    """Settings of all runs.

    Args:
        comparison: the file.
        overrides: key.sub=value for all.
        console: shows progress of reading images.
        pretrain_overrides: key.sub=value for pre-trained models, over `overrides`.

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
        configs = {arm: arm_config(comparison, arm, seed, overrides) for arm in comparison.arms}
        check_alike(configs)
        found = {arm: prepared(config) for arm, config in configs.items()}
        for one, other in itertools.combinations(found, 2):
            if found[one].config == found[other].config:
                raise InputError(
                    f"arms.{other}", f"has the same settings as {one}", remedy="change one or leave it out"
                )
        arms |= {(arm, seed): _in_minutes(each, comparison, arm) for arm, each in found.items()}
        for name in comparison.pretrained:
            config = pretrained_config(comparison, name, seed, [*overrides, *pretrain_overrides])
            before[name, seed] = prepared(config)
    images = next(iter(arms.values())).dataset.images
    same = next((name for (name, _), found in before.items() if found.dataset.images is images), None)
    if same is not None:
        raise InputError(
            f"pretrained.{same}", "has the images of the arms", remedy="give it others, by pretrain_data or data.path"
        )
    return Runs(arms, before)


def _in_minutes(prepared: Prepared, comparison: Comparison, arm: str) -> Prepared:
    """Minutes that are shares of the budget as minutes of it, to be shown; the rest is for `with_budget`.

    Raises:
        InputError: stages of a recipe whose lengths have no common measure.
    """
    if comparison.arms[arm].stages is None:
        timed = sum(stage.minutes is not None for stage in prepared.config.stages)
        if timed not in (0, len(prepared.config.stages)):
            raise InputError(
                f"arms.{arm}", "some stages are minutes long and some images", remedy="give it stages with shares"
            )
        return prepared
    budget = comparison.budget.minutes
    if budget is None:
        return prepared
    return _with_stages(
        prepared, [{} if stage.minutes is None else {"minutes": stage.minutes * budget} for stage in _stages(prepared)]
    )


def describe_runs(runs: Runs) -> list[str]:
    """What would be trained, run by run and stage by stage."""
    both = [*runs.pretrained.items(), *runs.arms.items()]
    lines = []
    for (name, seed), prepared in both:
        lines += [f"{name}, seed {seed}", *(f"  {line}" for line in describe_stages(prepared))]
    return lines


def describe_setup(comparison: Comparison, runs: Runs, *, command: str) -> ComparisonSetup:
    """What a page says of the arms, the images and the machine; `command` is what was typed."""
    arms = {arm: found for (arm, seed), found in runs.arms.items() if seed == comparison.seeds[0]}
    first = arms[comparison.baseline]
    counts = first.dataset.counts
    return ComparisonSetup(
        stages={arm: describe_stages(found) for arm, found in arms.items()},
        data=f"{Path(first.config.data.path).name}: {counts['member']:,} images to train on, "
        f"{counts['heldout']:,} held out",
        machine=describe_machine(distributed.init_runtime(first.config.train)),
        version=__version__,
        command=command,
    )


# --- budgets ---------------------------------------------------------------------------------------------------------


def image_costs(arms: Mapping[str, Prepared], comparison: Comparison, folder: Path) -> dict[str, list[float]]:
    """Of an image in every stage of every arm, as a share of the budget; measured costs are kept in `folder`."""
    if comparison.budget.petaflops is not None:
        whole = 1e15 * comparison.budget.petaflops
        return {
            arm: [
                mean(training_flops(p.stage_spec(i), phase) for phase in masks.phases) / whole
                for i, masks in enumerate(p.masks)
            ]
            for arm, p in arms.items()
        }
    assert comparison.budget.minutes is not None, "a budget is one of two"
    whole = 60 * comparison.budget.minutes
    return {arm: [each / whole for each in found] for arm, found in image_seconds(arms, folder).items()}


def image_seconds(runs: Mapping[str, Prepared], folder: Path) -> dict[str, list[float]]:
    """Of an image in every stage of every run, at the throughput kept in `folder`."""
    tasks = stage_tasks(runs)
    known = seconds_per_image({task_key(task): task for found in tasks.values() for task in found}, folder / THROUGHPUT)
    return {name: [known[task_key(task)] for task in found] for name, found in tasks.items()}


def stage_tasks(runs: Mapping[str, Prepared]) -> dict[str, list[Task]]:
    """Every stage of every run as a task of its own."""
    data: dict[tuple[int, int], TrainingSet] = {}  # images are placed once, however many runs learn from them
    tasks: dict[str, list[Task]] = {}
    for name, prepared in runs.items():
        runtime = distributed.init_runtime(prepared.config.train)
        key = (id(prepared.dataset.images), len(prepared.spec.class_names))
        if key not in data:
            data[key] = make_task(prepared, runtime, prepared.dataset.rows("member")).data
        tasks[name] = list(_tasks_of(prepared, data[key], runtime))
    return tasks


def _tasks_of(prepared: Prepared, data: TrainingSet, runtime: Runtime) -> Iterator[Task]:
    """Every stage of a run as a task of its own, whose model is that of the stage."""
    of_run: dict[str, object] = {"init_from": "none", "image_size": None, "patch_size": None, "shift": 1.0}
    for i, (stage, masks) in enumerate(zip(prepared.config.stages, prepared.masks, strict=True)):
        config = prepared.config.model_copy(update={"stages": (stage.model_copy(update=of_run),)})
        spec = prepared.stage_spec(i)
        objective = prepared.objective if spec.process == prepared.spec.process else build.make_objective(spec.process)
        yield Task(config, spec, objective, data, [masks], runtime)


def minutes_as_images(prepared: Prepared, seconds: Sequence[float]) -> Prepared:
    """With as many images as the minutes of its stages buy, at so many seconds an image in each."""
    return _with_stages(
        prepared,
        [
            {}
            if stage.minutes is None
            else {"minutes": None, "images": max(int(60 * stage.minutes / cost), stage.batch_size)}
            for stage, cost in zip(_stages(prepared), seconds, strict=True)
        ],
    )


def with_budget(prepared: Prepared, costs: Sequence[float], comparison: Comparison, arm: str) -> Prepared:
    """With stages of as many images as the budget allows, and evaluations evenly over the budget.

    Args:
        prepared: the arm with one seed.
        costs: of an image in every stage, as a share of the budget.
        comparison: the file.
        arm: which of its arms.
    """
    shares = [stage["share"] for stage in comparison.arms[arm].stages or ()] or _stretched(prepared, costs)
    images = [
        max(int(share / cost), stage.batch_size)
        for share, cost, stage in zip(shares, costs, _stages(prepared), strict=True)
    ]
    long = _with_stages(prepared, [{"minutes": None, "steps": None, "images": n} for n in images])
    # Rounded up: the last evaluation is the end.
    every = tuple(math.ceil(1 / comparison.evaluations / cost) for cost in costs)
    measured = long.config.eval.model_copy(update={"heldout_every": every})
    return replace(long, config=long.config.model_copy(update={"eval": measured}))


def _stretched(prepared: Prepared, costs: Sequence[float]) -> list[float]:
    """Shares of the budget for stages that have lengths of their own."""
    spent = []
    for stage, cost in zip(_stages(prepared), costs, strict=True):
        steps = stages.total_steps(stage)
        spent.append(stage.minutes if steps is None and stage.minutes else (steps or 0) * stage.batch_size * cost)
    return [part / sum(spent) for part in spent]


def _stages(prepared: Prepared) -> tuple[StageConfig, ...]:
    return prepared.config.stages


def _with_stages(prepared: Prepared, changes: Sequence[Mapping[str, object]]) -> Prepared:
    """With some settings of every stage changed."""
    changed = [stage.model_copy(update=change) for stage, change in zip(_stages(prepared), changes, strict=True)]
    return replace(prepared, config=prepared.config.model_copy(update={"stages": tuple(changed)}))


# --- training --------------------------------------------------------------------------------------------------------


def run_comparison(comparison: Comparison, runs: Runs, *, output_dir: Path, console: Console) -> Iterator[Outcome]:
    """Trains what has not been trained yet, one run after another, and gives what came out of every arm and seed.

    Args:
        comparison: the file.
        runs: what `resolve_runs` made of it.
        output_dir: where the runs lie, and what an image costs is kept.
        console: says what is being done.

    Raises:
        InputError: the folder cannot be made, or belongs to a comparison on another machine.
        TrainingError, Interrupted: see `maskdm.training.start.start_training`.
    """
    make_folder(output_dir, "output_dir")
    console.say("measuring what an image costs in every stage")
    first = comparison.seeds[0]
    before = {
        name: found
        for (name, seed), found in runs.pretrained.items()
        if seed == first and any(stage.minutes for stage in found.config.stages)
    }
    seconds = image_seconds(before, output_dir) if before else {}
    arms = {arm: found for (arm, seed), found in runs.arms.items() if seed == first}
    costs = image_costs(arms, comparison, output_dir)
    for arm, prepared in arms.items():
        console.say(f"  {arm}: {_lengths(with_budget(prepared, costs[arm], comparison, arm), comparison.arms[arm])}")
    numbers, whole = itertools.count(1), len(runs.pretrained) + len(runs.arms)
    for seed in comparison.seeds:
        origins: dict[str, Path] = {}
        for name in comparison.pretrained:
            model = runs.pretrained[name, seed]
            long = minutes_as_images(model, seconds[name]) if name in seconds else model
            title = f"{next(numbers)} of {whole}: {name} to start from, seed {seed}"
            origins[PRETRAINED + name] = _trained(long, output_dir, name, title, console)
        for arm in comparison.arms:
            long = with_budget(_started_from(runs.arms[arm, seed], origins), costs[arm], comparison, arm)
            run = _trained(long, output_dir, arm, f"{next(numbers)} of {whole}: {arm}, seed {seed}", console)
            spent = dict(zip((stage.name for stage in _stages(long)), costs[arm], strict=True))
            yield replace(read_outcome(arm, seed, run, spent), budget=comparison.arms[arm].budget)


def _lengths(prepared: Prepared, arm: Arm) -> str:
    """The stages of an arm as the budget has made them, for whoever waits."""
    early = f", with {arm.budget:.0%} of the budget" if arm.budget < 1 else ""
    return ", ".join(f"{stage.name} {stage.images:,} images" for stage in _stages(prepared)) + early


def _trained(prepared: Prepared, output_dir: Path, name: str, title: str, console: Console) -> Path:
    """The finished run of these settings, trained if there is none."""
    run = finished_run(output_dir, prepared.config, prepared.dataset.images)
    console.say(f"{title}{', finished before' if run else ''}")
    return run or start_training(prepared.config, output_dir=output_dir, name=name, resume=None, console=console)


def _started_from(prepared: Prepared, origins: Mapping[str, Path]) -> Prepared:
    """With the folders of pre-trained models in place of their names."""
    return _with_stages(
        prepared, [{"init_from": str(origins.get(stage.init_from, stage.init_from))} for stage in _stages(prepared)]
    )


def finished_run(output_dir: Path, config: Config, images: ImageSet) -> Path | None:
    """The run of these settings and images in `output_dir`, if it is finished."""
    path = find_run(output_dir, config, None, images)
    return path if path is not None and is_finished(path) else None


def read_outcome(arm: str, seed: int, run: Path, costs: Mapping[str, float]) -> Outcome:
    """What one run's files say. Errors at another image size than the run's compare with nobody's, and are left out.

    Args:
        arm, seed: which it is.
        run: its folder; it is finished.
        costs: of an image as a share of the budget, by the names of stages.
    """
    history = read_history(run)
    begun: dict[str, tuple[int, float]] = {}  # images and budget spent before each stage
    spent = 0.0
    for stage, end in zip(history.stages, history.stage_ends, strict=True):
        begun[stage.stage] = (stage.images, spent)
        spent += (end.images - stage.images) * costs[stage.stage]

    def spent_at(event: HeldoutEvent | ScoreEvent) -> float:
        images, before = begun[event.stage]
        return before + (event.images - images) * costs[event.stage]

    own_size = (event for event in history.heldout if event.image_size is None)
    errors = tuple(Evaluation(spent_at(event), event.error_ema) for event in own_size)
    distances = tuple(Evaluation(spent_at(event), event.frechet_distance) for event in history.scores)
    features = f"{history.scores[-1].title}, n = {history.scores[-1].n}" if history.scores else ""
    return Outcome(arm, seed, run, errors, history.images, history.seconds, distances, features, steps=history.step)
