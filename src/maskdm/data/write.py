"""Images out: PNG files, a grid, an .npz; all from (N, H, W, C) uint8 arrays, all written whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskdm.data.decode import Pixels
from maskdm.files import replacing


def to_image(pixels: Pixels) -> Image.Image:
    """(H, W, C) uint8, C = 1 to 4 -> an image in mode L, LA, RGB or RGBA."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def image_grid(images: Pixels, columns: int | None = None, gap: int = 1) -> Pixels:
    """Images side by side, white between them.

    Args:
        images: (N, H, W, C).
        columns: in a row; None for about as many as there are rows.
        gap: pixels between images and around them.

    Returns:
        (rows * (H + gap) + gap, columns * (W + gap) + gap, C) uint8.
    """
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[y : y + height, x : x + width] = image
    return canvas


def save_grid(images: Pixels, path: Path, min_width: int = 512) -> None:
    """One PNG of all images, small ones enlarged by a whole factor until the grid is about `min_width` pixels wide.

    Raises:
        StorageError: it cannot be written.
    """
    grid = to_image(image_grid(images))
    factor = max(round(min_width / grid.width), 1)
    enlarged = grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)
    with replacing(path) as temporary:
        enlarged.save(temporary, format="PNG")


def save_images(images: Pixels, folder: Path, names: Sequence[str]) -> None:
    """A PNG for every image, called `names` with .png behind.

    Raises:
        StorageError: one cannot be written.
        ValueError: not as many names as images.
    """
    for image, name in zip(images, names, strict=True):
        with replacing(folder / f"{name}.png", durable=False) as temporary:
            to_image(image).save(temporary, format="PNG")


def save_npz(path: Path, images: Pixels, **more: np.ndarray) -> None:
    """An .npz with `images`, as `--data` reads it, and other arrays by their names.

    Raises:
        StorageError: it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=images, **more)  # type: ignore[arg-type]
