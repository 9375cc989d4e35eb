"""Images out: PNG files, a grid, an .npz; all from (N, H, W, C) uint8 arrays, all written whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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


def save_grid(images: Pixels, path: Path, min_width: int = 512, *, captions: Sequence[str] = ()) -> None:
    """One PNG of all images, small ones enlarged by a whole factor until the grid is about `min_width` pixels wide.

    Args:
        images: (N, H, W, C).
        path: the file.
        min_width: about how wide at least, in pixels.
        captions: what each image shows, N texts, printed above it; once above a column in which all are the same.

    Raises:
        StorageError: it cannot be written.
    """
    columns = grid_columns(captions or [""] * len(images))
    grid = to_image(image_grid(images, columns))
    factor = max(round(min_width / grid.width), 1)
    enlarged = grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)
    if any(captions):
        height, width = images.shape[1:3]
        enlarged = _with_captions(enlarged, captions, columns, ((height + 1) * factor, (width + 1) * factor), factor)
    with replacing(path) as temporary:
        enlarged.save(temporary, format="PNG")


def _with_captions(
    grid: Image.Image, captions: Sequence[str], columns: int, cell: tuple[int, int], gap: int
) -> Image.Image:
    """The grid with texts on white strips: above its first row where every column has one text, else above all rows.

    Args:
        grid: rows of images of `cell` (height, width), each with the gap before it, in pixels.
        captions: of each image.
        columns: of the grid.
        cell: height and width.
        gap: between images, and around them.
    """
    height, width = cell
    rows = math.ceil(len(captions) / columns)
    by_column = all(caption == captions[i % columns] for i, caption in enumerate(captions))
    strips = 1 if by_column else rows
    labelled = Image.new(grid.mode, (grid.width, grid.height + strips * CAPTION), "white")
    y = 0
    for row in range(rows):
        if row < strips:
            texts = captions[row * columns : (row + 1) * columns]
            for column, text in enumerate(texts):
                labelled.paste(_strip(text, width - gap).convert(grid.mode), (gap + column * width, y))
            y += CAPTION
        top = row * height
        bottom = grid.height if row == rows - 1 else top + height
        labelled.paste(grid.crop((0, top, grid.width, bottom)), (0, y))
        y += bottom - top
    return labelled


CAPTION = 14
"""Height of a caption, in pixels."""


def _strip(text: str, width: int) -> Image.Image:
    """Black text on white, as much of it as there is room for, in gray."""
    font = ImageFont.load_default()
    if not isinstance(font, ImageFont.FreeTypeFont):  # the font of a Pillow without FreeType has 256 characters
        text = text.encode("latin-1", "replace").decode("latin-1")
    text = text.encode("utf-8", "replace").decode("utf-8")  # names of folders may hold what is no text
    while text and font.getlength(text) > width:
        text = text[:-1]
    strip = Image.new("L", (width, CAPTION), 255)
    ImageDraw.Draw(strip).text((0, 1), text, fill=0, font=font)
    return strip


def grid_columns(captions: Sequence[str]) -> int:
    """Columns of a grid of images with these captions: about as many as there are rows.

    Captions that come in turn (cat, dog, cat, dog, ...) get columns of their own, unless that would make a band of
    images instead of a grid.
    """
    root, num = math.sqrt(len(captions)), len(captions)
    turn = next(n for n in range(1, num + 1) if list(captions[n:]) == list(captions[: num - n]))
    if turn == 1 or 2 * turn > num or turn > 2 * root:
        return math.ceil(root)
    return turn * max(round(root / turn), 1)


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
