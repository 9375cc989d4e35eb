"""How far a run is: what its newest checkpoint says, without the tensors in it (no torch)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from maskdm.errors import InputError

CHECKPOINT_NAME = "step-{:07d}"
"""Of a checkpoint's folder, by the steps so far; sorted by name they are sorted by time."""


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
    try:
        return Progress(**json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["progress"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged_checkpoint(checkpoint, error) from None


def damaged_checkpoint(checkpoint: Path, error: Exception) -> InputError:
    """What to say of a checkpoint that `error` kept from being read."""
    return InputError(
        str(checkpoint),
        f"is not a readable checkpoint ({error})",
        remedy="remove it to resume from the one before",
    )
