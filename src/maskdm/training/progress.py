"""How far a run is: what its newest checkpoint says, without the tensors in it (no torch)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskdm.errors import InputError
from maskdm.files import digest, write_json

CHECKPOINT_NAME = "step-{:07d}"
"""Of a checkpoint's folder, by the steps so far; sorted by name they are sorted by time."""
STATE = "state.json"
"""File of a checkpoint that says how far it is, and what its other files are."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What is raised by a state.json that is damaged, or of another version."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        stage: the current one, from 0.
        stage_step, stage_seconds: steps and seconds of training within it.
        step, images, seconds: likewise over all stages.
        stage_done: whether the stage is over.
        recorded: length in bytes of metrics.jsonl when this was saved; a resumed run continues from there.
        micro_batch: images that this stage computes at once on a rank, None for all of the rank's.
        precision: of the network when this was saved: bf16, fp16 or no; None where that is not on record.
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
    precision: str | None = None

    def advance(self, images: int, seconds: float) -> None:
        """One step more."""
        self.stage_step, self.step, self.images = self.stage_step + 1, self.step + 1, self.images + images
        self.spend(seconds)

    def spend(self, seconds: float) -> None:
        """So much time more."""
        self.stage_seconds, self.seconds = self.stage_seconds + seconds, self.seconds + seconds


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in a run's `checkpoints` folder, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole one, None where nothing has been saved."""
    found = list_checkpoints(folder)
    return found[-1] if found else None


def read_progress(checkpoint: Path) -> Progress:
    """How far the run was when this checkpoint was saved.

    Raises:
        InputError: it cannot be read.
    """
    return read_state(checkpoint)[0]


def write_state_file(checkpoint: Path, progress: Progress, scaler: Mapping[str, Any], config: str | None) -> None:
    """state.json, written last of a checkpoint: how far it is, and what its other files are to the last bit.

    Args:
        checkpoint: the folder, whose other files are there.
        progress: how far the run is.
        scaler: state of the loss scaling.
        config: sha256 of the run's config.yaml, None where there is none.

    Raises:
        StorageError: it cannot be written.
    """
    digests = {path.name: digest(path) for path in sorted(checkpoint.iterdir())}
    state = {"progress": asdict(progress), "scaler": scaler, "config": config, "files": digests}
    write_json(checkpoint / STATE, state | {"sha256": _sha256(state)})


def read_state(checkpoint: Path) -> tuple[Progress, dict[str, Any]]:
    """How far a checkpoint is, and the state of its loss scaling, from a state.json that is as it was written.

    Raises:
        InputError: it cannot be read.
    """
    try:
        state = _read(checkpoint)
        return Progress(**state["progress"]), dict(state["scaler"])
    except UNREADABLE as error:
        raise damaged_checkpoint(checkpoint, error) from None


def recorded_config(checkpoint: Path) -> str | None:
    """The sha256 that the run's config.yaml had when this was saved; None where that is not known."""
    try:
        found = _read(checkpoint).get("config")
    except UNREADABLE:
        return None
    return None if found is None else str(found)


def check_checkpoint(checkpoint: Path) -> None:
    """Compares every file with what was written; one of an earlier version has no record of that.

    The price is that of reading the files once, at the speed of SHA-256: about 1 GB a second on one core.

    Raises:
        InputError: a file is missing, or a bit of it is another.
    """
    read_state(checkpoint)
    try:
        for name, expected in _read(checkpoint).get("files", {}).items():
            if digest(checkpoint / name) != expected:
                raise ValueError(f"{name} is not as it was written")
    except UNREADABLE as error:
        raise damaged_checkpoint(checkpoint, error) from None


def _read(checkpoint: Path) -> dict[str, Any]:
    """What state.json holds, if it is as it was written."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise ValueError(f"{STATE} holds no state")
    expected = state.pop("sha256", None)
    # One flipped bit may hide either of the two, and the other tells of it. An earlier version wrote neither.
    if ("files" in state or expected is not None) and expected != _sha256(state):
        raise ValueError(f"{STATE} is not as it was written")
    return state


def _sha256(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def damaged_checkpoint(checkpoint: Path, error: Exception) -> InputError:
    """What to say of a checkpoint that `error` kept from being read."""
    return InputError(
        str(checkpoint),
        f"is not a readable checkpoint ({' '.join(str(error).split())})",
        remedy="remove it to resume from the one before, or start again with --resume never",
    )
