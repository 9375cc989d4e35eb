"""Every process, prediction, backbone and mask with every other: each learns, is saved, comes back and makes pictures.

Tiny networks on images of 8 x 8 pixels, asked through the library as the loop asks: `batches.draw`, `denoising_loss`,
an optimizer, `weights.write_weights`, `maskdm.load`, `maskdm.sample`. What masked pixels may not do is tested on the
whole loss. The last tests are runs through `start`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import train, write_photos
from torch import Tensor, nn

import maskdm
from maskdm.config.model_config import JiTConfig, ModelConfig, UNetConfig, UViTConfig
from maskdm.config.process_config import DDPMConfig, EDMConfig, FlowConfig, ProcessConfig, VEConfig, VPConfig
from maskdm.config.schema import Config
from maskdm.config.stage_config import MaskConfig, MaskPart, StageConfig
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import denoising_loss
from maskdm.diffusion.patches import gather, patchify, scatter, unpatchify
from maskdm.errors import InputError
from maskdm.models import build, weights
from maskdm.models.spec import ModelSpec
from maskdm.models.weights import Weights
from maskdm.training.batches import Batch, TrainingSet, draw_batch
from maskdm.training.stage_masks import mask_schedules
from maskdm.training.store import HostStore

SIDE, PATCH, CHANNELS, IMAGES = 8, 2, 2, 8
CLASSES = ("cat", "dog")
CPU = torch.device("cpu")

UVIT = UViTConfig(patch_size=PATCH, width=16, depth=3, heads=2, mlp_ratio=2.0)
BACKBONES = {
    "uvit": UVIT,
    "jit": JiTConfig(patch_size=PATCH, width=16, depth=3, heads=2, mlp_ratio=2.0, bottleneck=8, class_tokens=2),
    "unet": UNetConfig(patch_size=PATCH, width=8, depth=1, heads=2, levels=(1, 2)),
    "haar": UVIT.model_copy(update={"haar_levels": 1}),
}
PROCESSES = {
    "linear": DDPMConfig(schedule="linear"),
    "cosine": DDPMConfig(schedule="cosine"),
    "sigmoid": DDPMConfig(schedule="sigmoid"),
    "zero-terminal": DDPMConfig(schedule="linear", zero_terminal=True),
    "vp": VPConfig(),
    "ve": VEConfig(),
    "edm": EDMConfig(),
    "flow": FlowConfig(),
}
FAMILIES = {
    "ddpm": PROCESSES["linear"].model_copy(update={"prediction": "eps"}),
    "vp": PROCESSES["vp"].model_copy(update={"prediction": "v"}),
    "ve": PROCESSES["ve"].model_copy(update={"prediction": "F"}),
    "edm": PROCESSES["edm"].model_copy(update={"prediction": "F", "loss": "x0"}),
    "flow": PROCESSES["flow"].model_copy(update={"prediction": "x0", "loss": "velocity"}),
}
PREDICTIONS = ("eps", "x0", "v", "velocity", "F")
# Of the processes that end in noise alone (exactly, or in floating point) eps says nothing there; v grows with sigma.
REFUSED = {("zero-terminal", "eps"), ("ve", "v"), ("edm", "v")}
MASKS = {
    "none": MaskConfig(),
    "patch": MaskConfig(kind="patch", ratio=0.75),
    "block": MaskConfig(kind="block", ratio=0.5, block=2),
    "crop": MaskConfig(kind="crop", ratio=0.5),
    "route": MaskConfig(kind="route", ratio=0.5),
    "by noise": MaskConfig(kind="patch", by_noise=(0.75, 0.5, 0.0)),
    "mixture": MaskConfig(mixture=(MaskPart(kind="none"), MaskPart(kind="crop", ratio=0.5, share=3.0))),
    "schedule": MaskConfig(kind="block", block=1, ratio=(0.75, 0.0), schedule="cosine", buckets=3),
}
CARRIED = [pair for pair in itertools.product(PROCESSES, PREDICTIONS) if pair not in REFUSED]
MASKED = [pair for pair in itertools.product(BACKBONES, MASKS) if pair != ("unet", "route")]


def spec_of(model: ModelConfig, process: ProcessConfig) -> ModelSpec:
    return ModelSpec(model=model, process=process, image_size=(SIDE, SIDE), channels=CHANNELS, class_names=CLASSES)


def network_of(spec: ModelSpec) -> nn.Module:
    """Past its silent beginning: what starts at zero would hide errors."""
    torch.manual_seed(0)
    network = build.backbone(spec)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.1)
    return network


def drawn(spec: ModelSpec, mask: MaskConfig, denoiser: Denoiser, step: int = 0) -> Iterator[Batch]:
    """What the loop would draw at the beginning, in the middle and at the end of a stage with this mask."""
    stage = StageConfig(name="only", steps=100, batch_size=IMAGES, mask=mask)
    (plan,) = mask_schedules(Config(stages=(stage,)), spec)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, CHANNELS), dtype=np.uint8)
    data = TrainingSet(
        HostStore(images, torch.device("cpu")), np.arange(IMAGES), np.arange(IMAGES) % len(CLASSES), len(CLASSES)
    )
    for portions in dict.fromkeys(plan.at(through) for through in (0.0, 0.5, 1.0)):
        yield from draw_batch(
            data,
            portions,
            denoiser.process,
            step=step,
            batch_size=IMAGES,
            seed=("test",),
            flip=0.5,
            label_dropout=0.3,
            device=CPU,
        )


def losses_of(denoiser: Denoiser, batch: Batch) -> Tensor:
    return denoising_loss(denoiser, batch.x_0, batch.t, batch.eps, mask=batch.mask, label=batch.label)


def goes_all_the_way(model: ModelConfig, process: ProcessConfig, mask: MaskConfig, folder: Path) -> None:
    """A step of training, to disk and back, and pictures."""
    spec = spec_of(model, process)
    network = network_of(spec)
    denoiser = build.denoiser(spec, network)
    before = [parameter.clone() for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)

    batches = list(drawn(spec, mask, denoiser))
    assert sum(len(batch) for batch in batches) % IMAGES == 0
    for batch in batches:
        losses = losses_of(denoiser, batch)
        assert losses.shape == (len(batch),)
        assert losses.isfinite().all()
        losses.sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), f"{name} has a gradient of zero"
    optimizer.step()
    for old, (name, new) in zip(before, network.named_parameters(), strict=True):
        assert new.isfinite().all(), name
        assert not torch.equal(old, new), f"{name} did not move"

    network.eval()
    with torch.no_grad():
        assert losses_of(denoiser, next(drawn(spec, mask, denoiser, step=1))).isfinite().all()
        weights.write_weights(folder / "w.safetensors", Weights(spec, {}, network.state_dict()))
        loaded = maskdm.load(folder / "w.safetensors")
        batch = batches[0]
        outputs = [d.forward(batch.x_0, batch.t, mask=batch.mask, label=batch.label) for d in (denoiser, loaded)]
        assert torch.equal(*outputs)
        assert outputs[0].isfinite().all()
    pictures = maskdm.sample(loaded, 3, steps=4, labels=["cat", "dog", "none"])
    assert pictures.shape == (3, CHANNELS, SIDE, SIDE)
    assert pictures.isfinite().all()
    assert pictures.std() > 0


@pytest.mark.parametrize(
    ("mask", "shapes"),
    {
        "none": [None],
        "patch": [(8, 4)],
        "block": [(8, 8)],
        "crop": [(8, 3, 3)],
        "route": [(8, 8)],
        "by noise": [(3, 4), (2, 8), None],
        "mixture": [None, (6, 3, 3)],
        "schedule": [(8, 4), (8, 10), None],
    }.items(),
)
def test_the_masks_of_the_matrix_are_what_they_are_called(mask, shapes):
    spec = spec_of(UVIT, FAMILIES["flow"])
    batches = list(drawn(spec, MASKS[mask], build.denoiser(spec, nn.Identity())))
    drawn_here = [batch.mask for batch in batches]
    assert [None if found is None else tuple(found.keep.shape) for found in drawn_here] == shapes
    assert all(found is None or found.routed == (mask == "route") for found in drawn_here)
    if mask == "by noise":  # from the least noise, where most is hidden, to the most
        assert all(a.t.max() < b.t.min() for a, b in itertools.pairwise(batches))


# --- the matrix ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_what_a_process_carries_is_known(process, prediction):
    config = PROCESSES[process].model_copy(update={"prediction": prediction})
    if (process, prediction) in CARRIED:
        build.make_objective(config)
        return
    with pytest.raises(InputError) as caught:
        build.make_objective(config)
    assert (caught.value.name, caught.value.got) == ("process.prediction", prediction)


@pytest.mark.parametrize(("process", "prediction"), CARRIED)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_process_and_prediction_trains_every_backbone(backbone, process, prediction, tmp_path):
    config = PROCESSES[process].model_copy(update={"prediction": prediction})
    mask = MASKS["crop" if backbone == "unet" else "patch"]
    goes_all_the_way(BACKBONES[backbone], config, mask, tmp_path)


@pytest.mark.parametrize(("backbone", "mask"), MASKED)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_mask_trains_every_backbone(family, backbone, mask, tmp_path):
    goes_all_the_way(BACKBONES[backbone], FAMILIES[family], MASKS[mask], tmp_path)


def test_a_unet_routes_nothing(tmp_path):
    with pytest.raises(InputError) as caught:
        goes_all_the_way(BACKBONES["unet"], FAMILIES["ddpm"], MASKS["route"], tmp_path)
    assert (caught.value.name, caught.value.got) == ("stages.0.mask.kind", "route")


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "mask"), MASKED)
@pytest.mark.parametrize(("process", "prediction"), CARRIED)
def test_everything_goes_with_everything(process, prediction, backbone, mask, tmp_path):
    config = PROCESSES[process].model_copy(update={"prediction": prediction})
    goes_all_the_way(BACKBONES[backbone], config, MASKS[mask], tmp_path)


@pytest.mark.parametrize("weight", [{"weight": "min-snr"}, {"weight": "p2"}, {"loss": "eps"}, {"loss": "x0"}], ids=str)
@pytest.mark.parametrize("family", ["ddpm", "vp", "ve", "flow"])
def test_every_weight_trains(family, weight, tmp_path):
    config = FAMILIES[family].model_copy(update={"loss": "same"} | weight)
    goes_all_the_way(UVIT, config, MASKS["block"], tmp_path)


# --- hidden is unseen ------------------------------------------------------------------------------------------------

LEAK = [
    (backbone, haar, kind)
    for backbone in ("uvit", "jit", "unet")
    for haar in (0, 1)
    for kind in ("patch", "block", "crop")
]


def everything(denoiser: Denoiser, batch: Batch, x_0: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
    """The output, the loss of every image, and all gradients."""
    alpha, sigma = denoiser.alpha_sigma(batch.t, x_0.dtype)
    out = denoiser.forward(alpha * x_0 + sigma * eps, batch.t, mask=batch.mask, label=batch.label)
    losses = losses_of(denoiser, Batch(x_0, batch.t, eps, batch.mask, batch.label))
    gradients = torch.autograd.grad(losses.sum(), list(denoiser.backbone.parameters()))
    return out, losses, *gradients


@pytest.mark.parametrize("family", ["ddpm", "flow"])
@pytest.mark.parametrize(("backbone", "haar", "kind"), LEAK)
def test_hidden_pixels_change_no_bit_of_output_loss_or_gradients(backbone, haar, kind, family):
    mask = MaskConfig(kind=kind, ratio=0.5, block=2)
    spec = spec_of(BACKBONES[backbone].model_copy(update={"haar_levels": haar}), FAMILIES[family])
    if backbone == "unet" and haar:  # its patches are half as large, too small to be halved again
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"levels": (1,)})})
    denoiser = build.denoiser(spec, network_of(spec))
    (batch,) = drawn(spec, mask, denoiser)
    before = everything(denoiser, batch, batch.x_0, batch.eps)

    tokens = patchify(torch.ones_like(batch.x_0), PATCH)
    shown = unpatchify(scatter(gather(tokens, batch.mask.keep), batch.mask.keep, 16), (4, 4), CHANNELS) > 0
    assert 0 < shown.float().mean() < 1
    for value in (1e3, math.nan):
        x_0, eps = (torch.where(shown, x, torch.full_like(x, value)) for x in (batch.x_0, batch.eps))
        assert all(torch.equal(a, b) for a, b in zip(before, everything(denoiser, batch, x_0, eps), strict=True))
    x_0 = torch.where(shown, batch.x_0 + 0.1, batch.x_0)  # the measure works: what is visible matters
    after = everything(denoiser, batch, x_0, batch.eps)
    assert not any(torch.equal(a, b) for a, b in zip(before[:2], after[:2], strict=True))
    assert not before[0][~shown].any()


@pytest.mark.parametrize("backbone", ["uvit", "jit"])
def test_a_mixer_does_read_hidden_pixels_as_it_says(backbone):
    spec = spec_of(BACKBONES[backbone].model_copy(update={"mixer_depth": 1}), FAMILIES["ddpm"])
    denoiser = build.denoiser(spec, network_of(spec))
    (batch,) = drawn(spec, MASKS["patch"], denoiser)
    shown = scatter(torch.ones(IMAGES, 4, PATCH**2 * CHANNELS), batch.mask.keep, 16)
    shown = unpatchify(shown, (4, 4), CHANNELS) > 0
    other = torch.where(shown, batch.x_0, batch.x_0 + 1)
    outs = [denoiser.forward(x, batch.t, mask=batch.mask, label=batch.label) for x in (batch.x_0, other)]
    assert not torch.equal(*outs)
    assert not any(out[~shown].any() for out in outs)


# --- runs ------------------------------------------------------------------------------------------------------------

RUNS = {
    "jit, flow, loss on the velocity, by noise": (
        "model.backbone=jit",
        "model.bottleneck=16",
        "process.kind=flow",
        "process.loss=velocity",
        "stages.0.mask={kind: patch, ratio: 0, by_noise: [0.75, 0.5, 0]}",
    ),
    "unet, edm, F, crop": (
        "model.backbone=unet",
        "model.depth=1",
        "model.patch_size=4",
        "model.levels=[1, 2]",
        "process.kind=edm",
        "process.prediction=F",
        "stages.0.mask={kind: crop, ratio: 0.5}",
    ),
    "uvit, ve": ("process.kind=ve", "process.prediction=F"),
    "jit through wavelets, vp, routed": (
        "model.backbone=jit",
        "model.haar_levels=1",
        "process.kind=vp",
        "process.prediction=v",
        "stages.0.mask={kind: route, ratio: 0.5}",
    ),
    "uvit, zero terminal, mixture": (
        "process={schedule: linear, zero_terminal: true, prediction: velocity}",
        "stages.0.mask={kind: none, ratio: 0, mixture: [{kind: none}, {kind: block, ratio: 0.5, block: 2, share: 3}]}",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_something_and_makes_pictures(name, tmp_path):
    learn = ("stages.0.steps=25", "stages.1.steps=15", "stages.0.lr=5e-3", "stages.1.lr=5e-3", "ema.decay=0.8")
    run = train(write_photos(tmp_path / "photos"), tmp_path / "runs", *learn, *RUNS[name])
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "end"
    train_losses = [event["loss"] for event in events if event["event"] == "train"]
    assert len(train_losses) == 40
    assert all(math.isfinite(loss) for loss in train_losses)
    heldout = [event["error_ema"] for event in events if event["event"] == "heldout"]
    assert heldout[-1] < 0.9 * heldout[0], heldout
    pictures = maskdm.sample(maskdm.load(run), 2, steps=4, labels=["cat", "dog"])
    assert pictures.shape == (2, 3, 16, 16)
    assert pictures.isfinite().all()
