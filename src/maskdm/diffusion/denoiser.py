"""The denoiser: a backbone, and what its input and output mean.

Samplers see nothing else: from x_t and t it estimates the image and the noise that were mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from maskdm.diffusion.prediction import Prediction
from maskdm.diffusion.process import Process
from maskdm.diffusion.weighting import Weighting, uniform
from maskdm.errors import InputError

CPU = torch.device("cpu")


class Backbone(Protocol):
    """Any network that the method can train: an `nn.Module` with this call."""

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        visible: Tensor | None = None,
        through: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W), (B,), patches or None for all (twice), labels (B,) or None -> (B, C, H, W).

        `visible` are the patches that are shown, (B, K), or (B, h, w) where they form rectangles; the output is zero
        where hidden, and how a backbone saves work there is its own affair. `through` are the patches that pass the
        middle of the network, which the others go around; all are answered for. Never are both given.
        Label `unconditional` (the number of classes) or None asks for the unconditional answer.
        """
        ...


@dataclass(frozen=True, eq=False)
class Denoiser:
    """E[x_0 | x_t] from a backbone.

    Attributes:
        backbone: the network.
        process: how x_t was made.
        prediction: what the network answers.
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

    def answer(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        visible: Tensor | None = None,
        through: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """The network's output for x_t (B, C, H, W) at times t (B,), in x_t's precision; see `Backbone`."""
        shown = self.process.shown(*self.at(t, x_t.dtype))
        told = self.process.told(t).to(x_t.dtype)
        out = self.backbone(shown * x_t, told, visible=visible, through=through, label=label)
        return out.to(x_t.dtype)  # back from half precision

    def at(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t (B,), each (B, 1, 1, 1)."""
        alpha, sigma = self.process.alpha_sigma(t)
        return alpha.to(dtype)[:, None, None, None], sigma.to(dtype)[:, None, None, None]

    def estimate(self, x_t: Tensor, t: float, *, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The image and the noise in x_t (B, C, H, W), at one time for the whole batch, before any clipping.

        Args:
            x_t: (B, C, H, W).
            t: one time of the process for the whole batch.
            label: (B,) int64 labels, or None for the unconditional model.
        """
        time = torch.full((len(x_t),), t, device=x_t.device, dtype=x_t.dtype)
        out = self.answer(x_t, time, label=label)
        return self.prediction.invert(out, x_t, *self.at(time, x_t.dtype))

    def labels(self, wanted: Sequence[str | int]) -> list[int]:
        """Class names or numbers -> labels; the word "none" asks for the unconditional answer.

        Raises:
            InputError: the model has no classes, or not this one.
        """
        if not len(wanted):
            raise InputError("labels: got none at all; leave them out, or name at least one")
        if not self.class_names:
            raise InputError(f"labels: got {wanted[0]}, but this model has no classes; leave the labels out")
        numbers = {str(i): i for i in range(self.unconditional)} | {"none": self.unconditional}
        numbers |= {name: i for i, name in enumerate(self.class_names)}  # a class may be called "none", or "7"
        for label in wanted:
            if str(label) not in numbers:
                names = ", ".join(self.class_names[:12]) + (", ..." if len(self.class_names) > 12 else "")
                raise InputError(
                    f"labels: got {label!r}, wanted a name of {names}, a number 0 to {self.unconditional - 1}, or none"
                )
        return [numbers[str(label)] for label in wanted]
