"""The held-out error: how well a model denoises images that it is never trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import fixed_noise, image_error
from maskdm.diffusion.pixels import area_average, to_model
from maskdm.diffusion.process import exact
from maskdm.runtime.device import exact_float32
from maskdm.runtime.distributed import Runtime

CHUNK = 64


@dataclass(frozen=True)
class HeldOut:
    """Questions about held-out images that stay the same for a whole run, on the device.

    Attributes:
        x_0: (N, C, H, W) in [-1, 1].
        t: (N,) times in float32.
        eps: noise, like x_0.
        label: (N,) class indices, or None.
    """

    x_0: Tensor
    t: Tensor
    eps: Tensor
    label: Tensor | None

    @staticmethod
    def ask(images: np.ndarray, labels: np.ndarray | None, denoiser: Denoiser, device: torch.device) -> HeldOut:
        """Questions about images.

        Args:
            images: (N, H, W, C) uint8, averaged down to the denoiser's size where that is smaller.
            labels: (N,) class indices, or None for a model without classes.
            denoiser: whose process and prediction choose times and noise; no network is called.
            device: where the questions are kept.
        """
        x_0 = area_average(to_model(images), denoiser.image_size)
        t, eps = fixed_noise(denoiser, x_0.shape)
        label = None if labels is None else torch.from_numpy(labels).to(device)
        return HeldOut(x_0.to(device), t.to(device, torch.float32), eps.to(device), label)

    @property
    def error_of_mean(self) -> float:
        """The error of a model that answers every question with the mean image: one that has learned nothing else."""
        return float((self.x_0 - self.x_0.mean(dim=0)).square().mean())

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.x_0)

    @torch.no_grad()
    @exact_float32()
    def error(self, denoiser: Denoiser, runtime: Runtime) -> float:
        """Mean squared error of the estimated image over the questions, in float32; see `image_error`.

        Every rank computes as many of them, a few perhaps for the second time, which does not count; all get the mean.

        Args:
            denoiser: the model, with the process of these questions.
            runtime: of the ranks that share the work.
        """
        total = torch.zeros((), device=self.x_0.device, dtype=exact(self.t).dtype)  # read once, at the end
        for numbers in torch.split(torch.tensor(runtime.rank_indices(len(self)), device=self.x_0.device), CHUNK):
            part = numbers % len(self)
            label = None if self.label is None else self.label[part]
            errors = image_error(denoiser, self.x_0[part], self.t[part], self.eps[part], label=label)
            total += (errors * (numbers < len(self))).sum()
        return runtime.all_reduce_sum(float(total)) / len(self)
