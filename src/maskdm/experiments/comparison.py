"""The file of a comparison: arms, the budget that is the same for all, seeds, and what arms may start from."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from maskdm.config.recipes import shipped
from maskdm.config.resolve import resolve
from maskdm.config.schema import Config
from maskdm.config.section import LARGEST, PositiveFloat, Section, Seed, Whole, to_dict
from maskdm.config.yaml_files import read_yaml
from maskdm.errors import ArgumentError, InputError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]
Settings = dict[str, Any]
Stages = Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]

PRETRAINED = "pretrained."
"""What stands before the name of a pre-trained model in an arm's `init_from`."""
SAME = {"data": {"flip", "store", "cache_dir"}, "eval": {"heldout_every"}}
"""Sections that all arms share, but for these settings: else their held-out errors could not be compared. Processes may
differ: the error is that of the estimated image at equal noise levels (`maskdm.diffusion.loss.fixed_noise`)."""

RENAMED = {"looks": "evaluations"}
"""Keys of earlier versions -> what they are called now."""


class Budget(Section):
    """What an arm may spend."""

    minutes: PositiveFloat | None = None
    """Of training, on this machine, at the throughput that each stage has where nothing else runs."""
    petaflops: PositiveFloat | None = None
    """10^15 multiplications and additions of the network."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.minutes is None) == (self.petaflops is None):
            raise ArgumentError(wanted="minutes or petaflops, one of them")
        return self


class Arm(Section):
    """One way of training; in a file, a list alone is its stages."""

    recipe: str | None = None
    """Instead of the comparison's, but for its images and what is measured (sections data and eval)."""
    settings: Settings = Field(default_factory=dict)
    """Over the comparison's."""
    stages: Stages | None = None
    """Each has a `share` of the budget and settings of a stage, without a length; shares of less than 1 in all make an
    arm that stops early. Left out: the stages of the settings, their lengths stretched to the budget."""

    @field_validator("stages")
    @classmethod
    def _shares(cls, stages: Stages | None) -> Stages | None:
        given = [stage.get("share") for stage in stages or ()]
        shares = [share for share in given if isinstance(share, (int, float)) and share > 0]
        if len(shares) < len(given):
            raise ArgumentError(got=given, wanted="a share above 0 for every stage")
        if sum(shares) > 1 + 1e-6:
            raise ArgumentError(got=shares, wanted="shares that add up to 1 at most")
        return stages

    @property
    def budget(self) -> float:
        """The share of the budget that it spends, 1 at most."""
        spent = sum(stage["share"] for stage in self.stages or ())
        return 1.0 if not spent or spent > 1 - 1e-6 else float(spent)


class Pretrained(Section):
    """A model that arms may start from; what it costs is nobody's budget."""

    recipe: str | None = None
    """Instead of the comparison's."""
    settings: Settings = Field(default_factory=dict)
    """Over the comparison's; such as data.path."""
    stages: Stages
    """With their lengths; minutes are at the throughput that a stage has here where nothing else runs."""


