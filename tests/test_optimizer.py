"""Which parameters decay, which Muon takes, and the learning rate of every step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from maskdm.config.resolve import resolve
from maskdm.config.stage_config import StageConfig
from maskdm.errors import ArgumentError, InputError
from maskdm.models.haar import Haar
from maskdm.models.jit import JiT
from maskdm.models.unet import UNet
from maskdm.models.uvit import UViT
from maskdm.training import optim
from maskdm.training.optim import (
    check_optimizer,
    learning_rate,
    make_optimizer,
    moment_bytes,
    split_parameters,
)
from maskdm.training.prepare import check_settings, synthetic_task

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")


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
    groups = make_optimizer(model, settings).param_groups
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
    optimizer = make_optimizer(model, stage(lr=0.1, weight_decay=0.5))
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
    optimizer = make_optimizer(network(), stage(lr=3e-4, betas=(0.8, 0.7)))
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


def test_cosine_ends_at_its_floor():
    settings = stage(lr=2.0, lr_schedule="cosine", lr_floor=0.1)
    assert learning_rate(settings, 0, 0.0) == 2
    assert learning_rate(settings, 50, 0.5) == pytest.approx(2 * 0.55)
    assert learning_rate(settings, 100, 1.0) == pytest.approx(0.2)


def test_wsd_is_constant_and_then_falls_as_one_minus_a_root():
    settings = stage(lr=3.0, lr_schedule="wsd")
    rates = [learning_rate(settings, step, step / 100) for step in range(101)]
    assert rates[:81] == pytest.approx([3.0] * 81, abs=1e-6)
    assert rates[85] == pytest.approx(1.5)  # a quarter of the decay, whose root is a half
    assert rates[100] == pytest.approx(0, abs=1e-6)
    assert all(later < earlier for earlier, later in pairwise(rates[81:]))


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_wsd_falls_over_the_share_that_is_asked_for(share, floor):
    settings = stage(lr=1.0, lr_schedule="wsd", decay_share=share, lr_floor=floor)
    assert learning_rate(settings, 0, 0.0) == 1
    assert learning_rate(settings, 0, 1 - share) == pytest.approx(1)
    assert learning_rate(settings, 0, 1 - share * 0.75) == pytest.approx(floor + (1 - floor) / 2)
    assert learning_rate(settings, 0, 1.0) == pytest.approx(floor, abs=1e-6)


def test_wsd_after_a_warm_up():
    settings = stage(lr=1.0, lr_schedule="wsd", warmup_steps=10)
    assert [learning_rate(settings, step, step / 100) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1, 1])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_the_first_step_learns_something(schedule):
    assert learning_rate(stage(lr=1.0, lr_schedule=schedule, warmup_steps=1000), 0, 0.0) == pytest.approx(1e-3)


# --- Muon ------------------------------------------------------------------------------------------------------------

SIDES = {"image_size": (8, 8), "channels": 3, "patch_size": 2, "width": 16, "heads": 2, "classes": 4}
NETWORKS = {
    "uvit": lambda: network(),
    "jit": lambda: JiT(**SIDES, depth=3, mixer_depth=1),
    "jit with a head": lambda: JiT(**SIDES, depth=3, pixel_head="conv"),
    "unet": lambda: UNet(**SIDES | {"patch_size": 4, "depth": 1}),
    "haar": lambda: Haar(JiT(**SIDES, depth=3), 1),
}


def names(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    known = {id(p): name for name, p in model.named_parameters()}
    return {known[id(p)] for p in parameters}


def stepped(model: nn.Module, settings: StageConfig, steps: int = 1) -> torch.optim.Optimizer:
    """`steps` on gradients that are a function of the step."""
    optimizer = make_optimizer(model, settings)
    for number in range(steps):
        torch.manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", NETWORKS)
def test_muon_takes_matrices_between_the_first_layer_and_the_last(kind):
    model = NETWORKS[kind]()
    split = split_parameters(model)
    every = [*split.matrices, *split.decayed, *split.kept]
    assert sorted(map(id, every)) == sorted(map(id, model.parameters()))
    taken = names(model, split.matrices)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    left = {
        "uvit": {"embed.weight", "head.weight"},
        "jit": {"embed.0.weight", "head.weight"},
        "jit with a head": {"embed.0.weight", "head.expand.weight"},
        "unet": set(),
        "haar": {"inner.embed.0.weight", "inner.head.weight"},
    }
    assert taken == linear - left[kind]
    assert all(p.ndim == 2 for p in split.matrices)


@needs_muon
def test_muon_and_adamw_are_one_optimizer():
    model = network()
    settings = stage(lr=3e-4, betas=(0.8, 0.7), weight_decay=0.25, optimizer="muon")
    optimizer = stepped(model, settings)
    matrices, decayed, kept = optimizer.param_groups
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.25, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [3e-4] * 3
    assert (decayed["betas"], kept["betas"]) == ((0.8, 0.7), (0.8, 0.7))
    assert names(model, matrices["params"]) == names(model, split_parameters(model).matrices)
    moments = {name: set(optimizer.state[p]) for name, p in model.named_parameters()}
    assert moments["block_mid.mlp.up.weight"] == {"momentum_buffer"}
    assert moments["embed.weight"] == moments["norm.weight"] == {"step", "exp_avg", "exp_avg_sq"}
    assert all(moments.values())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in model.parameters())


@needs_muon
def test_a_step_of_muon_is_as_large_as_one_of_adamw_in_all_directions():
    """Its root mean square is 0.2 of the rate; singular values lie around 1, as Newton and Schulz leave them."""
    model = NETWORKS["jit"]()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stepped(model, stage(lr=0.5, weight_decay=0.0, optimizer="muon"))
    taken = names(model, split_parameters(model).matrices)
    for name, parameter in model.named_parameters():
        if name not in taken:
            continue
        step = (parameter.detach() - before[name]) / 0.5
        assert 0.15 < float(step.square().mean().sqrt()) < 0.22, name
        values = torch.linalg.svdvals(step) / (0.2 * math.sqrt(max(step.shape)))
        assert float(values.max()) < 1.4, name
        assert float(values.median()) > 0.6, name


@needs_muon
def test_weights_of_matrices_decay_by_the_rate_itself():
    model = NETWORKS["jit"]()
    optimizer = make_optimizer(model, stage(lr=0.1, weight_decay=0.5, optimizer="muon"))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    before = [p.detach().clone() for p in split_parameters(model).matrices]
    optimizer.step()
    for old, new in zip(before, split_parameters(model).matrices, strict=True):
        torch.testing.assert_close(new.detach(), 0.95 * old)


class Dtypes(TorchDispatchMode):
    """All that is computed within."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.found.add(out.dtype)
        return out


