"""Scores and images of audits whose outcome is known, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from maskdm.auditing.controls import Control
from maskdm.auditing.scoring import ScoredAttack
from maskdm.auditing.subject import Subject
from maskdm.config.model_config import UViTConfig
from maskdm.config.process_config import DDPMConfig
from maskdm.data.labelled import LabelledImages
from maskdm.models.spec import ModelSpec


def scored(shift: float, n: int = 1000, seed: int = 0) -> ScoredAttack:
    """Normal scores of n images of each role, those of members higher by `shift`."""
    rng = np.random.default_rng(seed)
    m, h, c = rng.normal(shift, 1, n), rng.normal(0, 1, n), rng.normal(0, 1, n)
    return ScoredAttack("primary", (m, h), m, h, c)


PASSED = Control("blind", 0.5, 0.45, 0.55, True, "no difference")
FAILED = Control("blind", 0.62, 0.58, 0.66, False, "no difference")


def flat(count: int, seed: int, contrast: float = 1.0) -> LabelledImages:
    """Blurred noise of 8 x 8 pixels, unlike each other."""
    x = torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed))
    smooth = torch.tanh(contrast * torch.nn.functional.avg_pool2d(x, 3, 1)).permute(0, 2, 3, 1)
    images = ((smooth + 1) * 127.5).round().to(torch.uint8).numpy()
    return LabelledImages(images, tuple(f"{seed}-{i}" for i in range(count)))


def subject(contrast: float) -> Subject:
    """Three roles of 400 images each; members with another contrast."""
    spec = ModelSpec(model=UViTConfig(), process=DDPMConfig(), image_size=(8, 8), channels=3)
    return Subject(Path(), "", spec, {}, flat(400, 1, contrast), flat(400, 2), flat(400, 3), certified=True)
