"""A time in, settings out: what to train in so many minutes on this machine.

The machine is measured for some seconds: its matrix product, then real steps of the network that the rules suggest
(`maskdm.profiling.rules`), and of another where that one turns out slower or faster than expected. From there on all is
settled: lengths in steps, so that a run that is interrupted goes on exactly, and ends where its learning rate says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median

import torch

from maskdm.config.resolve import given_lengths, resolve, to_config
from maskdm.config.schema import Config, EvalConfig
from maskdm.config.section import Tree, to_dict
from maskdm.config.stage_config import StageConfig
from maskdm.data.dataset import Dataset
from maskdm.errors import InputError
from maskdm.models import build
from maskdm.models.flops import training_flops
from maskdm.profiling import rules
from maskdm.profiling.bench import matrix_peak
from maskdm.profiling.forecast import measuring_hours, seconds_per_call
from maskdm.runtime.console import Console, duration
from maskdm.runtime.distributed import Runtime
from maskdm.training.prepare import check_memory, make_task, prepare
from maskdm.training.stages import total_steps
from maskdm.training.start import Choice, check_batches
from maskdm.training.step_profiler import StepProfiler

EXPECTED_OF_PEAK = 0.5
"""Share of the matrix product's rate that a step is expected to reach before one has been measured."""
SECONDS_TO_MEASURE = 3.0
"""For every stage that is measured, about; a step that takes longer is measured with fewer images."""
LONGEST_STEP = 1.0
MOST_HOURS = 100_000
"""Of a budget: eleven years."""
ENDING = 6.0
"""Seconds for what comes after the last step: weights, checkpoint, page."""
FOR_MEASURES = 0.06
"""Share of the time that held-out errors and sample grids may take, each half of it."""
HELDOUT_IMAGES, GRIDS = (256, 128, 64, 32), (64, 36, 16, 4)
"""Of which the largest is taken that the time allows."""
MOST_ERRORS, MOST_GRIDS = 10, 4
"""Of a run, evenly over its images, and at the end of every stage."""
SECONDS_BETWEEN_CHECKPOINTS = 300.0
MOST_TURNS, LEAST_STEPS = 20, 20
"""Of measuring, and of a stage."""
GRID_STEPS = EvalConfig().sample_steps
LINES = 200
"""Of training in metrics.jsonl, about."""
LEAST_SHARE = 0.4
"""Of the time that must be left for training."""


@dataclass(frozen=True)
class TimeBudget:
    """What a person asked for: a time, and settings of their own.

    Attributes:
        minutes: from the command to its end, wall-clock time.
        recipe, file, words, base: the layers of settings, see `maskdm.config.resolve.resolve`.
        lengths: whether these say how long stages are; they count as proportions then, and only lengths are chosen.
    """

    minutes: float
    recipe: str | None = None
    file: Path | None = None
    words: Sequence[str] = ()
    base: Config | None = None
    lengths: bool = False

    @staticmethod
    def of(
        minutes: float | None,
        *,
        recipe: str | None = None,
        file: Path | None = None,
        words: Sequence[str] = (),
        base: Config | None = None,
    ) -> TimeBudget | None:
        """What is asked for: a time, or where neither that nor any length is given the usual one; None for lengths.

        Args:
            minutes: a time, or None.
            recipe, file, words, base: see the class.

        Raises:
            InputError: settings that cannot be used, or lengths of some stages only beside a time.
        """
        given = [True] if base is not None else given_lengths(recipe=recipe, file=file, overrides=words)
        if minutes is None:
            return None if any(given) else TimeBudget(rules.USUAL_MINUTES, None, file, tuple(words))
        if any(given) and not all(given):
            name = f"stages.{given.index(False)}.steps"
            raise InputError(name, "missing, where other stages have a length", remedy="give it too, or none of them")
        return TimeBudget(minutes, recipe, file, tuple(words), base, all(given))

    def over(self, base: Config | None) -> Config:
        """These settings over others, or over the defaults."""
        return resolve(base=base, recipe=self.recipe, file=self.file, overrides=self.words)

    def plain(self) -> Config:
        """These settings over the defaults: what is known before anything is chosen."""
        return self.over(self.base)

    def request(self) -> Tree:
        """What makes two requests the same: the time and the settings."""
        return {"minutes": self.minutes, "settings": to_dict(self.plain())}


