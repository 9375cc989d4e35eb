"""The held-out error: how well a model denoises images that it is never trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import fixed_questions, image_error
from maskdm.diffusion.patches import from_uint8
from maskdm.runtime.distributed import Runtime

CHUNK = 64


@dataclass(frozen=True)
class HeldOut:
    """Questions about held-out images that stay the same for a whole run, on the device."""

    x_0: Tensor
    t: Tensor
    eps: Tensor
    label: Tensor | None

    @staticmethod
    def ask(images: np.ndarray, labels: np.ndarray | None, denoiser: Denoiser, device: torch.device) -> HeldOut:
        """From (N, H, W, C) uint8 pictures and their labels."""
        x_0 = from_uint8(torch.from_numpy(images)).permute(0, 3, 1, 2).contiguous()
        t, eps = fixed_questions(denoiser, x_0.shape)
        label = None if labels is None else torch.from_numpy(labels).to(device)
        return HeldOut(x_0.to(device), t.to(device, torch.float32), eps.to(device), label)

    def __len__(self) -> int:
        return len(self.x_0)

    @torch.no_grad()
    def error(self, denoiser: Denoiser, runtime: Runtime) -> float:
        """Mean squared error of the estimated image over the questions, in float32; see `image_error`.

        Every rank answers as many of them, a few perhaps for the second time, which does not count; all hear the mean.
        """
        total = 0.0
        for numbers in torch.split(torch.tensor(runtime.turns(len(self)), device=self.x_0.device), CHUNK):
            part = numbers % len(self)
            label = None if self.label is None else self.label[part]
            errors = image_error(denoiser, self.x_0[part], self.t[part], self.eps[part], label=label)
            total += float((errors * (numbers < len(self))).sum())
        return runtime.total(total) / len(self)
