"""What `maskdm eval` is made of: a reference, images to compare with it, and the features to compare them in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from maskdm.config.schema import DataConfig
from maskdm.data.arrays import BARE, read_arrays
from maskdm.data.dataset import default_cache, load_image_set, read_unsplit
from maskdm.data.labelled import LabelledImages
from maskdm.data.manifest import read_manifest
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.pixels import to_uint8_nhwc
from maskdm.errors import InputError, within
from maskdm.evaluation.encoder import trains_on_members
from maskdm.evaluation.features import Features, check_features, get_features
from maskdm.evaluation.metrics import Float64
from maskdm.evaluation.scores import Reference
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime
from maskdm.sampling.sample import check_counts, check_images_fit, sample_across_ranks, sampling_config

MIN_RESAMPLES = 20
"""Of the bootstrap: fewer give no interval."""
MAX_TRAIN_IMAGES = 10_000
"""Training images that others are compared with: a sample of them says as much, and takes minutes."""


def check_evaluation(
    *, features: str, features_weights: Path | None, num: int, batch_size: int, bootstrap: int
) -> None:
    """Refuses what no evaluation can be made of, before anything is read.

    Args:
        features, features_weights: see `maskdm.evaluation.features.get_features`.
        num: images to generate.
        batch_size: of them at once.
        bootstrap: resamples for an interval of the distance, or 0.

    Raises:
        InputError: one of them cannot be used; it names the argument.
    """
    with within(""):
        check_features(features, features_weights)
        check_counts(num, batch_size)
    if num < 2:
        raise InputError("num", got=num, wanted="at least 2")
    if bootstrap != 0 and bootstrap < MIN_RESAMPLES:
        raise InputError("bootstrap", got=bootstrap, wanted=f"0 (none) or at least {MIN_RESAMPLES}")


def load_reference(
    reference: str | None,
    console: Console,
    *,
    denoiser: Denoiser | None = None,
    run: Path | None = None,
    data: DataConfig | None = None,
) -> Reference:
    """What images are compared with.

    Args:
        reference: real images (a folder, a file, hf:NAME), or an .npz with mu and sigma; None for the held-out images
            of `run`.
        console: warns of images that cannot be read or have to be resized.
        denoiser: the model whose images they are; the reference is brought to their size.
        run: the run whose images they are, if it is one.
        data: of the settings of `run`.

    Raises:
        InputError: there is no reference, or it cannot be read, or the run has fewer than two held-out images.
    """
    if reference is None:
        if run is None or data is None:
            raise InputError(
                "reference", "missing", remedy="give real images (only a run has held-out images of its own)"
            )
        return _heldout_reference(run, data, console, denoiser)
    statistics = None
    if reference.endswith(".npz"):
        statistics, images_too = read_statistics(Path(reference))
        if statistics is not None and not images_too:
            return Reference(None, statistics)
    with within(""):
        images = load_image_set(reference, console, (*denoiser.image_size, denoiser.channels) if denoiser else None)
    height, width, channels = images.images.shape[1:]
    if denoiser is not None and any(size != (width, height) for size in images.source_sizes):
        console.warn(f"reference: its images are resized to the model's {height} x {width} x {channels}")
    return Reference(images.take(), statistics, class_names=tuple(images.class_names))


def _heldout_reference(run: Path, data: DataConfig, console: Console, denoiser: Denoiser | None) -> Reference:
    """A run's held-out images, and a sample of those that it was trained on, in the size of the model's."""
    manifest = read_manifest(run)
    images = manifest.align(read_unsplit(data, console))
    members, heldout = manifest.indices("member"), manifest.indices("heldout")
    if len(heldout) < 2:
        raise InputError("reference", f"missing, and {run} has {len(heldout)} held-out images", wanted="at least 2")
    if len(members) > MAX_TRAIN_IMAGES:
        members = members[np.linspace(0, len(members) - 1, MAX_TRAIN_IMAGES).round().astype(int)]
    real, train = images.take(heldout), images.take(members)
    if denoiser is not None and denoiser.image_size != images.images.shape[1:3]:
        height, width = denoiser.image_size
        console.warn(f"the stage made images of {height} x {width}: held-out ones are averaged down to that")
        real, train = real.averaged(denoiser.image_size), train.averaged(denoiser.image_size)
    return Reference(real, train=train, class_names=tuple(images.class_names))


def read_statistics(path: Path) -> tuple[tuple[Float64, Float64] | None, bool]:
    """Mean (D,) and covariance (D, D) from an .npz with mu and sigma, or None; and whether it holds images.

    Raises:
        InputError: it cannot be read, or its arrays do not fit or are not finite.
    """
    try:
        arrays, names = read_arrays(path, ("mu", "sigma"))
    except InputError as error:
        raise InputError("reference", f"{path} {error.problem}") from None
    images = not {"images", BARE}.isdisjoint(names)
    if "mu" not in arrays or "sigma" not in arrays:
        return None, images
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise InputError("reference", f"{path} has {name} of type {array.dtype}", wanted="numbers")
    mu, sigma = (np.asarray(arrays[key], np.float64) for key in ("mu", "sigma"))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise InputError("reference", f"{path} has mu {mu.shape} and sigma {sigma.shape}", wanted="(D,) and (D, D)")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise InputError("reference", f"{path} has numbers that are infinite or NaN", remedy="compute it again")
    return (mu, sigma), images


def reference_features(
    features: str,
    reference: Reference,
    *,
    device: torch.device,
    features_weights: Path | None = None,
    console: Console | None = None,
) -> Features:
    """Features for a reference; an encoder is trained on it, or on the training images where there are more.

    Args:
        features, features_weights: see `maskdm.evaluation.features.get_features`.
        reference: what images are compared with.
        device: where to compute.
        console: says what takes time, and shows progress.

    Raises:
        InputError: features that cannot be had, or an encoder for statistics.
    """

    def images() -> LabelledImages:
        real, train = reference.real, reference.train
        if real is None:
            raise InputError(
                "features", "encoder is trained on the reference, which has no images but statistics", got=features
            )
        return train if train is not None and trains_on_members(len(train), len(real)) else real

    with within(""):
        return get_features(
            features,
            device=device,
            cache_dir=default_cache(),
            reference=images,
            features_weights=features_weights,
            console=console,
        )


def generate_like(
    reference: Reference,
    denoiser: Denoiser,
    num: int,
    *,
    sampler: str,
    steps: int,
    guidance: float,
    first_seed: int,
    batch_size: int,
    runtime: Runtime,
    console: Console,
) -> np.ndarray:
    """Images of a model as they would be saved, with classes as often as in the reference where these are the same.

    Args:
        reference: what they will be compared with.
        denoiser: the model.
        num: how many.
        sampler, steps, guidance: see `maskdm.sampling.sample.sampling_config`.
        first_seed: seeds count from here.
        batch_size: how many at once.
        runtime: all of its ranks generate, and all get all images.
        console: shows progress.

    Returns:
        (num, H, W, C) uint8.

    Raises:
        InputError: an unknown sampler, guidance without classes, numbers out of range.
    """
    with within(""):
        check_images_fit(denoiser, num)
    same = bool(denoiser.class_names) and denoiser.class_names == reference.class_names
    labels = reference.real.labels if same and reference.real is not None else None
    with within(""):
        config = sampling_config(
            denoiser,
            sampler=sampler,
            steps=steps,
            seeds=range(first_seed, first_seed + num),
            labels=None if labels is None else labels_like(labels, num),
            guidance=guidance,
        )
    with console.sampling_bar("sampling", len(runtime.rank_indices(num)), steps) as advance:
        unit = sample_across_ranks(config, num, runtime, batch_size=batch_size, callback=advance)
    return to_uint8_nhwc(unit)


def labels_like(labels: np.ndarray, num: int) -> list[int]:
    """`num` labels, as often as they occur among `labels`, in the same order."""
    chosen: list[int] = labels[np.linspace(0, len(labels) - 1, num).round().astype(int)].tolist()
    return chosen


def load_generated(path: Path, reference: Reference, console: Console) -> np.ndarray:
    """Images that were generated before, in the size of the reference: (N, H, W, C) uint8.

    Raises:
        InputError: there are none.
    """
    with within(""):
        return load_image_set(str(path), console, reference.shape).take().images
