"""Difficulty calibration: how well a model may be expected to know an image, judged from the image alone.

Most of what an attack's score varies by is not membership but the image: flat ones are easy. On images that were never
trained on, the calibration split, scores are regressed on a few features of the images; the residual of a score, in
units of its own spread there, is what is compared between members and held-out images (after Bertran et al. 2023,
arXiv 2307.03694; Tang et al. 2024, arXiv 2312.05140).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskdm.auditing.statistics import Float64

COMPONENTS, SIDE = 48, 32
PENALTIES = tuple(10.0**k for k in range(-3, 7))
FOLDS = 5
CHUNK = 512
"""Images that are floats at one time."""


@dataclass(frozen=True)
class DifficultyFeatures:
    """A map from images to a few numbers that say how difficult they are, fitted on the calibration split.

    Attributes:
        mean: (D,) of the images as vectors.
        components: (K, D), their principal directions, each scaled by its standard deviation.
    """

    mean: Float64
    components: Float64

    @classmethod
    def fit(cls, images: np.ndarray) -> DifficultyFeatures:
        """From (N, H, W, C) uint8; as many components as an eighth of the images supports, 48 at most."""
        x = downsampled(images)
        mean = x.mean(axis=0)
        _, deviations, directions = np.linalg.svd(x - mean, full_matrices=False)
        kept = min(COMPONENTS, len(x) // 8, int((deviations > 1e-8 * deviations[0]).sum()))
        scaled = directions[:kept] / (deviations[:kept, None] / np.sqrt(len(x)))
        return cls(mean, scaled)

    def __call__(self, images: np.ndarray) -> Float64:
        """(N, H, W, C) uint8 -> (N, 2 K + 4): components, their squares, mean, deviation, energy of both gradients."""
        return np.concatenate([self._of(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)])

    def _of(self, images: np.ndarray) -> Float64:
        z = (downsampled(images) - self.mean) @ self.components.T
        unit = images.astype(np.float32) / 255
        plain = [
            unit.mean(axis=(1, 2, 3)),
            unit.std(axis=(1, 2, 3)),
            np.log(np.square(np.diff(unit, axis=1)).mean(axis=(1, 2, 3)) + 1e-6),
            np.log(np.square(np.diff(unit, axis=2)).mean(axis=(1, 2, 3)) + 1e-6),
        ]
        found: Float64 = np.column_stack([z, z**2, *plain]).astype(np.float64)
        return found


def downsampled(images: np.ndarray) -> Float64:
    """(N, H, W, C) uint8 as vectors in [0, 1], averaged down to at most 32 pixels a side: (N, D)."""
    height, width = images.shape[1:3]
    down = max(-(-height // SIDE), -(-width // SIDE), 1)
    h, w = height // down * down, width // down * down
    found = np.empty((len(images), h // down * (w // down) * images.shape[3]))
    for start in range(0, len(images), CHUNK):
        cut = images[start : start + CHUNK, :h, :w].astype(np.float32) / 255
        means = cut.reshape(len(cut), h // down, down, w // down, down, -1).mean(axis=(2, 4))
        found[start : start + CHUNK] = means.reshape(len(cut), -1)
    return found


@dataclass(frozen=True)
class Ridge:
    """A linear regression with a penalty, on standardized inputs.

    Attributes:
        center, scale: of the inputs, (D,).
        weights: (D,).
        mean: of the outputs.
        spread: standard deviation of the residuals, each image predicted from the others.
    """

    center: Float64
    scale: Float64
    weights: Float64
    mean: float
    spread: float

    @classmethod
    def fit(cls, x: Float64, y: Float64, groups: Sequence[str] | None = None) -> Ridge:
        """With the penalty of least error on images left out: one at a time, or folds of whole groups.

        Args:
            x: inputs, (N, D).
            y: outputs, (N,).
            groups: of the images, or None where they are independent.
        """
        residuals = _residuals_left_out(x, y) if groups is None else _residuals_by_groups(x, y, groups)
        errors = np.sqrt(np.square(residuals).mean(axis=1))
        best = int(np.argmin(errors))
        path = _RidgePath.fit(x, y)
        return cls(path.center, path.scale, path.weights(PENALTIES[best]), path.mean, max(float(errors[best]), 1e-12))

    def __call__(self, x: Float64) -> Float64:
        """Predictions: (N, D) -> (N,)."""
        found: Float64 = (x - self.center) / self.scale @ self.weights + self.mean
        return found

    def residuals(self, x: Float64, y: Float64) -> Float64:
        """y (N,) minus its prediction from x (N, D), in units of `spread`: (N,)."""
        found: Float64 = (y - self(x)) / self.spread
        return found


@dataclass(frozen=True)
class _RidgePath:
    """Regressions on the same images for any penalty, by one singular value decomposition."""

    center: Float64
    scale: Float64
    mean: float
    u: Float64
    s: Float64
    vt: Float64
    projected: Float64

    @classmethod
    def fit(cls, x: Float64, y: Float64) -> _RidgePath:
        center, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        u, s, vt = np.linalg.svd((x - center) / scale, full_matrices=False)
        mean = float(y.mean())
        return cls(center, scale, mean, u, s, vt, u.T @ (y - mean))

    def weights(self, penalty: float) -> Float64:
        found: Float64 = self.vt.T @ (self.s / (self.s**2 + penalty) * self.projected)
        return found


def _residuals_left_out(x: Float64, y: Float64) -> Float64:
    """The residual of each y when it alone is left out, for every penalty: (P, N). The hat matrix gives them all."""
    path, rows = _RidgePath.fit(x, y), []
    for penalty in PENALTIES:
        shrunk = path.s**2 / (path.s**2 + penalty)
        leverage = (path.u**2 * shrunk).sum(axis=1) + 1 / len(y)
        rows.append(((y - path.mean) - path.u @ (shrunk * path.projected)) / np.maximum(1 - leverage, 1e-3))
    return np.array(rows)


def _residuals_by_groups(x: Float64, y: Float64, groups: Sequence[str]) -> Float64:
    """The same when a fold of groups is left out."""
    residuals, fold = np.empty((len(PENALTIES), len(y))), assign_folds(len(y), groups, np.random.default_rng(2))
    for k in range(FOLDS):
        path = _RidgePath.fit(x[fold != k], y[fold != k])
        inputs = (x[fold == k] - path.center) / path.scale
        for i, penalty in enumerate(PENALTIES):
            residuals[i, fold == k] = y[fold == k] - path.mean - inputs @ path.weights(penalty)
    return residuals


def assign_folds(count: int, groups: Sequence[str] | None, rng: np.random.Generator) -> np.ndarray:
    """A random fold, 0 to 4, for each of `count` images, the same for all of one group: (count,) int64.

    Images of a group are alike: in two folds one would tell of the other. With fewer groups than folds images are
    assigned one by one.
    """
    names, number = np.unique(np.array(groups if groups is not None else np.arange(count)), return_inverse=True)
    if len(names) < FOLDS:
        names, number = np.arange(count), np.arange(count)
    fold: np.ndarray = (rng.permutation(len(names)) % FOLDS)[number]
    return fold


def cross_fitted_residuals(x: Float64, y: Float64, groups: Sequence[str] | None = None) -> Float64:
    """The residual of every y (N,) given x (N, D), by a regression on the other folds: (N,)."""
    fold = assign_folds(len(y), groups, np.random.default_rng(0))
    residuals = np.empty(len(y))
    for k in range(FOLDS):
        known = None if groups is None else [groups[int(i)] for i in np.flatnonzero(fold != k)]
        ridge = Ridge.fit(x[fold != k], y[fold != k], known)
        residuals[fold == k] = ridge.residuals(x[fold == k], y[fold == k])
    return residuals
