"""Distances between sets of images, as numbers in float64.

The Fréchet distance compares two sets of feature vectors through the Gaussians that have their means and covariances
(Heusel et al. 2017, arXiv 1706.08500, who use Inception features and call it FID). What the features are is the
caller's choice (`maskdm.evaluation.features`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from maskdm.errors import ArgumentError
from maskdm.evaluation.distances import TIE, squared_distances

Float64 = NDArray[np.float64]
TAKE_FROM_GAUSSIAN = "take it from `gaussian`"


def gaussian(features: ArrayLike) -> tuple[Float64, Float64]:
    """The mean (D,) and the unbiased covariance (D, D) of `features` (N, D), N >= 2, both float64.

    Raises:
        ArgumentError: another shape, or numbers that are not finite.
    """
    x = _features(features, "features", 2)
    mean = x.mean(axis=0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def frechet_distance(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> float:
    """The squared 2-Wasserstein distance of two Gaussians, |μa - μb|² + tr(A + B - 2 (A^½ B A^½)^½), in [0, ∞).

    Means are (D,), covariances (D, D), symmetric and positive semi-definite; singular ones are fine, and are the rule
    where there are fewer images than features. The formula is Dowson & Landau's (1982, "The Fréchet distance between
    multivariate normal distributions"); its use on image features is from Heusel et al. (2017, arXiv 1706.08500).

    The trace of the root is the sum of the singular values of FaᵀFb for any factors with A = Fa Faᵀ and B = Fb Fbᵀ.
    Taken this way no general matrix square root is needed, whose small imaginary parts one would have to throw away,
    the result does not depend on the order of the two, and a zero eigenvalue costs ε instead of √ε.
    """
    mean_a, mean_b = _mean(mean_a, "mean_a"), _mean(mean_b, "mean_b")
    if mean_a.shape != mean_b.shape:
        raise ArgumentError(
            "mean_b",
            got=mean_b.shape,
            wanted=f"{mean_a.shape}, as of mean_a",
            remedy="measure both sets of images with the same features",
        )
    cov_a, cov_b = (_covariance(c, len(mean_a), name) for c, name in ((cov_a, "cov_a"), (cov_b, "cov_b")))
    overlap = np.linalg.svd(_factor(cov_a, "cov_a").T @ _factor(cov_b, "cov_b"), compute_uv=False).sum()
    distance = np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap
    return max(0.0, float(distance))  # a distance of zero may come out as -1e-16


def _factor(cov: Float64, name: str) -> Float64:
    """F (D, rank) with F Fᵀ = cov, from the eigenvalues that stand above rounding."""
    values, vectors = np.linalg.eigh(cov)
    rounding = len(cov) * np.finfo(np.float64).eps * max(abs(values[0]), abs(values[-1]))
    # Rounding leaves eigenvalues a little below zero. A clearly negative one means that this is no covariance.
    if values[0] < -1e6 * rounding:
        raise ArgumentError(name, got=float(values[0]), wanted="no eigenvalue below 0", remedy=TAKE_FROM_GAUSSIAN)
    kept = values > rounding
    factor: Float64 = vectors[:, kept] * np.sqrt(values[kept])
    return factor


def _mean(value: ArrayLike, name: str) -> Float64:
    mean = np.asarray(value, dtype=np.float64)
    if mean.ndim != 1 or mean.size == 0:
        raise ArgumentError(name, got=mean.shape, wanted="(D,) with D >= 1", remedy=TAKE_FROM_GAUSSIAN)
    _require_finite(mean, name)
    return mean


def _covariance(value: ArrayLike, size: int, name: str) -> Float64:
    cov = np.asarray(value, dtype=np.float64)
    if cov.shape != (size, size):
        raise ArgumentError(
            name,
            got=cov.shape,
            wanted=f"({size}, {size}) like its mean",
            remedy="take both from one call of `gaussian`",
        )
    _require_finite(cov, name)
    if not np.allclose(cov, cov.T, rtol=1e-6, atol=1e-9 * np.abs(cov).max()):
        raise ArgumentError(name, "differs from its transpose", wanted="a symmetric matrix", remedy=TAKE_FROM_GAUSSIAN)
    return (cov + cov.T) / 2


def _require_finite(x: Float64, name: str) -> None:
    if not np.isfinite(x).all():
        bad = x.size - int(np.isfinite(x).sum())
        raise ArgumentError(
            name,
            f"{bad} of {x.size} numbers are infinite or NaN",
            remedy="look for a diverged model or a broken image",
        )


def kernel_distance(a: ArrayLike, b: ArrayLike, *, max_images: int = 5000, seed: int = 0) -> tuple[float, float]:
    """KID: the squared maximum mean discrepancy under k(x, y) = (x·y / D + 1)^3, unbiased, and its standard error.

    Features are (N, D) and (M, D); of more than `max_images` as many are taken, drawn by `seed`. Unlike that of the
    Fréchet distance its expectation does not depend on the number of images: of two sets from one source it is zero,
    and single values may be negative. The error is that of drawing other images, from both orders of the U-statistic.

    Sources: Bińkowski et al. 2018, arXiv 1801.01401; Gretton et al. 2012, "A kernel two-sample test".
    """
    x, y = _features(a, "a", 2), _features(b, "b", 2)
    _require_same_width(x, y, "b")
    rng = np.random.default_rng(seed)
    x, y = (
        part if len(part) <= max_images else part[rng.choice(len(part), max_images, replace=False)] for part in (x, y)
    )
    n, m = len(x), len(y)
    xx, yy, xy = _cubic(x, x), _cubic(y, y), _cubic(x, y)
    # Means of each image with the others of its set, without itself, and with those of the other set.
    own_x, own_y = ((k.sum(axis=1) - np.diag(k)) / (len(k) - 1) for k in (xx, yy))
    value = own_x.mean() + own_y.mean() - 2 * xy.mean()
    first = _spread(own_x - xy.mean(axis=1)) / n + _spread(own_y - xy.mean(axis=0)) / m
    # What is left of the kernels when means of rows and columns are taken off varies too, and is in `first` once.
    second = _left(xx, own_x) / (n * (n - 1)) + _left(yy, own_y) / (m * (m - 1))
    second += 2 * np.square(xy - xy.mean(axis=0) - xy.mean(axis=1)[:, None] + xy.mean()).mean() / (n * m)
    return float(value), float(np.sqrt(4 * max(first - second, 0.0) + 2 * second))


def _spread(x: Float64) -> float:
    return float(x.var(ddof=1))


def _left(k: Float64, means: Float64) -> float:
    """Mean square, off the diagonal, of a symmetric kernel matrix less the means of rows and columns."""
    left = k - means - means[:, None] + means.mean()
    np.fill_diagonal(left, 0.0)
    return float(np.square(left).sum()) / (len(k) * (len(k) - 1))


def _cubic(x: Float64, y: Float64) -> Float64:
    product: Float64 = (x @ y.T / x.shape[1] + 1) ** 3
    return product


class Manifolds(NamedTuple):
    """How two clouds of features overlap; all but density are shares, 0 to 1.

    precision: of generated images within the real ones' manifold; recall: of real within the generated ones'.
    density: how many real images' balls hold a generated one, over k: about 1 for equal clouds, may be more.
    coverage: of real images whose ball holds a generated one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(real: ArrayLike, generated: ArrayLike, k: int = 5) -> Manifolds:
    """Overlap of (N, D) real and (M, D) generated features, by balls that reach each point's k-th neighbour.

    A ball holds its border, as in the papers: so of a set against itself precision, recall and coverage are 1, with
    copies in it too, and density is (k + 1) / k where no two distances are equal.

    Sources: Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2 (precision, recall); Naeem et al. 2020,
    arXiv 2002.09797 (density, coverage, and k = 5 for all).
    """
    x, y = _features(real, "real", k + 1), _features(generated, "generated", k + 1)
    _require_same_width(x, y, "generated")
    (x, rows), (y, columns) = _distinct(x), _distinct(y)
    reach_y = _reach(y, columns, k)[columns]
    held = np.zeros(len(columns), np.int64)  # balls of real images that hold each generated one
    found, covered = [], []
    for i in range(0, len(x), CHUNK):
        part = slice(i, i + CHUNK)
        between = _distances(x[part], y)[:, columns]
        inside = between <= _reach(x, rows, k, part)[:, None]
        times = np.bincount(rows, minlength=len(x))[part]
        held += times @ inside
        covered.append(inside.any(axis=1))
        found.append((between <= reach_y).any(axis=1))
    return Manifolds(
        precision=float((held > 0).mean()),
        recall=float(np.concatenate(found)[rows].mean()),
        density=float(held.mean() / k),
        coverage=float(np.concatenate(covered)[rows].mean()),
    )


