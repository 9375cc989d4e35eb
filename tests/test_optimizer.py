"""Which parameters decay, and the learning rate of every step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from maskdm.config.stage_config import StageConfig
from maskdm.models.uvit import UViT
from maskdm.training.optim import adamw, learning_rate


def stage(**settings: object) -> StageConfig:
    return StageConfig(name="a", steps=100, **settings)


def network() -> UViT:
    """With every part that the backbone can have."""
    return UViT(
        image_size=(8, 8),
        channels=3,
        patch_size=2,
        width=16,
        depth=3,
        heads=2,
        qkv_bias=True,
        time_mlp=True,
        classes=4,
    )


class Everything(nn.Module):
    """Layers that the backbone does not have, and a parameter outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.norm = nn.GroupNorm(2, 4)
        self.label = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4, 4))


def decay_of(model: nn.Module, settings: StageConfig) -> dict[str, float]:
    """Parameter -> its decay. Fails if one is missing or comes twice."""
    groups = adamw(model, settings).param_groups
    listed = [(id(p), group["weight_decay"]) for group in groups for p in group["params"]]
    names = {id(p): name for name, p in model.named_parameters()}
    assert sorted(i for i, _ in listed) == sorted(names)
    return {names[i]: decay for i, decay in listed}


def test_every_parameter_appears_once_and_only_linear_weights_decay():
    model = network()
    decay = decay_of(model, stage(weight_decay=0.25))
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name, value in decay.items() if value == 0.25} == linear
    assert {name for name, value in decay.items() if value == 0} == decay.keys() - linear
    for spared in ("position.weight", "label.weight", "norm.weight", "head.bias", "block_mid.attention.qkv.bias"):
        assert decay[spared] == 0
    for shrunk in ("embed.weight", "time.0.weight", "blocks_out.0.skip.weight", "block_mid.mlp.down.weight"):
        assert decay[shrunk] == 0.25


def test_convolutions_decay_and_nothing_else_does():
    decay = decay_of(Everything(), stage(weight_decay=0.5))
    assert {name for name, value in decay.items() if value} == {"conv.weight", "up.weight", "head.weight"}


def test_without_gradient_a_step_shrinks_the_decayed_weights_and_leaves_the_others():
    model = network()
    optimizer = adamw(model, stage(lr=0.1, weight_decay=0.5))
    decay = decay_of(model, stage(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 0.1 * 0.5 if decay[name] else 1.0
        torch.testing.assert_close(parameter.detach(), kept * before[name])


def test_settings_reach_the_optimizer():
    optimizer = adamw(network(), stage(lr=3e-4, betas=(0.8, 0.7)))
    assert [group["lr"] for group in optimizer.param_groups] == [3e-4, 3e-4]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.7), (0.8, 0.7)]


def test_constant_rate():
    settings = stage(lr=2e-4)
    assert {learning_rate(settings, step, step / 100) for step in range(100)} == {2e-4}


def test_warm_up_rises_linearly_to_the_peak_and_stays():
    settings = stage(lr=0.8, warmup_steps=4)
    rates = [learning_rate(settings, step, step / 100) for step in range(8)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8])


def test_cosine_falls_from_the_peak_to_zero():
    settings = stage(lr=1.0, lr_schedule="cosine")
    rates = [learning_rate(settings, step, step / 100) for step in range(101)]
    assert rates[0] == 1
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert rates[25] == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_cosine_after_a_warm_up_is_their_product():
    settings = stage(lr=2.0, lr_schedule="cosine", warmup_steps=10)
    plain = stage(lr=2.0, lr_schedule="cosine")
    assert learning_rate(settings, 4, 0.04) == pytest.approx(0.5 * learning_rate(plain, 4, 0.04))
    assert learning_rate(settings, 60, 0.6) == learning_rate(plain, 60, 0.6)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_first_step_learns_something(schedule):
    assert learning_rate(stage(lr=1.0, lr_schedule=schedule, warmup_steps=1000), 0, 0.0) == pytest.approx(1e-3)
