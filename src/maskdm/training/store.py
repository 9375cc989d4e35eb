"""Where decoded images lie while a model is trained, and how a batch of them reaches the device.

    device   all of them on the GPU: a batch is gathered there, and nothing is copied in a step
    ram      in memory: a batch is gathered by the CPU
    map      mapped from the cache on disk, whose pages the system keeps in memory while there is room
    stream   nowhere: decoded whenever they are needed, for sets that fit on no disk a second time

All but the first gather the next batch, and copy it to the device through pinned memory, while the step before it runs.
"""

from __future__ import annotations

import mmap
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from maskdm.config.schema import Where
from maskdm.data.stream import ImageArray
from maskdm.errors import InputError, within
from maskdm.runtime.host_memory import require_memory
from maskdm.runtime.memory import available_bytes

SHARE_OF_DEVICE, SHARE_OF_RAM = 0.25, 0.5
"""How much of the free memory images may take when nobody says where they shall lie."""


class Store(Protocol):
    """Images within reach of the device.

    Attributes:
        size: (H, W, C) of an image.
        waited: seconds that `take` has kept its caller waiting so far.
    """

    size: tuple[int, ...]
    waited: float

    def take(self, rows: np.ndarray) -> Tensor:
        """(B,) -> (B, H, W, C) uint8 on the device."""
        ...

    def prefetch(self, rows: np.ndarray) -> None:
        """These rows, (B,), will be taken next."""
        ...


class DeviceStore:
    """All images on the device; see `Store`."""

    def __init__(self, images: ImageArray, device: torch.device, chunk: int = 4096) -> None:
        self.size, self.waited, self.device = tuple(images.shape[1:]), 0.0, device
        self.images = torch.empty(tuple(images.shape), dtype=torch.uint8, device=device)
        for i in range(0, len(self.images), chunk):  # in parts: the host need not hold all of them at once
            rows = np.arange(i, min(i + chunk, len(self.images)))
            self.images[i : i + chunk] = torch.from_numpy(images[rows]).to(device)

    def take(self, rows: np.ndarray) -> Tensor:
        """(B,) -> (B, H, W, C) uint8, gathered there."""
        index = torch.from_numpy(rows)
        if self.device.type == "cuda":
            index = index.pin_memory().to(self.device, non_blocking=True)
        return self.images.index_select(0, index.to(self.device))

    def prefetch(self, rows: np.ndarray) -> None:
        """Nothing has to be fetched."""


class HostStore:
    """Images in the memory or on the disk of the host, see `Store`; a thread fetches what is taken next."""

    def __init__(self, images: ImageArray, device: torch.device) -> None:
        self.size, self.waited = tuple(images.shape[1:]), 0.0
        self.images, self.device = images, device
        if isinstance(images, np.memmap) and hasattr(mmap, "MADV_RANDOM"):
            # Rows come in any order: reading ahead would read ten times what is needed.
            images._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="maskdm-images")
        self._rows: np.ndarray | None = None
        self._coming: Future[Tensor] | None = None

    def take(self, rows: np.ndarray) -> Tensor:
        """(B,) -> (B, H, W, C) uint8 on the device: what was prefetched, if it is these rows."""
        since = time.perf_counter()
        rows_coming, coming, self._coming = self._rows, self._coming, None
        expected = coming is not None and rows_coming is not None and np.array_equal(rows_coming, rows)
        pixels = coming.result() if coming is not None and expected else self._fetch(rows)
        self.waited += time.perf_counter() - since
        if self._stream is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_stream(self._stream)
            pixels.record_stream(here)
        return pixels

    def prefetch(self, rows: np.ndarray) -> None:
        """Begins to fetch these rows, (B,), in the background."""
        self._rows, self._coming = rows, self._worker.submit(self._fetch, rows)

    def _fetch(self, rows: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(self.images[rows])
        if self._stream is None:
            return pixels.to(self.device)
        with torch.cuda.stream(self._stream):
            return pixels.pin_memory().to(self.device, non_blocking=True)


def check_store(images: ImageArray, device: torch.device, where: Where) -> None:
    """Refuses images on a device that is no GPU, or that has no room for them; arguments as of `make_store`.

    Raises:
        InputError: `data.store` is device, and that cannot be.
    """
    if where != "device":
        return
    if device.type != "cuda":
        problem = f"the model is trained on {device.type}"
        raise InputError("data.store", problem, got="device", wanted="a GPU for it", remedy="write auto")
    free = available_bytes(device)
    if images.nbytes > free:
        problem = f"the images take {images.nbytes:,} bytes of the device, where {free:,} are free"
        raise InputError("data.store", problem, got="device", remedy="write auto")


def make_store(images: ImageArray, device: torch.device, where: Where = "auto", ranks: int = 1) -> Store:
    """The store for `images` on this machine.

    Args:
        images: (N, H, W, C) uint8, all of them.
        device: where batches are wanted.
        where: see the module; auto takes the first of device, ram and map that fits. Without a GPU that is map, as
            the mapped pages are in the memory of the CPU already.
        ranks: how many processes on this machine hold the same images.

    Raises:
        InputError: `data.store` is device without a GPU, or device or ram with less memory than the images take.
    """
    if where == "auto":
        where = _fitting(images.nbytes, device, ranks)
    if where == "device":
        check_store(images, device, where)
        return DeviceStore(images, device)
    if where == "ram":
        with within(""):
            free, what = available_bytes(torch.device("cpu")), "the images"
            require_memory(images.nbytes * ranks, free, "data.store", got="ram", what=what, remedy="write auto")
        images = images[np.arange(images.shape[0])]
    return HostStore(images, device)


def _fitting(nbytes: int, device: torch.device, ranks: int) -> Literal["device", "ram", "map"]:
    if device.type != "cuda":
        return "map"
    if nbytes <= SHARE_OF_DEVICE * available_bytes(device):
        return "device"
    return "ram" if nbytes * ranks <= SHARE_OF_RAM * available_bytes(torch.device("cpu")) else "map"
