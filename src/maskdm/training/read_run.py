"""The one reader of a run's folder, for everybody who comes after training (no torch).

    read_config    its settings, strictly: what has to be known to load a model or to resume
    read_history   metrics.jsonl in order, tolerantly: what a killed process cut off or a later version added is skipped
    read_run       all that a person wants to see, with remarks on what could not be read

Who had which role is `maskdm.data.manifest.read_manifest`, and weights are `maskdm.models.weights.read_weights`: both
take the run's folder too. The writing side is `maskdm.training.runs`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from maskdm.config.resolve import resolve
from maskdm.config.schema import Config, DataConfig
from maskdm.config.yaml_files import read_yaml
from maskdm.data.manifest import HEAD
from maskdm.data.sources import HUB, resolved_path
from maskdm.errors import InputError
from maskdm.training.events import (
    AnyEvent,
    EndEvent,
    HeldoutEvent,
    NoiseRange,
    ScoreEvent,
    StageEndEvent,
    StageEvent,
    StoppedEvent,
    TrainEvent,
    parse_event,
)
from maskdm.training.progress import Progress, newest_checkpoint, read_progress

COUNTS = ("member", "heldout", "calibration", "excluded")
"""What is read of a manifest: a page about a run may be shared, and names of images may not."""
CONFIG = "config.yaml"
"""File of the settings in a run's folder."""
FOLDER = re.compile(r"\d{5}-.+")
"""Names of run folders: <number>-<name>."""


class EvalRow(BaseModel):
    """A score: its value, standard error, 95 % interval, the number of images (None for what is not known), a note."""

    name: str
    value: float | None = None
    error: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    note: str = ""


class EvalTable(BaseModel):
    """A file of `eval/`: scores, and the command that makes them again."""

    title: str
    command: str = ""
    note: str = ""
    rows: list[EvalRow] = []


@dataclass(frozen=True)
class SampleGrid:
    """A PNG of samples; `step` is None for one made at the end."""

    path: Path
    step: int | None


Timed = TypeVar("Timed", TrainEvent, HeldoutEvent, ScoreEvent, StageEndEvent)
Read = TypeVar("Read")


