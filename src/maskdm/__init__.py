"""Masked pre-training and fine-tuning of pixel-space diffusion models, on any folder of images.

    import maskdm
    result = maskdm.train("photos/", minutes=20)             # every command is a function
    images = maskdm.sample(result.run, 16)                  # (16, C, H, W) in [0, 1]
    denoiser = maskdm.load(result.run)                      # or a .safetensors file
    out = denoiser.backbone(x_t, t, label=label)            # the bare network

Importing this is cheap: torch is imported when one of the names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from maskdm.commands.audit import AuditResult, audit, compare_audits
    from maskdm.commands.bench import BenchResult, bench
    from maskdm.commands.compare import ComparisonResult, compare
    from maskdm.commands.evaluate import EvaluationResult, evaluate
    from maskdm.commands.plan import plan
    from maskdm.commands.sample import sample
    from maskdm.commands.train import TrainResult, train
    from maskdm.diffusion.denoiser import Backbone, Denoiser
    from maskdm.diffusion.masks import Mask, Masking, masking
    from maskdm.errors import ArgumentError, InputError, Interrupted, StorageError, TrainingError
    from maskdm.models.weights import load

_HOMES = {
    "ArgumentError": "maskdm.errors",
    "AuditResult": "maskdm.commands.audit",
    "Backbone": "maskdm.diffusion.denoiser",
    "BenchResult": "maskdm.commands.bench",
    "ComparisonResult": "maskdm.commands.compare",
    "Denoiser": "maskdm.diffusion.denoiser",
    "EvaluationResult": "maskdm.commands.evaluate",
    "InputError": "maskdm.errors",
    "Interrupted": "maskdm.errors",
    "Mask": "maskdm.diffusion.masks",
    "Masking": "maskdm.diffusion.masks",
    "StorageError": "maskdm.errors",
    "TrainResult": "maskdm.commands.train",
    "TrainingError": "maskdm.errors",
    "audit": "maskdm.commands.audit",
    "bench": "maskdm.commands.bench",
    "compare": "maskdm.commands.compare",
    "compare_audits": "maskdm.commands.audit",
    "evaluate": "maskdm.commands.evaluate",
    "load": "maskdm.models.weights",
    "masking": "maskdm.diffusion.masks",
    "plan": "maskdm.commands.plan",
    "sample": "maskdm.commands.sample",
    "train": "maskdm.commands.train",
}

__all__ = [
    "ArgumentError",
    "AuditResult",
    "Backbone",
    "BenchResult",
    "ComparisonResult",
    "Denoiser",
    "EvaluationResult",
    "InputError",
    "Interrupted",
    "Mask",
    "Masking",
    "StorageError",
    "TrainResult",
    "TrainingError",
    "__version__",
    "audit",
    "bench",
    "compare",
    "compare_audits",
    "evaluate",
    "load",
    "masking",
    "plan",
    "sample",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'maskdm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
