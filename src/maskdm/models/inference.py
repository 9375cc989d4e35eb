"""A network as sampling calls it: in half precision, and perhaps compiled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskdm.diffusion.masks import Mask
from maskdm.diffusion.process import batch_times
from maskdm.runtime.device import Precision, autocast, check_compiler, compile_network, pick_precision


class InferenceWrapper(nn.Module):
    """A backbone (see `maskdm.diffusion.denoiser.Backbone`) that computes in another precision than its inputs.

    Args:
        network: the backbone, whose weights stay as they are.
        device: where it computes.
        precision: of its arithmetic.
        compiled: whether torch compiles it.
    """

    def __init__(self, network: nn.Module, device: torch.device, precision: Precision, compiled: bool) -> None:
        super().__init__()
        self.network = compile_network(network, "default") if compiled else network
        self.device, self.precision = device, precision

    def forward(
        self, x_t: Tensor, t: Tensor | float, *, mask: Mask | None = None, label: Tensor | None = None
    ) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C, H, W) in the type of x_t. Also one t for all images.

        Raises:
            ArgumentError: t of another shape.
        """
        t = batch_times(t, x_t)
        with autocast(self.device, self.precision):
            out: Tensor = self.network(x_t, t, mask=mask, label=label)
        return out.to(x_t.dtype)


def for_inference(
    network: nn.Module, device: torch.device, mixed_precision: str = "no", compiled: bool = False
) -> nn.Module:
    """`network` as sampling may call it; itself where nothing is asked for.

    Args:
        network: a backbone on `device`.
        device: where it computes.
        mixed_precision: auto, bf16, fp16 or no (float32).
        compiled: whether torch compiles it: a minute at the first call, and faster on a GPU from then on.

    Raises:
        ArgumentError: of `compile`, where there is no compiler.
    """
    precision = pick_precision(mixed_precision, device)
    if compiled:
        check_compiler(compiled, device)
    if precision == "no" and not compiled:
        return network
    return InferenceWrapper(network, device, precision, compiled)
