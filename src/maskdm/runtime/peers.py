"""The other processes of a group: waiting for them as long as it takes, and ending when one of them has failed.

Waits go through a group of their own, on the CPU and with a limit of days: NCCL gives up after ten minutes, and a first
rank may decode images, train an encoder or draw bootstraps for longer. A rank that fails puts that on record in the
group's store; the others look there every second, and end within seconds wherever they are, even in a collective that
will never be complete.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from datetime import timedelta

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from maskdm.errors import TrainingError

LONGEST_WAIT = timedelta(days=7)
LOOK_EVERY, GRACE = 1.0, 5.0
"""Seconds between looks for a failure, and those that a process then has to end by itself."""
FAILED = "maskdm/failed"
"""The key of the group's store under which a failure is put on record."""
LOST = ("onnection closed by peer", "onnection reset by peer", "onnection refused", "roken pipe")
"""What gloo says of a process that is not there any more."""


class Peers:
    """The group that this process has joined, see the module.

    Args:
        rank: of this process.
        store: that all ranks share; a connection of its own, since the group's may be busy waiting.
    """

    def __init__(self, rank: int, store: Store) -> None:
        self.rank, self.store = rank, store
        self.waits = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="maskdm-peers", daemon=True)
        self._watcher.start()
        atexit.register(self.leave)

    def barrier(self) -> None:
        """Waits for all ranks."""
        dist.barrier(group=self.waits)

    def broadcast_object(self, text: str) -> str:
        """The first rank's text, on every rank."""
        box = [text]
        dist.broadcast_object_list(box, group=self.waits, device=torch.device("cpu"))
        return box[0]

    def failure(self) -> str | None:
        """What another rank failed of, None where none has."""
        try:
            if not self.store.check([FAILED]):
                return None
            rank, _, reason = self.store.get(FAILED).decode(errors="replace").partition(" ")
        except RuntimeError:  # the rank that kept the store is gone
            return "another process has ended"
        return None if int(rank) == self.rank else f"process {rank} failed: {reason}"

    def fail(self, error: BaseException) -> None:
        """Puts on record that this rank has failed; the first to do so is the one that is named."""
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        try:
            self.store.compare_set(FAILED, "", f"{self.rank} {reason}")
        except RuntimeError:
            return  # the store is gone, which the others see too

    def explain(self, error: BaseException) -> TrainingError | None:
        """The error in which another rank's failure has ended this one, as one that says so; None for its own."""
        if not isinstance(error, RuntimeError) or isinstance(error, TrainingError):
            return None
        failure = self.failure()
        if failure is None and any(words in str(error) for words in LOST):
            failure = "another process has ended"
        return None if failure is None else TrainingError(failure)

    def leave(self) -> None:
        """Stops looking for failures: from here on others may end before this one."""
        self._ended.set()
        self._watcher.join()
        atexit.unregister(self.leave)

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_EVERY):
            failure = self.failure()
            if failure is None:
                continue
            if not self._ended.wait(GRACE):  # it waits for ranks that will never come
                print(f"maskdm: error: {failure}", file=sys.stderr, flush=True)
                os._exit(1)
            return


def join_peers(rank: int) -> Peers:
    """The peers of the process group that was joined just now, as torch's launchers describe it in the environment."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(minutes=5))
    return Peers(rank, PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store))
