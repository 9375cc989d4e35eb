"""Images on their way to the device: the right rows, whoever expected what, and where they lie."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from maskdm.data.stream import Streamed
from maskdm.errors import InputError
from maskdm.training import store
from maskdm.training.store import DeviceStore, HostStore, make_store

CPU = torch.device("cpu")
IMAGES = np.arange(20 * 4 * 6 * 3, dtype=np.int64).astype(np.uint8).reshape(20, 4, 6, 3)


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("make", [HostStore, DeviceStore])
def test_takes_what_is_asked_whatever_was_prefetched(make):
    images = make(IMAGES, CPU)
    for expected, asked in [((3, 1), (3, 1)), ((5,), (7, 7, 0)), ((), (19,))]:
        images.prefetch(rows(*expected))
        found = images.take(rows(*asked))
        assert found.dtype == torch.uint8
        assert np.array_equal(found.numpy(), IMAGES[list(asked)])
    assert images.size == (4, 6, 3)


def test_what_was_not_prefetched_is_fetched_at_once():
    assert np.array_equal(HostStore(IMAGES, CPU).take(rows(4)).numpy(), IMAGES[[4]])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux")
def test_a_mapped_cache_is_not_read_ahead(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")

    def at_random() -> bool:
        maps = Path("/proc/self/smaps").read_text(encoding="utf-8").split(str(tmp_path / "images.npy"))[1]
        return " rr " in next(line for line in maps.splitlines() if line.startswith("VmFlags"))

    assert not at_random()
    assert np.array_equal(HostStore(images, CPU).take(rows(3, 0)).numpy(), IMAGES[[3, 0]])
    assert at_random()


class Slow:
    """An array behind a slow disk."""

    shape, nbytes = IMAGES.shape, IMAGES.nbytes

    def __init__(self) -> None:
        self.threads: list[str] = []

    def __getitem__(self, wanted: np.ndarray) -> np.ndarray:
        self.threads.append(threading.current_thread().name)
        time.sleep(0.2)
        return IMAGES[wanted]


def test_what_is_expected_comes_while_the_step_runs():
    disk = Slow()
    images = HostStore(disk, CPU)
    images.prefetch(rows(1, 2))
    time.sleep(0.4)  # the step before
    since = time.perf_counter()
    images.take(rows(1, 2))
    assert time.perf_counter() - since < 0.1
    assert images.waited < 0.1
    assert threading.current_thread().name not in disk.threads
    images.take(rows(3))
    assert images.waited >= 0.2


def test_a_fault_of_the_disk_reaches_the_step():
    class Broken(Slow):
        def __getitem__(self, wanted: np.ndarray) -> np.ndarray:
            raise InputError("gone")

    images = HostStore(Broken(), CPU)
    images.prefetch(rows(1))
    with pytest.raises(InputError, match="gone"):
        images.take(rows(1))


def test_a_store_without_a_gpu():
    mapped = make_store(IMAGES, CPU)
    assert isinstance(mapped, HostStore)
    assert mapped.images is IMAGES
    kept = make_store(IMAGES, CPU, "ram")
    assert isinstance(kept, HostStore)
    assert kept.images is not IMAGES
    assert np.array_equal(kept.take(rows(2, 9)).numpy(), IMAGES[[2, 9]])
    with pytest.raises(InputError) as caught:
        make_store(IMAGES, CPU, "device")
    assert (caught.value.name, caught.value.got) == ("data.store", "device")


@pytest.mark.parametrize(
    ("device_free", "ram_free", "ranks", "wanted"),
    [(400, 0, 1, "device"), (399, 200, 1, "ram"), (399, 399, 2, "map"), (399, 199, 1, "map")],
)
def test_the_fit_test(monkeypatch, device_free, ram_free, ranks, wanted):
    free = {"cuda": device_free, "cpu": ram_free}
    monkeypatch.setattr(store, "available_bytes", lambda device: free[device.type])
    assert store._fitting(100, torch.device("cuda"), ranks) == wanted


def test_streamed_images_are_decoded_when_asked_for():
    decoded: list[int] = []

    def decode(number: int) -> np.ndarray:
        decoded.append(number)
        return np.full((2, 2, 1), 10 + number, np.uint8)

    images = Streamed((3, 2, 2, 1), decode)
    assert (images.shape, images.nbytes, len(images)) == ((3, 2, 2, 1), 12, 3)
    assert decoded == []
    assert images[rows(2, 0, 2)][:, 0, 0, 0].tolist() == [12, 10, 12]
    assert sorted(decoded) == [0, 2, 2]
    assert images[rows()].shape == (0, 2, 2, 1)
