"""Files that anyone may have made: pipes and devices, members that unpack to too much, headers that lie."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import Listener, noise, png, refused, write_folder

from maskdm.config.schema import DataConfig
from maskdm.data.arrays import read_arrays
from maskdm.data.dataset import read_dataset
from maskdm.data.image_set import ImageSet, load_images
from maskdm.data.limits import read_regular
from maskdm.data.sources import open_source
from maskdm.data.split import group_names, read_salt
from maskdm.errors import InputError

BIG = 300_000
"""Bytes of a file above the limit of these tests, 100,000."""


def load(path: Path, console: Listener | None = None, **settings: Any) -> ImageSet:
    cache = path.parent / "cache"
    return load_images(open_source(path), cache_dir=cache, console=console or Listener(), **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


# --- what is no file -------------------------------------------------------------------------------------------------


def test_pipes_and_devices_are_named_and_left_out(folder: Path) -> None:
    os.mkfifo(folder / "cat/pipe.png")
    (folder / "cat/zero.png").symlink_to("/dev/zero")
    (folder / "cat/linked.png").symlink_to(folder / "cat/01.png")
    console = Listener()
    images = load(folder, console)
    assert len(images) == 13
    assert dict(images.bad) == {
        "cat/pipe.png": "is a named pipe, not a file",
        "cat/zero.png": "is a device, not a file",
    }
    assert [line for line in console.said if "left out 2 images" in line and "named pipe" in line]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.npz"])
def test_a_pipe_instead_of_an_archive(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with refused(tmp_path / name, "is neither a file nor a folder"):
        open_source(tmp_path / name)
    (tmp_path / "link.zip").symlink_to("/dev/zero")
    with refused(tmp_path / "link.zip", "is neither a file nor a folder"):
        open_source(tmp_path / "link.zip")


def test_a_pipe_among_shards(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with refused(tmp_path / "a.tar", "is a named pipe"):
        open_source(tmp_path)


def test_labels_groups_and_salt_from_no_file(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "dataset.json")
    with refused(folder / "dataset.json", "is a named pipe"):
        open_source(folder)
    (tmp_path / "groups.csv").symlink_to("/dev/zero")
    with refused(tmp_path / "groups.csv", "is a device"):
        group_names(["a"], str(tmp_path / "groups.csv"))
    with pytest.raises(ValueError, match="is a device"):
        read_salt("/dev/zero", tmp_path)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "a.png")
    monkeypatch.setattr("maskdm.data.limits.check_regular", lambda path: None)  # it was a file when that looked
    with pytest.raises(OSError, match="is a named pipe"):
        read_regular(tmp_path / "a.png")


# --- what is too large -----------------------------------------------------------------------------------------------


def add_large(path: Path, kind: str) -> Path:
    """Twelve images and one that is too large, or says so, as a folder, zip or tar."""
    files = {f"{number:02}.png": png(noise(number)) for number in range(12)} | {"large.png": bytes(BIG)}
    if kind == "folder":
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
        with (path / "sparse.png").open("wb") as file:
            file.truncate(10**12)
    elif kind == "tar":
        path = path.with_suffix(".tar")
        with tarfile.open(path, "w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    else:
        method = {"stored": zipfile.ZIP_STORED, "deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2}.get(
            kind, zipfile.ZIP_LZMA
        )
        path = path.with_suffix(".zip")
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    return path


@pytest.mark.parametrize("kind", ["folder", "tar", "stored", "deflate", "bzip2", "lzma"])
def test_what_is_too_large_is_named_and_left_out(kind: str, tmp_path: Path) -> None:
    images = load(add_large(tmp_path / "set", kind), max_file_bytes=100_000)
    assert len(images) == 12
    reasons = dict(images.bad)
    assert reasons["large.png"] == f"has {BIG:,} bytes or more, and data.max_file_mb allows 100,000"
    assert ("sparse.png" in reasons) == (kind == "folder")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_lies_about_sizes_gives_no_more_than_it_says(method: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for number in range(12):
            archive.writestr(f"{number:02}.png", png(noise(number)))
        archive.writestr("bomb.png", bytes(2_000_000))
    content = path.read_bytes()
    assert content.count(struct.pack("<I", 2_000_000)) == 2  # in the member's own header and in the list
    path.write_bytes(content.replace(struct.pack("<I", 2_000_000), struct.pack("<I", 1000)))
    images = load(path, max_file_bytes=100_000)
    assert len(images) == 12
    assert [name for name, _ in images.bad] == ["bomb.png"]


def test_the_setting_reaches_the_reader(folder: Path, tmp_path: Path) -> None:
    (folder / "cat/99.png").write_bytes(png(noise(99, (700, 700, 3))))
    config = DataConfig(path=str(folder), cache_dir=str(tmp_path / "cache"), salt="public", max_file_mb=1, image_size=8)
    assert [name for name, _ in read_dataset(config, Listener()).images.bad] == ["cat/99.png"]
    allowed = config.model_copy(update={"max_file_mb": 2})
    assert read_dataset(allowed, Listener()).images.bad == ()
    few = allowed.model_copy(update={"max_pixels": 489_999})
    ((name, reason),) = read_dataset(few, Listener()).images.bad
    assert (name, "700 x 700" in reason, "max_pixels" in reason) == ("cat/99.png", True, True)


@pytest.mark.slow
def test_ten_gigabytes_in_a_few_megabytes_end_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(12):
            archive.writestr(f"{number:02}.png", png(noise(number)))
        with archive.open("bomb.png", "w", force_zip64=True) as file:
            for _ in range(640):
                file.write(bytes(2**24))
    since = time.perf_counter()
    images = load(path)
    assert time.perf_counter() - since < 5
    assert [name for name, _ in images.bad] == ["bomb.png"]


def test_a_packing_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(12):
            archive.writestr(f"{number:02}.png", png(noise(number)))
    content = bytearray(path.read_bytes())
    local, listed = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    content[local + 8 : local + 10] = content[listed + 10 : listed + 12] = (9).to_bytes(2, "little")
    path.write_bytes(content)
    ((name, reason),) = load(path).bad
    assert (name, reason) == ("00.png", "packed with Deflate64, which is not read: unpack the zip and give the folder")


# --- headers that lie ------------------------------------------------------------------------------------------------


def npz_with_header(path: Path, shape: tuple[int, ...]) -> Path:
    """An .npz with three small images, whose header says that they have `shape`."""
    np.savez(path, images=np.zeros((3, 2, 2), np.uint8))
    with zipfile.ZipFile(path) as archive:
        content = archive.read("images.npy")
    said = b"(3, 2, 2), }" + b" " * 40
    assert said in content
    lie = str(shape).encode() + b", }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", content.replace(said, lie + b" " * (len(said) - len(lie))))
    return path


@pytest.mark.parametrize("shape", [(10**9, 1000, 1000), (4, 2, 2), (2, 2, 2), (-3, 2, 2), (10**18, 10**18)])
def test_an_npz_whose_header_lies(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = npz_with_header(tmp_path / "a.npz", shape)
    with refused(path, "and here are 12", remedy="save it with np.savez"):
        open_source(path)


def test_arrays_that_do_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((30, 20, 20), np.uint8))
    monkeypatch.setattr("maskdm.data.arrays.host_available_bytes", lambda: 11_999)
    with refused(tmp_path / "a.npz", "need more memory than is free"):
        open_source(tmp_path / "a.npz")
    assert read_arrays(tmp_path / "a.npz", ["others"]) == ({}, ["images"])


def test_arrays_in_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    with refused(tmp_path / "a.npz", "is a named pipe"):
        read_arrays(tmp_path / "a.npz", ())


def test_damaged_arrays_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=noise(0, (12, 6, 8)), labels=np.arange(12))
    whole = path.read_bytes()
    assert reason_of(path) == "none"
    for position in range(0, len(whole), 13):
        for damaged in (whole[:position], whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :]):
            path.write_bytes(damaged)
            assert "\n" not in reason_of(path)


def reason_of(path: Path) -> str:
    """Why arrays cannot be read."""
    try:
        read_arrays(path, ("images", "labels"))
    except InputError as error:
        return str(error)
    return "none"
