"""The whole state of a run, written so that it can be killed at any moment.

A checkpoint is a folder: raw.safetensors and ema.safetensors (each a model that `maskdm.load` reads),
optimiser.safetensors, and state.json. It is written under another name, flushed to disk, and renamed: a folder called
step-* is whole. There is no random state in it, since all randomness follows from (seed, stage, step).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from maskdm.errors import InputError
from maskdm.models import weights
from maskdm.models.weights import Facts, Weights
from maskdm.runtime.distributed import Runtime

NAME = "step-{:07d}"


@dataclass
class Progress:
    """How far a run is. `step`, `images` and `seconds` count over all stages, `stage_*` within the current one.

    `recorded` is the length in bytes of metrics.jsonl when this was saved; a resumed run goes on from there.
    `micro_batch` is how many images this stage computes at once on a rank, None for all of the rank's.
    """

    stage: int = 0
    stage_step: int = 0
    stage_seconds: float = 0.0
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    stage_done: bool = False
    recorded: int = 0
    micro_batch: int | None = None

    def advance(self, images: int, seconds: float) -> None:
        """One step more."""
        self.stage_step, self.step, self.images = self.stage_step + 1, self.step + 1, self.images + images
        self.stage_seconds, self.seconds = self.stage_seconds + seconds, self.seconds + seconds


@dataclass
class State:
    """All that training changes; each thing is listed here once.

    Attributes:
        model: the bare network, raw weights.
        ema: the same network, averaged weights.
        optimiser, scaler: of the current stage.
        progress: see `Progress`.
    """

    model: nn.Module
    ema: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress


@dataclass(frozen=True)
class Whole:
    """The tensors of a state, gathered from all ranks: what a checkpoint holds."""

    raw: dict[str, Tensor]
    ema: dict[str, Tensor]
    moments: dict[str, Tensor]


def whole(state: State, runtime: Runtime) -> Whole:
    """Gathers a state; all ranks must do so at the same time."""
    moments = {f"{name}/{key}": runtime.whole(t).detach().cpu().contiguous() for name, key, t in _moments(state)}
    return Whole(runtime.state_of(state.model), runtime.state_of(state.ema), moments)


def save(folder: Path, state: State, tensors: Whole, model: Weights, keep: int) -> Path:
    """Writes checkpoint `step-N` into `folder`, points `latest` at it, and removes all but the newest `keep`."""
    final = folder / NAME.format(state.progress.step)
    temporary = folder / f".{final.name}.{os.getpid()}"
    clear(folder)
    try:
        _write(temporary, state, tensors, model)
        if final.exists():  # a resumed run that ends where it began: the same step is the same state
            shutil.rmtree(temporary)
        else:
            temporary.rename(final)
            _flush(folder)
    except BaseException:  # a full disk needs the room
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _point(folder / "latest", final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old.rename(folder / f".{old.name}"))  # renamed first: what is called step-* is whole
    return final


def clear(folder: Path) -> None:
    """Removes what a killed process left; who calls this holds the run's lock."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left)


def _write(folder: Path, state: State, tensors: Whole, model: Weights) -> None:
    """The files of one checkpoint, flushed."""
    folder.mkdir(parents=True)
    for which, values in (("raw", tensors.raw), ("ema", tensors.ema)):
        facts: Facts = {"which": which, "steps": state.progress.step, "images": state.progress.images}
        weights.save(folder / f"{which}.safetensors", Weights(model.spec, model.facts | facts, values))
    weights.write_tensors(folder / "optimiser.safetensors", tensors.moments)
    facts_of_state = {"progress": asdict(state.progress), "scaler": state.scaler.state_dict()}
    (folder / "state.json").write_text(json.dumps(facts_of_state, indent=2) + "\n")
    for file in folder.iterdir():
        _flush(file)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    found = checkpoints(folder)
    return found[-1] if found else None


def restore(folder: Path, state: State, runtime: Runtime) -> None:
    """Puts the checkpoint in `folder` into `state`, whose parts were made for the checkpoint's stage.

    Raises:
        InputError: it cannot be read or belongs to another model.
    """
    try:
        for which, network in (("raw", state.model), ("ema", state.ema)):
            file = folder / f"{which}.safetensors"
            weights.restore(network, weights.read(file).tensors, file, runtime.fill)
        _set_moments(state, load_file(folder / "optimiser.safetensors"), runtime)
        state.scaler.load_state_dict(json.loads((folder / "state.json").read_text())["scaler"])
        state.progress = read_progress(folder)
    except (InputError, OSError, SafetensorError, ValueError, KeyError) as error:
        raise _damaged(folder, error) from None


def read_progress(folder: Path) -> Progress:
    """How far the checkpoint in `folder` is.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return Progress(**json.loads((folder / "state.json").read_text())["progress"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from None


def _damaged(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder} is not a readable checkpoint ({error}); remove it to go on from the one before")


def _moments(state: State) -> Iterator[tuple[str, str, Tensor]]:
    """(parameter, name of the moment, tensor) for everything the optimiser holds."""
    for name, parameter in state.model.named_parameters():
        for key, tensor in state.optimiser.state[parameter].items():
            yield name, key, tensor


def _set_moments(state: State, tensors: dict[str, Tensor], runtime: Runtime) -> None:
    parameters = dict(state.model.named_parameters())
    state.optimiser.state.clear()
    for key, tensor in tensors.items():
        name, _, moment = key.rpartition("/")
        parameter = parameters[name]
        # AdamW's fused kernels want every moment, the step count too, beside its parameter.
        state.optimiser.state[parameter][moment] = runtime.part(tensor, parameter)


def publish(source: Path, target: Path) -> None:
    """`source` under another name too, put there in one step: a hard link where the disk has them, else a copy."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def _flush(path: Path) -> None:
    """To disk, so that a rename never outlives its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point(link: Path, target: Path) -> None:
    """A relative link, replaced in one step; where links cannot be made there is none, and nothing needs it."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name, target_is_directory=True)
        temporary.replace(link)