@dataclass(frozen=True)
class StagePace:
    """What a stage costs on this machine.

    Attributes:
        seconds: of a step.
        flops: of a step, over all ranks.
        call: seconds of the network for one image, without a gradient.
    """

    seconds: float
    flops: float
    call: float


def choose_settings(
    budget: TimeBudget, dataset: Dataset, runtime: Runtime, console: Console, *, since: float
) -> Choice:
    """The settings for a time budget, with the reasons for them; the same on every rank.

    Args:
        budget: what was asked for.
        dataset: the images.
        runtime: the machine.
        console: says what is measured.
        since: `time.monotonic()` when the command began; the budget counts from there.

    Raises:
        InputError: settings that cannot be used, or too little time to train anything.
    """
    console.say(f"measuring this machine, for a run of {duration(60 * budget.minutes)}")
    peak = runtime.broadcast(matrix_peak(runtime))
    if budget.lengths:
        plan = _Plan(budget, dataset, budget.plain())
        plan.measure(runtime, EXPECTED_OF_PEAK * peak)
        reasons = ["network and stages as given; their lengths are proportions"]
    else:
        plan, reasons = _choose_network(budget, dataset, runtime, peak)
    config = plan.with_lengths(runtime.broadcast(time.monotonic() - since))
    precision = "fp32" if runtime.precision == "no" else runtime.precision
    ranks = f", {runtime.world_size} processes" if runtime.world_size > 1 else ""
    machine = f"{runtime.device}, {precision}{ranks}: {peak / 1e9:,.0f} GFLOP/s in a large matrix product"
    reasons = [machine, *reasons, *plan.describe(config)]
    record = budget.request() | {
        "matrix_flops_per_second": peak,
        "seconds_of_a_step": [pace.seconds for pace in plan.paces],
        "reasons": reasons,
    }
    return Choice(config, record, tuple(reasons))


