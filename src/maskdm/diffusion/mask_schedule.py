"""Masks over a stage, a batch and the noise levels.

A `MaskSchedule` is a row of phases, equal parts of a stage; a phase is a list of `MaskGroup`s, parts of every batch; a
group is one masking, its share of the images, and the range of noise those images get. So a plain mask is one group in
one phase; a mixture has several groups; a ratio that changes over the stage has several phases; and a ratio that
depends on the noise has groups with ranges of noise of their own. Shapes are fixed for every group, which is what
compiled steps and the device want, and the distribution of t over the whole batch stays that of the process: a group
with a share of p gets p of the quantiles.

Why by noise: from much noise only the whole image can be guessed, from little noise a neighbourhood tells everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from maskdm.diffusion.masks import Masking

RatioSchedule = Literal["steps", "linear", "cosine"]


@dataclass(frozen=True)
class MaskGroup:
    """A part of every batch with one masking.

    Attributes:
        masking: of these images.
        share: of the batch, 0 to 1.
        noise: quantiles of the distribution of t, low and high, among which their times are drawn.
    """

    masking: Masking
    share: float = 1.0
    noise: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class MaskSchedule:
    """See the module; made by `constant`, `mixture`, `by_noise` and `over_stage`.

    Attributes:
        phases: the groups of each of equal parts of a stage.
    """

    phases: tuple[tuple[MaskGroup, ...], ...]

    def at(self, progress: float) -> tuple[MaskGroup, ...]:
        """The groups when so much of the stage is done, 0 to 1."""
        return self.phases[min(int(progress * len(self.phases)), len(self.phases) - 1)]

    @property
    def maskings(self) -> tuple[Masking, ...]:
        """All that occur, in order, each once."""
        return tuple(dict.fromkeys(group.masking for groups in self.phases for group in groups))

    @property
    def ratio(self) -> float:
        """The share of patches masked (or routed) on average over the stage, 0 to 1."""
        return sum(g.share * g.masking.ratio for groups in self.phases for g in groups) / len(self.phases)

    def __str__(self) -> str:
        if len(self.maskings) == 1:
            return str(self.maskings[0])
        if len(self.phases) > 1:
            ratios = ", ".join(f"{groups[0].masking.ratio:.0%}" for groups in self.phases)
            return f"{self.phases[0][0].masking.kind}, over the stage {ratios} masked"
        parts = "; ".join(
            f"{g.share:.0%} of a batch"
            + (f" (noise quantiles {g.noise[0]:.2f} to {g.noise[1]:.2f})" if g.noise != (0.0, 1.0) else "")
            + f" {g.masking}"
            for g in self.phases[0]
        )
        return f"{self.ratio:.1%} masked on average: {parts}"


def constant(masking: Masking) -> MaskSchedule:
    """One masking for everything."""
    return MaskSchedule(((MaskGroup(masking),),))


def mixture(parts: Sequence[tuple[Masking, float]]) -> MaskSchedule:
    """Several maskings side by side in every batch, with weights that need not add up to one."""
    total = sum(weight for _, weight in parts)
    return MaskSchedule((tuple(MaskGroup(masking, weight / total) for masking, weight in parts),))


def by_noise(maskings: Sequence[Masking]) -> MaskSchedule:
    """One masking for each of equally likely ranges of noise, from the least noise to the most."""
    n = len(maskings)
    return MaskSchedule((tuple(MaskGroup(m, 1 / n, (i / n, (i + 1) / n)) for i, m in enumerate(maskings)),))


def over_stage(maskings: Sequence[Masking]) -> MaskSchedule:
    """One masking for each of equal parts of the stage, in order; neighbours that are the same are kept apart."""
    return MaskSchedule(tuple((MaskGroup(m),) for m in maskings))


def ratios(values: Sequence[float], schedule: RatioSchedule, buckets: int) -> tuple[float, ...]:
    """The ratio in every one of the equal parts of a stage.

    Args:
        values: for steps, one for each part; for linear and cosine, the first and the last.
        schedule: steps, linear, or cosine (slow at both ends).
        buckets: number of parts for linear and cosine, at least 2.
    """
    if schedule == "steps":
        return tuple(values)
    first, last = values
    weights = [i / (buckets - 1) for i in range(buckets)]
    if schedule == "cosine":
        weights = [(1 - math.cos(math.pi * w)) / 2 for w in weights]
    return tuple(first + w * (last - first) for w in weights)


def group_slices(groups: Sequence[MaskGroup], batch_size: int) -> list[slice]:
    """Which images of a batch belong to which group: slices in order that cover all of them."""
    ends = [round(batch_size * end) for end in accumulate((group.share for group in groups), initial=0.0)]
    ends[-1] = batch_size
    return [slice(a, b) for a, b in pairwise(ends)]
