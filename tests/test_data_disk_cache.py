"""Cache entries: found again by content, whole whatever happens, built by any number of processes at once."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import Listener, noise, png, refused, truncate, write_folder

from maskdm import files
from maskdm.data import scan
from maskdm.data.decode import Transform
from maskdm.data.disk_cache import Decoded, find_or_build
from maskdm.data.image_set import ImageSet, load_images
from maskdm.data.sources import open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def load(path: Path, console: Listener | None = None, **settings: Any) -> ImageSet:
    settings.setdefault("cache_dir", path.parent / "cache")
    return load_images(open_source(path), console=console or Listener(), **settings)


def numbers(images: ImageSet) -> list[int]:
    return [int(Path(name).stem) for name in images.names]


def entry_of(path: Path) -> Path:
    (entry,) = (found for found in (path.parent / "cache").iterdir() if found.name != "left-out")
    return entry


# --- found again -----------------------------------------------------------------------------------------------------


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("it is in the cache")

    monkeypatch.setattr("maskdm.data.scan.decode_and_measure", decode)


def test_found_again_after_a_move(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(folder)
    forbid_decoding(monkeypatch)
    again = load(folder)
    moved = load(folder.rename(folder.with_name("moved")))
    assert first.fingerprint == again.fingerprint == moved.fingerprint
    assert np.array_equal(first.images, moved.images)
    (folder.with_name("moved") / "dog").rename(folder.with_name("moved") / "hund")
    renamed = load(folder.with_name("moved"))
    assert np.array_equal(first.images, renamed.images)
    assert renamed.fingerprint != first.fingerprint


def test_entries_hold_no_names(folder: Path) -> None:
    truncate(folder / "dog/00.png")
    load(folder)
    content = b"".join(path.read_bytes() for path in entry_of(folder).iterdir())
    assert not any(word in content for word in (b"dog/", b"cat/", b"00.png", os.fsencode(folder)))


def test_every_change_changes_the_fingerprint(folder: Path) -> None:
    prints = [load(folder).fingerprint, load(folder, image_size=9).fingerprint]
    (folder / "dog/00.png").write_bytes(png(noise(99)))
    prints.append(load(folder).fingerprint)
    (folder / "dog/00.png").write_bytes(b"bad")
    prints.append(load(folder).fingerprint)
    (folder / "dog/00.png").write_bytes(b"bad in another way")
    prints.append(load(folder).fingerprint)
    (folder / "dog/00.png").unlink()
    prints.append(load(folder).fingerprint)
    assert len(set(prints)) == len(prints)


# --- whole whatever happens ------------------------------------------------------------------------------------------


def shorten(entry: Path) -> None:
    with (entry / "images.npy").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)


def lengthen(entry: Path) -> None:
    with (entry / "images.npy").open("ab") as file:
        file.write(b"more")


def other_header(entry: Path) -> None:
    np.save(entry / "images.npy", np.zeros((12, 6, 8, 3), np.int8))


def no_index(entry: Path) -> None:
    (entry / "index.json").unlink()


def half_index(entry: Path) -> None:
    (entry / "index.json").write_text((entry / "index.json").read_text()[:-20])


def other_index(entry: Path) -> None:
    (entry / "index.json").write_text('{"format": 1}')


@pytest.mark.parametrize("damage", [shorten, lengthen, other_header, no_index, half_index, other_index])
def test_a_damaged_entry_is_built_again(damage: Any, folder: Path) -> None:
    load(folder)
    damage(entry_of(folder))
    console = Listener()
    images = load(folder, console)
    assert all(np.array_equal(images.images[row], noise(n)) for row, n in enumerate(numbers(images)))
    assert console.said == [f"warning: the cache entry {entry_of(folder)} is damaged and is built again"]
    assert entry_of(folder).name.isalnum()  # and nothing is left beside it


def test_leftovers_of_the_dead_are_swept_up(folder: Path) -> None:
    cache = folder.parent / "cache"
    worker = multiprocessing.get_context("spawn").Process(target=int)
    worker.start()
    worker.join()
    here, elsewhere = files._MACHINE, "0" * 8
    orphan = cache / f".k.tmp-{here}-{worker.pid}-01234567"
    foreign = cache / f".k.tmp-{elsewhere}-{worker.pid}-01234567"
    ancient = cache / f".k.tmp-{elsewhere}-{worker.pid}-89abcdef"
    fresh = files.temporary_name(cache / "l")
    stranger = cache / "notes.tmp-of-mine"
    for path in (orphan, foreign, ancient, fresh, stranger):
        path.mkdir(parents=True)
        (path / "images.npy").write_bytes(b"half")
    salts = [cache / f".salt.tmp-{here}-{pid}-01234567" for pid in (worker.pid, os.getpid())]
    for salt in salts:
        salt.write_bytes(b"half")
    long_ago = time.time() - 90_000
    for path in (ancient / "images.npy", ancient):
        os.utime(path, (long_ago, long_ago))
    load(folder)
    assert [path.exists() for path in (orphan, foreign, ancient, fresh, stranger)] == [False, True, False, True, True]
    assert [salt.exists() for salt in salts] == [False, True]


def test_killed_while_decoding_leaves_no_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        calls = iter(range(100))
        decode = scan.decode_and_measure

        def interrupted(*arguments: Any) -> Any:
            if next(calls) == 7:
                raise KeyboardInterrupt
            return decode(*arguments)

        patch.setattr(scan, "decode_and_measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(folder)
    assert list((folder.parent / "cache").iterdir()) == []
    assert len(load(folder)) == 12


def test_an_entry_is_private(folder: Path) -> None:
    load(folder)
    assert entry_of(folder).stat().st_mode & 0o077 == 0


def test_threads_at_once(folder: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: load(folder), range(6)))
    assert all(np.array_equal(result.images, results[0].images) for result in results)
    assert entry_of(folder).name.isalnum()


def load_in_process(path: str, barrier: Any, queue: Any) -> None:
    barrier.wait()
    queue.put(hashlib.sha256(load(Path(path)).images.tobytes()).hexdigest())


def test_processes_at_once(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    workers = [context.Process(target=load_in_process, args=(str(folder), barrier, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    digests = {queue.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert digests == {hashlib.sha256(load(folder).images.tobytes()).hexdigest()}
    assert entry_of(folder).name.isalnum()


def test_the_loser_of_the_race_takes_the_winners_entry(tmp_path: Path) -> None:
    transform = Transform(2, 2, 1)

    def decoded() -> Iterator[Decoded]:
        for value in range(9):
            pixels = np.full((2, 2, 1), value, np.uint8)
            yield Decoded(pixels, hashlib.sha256(pixels.data).hexdigest())

    def slow() -> Iterator[Decoded]:
        yield from decoded()
        find_or_build(tmp_path / "cache", "k", transform, 9, decoded, Listener())  # another is faster

    entry = find_or_build(tmp_path / "cache", "k", transform, 9, slow, Listener())
    assert entry.images[:, 0, 0, 0].tolist() == list(range(9))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["k"]


# --- no room ---------------------------------------------------------------------------------------------------------


def test_cache_dir_that_is_a_file(folder: Path) -> None:
    (folder.parent / "file").write_text("")
    cache = folder.parent / "file" / "cache"
    with refused(cache, "(Not a directory), 1,051,840 bytes are needed", remedy="data.cache_dir"):
        load(folder, cache_dir=cache)


def test_no_space_is_noticed_before_decoding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_decoding(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1_000_000))
    problem = "(1,000,000 bytes are free), 1,051,840 bytes are needed"
    with refused(folder.parent / "cache", problem, remedy="data.cache_dir"):
        load(folder)


def test_a_disk_that_fills_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with refused(folder.parent / "cache", "(No space left on device), 1,051,840 bytes are needed"):
        load(folder)
    assert list((folder.parent / "cache").iterdir()) == []


# --- every byte ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["images.npy", "index.json"])
def test_a_flipped_bit_or_a_cut_is_noticed(name: str, folder: Path) -> None:
    """A bit here and there: the entry is the same once it has been read, or built again with a line."""
    expected = np.array(load(folder).images)
    file = entry_of(folder) / name
    whole = file.read_bytes()
    for position in range(0, len(whole), max(len(whole) // 12, 1)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        for damaged in (bytes(flipped), whole[:position]):
            file.write_bytes(damaged)
            console = Listener()
            again = load(folder, console)
            assert np.array_equal(again.images, expected)
            assert again.sha256_px == tuple(hashlib.sha256(image.data).hexdigest() for image in expected)
            assert console.said or name == "images.npy"  # a space in NumPy's header may be another
            assert file.read_bytes() == whole or not console.said


def test_pixels_and_index_of_two_entries_are_not_mixed(folder: Path) -> None:
    load(folder)
    pixels = np.load(entry_of(folder) / "images.npy")
    np.save(entry_of(folder) / "images.npy", pixels[::-1])  # the same shape, and each image whole
    console = Listener()
    assert np.array_equal(load(folder, console).images, pixels)
    assert console.said == [f"warning: the cache entry {entry_of(folder)} is damaged and is built again"]


def test_an_entry_of_the_first_format_is_built_again(folder: Path) -> None:
    load(folder)
    file = entry_of(folder) / "index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps({key: index[key] for key in ("transform", "sha256_px", "bad")} | {"format": 1}))
    console = Listener()
    assert len(load(folder, console)) == 12
    assert "was made by an earlier version and is built again" in console.said[0]
    assert json.loads(file.read_text())["format"] == 2
