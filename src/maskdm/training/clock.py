"""The seconds of training: those of steps, on the device, and of nothing else."""

from __future__ import annotations

import time

from maskdm.runtime.distributed import Runtime


class Clock:
    """Measures steps, which a device goes on computing after the host is through with them.

    The seconds of one step are the host's. What the device is behind comes on top where it is waited for, so that sums
    are right from one wait to the next.

    Args:
        runtime: whose device is waited for.
        shared: whether every rank gets the first one's seconds.
    """

    def __init__(self, runtime: Runtime, *, shared: bool = False) -> None:
        self.runtime, self.shared = runtime, shared
        self.start()

    def start(self) -> None:
        """From here on."""
        self._since = time.perf_counter()

    def lap(self, *, wait: bool = False) -> float:
        """Seconds since the start or the lap before, with `wait` until the device is through."""
        if wait:
            self.runtime.synchronize()
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return self.runtime.broadcast(seconds) if self.shared else seconds
