"""Scores of images against a reference: all metrics from one pass of features over each set."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from maskdm.data.labelled import LabelledImages
from maskdm.errors import ArgumentError
from maskdm.evaluation import metrics
from maskdm.evaluation.features import Features, cached_features, hash_images
from maskdm.evaluation.metrics import Float64
from maskdm.files import make_folder, write_json

FEW = 2000
"""Images, on either side, below which every score that depends on their number deserves a word."""
RAISED = "few images raise it: compare only values of as many"
WIDE = "few images: mind its error, not its size"
COARSE = "few images make it coarse: compare only values of as many"
"""What few images do to a Fréchet distance; to KID; to precision, recall, density, coverage and nearest neighbours."""
K = 5
"""Neighbours of precision, recall, density and coverage."""


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        name: what it is.
        value: the number.
        n: how many images it was taken on.
        error: its standard error, or None.
        low, high: a 95 % interval, or None.
        note: what few images do to it, "" where they are enough.
    """

    name: str
    value: float
    n: int
    error: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Reference:
    """What images are compared with: real ones, or what is known of their features.

    Attributes:
        real: real images, or None where there are only statistics.
        statistics: given mean (D,) and covariance (D, D) of their features; beside images, those of a larger set.
        train: images that the model was trained on, or None.
        class_names: that the labels of both number, or ().
    """

    real: LabelledImages | None
    statistics: tuple[Float64, Float64] | None = None
    train: LabelledImages | None = None
    class_names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(H, W, C) of an image, None where there are only statistics."""
        if self.real is None:
            return None
        height, width, channels = self.real.images.shape[1:]
        return height, width, channels

    @property
    def sha256(self) -> str:
        """Of the real images or, where there are none, of the statistics."""
        if self.real is not None:
            return hash_images(self.real.images)
        assert self.statistics is not None, "a reference has images or statistics"
        return hashlib.sha256(b"".join(part.tobytes() for part in self.statistics)).hexdigest()

    @property
    def images(self) -> int:
        """Images in it, all in all."""
        return sum(len(part) for part in (self.real, self.train) if part is not None)


def evaluate_images(
    generated: np.ndarray,
    reference: Reference,
    features: Features,
    *,
    cache_dir: Path,
    resamples: int = 0,
    callback: Callable[[int], object] = lambda images: None,
) -> list[Score]:
    """All scores that the reference allows.

    Args:
        generated: (N, H, W, C) uint8.
        reference: what they are compared with.
        features: in which they are compared.
        cache_dir: where features of the reference are kept.
        resamples: of the bootstrap for an interval of the distance; 0 for none.
        callback: called after every few images with their number.

    Raises:
        ArgumentError: statistics of other features, or features that are not finite.
    """
    ours = features(generated, callback)
    real, train = (
        None if part is None else cached_features(features, part.images, cache_dir, callback)
        for part in (reference.real, reference.train)
    )
    statistics = reference.statistics
    if real is not None and (statistics is None or len(statistics[0]) != ours.shape[1]):  # of other features
        statistics = metrics.gaussian(real)
    assert statistics is not None, "a reference has images or statistics"
    if len(statistics[0]) != ours.shape[1]:
        raise ArgumentError(
            "reference",
            f"its statistics are of {len(statistics[0])} features, and {features.name} has {ours.shape[1]}",
            remedy="measure both in the same features",
        )
    n = len(generated)
    others = len(real) if real is not None and reference.statistics is None else FEW  # of statistics nobody knows
    low, high = metrics.bootstrap_interval(ours, statistics, resamples) if resamples else (None, None)
    distance = metrics.frechet_distance(*metrics.gaussian(ours), *statistics)
    note = _note(RAISED, n, others)
    scores = [Score(f"{features.distance}, generated", distance, n, low=low, high=high, note=note)]
    if train is not None and len(train) > 1:
        value = metrics.frechet_distance(*metrics.gaussian(train), *statistics)
        note = _note(RAISED, len(train), others)
        scores.append(Score(f"{features.distance}, training images", value, len(train), note=note))
    if real is not None:
        scores += _against_images(ours, real, train)
    return scores


def _against_images(generated: Float64, real: Float64, train: Float64 | None) -> list[Score]:
    """Scores that need the features of every real image, and not their statistics alone."""
    n = len(generated)
    kid, error = metrics.kernel_distance(generated, real)
    scores = [Score("KID x 1000", 1000 * kid, n, error=1000 * error, note=_note(WIDE, n, len(real)))]
    coarse = _note(COARSE, n, len(real))
    if min(n, len(real)) > K:
        found = metrics.manifolds(real, generated, K)
        of = {"precision": n, "density": n, "recall": len(real), "coverage": len(real)}
        scores += [Score(name, value, of[name], note=coarse) for name, value in found._asdict().items()]
    if train is not None:
        title = "cosine distance to the nearest training image"
        for name, part in (("generated", generated), ("reference", real)):
            near = float(metrics.nearest_cosine(part, train).mean())
            scores.append(Score(f"{title}, {name}", near, len(part), note=_note(COARSE, len(part), len(train))))
    return scores


def _note(note: str, *counts: int) -> str:
    """`note` where one of the counts of images is small."""
    return note if min(counts) < FEW else ""


def sample_size_note(generated: int, real: int | None) -> str:
    """What few images do to the scores; `real` is None for given statistics."""
    least = generated if real is None else min(generated, real)
    said = f"{generated:,} generated images against {'given statistics' if real is None else f'{real:,}'}"
    if least < FEW:
        said += (
            f"; fewer than {FEW:,} raise a Frechet distance and make precision, recall, density and coverage coarse: "
            "compare only scores of as many images (of KID only the error depends on it)"
        )
    if real is not None and least <= K:
        said += f"; precision and recall need more than {K}"
    return said


def format_scores(scores: Sequence[Score]) -> list[str]:
    """Lines for a terminal."""
    width = max(len(score.name) for score in scores)
    lines = []
    for score in scores:
        text = f"{score.name:{width}}  {score.value:10.4g}"
        if score.error is not None:
            text += f" ± {score.error:.2g}"
        if score.low is not None and score.high is not None:
            text += f"  (95 %: {score.low:.4g} to {score.high:.4g})"
        lines.append(f"{text}  n = {score.n:,}{f'  ({score.note})' if score.note else ''}")
    return lines


def write_scores(
    path: Path,
    scores: Sequence[Score],
    *,
    features: Features,
    reference: str,
    note: str,
    command: str,
    version: str,
) -> None:
    """A file of JSON for programs.

    Args:
        path: the file; its folder is made if it is not there.
        scores: what was measured.
        features: in which; their weights are named by hash, and so are the images that an encoder was trained on.
        reference: sha256 of what they were compared with.
        note: what few images do to them.
        command: by which they can be measured again.
        version: of maskdm.
    """
    make_folder(path.parent, "output")
    rows = [asdict(score) for score in scores]
    page = {
        "command": command,
        "maskdm": version,
        "features": features.name,
        "features_sha256": features.sha256,
        "encoder_trained_on": features.trained_on,
        "reference_sha256": reference,
        "note": note,
        "scores": rows,
    }
    write_json(path, page)


def keep_scores(run: Path, scores: Sequence[Score], *, title: str, command: str, note: str) -> Path:
    """A file in a run's `eval` folder, named by `title`, which the run's report shows."""
    folder = run / "eval"
    make_folder(folder)
    path = folder / f"{re.sub(r'[^a-z0-9.]+', '-', title.lower()).strip('-')}.json"
    rows = [asdict(score) for score in scores]
    write_json(path, {"title": title, "command": command, "note": note, "rows": rows})
    return path
