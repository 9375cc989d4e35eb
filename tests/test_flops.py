"""The closed forms of our backbones against torch's own count, and what follows from them."""

from __future__ import annotations

import pytest
from torch import nn

from maskdm.config.model_config import OwnBackboneConfig, model_class
from maskdm.config.process_config import DDPMConfig
from maskdm.models.spec import ModelSpec
from maskdm.diffusion.mask_schedule import by_noise, constant
from maskdm.diffusion.masks import masking
from maskdm.models.flops import counted_flops, forward_flops, training_flops

GRID = (8, 4)
MASKS = {
    "none": masking("none", GRID),
    "patch": masking("patch", GRID, 0.75),
    "block": masking("block", GRID, 0.5, block=2),
    "crop": masking("crop", GRID, 0.75),
    "route": masking("route", GRID, 0.5),
}
MODELS = {
    "uvit": {"width": 32, "depth": 7, "heads": 4},
    "uvit, time_mlp, mixer": {
        "width": 32,
        "depth": 3,
        "heads": 4,
        "time_mlp": True,
        "mixer_depth": 2,
        "qkv_bias": True,
    },
    "jit": {"width": 32, "depth": 6, "heads": 4, "bottleneck": 8, "class_tokens": 3},
    "jit, mixer": {"width": 32, "depth": 6, "heads": 2, "mlp_ratio": 2.0, "mixer_depth": 1},
    "jit, wavelets": {"width": 32, "depth": 3, "heads": 4, "haar_levels": 1},
    "unet": {"width": 16, "depth": 2, "heads": 2, "levels": (1, 2, 3), "attention_levels": 2},
    "unet, wavelets": {"width": 16, "depth": 1, "heads": 2, "levels": (1, 2), "haar_levels": 1},
}


def spec(name: str, classes: int = 0) -> ModelSpec:
    model = model_class(name.split(",")[0])(patch_size=4, **MODELS[name])
    names = tuple(f"class {i}" for i in range(classes))
    return ModelSpec(model=model, process=DDPMConfig(), image_size=(32, 16), channels=3, class_names=names)


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize(
    ("name", "kind"),
    # A unet has no middle to go around.
    [(name, kind) for name in MODELS for kind in MASKS if not (name.startswith("unet") and kind == "route")],
)
def test_closed_form_is_what_torch_counts(name, kind, classes):
    assert forward_flops(spec(name, classes), MASKS[kind]) == counted_flops(spec(name, classes), MASKS[kind])


class Plain(nn.Module):
    """A backbone of someone's own: one convolution."""

    def __init__(self, *, image_size: tuple[int, int], channels: int, patch_size: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_t, t, *, mask=None, label=None):
        return self.layer(x_t)


def test_a_backbone_of_ones_own_is_counted_by_torch():
    own = OwnBackboneConfig(backbone=f"{__name__}:Plain", patch_size=4)
    assert forward_flops(spec("uvit").model_copy(update={"model": own}), MASKS["none"]) == 2 * 9 * 3 * 3 * 32 * 16


def test_training_is_three_passes_on_average_over_the_masks():
    one, half = (forward_flops(spec("uvit"), MASKS[kind]) for kind in ("none", "block"))
    assert training_flops(spec("uvit"), constant(MASKS["none"]).at(0)) == 3 * one
    assert training_flops(spec("uvit"), by_noise([MASKS["none"], MASKS["block"]]).at(0)) == 3 * (one + half) / 2
