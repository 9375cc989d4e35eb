"""A run that is finished already: what is missing of it is written, and nothing is trained again."""

from __future__ import annotations

from pathlib import Path

from maskdm.files import make_folder
from maskdm.models import build, weights
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime
from maskdm.training.checkpoint import publish_weights
from maskdm.training.monitor import write_samples
from maskdm.training.prepare import Prepared
from maskdm.training.progress import CHECKPOINT_NAME, check_checkpoint, newest_checkpoint
from maskdm.training.read_run import read_history


def complete_run(prepared: Prepared, runtime: Runtime, run: Path, console: Console) -> None:
    """Says that a run is finished, and writes its weights and last grid of samples where these are missing.

    All ranks must do so at the same time.

    Args:
        prepared: its settings and images.
        runtime: the machine.
        run: its folder.
        console: what a person sees.

    Raises:
        InputError: weights are missing, and so is what they could be written from.
        StorageError: a file cannot be written.
    """
    history, config = read_history(run), prepared.config
    console.say(
        f"{run} is finished ({history.step:,} steps, {history.images:,} images): nothing is left to "
        f"train; to train another run, add --resume never, and to start it from these weights, stages.0.init_from={run}"
    )
    if runtime.main:
        _publish_missing(run, config.stages[-1].name, console)
    runtime.barrier()
    grid = run / "samples" / f"{CHECKPOINT_NAME.format(history.step)}.png"
    missing = config.eval.samples > 0 and not grid.exists()
    runtime.barrier()  # before one of the ranks writes it
    if missing:
        make_folder(grid.parent)
        file = weights.find_weights(run, "ema")
        network = build.backbone(prepared.spec)
        weights.load_state(network, weights.read_weights(file).tensors, file)
        denoiser = build.denoiser(prepared.spec, network.to(runtime.device).eval(), prepared.objective)
        own = len(runtime.rank_indices(config.eval.samples))
        with console.sampling_bar("sample grid", own, config.eval.sample_steps) as advance:
            write_samples(denoiser, config.eval, grid, runtime, advance)
        console.say(f"wrote {grid}, which was missing")


def _publish_missing(run: Path, stage: str, console: Console) -> None:
    """The last weights, from the newest checkpoint."""
    folder, saved = run / "weights", newest_checkpoint(run / "checkpoints")
    names = ("ema", "raw", f"{stage}-ema", f"{stage}-raw")
    if saved is None or all((folder / f"{name}.safetensors").is_file() for name in names):
        return
    check_checkpoint(saved)
    make_folder(folder)
    publish_weights(saved, folder, stage)
    console.say(f"wrote the weights in {folder}, of which some were missing")
