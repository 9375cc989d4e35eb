"""`maskdm eval`: a model's images, or images generated before, against real ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from maskdm import __version__
from maskdm.commands.arguments import Precision, is_model, open_model
from maskdm.data.dataset import default_cache
from maskdm.diffusion.denoiser import Denoiser
from maskdm.errors import InputError, within
from maskdm.evaluation.evaluate import (
    check_evaluation,
    generate_like,
    load_generated,
    load_reference,
    reference_features,
)
from maskdm.evaluation.features import Features
from maskdm.evaluation.scores import (
    Reference,
    Score,
    evaluate_images,
    keep_scores,
    sample_size_note,
    write_scores,
)
from maskdm.files import check_folder
from maskdm.reports.run_page import write_run_page
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import init_distributed
from maskdm.training.read_run import is_run, read_data_config


@dataclass(frozen=True)
class EvaluationResult:
    """What came out; empty on ranks other than the first.

    Attributes:
        scores: every score that the reference allows.
        features: in which they were taken, weights included: only scores in the same features compare.
        note: what few images do to these numbers.
        files: what was written: the scores in the run's `eval` folder and its page, and `output`.
    """

    scores: tuple[Score, ...] = ()
    features: str = ""
    note: str = ""
    files: tuple[Path, ...] = ()


def evaluate(
    subject: str | Path,
    reference: str | Path | None = None,
    features: str = "pixels",
    *,
    data: str | Path | None = None,
    features_weights: str | Path | None = None,
    num: int = 1000,
    sampler: str = "dpm++",
    steps: int = 25,
    guidance: float = 1.0,
    first_seed: int = 0,
    weights: str = "ema",
    backbone: str | type[nn.Module] | None = None,
    mixed_precision: Precision = "no",
    bootstrap: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    output: str | Path | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> EvaluationResult:
    """Scores generated images against real ones: Fréchet distance, KID, precision, recall, density, coverage.

    Scores of a run are kept in its `eval` folder, and its page shows them. Under torchrun the images of a model are
    sampled across the ranks, and the first one scores them.

    Args:
        subject: a run or a weights file, whose images are sampled, or images that were generated before.
        reference: real images, or an .npz with mu and sigma; by default a run's own held-out images.
        features: pixels, inception (the FID), dinov2, clip, encoder, a TorchScript or torch.export file, or
            module:callable.
        data: where the images of a run are, if they were moved since; for its own held-out images.
        features_weights: of inception (a file), dinov2 or clip (a folder), in place of a download.
        num: images to sample from a model.
        sampler: for these; see `maskdm.sample`.
        steps: likewise.
        guidance: likewise.
        first_seed: seeds count from here.
        weights: of a run: ema, raw, or either of a stage (pretrain-ema).
        backbone: the class of a backbone of your own, or its name, module:Class.
        mixed_precision: of the network: bf16 is faster, auto uses it where the device has it.
        bootstrap: resamples for a 95 % interval of the distance, 0 for none.
        batch_size: images at once.
        device: auto, cpu, cuda, ...
        output: a .json that the scores are written to.
        quiet: no progress on standard error.
        command: the command line that this was, kept with the scores.

    Returns:
        The scores, in which features they are, and where they were written.

    Raises:
        InputError: a model or images that cannot be read, features that cannot be had, numbers out of range.

    Example:
        >>> result = maskdm.evaluate("runs/00000-photos", features="encoder", num=2000)
        >>> {score.name: score.value for score in result.scores}
    """
    path = Path(subject)
    features_weights = None if features_weights is None else Path(features_weights)
    check_evaluation(
        features=features, features_weights=features_weights, num=num, batch_size=batch_size, bootstrap=bootstrap
    )
    _check_paths(path, weights, output)
    if data is not None and (reference is not None or not is_run(path)):
        problem = "says where a run's own held-out images are"
        raise InputError("data", problem, remedy="leave it out, or leave out reference and give a run")
    with init_distributed(device) as runtime:
        console = Console(quiet=quiet, main=runtime.main)
        with runtime.main_first():
            denoiser = None
            if is_model(path):
                denoiser = open_model(
                    path, weights=weights, device=runtime.device, backbone=backbone, mixed_precision=mixed_precision
                )
            real = _reference(path, reference, data, denoiser, console)
            measure = None  # the first rank's
            if runtime.main:
                measure = reference_features(
                    features, real, device=runtime.device, features_weights=features_weights, console=console
                )
        if denoiser is None:
            generated = load_generated(path, real, console)
        else:
            generated = generate_like(
                real,
                denoiser,
                num,
                sampler=sampler,
                steps=steps,
                guidance=guidance,
                first_seed=first_seed,
                batch_size=batch_size,
                runtime=runtime,
                console=console,
            )
        result = EvaluationResult()
        if measure is not None:
            result = _score(generated, real, measure, bootstrap, console)
            against = "held-out images" if reference is None else f"{Path(reference).name} {real.sha256[:8]}"
            title = f"{weights} weights in {measure.name}, {len(generated):,} images against {against}"
            files = _keep(result, path, title, command or "")
            if output is not None:
                write_scores(
                    Path(output),
                    result.scores,
                    features=measure,
                    reference=real.sha256,
                    note=result.note,
                    command=command or "",
                    version=__version__,
                )
                files.append(Path(output))
            for file in files:
                console.say(f"{'report' if file.suffix == '.html' else 'scores'}  {file}")
            result = replace(result, files=tuple(files))
        runtime.barrier()
    return result


def _check_paths(path: Path, weights: str, output: str | Path | None) -> None:
    """Refuses, before anything is computed, what is not there and what could not be written."""
    if not path.exists():
        raise InputError("subject", f"{path} does not exist", remedy="give a run, a .safetensors file, or images")
    if Path(weights).is_file():
        remedy = "weights of the features are features_weights"
        raise InputError("weights", got=weights, wanted="ema, raw, or either of a stage (pretrain-ema)", remedy=remedy)
    if output is not None:
        check_folder(Path(output).parent, "output")


def _reference(
    subject: Path, reference: str | Path | None, data: str | Path | None, denoiser: Denoiser | None, console: Console
) -> Reference:
    """What is compared with: `reference`, or a run's own held-out images."""
    run = subject if is_run(subject) else None
    return load_reference(
        None if reference is None else str(reference),
        console,
        denoiser=denoiser,
        run=run,
        data=None if run is None or reference is not None else read_data_config(run, data),
    )


def _score(
    generated: np.ndarray, real: Reference, features: Features, bootstrap: int, console: Console
) -> EvaluationResult:
    """Of (N, H, W, C) uint8 images, with a bar."""
    with within(""), console.bar("features", len(generated) + real.images) as bar:
        scores = evaluate_images(
            generated,
            real,
            features,
            cache_dir=default_cache() / "features",
            resamples=bootstrap,
            callback=bar.update,
        )
    note = sample_size_note(len(generated), None if real.real is None else len(real.real))
    return EvaluationResult(tuple(scores), features.name, note)


def _keep(result: EvaluationResult, subject: Path, title: str, command: str) -> list[Path]:
    """Scores of a run in its folder, and its page; what was written."""
    if not is_run(subject):
        return []
    kept = keep_scores(subject, result.scores, title=title, command=command, note=result.note)
    return [kept, write_run_page(subject)]
