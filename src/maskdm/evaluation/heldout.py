"""The held-out error: how well a model denoises images that it is never trained on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import LEVELS, fixed_levels, fixed_noise, image_error
from maskdm.diffusion.pixels import area_average, to_model
from maskdm.diffusion.process import exact
from maskdm.runtime.device import exact_float32
from maskdm.runtime.distributed import Runtime

CHUNK = 64
RANGES = 4
"""Equal ranges of noise level by which the error is split: what noise hides goes from detail to layout."""


@dataclass(frozen=True)
class QuestionRange:
    """The questions at some noise levels.

    Attributes:
        low, high: of the levels; the upper one belongs to the next range.
        n: how many there are, at least one.
        error_linear: mean error of the best linear filter on them, see `linear_errors`.
    """

    low: float
    high: float
    n: int
    error_linear: float


@dataclass(frozen=True)
class HeldOutError:
    """What `HeldOut.error` measures.

    Attributes:
        mean: over all questions.
        by_range: over those of each of `HeldOut.ranges`; weighted by their n, their mean is `mean`.
    """

    mean: float
    by_range: tuple[float, ...]


@dataclass(frozen=True)
class HeldOut:
    """Questions about held-out images that stay the same for a whole run, on the device.

    Attributes:
        x_0: (N, C, H, W) in [-1, 1].
        t: (N,) times in float32.
        eps: noise, like x_0.
        label: (N,) class indices, or None.
        within: (N, R) bool, in which of the ranges a question is.
        ranges: of noise level, in order, R of them.
    """

    x_0: Tensor
    t: Tensor
    eps: Tensor
    label: Tensor | None
    within: Tensor
    ranges: tuple[QuestionRange, ...]

    @staticmethod
    def ask(images: np.ndarray, labels: np.ndarray | None, denoiser: Denoiser, device: torch.device) -> HeldOut:
        """Questions about images.

        A question belongs to the range of the noise level that it was meant to have, even where a process of few
        timesteps has none that is near: so ranges hold the same images and noise whatever the process.

        Args:
            images: (N, H, W, C) uint8, averaged down to the denoiser's size where that is smaller.
            labels: (N,) class indices, or None for a model without classes.
            denoiser: whose process and prediction choose times and noise; no network is called.
            device: where the questions are kept.
        """
        x_0 = area_average(to_model(images), denoiser.image_size)
        t, eps = fixed_noise(denoiser, x_0.shape)
        within, ranges = _split(fixed_levels(len(x_0)), linear_errors(denoiser, x_0, t, eps))
        label = None if labels is None else torch.from_numpy(labels).to(device)
        return HeldOut(x_0.to(device), t.to(device, torch.float32), eps.to(device), label, within.to(device), ranges)

    @property
    def error_of_mean(self) -> float:
        """The error of a model that answers every question with the mean image: one that has learned nothing else."""
        return float((self.x_0 - self.x_0.mean(dim=0)).square().mean())

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.x_0)

    @torch.no_grad()
    @exact_float32()
    def error(self, denoiser: Denoiser, runtime: Runtime) -> HeldOutError:
        """Mean squared error of the estimated image over the questions, in float32; see `image_error`.

        Every rank computes as many of them, a few perhaps for the second time, which does not count; all get the mean.

        Args:
            denoiser: the model, with the process of these questions.
            runtime: of the ranks that share the work.
        """
        sums = torch.zeros(len(self.ranges), device=self.x_0.device, dtype=exact(self.t).dtype)
        for numbers in torch.split(torch.tensor(runtime.rank_indices(len(self)), device=self.x_0.device), CHUNK):
            part = numbers % len(self)
            label = None if self.label is None else self.label[part]
            errors = image_error(denoiser, self.x_0[part], self.t[part], self.eps[part], label=label)
            counts = self.within[part] & (numbers < len(self))[:, None]
            sums += torch.where(counts, errors.to(sums.dtype)[:, None], 0).sum(dim=0)
        totals = runtime.all_reduce_sum(sums.cpu().tolist())  # read once, at the end
        by_range = tuple(total / each.n for total, each in zip(totals, self.ranges, strict=True))
        return HeldOutError(sum(totals) / len(self), by_range)


def linear_errors(denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Errors of the best linear filter on the same questions: (N,), in the unit of `image_error`.

    The Wiener filter (Wiener 1949) knows of images their mean and how much they vary at each spatial frequency, S, and
    nothing else: it keeps S alpha^2 / (S alpha^2 + sigma^2) of a frequency, which is a blur, the stronger the more
    noise there is. Both are taken from the other images, so that it is not fitted to what it is asked for. Its errors
    are a scale on which those of all noise levels compare: what a network has less is what it knows of images beyond
    how smooth they are.

    Args:
        denoiser: whose process mixes in the noise; no network is called.
        x_0: images in [-1, 1], (N, C, H, W).
        t: times, (N,).
        eps: noise, like x_0.
    """
    total, others = x_0.sum(dim=0), max(len(x_0) - 1, 1)
    mean, chunks = total / len(x_0), range(0, len(x_0), CHUNK)
    power = torch.stack([_power(x_0[i : i + CHUNK] - mean).sum(dim=0) for i in chunks]).sum(dim=0)  # (C, H, W)
    errors = []
    for i in chunks:
        x, (alpha, sigma) = x_0[i : i + CHUNK], denoiser.alpha_sigma(t[i : i + CHUNK], x_0.dtype)
        of_others = (total - x) / others
        s = (power - _power(x - mean) * len(x_0) / others).clamp(min=0) / max(others - 1, 1)  # around their own mean
        kept = s * alpha / (s * alpha**2 + sigma**2)  # fixed noise always has some: sigma > 0
        noisy = torch.fft.fft2(alpha * (x - of_others) + sigma * eps[i : i + CHUNK])
        estimate = of_others + torch.fft.ifft2(kept * noisy).real
        errors.append((estimate.clamp(-1, 1) - x).square().mean(dim=(1, 2, 3)))
    return torch.cat(errors)


def _power(images: Tensor) -> Tensor:
    power: Tensor = torch.fft.fft2(images, norm="ortho").abs().square()
    return power


def _split(level: Tensor, error_linear: Tensor) -> tuple[Tensor, tuple[QuestionRange, ...]]:
    """Which questions (N,) are in which range, (N, R), and the ranges; with few images some would be empty."""
    edges = torch.linspace(*LEVELS, RANGES + 1, dtype=torch.float64)
    number = torch.bucketize(level + 1e-9, edges[1:-1], right=True)  # at an edge, whatever way it was rounded, above it
    within = torch.stack([number == i for i in range(RANGES)], dim=1)
    ranges = [
        QuestionRange(round(low, 9), round(high, 9), int(mine.sum()), float(error_linear[mine].mean()))
        for (low, high), mine in zip(pairwise(edges.tolist()), within.unbind(dim=1), strict=True)
        if mine.any()
    ]
    return within[:, within.any(dim=0)], tuple(ranges)
