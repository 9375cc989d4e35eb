"""Statistics of an attack: how well scores separate members from held-out images, and how certain that is.

Scores are higher for images that look more like members. Nothing here chooses anything by looking at the outcome:
thresholds are conservative, and intervals are exact (Clopper-Pearson) or DeLong's. The distributions are scipy's; what
audits need beyond them (DeLong's error, Obuchowski's clusters, effective sample sizes) is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Float64 = NDArray[np.float64]
Clusters = tuple[Sequence[object], Sequence[object]]
"""The groups that members and held-out images belong to: people, scenes."""

MIN_CLUSTERS = 10
"""Clusters in which something must be found, or not found, before the spread between clusters is believed."""
MIN_FALSE_POSITIVES = 10
"""Expected false positives without which an operating point is not resolved."""


# --- area under the ROC curve ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Auc:
    """The area under the ROC curve: the probability that a member scores above a held-out image, ties counted half.

    Attributes:
        value: 0 to 1; 0.5 is chance.
        error: its standard error (DeLong et al. 1988).
        members, heldout: numbers of images.
    """

    value: float
    error: float
    members: int
    heldout: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval at a confidence `level`, by the normal distribution, cut to [0, 1]."""
        half = normal_quantile((1 + level) / 2) * self.error
        return max(self.value - half, 0.0), min(self.value + half, 1.0)

    def lower(self, level: float) -> float:
        """The one-sided lower bound at a confidence `level`."""
        return max(self.value - normal_quantile(level) * self.error, 0.0)

    @property
    def p_value(self) -> float:
        """Of the hypothesis that the AUC is one half, against more."""
        if self.error == 0:
            return float(self.value <= 0.5)
        return float(stats.norm.cdf((0.5 - self.value) / self.error))


def auc(members: ArrayLike, heldout: ArrayLike, clusters: Clusters | None = None) -> Auc:
    """The AUC with its standard error from placement values, in O(n log n).

    Images of one cluster are alike and were split together: with `clusters` the error counts a cluster as one
    observation (Obuchowski 1997). Where all placements are equal (a perfect attack) the error would be zero; it is at
    least that of one image, or cluster, on the wrong side.

    Args:
        members, heldout: scores, (N,) and (M,).
        clusters: the clusters of both.
    """
    m, h = np.asarray(members, np.float64), np.asarray(heldout, np.float64)
    above, below = _placements(m, h), _placements(h, m)
    value = float(above.mean())
    own = clusters or (None, None)
    error = math.sqrt(_variance_of_mean(above, own[0]) + _variance_of_mean(below, own[1]))
    fewest = min(len(x) if names is None else effective_clusters(names) for x, names in zip((m, h), own, strict=True))
    return Auc(value, max(error, 0.5 / fewest / 1.96), len(m), len(h))


def auc_difference(
    a: tuple[ArrayLike, ArrayLike], b: tuple[ArrayLike, ArrayLike], clusters: Clusters | None = None
) -> tuple[float, float]:
    """AUC of a minus AUC of b, and the standard error of the difference.

    Args:
        a, b: scores of (members, held-out images), of the same images in the same order.
        clusters: as in `auc`.

    Returns:
        The difference and its error, paired: DeLong's covariance of the two is subtracted.
    """
    (ma, ha), (mb, hb) = ((np.asarray(m, np.float64), np.asarray(h, np.float64)) for m, h in (a, b))
    members = _placements(ma, ha) - _placements(mb, hb)
    heldout = _placements(ha, ma) - _placements(hb, mb)
    own = clusters or (None, None)
    return float(members.mean()), math.sqrt(_variance_of_mean(members, own[0]) + _variance_of_mean(heldout, own[1]))


