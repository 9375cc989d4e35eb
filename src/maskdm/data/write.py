"""Pictures out: PNG files, a grid, an .npz; all from (N, H, W, C) uint8 arrays, all written whole or not at all."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskdm.errors import InputError, StorageError


def to_picture(array: np.ndarray) -> Image.Image:
    """(H, W, C) uint8, C = 1 to 4 -> a picture in mode L, LA, RGB or RGBA."""
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def grid(images: np.ndarray, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """(N, H, W, C) -> (rows * (H + gap) + gap, columns * (W + gap) + gap, C), near a square, white between."""
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[y : y + height, x : x + width] = image
    return canvas


def save_grid(images: np.ndarray, path: Path, least: int = 512) -> None:
    """One PNG of all pictures, small ones enlarged by a whole factor until the grid is about `least` px wide."""
    picture = to_picture(grid(images))
    factor = max(round(least / picture.width), 1)
    enlarged = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    _save(enlarged, path)


def save_images(images: np.ndarray, folder: Path, names: Sequence[str]) -> None:
    """A PNG for every picture, called `names` with .png behind."""
    for image, name in zip(images, names, strict=True):
        _save(to_picture(image), folder / f"{name}.png")


def save_npz(path: Path, images: np.ndarray, **more: np.ndarray) -> None:
    """An .npz with `images`, as `--data` reads it, and whatever else is given."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez(temporary, images=images, **more)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(folder: Path, option: str) -> None:
    """Refuses, without making anything, a folder in which nothing could be made; `option` is what the user typed."""
    parent = folder
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{option}: cannot make {folder}, since {parent} is a file; choose a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{option}: cannot make {folder}, since {parent} cannot be written to; choose another folder")


def make_folder(folder: Path) -> None:
    """The folder and those above it, if they are not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder} ({error.strerror}); choose another --output") from None


def _save(picture: Image.Image, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        picture.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
