"""Settings: what they are, their defaults, and their precedence.

    defaults < recipe < --config file < key.sub=value on the command line

Sections are frozen and typed; the text under a field is its help (`maskdm train --settings` prints them all).
`settings` merges the layers and says what does not fit.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from maskdm.method.masking import Kind

Positive = Annotated[int, Field(gt=0)]
Side = Annotated[int, Field(gt=0, le=65_536)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class DataConfig(Section):
    """Where the pictures come from and how they become arrays."""

    path: str = ""
    """A folder (searched recursively), a .zip, or an .npz with `images` and perhaps `labels`. Flag: --data."""
    image_size: Side | tuple[Side, Side] | Literal["auto"] = "auto"
    """Pixels: N, or [height, width]. auto: the size all pictures share, up to 128 px, else 64. Flag: --image-size."""
    channels: Literal["auto", 1, 2, 3, 4] = "auto"
    """1 gray, 2 gray and alpha, 3 RGB, 4 RGBA. auto: 1 if every picture is gray, else 3."""
    background: str = "white"
    """Colour behind transparent pictures: a name or #rrggbb."""
    flip: Probability = 0.0
    """Probability that a training image is mirrored left to right."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    """What a damaged file does: it is named and left out, or it ends the run before it begins."""
    group_by: str | None = None
    """Pictures of one group stay on one side of the split: folder, a .csv with columns path and group, or a regular
    expression whose one group is searched in the path, e.g. `([^/-]+)[^/]*$`."""
    heldout: Share = 0.10
    """Share of the pictures never trained on, for the held-out loss and the audit (at most 10,000)."""
    calibration: Share = 0.05
    """Share of the pictures never trained on, set aside to calibrate the audit (at most 5,000)."""
    salt: str = "machine"
    """Key of the random split: machine (a secret kept beside the cache, so that runs on this machine share their
    split), public (a published one, for public pictures only), or the path of a file with at least 16 bytes."""
    cache_dir: str = "auto"
    """Where decoded pictures are kept. auto: $MASKDM_CACHE, else ~/.cache/maskdm."""


class ModelConfig(Section):
    """The network."""

    backbone: Literal["uvit"] = "uvit"
    """uvit: a vision transformer with long skips, which drops hidden patches before its first layer."""
    patch_size: Side = 4
    """Side of a patch in pixels; must divide the image."""
    width: Side = 512
    """Width of a token."""
    depth: Annotated[int, Field(gt=0, le=1024)] = 13
    """Blocks in all, odd."""
    heads: Side = 8
    """Attention heads; must divide the width."""
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    """Hidden width of a block's MLP over its width."""
    qkv_bias: bool = False
    """Bias in the linear layers of queries, keys and values."""
    time_mlp: bool = False
    """Two linear layers between the sinusoids of the time and its token."""
    classes: Literal["auto", "none"] = "auto"
    """auto: class-conditional where the data has classes (sub-folders, dataset.json, labels). none: never."""


class ProcessConfig(Section):
    """The forward process and what the network predicts."""

    schedule: Literal["linear", "cosine"] = "cosine"
    """Noise schedule of DDPM."""
    timesteps: Annotated[int, Field(ge=2)] = 1000
    """Noise levels."""
    prediction: Literal["eps", "x0", "v"] = "x0"
    """What the network's output means: the noise, the image, or v = alpha eps - sigma x0."""


class MaskConfig(Section):
    """What a stage hides."""

    kind: Kind = "none"
    """none, patch (random patches), block (random blocks of patches), or crop (all but one random square)."""
    ratio: Share = 0.0
    """Share of the patches to hide, 0 <= ratio < 1; the grid's nearest is used and told."""
    block: Positive = 4
    """Side of a block in patches, for kind block."""
    offset: bool = False
    """Shift the cut into blocks at random for every image, for kind block."""


