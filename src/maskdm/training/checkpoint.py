"""The whole state of a run, written so that it can be killed at any moment.

A checkpoint is a folder: raw.safetensors and ema.safetensors (each a model that `maskdm.load` reads),
optimizer.safetensors, and state.json, which has the SHA-256 of the others. It is written under another name, flushed to
disk, and renamed: a folder called step-* is whole, and what a disk does to it later is noticed when it is resumed.
There is no random state in it, since all randomness follows from (seed, stage, step).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from maskdm import files
from maskdm.errors import InputError, StorageError
from maskdm.models import weights
from maskdm.models.weights import Metadata, Weights
from maskdm.runtime.distributed import Runtime
from maskdm.training.buffers import Buffers
from maskdm.training.progress import (
    CHECKPOINT_NAME,
    Progress,
    check_checkpoint,
    damaged_checkpoint,
    list_checkpoints,
    read_state,
    write_state_file,
)

MOMENTS = "optimizer.safetensors"
DAMAGED = "damaged-"
"""Before the name of a checkpoint that was found damaged; nothing reads it any more."""


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

    def replace_networks(self, model: nn.Module, ema: nn.Module) -> None:
        """Other networks from here on, for other images; the optimizer is still that of the old ones."""
        self.model, self.ema = model, ema
        for name in ("buffers", "ema_buffers"):
            self.__dict__.pop(name, None)

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


def save_checkpoint(
    folder: Path, state: State, tensors: FullState, model: Weights, keep: int, config_sha256: str | None = None
) -> Path:
    """Writes checkpoint `step-N` into `folder`, points `latest` at it, and removes all but the newest `keep`.

    Args:
        folder: the run's checkpoints.
        state: what is saved.
        tensors: of the state, gathered.
        model: what weights files say of themselves; its tensors are not looked at.
        keep: how many checkpoints stay.
        config_sha256: of the run's config.yaml, which is then known to be as it was when the run is resumed.

    Returns:
        The checkpoint.

    Raises:
        StorageError: it cannot be written; what was saved before is intact.
    """
    final = folder / CHECKPOINT_NAME.format(state.progress.step)
    temporary = files.temporary_name(final)
    try:
        clear_unfinished(folder)
        _write(temporary, state, tensors, model, config_sha256)
        if final.exists():  # a resumed run that ends where it began: the same step is the same state
            shutil.rmtree(temporary)
        else:
            temporary.rename(final)
            files.flush(folder)
        # Where links cannot be made nothing needs this one.
        with suppress(OSError), files.replacing(folder / "latest") as link:
            link.symlink_to(final.name, target_is_directory=True)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old.rename(files.temporary_name(old)))  # renamed first: what is called step-* is whole
    except BaseException as error:  # a full disk needs the room
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise StorageError(f"cannot write {final}: {error.strerror or error}") from None
        raise
    return final


def find_sound_checkpoint(folder: Path, warn: Callable[[str], object]) -> Path | None:
    """The newest checkpoint that is as it was written, None where nothing has been saved.

    A newer one that is not is set aside under the name damaged-step-*, and said.

    Args:
        folder: the run's checkpoints.
        warn: called with a line about every checkpoint that is set aside.

    Raises:
        InputError: there are checkpoints, but none is as it was written; then all stay where they are.
        StorageError: one cannot be set aside.
    """
    damaged: list[tuple[Path, InputError]] = []
    sound = None
    for candidate in reversed(list_checkpoints(folder)):
        try:
            check_checkpoint(candidate)
        except InputError as error:
            damaged.append((candidate, error))
            continue
        sound = candidate
        break
    if damaged and sound is None:
        raise damaged[0][1]
    for path, why in damaged:
        aside = path.with_name(DAMAGED + path.name)
        try:
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        except OSError as fault:
            raise StorageError(f"cannot move {path}: {fault.strerror or fault}") from None
        warn(f"{path} {why.problem}; it is kept as {aside.name}, and training goes on from {sound}")
    return sound


def clear_unfinished(folder: Path) -> None:
    """Removes what a killed process left; who calls this holds the run's lock."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left)


def publish_weights(saved: Path, folder: Path, stage: str | None = None) -> None:
    """The weights of the checkpoint `saved` in `folder`, where others look; those that ended `stage` by its name too.

    Raises:
        StorageError: they cannot be written.
    """
    for source in (saved / "ema.safetensors", saved / "raw.safetensors"):
        files.publish(source, folder / source.name)
        if stage is not None:
            files.publish(source, folder / f"{stage}-{source.name}")


def _write(folder: Path, state: State, tensors: FullState, model: Weights, config_sha256: str | None) -> None:
    """The files of one checkpoint, flushed."""
    folder.mkdir()  # and none above it: a run that was removed does not come back in part
    for which, values in (("raw", tensors.raw), ("ema", tensors.ema)):
        metadata: Metadata = {"which": which, "steps": state.progress.step, "images": state.progress.images}
        weights.write_weights(folder / f"{which}.safetensors", Weights(model.spec, model.metadata | metadata, values))
    weights.write_tensors(folder / MOMENTS, tensors.moments)
    write_state_file(folder, state.progress, state.scaler.state_dict(), config_sha256)
    files.flush(folder)


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
        progress, scaler = read_state(folder)
        if scaler:  # saved under fp16; from another precision loss scaling starts anew
            state.scaler.load_state_dict(scaler)
    except (InputError, OSError, SafetensorError, ValueError, KeyError) as error:
        raise damaged_checkpoint(folder, error) from None
    state.progress = progress


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
