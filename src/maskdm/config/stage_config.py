"""Settings of a stage of training, and of what it masks."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from maskdm.config.section import (
    BatchSize,
    Count,
    PathText,
    Pixels,
    Positive,
    PositiveFloat,
    Probability,
    Scale,
    Section,
    Share,
    Side,
    Whole,
)
from maskdm.errors import ArgumentError

MaskName = Literal["none", "patch", "block", "crop", "route"]


class MaskPart(Section):
    """One mask of a mixture."""

    kind: MaskName | Literal["auto"]
    """As mask.kind."""
    ratio: Share | Literal["auto"] = "auto"
    """As mask.ratio, but one for the whole stage."""
    block: Side | Literal["auto"] = "auto"
    """As mask.block."""
    offset: bool = False
    """As mask.offset."""
    share: Scale = 1.0
    """Its part of every batch, against those of the others."""


class MaskConfig(Section):
    """What a stage masks."""

    kind: MaskName | Literal["auto"] = "none"
    """none, patch (random patches), block (random blocks of patches), crop (all but one random rectangle), route
    (random patches bypass the middle of the network instead of being masked: uvit and jit), or auto: block where there
    are 256 patches or more, or block or offset are given; else patch, or crop for a unet."""
    ratio: Share | Annotated[tuple[Share, ...], Field(min_length=2)] | Literal["auto"] = "auto"
    """Share of the patches to mask, 0 <= ratio < 1; the nearest that the grid allows is used and logged. A list changes
    over the stage, see mask.schedule. auto: 0.875 where there are 256 patches or more (docs/evidence.md), else 0.5; for
    crop 0.75, for route 0.5, for none 0."""
    schedule: Literal["steps", "linear", "cosine"] = "steps"
    """How a list of ratios is meant: equal parts of the stage, or a line or half a cosine from first to last."""
    buckets: Annotated[Whole, Field(ge=2, le=100)] = 6
    """In how many parts a line or cosine is taken; shapes stay fixed in each."""
    by_noise: tuple[Share, ...] = ()
    """Ratios for equally likely ranges of noise, from the least noise to the most, instead of mask.ratio: such as
    [0.9, 0.75, 0.5, 0]."""
    block: Side | Literal["auto"] = "auto"
    """Side of a block in patches, for kind block. auto: a quarter of the grid's shorter side, rounded down."""
    offset: bool = False
    """Shift the cut into blocks at random for every image, for kind block."""
    mixture: tuple[MaskPart, ...] = ()
    """Several masks side by side in every batch, instead of all the above: a list of {kind, ratio, block, offset,
    share}."""

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        own = "with mask.mixture, whose masks have their own"
        if self.mixture and self.kind != "none":
            raise ArgumentError("kind", got=self.kind, wanted=f"none {own}")
        if self.mixture and self.ratio not in ("auto", 0):
            raise ArgumentError("ratio", got=self.ratio, wanted=f"0 {own}")
        if self.mixture and self.by_noise:
            raise ArgumentError("by_noise", got=self.by_noise, wanted=f"[] {own}")
        if self.by_noise and self.ratio not in ("auto", 0):
            raise ArgumentError("ratio", got=self.ratio, wanted="0 with mask.by_noise, which has all the ratios")
        if self.schedule != "steps" and not (isinstance(self.ratio, tuple) and len(self.ratio) == 2):
            raise ArgumentError("ratio", got=self.ratio, wanted=f"[first, last] with mask.schedule {self.schedule}")
        return self


class StageConfig(Section):
    """One stage of training: exactly one of steps, images and minutes says how long it is."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]
    """What it is called in logs and files."""
    steps: Positive | None = None
    """Length in optimizer steps."""
    images: Positive | None = None
    """Length in images (rounded up to whole steps)."""
    minutes: PositiveFloat | None = None
    """Length in minutes of training (wall-clock time); such a stage cannot be repeated bit for bit."""
    batch_size: BatchSize = 128
    """Images a step, over all ranks."""
    micro_batch: BatchSize | Literal["auto"] | None = None
    """Images at once on a rank; gradients are accumulated to the batch. null: the whole share of the rank, and half of
    it from then on if memory runs out. auto: the most that fits, by a measurement as the stage begins."""
    lr: Annotated[float, Field(gt=0, le=1e4)] = 2e-4
    """Peak learning rate."""
    lr_schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """constant; cosine, falling over the whole stage; or wsd (warm-up, stable, decay): constant, and falling as
    1 - sqrt over the last part of the stage."""
    lr_floor: Share = 0.0
    """Share of the peak that cosine and wsd end at."""
    decay_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the stage over which wsd falls. null: 0.2."""
    warmup_steps: Count = 0
    """Steps over which the rate rises linearly from zero."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: Muon for the matrices of linear layers between the first and the last, AdamW for the rest
    (convolutions too), at the same learning rate and weight decay. Needs torch 2.9."""
    betas: tuple[Share, Share] = (0.99, 0.99)
    """Betas of AdamW; Muon's momentum is 0.95."""
    weight_decay: Annotated[float, Field(ge=0, le=1e4)] = 0.03
    """Weight decay, decoupled, on the weights of linear and convolutional layers only."""
    clip: PositiveFloat | None = 1.0
    """Largest gradient norm; null for none."""
    label_dropout: Probability = 0.1
    """Probability that a label is replaced by "no class", which trains the unconditional model."""
    image_size: Pixels | tuple[Pixels, Pixels] | None = None
    """Pixels of the images in this stage, N or [height, width]: both sides of data.image_size divided by one whole
    number, whose squares of pixels are averaged. null: data.image_size, as the last stage must have."""
    patch_size: Side | None = None
    """Side of a patch in this stage. null: model.patch_size, as the last stage must have."""
    shift: Scale = 1.0
    """Factor of sigma / alpha in this stage, over that of the process; 1 in the last stage. Averaging pixels takes off
    noise: 0.5 at half the size is the noise of the whole image as at full size (docs/usage.md)."""
    mask: MaskConfig = MaskConfig()
    """What is masked."""
    init_from: PathText = "previous"
    """previous (the stage before; fresh weights for the first), none (fresh), or the path of a run or weights file."""
    weights: Literal["ema", "raw"] = "ema"
    """Which weights of `init_from` to start from."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        lengths = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(lengths) != 1:
            got = " and ".join(lengths) or "none of them"
            raise ArgumentError("", f"got {got}", wanted="exactly one of steps, images and minutes")
        return self

    @model_validator(mode="after")
    def _schedule_has_its_options(self) -> Self:
        schedule = f"lr_schedule {self.lr_schedule}"
        if self.lr_floor and self.lr_schedule == "constant":
            remedy = "leave it out, or choose lr_schedule cosine or wsd"
            raise ArgumentError("lr_floor", got=self.lr_floor, wanted=f"0 with {schedule}", remedy=remedy)
        if self.decay_share is not None and self.lr_schedule != "wsd":
            remedy = "leave it out, or choose lr_schedule wsd"
            raise ArgumentError("decay_share", got=self.decay_share, wanted=f"null with {schedule}", remedy=remedy)
        return self


LENGTHS = ("steps", "images", "minutes")


def default_stages() -> tuple[StageConfig, ...]:
    """Masked pre-training, then a shorter fine-tuning on whole images."""
    return (
        StageConfig(name="pretrain", steps=200_000, mask=MaskConfig(kind="auto")),
        StageConfig(name="finetune", steps=50_000, warmup_steps=1000),
    )
