"""The weights that stages start from, where these are of another run: looked at before anything is trained."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from maskdm.data.manifest import HEAD, read_manifest
from maskdm.errors import InputError, within
from maskdm.models import transfer
from maskdm.runtime.console import Console
from maskdm.training.prepare import Prepared
from maskdm.training.progress import list_checkpoints, read_progress


def check_origins(prepared: Prepared, run: Path | None) -> None:
    """Reads the weights that a stage still to come starts from, to refuse here what would fail there.

    Raises:
        InputError: they cannot be read, or are those of another network.
    """
    begun = _saved_stage(run) if run else -1
    for i, stage in enumerate(prepared.config.stages):
        if i > begun and stage.init_from not in ("previous", "none"):
            with within(f"stages.{i}."):
                transfer.read_fitting(prepared.stage_spec(i), Path(stage.init_from), stage.weights)


def _saved_stage(run: Path) -> int:
    """The stage of the newest checkpoint that says it, -1 where none does."""
    for checkpoint in reversed(list_checkpoints(run / "checkpoints")):
        with suppress(InputError):
            return read_progress(checkpoint).stage
    return -1


def warn_of_parents(prepared: Prepared, console: Console) -> None:
    """Says where a run that a stage starts from was trained on images that are held out here."""
    here = dict(zip(prepared.dataset.images.sha256, prepared.dataset.roles, strict=True))
    for i, stage in enumerate(prepared.config.stages):
        origin = Path(stage.init_from)
        runs = [folder for folder in (origin, *origin.parents) if (folder / HEAD).is_file()]
        if stage.init_from in ("previous", "none") or not runs:
            continue
        known = {record.sha256 for record in read_manifest(runs[0]).records if record.role == "member"}
        unseen = [digest for digest, role in here.items() if role != "member"]
        seen = sum(digest in known for digest in unseen)
        if seen:
            console.warn(
                f"stages.{i}.init_from: {runs[0]} was trained on {seen} of the {len(unseen)} images that are held out "
                "or for calibration here, so neither the held-out error nor an audit says what it should; use the "
                "data.salt and data.group_by of that run"
            )
