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
AT_ONCE = 512
"""Pictures that are floats at one time."""


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
        return np.concatenate([self._of(images[i : i + AT_ONCE]) for i in range(0, len(images), AT_ONCE)])

    def _of(self, images: np.ndarray) -> Float64:
        z = (small(images) - self.mean) @ self.components.T
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
    found = np.empty((len(images), h // down * (w // down) * images.shape[3]))
    for start in range(0, len(images), AT_ONCE):
        cut = images[start : start + AT_ONCE, :h, :w].astype(np.float32) / 255
        means = cut.reshape(len(cut), h // down, down, w // down, down, -1).mean(axis=(2, 4))
        found[start : start + AT_ONCE] = means.reshape(len(cut), -1)
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
    def fit(cls, x: Float64, y: Float64, groups: Sequence[str] | None = None) -> Ridge:
        """With the penalty of least error on pictures left out: one at a time, or folds of whole groups."""
        left = _left_out(x, y) if groups is None else _left_out_by_groups(x, y, groups)
        errors = np.sqrt(np.square(left).mean(axis=1))
        best = int(np.argmin(errors))
        found = _Path.of(x, y)
        return cls(
            found.centre, found.scale, found.weights(PENALTIES[best]), found.mean, max(float(errors[best]), 1e-12)
        )

    def __call__(self, x: Float64) -> Float64:
        """Predictions: (N, D) -> (N,)."""
        found: Float64 = (x - self.centre) / self.scale @ self.weights + self.mean
        return found

    def left(self, x: Float64, y: Float64) -> Float64:
        """What is left over of y, in units of its spread on the calibration split."""
        found: Float64 = (y - self(x)) / self.spread
        return found


@dataclass(frozen=True)
class _Path:
    """Regressions on the same pictures for any penalty."""

    centre: Float64
    scale: Float64
    mean: float
    u: Float64
    s: Float64
    vt: Float64
    projected: Float64

    @classmethod
    def of(cls, x: Float64, y: Float64) -> _Path:
        centre, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        u, s, vt = np.linalg.svd((x - centre) / scale, full_matrices=False)
        mean = float(y.mean())
        return cls(centre, scale, mean, u, s, vt, u.T @ (y - mean))

    def weights(self, penalty: float) -> Float64:
        found: Float64 = self.vt.T @ (self.s / (self.s**2 + penalty) * self.projected)
        return found


def _left_out(x: Float64, y: Float64) -> Float64:
    """What is left over of each y when it alone is left out, for every penalty: (P, N)."""
    path, rows = _Path.of(x, y), []
    for penalty in PENALTIES:
        shrunk = path.s**2 / (path.s**2 + penalty)
        leverage = (path.u**2 * shrunk).sum(axis=1) + 1 / len(y)
        rows.append(((y - path.mean) - path.u @ (shrunk * path.projected)) / np.maximum(1 - leverage, 1e-3))
    return np.array(rows)


def _left_out_by_groups(x: Float64, y: Float64, groups: Sequence[str]) -> Float64:
    """The same when a fold of groups is left out."""
    left, fold = np.empty((len(PENALTIES), len(y))), folds(len(y), groups, np.random.default_rng(2))
    for k in range(FOLDS):
        path = _Path.of(x[fold != k], y[fold != k])
        inputs = (x[fold == k] - path.centre) / path.scale
        for i, penalty in enumerate(PENALTIES):
            left[i, fold == k] = y[fold == k] - path.mean - inputs @ path.weights(penalty)
    return left


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
        known = None if groups is None else [groups[int(i)] for i in np.flatnonzero(fold != k)]
        left[fold == k] = Ridge.fit(x[fold != k], y[fold != k], known).left(x[fold == k], y[fold == k])
    return left
