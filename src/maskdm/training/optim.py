"""AdamW and its learning rate."""

from __future__ import annotations

import math

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import AdamW

from maskdm.config.stage_config import StageConfig


def adamw(model: nn.Module, stage: StageConfig) -> AdamW:
    """AdamW that decays the weights of linear and convolutional layers, and nothing else.

    Norms, biases, positions and embeddings are where a unit is, not how large; to shrink them is to unlearn it.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            weight = name == "weight" and isinstance(module, (nn.Linear, _ConvNd))
            (decayed if weight else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": stage.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return AdamW(groups, lr=stage.lr, betas=stage.betas, fused=True)


def learning_rate(stage: StageConfig, step: int, done: float) -> float:
    """Learning rate of step `step` (from 0) of a stage of which the share `done` (0 to 1) is over."""
    warm = min((step + 1) / stage.warmup_steps, 1.0) if stage.warmup_steps else 1.0
    shape = 0.5 * (1 + math.cos(math.pi * done)) if stage.lr_schedule == "cosine" else 1.0
    return stage.lr * warm * shape
