"""What a run has written, read for people: tolerant of what is missing or cut off, and open about what it skipped."""

from __future__ import annotations

import io
import re
from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from maskdm.errors import InputError

COUNTS = ("member", "heldout", "calibration", "excluded")


class Stage(BaseModel):
    """A stage begins. `step` and `images`, here and below, count over all stages."""

    event: Literal["stage"]
    stage: str
    index: int
    step: int
    images: int
    mask: str = ""
    hidden: float | None = None  # share of the patches on average, kept from the middle of the network for kind route
    patches: int | None = None
    batch_size: int | None = None
    target_steps: int | None = None
    started_from: str = ""


class Train(BaseModel):
    """The optimiser's view; `seconds` of training so far, over all stages."""

    event: Literal["train"]
    stage: str
    step: int
    images: int
    seconds: FiniteFloat
    loss: float | None = None
    grad_norm: float | None = None
    lr: float | None = None
    images_per_second: float | None = None


class Heldout(BaseModel):
    """The error on `n` held-out pictures, with the averaged weights and with those being trained.

    It is of the estimated image, see `maskdm.diffusion.loss.image_error`: another unit than that of the training loss.
    """

    event: Literal["heldout"]
    stage: str
    step: int
    images: int
    loss_ema: float | None = None
    loss_raw: float | None = None
    n: int | None = None
    seconds: float | None = None


class Distance(BaseModel):
    """Pictures of the averaged weights against held-out ones: `title` names the distance and its features."""

    event: Literal["score"]
    stage: str
    step: int
    images: int
    title: str = "Frechet distance"
    frechet_distance: float | None = None
    n: int | None = None


class StageEnd(BaseModel):
    event: Literal["stage_end"]
    stage: str
    step: int
    images: int
    seconds: FiniteFloat


class End(BaseModel):
    event: Literal["end"]
    step: int
    images: int
    seconds: FiniteFloat


class Stopped(BaseModel):
    event: Literal["stopped"]
    step: int
    reason: str = ""


Event = Stage | Train | Heldout | Distance | StageEnd | End | Stopped
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


class Score(BaseModel):
    name: str
    value: float | None = None
    error: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None


class Scores(BaseModel):
    """One file of `eval/`: a table, and the command that makes its numbers again."""

    title: str
    command: str = ""
    note: str = ""
    rows: list[Score] = []


@dataclass(frozen=True)
class Grid:
    """A picture of samples; `step` is None for the one made at the end."""

    path: Path
    step: int | None


@dataclass(frozen=True)
class Picture:
    """The bytes of a PNG that was seen to be whole, and its size in pixels."""

    png: bytes
    width: int
    height: int


@dataclass
class History:
    """`metrics.jsonl`, put in order: what a resumed run has done over again counts once, as done last."""

    stages: list[Stage] = field(default_factory=list)
    train: list[Train] = field(default_factory=list)
    heldout: list[Heldout] = field(default_factory=list)
    distances: list[Distance] = field(default_factory=list)
    stage_ends: list[StageEnd] = field(default_factory=list)
    last: Event | None = None

    def add(self, event: Event) -> None:
        self.last = event
        match event:
            case Stage():
                _append(self.stages, event)
            case Train():
                _append(self.train, event)
            case Heldout():
                _append(self.heldout, event)
            case Distance():
                _append(self.distances, event)
            case StageEnd():
                _append(self.stage_ends, event)
            case End() | Stopped():
                pass

    @property
    def step(self) -> int:
        return max((e.step for e in self._all()), default=0)

    @property
    def images(self) -> int:
        return self.images_at(self.step)

    @property
    def seconds(self) -> float:
        return self.seconds_at(self.step)

    @property
    def heldout_error(self) -> float | None:
        """The latest one of the averaged weights."""
        return next((e.loss_ema for e in reversed(self.heldout) if _finite(e.loss_ema)), None)

    def images_at(self, step: int) -> int:
        """Images seen at `step`. The batch size is constant within a stage, so a straight line between is exact."""
        known = {e.step: e.images for e in self._all() if not isinstance(e, Stopped)}
        return round(float(np.interp(step, sorted(known), [known[s] for s in sorted(known)]))) if known else 0

    def seconds_at(self, step: int) -> float:
        """Seconds of training up to `step`, by the last record that is not beyond it."""
        timed = [e.seconds for e in self._all() if isinstance(e, Train | StageEnd | End) and e.step <= step]
        return max(timed, default=0.0)

    def stage_at(self, step: int) -> Stage | None:
        """The stage whose steps led to `step`: at the boundary of two, the earlier."""
        return self.stages[max(0, bisect_left(self.stages, step, key=lambda s: s.step) - 1)] if self.stages else None

    def _all(self) -> list[Event]:
        ending = [self.last] if isinstance(self.last, End | Stopped) else []
        return [*self.stages, *self.train, *self.heldout, *self.distances, *self.stage_ends, *ending]


