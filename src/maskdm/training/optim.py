"""Optimizers of a stage, AdamW alone or beside Muon, and their learning rate.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) makes the momentum of a matrix orthogonal before it steps:
all of its directions move equally far. It is meant for hidden matrices; first and last layers, and all that is no
matrix, are AdamW's. Its steps are scaled to the root mean square of AdamW's, 0.2 sqrt(max(rows, columns)) lr, so that
one learning rate and one weight decay serve both (Liu et al. 2025, arXiv 2502.16982).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import AdamW, Optimizer
from torch.overrides import TorchFunctionMode

from maskdm.config.stage_config import StageConfig
from maskdm.errors import ArgumentError
from maskdm.models.transfer import tensor_roles
from maskdm.runtime.device import pick_precision

MOMENTUM = 0.95
"""Of Muon, as published; with Nesterov's look ahead."""
DECAY_SHARE = 0.2
"""Of a stage, for wsd where the settings leave it open: from there on more gains little (arXiv 2405.18392)."""


class Split(NamedTuple):
    """The parameters of a network, each once.

    Attributes:
        matrices: weights of the linear layers between the first and the last.
        decayed: other weights of linear and convolutional layers.
        kept: all else.
    """

    matrices: list[nn.Parameter]
    decayed: list[nn.Parameter]
    kept: list[nn.Parameter]


def split_parameters(model: nn.Module) -> Split:
    """Parameters by what an optimizer does to them.

    Norms, biases, positions and embeddings are where a unit is, not how large; to shrink them is to unlearn it. First
    and last layers are those whose shapes depend on the images, which a network names in its `layout`.
    """
    split, ends = Split([], [], []), tensor_roles(model)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name != "weight" or not isinstance(module, (nn.Linear, _ConvNd)):
                split.kept.append(parameter)
            elif isinstance(module, nn.Linear) and f"{prefix}.{name}" not in ends:
                split.matrices.append(parameter)
            else:
                split.decayed.append(parameter)
    return split


def make_optimizer(model: nn.Module, stage: StageConfig) -> Optimizer:
    """The optimizer of a stage before its first step: one object, whether it is AdamW or Muon beside AdamW."""
    matrices, decayed, kept = split_parameters(model)
    if stage.optimizer == "adamw":
        return _adamw([*matrices, *decayed], kept, stage)
    muon = torch.optim.Muon(
        matrices, lr=stage.lr, weight_decay=stage.weight_decay, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )
    return MuonWithAdamW(muon, _adamw(decayed, kept, stage))


def _adamw(decayed: list[nn.Parameter], kept: list[nn.Parameter], stage: StageConfig) -> AdamW:
    groups = [{"params": decayed, "weight_decay": stage.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return AdamW(groups, lr=stage.lr, betas=stage.betas, fused=True)


class MuonWithAdamW(Optimizer):
    """Muon and AdamW as one optimizer: parameter groups and state are those of both.

    Under fp16 it is the scaler that skips a step, and waits for the device to know: Muon cannot be told by a tensor
    that a gradient overflowed, as the fused AdamW can.

    Args:
        muon, adamw: the two, of different parameters; they are used by this one alone from here on.
    """

    def __init__(self, muon: Optimizer, adamw: AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self.parts = (muon, adamw)
        for part in self.parts:
            part.state = self.state
        device = muon.param_groups[0]["params"][0].device
        # Where nothing multiplies in bf16 natively, torch does so by a plain loop: 16 times slower on a CPU with AVX2.
        self._native = pick_precision("auto", device) == "bf16"

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both; there is no closure."""
        assert closure is None, "gradients are there already"
        muon, adamw = self.parts
        precision: AbstractContextManager[object] = nullcontext() if self._native else _Float32()
        with precision:
            muon.step()
        adamw.step()


class _Float32(TorchFunctionMode):
    """Torch's Muon takes its matrix products in bf16; in here, in the precision of the weights."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        if func is Tensor.bfloat16:
            return args[0].clone()  # a copy, as a cast is: it is changed in place
        return func(*args, **(kwargs or {}))


def check_optimizer(model: nn.Module, stage: StageConfig) -> None:
    """Refuses an optimizer that cannot be, or would change nothing.

    Raises:
        ArgumentError: of optimizer; Muon without torch 2.9, or without a matrix that it is for.
    """
    if stage.optimizer != "muon":
        return
    if not hasattr(torch.optim, "Muon"):
        problem = f"Muon came with torch 2.9, and this is torch {torch.__version__}"
        raise ArgumentError("optimizer", problem, got="muon", remedy="write adamw, or install a later torch")
    if not split_parameters(model).matrices:
        problem = "Muon is for the weights of linear layers between the first and the last, and this network has none"
        raise ArgumentError("optimizer", problem, got="muon", remedy="write adamw")


def moment_bytes(model: nn.Module, stage: StageConfig) -> int:
    """Bytes of what the optimizer keeps: two moments of every parameter, of Muon's matrices one."""
    matrices, decayed, kept = split_parameters(model)
    copies = {"adamw": 2, "muon": 1}[stage.optimizer]
    return copies * _bytes(matrices) + 2 * _bytes([*decayed, *kept])


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def learning_rate(stage: StageConfig, step: int, done: float) -> float:
    """Learning rate of step `step` (from 0) of a stage of which the share `done` (0 to 1) is over.

    wsd falls as 1 - sqrt, which ends lower than a line, and where cosine ends (Hägele et al. 2024, arXiv 2405.18392).
    """
    warm = min((step + 1) / stage.warmup_steps, 1.0) if stage.warmup_steps else 1.0
    return stage.lr * warm * (stage.lr_floor + (1 - stage.lr_floor) * _falling(stage, done))


def _falling(stage: StageConfig, done: float) -> float:
    """From 1 to 0 over the stage, as its schedule goes; 1 throughout where it is constant."""
    match stage.lr_schedule:
        case "constant":
            return 1.0
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "wsd":
            share = DECAY_SHARE if stage.decay_share is None else stage.decay_share
            return 1 - math.sqrt(min(max(done - (1 - share), 0.0) / share, 1.0))