@dataclass
class History:
    """The events of a run, put in order: what a resumed run has done again counts once, as done last.

    Attributes:
        stages, train, heldout, scores, stage_ends: by kind, each in order of steps.
        last: the last line of any kind.
        skipped: lines that are damaged, or lack what their kind has.
        fault: what is wrong with the first of them, "" where none is.
    """

    stages: list[StageEvent] = field(default_factory=list)
    train: list[TrainEvent] = field(default_factory=list)
    heldout: list[HeldoutEvent] = field(default_factory=list)
    scores: list[ScoreEvent] = field(default_factory=list)
    stage_ends: list[StageEndEvent] = field(default_factory=list)
    last: AnyEvent | None = None
    skipped: int = 0
    fault: str = ""

    def add(self, event: AnyEvent) -> None:
        """The next line; it supersedes those of its kind at or after its step."""
        self.last = event
        match event:
            case StageEvent():
                self._begin(event)
            case TrainEvent():
                self._append(self.train, event)
            case HeldoutEvent():
                self._append(self.heldout, event)
            case ScoreEvent():
                self._append(self.scores, event)
            case StageEndEvent():
                self._append(self.stage_ends, event)
            case EndEvent() | StoppedEvent():
                pass

    @property
    def finished(self) -> bool:
        """Whether the last stage has ended."""
        return isinstance(self.last, EndEvent)

    @property
    def step(self) -> int:
        """Steps so far, over all stages, as far as they are on record."""
        return max((e.step for e in self.events()), default=0)

    @property
    def images(self) -> int:
        """Images so far, over all stages."""
        return self.images_at(self.step)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all stages."""
        return self.seconds_at(self.step)

    @property
    def heldout_error(self) -> float | None:
        """The latest one of the averaged weights that is a number, at the image size of its stage."""
        return None if self.last_heldout is None else self.last_heldout.error_ema

    @property
    def heldout_by_noise(self) -> tuple[NoiseRange, ...]:
        """The same one by range of noise level; empty where there is none, or an earlier version recorded it."""
        return () if self.last_heldout is None else self.last_heldout.by_noise

    @property
    def last_heldout(self) -> HeldoutEvent | None:
        """The latest measurement whose error of the averaged weights is a number."""
        return next((e for e in reversed(self.heldout) if isfinite(e.error_ema)), None)

    def images_at(self, step: int) -> int:
        """Images seen at `step`. The batch size is constant within a stage, so a straight line between is exact."""
        known = {e.step: e.images for e in self.events() if not isinstance(e, StoppedEvent)}
        return round(float(np.interp(step, sorted(known), [known[s] for s in sorted(known)]))) if known else 0

    def seconds_at(self, step: int) -> float:
        """Seconds of training up to `step`, by the last record that is not beyond it."""
        timed: list[TrainEvent | StageEndEvent | EndEvent] = [*self.train, *self.stage_ends]
        timed += [self.last] if isinstance(self.last, EndEvent) else []
        return max((e.seconds for e in timed if e.step <= step), default=0.0)

    def stage_at(self, step: int) -> StageEvent | None:
        """The stage whose steps led to `step`: at the boundary of two, the earlier."""
        return self.stages[max(0, bisect_left(self.stages, step, key=lambda s: s.step) - 1)] if self.stages else None

    def events(self) -> list[AnyEvent]:
        """All that count, kind by kind."""
        ending = [self.last] if isinstance(self.last, EndEvent | StoppedEvent) else []
        return [*self.stages, *self.train, *self.heldout, *self.scores, *self.stage_ends, *ending]

    def _append(self, events: list[Timed], event: Timed) -> None:
        """Adds `event` and drops those it supersedes: a resumed run goes back to its checkpoint and does them again."""
        while events and self._place(events[-1]) >= self._place(event):
            events.pop()
        events.append(event)

    def _place(self, event: Timed) -> tuple[int, int]:
        """Where an event belongs: the end of a stage and the beginning of the next are one step and two events."""
        return event.step, next((stage.index for stage in self.stages if stage.stage == event.stage), -1)

    def _begin(self, event: StageEvent) -> None:
        """A stage that is begun again, the run having been killed before its first checkpoint, keeps its start."""
        while self.stages and self.stages[-1].index >= event.index:
            superseded = self.stages.pop()
            if superseded.index == event.index:
                step, images = min((superseded.step, superseded.images), (event.step, event.images))
                event = event.model_copy(update={"step": step, "images": images})
        self.stages.append(event)


@dataclass(frozen=True)
class RunFolder:
    """What a run has written so far, as a person wants to see it.

    Attributes:
        path: its folder.
        history: its events.
        settings: config.yaml as plain values, empty where it cannot be read; `read_config` reads it strictly.
        env: env.json: with what, on what and by which command the run was made.
        counts: images of each role.
        eval_tables: the files of `eval/`.
        grids: of samples, in the order in which they were made.
        weights: names of weights that can be loaded: "ema", "raw", "pretrain-ema", ...
        progress: of the newest checkpoint, None where there is none.
        remarks: on what could not be read.
    """

    path: Path
    history: History
    settings: Mapping[str, Any]
    env: Mapping[str, Any]
    counts: Mapping[str, int]
    eval_tables: list[EvalTable]
    grids: list[SampleGrid]
    weights: list[str]
    progress: Progress | None
    remarks: list[str]

    @property
    def name(self) -> str:
        """Of the folder: "00003-photos"."""
        return self.path.resolve().name


def is_run(path: Path) -> bool:
    """Whether `path` is a run's folder: it has settings."""
    return (path / CONFIG).is_file()


def list_runs(output_dir: Path) -> list[Path]:
    """Runs in the order in which they were started."""
    if not output_dir.is_dir():
        return []
    return sorted(p for p in output_dir.iterdir() if FOLDER.fullmatch(p.name) and is_run(p))


def read_config(run: Path) -> Config:
    """The settings of a run.

    Raises:
        InputError: there are none, or not of this version.
    """
    return resolve(file=run / CONFIG)


