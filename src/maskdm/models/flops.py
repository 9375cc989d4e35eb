"""Arithmetic of a network, in multiplications and additions.

Backbones of ours know a closed form (`flops`); of any other, one pass over shapes alone is counted by torch.
"""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maskdm.config.schema import ModelSpec
from maskdm.diffusion.mask_schedule import Portion
from maskdm.diffusion.masks import Masking
from maskdm.models import build
from maskdm.models.haar import Haar

BACKWARD = 2
"""Passes back over passes forth: gradients of the activations, and of the weights."""


def forward_flops(spec: ModelSpec, masking: Masking) -> int:
    """Of one image on its way through the network: matrix products and convolutions, a multiply-add as two."""
    with torch.device("meta"):
        network = build.backbone(spec)
    closed = getattr(network.inner if isinstance(network, Haar) else network, "flops", None)
    return int(closed(masking)) if closed is not None else counted_flops(spec, masking)


def counted_flops(spec: ModelSpec, masking: Masking) -> int:
    """The same, as torch counts it."""
    with torch.device("cpu"):
        network = build.backbone(spec)
        x_t, t = torch.zeros(1, spec.channels, *spec.image_size), torch.zeros(1)
        shape = (1, *masking.crop) if masking.kind == "crop" else (1, masking.visible)
        patches = None if masking.kind == "none" else torch.zeros(shape, dtype=torch.int64)
        label = torch.zeros(1, dtype=torch.int64) if spec.class_names else None
        kept = {"through" if masking.kind == "route" else "visible": patches}
        # Of torch's kernels for attention only the plain one is made of products that its counter sees everywhere.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            network(x_t, t, label=label, **kept)
    return int(counter.get_total_flops())


def training_flops(spec: ModelSpec, portions: tuple[Portion, ...]) -> float:
    """Of one image, forth and back, on average over the masks of a batch."""
    forth = sum(portion.share * forward_flops(spec, portion.masking) for portion in portions)
    return (1 + BACKWARD) * forth
