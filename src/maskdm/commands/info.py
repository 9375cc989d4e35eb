"""`maskdm info`: what a run or a weights file is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from maskdm.errors import InputError
from maskdm.models import weights
from maskdm.models.spec import ModelSpec
from maskdm.models.weights import Metadata
from maskdm.training.events import NoiseRange
from maskdm.training.read_run import is_run, read_run


@dataclass(frozen=True)
class RunInfo:
    """How far a run is.

    Attributes:
        path: its folder.
        finished: whether its last stage has ended.
        step, images, seconds: of training when it was last saved; all 0 where nothing has been saved yet.
        error_ema, error_raw: last held-out errors of the averaged and the raw weights, or None.
        heldout: images that these were measured on.
        heldout_size: their (height, width), where the stage had smaller ones than the run's model; else None.
        by_noise: the same errors by range of noise level; empty where they were not recorded.
    """

    path: Path
    finished: bool
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    error_ema: float | None = None
    error_raw: float | None = None
    heldout: int = 0
    heldout_size: tuple[int, int] | None = None
    by_noise: tuple[NoiseRange, ...] = ()


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself.

    Attributes:
        file: where it is.
        spec: the model, its process and the size of its images.
        parameters: numbers in the backbone.
        metadata: how it came to be: which average, stage, steps, images, ...
        nan_tensor: the first tensor that holds NaN, or None; such weights sample nothing.
    """

    file: Path
    spec: ModelSpec
    parameters: int
    metadata: Metadata
    nan_tensor: str | None = None


@dataclass(frozen=True)
class Info:
    """What a path is: a run, weights, or a run with weights; either may be None."""

    run: RunInfo | None
    weights: WeightsInfo | None


def info(model: str | Path) -> Info:
    """What a run or a weights file is.

    Args:
        model: a run's folder, a checkpoint's, or a .safetensors file.

    Returns:
        How far the run is, where it is one, and what the weights are, where there are any yet.

    Raises:
        InputError: neither a run nor weights, or weights that are damaged.

    Example:
        >>> info("runs/00000-photos").run.finished
        True
    """
    path = Path(model)
    if not is_run(path):
        return Info(None, _weights(weights.find_weights(path)))
    try:
        file = weights.find_weights(path)
    except InputError:
        return Info(_run(path), None)
    return Info(_run(path), _weights(file))


def _run(path: Path) -> RunInfo:
    found = read_run(path)
    progress, errors = found.progress, found.history.heldout
    return RunInfo(
        path=path,
        finished=found.history.finished,
        step=0 if progress is None else progress.step,
        images=0 if progress is None else progress.images,
        seconds=0.0 if progress is None else progress.seconds,
        error_ema=errors[-1].error_ema if errors else None,
        error_raw=errors[-1].error_raw if errors else None,
        heldout=errors[-1].n if errors else 0,
        heldout_size=errors[-1].image_size if errors else None,
        by_noise=errors[-1].by_noise if errors else (),
    )


def _weights(file: Path) -> WeightsInfo:
    read = weights.read_weights(file)
    parameters = sum(tensor.numel() for tensor in read.tensors.values())
    return WeightsInfo(file, read.spec, parameters, read.metadata, weights.nan_tensor(read.tensors))