@dataclass(frozen=True)
class RunFolder:
    """Everything the report shows, and in `remarks` what could not be read."""

    name: str
    history: History
    config: Mapping[str, Any]
    env: Mapping[str, Any]
    counts: Mapping[str, int]
    scores: list[Scores]
    grids: list[Grid]
    remarks: list[str]


def read_run(run: Path) -> RunFolder:
    """Read the run folder `run`: its settings, environment, history, scores, and where its grids are."""
    if not run.is_dir():
        raise InputError(
            f"run folder: got {str(run)!r}, wanted an existing folder; give the folder that training wrote"
        )
    if not any((run / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        raise InputError(
            f"run folder: got {str(run)!r} without config.yaml and metrics.jsonl, wanted a folder that training wrote; "
            "give the run itself, not the folder above it"
        )
    remarks: list[str] = []
    return RunFolder(
        name=run.resolve().name,
        history=_history(run / "metrics.jsonl", remarks),
        config=_config(run / "config.yaml", remarks),
        env=_json(run / "env.json", dict[str, Any], remarks) or {},
        counts=_counts(run / "manifest.head.json", remarks),
        scores=[s for path in sorted((run / "eval").glob("*.json")) if (s := _json(path, Scores, remarks))],
        grids=_grids(run / "samples"),
        remarks=remarks,
    )


def read_picture(grid: Grid) -> Picture | None:
    """The picture of `grid`, or None if the file is no whole PNG, as when it was being written."""
    try:
        png = grid.path.read_bytes()
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.load()
            return Picture(png, image.width, image.height)
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for broken files, depending on where they break
        return None


Timed = TypeVar("Timed", Stage, Train, Heldout, Distance, StageEnd)
Read = TypeVar("Read")


def _append(events: list[Timed], event: Timed) -> None:
    """Add `event`, and drop those it supersedes: a resumed run goes back to its checkpoint and does them again."""
    while events and _place(events[-1]) >= _place(event):
        superseded = events.pop()
        if isinstance(superseded, Stage) and isinstance(event, Stage) and superseded.index == event.index:
            # A stage that goes on began where it first began.
            event.step, event.images = min((superseded.step, superseded.images), (event.step, event.images))
    events.append(event)


def _place(event: Stage | Train | Heldout | Distance | StageEnd) -> int:
    return event.index if isinstance(event, Stage) else event.step


def _finite(number: float | None) -> bool:
    return number is not None and np.isfinite(number).item()


def _history(path: Path, remarks: list[str]) -> History:
    history = History()
    if not path.is_file():
        return history
    *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
    damaged = 0
    for line in filter(str.strip, lines):
        try:
            history.add(EVENT.validate_json(line))
        except ValidationError as error:
            # A kind that the report does not know is no damage: a later version may have written it.
            damaged += error.errors()[0]["type"] != "union_tag_invalid"
    with suppress(ValidationError):  # without its line break it was being written, which is no fault either
        history.add(EVENT.validate_json(last))
    if damaged:
        remarks.append(f"{path.name}: {damaged} damaged {'line' if damaged == 1 else 'lines'} left out.")
    return history


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


def _counts(path: Path, remarks: list[str]) -> dict[str, int]:
    """Of the manifest nothing but four numbers: the report may be shared, and names of pictures may not."""
    head = _json(path, dict[str, Any], remarks) or {}
    counts = head.get("counts")
    if not isinstance(counts, dict):
        return {}
    return {name: counts[name] for name in COUNTS if isinstance(counts.get(name), int)}


def _config(path: Path, remarks: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, ValueError) as error:
        remarks.append(f"{path.name}: left out, it cannot be read ({' '.join(str(error).split())}).")
        return {}
    return config if isinstance(config, dict) else {}


def _grids(folder: Path) -> list[Grid]:
    """In the order they were made, the final one last."""
    steps = [
        Grid(path, int(found[1])) for path in folder.glob("*.png") if (found := re.fullmatch(r"step-(\d+)", path.stem))
    ]
    final = folder / "final.png"
    return [*sorted(steps, key=lambda g: g.step or 0), *([Grid(final, None)] if final.is_file() else [])]
