"""The moving average of the weights: what is sampled, evaluated and released.

Two kinds. A *constant* decay is the same at every step, the first included (in the official code "0.9999" is reached
after a million steps). The *power* average of EDM2 (Karras et al. 2024, arXiv 2312.02696, section 3.1) weighs step i in
proportion to i^gamma: decay (1 - 1/t)^(gamma + 1) at step t. Its reach grows with training, it forgets where it
started, and one number serves stages of any length: sigma_rel, its standard deviation as a share of the steps so far.

Buffers that a weights file holds are averaged as weights are: what a network was released with is then all of one age.
(Copying the last ones gives the same held-out error, leaving them alone a worse one: docs/log.md.)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from maskdm.config.schema import EMAConfig
from maskdm.training.buffers import Buffers


def power_gamma(sigma_rel: float) -> float:
    """The exponent gamma whose average has width `sigma_rel` (0 to 0.29).

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (section 3.1).
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def ema_decay(config: EMAConfig, step: int) -> float:
    """Share of the average that survives step `step` of a stage, counted from 1."""
    if config.decay == "power":
        return float((1 - 1 / step) ** (power_gamma(config.sigma_rel) + 1))
    return config.decay


@torch.no_grad()
def ema_update(average: Iterable[Tensor], current: Iterable[Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * current, in one fused call for all tensors."""
    torch._foreach_lerp_(list(average), list(current), 1 - decay)


@torch.no_grad()
def ema_update_buffers(average: Buffers, current: Buffers, decay: float) -> None:
    """As `ema_update` for the buffers of a network.

    Whole numbers, such as counts, are copied, and so is what is infinite, as in masks of attention.
    """
    for mean, now in zip(average, current, strict=True):
        if mean.is_floating_point():
            mean.copy_(torch.where(mean.isfinite() & now.isfinite(), mean.lerp(now, 1 - decay), now))
        else:
            mean.copy_(now)