@needs_muon
def test_products_are_in_bf16_only_where_it_is_native(monkeypatch):
    found = {}
    for precision in ("bf16", "no"):
        monkeypatch.setattr(optim, "pick_precision", lambda wanted, device, given=precision: given)
        torch.manual_seed(0)
        model = NETWORKS["jit"]()
        before = [p.detach().clone() for p in split_parameters(model).matrices]
        with Dtypes() as seen:
            stepped(model, stage(lr=1.0, optimizer="muon"))
        assert (torch.bfloat16 in seen.found) == (precision == "bf16")
        after = [p.detach() for p in split_parameters(model).matrices]
        found[precision] = [new - old for old, new in zip(before, after, strict=True)]
    for half, full in zip(*found.values(), strict=True):
        assert float((half - full).norm() / full.norm()) < 0.05  # the same step, but for rounding


@needs_muon
def test_gradients_are_not_changed_by_a_step():
    model = NETWORKS["jit"]()
    optimizer = make_optimizer(model, stage(optimizer="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(old, p.grad) for old, p in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=needs_muon)])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_memory_of_moments_is_known_before(kind, optimizer):
    model, settings = NETWORKS[kind](), stage(optimizer=optimizer)
    expected = moment_bytes(model, settings)
    state = stepped(model, settings).state.values()
    held = [t for moments in state for key, t in moments.items() if key != "step"]
    assert sum(t.numel() * t.element_size() for t in held) == expected


def refused(model: nn.Module) -> ArgumentError:
    check_optimizer(model, stage())
    with pytest.raises(ArgumentError) as caught:
        check_optimizer(model, stage(optimizer="muon"))
    assert (caught.value.name, caught.value.got) == ("optimizer", "muon")
    return caught.value


def test_muon_without_a_torch_that_has_it(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    assert "torch 2.9" in str(refused(network()))


@needs_muon
def test_muon_of_a_network_without_matrices():
    assert "this network has none" in str(refused(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))))
    check_optimizer(Everything(), stage(optimizer="muon"))


def test_what_cannot_be_is_refused_before_any_image_is_read(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    config = resolve(overrides=["data.path=nowhere", "stages.1.optimizer=muon"])
    for check in (check_settings, synthetic_task):
        with pytest.raises(InputError) as caught:
            check(config)
        assert (caught.value.name, caught.value.got) == ("stages.1.optimizer", "muon")
