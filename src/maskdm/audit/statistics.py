"""Statistics of an attack: how well scores tell members from held-out pictures, and how sure that is.

Scores are higher for pictures that look more like members. Nothing here chooses anything by looking at the outcome:
thresholds are conservative, and intervals are exact or DeLong's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]
NORMAL = NormalDist()


TELLING = 10
"""Clusters in which something must be found, or not, before their spread is believed."""


@dataclass(frozen=True)
class Auc:
    """The area under the ROC curve: the chance that a member scores above a held-out picture, ties as half.

    Attributes:
        value: 0 to 1; 0.5 tells nothing.
        error: its standard error (DeLong et al. 1988).
        members, heldout: how many pictures of each.
    """

    value: float
    error: float
    members: int
    heldout: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided."""
        half = NORMAL.inv_cdf((1 + level) / 2) * self.error
        return max(self.value - half, 0.0), min(self.value + half, 1.0)

    def lower(self, level: float) -> float:
        """A one-sided bound."""
        return max(self.value - NORMAL.inv_cdf(level) * self.error, 0.0)

    @property
    def p_value(self) -> float:
        """Of one half, against more."""
        if self.error == 0:
            return float(self.value <= 0.5)
        return NORMAL.cdf((0.5 - self.value) / self.error)


Clusters = tuple[Sequence[object], Sequence[object]]
"""The groups that members and held-out pictures belong to: people, scenes."""


def auc(members: ArrayLike, heldout: ArrayLike, clusters: Clusters | None = None) -> Auc:
    """With the error from placement values, in O(n log n).

    Pictures of one cluster are alike and were split together: with `clusters` the error counts them as one (Obuchowski
    1997). Where all placements are equal (a perfect attack) the error is zero; then it is that of one picture, or
    cluster, amiss.
    """
    m, h = np.asarray(members, np.float64), np.asarray(heldout, np.float64)
    above, below = _placements(m, h), _placements(h, m)
    value = float(above.mean())
    own = clusters or (None, None)
    error = math.sqrt(_variance_of_mean(above, own[0]) + _variance_of_mean(below, own[1]))
    fewest = min(len(x) if names is None else effective(names) for x, names in zip((m, h), own, strict=True))
    return Auc(value, max(error, 0.5 / fewest / 1.96), len(m), len(h))


def difference(
    a: tuple[ArrayLike, ArrayLike], b: tuple[ArrayLike, ArrayLike], clusters: Clusters | None = None
) -> tuple[float, float]:
    """AUC of a less AUC of b, (members, held-out) of the same pictures in the same order, and its standard error.

    Paired: DeLong's covariance of the two is taken off. `clusters` as in `auc`.
    """
    (ma, ha), (mb, hb) = ((np.asarray(m, np.float64), np.asarray(h, np.float64)) for m, h in (a, b))
    members = _placements(ma, ha) - _placements(mb, hb)
    heldout = _placements(ha, ma) - _placements(hb, mb)
    own = clusters or (None, None)
    return float(members.mean()), math.sqrt(_variance_of_mean(members, own[0]) + _variance_of_mean(heldout, own[1]))