def _distinct(x: Float64) -> tuple[Float64, NDArray[np.int64]]:
    """The different rows of (N, D), and of every row which of them it is: (N,)."""
    numbers: dict[bytes, int] = {}
    which = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in x + 0.0], np.int64)  # -0 is 0
    return x[np.unique(which, return_index=True)[1]], which


def _reach(x: Float64, which: NDArray[np.int64], k: int, part: slice = slice(None)) -> Float64:
    """The radius of the ball of some of the different rows `x`: the distance to the k-th other row, with what counts
    as equal to it on top."""
    rows = x[part]
    reach = [
        np.partition(_distances(rows[i : i + CHUNK], x)[:, which], k, axis=1)[:, k] for i in range(0, len(rows), CHUNK)
    ]
    return np.concatenate(reach) * (1 + TIE)


def nearest_cosine(queries: ArrayLike, train: ArrayLike) -> Float64:
    """Cosine distance, 0 to 2, of each of (N, D) queries to the nearest of (M, D) training features: (N,).

    Its mean is the memorisation distance of MiFID (Bai et al. 2021, arXiv 2106.03062): images copied from the
    training set lie nearer to it than images that were never in it.
    """
    x, y = _features(queries, "queries", 1), _features(train, "train", 1)
    _require_same_width(x, y, "train")
    x, y = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (x, y))
    nearest = [(x[i : i + CHUNK] @ y.T).max(axis=1) for i in range(0, len(x), CHUNK)]
    distance: Float64 = 1 - np.concatenate(nearest)
    return np.maximum(distance, 0.0)


