"""Buffers of a network: state that is no weight, such as running statistics. Ours have none; a user's own may."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


class Buffers:
    """The persistent buffers of a network, those in its state dict, in order.

    Where they are is found once, since walking through a large network takes a millisecond, and every step needs them.

    Args:
        network: whose they are.
    """

    def __init__(self, network: nn.Module) -> None:
        self._places = [
            (module, name)
            for module in network.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and name not in module._non_persistent_buffers_set
        ]

    def __iter__(self) -> Iterator[Tensor]:
        for module, name in self._places:
            buffer = module._buffers[name]
            if buffer is not None:
                yield buffer

    def __len__(self) -> int:
        return len(self._places)

    @property
    def floating(self) -> list[Tensor]:
        """Those that can be averaged."""
        return [buffer for buffer in self if buffer.is_floating_point()]

    def keep(self) -> list[Tensor]:
        """Copies of them, for `restore`."""
        return [buffer.clone() for buffer in self]

    def restore(self, kept: Sequence[Tensor]) -> None:
        """Puts back what `keep` kept: what was seen since did not count as training."""
        for buffer, before in zip(self, kept, strict=True):
            buffer.copy_(before)


@contextmanager
def buffers_aside(block: nn.Module) -> Iterator[None]:
    """Inside, a block has copies of its buffers, and whatever is done to those is forgotten.

    Others are put in their place; they are not restored, since a backward pass would find them changed.
    """
    kept = [(module, name, buffer) for module in block.modules() for name, buffer in module._buffers.items()]
    for module, name, buffer in kept:
        module._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in kept:
            module._buffers[name] = buffer
