"""Masks over a stage, a batch and the noise levels.

A `MaskPlan` is a row of moments, equal parts of a stage; a moment is a list of `Portion`s, parts of every batch; a
portion is one masking, its share of the images, and the range of noise those images get. So a plain mask is one portion
in one moment; a mixture has several portions; a ratio that changes over the stage has several moments; and a ratio that
depends on the noise has portions with ranges of noise of their own. Shapes are fixed for every portion, which is what
compiled steps and the device want, and the law of t over the whole batch stays that of the process: a portion with a
share of p gets p of the quantiles.

Why by noise: from much noise only the whole picture can be guessed, from little noise a neighbourhood tells everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from maskdm.diffusion.masks import Masking

Schedule = Literal["steps", "linear", "cosine"]


@dataclass(frozen=True)
class Portion:
    """A part of every batch with one masking.

    Attributes:
        masking: of these images.
        share: of the batch, 0 to 1.
        noise: quantiles of the law of t, low and high, among which their times are drawn.
    """

    masking: Masking
    share: float = 1.0
    noise: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class MaskPlan:
    """See the module; made by `constant`, `mixture`, `by_noise` and `over_stage`."""

    moments: tuple[tuple[Portion, ...], ...]

    def at(self, through: float) -> tuple[Portion, ...]:
        """The portions when the stage has come `through` of its way, 0 to 1."""
        return self.moments[min(int(through * len(self.moments)), len(self.moments) - 1)]

    @property
    def maskings(self) -> tuple[Masking, ...]:
        """All that occur, in order, each once."""
        return tuple(dict.fromkeys(p.masking for portions in self.moments for p in portions))

    @property
    def ratio(self) -> float:
        """The share of patches hidden (or routed) on average over the stage."""
        return sum(p.share * p.masking.ratio for moment in self.moments for p in moment) / len(self.moments)

    def __str__(self) -> str:
        if len(self.maskings) == 1:
            return str(self.maskings[0])
        if len(self.moments) > 1:
            ratios = ", ".join(f"{moment[0].masking.ratio:.0%}" for moment in self.moments)
            return f"{self.moments[0][0].masking.kind}, over the stage {ratios} hidden"
        parts = "; ".join(
            f"{p.share:.0%} of a batch"
            + (f" (noise quantiles {p.noise[0]:.2f} to {p.noise[1]:.2f})" if p.noise != (0.0, 1.0) else "")
            + f" {p.masking}"
            for p in self.moments[0]
        )
        return f"{self.ratio:.1%} hidden on average: {parts}"


def constant(masking: Masking) -> MaskPlan:
    """One masking for everything."""
    return MaskPlan(((Portion(masking),),))


def mixture(parts: Sequence[tuple[Masking, float]]) -> MaskPlan:
    """Several maskings side by side in every batch, with weights that need not add up to one."""
    total = sum(weight for _, weight in parts)
    return MaskPlan((tuple(Portion(masking, weight / total) for masking, weight in parts),))


def by_noise(maskings: Sequence[Masking]) -> MaskPlan:
    """One masking for each of equally likely ranges of noise, from the least noise to the most."""
    n = len(maskings)
    return MaskPlan((tuple(Portion(m, 1 / n, (i / n, (i + 1) / n)) for i, m in enumerate(maskings)),))


def over_stage(maskings: Sequence[Masking]) -> MaskPlan:
    """One masking for each of equal parts of the stage, in order; neighbours that are the same are kept apart."""
    return MaskPlan(tuple((Portion(m),) for m in maskings))


def ratios(values: Sequence[float], schedule: Schedule, buckets: int) -> tuple[float, ...]:
    """The ratio in every one of the equal parts of a stage.

    Args:
        values: for steps, one for each part; for linear and cosine, the first and the last.
        schedule: steps, linear, or cosine (slow at both ends).
        buckets: number of parts for linear and cosine, at least 2.
    """
    if schedule == "steps":
        return tuple(values)
    first, last = values
    way = [i / (buckets - 1) for i in range(buckets)]
    if schedule == "cosine":
        way = [(1 - math.cos(math.pi * w)) / 2 for w in way]
    return tuple(first + w * (last - first) for w in way)


def parts(portions: Sequence[Portion], batch_size: int) -> list[slice]:
    """Which images of a batch belong to which portion: slices in order that cover all of them."""
    ends = [round(batch_size * end) for end in accumulate((p.share for p in portions), initial=0.0)]
    ends[-1] = batch_size
    return [slice(a, b) for a, b in pairwise(ends)]
