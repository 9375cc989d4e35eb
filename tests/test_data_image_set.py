"""Loading: the right rows in order, bad images left out and named, every refusal with its values."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import Listener, noise, png, refused, truncate, write_folder

from maskdm.data.image_set import ImageSet, load_images
from maskdm.data.sources import open_source
from maskdm.errors import ArgumentError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def load(path: Path, console: Listener | None = None, **settings: Any) -> ImageSet:
    settings.setdefault("cache_dir", path.parent / "cache")
    return load_images(open_source(path), console=console or Listener(), **settings)


def numbers(images: ImageSet) -> list[int]:
    return [int(Path(name).stem) for name in images.names]


# --- what comes out --------------------------------------------------------------------------------------------------


def test_rows_names_labels_and_hashes(folder: Path) -> None:
    images = load(folder)
    assert images.images.shape == (12, 6, 8, 3)
    assert isinstance(images.images, np.memmap)
    assert not images.images.flags.writeable
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    assert images.class_names == ("cat", "dog")
    assert list(images.names) == sorted(images.names)
    for row, (name, number) in enumerate(zip(images.names, numbers(images), strict=True)):
        assert np.array_equal(images.images[row], noise(number))
        assert name.startswith(images.class_names[images.labels[row]])
        assert images.sha256[row] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert images.sha256_px[row] == hashlib.sha256(noise(number).tobytes()).hexdigest()
    assert set(images.source_sizes) == {(8, 6)}
    assert images.bad == ()


def test_arrays(tmp_path: Path) -> None:
    pixels = noise(0, (9, 4, 5))
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(9) % 2)
    images = load(tmp_path / "a.npz")
    assert np.array_equal(images.images[..., 0], pixels)
    assert images.sha256[3] == images.sha256_px[3] == hashlib.sha256(pixels[3].tobytes()).hexdigest()


def test_same_bytes_of_another_shape_are_another_entry(tmp_path: Path) -> None:
    pixels = noise(0, (9, 4, 6))
    for name, shape in (("a.npz", (9, 4, 6)), ("b.npz", (9, 6, 4))):
        np.savez(tmp_path / name, images=pixels.reshape(shape))
    assert not np.array_equal(
        load(tmp_path / "a.npz", image_size=5).images, load(tmp_path / "b.npz", image_size=5).images
    )


@pytest.mark.parametrize(("setting", "shape"), [("auto", (6, 8)), (16, (16, 16)), ((5, 7), (5, 7)), ([5, 7], (5, 7))])
def test_image_size(setting: Any, shape: tuple[int, int], folder: Path) -> None:
    assert load(folder, image_size=setting).images.shape == (12, *shape, 3)


def test_image_size_auto_without_a_shared_or_small_size(folder: Path) -> None:
    (folder / "dog/00.png").write_bytes(png(noise(0, (8, 6, 3))))
    assert load(folder).images.shape == (12, 64, 64, 3)
    for path in folder.glob("*/*.png"):
        path.write_bytes(png(noise(int(path.stem), (2, 129, 3))))
    assert load(folder).images.shape == (12, 64, 64, 3)


def test_channels_auto(folder: Path) -> None:
    assert load(folder).transform.channels == 3
    for path in folder.glob("*/*.png"):
        path.write_bytes(png(noise(int(path.stem), (6, 8))))
    assert load(folder).transform.channels == 1
    assert load(folder, channels=4).images.shape[-1] == 4


def test_background(folder: Path) -> None:
    (folder / "dog/00.png").write_bytes(png(np.zeros((6, 8, 4), np.uint8)))
    images = load(folder, background="#010203")
    assert (images.images[images.names.index("dog/00.png")] == (1, 2, 3)).all()


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [
        ("image_size", 0, "auto, 64 or [height, width]"),
        ("image_size", True, "auto"),
        ("image_size", (3, -1), "auto"),
        ("image_size", "big", "auto"),
        ("channels", 5, "auto, 1, 2, 3 or 4"),
        ("background", "no colour", "white or #808080"),
        ("background", "#01020304", "opaque"),
        ("background", 7, "opaque"),
        ("on_bad_image", "ignore", "skip or fail"),
    ],
)
def test_wrong_settings(setting: str, value: Any, wanted: str, folder: Path) -> None:
    with refused(setting, got=value, wanted=wanted, kind=ArgumentError):
        load(folder, **{setting: value})


def test_progress_counts_every_image(folder: Path) -> None:
    console = Listener()
    load(folder, console)
    assert console.bars == {"reading": [12, 12], "decoding": [12, 12]}


def test_taking_rows_into_memory(folder: Path) -> None:
    images = load(folder)
    assert len(images.take()) == 12
    part = images.take(np.array([7, 0]), groups=[f"group {row}" for row in range(12)])
    assert numbers(images)[7] == 2
    assert np.array_equal(part.images, [noise(2), noise(1)])
    assert part.ids == (images.sha256_px[7], images.sha256_px[0])
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0]
    assert part.groups == ("group 7", "group 0")


# --- bad images ------------------------------------------------------------------------------------------------------


def test_bad_images_are_left_out_and_named(folder: Path) -> None:
    (folder / "cat/01.png").write_bytes(b"no image")  # found by the first pass
    truncate(folder / "dog/04.png")  # found by the second
    for first in (True, False):  # decoded, then from the cache
        console = Listener()
        images = load(folder, console)
        assert numbers(images) == [3, 5, 7, 9, 11, 0, 2, 6, 8, 10]
        assert all(np.array_equal(images.images[row], noise(n)) for row, n in enumerate(numbers(images)))
        assert [name for name, _ in images.bad] == ["cat/01.png", "dog/04.png"]
        assert images.bad_sha256[0] == hashlib.sha256(b"no image").hexdigest()
        assert len(images.labels) == len(images.sha256_px) == len(images.source_sizes) == 10
        (line,) = console.said
        assert "left out 2 images" in line
        assert ("'cat/01.png' (not an image" in line) == first  # told at length once
        assert ("'dog/04.png'" in line) == first
    listed = Path(line.partition("as before: ")[2]).read_text(encoding="utf-8").splitlines()
    assert [entry.partition(":")[0] for entry in listed[1:]] == ["'cat/01.png'", "'dog/04.png'"]


def test_at_most_ten_are_named(folder: Path) -> None:
    for number in range(13):
        (folder / "cat" / f"bad\n{number:02d}.png").write_bytes(b"no image")
    console = Listener()
    load(folder, console)
    (line,) = console.said
    assert line.startswith("warning: left out 13 images")
    assert line.count("bad") == 10
    more, _, path = line.rpartition("; all are in ")
    assert more.endswith("and 3 more")
    assert len(Path(path).read_text(encoding="utf-8").splitlines()) == 1 + 13
    assert "\n" not in line


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_bad_images_can_be_refused(cached: bool, early: bool, folder: Path) -> None:
    if early:
        (folder / "cat/05.png").write_bytes(b"no image")
    else:
        truncate(folder / "cat/05.png")
    truncate(folder / "dog/06.png")
    if cached:
        load(folder)
    with refused(folder / "cat/05.png", "cannot be read", remedy="data.on_bad_image to skip"):
        load(folder, on_bad_image="fail")
    assert not list(folder.parent.glob("cache/*.tmp-*"))


@pytest.mark.parametrize("early", [False, True])
def test_all_bad(early: bool, folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        if early:
            path.write_bytes(b"no image")
        else:
            truncate(path)
    with refused(folder, "none of its 12 images can be read, the first 'cat/01.png'", remedy="repair"):
        load(folder)


@pytest.mark.parametrize("bad", [0, 2])
def test_too_few(bad: int, folder: Path) -> None:
    for number in range(5 if bad == 0 else 3):
        (folder / f"{'cat' if number % 2 else 'dog'}/{number:02d}.png").unlink()
    for number in range(10, 10 + bad):
        truncate(folder / f"{'cat' if number % 2 else 'dog'}/{number:02d}.png")
    unreadable = " (and 2 that cannot be read)" if bad else ""
    with refused(folder, f"holds 7 images{unreadable}", wanted="at least 8", remedy="add more"):
        load(folder)


def test_a_file_that_cannot_be_read_is_a_bad_pixels(folder: Path) -> None:
    (folder / "cat/99.png").symlink_to("nowhere.png")
    images = load(folder)
    assert images.bad == (("cat/99.png", "No such file or directory"),)
    assert images.bad_sha256 == ("",)


def test_an_image_that_changes_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "maskdm.data.image_set.find_or_build",
        lambda folder_, key, transform, count, decode_all, warn: [
            (folder / "dog/00.png").write_bytes(png(noise(99))),
            list(decode_all()),
        ],
    )
    with refused(folder / "dog/00.png", "changed while it was being read", remedy="start again"):
        load(folder)
