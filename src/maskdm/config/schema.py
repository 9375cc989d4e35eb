"""Settings: what they are, their defaults, and their precedence.

    defaults < recipe < --config file < key.sub=value on the command line

Sections are frozen and typed; the text under a field is its help (`maskdm train --settings` prints them all).
`settings` merges the layers and says what does not fit.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from maskdm.diffusion.masks import Kind

Positive = Annotated[int, Field(gt=0)]
Side = Annotated[int, Field(gt=0, le=65_536)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


Where = Literal["auto", "device", "ram", "map", "stream"]


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class DataConfig(Section):
    """Where the pictures come from and how they become arrays."""

    path: str = ""
    """A folder (searched recursively), a .zip, a .tar or a folder of them, an .npz with `images` and perhaps `labels`,
    or hf:NAME, hf:NAME:SPLIT, a Hugging Face data set. Flag: --data."""
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
    heldout_by: str | None = None
    """A regular expression: pictures in whose path it is found are the held-out ones, such as `^test/` for a published
    test set, instead of a random share. An audit cannot certify such a split."""
    heldout: Share = 0.10
    """Share of the pictures never trained on, for the held-out error and the audit (at most 10,000)."""
    calibration: Share = 0.05
    """Share of the pictures never trained on, set aside to calibrate the audit (at most 5,000)."""
    salt: str = "machine"
    """Key of the random split: machine (a secret kept beside the cache, so that runs on this machine share their
    split), public (a published one, for public pictures only), or the path of a file with at least 16 bytes."""
    cache_dir: str = "auto"
    """Where decoded pictures are kept. auto: $MASKDM_CACHE, else ~/.cache/maskdm."""
    store: Where = "auto"
    """Where decoded pictures lie while training: on the GPU, in memory, mapped from the cache on disk, or nowhere
    (stream: decoded whenever needed, no cache). auto: the first of the first three that fits; without a GPU, mapped."""


class ModelConfig(Section):
    """The network."""

    backbone: Annotated[str, Field(pattern=r"^(uvit|jit|unet|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")] = "uvit"
    """uvit (a vision transformer with long skips, the paper's), jit (a modern pixel transformer), unet (convolutions),
    or a class of your own as module:Class, see docs/backbones.md."""
    size: Literal["S", "B", "L"] = "S"
    """Width, depth and heads where they are not given: small, base or large of the backbone."""
    patch_size: Side = 4
    """Side of a patch in pixels; must divide the image. For a unet, of the patches that masks count."""
    width: Side | None = None
    """Width of a token, or channels of the unet's first level. null: that of model.size."""
    depth: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Blocks in all (uvit: odd), or of each level of the unet. null: that of model.size."""
    heads: Side | None = None
    """Attention heads; must divide the width. null: that of model.size."""
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    """uvit, jit: hidden width of a block's MLP over its width."""
    qkv_bias: bool = False
    """uvit: bias in the linear layers of queries, keys and values."""
    time_mlp: bool = False
    """uvit: two linear layers between the sinusoids of the time and its token."""
    mixer_depth: Count = 0
    """uvit, jit: light blocks that see every patch before hidden ones are dropped (MicroDiT); hidden is then not
    unseen."""
    bottleneck: Positive = 128
    """jit: width between the two linear layers that embed a patch."""
    class_tokens: Count = 8
    """jit: tokens that carry the class, beside the modulation."""
    levels: tuple[Positive, ...] = (1, 2, 2)
    """unet: channels of each level over the width; every level but the last halves the image."""
    attention_levels: Count = 1
    """unet: how many of the lowest levels have attention."""
    haar_levels: Annotated[int, Field(ge=0, le=8)] = 0
    """Levels of Haar wavelets in front of the network: each halves the sides and takes the channels fourfold."""
    options: dict[str, int | float | bool | str] = {}
    """Further arguments for a backbone of your own."""
    classes: Literal["auto", "none"] = "auto"
    """auto: class-conditional where the data has classes (sub-folders, dataset.json, labels). none: never."""


PredictionName = Literal["eps", "x0", "v", "velocity", "F"]


class ProcessConfig(Section):
    """The forward process, what the network predicts, and how its errors count."""

    kind: Literal["ddpm", "vp", "ve", "edm", "flow"] = "ddpm"
    """ddpm (noise levels in steps), vp (the same in continuous time), ve (NCSN), edm, or flow (rectified flow)."""
    schedule: Literal["linear", "cosine", "sigmoid"] = "cosine"
    """Noise schedule of ddpm and vp."""
    timesteps: Annotated[int, Field(ge=2)] = 1000
    """Noise levels of ddpm."""
    prediction: PredictionName = "x0"
    """What the network's output means: the noise, the image, v = alpha eps - sigma x0, velocity = eps - x0, EDM's F."""
    loss: Literal["same", PredictionName] = "same"
    """The quantity whose squared error is the loss: same as the prediction, or another (velocity with x0 is JiT's)."""
    weight: Literal["uniform", "min-snr", "edm", "p2"] = "uniform"
    """Weight of noise levels in the loss: min-snr on the image's error, p2 on the noise's, edm uniform on F's."""
    shift: PositiveFloat = 1.0
    """ddpm, vp, flow: factor of sigma / alpha throughout; more than 1 for large images (about side / 64)."""
    zero_terminal: bool = False
    """ddpm: stretch the schedule so that its last level is noise alone."""
    time_law: Literal["auto", "uniform", "normal"] = "auto"
    """Law of t in training. normal: logit-normal for vp and flow, log-normal for ve and edm; uniform: in t, or in log t
    for ve and edm. auto: normal for edm and flow."""
    time_mean: float | None = None
    """Mean of the normal law. null: -1.2 for edm and ve, else 0."""
    time_std: PositiveFloat | None = None
    """Deviation of the normal law. null: 1.2 for edm and ve, else 1."""
    sigma_min: PositiveFloat | None = None
    """Least noise of ve (null: 0.01) and edm (null: 0.002)."""
    sigma_max: PositiveFloat | None = None
    """Most noise of ve (null: 50) and edm (null: 80)."""
    sigma_data: PositiveFloat = 0.5
    """Deviation of the pixels that EDM's F and the input's scale in ve and edm reckon with."""

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> Self:
        for key, kinds in KINDS.items():
            if self.kind not in kinds and getattr(self, key) != type(self).model_fields[key].default:
                usual = {None: "null", False: "false"}.get(default := type(self).model_fields[key].default, default)
                raise ValueError(
                    f"process.{key}={usual}, its default, with process.kind {self.kind}; it is for {', '.join(kinds)}"
                )
        if self.time_law == "uniform" and (self.time_mean is not None or self.time_std is not None):
            raise ValueError("process.time_mean and time_std only with process.time_law normal")
        if self.kind in ("ve", "vp") and self.time_law == "auto" and (self.time_mean, self.time_std) != (None, None):
            raise ValueError(f"process.time_law normal with time_mean and time_std; with {self.kind} auto is uniform")
        if self.weight != "uniform" and self.loss != "same":
            raise ValueError(f"process.loss same with process.weight {self.weight}, which defines its own quantity")
        return self


KINDS = {
    "schedule": ("ddpm", "vp"),
    "timesteps": ("ddpm",),
    "shift": ("ddpm", "vp", "flow"),
    "zero_terminal": ("ddpm",),
    "time_law": ("vp", "ve", "edm", "flow"),
    "time_mean": ("vp", "ve", "edm", "flow"),
    "time_std": ("vp", "ve", "edm", "flow"),
    "sigma_min": ("ve", "edm"),
    "sigma_max": ("ve", "edm"),
}
"""Settings that mean something for some processes only."""


class MaskPart(Section):
    """One mask of a mixture."""

    kind: Kind | Literal["auto"]
    """As mask.kind."""
    ratio: Share | Literal["auto"] = "auto"
    """As mask.ratio, but one for the whole stage."""
    block: Positive | Literal["auto"] = "auto"
    """As mask.block."""
    offset: bool = False
    """As mask.offset."""
    share: PositiveFloat = 1.0
    """Its part of every batch, against those of the others."""


class MaskConfig(Section):
    """What a stage hides."""

    kind: Kind | Literal["auto"] = "none"
    """none, patch (random patches), block (random blocks of patches), crop (all but one random rectangle), route
    (random patches go around the middle of the network and are not hidden: uvit and jit), or auto: block where there
    are 256 patches or more, or block or offset are given; else patch, or crop for a unet."""
    ratio: Share | Annotated[tuple[Share, ...], Field(min_length=2)] | Literal["auto"] = "auto"
    """Share of the patches to hide, 0 <= ratio < 1; the grid's nearest is used and told. A list changes over the stage,
    see mask.schedule. auto: 0.875 where there are 256 patches or more (docs/evidence.md), else 0.5; for crop 0.75, for
    route 0.5, for none 0."""
    schedule: Literal["steps", "linear", "cosine"] = "steps"
    """How a list of ratios is meant: equal parts of the stage, or a line or half a cosine from first to last."""
    buckets: Annotated[int, Field(ge=2, le=100)] = 6
    """In how many parts a line or cosine is taken; shapes stay fixed in each."""
    by_noise: tuple[Share, ...] = ()
    """Ratios for equally likely ranges of noise, from the least noise to the most, instead of mask.ratio: such as
    [0.9, 0.75, 0.5, 0]."""
    block: Positive | Literal["auto"] = "auto"
    """Side of a block in patches, for kind block. auto: a quarter of the grid's shorter side, rounded down."""
    offset: bool = False
    """Shift the cut into blocks at random for every image, for kind block."""
    mixture: tuple[MaskPart, ...] = ()
    """Several masks side by side in every batch, instead of all the above: a list of {kind, ratio, block, offset,
    share}."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        one = self.ratio not in ("auto", 0)
        if self.mixture and (self.kind != "none" or one or self.by_noise):
            raise ValueError(
                "mask.kind=none, mask.ratio=0 and mask.by_noise=[] with mask.mixture, whose masks have their own"
            )
        given = list(self.ratio) if isinstance(self.ratio, tuple) else self.ratio
        if self.by_noise and one:
            raise ValueError(f"mask.ratio=0 with mask.by_noise, which has all the ratios; got both, ratio={given}")
        if self.schedule != "steps" and not (isinstance(given, list) and len(given) == 2):
            raise ValueError(f"mask.ratio=[first, last] with mask.schedule {self.schedule}, got ratio={given}")
        return self


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
    micro_batch: Positive | Literal["auto"] | None = None
    """Images at once on a rank; gradients are accumulated to the batch. null: the whole share of the rank, and half of
    it from then on if memory runs out. auto: the most that fits, by a measurement as the stage begins."""
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
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the work. ddp: each holds the whole model; fsdp: weights, average and moments are
    divided among them, for models that are too large otherwise."""
    compile: Literal["auto", "no", "default", "reduce-overhead", "max-autotune"] = "auto"
    """Whether torch compiles the network, and how (torch.compile's modes). auto: default on a GPU, else no."""
    checkpoint_activations: bool = False
    """Blocks keep their inputs only and are computed again on the way back: less memory, a third more work."""
    save_every: Positive = 1000
    """Steps between checkpoints (one is also written at the end of a stage and when interrupted)."""
    keep: Positive = 2
    """How many checkpoints stay; the newest."""


class EvalConfig(Section):
    """What is looked at along the way."""

    heldout_every: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = 50_000
    """Images of a stage between measurements of the held-out error, which is also measured as a stage begins and ends;
    a list has one number for each stage."""
    heldout_images: Count = 256
    """Held-out images it is measured on, always the same; 0 for none."""
    samples_every: Positive = 200_000
    """Images of a stage between sample grids."""
    samples: Count = 64
    """Pictures in a grid, seeds 0, 1, ...; 0 for no grids."""
    sample_steps: Positive = 50
    """DDIM steps for each."""
    scores: str | None = None
    """Features in which generated pictures are compared with the held-out ones along the way, as by maskdm eval:
    pixels, inception, dinov2, clip, encoder, or a file; null for none."""
    scores_every: Positive = 1_000_000
    """Images of a stage between such scores, which are also taken as a stage ends."""
    score_images: Annotated[int, Field(ge=2)] = 500
    """Pictures generated for each."""


class LogConfig(Section):
    """What is written while training."""

    every: Positive = 50
    """Steps between lines of metrics.jsonl; nothing waits for the device in between."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also write to these (tensorboard comes with pip install 'maskdm[track]')."""


def default_stages() -> tuple[StageConfig, ...]:
    """Masked pre-training, then a shorter fine-tuning on whole images."""
    return (
        StageConfig(name="pretrain", steps=200_000, mask=MaskConfig(kind="auto")),
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
        every = self.eval.heldout_every
        if isinstance(every, tuple) and len(every) != len(names):
            raise ValueError(
                f"eval.heldout_every with one number for each of the {len(names)} stages, got {len(every)}"
            )
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
