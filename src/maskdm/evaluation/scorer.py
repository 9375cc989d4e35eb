"""Scores during training: what `maskdm eval` would say of a run's averaged weights.

The features and the reference's are computed before the first step, so that what is missing is missed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskdm.config.schema import Config
from maskdm.data.dataset import Dataset, cache_dir
from maskdm.data.labelled import LabelledImages
from maskdm.errors import within
from maskdm.evaluation import metrics
from maskdm.evaluation.encoder import trains_on_members
from maskdm.evaluation.evaluate import labels_like
from maskdm.evaluation.features import Features, cached_features, get_features
from maskdm.evaluation.metrics import Float64
from maskdm.models.spec import ModelSpec
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime

Scores = dict[str, float | str]


@dataclass(frozen=True)
class Scorer:
    """Compares images with the held-out ones.

    Attributes:
        features: in which they are compared.
        real: features of the held-out images, (N, D).
        labels: of the images to be generated: as among the held-out ones; None for a model without classes.
    """

    features: Features
    real: Float64
    labels: Sequence[int] | None

    def __call__(self, generated: np.ndarray) -> Scores:
        """What a line of metrics.jsonl says of (N, H, W, C) uint8 images, by the names of `ScoreEvent`.

        Raises:
            InputError: features that are not finite.
        """
        ours = self.features(generated)
        with within("eval.", features="scores"):
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

    Args:
        config: its settings, of which `eval.scores` names features.
        spec: its model.
        dataset: its images and their roles.
        runtime: where to compute.
        console: says what takes time.

    Raises:
        InputError: features that cannot be had.
    """
    wanted, cache = config.eval.scores, cache_dir(config.data)
    assert wanted is not None, "asked for only where scores are"
    members, heldout = dataset.rows("member"), dataset.rows("heldout")
    real = dataset.images.take(heldout)

    def reference() -> LabelledImages:
        return dataset.images.take(members) if trains_on_members(len(members), len(heldout)) else real

    with within("eval.", features="scores"):
        features = get_features(wanted, device=runtime.device, cache_dir=cache, reference=reference, console=console)
    like = None
    if spec.class_names and real.labels is not None:
        like = labels_like(real.labels, config.eval.score_images)
    return Scorer(features, cached_features(features, real.images, cache / "features"), like)
