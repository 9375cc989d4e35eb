"""Scores along the way: what `maskdm eval` would say of a run's averaged weights, while it is being trained.

The features and the reference's are made ready before the first step, so that what is missing is missed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskdm.config.schema import Config, ModelSpec
from maskdm.data.dataset import Dataset, cache_dir
from maskdm.errors import within
from maskdm.evaluation import metrics
from maskdm.evaluation.encoder import on_members
from maskdm.evaluation.features import Features, cached, pick
from maskdm.evaluation.metrics import Float64
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime

Scores = dict[str, float | str]


@dataclass(frozen=True)
class Scorer:
    """Pictures against the held-out ones.

    Attributes:
        features: in which they are compared.
        real: features of the held-out pictures, (N, D).
        labels: of the pictures to be generated: as among the held-out ones.
    """

    features: Features
    real: Float64
    labels: Sequence[int] | None

    def __call__(self, made: np.ndarray) -> Scores:
        """Of (N, H, W, C) uint8 pictures."""
        ours = self.features(made)
        distance = metrics.frechet_distance(*metrics.gaussian(ours), *metrics.gaussian(self.real))
        kid, error = metrics.kernel_distance(ours, self.real)
        return {
            "title": self.features.distance,
            "features": self.features.name,
            "frechet_distance": distance,
            "kid": kid,
            "kid_error": error,
            "reference": len(self.real),
        }


def make_scorer(config: Config, spec: ModelSpec, dataset: Dataset, runtime: Runtime, console: Console) -> Scorer:
    """For the held-out images of a run about to begin.

    Raises:
        InputError: features that cannot be had.
    """
    wanted, cache, images = config.eval.scores, cache_dir(config.data), dataset.images
    assert wanted is not None, "asked for only where scores are"
    members, heldout = dataset.rows("member"), dataset.rows("heldout")
    real = images.images[heldout]

    def reference() -> tuple[np.ndarray, np.ndarray | None]:
        chosen = members if on_members(len(members), len(heldout)) else heldout
        return images.images[chosen], None if images.labels is None else images.labels[chosen]

    with within("eval.", features="scores"):
        features = pick(wanted, device=runtime.device, cache_dir=cache, reference=reference, say=console.say)
    labels = images.labels if spec.class_names else None
    like = None if labels is None else labels_like(labels[heldout], config.eval.score_images)
    return Scorer(features, cached(features, real, cache / "features", lambda images: None), like)


def labels_like(labels: np.ndarray, num: int) -> list[int]:
    """`num` labels, as often as they occur among `labels`, in the same order."""
    chosen: list[int] = labels[np.linspace(0, len(labels) - 1, num).round().astype(int)].tolist()
    return chosen