def bootstrap_interval(
    generated: ArrayLike, reference: tuple[Float64, Float64], resamples: int, seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval of the Fréchet distance over (N, D) generated features, the reference kept as it is.

    Resampled images repeat, which raises the distance; the interval is that of the resampled distances around their
    mean, laid around the distance itself.
    """
    x = _features(generated, "generated", 2)
    rng = np.random.default_rng(seed)
    whole = frechet_distance(*gaussian(x), *reference)
    drawn = [frechet_distance(*gaussian(x[rng.integers(len(x), size=len(x))]), *reference) for _ in range(resamples)]
    low, high = np.quantile(np.array(drawn) - np.mean(drawn), [0.025, 0.975])
    return float(whole + low), float(whole + high)


CHUNK = 512


def _distances(x: Float64, y: Float64) -> Float64:
    """Euclidean, (N, D) and (M, D) -> (N, M)."""
    found: Float64 = squared_distances(torch.from_numpy(x), torch.from_numpy(y)).sqrt().numpy()
    return found


def _features(value: ArrayLike, name: str, least: int) -> Float64:
    x = np.asarray(value, dtype=np.float64)
    if x.ndim != 2 or len(x) < least or x.shape[1] == 0:
        raise ArgumentError(name, got=x.shape, wanted=f"(N, D) with N >= {least}", remedy="give more images")
    _require_finite(x, name)
    return x


def _require_same_width(x: Float64, y: Float64, name: str) -> None:
    if x.shape[1] != y.shape[1]:
        raise ArgumentError(name, got=y.shape[1], wanted=f"{x.shape[1]} features, as the other has")
