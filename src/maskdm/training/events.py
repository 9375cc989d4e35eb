"""The lines of a run's metrics.jsonl: what the loop writes down, and what everybody reads.

One JSON object a line, of one of seven kinds, told apart by `event`. What is not a number is written as JSON with NaN
and Infinity, so that a loss that broke is on record as it was.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError


class Event(BaseModel):
    """What all lines have.

    Attributes:
        event: of which kind it is.
        stage: the name of the stage.
        step, images: steps and images so far, over all stages.
    """

    model_config = ConfigDict(frozen=True)

    event: str
    stage: str
    step: int
    images: int

    def line(self) -> str:
        """As metrics.jsonl holds it, without the line break."""
        return json.dumps(self.model_dump())

    def numbers(self) -> dict[str, float]:
        """What a tracker plots: everything measured, as `train/loss` -> 0.31."""
        return {f"{self.event}/{key}": value for key, value in self if isinstance(value, float)}


class StageEvent(Event):
    """A stage begins.

    Attributes:
        index: of the stage, from 0.
        mask: its masks in words.
        mask_ratio: share of the patches that are masked on average, 0 to 1; for kind route, that go around the middle.
        patches: of an image.
        batch_size: images of a step, over all ranks.
        target_steps: length of the stage, None where a time limit ends it.
        started_from: where its weights come from, in words.
        image_size: (height, width) of its images in pixels; None where an earlier version wrote the line.
        patch_size: side of its patches in pixels; likewise.
    """

    event: Literal["stage"] = "stage"
    index: int
    mask: str
    mask_ratio: float
    patches: int
    batch_size: int
    target_steps: int | None
    started_from: str
    image_size: tuple[int, int] | None = None
    patch_size: int | None = None


class TrainEvent(Event):
    """Means over the steps since the line before.

    Attributes:
        loss: of training, in the unit of the run's process and weighting.
        grad_norm: before clipping, of the steps that were not skipped.
        skipped: steps without effect, whose gradients overflowed in fp16.
        lr: learning rate of the last step.
        images_per_second: over all ranks.
        seconds: of training so far, over all stages.
    """

    event: Literal["train"] = "train"
    loss: float
    grad_norm: float
    skipped: int = 0
    lr: float
    images_per_second: float
    seconds: FiniteFloat


HIDDEN = ((0.26, "fine detail"), (0.5, "texture"), (0.74, "shapes"), (1.0, "layout"))
"""What noise hides up to a level, and so what a network must know there: a rule of thumb, for images of 64 px."""

NO_ERROR = 1e-9
"""What rounding leaves of an error of 0."""


class NoiseRange(BaseModel):
    """The held-out error at some of its noise levels, sigma / (alpha + sigma).

    Attributes:
        low, high: of the levels.
        n: images that were asked at them.
        error_ema, error_raw: of the averaged weights, and of those being trained.
        error_linear: of the best linear filter, see `maskdm.evaluation.heldout.linear_errors`.
    """

    model_config = ConfigDict(frozen=True)

    low: float
    high: float
    n: int
    error_ema: float
    error_raw: float
    error_linear: float

    @property
    def levels(self) -> str:
        """0.02 to 0.26."""
        return f"{self.low:.2f} to {self.high:.2f}"

    @property
    def times_linear(self) -> float | None:
        """Error of the averaged weights over that of the filter; None where images are so alike that it has none."""
        return self.error_ema / self.error_linear if self.error_linear > NO_ERROR else None

    @property
    def hidden(self) -> str:
        """What the noise hides and low levels leave: fine detail, texture, shapes, or layout."""
        middle = (self.low + self.high) / 2
        return next((word for level, word in HIDDEN if middle <= level), HIDDEN[-1][1])


class HeldoutEvent(Event):
    """Error of the estimated image on held-out images, see `maskdm.diffusion.loss.image_error`.

    Attributes:
        error_ema, error_raw: of the averaged weights, and of those being trained.
        n: images.
        error_mean: of answering with the mean of these images; None where an earlier version wrote the line.
        by_noise: the same error by range of noise level, from nearly clean to nearly noise, of which it is the mean
            over images; empty where an earlier version wrote the line.
        seconds: of training so far, over all stages.
        image_size: (height, width) of the images, where the stage has smaller ones than the run's model: errors at two
            sizes are of two tasks, and do not compare. None where they are the model's.
        error_fresh: of fresh weights, measured where a network for other images or patches takes over those of the
            stage before.
    """

    event: Literal["heldout"] = "heldout"
    error_ema: float
    error_raw: float
    n: int
    seconds: FiniteFloat
    error_mean: float | None = None
    image_size: tuple[int, int] | None = None
    error_fresh: float | None = None
    by_noise: tuple[NoiseRange, ...] = ()

    def numbers(self) -> dict[str, float]:
        """Those of `by_noise` too, as `heldout/error_ema/noise_0.02-0.26` -> 0.0031.

        Another size of images has lines of its own: `heldout_32x32/error_ema`.
        """
        parts = {
            f"{self.event}/{key}/noise_{part.low:.2f}-{part.high:.2f}": value
            for part in self.by_noise
            for key, value in (("error_ema", part.error_ema), ("error_raw", part.error_raw))
        }
        found = super().numbers() | parts
        if self.image_size is None:
            return found
        own = f"{self.event}_{self.image_size[0]}x{self.image_size[1]}/"
        return {own + key.partition("/")[2]: value for key, value in found.items()}


class ScoreEvent(Event):
    """Images generated with the averaged weights against held-out ones (setting `eval.scores`).

    Attributes:
        title: the name of the distance with these features: "FID" with inception.
        features: in which images are compared.
        frechet_distance: of Gaussians fitted to both.
        kid, kid_error: kernel distance and its standard error.
        reference: held-out images.
        n: generated images.
        seconds: of training so far, over all stages.
    """

    event: Literal["score"] = "score"
    title: str
    features: str
    frechet_distance: float
    kid: float
    kid_error: float
    reference: int
    n: int
    seconds: FiniteFloat


class StageEndEvent(Event):
    """A stage has ended, `seconds` of training after it began."""

    event: Literal["stage_end"] = "stage_end"
    seconds: FiniteFloat


class EndEvent(Event):
    """The last stage has ended: the run is finished, after `seconds` of training over all stages."""

    event: Literal["end"] = "end"
    seconds: FiniteFloat


class StoppedEvent(Event):
    """Training stopped before its end, for `reason`; it may have been resumed since."""

    event: Literal["stopped"] = "stopped"
    reason: str


AnyEvent = StageEvent | TrainEvent | HeldoutEvent | ScoreEvent | StageEndEvent | EndEvent | StoppedEvent
_ADAPTER: TypeAdapter[AnyEvent] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="event")])


def parse_event(line: str) -> AnyEvent | None:
    """A line of metrics.jsonl -> its event, or None where it is of a kind that only a later version knows.

    Raises:
        pydantic.ValidationError: the line is damaged, or lacks what its kind has.
    """
    try:
        return _ADAPTER.validate_json(line)
    except ValidationError as error:
        if error.errors()[0]["type"] == "union_tag_invalid":
            return None
        raise