class _Plan:
    """Settings that might be taken, for the images at hand.

    Attributes:
        config: the settings; lengths of stages are placeholders.
        prepared: with nothing left on auto.
        paces: what a step of each stage costs, once measured.
    """

    def __init__(self, budget: TimeBudget, dataset: Dataset, config: Config) -> None:
        self.budget, self.config = budget, config
        self.prepared = prepare(config, Console(quiet=True), dataset)
        self.paces: list[StagePace] = []

    @property
    def stages(self) -> Sequence[StageConfig]:
        """Of the settings."""
        return self.prepared.config.stages

    @cached_property
    def parameters(self) -> int:
        """Of the network."""
        with torch.device("meta"):
            return sum(p.numel() for p in build.backbone(self.prepared.spec).parameters())

    def flops(self, stage: int) -> float:
        """Of training on an image, on average over a stage's masks."""
        phases = self.prepared.masks[stage].phases
        spec = self.prepared.stage_spec(stage)
        return sum(training_flops(spec, groups) for groups in phases) / len(phases)

    def images(self, seconds: float, rate: float) -> float:
        """How many would be seen at `rate` FLOP/s, over all stages."""
        return seconds * rate * sum(share / self.flops(i) for i, share in enumerate(self.shares()))

    @property
    def rate(self) -> float:
        """FLOP/s of the steps that were measured, over all ranks."""
        return sum(pace.flops for pace in self.paces) / sum(pace.seconds for pace in self.paces)

    def shares(self) -> list[float]:
        """The share of the time that each stage gets, in all 1: as the given lengths say, or as the rules."""
        if self.budget.lengths:
            steps = [total_steps(stage) or 0 for stage in self.stages]
            paces = zip(self.stages, steps, self.paces, strict=True)
            seconds = [60 * stage.minutes if stage.minutes else count * pace.seconds for stage, count, pace in paces]
            return [each / sum(seconds) for each in seconds]
        masked = [masks.ratio > 0 for masks in self.prepared.masks]
        if len(set(masked)) == 1:
            return [1 / len(masked)] * len(masked)
        kinds = {True: rules.MASKED_SHARE, False: 1 - rules.MASKED_SHARE}
        return [kinds[each] / masked.count(each) for each in masked]

    def measure(self, runtime: Runtime, expected: float) -> None:
        """What a step of every stage costs here: some seconds for each.

        Args:
            runtime: the machine.
            expected: FLOP/s of a rank, by which it is told that a step is too long to be measured whole.

        Raises:
            InputError: a batch that ranks cannot share, or more than memory could hold; nothing of it is taken.
        """
        check_batches(self.prepared.config, runtime)
        check_memory(self.prepared.config, self.prepared.spec, runtime)
        rows = self.prepared.dataset.rows("member")
        self.paces = []
        for number, stage in enumerate(self.stages):
            flops, ranks = self.flops(number), runtime.world_size
            least = ranks * max(len(phase) for phase in self.prepared.masks[number].phases)
            most = int(LONGEST_STEP * expected * ranks / flops)
            batch = min(stage.batch_size, max(most // least, 1) * least)
            stages = list(self.stages)
            stages[number] = stage.model_copy(update={"batch_size": batch})
            config = self.prepared.config.model_copy(update={"stages": tuple(stages)})
            profiler = StepProfiler(make_task(replace(self.prepared, config=config), runtime, rows), number)
            profiler.use(profiler.task)
            profiler.step()  # warms up
            first = profiler.step(profiler.between)
            # Ranks step together: as many turns on each.
            wanted = runtime.broadcast(round(SECONDS_TO_MEASURE / first / profiler.between))
            turns = int(min(max(wanted, 1), MOST_TURNS))
            seconds = median([first, *(profiler.step(profiler.between) for _ in range(turns))])
            # Where masks change during the stage, the first are measured.
            first_masks = self.prepared.masks[number].phases[0]
            seconds *= flops / training_flops(self.prepared.stage_spec(number), first_masks)
            seconds = runtime.broadcast(seconds * stage.batch_size / batch)
            call = runtime.broadcast(seconds_per_call(profiler, number) / ranks)
            self.paces.append(StagePace(seconds, flops * stage.batch_size, call))

    def with_lengths(self, spent: float) -> Config:
        """The settings with the steps for which there is time, after what is spent and what is evaluated.

        Args:
            spent: seconds since the command began.

        Raises:
            InputError: there is too little.
        """
        seconds, shares, total = [pace.seconds for pace in self.paces], self.shares(), 60 * self.budget.minutes
        config = self.config if self.budget.lengths else self._with_evaluation()
        left, evaluating, steps = total - spent - ENDING, 0.0, [1] * len(shares)
        for _ in range(3):  # what is evaluated depends on the images, and these on the time that it leaves
            evaluating = sum(
                3600 * sum(measuring_hours(config.eval, i, steps[i] * stage.batch_size, self.paces[i].call).values())
                for i, stage in enumerate(config.stages)
            )
            steps = [
                max(int((left - evaluating) * share / each), 1) for share, each in zip(shares, seconds, strict=True)
            ]
        if left - evaluating < max(LEAST_SHARE * total, sum(LEAST_STEPS * each for each in seconds)):
            needed = (spent + ENDING + evaluating) / (1 - LEAST_SHARE) + sum(LEAST_STEPS * each for each in seconds)
            raise InputError(
                "minutes",
                f"of them {duration(spent + ENDING + evaluating)} would go to reading, measuring and evaluating",
                got=self.budget.minutes,
                wanted=f"at least {math.ceil(needed / 6) / 10:g}",
                remedy="give more time, or evaluate less (eval.samples, eval.heldout_images)",
            )
        lengths = ({"steps": count, "images": None, "minutes": None} for count in steps)
        stages = tuple(s.model_copy(update=length) for s, length in zip(config.stages, lengths, strict=True))
        return config.model_copy(update={"stages": stages})

    def _with_evaluation(self) -> Config:
        """The settings with errors, grids and checkpoints as often as time allows, where nothing else was asked for."""
        total, call = 60 * self.budget.minutes, max(pace.call for pace in self.paces)
        images = [
            max(int(total * share / pace.seconds), 1) * stage.batch_size
            for stage, pace, share in zip(self.stages, self.paces, self.shares(), strict=True)
        ]
        ends, each = len(images), FOR_MEASURES / 2 * total / call  # calls of the network: for errors, for grids
        heldout = next((n for n in HELDOUT_IMAGES if (ends + 1) * 2 * n <= each), HELDOUT_IMAGES[-1])
        samples = next((n for n in GRIDS if ends * n * GRID_STEPS <= each), GRIDS[-1])
        errors = min(max(int(each / (2 * heldout)) - ends, ends), MOST_ERRORS)
        grids = min(max(int(each / (samples * GRID_STEPS)) - ends, 1), MOST_GRIDS)
        chosen: Tree = {
            "eval": {
                "heldout_images": heldout,
                "heldout_every": [math.ceil(n * ends / errors) for n in images],
                "samples": samples,
                "samples_every": math.ceil(max(images) if grids == 1 else sum(images) / grids),
            },
            "train": {"save_every": max(round(SECONDS_BETWEEN_CHECKPOINTS / max(p.seconds for p in self.paces)), 1)},
            "log": {"every": max(round(total / LINES / max(p.seconds for p in self.paces)), 1)},
        }
        return self.budget.over(to_config(to_dict(self.config) | chosen))

    def describe(self, config: Config) -> list[str]:
        """The stages, and what they come to, a line each."""
        lines, total = [], 0
        for stage, masks, pace in zip(config.stages, self.prepared.masks, self.paces, strict=True):
            steps = total_steps(stage) or 0
            lines.append(
                f"{stage.name}: {masks}; batch {stage.batch_size}, rate {stage.lr:g}, {steps:,} steps of "
                f"{pace.seconds:.3g} s, {duration(steps * pace.seconds)}"
            )
            total += steps * stage.batch_size
        members = self.prepared.dataset.counts["member"]
        lines.append(f"{total:,} images in all, each of the {members:,} to train on about {total / members:.3g} times")
        return lines


def _choose_network(budget: TimeBudget, dataset: Dataset, runtime: Runtime, peak: float) -> tuple[_Plan, list[str]]:
    """The network that the rules suggest at the pace that is measured, and why."""
    height, width = (int(side) for side in dataset.images.images.shape[1:3])
    ranks, gpu = runtime.world_size, runtime.device.type != "cpu"
    usual = budget.over(to_config(rules.usual_tree("jit", None, (height, width), ranks)))
    backbone = usual.model.backbone  # another one, where that was asked for
    sizes = rules.sizes_of(backbone, usual.model)

    def plan_of(size: rules.NetworkSize | None, batch: int) -> _Plan:
        tree = rules.usual_tree(backbone, size, (height, width), batch)
        return _Plan(budget, dataset, budget.over(to_config(tree)))

    least = rules.pick_batch(1, gpu=gpu, ranks=ranks)
    candidates: dict[int, _Plan] = {}  # made when needed: their arithmetic takes a second to count

    def candidate(number: int) -> _Plan:
        if number not in candidates:
            candidates[number] = plan_of(sizes[number], least)
        return candidates[number]

    def images(number: int, rate: float) -> float:
        return candidate(number).images(0.9 * 60 * budget.minutes, rate)

    def pick(rate: float) -> int:
        larger = range(1, len(sizes))
        too_large = (n for n in larger if not rules.sees_enough(candidate(n).parameters, images(n, rate)))
        return next(too_large, len(sizes)) - 1

    def measured(number: int, rate: float) -> _Plan:
        plan = plan_of(sizes[number], rules.pick_batch(images(number, rate), gpu=gpu, ranks=ranks))
        plan.measure(runtime, EXPECTED_OF_PEAK * peak)
        return plan

    expected = EXPECTED_OF_PEAK * peak * ranks
    number = pick(expected)
    plan = measured(number, expected)
    again = pick(plan.rate)
    if again != number:  # one more measurement, a size nearer to what the first one says
        number += 1 if again > number else -1
        plan = measured(number, plan.rate)
    spec = plan.prepared.spec
    shape = " x ".join(str(getattr(spec.model, name)) for name in ("width", "depth") if getattr(spec.model, name))
    network = f"{backbone} {shape}".rstrip() + f", {plan.parameters / 1e6:.2f} M parameters"
    if len(sizes) > 1:
        enough = f"sees {1000 * rules.IMAGES_PER_PARAMETER:g} images for every 1,000 of its parameters"
        network += f": the {'largest' if number else 'smallest'} of {len(sizes)} sizes"
        network += f" that {enough}" if number else ""
    side, count = spec.model.patch_size, plan.prepared.masks[-1].maskings[0].num_patches
    head = ", with a convolutional pixel head" if getattr(spec.model, "pixel_head", "none") == "conv" else ""
    return plan, [network, f"{count:,} patches of {side} px{head}"]
