"""Difficulty calibration: how well a model may be expected to know a picture, from the picture alone.

Most of what an attack's score varies by is not membership but the picture: flat ones are easy. On pictures that were
never trained on, the calibration split, scores are regressed on a few statistics of the pictures; what is left over of
a score, in units of its own spread there, is compared between members and held-out pictures (after Bertran et al. 2023,
arXiv 2307.03694; Tang et al. 2024, arXiv 2312.05140).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskdm.audit.statistics import Float64

COMPONENTS, SIDE = 48, 32
PENALTIES = tuple(10.0**k for k in range(-3, 7))
FOLDS = 5


@dataclass(frozen=True)
class Statistics:
    """A map from pictures to a few numbers, made on the calibration split.

    Attributes:
        mean: (D,) of the pictures as vectors.
        components: (K, D), their principal directions, each scaled by its deviation.
    """

    mean: Float64
    components: Float64

    @classmethod
    def of(cls, images: np.ndarray) -> Statistics:
        """From (N, H, W, C) uint8; as many components as an eighth of the pictures supports, 48 at most."""
        x = small(images)
        mean = x.mean(axis=0)
        _, deviations, directions = np.linalg.svd(x - mean, full_matrices=False)
        kept = min(COMPONENTS, len(x) // 8, int((deviations > 1e-8 * deviations[0]).sum()))
        scaled = directions[:kept] / (deviations[:kept, None] / np.sqrt(len(x)))
        return cls(mean, scaled)

    def __call__(self, images: np.ndarray) -> Float64:
        """(N, H, W, C) uint8 -> (N, 2 K + 4): components, their squares, mean, deviation, energy of both gradients."""
        x = small(images)
        z = (x - self.mean) @ self.components.T
        unit = images.astype(np.float32) / 255
        plain = [
            unit.mean(axis=(1, 2, 3)),
            unit.std(axis=(1, 2, 3)),
            np.log(np.square(np.diff(unit, axis=1)).mean(axis=(1, 2, 3)) + 1e-6),
            np.log(np.square(np.diff(unit, axis=2)).mean(axis=(1, 2, 3)) + 1e-6),
        ]
        found: Float64 = np.column_stack([z, z**2, *plain]).astype(np.float64)
        return found


def small(images: np.ndarray) -> Float64:
    """Pictures as vectors, averaged down to at most 32 pixels a side: (N, D) in [0, 1]."""
    height, width = images.shape[1:3]
    down = max(-(-height // SIDE), -(-width // SIDE), 1)
    h, w = height // down * down, width // down * down
    cut = images[:, :h, :w].astype(np.float32) / 255
    means = cut.reshape(len(cut), h // down, down, w // down, down, -1).mean(axis=(2, 4))
    found: Float64 = means.reshape(len(cut), -1).astype(np.float64)
    return found


@dataclass(frozen=True)
class Ridge:
    """A linear regression with a penalty, on standardised inputs.

    Attributes:
        centre, scale: of the inputs, (D,).
        weights: (D,).
        mean: of the outputs.
        spread: deviation of what was left over, each picture predicted from the others (the hat matrix tells).
    """

    centre: Float64
    scale: Float64
    weights: Float64
    mean: float
    spread: float

    @classmethod
    def fit(cls, x: Float64, y: Float64) -> Ridge:
        """With the penalty of least leave-one-out error."""
        centre, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        u, s, vt = np.linalg.svd((x - centre) / scale, full_matrices=False)
        mean = float(y.mean())
        projected = u.T @ (y - mean)
        best: tuple[float, Float64] | None = None
        for penalty in PENALTIES:
            shrunk = s**2 / (s**2 + penalty)
            left = (y - mean) - u @ (shrunk * projected)
            leverage = (u**2 * shrunk).sum(axis=1) + 1 / len(y)
            error = float(np.sqrt(np.mean((left / np.maximum(1 - leverage, 1e-3)) ** 2)))
            if best is None or error < best[0]:
                best = error, vt.T @ (s / (s**2 + penalty) * projected)
        assert best is not None, "there are penalties"
        return cls(centre, scale, best[1], mean, max(best[0], 1e-12))

    def __call__(self, x: Float64) -> Float64:
        """Predictions: (N, D) -> (N,)."""
        found: Float64 = (x - self.centre) / self.scale @ self.weights + self.mean
        return found

    def left(self, x: Float64, y: Float64) -> Float64:
        """What is left over of y, in units of its spread on the calibration split."""
        found: Float64 = (y - self(x)) / self.spread
        return found


def folds(count: int, groups: Sequence[str] | None, rng: np.random.Generator) -> np.ndarray:
    """A fold for each of `count` pictures, those of one group together: alike as they are, one would tell of another.

    With fewer groups than folds pictures are dealt out one by one.
    """
    names, number = np.unique(np.array(groups if groups is not None else np.arange(count)), return_inverse=True)
    if len(names) < FOLDS:
        names, number = np.arange(count), np.arange(count)
    dealt: np.ndarray = (rng.permutation(len(names)) % FOLDS)[number]
    return dealt


def cross_fitted(x: Float64, y: Float64, groups: Sequence[str] | None = None) -> Float64:
    """What is left over of every y by a regression on the other folds."""
    fold = folds(len(y), groups, np.random.default_rng(0))
    left = np.empty(len(y))
    for k in range(FOLDS):
        left[fold == k] = Ridge.fit(x[fold != k], y[fold != k]).left(x[fold == k], y[fold == k])
    return left