class StageConfig(Section):
    """One stage of training: exactly one of steps, images and minutes says how long it is."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]
    """What it is called in logs and files."""
    steps: Positive | None = None
    """Length in optimiser steps."""
    images: Positive | None = None
    """Length in images (rounded up to whole steps)."""
    minutes: PositiveFloat | None = None
    """Length in minutes of training; such a stage ends by the clock and cannot be repeated bit for bit."""
    batch_size: Positive = 128
    """Images a step, over all ranks."""
    micro_batch: Positive | None = None
    """Images at once on a rank; gradients are accumulated to the batch. Default: the whole share of the rank."""
    lr: PositiveFloat = 2e-4
    """Peak learning rate."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """constant after the warm-up, or cosine down to zero at the end of the stage."""
    warmup_steps: Count = 0
    """Steps over which the rate rises linearly from zero."""
    betas: tuple[Share, Share] = (0.99, 0.99)
    """AdamW's moments."""
    weight_decay: NonNegativeFloat = 0.03
    """AdamW's decay, on the weights of linear and convolutional layers only."""
    clip: PositiveFloat | None = 1.0
    """Largest gradient norm; null for none."""
    label_dropout: Probability = 0.1
    """Probability that a label is replaced by "no class", which trains the unconditional answer."""
    mask: MaskConfig = MaskConfig()
    """What is hidden."""
    init_from: str = "previous"
    """previous (the stage before; fresh weights for the first), none (fresh), or the path of a run or weights file."""
    weights: Literal["ema", "raw"] = "ema"
    """Which weights of `init_from` to start from."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        lengths = [n for n, value in zip(LENGTHS, (self.steps, self.images, self.minutes), strict=True) if value]
        if len(lengths) != 1:
            raise ValueError(f"exactly one of steps, images and minutes, got {' and '.join(lengths) or 'none of them'}")
        return self


LENGTHS = ("steps", "images", "minutes")


class EMAConfig(Section):
    """The moving average of the weights, which is what is sampled and released."""

    decay: Annotated[float, Field(gt=0, lt=1)] | Literal["power"] = "power"
    """power: the average's reach grows with the stage (EDM2), or a constant decay per step, from the first step."""
    sigma_rel: Annotated[float, Field(gt=0, lt=0.28)] = 0.1
    """For power: the average's width as a share of the steps so far."""


class TrainConfig(Section):
    """How training runs."""

    seed: Count = 0
    """Decides weights, order, noise, masks, flips: everything random."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a device of torch."""
    mixed_precision: Literal["auto", "bf16", "fp16", "no"] = "auto"
    """Arithmetic of the network; weights stay fp32. auto: bf16 where the device computes it, else no."""
    save_every: Positive = 1000
    """Steps between checkpoints (one is also written at the end of a stage and when interrupted)."""
    keep: Positive = 2
    """How many checkpoints stay; the newest."""


class EvalConfig(Section):
    """What is looked at along the way."""

    heldout_every: Positive = 50_000
    """Images between measurements of the held-out loss."""
    heldout_images: Count = 256
    """Held-out images it is measured on, always the same; 0 for none."""
    samples_every: Positive = 200_000
    """Images between sample grids."""
    samples: Count = 64
    """Pictures in a grid, seeds 0, 1, ...; 0 for no grids."""
    sample_steps: Positive = 50
    """DDIM steps for each."""


class LogConfig(Section):
    """What is written while training."""

    every: Positive = 50
    """Steps between lines of metrics.jsonl; nothing waits for the device in between."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also write to these (tensorboard comes with pip install 'maskdm[track]')."""


def default_stages() -> tuple[StageConfig, ...]:
    """Masked pre-training, then a shorter fine-tuning on whole images."""
    return (
        StageConfig(name="pretrain", steps=100_000, mask=MaskConfig(kind="block", ratio=0.75, block=2)),
        StageConfig(name="finetune", steps=50_000, warmup_steps=1000),
    )


class Config(Section):
    """All settings of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    process: ProcessConfig = ProcessConfig()
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)] = default_stages()
    ema: EMAConfig = EMAConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages with names of their own, got {', '.join(names)}")
        return self


class ModelSpec(Section):
    """Everything needed to rebuild a denoiser around its weights; it travels in the weights file."""

    model: ModelConfig
    process: ProcessConfig
    image_size: tuple[int, int]
    channels: int
    class_names: tuple[str, ...] = ()


def as_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """N or (height, width) -> (height, width)."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def to_dict(section: Section) -> dict[str, object]:
    """Plain mappings, lists and scalars, as in a file."""
    return section.model_dump(mode="json")