def read_data_config(run: Path, data: str | Path | None = None) -> DataConfig:
    """What a run read, from where it is now.

    Args:
        run: its folder.
        data: where its images are, if they were moved since; whether they are the same is for the manifest to say.

    Raises:
        InputError: the run's settings cannot be read, or nothing is where its images were.
    """
    config = read_config(run).data
    if data is not None:
        return config.model_copy(update={"path": resolved_path(str(data))})
    if not config.path.startswith(HUB) and not Path(config.path).exists():
        problem = f"the images of {run} are not in {config.path} any more"
        raise InputError("data", problem, remedy="say where they are now")
    return config


def read_history(run: Path) -> History:
    """The events of a run; empty where nothing was written yet."""
    history, path = History(), run / "metrics.jsonl"
    if not path.is_file():
        return history
    *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for line in filter(str.strip, lines):
        try:
            event = parse_event(line)
        except ValidationError as error:
            history.skipped, history.fault = history.skipped + 1, history.fault or _reason(error)
            continue
        if event is not None:
            history.add(event)
    with suppress(ValidationError):  # without its line break it was being written, which is no fault
        event = parse_event(last)
        if event is not None:
            history.add(event)
    return history


def is_finished(run: Path) -> bool:
    """Whether the last stage of a run has ended."""
    return read_history(run).finished


def read_run(run: Path) -> RunFolder:
    """All of a run that is there; what cannot be read is left out, with a remark.

    Raises:
        InputError: `run` is no run's folder.
    """
    wanted = "the folder of a run, with config.yaml or metrics.jsonl"
    if not any((run / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        problem = "is a folder, but not that of a run" if run.is_dir() else "is not a folder"
        raise InputError("run", problem, got=str(run), wanted=wanted, remedy="give the folder that training wrote")
    remarks: list[str] = []
    history = read_history(run)
    if history.skipped:
        lines = "1 damaged line" if history.skipped == 1 else f"{history.skipped} damaged lines"
        remarks.append(f"metrics.jsonl: {lines} left out ({history.fault}).")
    tables = (_json(path, EvalTable, remarks) for path in sorted((run / "eval").glob("*.json")))
    return RunFolder(
        path=run,
        history=history,
        settings=_settings(run / CONFIG, remarks),
        env=_json(run / "env.json", dict[str, Any], remarks) or {},
        counts=_counts(run / HEAD, remarks),
        eval_tables=[table for table in tables if table is not None],
        grids=_grids(run / "samples"),
        weights=sorted(path.stem for path in (run / "weights").glob("*.safetensors") if path.name[0] != "."),
        progress=_progress(run / "checkpoints", remarks),
        remarks=remarks,
    )


def _progress(checkpoints: Path, remarks: list[str]) -> Progress | None:
    newest = newest_checkpoint(checkpoints)
    if newest is None:
        return None
    try:
        return read_progress(newest)
    except InputError as error:
        remarks.append(f"{newest.name}: left out, it {error.problem}.")
        return None


def _settings(path: Path, remarks: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_yaml(path)
    except InputError as error:
        remarks.append(f"{path.name}: left out, it cannot be read ({error.problem or error}).")
        return {}


def _counts(path: Path, remarks: list[str]) -> dict[str, int]:
    """Of the manifest nothing but four numbers."""
    head = _json(path, dict[str, Any], remarks) or {}
    counts = head.get("counts")
    if not isinstance(counts, dict):
        return {}
    return {name: counts[name] for name in COUNTS if isinstance(counts.get(name), int)}


def _grids(folder: Path) -> list[SampleGrid]:
    """In the order in which they were made, the final one last."""
    numbered = ((path, re.fullmatch(r"step-(\d+)", path.stem)) for path in folder.glob("*.png"))
    steps = sorted(((int(found[1]), path) for path, found in numbered if found), key=lambda pair: pair[0])
    final = folder / "final.png"
    last = [SampleGrid(final, None)] if final.is_file() else []
    return [*(SampleGrid(path, step) for step, path in steps), *last]


def _json(path: Path, wanted: type[Read], remarks: list[str]) -> Read | None:
    if not path.is_file():
        return None
    try:
        return TypeAdapter(wanted).validate_json(path.read_bytes())
    except ValidationError as error:
        remarks.append(f"{path.name}: left out, it cannot be read ({_reason(error)}).")
        return None


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong and where, without quoting what the file holds."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