class Comparison(Section):
    """A file of `maskdm compare`."""

    title: str = "Comparison"
    """What stands above the page."""
    recipe: str | None = None
    """Settings of all arms: a shipped recipe, and"""
    settings: Settings = Field(default_factory=dict)
    """key.sub: value over it, as on the command line of `maskdm train`."""
    budget: Budget
    """The same for every arm; see `stages` for those that stop early."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Every arm is trained once with each."""
    evaluations: Annotated[Whole, Field(gt=0, le=100_000)] = 20
    """How often the held-out error is measured in every arm."""
    pretrained: dict[Name, Pretrained] = Field(default_factory=dict)
    """Models that arms may start from, by `init_from: pretrained.NAME`: one for every seed."""
    baseline: Name
    """The arm that the others are compared with."""
    control: Name | None = None
    """An arm that does what the others do, such as to begin a second stage, but for what is asked about: what is not
    better than it is not said to gain by that."""
    arms: Annotated[dict[Name, Arm], Field(min_length=2)]
    """Name: stages, or recipe, settings and stages."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        if self.baseline not in self.arms:
            raise ArgumentError("baseline", got=self.baseline, wanted=f"one of {', '.join(self.arms)}")
        if self.control is not None and (self.control == self.baseline or self.control not in self.arms):
            others = ", ".join(arm for arm in self.arms if arm != self.baseline)
            raise ArgumentError("control", got=self.control, wanted=f"one of {others}")
        if (spent := self.arms[self.baseline].budget) < 1:
            raise ArgumentError(
                f"arms.{self.baseline}",
                got=spent,
                wanted="a baseline whose shares add up to 1: it has all of the budget",
            )
        if both := self.arms.keys() & self.pretrained.keys():
            raise ArgumentError(
                "pretrained", got=min(both), wanted="names that are not both an arm's and a pre-trained model's"
            )
        for name, arm in self.arms.items():
            for stage in arm.stages or ():
                origin = str(stage.get("init_from", ""))
                if origin.startswith(PRETRAINED) and origin.removeprefix(PRETRAINED) not in self.pretrained:
                    raise ArgumentError(f"arms.{name}.init_from", got=origin, wanted="one of pretrained")
        return self


def comparisons() -> dict[str, str]:
    """Comparisons that come with the package: name -> the first line of its header."""
    return shipped("comparisons")


def comparison_text(name: str) -> str:
    """The text of a shipped comparison.

    Raises:
        InputError: there is none of this name.
    """
    if name not in comparisons():
        raise InputError("show", got=name, wanted=f"one of {', '.join(comparisons())}")
    return (resources.files("maskdm") / "comparisons" / f"{name}.yaml").read_text(encoding="utf-8")


def read_comparison(name: str) -> Comparison:
    """A file, or a shipped comparison by its name.

    Raises:
        InputError: no such file, or not as it must be; it names the file and the key.
    """
    known = comparisons()
    path = Path(name)
    if name in known:
        path = Path(str(resources.files("maskdm") / "comparisons" / f"{name}.yaml"))
    elif not path.is_file():
        raise InputError("comparison", got=name, wanted=f"a file, or one of {', '.join(known)}")
    tree = read_yaml(path)
    if isinstance(arms := tree.get("arms"), dict):
        tree["arms"] = {name: {"stages": arm} if isinstance(arm, list) else arm for name, arm in arms.items()}
    try:
        # Through JSON: only there do lists count as tuples while "3" still is no number.
        return Comparison.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise _first_fault(name, error) from None


def override_comparison(
    comparison: Comparison, *, minutes: float | None = None, seeds: Sequence[int] | None = None
) -> Comparison:
    """A comparison with another budget or other seeds.

    Args:
        comparison: as its file has it.
        minutes: budget of every arm in place of the file's.
        seeds: in place of the file's.

    Raises:
        InputError: no time at all, no seeds, or one seed twice.
    """
    changes: dict[str, object] = {}
    if minutes is not None:
        if not 0 < minutes <= LARGEST:
            raise InputError("minutes", got=minutes, wanted=f"more than 0, and at most {LARGEST:g}")
        changes["budget"] = Budget(minutes=minutes)
    if seeds is not None:
        if not seeds or len(set(seeds)) < len(seeds):
            raise InputError("seeds", got=list(seeds), wanted="different numbers such as 0, 1, 2")
        changes["seeds"] = tuple(seeds)
    return comparison.model_copy(update=changes)


def _first_fault(file: str, error: ValidationError) -> InputError:
    """What to say of the first fault; an unknown key before what may be missing because of it."""
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    place = [str(part) for part in fault["loc"]]
    found = _explained(fault, place)
    name = ".".join([*place, found.name] if found.name else place)
    return InputError(f"{file}: {name}", found.problem, got=found.got, wanted=found.wanted, remedy=found.remedy)


def _explained(fault: ErrorDetails, place: Sequence[str]) -> ArgumentError:
    """A fault of pydantic's at `place` in our words; its name is what comes below the place."""
    if fault["type"] == "extra_forbidden":
        if ".".join(place) in RENAMED:
            return ArgumentError(problem="no key any more", remedy=f"it is now {RENAMED['.'.join(place)]}")
        return ArgumentError(problem="unknown key", remedy=_known_keys(place))
    if fault["type"] == "missing":
        return ArgumentError(problem="missing")
    if fault["type"] == "value_error":
        cause = fault["ctx"]["error"]
        assert isinstance(cause, ArgumentError), "what the checks above raise"
        return cause
    if place[:-1] == ["arms"] or place[-1] == "stages":
        return ArgumentError(wanted="a list of stages such as [{share: 1, batch_size: 8}]")
    said = fault["msg"].removeprefix("Input should be ")
    return ArgumentError(got=fault["input"], wanted=said[:1].lower() + said[1:])


