"""The whole state of a run, written so that it can be killed at any moment.

A checkpoint is a folder: raw.safetensors and ema.safetensors (each a model that `maskdm.load` reads),
optimizer.safetensors, and state.json. It is written under another name, flushed to disk, and renamed: a folder called
step-* is whole. There is no random state in it, since all randomness follows from (seed, stage, step).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from maskdm import files
from maskdm.errors import InputError
from maskdm.models import weights
from maskdm.models.weights import Metadata, Weights
from maskdm.runtime.distributed import Runtime
from maskdm.training.buffers import Buffers
from maskdm.training.progress import (
    CHECKPOINT_NAME,
    Progress,
    damaged_checkpoint,
    list_checkpoints,
    read_progress,
)

MOMENTS = "optimizer.safetensors"


@dataclass
class State:
    """All that training changes; each thing is listed here once.

    Attributes:
        model: the bare network, raw weights.
        ema: the same network, averaged weights.
        optimizer, scaler: of the current stage.
        progress: see `Progress`.
    """

    model: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress

    @cached_property
    def buffers(self) -> Buffers:
        """Those of the network."""
        return Buffers(self.model)

    @cached_property
    def ema_buffers(self) -> Buffers:
        """Those that belong to the averaged weights."""
        return Buffers(self.ema)


@dataclass(frozen=True)
class FullState:
    """The tensors of a state, gathered from all ranks: what a checkpoint holds.

    Attributes:
        raw, ema: state dicts of the network.
        moments: of the optimizer, as "<parameter>/<moment>".
    """

    raw: dict[str, Tensor]
    ema: dict[str, Tensor]
    moments: dict[str, Tensor]


def gather_state(state: State, runtime: Runtime) -> FullState:
    """Gathers a state; all ranks must do so at the same time."""
    moments = {f"{name}/{key}": runtime.full_tensor(t).detach().cpu().contiguous() for name, key, t in _moments(state)}
    return FullState(runtime.full_state_dict(state.model), runtime.full_state_dict(state.ema), moments)


def save_checkpoint(folder: Path, state: State, tensors: FullState, model: Weights, keep: int) -> Path:
    """Writes checkpoint `step-N` into `folder`, points `latest` at it, and removes all but the newest `keep`.

    Args:
        folder: the run's checkpoints.
        state: what is saved.
        tensors: of the state, gathered.
        model: what weights files say of themselves; its tensors are not looked at.
        keep: how many checkpoints stay.

    Returns:
        The checkpoint.

    Raises:
        StorageError: it cannot be written; what was saved before is intact.
    """
    final = folder / CHECKPOINT_NAME.format(state.progress.step)
    temporary = files.temporary_name(final)
    clear_unfinished(folder)
    try:
        _write(temporary, state, tensors, model)
        if final.exists():  # a resumed run that ends where it began: the same step is the same state
            shutil.rmtree(temporary)
        else:
            temporary.rename(final)
            files.flush(folder)
    except BaseException:  # a full disk needs the room
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    with suppress(OSError), files.replacing(folder / "latest") as link:  # where links cannot be made, nothing needs it
        link.symlink_to(final.name, target_is_directory=True)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old.rename(files.temporary_name(old)))  # renamed first: what is called step-* is whole
    return final


def clear_unfinished(folder: Path) -> None:
    """Removes what a killed process left; who calls this holds the run's lock."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left)


def _write(folder: Path, state: State, tensors: FullState, model: Weights) -> None:
    """The files of one checkpoint, flushed."""
    folder.mkdir(parents=True)
    for which, values in (("raw", tensors.raw), ("ema", tensors.ema)):
        metadata: Metadata = {"which": which, "steps": state.progress.step, "images": state.progress.images}
        weights.write_weights(folder / f"{which}.safetensors", Weights(model.spec, model.metadata | metadata, values))
    weights.write_tensors(folder / MOMENTS, tensors.moments)
    files.write_json(folder / "state.json", {"progress": asdict(state.progress), "scaler": state.scaler.state_dict()})
    for file in folder.iterdir():
        files.flush(file)


def restore_checkpoint(folder: Path, state: State, runtime: Runtime) -> None:
    """Puts the checkpoint in `folder` into `state`, whose parts were made for the checkpoint's stage.

    Raises:
        InputError: it cannot be read or belongs to another model.
    """
    try:
        for which, network in (("raw", state.model), ("ema", state.ema)):
            file = folder / f"{which}.safetensors"
            weights.load_state(network, weights.read_weights(file).tensors, file, runtime.load_full_state_dict)
        _set_moments(state, load_file(folder / MOMENTS), runtime)
        scale = json.loads((folder / "state.json").read_text(encoding="utf-8"))["scaler"]
        if scale:  # saved under fp16; from another precision loss scaling starts anew
            state.scaler.load_state_dict(scale)
    except (InputError, OSError, SafetensorError, ValueError, KeyError) as error:
        raise damaged_checkpoint(folder, error) from None
    state.progress = read_progress(folder)


def _moments(state: State) -> Iterator[tuple[str, str, Tensor]]:
    """(parameter, name of the moment, tensor) for everything the optimizer holds."""
    for name, parameter in state.model.named_parameters():
        for key, tensor in state.optimizer.state[parameter].items():
            yield name, key, tensor


def _set_moments(state: State, tensors: dict[str, Tensor], runtime: Runtime) -> None:
    parameters = dict(state.model.named_parameters())
    state.optimizer.state.clear()
    for key, tensor in tensors.items():
        name, _, moment = key.rpartition("/")
        parameter = parameters[name]
        # AdamW's fused kernels want every moment, the step count too, beside its parameter.
        state.optimizer.state[parameter][moment] = runtime.shard_like(tensor, parameter)