def _placements(x: Float64, y: Float64) -> Float64:
    """For each of x the share of y below it, ties counted half."""
    ordered = np.sort(y)
    found: Float64 = (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")) / (2 * len(y))
    return found


def _variance_of_mean(x: Float64, clusters: Sequence[object] | None) -> float:
    """Of independent values, or of clusters that are independent of each other."""
    if clusters is None:
        return float(x.var(ddof=1)) / len(x) if len(x) > 1 else 0.0
    _, number = np.unique(np.array(clusters, dtype=str), return_inverse=True)
    sums = np.bincount(number, weights=x - x.mean())
    return float(np.square(sums).sum()) / len(x) ** 2 * len(sums) / max(len(sums) - 1, 1)


# --- operating points ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OperatingPoint:
    """An attack at one threshold: an image that scores above it is called a member.

    Attributes:
        target: the false positive rate that was allowed.
        hits, members: members above the threshold, of how many.
        false, heldout: held-out images above the threshold, of how many.
        effective_n: effective sample sizes of members and of held-out images (see `effective_n`).
    """

    target: float
    hits: int
    members: int
    false: int
    heldout: int
    effective_n: tuple[int, int]

    @property
    def tpr(self) -> float:
        """The true positive rate: the share of members that are found."""
        return self.hits / self.members

    @property
    def fpr(self) -> float:
        """The false positive rate that was realised; never above the target."""
        return self.false / self.heldout

    def tpr_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Clopper-Pearson, with the effective number of members."""
        return share_interval(self.tpr, self.effective_n[0], level)

    def fpr_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Clopper-Pearson, with the effective number of held-out images."""
        return share_interval(self.fpr, self.effective_n[1], level)

    def epsilon(self, delta: float = 0.0) -> float:
        """A lower bound of the epsilon of differential privacy, from the worse ends of both intervals; 0 or more."""
        low, high = self.tpr_interval()[0], self.fpr_interval()[1]
        return max(math.log((low - delta) / high), 0.0) if low > delta else 0.0


def operating_point(
    members: ArrayLike, heldout: ArrayLike, target: float, clusters: Clusters | None = None
) -> OperatingPoint | None:
    """At the lowest threshold whose false positive rate does not exceed `target`.

    None where fewer than ten false positives would be expected: such a threshold is not resolved.
    """
    m, h = np.asarray(members, np.float64), np.asarray(heldout, np.float64)
    if target * len(h) < MIN_FALSE_POSITIVES - 1e-9:
        return None
    allowed = math.floor(target * len(h) + 1e-9)
    threshold = np.sort(h)[len(h) - allowed - 1]  # the largest that is not to be exceeded by more than `allowed`
    own = clusters or (None, None)
    counted = effective_n(m > threshold, own[0]), effective_n(h > threshold, own[1])
    return OperatingPoint(target, int((m > threshold).sum()), len(m), int((h > threshold).sum()), len(h), counted)


def effective_n(found: ArrayLike, clusters: Sequence[object] | None) -> int:
    """The effective sample size of a share among clustered images (Korn & Graubard 1998).

    Images of one cluster are alike: their number is divided by the design effect, which is never taken below one. What
    is found in fewer than ten clusters, or not found in fewer, says nothing of the design effect: then the effective
    size is at most that of `effective_clusters`.

    Args:
        found: whether each image is counted in the share, (N,) bool.
        clusters: the cluster of each, or None where images are independent.
    """
    x = np.asarray(found, np.float64)
    if clusters is None:
        return len(x)
    names = np.array(clusters, dtype=str)
    spread, share = _variance_of_mean(x, clusters), float(x.mean())
    count = share * (1 - share) / spread if spread > 1e-15 else len(x)
    if min(len(set(names[x > 0])), len(set(names[x == 0]))) < MIN_CLUSTERS:
        count = min(count, effective_clusters(clusters))
    return max(min(int(count + 1e-9), len(x)), 1)


def effective_clusters(clusters: Sequence[object]) -> float:
    """How many clusters of equal size would say as much (Kish 1965): many small ones do not make up for a large one."""
    _, sizes = np.unique(np.array(clusters, dtype=str), return_counts=True)
    return float(sizes.sum() ** 2 / np.square(sizes, dtype=np.float64).sum())


def share_interval(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson of a share among `n`, rounded outwards where it is no whole number of them."""
    low, high = math.floor(share * n + 1e-9), math.ceil(share * n - 1e-9)
    return clopper_pearson(low, n, level)[0], clopper_pearson(high, n, level)[1]


def balanced_accuracy(members: ArrayLike, heldout: ArrayLike) -> float:
    """(TPR + 1 - FPR) / 2, the threshold chosen on every second image and used on the others, and the other way."""
    m, h = np.asarray(members, np.float64), np.asarray(heldout, np.float64)
    found = []
    for half in (0, 1):
        threshold = _best_threshold(m[half::2], h[half::2])
        tpr, fpr = (float((x[1 - half :: 2] > threshold).mean()) for x in (m, h))
        found.append((tpr + 1 - fpr) / 2)
    return sum(found) / 2


def _best_threshold(m: Float64, h: Float64) -> float:
    candidates = np.unique(np.concatenate([m, h]))
    tpr = 1 - np.searchsorted(np.sort(m), candidates, "right") / len(m)
    fpr = 1 - np.searchsorted(np.sort(h), candidates, "right") / len(h)
    return float(candidates[np.argmax(tpr - fpr)])


def roc(members: ArrayLike, heldout: ArrayLike) -> tuple[Float64, Float64]:
    """All points of the exact ROC curve: false and true positive rates, rising from (0, 0) to (1, 1)."""
    m, h = np.sort(np.asarray(members, np.float64)), np.sort(np.asarray(heldout, np.float64))
    thresholds = np.unique(np.concatenate([m, h]))[::-1]
    fpr = 1 - np.searchsorted(h, thresholds, "left") / len(h)
    tpr = 1 - np.searchsorted(m, thresholds, "left") / len(m)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


# --- distributions ---------------------------------------------------------------------------------------------------


def normal_quantile(p: float) -> float:
    """The value below which a standard normal number lies with probability `p`."""
    return float(stats.norm.ppf(p))


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a share of which k in n were observed (Clopper & Pearson 1934)."""
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(stats.beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(stats.beta.ppf(1 - tail, k + 1, n - k))
    return low, high


def upper_bound(k: int, n: int, level: float = 0.95) -> float:
    """The exact one-sided bound of a share of which k in n were observed; for k = 0 about 3 / n (rule of three)."""
    return 1.0 if k == n else float(stats.beta.ppf(level, k + 1, n - k))


def detectable_auc(members: int, heldout: int, *, level: float = 0.99, power: float = 0.8) -> float:
    """The smallest AUC that so many images would reveal (Hanley & McNeil 1982, with the error at one half).

    Args:
        members, heldout: numbers of images.
        level: of the one-sided test.
        power: the probability with which that AUC is to be detected.
    """
    error = math.sqrt((members + heldout + 1) / (12 * members * heldout))
    return min(0.5 + (normal_quantile(level) + normal_quantile(power)) * error, 1.0)


def images_needed(auc: float, *, level: float = 0.99, power: float = 0.8) -> int:
    """As many images of each kind as `detectable_auc` needs for `auc`, rounded up by at most a tenth."""
    n = 2
    while detectable_auc(n, n, level=level, power=power) > auc:
        n = math.ceil(n * 1.1)
    return n


def welch(members: ArrayLike, heldout: ArrayLike) -> float:
    """p-value of the hypothesis that members score no higher on average (Welch 1947, one-sided, Student's t)."""
    m, h = np.asarray(members, np.float64), np.asarray(heldout, np.float64)
    if np.ptp(m) == 0 and np.ptp(h) == 0:
        return float(m.mean() <= h.mean())
    return float(stats.ttest_ind(m, h, equal_var=False, alternative="greater").pvalue)
