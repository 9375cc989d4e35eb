"""Pictures dealt out to the ranks in turn, and gathered: the same ones, in the same order, however many make them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskdm.runtime.distributed import Runtime
from maskdm.sampling.sample import Plan, check_counts, pictures


def make(how: Plan, num: int, runtime: Runtime, *, batch_size: int, report: Callable[[int], None]) -> Tensor:
    """`num` pictures as `how` says, on every rank: (num, C, H, W) in [0, 1]."""
    check_counts(num, batch_size)
    unit = pictures(how, runtime.turns(num), batch_size=batch_size, report=report)
    return torch.stack(runtime.gather(unit), dim=1).flatten(0, 1)[:num]
