"""Arithmetic of a network: multiplications and additions of its matrix products and convolutions.

Torch counts them in one forward pass. Networks of ours make it on the device `meta`, where tensors have shapes only: a
third of a second for 100 million weights and 4096 tokens. Somebody else's may look at what is in a tensor, and is
called on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maskdm.diffusion.mask_schedule import MaskGroup
from maskdm.diffusion.masks import Mask, Masking
from maskdm.models import build
from maskdm.models.spec import ModelSpec

BACKWARD = 2
"""Backward passes over forward passes: gradients of the activations, and of the weights."""


def forward_flops(spec: ModelSpec, masking: Masking) -> int:
    """Of one image in a forward pass, a multiply-add as two."""
    return _counted(spec.model_dump_json(), masking)


def training_flops(spec: ModelSpec, groups: Sequence[MaskGroup]) -> float:
    """Of one image, forward and backward, on average over the groups of a batch."""
    forward = sum(group.share * forward_flops(spec, group.masking) for group in groups)
    return (1 + BACKWARD) * forward


@lru_cache(maxsize=256)
def _counted(spec_json: str, masking: Masking) -> int:
    spec = ModelSpec.model_validate_json(spec_json)
    device = torch.device("meta" if spec.model.backbone in build.BACKBONES else "cpu")
    with device:
        network = build.backbone(spec)
    x_t, t = torch.zeros(1, spec.channels, *spec.image_size, device=device), torch.zeros(1, device=device)
    numbers = torch.arange(masking.num_patches, device=device)
    if masking.kind == "crop":
        rows, columns = masking.crop
        keep = numbers.view(1, *masking.grid)[:, :rows, :columns]
    else:
        keep = numbers[None, : masking.num_visible]
    block = masking.block if masking.kind == "block" and masking.aligned else 1
    mask = None if masking.kind == "none" else Mask(keep, routed=masking.kind == "route", block=block)
    label = torch.zeros(1, dtype=torch.int64, device=device) if spec.class_names else None
    # Of torch's kernels for attention only the plain one is made of products that its counter sees everywhere.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(x_t, t, mask=mask, label=label)
    return int(counter.get_total_flops())
