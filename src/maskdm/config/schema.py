"""Settings: what they are and their defaults; `resolve` merges the layers in which they come.

The sections that have a class for each kind of network and process are in `model_config` and `process_config`, those of
stages in `stage_config`; the rest, and the whole, are here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from maskdm.config.model_config import MODEL_VARIANTS, ModelConfig, UViTConfig
from maskdm.config.process_config import PROCESS_VARIANTS, DDPMConfig, ProcessConfig
from maskdm.config.section import Count, PathText, Pixels, Positive, Probability, Section, Seed, Share, Whole
from maskdm.config.stage_config import StageConfig, default_stages
from maskdm.errors import ArgumentError

Where = Literal["auto", "device", "ram", "map", "stream"]


class DataConfig(Section):
    """Where the images come from and how they become arrays."""

    path: PathText = ""
    """A folder (searched recursively), a .zip, a .tar or a folder of them, an .npz with `images` and perhaps `labels`,
    or hf:NAME, hf:NAME:SPLIT, hf:NAME:CONFIG:SPLIT, a Hugging Face data set (docs/data.md). Flag: --data."""
    image_column: str = "auto"
    """Of a Hugging Face data set, the column of images. auto: `image` if there is one, else the first."""
    label_column: str = "auto"
    """Of a Hugging Face data set, the column of classes, numbers or words; none uses none. auto: the first of classes
    (ClassLabel), else one called label, labels, class, cls, class_name, category or fine_label."""
    image_size: Pixels | tuple[Pixels, Pixels] | Literal["auto"] = "auto"
    """Pixels: N, or [height, width]. auto: the size all images share, up to 128 px, else 64. Flag: --image-size."""
    channels: Literal["auto", 1, 2, 3, 4] = "auto"
    """1 gray, 2 gray and alpha, 3 RGB, 4 RGBA. auto: 1 if every image is gray, else 3."""
    background: str = "white"
    """Colour behind transparent images: a name or #rrggbb."""
    flip: Probability = 0.0
    """Probability that a training image is mirrored left to right."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    """What a damaged file does: it is named and left out, or it ends the run before it begins."""
    group_by: PathText | None = None
    """Images of one group stay on one side of the split: folder, a .csv with columns path and group, or a regular
    expression whose one group is searched in the path, e.g. `([^/-]+)[^/]*$`."""
    heldout_by: str | None = None
    """A regular expression: images in whose path it is found are the held-out ones, such as `^test/` for a published
    test set, instead of a random share. An audit cannot certify such a split."""
    heldout: Share = 0.10
    """Share of the images never trained on, for the held-out error and the audit (at most 10,000)."""
    calibration: Share = 0.05
    """Share of the images never trained on, set aside to calibrate the audit (at most 5,000)."""
    salt: PathText = "machine"
    """Key of the random split: machine (a secret kept beside the cache, so that runs on this machine share their
    split), public (a published one, for public images only), or the path of a file with at least 16 bytes."""
    cache_dir: PathText = "auto"
    """Where decoded images are kept. auto: $MASKDM_CACHE, else ~/.cache/maskdm."""
    white_level: Annotated[float, Field(gt=0, le=2**32)] | None = None
    """The value that is white in gray images of more than 8 bits, such as 4095 for 12 bits in 16; brighter ones are cut
    off. null: 65535 of integers and 1 of floats."""
    max_file_mb: Annotated[Whole, Field(gt=0, le=100_000)] = 256
    """Size of an image's file, or of its member of an archive when unpacked, in MB, above which it is left out."""
    max_pixels: Annotated[Whole, Field(gt=0, le=10**11)] = 178_956_970
    """Width times height of an image above which it is left out unopened (the default is Pillow's)."""
    store: Where = "auto"
    """Where decoded images lie while training: on the GPU, in memory, mapped from the cache on disk, or nowhere
    (stream: decoded whenever needed, no cache). auto: the first of the first three that fits; without a GPU, mapped."""


class EMAConfig(Section):
    """The moving average of the weights, which is what is sampled and released."""

    decay: Annotated[float, Field(gt=0, lt=1)] | Literal["power"] = "power"
    """power: the average's reach grows with the stage (EDM2), or a constant decay per step, from the first step."""
    sigma_rel: Annotated[float, Field(gt=0, lt=0.28)] = 0.1
    """For power: the average's width as a share of the steps so far."""


class TrainConfig(Section):
    """How training runs."""

    seed: Seed = 0
    """Decides weights, order, noise, masks, flips: everything random."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a device of torch."""
    mixed_precision: Literal["auto", "bf16", "fp16", "no"] = "auto"
    """Precision of the network; weights stay fp32. auto: bf16 where the device computes it, else no."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the work. ddp: each holds the whole model; fsdp: weights, average and optimizer state
    are sharded among them, for models that are too large otherwise."""
    compile: Literal["auto", "no", "default", "reduce-overhead", "max-autotune"] = "auto"
    """Whether torch compiles the network, and how (torch.compile's modes). auto: default on a GPU where torch finds the
    compilers that it needs, else no."""
    deterministic: bool = False
    """Sums in a fixed order on a GPU too, where some are faster in any order: needed there for a run that is resumed or
    repeated to end with the same weights bit for bit. An operation that has no such kernel is refused."""
    checkpoint_activations: bool = False
    """Activation checkpointing of the network's blocks: less memory, a third more work."""
    save_every: Positive = 1000
    """Steps between checkpoints (one is also written at the end of a stage and when interrupted)."""
    keep: Positive = 2
    """How many checkpoints stay; the newest."""


class EvalConfig(Section):
    """What is evaluated while training."""

    heldout_every: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = 50_000
    """Images of a stage between measurements of the held-out error, which is also measured as a stage begins and ends;
    a list has one number for each stage."""
    heldout_images: Count = 256
    """Held-out images it is measured on, always the same; 0 for none."""
    samples_every: Positive = 200_000
    """Images of a stage between sample grids."""
    samples: Annotated[Whole, Field(ge=0, le=65_536)] = 64
    """Images in a grid, seeds 0, 1, ...; 0 for no grids."""
    sample_steps: Annotated[Whole, Field(gt=0, le=100_000)] = 25
    """Steps for each, by the default sampler of maskdm sample."""
    scores: PathText | None = None
    """Features in which generated images are compared with the held-out ones while training, as by maskdm eval: pixels,
    inception, dinov2, clip, encoder, or a file; null for none."""
    scores_every: Positive = 1_000_000
    """Images of a stage between such scores, which are also taken as a stage ends."""
    score_images: Annotated[Whole, Field(ge=2, le=10**7)] = 500
    """Images generated for each."""


class LogConfig(Section):
    """What is written while training."""

    every: Positive = 50
    """Steps between lines of metrics.jsonl; nothing waits for the device in between."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also write to these (tensorboard comes with pip install 'maskdm[track]')."""


class Config(Section):
    """All settings of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = UViTConfig()
    process: ProcessConfig = DDPMConfig()
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)] = default_stages()
    ema: EMAConfig = EMAConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _stages_are_told_apart(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ArgumentError("stages", f"got stages named {', '.join(names)}", wanted="names of their own")
        every = self.eval.heldout_every
        if isinstance(every, tuple) and len(every) != len(names):
            raise ArgumentError("eval.heldout_every", got=every, wanted=f"one number for each of {len(names)} stages")
        return self


VARIANTS = {"model": MODEL_VARIANTS, "process": PROCESS_VARIANTS}
"""The sections of `Config` that have several classes."""


def as_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """N or (height, width) -> (height, width)."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size
