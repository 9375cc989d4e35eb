"""The denoiser: a backbone, and what its input and output mean.

Samplers see nothing else: from x_t and t it estimates the image and the noise that were mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from maskdm.errors import InputError
from maskdm.method.prediction import Prediction
from maskdm.method.process import Process

CPU = torch.device("cpu")


class Backbone(Protocol):
    """Any network that the method can train: an `nn.Module` with this call."""

    def __call__(self, x_t: Tensor, t: Tensor, *, visible: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,), visible patches (B, K) or None for all, labels (B,) or None -> (B, C, H, W).

        The output is zero where hidden. How a backbone saves work on hidden patches is its own affair.
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
        class_names: names of the classes in the order of their labels; empty for an unconditional model.
        device: where the backbone lives.
    """

    backbone: Backbone
    process: Process
    prediction: Prediction
    channels: int
    image_size: tuple[int, int]
    class_names: tuple[str, ...] = ()
    device: torch.device = CPU

    @property
    def unconditional(self) -> int:
        """The label that stands for "no class"."""
        return len(self.class_names)

    def estimate(
        self, x_t: Tensor, t: float, *, label: Tensor | None = None, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """The image and the noise in x_t.

        Args:
            x_t: (B, C, H, W).
            t: one time of the process for the whole batch.
            label: (B,) int64 labels, or None for the unconditional model.
            guidance: weight w of classifier-free guidance, out = out_none + w (out_label - out_none)
                (Ho & Salimans 2022, arXiv 2207.12598, with w = 1 for none at all).

        Returns:
            x_0 clipped to [-1, 1], and eps as it follows from the output before clipping; (B, C, H, W) both.
        """
        time = torch.full((len(x_t),), t, device=x_t.device)
        out = self._guided(x_t, time, label, guidance)
        alpha, sigma = (c.to(x_t.dtype)[:, None, None, None] for c in self.process.alpha_sigma(time))
        x_0, eps = self.prediction.invert(out, x_t, alpha, sigma)
        return x_0.clamp(-1, 1), eps

    def _guided(self, x_t: Tensor, t: Tensor, label: Tensor | None, guidance: float) -> Tensor:
        if label is None or guidance == 1.0:
            return self.backbone(x_t, t, label=label)
        nothing = torch.full_like(label, self.unconditional)
        both = self.backbone(x_t.repeat(2, 1, 1, 1), t.repeat(2), label=torch.cat([label, nothing]))
        conditional, unconditional = both.chunk(2)
        return torch.lerp(unconditional, conditional, guidance)

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
