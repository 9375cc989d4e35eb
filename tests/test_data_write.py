"""Images out: what a grid looks like, that files hold exactly the pixels, and that they are whole or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_helpers import Listener
from PIL import Image

from maskdm.data.image_set import load_images
from maskdm.data.sources import open_source
from maskdm.data.write import image_grid, save_grid, save_images, save_npz, to_image
from maskdm.errors import StorageError

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def noise(count: int, channels: int = 3, height: int = 4, width: int = 6) -> np.ndarray:
    """Random pixels, none of them white."""
    return np.random.default_rng(channels).integers(0, 255, (count, height, width, channels), dtype=np.uint8)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (4, 2, 2), (5, 2, 3), (10, 3, 4), (64, 8, 8)]
)
def test_a_grid_is_near_a_square_and_has_every_image_in_its_place(count, rows, columns):
    images = noise(count)
    canvas = image_grid(images)
    assert canvas.shape == (rows * 5 + 1, columns * 7 + 1, 3)
    assert canvas.dtype == np.uint8
    for i, image in enumerate(images):
        y, x = 1 + 5 * (i // columns), 1 + 7 * (i % columns)
        assert (canvas[y : y + 4, x : x + 6] == image).all()
        canvas[y : y + 4, x : x + 6] = 255
    assert (canvas == 255).all()  # all else is white


def test_columns_and_gap_of_a_grid():
    canvas = image_grid(noise(6, height=2, width=2), columns=6, gap=0)
    assert canvas.shape == (2, 12, 3)
    assert image_grid(noise(6, height=2, width=2), columns=1, gap=3).shape == (33, 8, 3)


@pytest.mark.parametrize("channels", MODES)
def test_a_saved_grid_is_enlarged_by_a_whole_factor(channels, tmp_path):
    images = noise(4, channels)
    save_grid(images, tmp_path / "grid.png", min_width=60)
    small = image_grid(images)  # 11 x 15
    with Image.open(tmp_path / "grid.png") as opened:
        assert opened.mode == MODES[channels]
        assert opened.size == (60, 44)
        pixels = np.array(opened).reshape(44, 60, channels)
    assert (pixels == small.repeat(4, axis=0).repeat(4, axis=1)).all()
    assert files(tmp_path) == ["grid.png"]


def test_a_large_grid_is_not_made_smaller(tmp_path):
    save_grid(noise(4, height=300, width=300), tmp_path / "grid.png", min_width=100)
    with Image.open(tmp_path / "grid.png") as opened:
        assert opened.size == (603, 603)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", MODES)
def test_images_are_saved_pixel_for_pixel(channels, tmp_path):
    images = noise(3, channels)
    save_images(images, tmp_path, ["a", "b.c", "d"])
    assert files(tmp_path) == ["a.png", "b.c.png", "d.png"]
    for image, name in zip(images, files(tmp_path), strict=True):
        with Image.open(tmp_path / name) as opened:
            assert opened.format == "PNG"
            assert opened.mode == MODES[channels]
            assert (np.array(opened).reshape(image.shape) == image).all()


def test_an_image_of_one_channel_is_gray():
    assert to_image(noise(1, 1)[0]).getpixel((2, 1)) == int(noise(1, 1)[0, 1, 2, 0])


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_every_image_needs_a_name(names, tmp_path):
    with pytest.raises(ValueError, match="zip"):
        save_images(noise(2), tmp_path, names)


@pytest.mark.parametrize("channels", MODES)
def test_an_npz_is_data_again(channels, tmp_path):
    images = noise(12, channels)
    save_npz(tmp_path / "made.npz", images, labels=np.arange(12) % 2, classes=np.array(["cat", "dog"]))
    assert files(tmp_path) == ["made.npz"]
    read = load_images(
        open_source(tmp_path / "made.npz"), cache_dir=tmp_path / "cache", console=Listener(), channels=channels
    )
    assert (read.images == images).all()
    assert read.class_names == ("cat", "dog")
    assert read.labels.tolist() == [0, 1] * 6


# --- whole or not at all ---------------------------------------------------------------------------------------------


def write_everything(folder: Path) -> None:
    images = noise(1)
    save_images(images, folder, ["a"])
    save_grid(images, folder / "grid.png")
    save_npz(folder / "made.npz", images)


def test_files_are_replaced_and_nothing_else_is_left(tmp_path):
    for name in ("a.png", "grid.png", "made.npz"):
        (tmp_path / name).write_bytes(b"old")
    write_everything(tmp_path)
    assert files(tmp_path) == ["a.png", "grid.png", "made.npz"]
    assert all(path.read_bytes() != b"old" for path in tmp_path.iterdir())


FULL = OSError(28, "No space left on device")
WRITERS = {
    "a.png": lambda folder: save_images(noise(1), folder, ["a"]),
    "grid.png": lambda folder: save_grid(noise(1), folder / "grid.png"),
    "made.npz": lambda folder: save_npz(folder / "made.npz", noise(1)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("fault", "seen"), [(OSError(28, "No space left on device"), StorageError), (KeyboardInterrupt, None)]
)
def test_a_write_that_breaks_off_leaves_the_old_file_and_no_other(name, fault, seen, tmp_path, monkeypatch):
    def broken(target, *_: object, **__: object) -> None:
        if isinstance(target, Path):
            target.write_bytes(b"half")
        else:
            target.write(b"half")
        raise fault

    monkeypatch.setattr(Image.Image, "save", lambda opened, target, **_: broken(target))
    monkeypatch.setattr(np, "savez", broken)
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(seen or fault) as caught:
        WRITERS[name](tmp_path)
    if seen:
        assert str(caught.value) == f"cannot write {tmp_path / name}: No space left on device"
    assert files(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"old"


def test_an_npz_has_the_name_that_was_given(tmp_path):
    save_npz(tmp_path / "made", noise(1))
    assert files(tmp_path) == ["made"]


@pytest.mark.parametrize("write", [lambda to: save_npz(to, noise(1)), lambda to: save_grid(noise(1), to)])
def test_no_such_folder(write, tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*missing.*: No such file or directory"):
        write(tmp_path / "missing" / "out")
    assert files(tmp_path) == []
