"""Masked pre-training and fine-tuning of pixel-space diffusion models, on any folder of pictures.

    import maskdm
    denoiser = maskdm.load("runs/00000-digits")         # or a .safetensors file
    pictures = maskdm.sample(denoiser, 16)    # (16, C, H, W) in [0, 1]
    out = denoiser.backbone(x_t, t, label=label)        # the bare network

Importing this is cheap: torch is imported when one of the names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from maskdm.diffusion.denoiser import Backbone, Denoiser
    from maskdm.diffusion.masks import Masking, masking
    from maskdm.errors import InputError, Interrupted, TrainingError
    from maskdm.models.weights import load
    from maskdm.sampling.sample import sample

_HOMES = {
    "Backbone": "maskdm.diffusion.denoiser",
    "Denoiser": "maskdm.diffusion.denoiser",
    "InputError": "maskdm.errors",
    "Interrupted": "maskdm.errors",
    "Masking": "maskdm.diffusion.masks",
    "TrainingError": "maskdm.errors",
    "load": "maskdm.models.weights",
    "masking": "maskdm.diffusion.masks",
    "sample": "maskdm.sampling.sample",
}

__all__ = [
    "Backbone",
    "Denoiser",
    "InputError",
    "Interrupted",
    "Masking",
    "TrainingError",
    "__version__",
    "load",
    "masking",
    "sample",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'maskdm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
