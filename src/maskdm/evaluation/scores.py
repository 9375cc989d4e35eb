"""Scores of pictures against a reference: all metrics from one pass of features over each set."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from maskdm.data.image_set import ImageSet
from maskdm.errors import InputError
from maskdm.evaluation import metrics
from maskdm.evaluation.features import Features, cached
from maskdm.evaluation.metrics import Float64

FEW = 2000
"""Pictures below which the bias of a Fréchet distance deserves a word."""
K = 5


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        name: what it is.
        value: the number.
        n: how many pictures it was taken on.
        error: its standard error, or None.
        low, high: a 95 % interval, or None.
    """

    name: str
    value: float
    n: int
    error: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Reference:
    """What pictures are compared with.

    Attributes:
        real: pictures, (N, H, W, C) uint8, or None where there are only statistics.
        statistics: mean and covariance of their features, where that is all there is.
        known: pictures that the model was trained on, or None.
    """

    real: np.ndarray | None
    statistics: tuple[Float64, Float64] | None = None
    known: np.ndarray | None = None


def evaluate(
    made: np.ndarray,
    reference: Reference,
    features: Features,
    *,
    cache_dir: Path,
    resamples: int = 0,
    report: Callable[[int], object] = lambda images: None,
) -> list[Score]:
    """All scores of (N, H, W, C) uint8 pictures that the reference allows."""
    ours = features(made, report)
    real = None if reference.real is None else cached(features, reference.real, cache_dir, report)
    known = None if reference.known is None else cached(features, reference.known, cache_dir, report)
    statistics = reference.statistics or (metrics.gaussian(real) if real is not None else None)
    assert statistics is not None, "a reference has pictures or statistics"
    n = len(made)
    low, high = metrics.bootstrap(ours, statistics, resamples) if resamples else (None, None)
    distance = metrics.frechet_distance(*metrics.gaussian(ours), *statistics)
    scores = [Score(f"{features.distance}, generated", distance, n, low=low, high=high)]
    if known is not None and len(known) > 1:
        value = metrics.frechet_distance(*metrics.gaussian(known), *statistics)
        scores.append(Score(f"{features.distance}, training pictures", value, len(known)))
    if real is None:
        return scores
    kid, error = metrics.kernel_distance(ours, real)
    scores.append(Score("KID x 1000", 1000 * kid, n, error=1000 * error))
    if min(len(ours), len(real)) > K:
        found = metrics.manifolds(real, ours, K)
        of = {"precision": n, "density": n, "recall": len(real), "coverage": len(real)}
        scores += [Score(name, value, of[name]) for name, value in found._asdict().items()]
    if known is not None:
        near, usual = (metrics.nearest_cosine(part, known) for part in (ours, real))
        scores.append(Score("cosine distance to the nearest training picture, generated", float(near.mean()), n))
        name = "cosine distance to the nearest training picture, reference"
        scores.append(Score(name, float(usual.mean()), len(real)))
    return scores


def without_grid(pictures: ImageSet) -> np.ndarray:
    """All pictures of a set, (N, H, W, C) uint8, but for the grid that `maskdm sample` lays beside those it made."""
    sampled = any(name.startswith("seed-") for name in pictures.names)
    return pictures.images[np.flatnonzero([not (sampled and name == "grid.png") for name in pictures.names])]


def remark(n: int, real: int | None) -> str:
    """What few pictures do to these numbers."""
    least = n if real is None else min(n, real)
    said = f"{n:,} generated pictures against {'given statistics' if real is None else f'{real:,}'}"
    if least < FEW:
        said += (
            "; so few raise a Frechet distance: compare only those of as many pictures (the expectation of KID does "
            "not depend on it, only its error)"
        )
    if real is not None and least <= K:
        said += f"; precision and recall need more than {K}"
    return said


def read_statistics(path: Path) -> tuple[Float64, Float64] | None:
    """Mean and covariance from an .npz with mu and sigma; None where the file holds something else.

    Raises:
        InputError: it cannot be read, or its arrays do not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "mu" not in archive or "sigma" not in archive:
                return None
            mu, sigma = (np.asarray(archive[key], np.float64) for key in ("mu", "sigma"))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--reference: {path} cannot be read as an .npz ({type(error).__name__})") from None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise InputError(f"--reference: {path} has mu {mu.shape} and sigma {sigma.shape}, wanted (D,) and (D, D)")
    return mu, sigma


def lines(scores: Sequence[Score]) -> list[str]:
    """For a person."""
    width = max(len(score.name) for score in scores)
    said = []
    for score in scores:
        text = f"{score.name:{width}}  {score.value:10.4g}"
        if score.error is not None:
            text += f" ± {score.error:.2g}"
        if score.low is not None and score.high is not None:
            text += f"  (95 %: {score.low:.4g} to {score.high:.4g})"
        said.append(f"{text}  n = {score.n:,}")
    return said


def write(folder: Path, scores: Sequence[Score], *, title: str, command: str, note: str) -> Path:
    """As a file of a run's `eval` folder, which its report shows."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")
    path = folder / f"{name}.json"
    page = {"title": title, "command": command, "note": note, "rows": [asdict(score) for score in scores]}
    path.write_text(json.dumps(page, indent=2) + "\n")
    return path
