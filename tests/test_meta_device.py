"""A GPU that is not there: training, measuring, sampling and attacking on the device `meta`, which has shapes only.

Nothing can be read from such a tensor, so whatever would make the host wait for a GPU shows; and an operation that
mixes tensors of two devices is refused here, as a GPU would. Random numbers come from a generator that says it is of
that device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from test_universal import BACKBONES, CLASSES, FAMILIES, IMAGES, MASKED, MASKS, SIDE, spec_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskdm.auditing.attacks import (
    AttackInput,
    gradient_attack,
    loss_attack,
    masked_attack,
    pia_attacks,
    quick_attacks,
    secmi_attack,
    unconditional_attack,
)
from maskdm.auditing.target import ModelTarget
from maskdm.config.schema import Config
from maskdm.config.stage_config import MaskConfig, StageConfig
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import denoising_loss
from maskdm.diffusion.masks import Mask, masking
from maskdm.evaluation import encoder, heldout
from maskdm.evaluation.heldout import HeldOut
from maskdm.evaluation.inception import Inception
from maskdm.models import build, transfer
from maskdm.models.spec import ModelSpec
from maskdm.models.weights import Weights
from maskdm.runtime.distributed import Runtime
from maskdm.sampling import edit
from maskdm.sampling.sample import sample_images, sampling_config
from maskdm.sampling.samplers import SAMPLERS
from maskdm.training import optim
from maskdm.training.batches import TrainingSet
from maskdm.training.checkpoint import State
from maskdm.training.progress import Progress
from maskdm.training.stage_masks import mask_schedules
from maskdm.training.step import Task, training_step
from maskdm.training.store import HostStore

META = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
ALL_MASKS = MASKS | {"offset": MaskConfig(kind="block", ratio=0.5, block=2, offset=True)}
ALL_MASKED = [*MASKED, *((backbone, "offset") for backbone in BACKBONES)]
SEVERAL = {"by noise": "uvit", "mixture": "unet", "schedule": "jit"}
"""Masks made of others, and the network on which they are always tried."""


def steps() -> Iterator[Any]:
    """Every network with every mask and with every process; all with each other when slow tests run too."""
    for number, (backbone, mask) in enumerate(ALL_MASKED):
        for turn, family in enumerate(FAMILIES):
            usual = turn == number % len(FAMILIES) and SEVERAL.get(mask, backbone) == backbone
            yield pytest.param(family, backbone, mask, marks=() if usual else pytest.mark.slow)


class Emulated(TorchDispatchMode):
    """While it is on, `meta` is a GPU: devices do not mix, and reading from it is waiting for it.

    Args:
        waits: how often the host may wait; a number that is read is 0, and so is a copy on the CPU.
    """

    def __init__(self, waits: int = 0) -> None:
        super().__init__()
        self.waits_left = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func in READS and tensors[0].is_meta:
            self.wait(func)
            return 0.0
        if func in COPIES and any(t.is_meta for t in tensors) and kwargs.get("device") == torch.device("cpu"):
            self.wait(func)
            return torch.zeros(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        devices = {t.device.type for t in tensors if t.ndim}  # a single number may come from the CPU
        assert func in COPIES or len(devices) <= 1, f"{func} mixes {devices}"
        return func(*args, **kwargs)

    def wait(self, func: Any) -> None:
        assert self.waits_left, f"{func} waits for the device"
        self.waits_left -= 1


class MetaGenerator(torch.Generator):
    """Of the device meta, for which torch has none."""

    def __new__(cls, device: torch.device | None = None) -> torch.Generator:
        return super().__new__(cls) if device == META else GENERATOR()

    @property
    def device(self) -> torch.device:
        return META


GENERATOR = torch.Generator


@pytest.fixture(autouse=True)
def generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Generator", MetaGenerator)


def model(backbone: str, family: str) -> tuple[ModelSpec, Denoiser]:
    spec = spec_of(BACKBONES[backbone], FAMILIES[family])
    with META:
        network = build.backbone(spec)
    return spec, build.denoiser(spec, network)


class Stub(nn.Module):
    """The least network, for what does not depend on which it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 1, device=META)

    def forward(self, x_t: Tensor, t: Tensor, *, mask: Mask | None = None, label: Tensor | None = None) -> Tensor:
        out: Tensor = self.layer(x_t) * t[:, None, None, None]
        return out if label is None else out + label[:, None, None, None]


