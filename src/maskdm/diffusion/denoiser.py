"""The denoiser: a backbone, and what its input and output mean.

Samplers see nothing else: from x_t and t it estimates the image and the noise that were mixed.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from maskdm.diffusion.masks import Mask
from maskdm.diffusion.prediction import Prediction
from maskdm.diffusion.process import Process, batch_times, check_times
from maskdm.diffusion.weighting import Weighting, uniform
from maskdm.errors import ArgumentError

CPU = torch.device("cpu")


class Backbone(Protocol):
    """Any network that the method can train: an `nn.Module` with this call."""

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        mask: Mask | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """The output for a batch of noisy images.

        Args:
            x_t: images as the network sees them, (B, C, H, W).
            t: times as the network sees them, (B,).
            mask: which patches to work on, or None for all. How a backbone saves work on the others is its own affair.
            label: (B,) int64; the number of classes, or None for the whole batch, asks for the unconditional output.

        Returns:
            (B, C, H, W), zero where masked.
        """
        ...


@dataclass(frozen=True, eq=False)
class Denoiser:
    """E[x_0 | x_t] from a backbone.

    Attributes:
        backbone: the network.
        process: how x_t was made.
        prediction: what the network predicts.
        channels, image_size: shape of an image, (C, (H, W)).
        patch_size: side in pixels of the patches that masks count.
        class_names: names of the classes in the order of their labels; empty for an unconditional model.
        device: where the backbone lives.
        weighting: how errors count in training.
    """

    backbone: Backbone
    process: Process
    prediction: Prediction
    channels: int
    image_size: tuple[int, int]
    patch_size: int = 1
    class_names: tuple[str, ...] = ()
    device: torch.device = CPU
    weighting: Weighting = uniform

    @property
    def unconditional(self) -> int:
        """The label that stands for "no class"."""
        return len(self.class_names)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        *,
        mask: Mask | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """The network's output for x_t (B, C, H, W), in x_t's precision; see `Backbone`.

        Args:
            x_t: (B, C, H, W).
            t: times of the process, (B,), or one for all.
            mask: which patches to work on, or None for all.
            label: (B,) int64, or None for the unconditional output.

        Raises:
            ArgumentError: of t; see `times`.
        """
        t = self.times(t, x_t)
        c_in = self.process.c_in(*self.alpha_sigma(t, x_t.dtype))
        c_noise = self.process.c_noise(t).to(torch.promote_types(x_t.dtype, torch.float32))
        out = self.backbone(c_in * x_t, c_noise, mask=mask, label=label)
        return out.to(x_t.dtype)  # back from half precision

    def times(self, t: Tensor | float, images: Tensor) -> Tensor:
        """Times of the process for `images` (B, C, H, W): (B,), from as many or from one for all.

        Raises:
            ArgumentError: of t: it has another shape, or there is no such time. Numbers and tensors on the CPU are
                looked at; for others that would mean to wait for the device.
        """
        if not isinstance(t, Tensor):
            check_times(self.process, torch.tensor(t, dtype=torch.float64))
        return batch_times(t, images)

    def alpha_sigma(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t (B,), each (B, 1, 1, 1) of `dtype`."""
        alpha, sigma = self.process.alpha_sigma(t)
        return alpha.to(dtype)[:, None, None, None], sigma.to(dtype)[:, None, None, None]

    def estimate(self, x_t: Tensor, t: float, *, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The image and the noise in x_t (B, C, H, W), at one time for the whole batch, before any clipping.

        Args:
            x_t: (B, C, H, W).
            t: one time of the process for the whole batch.
            label: (B,) int64 labels, or None for the unconditional model.

        Returns:
            (x_0, eps), each (B, C, H, W).

        Raises:
            ArgumentError: of t; see `times`.
        """
        time = self.times(t, x_t)
        out = self.forward(x_t, time, label=label)
        return self.prediction.invert(out, x_t, *self.alpha_sigma(time, x_t.dtype))

    def labels(self, names: str | Sequence[str | int]) -> list[int]:
        """Class names or numbers -> labels; the word "none" asks for the unconditional output.

        Text is one name, or several as on a line of CSV: `cat, dog`, or `"tabby, tabby cat", dog`.

        Raises:
            ArgumentError: no name at all, or the model has no classes, or not this one.
        """
        if isinstance(names, str):  # no row of letters
            names = [names.strip()] if names.strip() in self.class_names else _separated(names)
        if not len(names):
            raise ArgumentError("labels", got=[], wanted="at least one", remedy="leave them out, or name one")
        if not self.class_names:
            raise ArgumentError("labels", "this model has no classes", got=names[0], remedy="leave the labels out")
        numbers = {str(i): i for i in range(self.unconditional)} | {"none": self.unconditional}
        numbers |= {name: i for i, name in enumerate(self.class_names)}  # a class may be called "none", or "7"
        for label in names:
            if str(label) not in numbers:
                known = ", ".join(self.class_names[:12]) + (", ..." if len(self.class_names) > 12 else "")
                wanted = f"one of {known}, a number 0 to {self.unconditional - 1}, or none"
                commas = any("," in name for name in self.class_names)
                remedy = "put a name that has commas into double quotes" if commas else ""
                raise ArgumentError("labels", got=label, wanted=wanted, remedy=remedy)
        return [numbers[str(label)] for label in names]


def _separated(text: str) -> list[str]:
    """`"tabby, tabby cat", dog` -> its two words."""
    return [word.strip() for word in next(csv.reader([text], skipinitialspace=True), [])]