def _known_keys(place: Sequence[str]) -> str:
    """What may stand where an unknown key does, and which of it was meant."""
    *above, last = place
    section = Arm if above[:1] == ["arms"] else Pretrained if above[:1] == ["pretrained"] else Comparison
    known = list((Budget if above[:1] == ["budget"] else section).model_fields)
    close = difflib.get_close_matches(last, known, n=1)
    return (f"did you mean {close[0]}? " if close else "") + f"known here: {', '.join(known)}"


def arm_config(comparison: Comparison, name: str, seed: int, overrides: Sequence[str]) -> Config:
    """The settings of one arm; stages that have a share are as many minutes long, those of settings as they say.

    Args:
        comparison: the file.
        name: of the arm.
        seed: of everything random.
        overrides: key.sub=value for all arms, above the file's.

    Raises:
        InputError: a setting of the arm; it names the arm and the key.
    """
    arm = comparison.arms[name]
    stages = None
    if arm.stages is not None:
        stages = [{k: v for k, v in stage.items() if k != "share"} for stage in arm.stages]
        for stage, given in zip(stages, arm.stages, strict=True):
            stage["minutes"] = given["share"]
    quiet = ["eval.heldout_every=1000000000000", "eval.samples_every=1000000000000"]
    shared = [*_overrides(comparison.settings), *quiet]
    own = [*_overrides(arm.settings), *_stages(stages), *overrides, f"train.seed={seed}"]
    if arm.recipe is None:
        return _resolve(f"arm {name}", comparison.recipe, [*shared, *own])
    config = _resolve(f"arm {name}", arm.recipe, own)
    usual = _resolve("settings", comparison.recipe, [*shared, *overrides])
    return config.model_copy(update={"data": usual.data, "eval": usual.eval})


def pretrained_config(comparison: Comparison, name: str, seed: int, overrides: Sequence[str]) -> Config:
    """The settings of a model that arms start from; see `arm_config`."""
    model = comparison.pretrained[name]
    own = [*_overrides(comparison.settings), *overrides, *_overrides(model.settings), *_stages(list(model.stages))]
    return _resolve(f"pretrained {name}", model.recipe or comparison.recipe, [*own, f"train.seed={seed}"])


def check_alike(configs: Mapping[str, Config]) -> None:
    """Refuses arms whose held-out errors could not be compared.

    Raises:
        InputError: two that differ in their images or in what is measured; it names the later one.
    """
    name, first = next(iter(configs.items()))
    for section, free in SAME.items():
        here = to_dict(getattr(first, section))
        for other, config in configs.items():
            there = to_dict(getattr(config, section))
            key = next((key for key in here if key not in free and here[key] != there[key]), None)
            if key is not None:
                raise InputError(
                    f"arms.{other}",
                    f"differs from {name} in {section}.{key} ({there[key]}, not {here[key]}), so their held-out errors "
                    "cannot be compared",
                    remedy="give both the same",
                )


def _overrides(settings: Settings) -> list[str]:
    """As on the command line: text as it is, and all else as JSON, which is YAML."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def _stages(stages: Sequence[Settings] | None) -> list[str]:
    if stages is None:
        return []
    named = [{"name": f"stage{number + 1}", **stage} for number, stage in enumerate(stages)]
    return [f"stages={json.dumps(named)}"]


def _resolve(what: str, recipe: str | None, overrides: Sequence[str]) -> Config:
    """Settings of `what`, whose faults name it."""
    try:
        return resolve(recipe=recipe, overrides=overrides, origin="its settings")
    except InputError as error:
        name = f"{what}: {error.name}" if error.name else what
        raise InputError(name, error.problem, got=error.got, wanted=error.wanted, remedy=error.remedy) from None