def _placements(x: Float64, y: Float64) -> Float64:
    """For each of x the share of y below it, ties as half."""
    ordered = np.sort(y)
    found: Float64 = (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")) / (2 * len(y))
    return found


def _variance_of_mean(x: Float64, clusters: Sequence[object] | None) -> float:
    if clusters is None:
        return _variance(x) / len(x)
    _, number = np.unique(np.array(clusters, dtype=str), return_inverse=True)
    sums = np.bincount(number, weights=x - x.mean())
    return float(np.square(sums).sum()) / len(x) ** 2 * len(sums) / max(len(sums) - 1, 1)


def _variance(x: Float64) -> float:
    return float(x.var(ddof=1)) if len(x) > 1 else 0.0


@dataclass(frozen=True)
class Operating:
    """An attack at one threshold: above it a picture is called a member.

    Attributes:
        target: the share of false positives that was allowed.
        hits, members: members above it, of how many.
        false, heldout: held-out pictures above it, of how many.
        worth: as how many independent pictures either count (see `worth`).
    """

    target: float
    hits: int
    members: int
    false: int
    heldout: int
    worth: tuple[int, int]

    @property
    def tpr(self) -> float:
        """Members found."""
        return self.hits / self.members

    @property
    def fpr(self) -> float:
        """Held-out pictures taken for members; never above the target."""
        return self.false / self.heldout

    def tpr_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Clopper-Pearson, by what members are worth."""
        return interval_of_share(self.tpr, self.worth[0], level)

    def fpr_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Clopper-Pearson, by what held-out pictures are worth."""
        return interval_of_share(self.fpr, self.worth[1], level)

    def epsilon(self, delta: float = 0.0) -> float:
        """A lower bound of the epsilon of differential privacy, from the worse ends of both intervals; 0 or more."""
        low, high = self.tpr_interval()[0], self.fpr_interval()[1]
        return max(math.log((low - delta) / high), 0.0) if low > delta else 0.0


def operating(
    members: ArrayLike, heldout: ArrayLike, target: float, clusters: Clusters | None = None
) -> Operating | None:
    """At the lowest threshold with at most a share `target` of false positives.

    None where fewer than ten false positives would be expected: such a threshold is not resolved.
    """
    m, h = np.asarray(members, np.float64), np.asarray(heldout, np.float64)
    if target * len(h) < 10 - 1e-9:
        return None
    allowed = math.floor(target * len(h) + 1e-9)
    threshold = np.sort(h)[len(h) - allowed - 1]  # the largest that is not to be exceeded by more than `allowed`
    own = clusters or (None, None)
    counted = worth(m > threshold, own[0]), worth(h > threshold, own[1])
    return Operating(target, int((m > threshold).sum()), len(m), int((h > threshold).sum()), len(h), counted)


def worth(found: ArrayLike, clusters: Sequence[object] | None) -> int:
    """As how many independent pictures these count where the share that was found is asked (Korn & Graubard 1998).

    Pictures of one cluster are alike: their number is divided by the design effect, which is never taken below one.
    What is found in fewer than ten clusters, or not found in fewer, says nothing of that: then they are worth no more
    than clusters.
    """
    x = np.asarray(found, np.float64)
    if clusters is None:
        return len(x)
    names = np.array(clusters, dtype=str)
    spread, share = _variance_of_mean(x, clusters), float(x.mean())
    count = share * (1 - share) / spread if spread > 1e-15 else len(x)
    if min(len(set(names[x > 0])), len(set(names[x == 0]))) < TELLING:
        count = min(count, effective(clusters))
    return max(min(int(count + 1e-9), len(x)), 1)


def effective(clusters: Sequence[object]) -> float:
    """How many clusters of equal size would tell as much (Kish 1965): one large one is not made good by many small."""
    _, sizes = np.unique(np.array(clusters, dtype=str), return_counts=True)
    return float(sizes.sum() ** 2 / np.square(sizes, dtype=np.float64).sum())


def interval_of_share(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson of a share among `n`, to the outside where it is no whole number of them."""
    low, high = math.floor(share * n + 1e-9), math.ceil(share * n - 1e-9)
    return clopper_pearson(low, n, level)[0], clopper_pearson(high, n, level)[1]


def balanced_accuracy(members: ArrayLike, heldout: ArrayLike) -> float:
    """Half of TPR + 1 - FPR, the threshold chosen on every second picture and used on the others, and the other way."""
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
    """All points of the exact curve, (false, true) positives as shares, from (0, 0) to (1, 1)."""
    m, h = np.sort(np.asarray(members, np.float64)), np.sort(np.asarray(heldout, np.float64))
    thresholds = np.unique(np.concatenate([m, h]))[::-1]
    fpr = 1 - np.searchsorted(h, thresholds, "left") / len(h)
    tpr = 1 - np.searchsorted(m, thresholds, "left") / len(m)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a share of which k in n were seen (Clopper & Pearson 1934)."""
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else _solve(lambda p: _at_least(k, n, p), tail)
    high = 1.0 if k == n else _solve(lambda p: 1 - _at_most(k, n, p), 1 - tail)
    return low, high


def upper_bound(k: int, n: int, level: float = 0.95) -> float:
    """The exact one-sided bound of a share of which k in n were seen; for k = 0 about 3 / n (rule of three)."""
    return 1.0 if k == n else _solve(lambda p: 1 - _at_most(k, n, p), level)


def _solve(rising: Callable[[float], float], wanted: float) -> float:
    """Where a rising function of a share has a value."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2


def _at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) of a binomial law."""
    if p <= 0:
        return 1.0
    if p >= 1:
        return float(k >= n)
    if k < 0:
        return 0.0
    i = np.arange(k + 1)
    logs = _log_factorials(n)
    terms = logs[n] - logs[i] - logs[n - i] + i * math.log(p) + (n - i) * math.log1p(-p)
    return float(min(np.exp(terms).sum(), 1.0))


def _at_least(k: int, n: int, p: float) -> float:
    return 1 - _at_most(k - 1, n, p)


@cache
def _log_factorials(n: int) -> Float64:
    """Of 0 to n."""
    found: Float64 = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    return found


def detectable_auc(members: int, heldout: int, *, level: float = 0.99, power: float = 0.8) -> float:
    """The smallest AUC that so many pictures would show with this power (Hanley & McNeil 1982, errors at one half)."""
    error = math.sqrt((members + heldout + 1) / (12 * members * heldout))
    return min(0.5 + (NORMAL.inv_cdf(level) + NORMAL.inv_cdf(power)) * error, 1.0)


def pictures_needed(auc: float, *, level: float = 0.99, power: float = 0.8) -> int:
    """As many of each kind as `detectable_auc` needs for `auc`."""
    n = 2
    while detectable_auc(n, n, level=level, power=power) > auc:
        n = math.ceil(n * 1.1)
    return n


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for their number (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min((len(p_values) - rank) * p_values[i], 1.0))
        adjusted[i] = least
    return adjusted


def welch(members: ArrayLike, heldout: ArrayLike) -> float:
    """p that members score no higher on average, all of them together (Welch 1947, by the normal law: n is large)."""
    m, h = np.asarray(members, np.float64), np.asarray(heldout, np.float64)
    error = math.sqrt(_variance(m) / len(m) + _variance(h) / len(h))
    if error == 0:
        return float(m.mean() <= h.mean())
    return NORMAL.cdf(float(h.mean() - m.mean()) / error)
