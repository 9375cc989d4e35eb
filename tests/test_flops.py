"""Arithmetic of a network: a U-ViT by hand, what masks save, and what follows for training."""

from __future__ import annotations

import pytest
from torch import nn

from maskdm.config.model_config import OwnBackboneConfig, model_class
from maskdm.config.process_config import DDPMConfig
from maskdm.diffusion.mask_schedule import by_noise, constant
from maskdm.diffusion.masks import masking
from maskdm.models import build
from maskdm.models.flops import forward_flops, training_flops
from maskdm.models.spec import ModelSpec

GRID, PATCH, CHANNELS = (8, 4), 4, 3
MASKS = {
    "none": masking("none", GRID),
    "patch": masking("patch", GRID, 0.75),
    "block": masking("block", GRID, 0.5, block=2),
    "crop": masking("crop", GRID, 0.75),
    "route": masking("route", GRID, 0.5),
}
MODELS = {
    "uvit": {"width": 32, "depth": 7, "heads": 4},
    "jit": {"width": 32, "depth": 6, "heads": 4, "bottleneck": 8, "class_tokens": 3},
    "jit, wavelets": {"width": 32, "depth": 3, "heads": 4, "haar_levels": 1},
    "unet": {"width": 16, "depth": 2, "heads": 2, "levels": (1, 2, 3), "attention_levels": 2},
}


def spec(name: str, classes: int = 0) -> ModelSpec:
    model = model_class(name.split(",")[0])(patch_size=PATCH, **MODELS[name])
    names = tuple(f"class {i}" for i in range(classes))
    return ModelSpec(model=model, process=DDPMConfig(), image_size=(32, 16), channels=CHANNELS, class_names=names)


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("kind", ["none", "patch", "block", "crop"])
def test_a_u_vit_by_hand(kind, classes):
    """A product of (m, k) and (k, n) is 2 m k n."""
    visible, D, depth = MASKS[kind].num_visible, 32, 7
    L = visible + (2 if classes else 1)
    attention = 2 * L * D * 3 * D + 2 * (2 * L * L * D) + 2 * L * D * D
    block = attention + 2 * (2 * L * D * 4 * D)
    skips = (depth // 2) * 2 * L * 2 * D * D
    edge = 2 * (2 * visible * PATCH**2 * CHANNELS * D)
    assert forward_flops(spec("uvit", classes), MASKS[kind]) == depth * block + skips + edge


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("name", MODELS)
def test_masks_save_what_they_say(name, classes):
    kinds = [kind for kind in MASKS if name != "unet" or kind != "route"]  # which has no middle to go around
    flops = {kind: forward_flops(spec(name, classes), MASKS[kind]) for kind in kinds}
    assert flops["crop"] < 0.35 * flops["none"]
    if name == "unet":
        assert flops["patch"] == flops["block"] == flops["none"]
    else:
        assert flops["patch"] == flops["crop"] < flops["block"] < flops["route"] < flops["none"]


def test_a_network_is_counted_once(monkeypatch):
    before = forward_flops(spec("jit"), MASKS["patch"])
    monkeypatch.setattr(build, "backbone", None)
    assert forward_flops(spec("jit"), MASKS["patch"]) == before


class Plain(nn.Module):
    """A backbone of someone's own: one convolution, after a look at the time."""

    def __init__(self, *, image_size: tuple[int, int], channels: int, patch_size: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_t, t, *, mask=None, label=None):
        assert float(t[0]) == 0  # on the device meta it could not be asked
        return self.layer(x_t)


def test_a_backbone_of_ones_own_may_look_at_its_input():
    own = OwnBackboneConfig(backbone=f"{__name__}:Plain", patch_size=PATCH)
    assert forward_flops(spec("uvit").model_copy(update={"model": own}), MASKS["none"]) == 2 * 9 * 3 * 3 * 32 * 16


def test_training_is_three_passes_on_average_over_the_masks():
    one, half = (forward_flops(spec("uvit"), MASKS[kind]) for kind in ("none", "block"))
    assert training_flops(spec("uvit"), constant(MASKS["none"]).at(0)) == 3 * one
    assert training_flops(spec("uvit"), by_noise([MASKS["none"], MASKS["block"]]).at(0)) == 3 * (one + half) / 2
