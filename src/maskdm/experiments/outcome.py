"""What came out of a comparison, as numbers: read by the conclusion and by the page, so nothing here brings torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Evaluation:
    """One measurement during training.

    Attributes:
        spent: share of the budget spent so far, 0 to 1.
        value: the held-out error, or the Fréchet distance; lower is better.
    """

    spent: float
    value: float


@dataclass(frozen=True)
class Outcome:
    """One arm with one seed.

    Attributes:
        arm, seed: which.
        run: its folder.
        evaluations: held-out errors of the averaged weights, in the order of training; at least one.
        images: of training, in all.
        seconds: likewise.
        distances: Fréchet distances, where `eval.scores` asks for them.
        features: in which they were taken, weights included, and with how many images.
        budget: share of the budget that the arm was given, 0 to 1.
        steps: of the optimizer, in all; None where that is not known.
    """

    arm: str
    seed: int
    run: Path
    evaluations: tuple[Evaluation, ...]
    images: int
    seconds: float
    distances: tuple[Evaluation, ...] = ()
    features: str = ""
    budget: float = 1.0
    steps: int | None = None

    @property
    def final_error(self) -> float:
        """The last held-out error."""
        return self.evaluations[-1].value

    @property
    def final_distance(self) -> float | None:
        """The last Fréchet distance, None where there are none."""
        return self.distances[-1].value if self.distances else None


@dataclass(frozen=True)
class ComparisonSetup:
    """What was compared, for whoever reads the page without the file.

    Attributes:
        stages: of every arm, in words.
        data: the images that all arms were trained on.
        machine: where.
        version: of maskdm.
        command: by which it was started.
    """

    stages: Mapping[str, Sequence[str]]
    data: str
    machine: str
    version: str
    command: str