def stub(family: str) -> Denoiser:
    return build.denoiser(spec_of(BACKBONES["uvit"], FAMILIES[family]), Stub())


def meta(*shape: int) -> Tensor:
    return torch.zeros(shape, device=META)


def labels() -> Tensor:
    return torch.zeros(IMAGES, dtype=torch.int64, device=META)


# --- the emulation itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda a: a.sum().item(),
        lambda a: float(a.sum()),
        lambda a: bool(a.any()),
        lambda a: a.tolist(),
        lambda a: a.cpu(),
        lambda a: a[a > 0],
        lambda a: a.nonzero(),
        lambda a: a @ torch.ones(3, 3),
        lambda a: a + torch.ones(3, 3),
        lambda a: torch.cat([a, torch.ones(3, 3)]),
        lambda a: a.gather(1, torch.zeros(3, 1, dtype=torch.int64)),
        lambda a: a[torch.zeros(3, dtype=torch.int64)],
        lambda a: nn.functional.embedding(torch.zeros(3, dtype=torch.int64), a),
    ],
)
def test_whatever_a_gpu_would_refuse_or_wait_for_shows(call):
    with Emulated(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        call(meta(3, 3))


def test_what_a_gpu_does_passes():
    with Emulated(waits=2):
        a = torch.ones(3, 3).to(META) * torch.tensor(2.0) + 1
        assert a.cpu().tolist() == [[0.0] * 3] * 3
        assert float(a.sum()) == 0


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fused_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW of several tensors at once instead of the fused one, which meta has not, and clipping likewise."""
    monkeypatch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda device: True)

    def adamw(groups: Any, **options: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, **options | {"fused": False, "foreach": True})

    monkeypatch.setattr(optim, "AdamW", adamw)


def task_of(spec: ModelSpec, mask: MaskConfig, optimizer: Literal["adamw", "muon"] = "adamw") -> Task:
    stage = StageConfig(name="only", steps=100, batch_size=IMAGES, mask=mask, optimizer=optimizer)
    config = Config(stages=(stage,))
    images = np.zeros((IMAGES, SIDE, SIDE, spec.channels), dtype=np.uint8)
    data = TrainingSet(
        HostStore(images, META), np.arange(IMAGES), np.arange(IMAGES) % len(CLASSES), len(spec.class_names)
    )
    objective = build.make_objective(spec.process)
    return Task(config, spec, objective, data, mask_schedules(config, spec), Runtime(META, "no"))


@pytest.mark.usefixtures("fused_on_meta")
@pytest.mark.parametrize(("family", "backbone", "mask"), list(steps()))
def test_a_step_of_training_never_waits_and_mixes_no_devices(family, backbone, mask):
    """Batch, masks, noise, loss, gradients, clipping, optimizer and average."""
    train_a_step(backbone, family, mask, "adamw")


@pytest.mark.usefixtures("fused_on_meta")
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_of_muon_never_waits_either(backbone, native, monkeypatch):
    monkeypatch.setattr(optim, "pick_precision", lambda wanted, device: "bf16" if native else "no")
    train_a_step(backbone, "flow", "crop", "muon")


def train_a_step(backbone: str, family: str, mask: str, optimizer: Literal["adamw", "muon"]) -> None:
    spec, learner = model(backbone, family)
    task = task_of(spec, ALL_MASKS[mask], optimizer)
    _, average = model(backbone, family)
    made = optim.make_optimizer(learner.backbone, task.config.stages[0])
    progress = Progress(micro_batch=5 if mask == "patch" else None)
    state = State(learner.backbone, average.backbone, made, torch.amp.GradScaler("cpu", enabled=False), progress)
    with Emulated():
        loss, norm = training_step(task, state, learner, learner.backbone)
    assert loss.is_meta
    assert norm.is_meta


@pytest.mark.parametrize("denoiser", [*map(stub, FAMILIES), *(model(name, "vp")[1] for name in BACKBONES)])
def test_a_held_out_error_waits_once(denoiser, monkeypatch):
    monkeypatch.setattr(heldout, "CHUNK", 5)
    images = np.zeros((IMAGES, SIDE, SIDE, denoiser.channels), dtype=np.uint8)
    with Emulated(waits=1):
        asked = HeldOut.ask(images, np.zeros(IMAGES, dtype=np.int64), denoiser, META)
        assert asked.error(denoiser, Runtime(META, "no")).mean == 0


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_samples_waits_once(family, sampler):
    """When the images are brought to the host."""
    denoiser = stub(family)
    with Emulated(waits=2):
        for guide in (None, stub("edm")):
            config = sampling_config(denoiser, steps=3, sampler=sampler, guidance=1.5, guide=guide)
            assert sample_images(config, range(IMAGES)).shape == (IMAGES, 2, SIDE, SIDE)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_samples_of_every_network_wait_once(backbone):
    _, denoiser = model(backbone, "vp")
    with Emulated(waits=1):
        sample_images(sampling_config(denoiser, steps=2, guidance=2.0), range(IMAGES))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_edits_waits_once(family):
    config = sampling_config(stub(family), steps=4, labels=["cat"])
    images = torch.zeros(2, 2, SIDE, SIDE)
    with Emulated(waits=3):
        edit.img2img(config, images, 0.7, 3)
        edit.inpaint(config, images[0], torch.ones(SIDE, SIDE, dtype=torch.bool), 3, resample=2)
        edit.interpolate(config, images, 0.7, 3)


# --- the audit, and features -----------------------------------------------------------------------------------------


ATTACKS = (
    *pia_attacks((0.32,), normalized=True),
    secmi_attack(20),
    masked_attack(0.17, 1),
    gradient_attack((0.09,)),
    unconditional_attack(loss_attack(0.17, 1)),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_attacks_do_not_wait(family):
    x_0 = meta(2, 2, SIDE, SIDE)
    with Emulated():
        batch = AttackInput(ModelTarget(stub(family)), x_0, labels()[:2])
        for attack in (*quick_attacks(1), *ATTACKS):
            assert attack(batch).is_meta


@pytest.mark.parametrize("classes", [0, 3])
def test_training_an_encoder_does_not_wait(classes):
    images = np.zeros((IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    with META:
        network = encoder.Encoder(3, classes, (SIDE, SIDE))
    optimizer = torch.optim.AdamW(network.parameters())
    with Emulated():
        encoder._step(network, optimizer, images, np.zeros(IMAGES, dtype=np.int64) if classes else None, 0, META)
        assert network(meta(2, 3, SIDE, SIDE)).is_meta


def test_inception_does_not_wait():
    with META:
        network = Inception().eval()
    with Emulated():
        assert network(meta(2, 3, 64, 64)).shape == (2, 2048)


# --- starting from other weights -------------------------------------------------------------------------------------


def starts() -> Iterator[tuple[str, dict[str, Any]]]:
    for backbone in BACKBONES:
        yield backbone, {"class_names": ()}
        yield backbone, {"class_names": ("dog", "fox", "owl")}
        yield backbone, {"image_size": (16, 16)}
        yield backbone, {"channels": 1}


@pytest.mark.parametrize(("backbone", "other"), list(starts()))
@pytest.mark.parametrize("back", [False, True])
def test_weights_from_a_file_fit_a_network_on_the_device(backbone, other, back):
    """The file is read to the CPU; here it is the other way round, since nothing can be read from meta."""
    specs = spec_of(BACKBONES[backbone], FAMILIES["flow"]), spec_of(BACKBONES[backbone], FAMILIES["flow"])
    old, new = specs[0], specs[1].model_copy(update=other)
    if back:
        old, new = new, old
    with META:
        tensors = build.backbone(old).state_dict()
    network = build.backbone(new)
    with Emulated():
        state, _ = transfer.fit(network, new, Weights(old, {}, tensors))
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in network.state_dict().items()
    }


def test_masks_are_weighed_on_the_device():
    with Emulated():
        mask = masking("crop", (4, 4), 0.75).draw(IMAGES, torch.Generator(META))
        assert mask is not None
        assert mask.weight is not None
        assert mask.weight.is_meta
        _, denoiser = model("unet", "flow")
        x = meta(IMAGES, 2, SIDE, SIDE)
        assert denoising_loss(denoiser, x, 0.5, x, mask=mask, label=labels()).is_meta
