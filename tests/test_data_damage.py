"""Files damaged in every way: `decode` gives pixels or `BadImage`, and is quiet about it."""

from __future__ import annotations

import contextlib
import io
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskdm.data.decode import Transform, decode, probe
from maskdm.data.pillow import BadImage

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (6, 8, 4), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 8), dtype=np.uint16)


def file_of(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def same_size(channels: int, background: tuple[int, int, int] = (255, 255, 255)) -> Transform:
    return Transform(6, 8, channels, background)


def healthy() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a maker"
    palette = Image.fromarray(RGB).quantize(16)
    files = {
        "gif": file_of(palette, "GIF", transparency=1),
        "bmp": file_of(RGB, "BMP"),
        "bmp-palette": file_of(palette, "BMP"),
        "png-gray16": file_of(DEEP),
        "png-palette": file_of(palette, transparency=b"\0\x80\xff"),
        "png-rgba": file_of(RGBA),
        "jpeg-cmyk": file_of(Image.new("CMYK", (8, 6)), "JPEG"),
        "tiff-lzw": file_of(RGB, "TIFF", compression="tiff_lzw"),
        "tiff-float": file_of(GRAY / np.float32(255), "TIFF"),
        "tiff-palette": file_of(palette, "TIFF"),
        "webp-rgba": file_of(RGBA, "WEBP"),
    }
    return files | {f"{kind}-exif": file_of(RGB, kind, exif=exif) for kind in ("PNG", "JPEG", "WEBP", "TIFF")}


HEALTHY = healthy()


@pytest.mark.parametrize("name", HEALTHY)
def test_damaged_files_give_pixels_or_bad_image_and_no_noise(name: str) -> None:
    few = 10**6  # so that none fills the memory with a great deal of nothing
    dice = random.Random(name)
    whole = HEALTHY[name]
    assert decode(whole, same_size(3)).shape == (6, 8, 3)
    damaged = [whole[:length] for length in range(0, len(whole), max(1, len(whole) // 60))]
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(dice.choice((1, 2, 8))):
            data[dice.randrange(min(len(data), dice.choice((40, 200, len(data)))))] = dice.choice(
                (0, 255, dice.randrange(256))
            )
        damaged.append(bytes(data))
    for data in damaged:
        try:
            pixels = decode(data, same_size(3), few)
        except BadImage as error:
            reason = str(error)
        else:
            reason = "none"
            assert pixels.shape == (6, 8, 3)
            assert min(probe(data, few)[:2]) > 0
        assert reason
        assert "\n" not in reason


def test_other_formats_are_never_tried() -> None:
    with pytest.raises(BadImage, match="PNG, JPEG"):
        decode(file_of(Image.new("RGB", (8, 6)), "EPS"), same_size(3))


def test_bomb() -> None:
    header = bytearray(file_of(Image.new("RGB", (8, 6)), "BMP"))
    header[18:26] = (20_000).to_bytes(4, "little") * 2
    with pytest.raises(BadImage, match=r"20,000 x 20,000 pixels are more than data\.max_pixels allows, 178,956,970"):
        decode(bytes(header), same_size(3))
    with pytest.raises(BadImage, match="max_pixels"):
        probe(bytes(header))
    assert probe(bytes(header), 20_000**2)[:2] == (20_000, 20_000)
    with pytest.raises(BadImage, match="max_pixels"):
        decode(file_of(RGB), same_size(3), 47)
    assert np.array_equal(decode(file_of(RGB), same_size(3), 48), RGB)


def test_pillows_own_limit_is_another_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    assert np.array_equal(decode(file_of(RGB), same_size(3)), RGB)
    assert Image.MAX_IMAGE_PIXELS == 3


def test_quiet_in_many_threads_and_filters_restored() -> None:
    """Warnings stay off while any thread decodes, and are as they were when the last one is done."""
    noisy = HEALTHY["TIFF-exif"][:-9]
    start = threading.Barrier(4)

    def work(_: int) -> None:
        start.wait()
        for _ in range(50):
            for data in (noisy, HEALTHY["png-palette"], HEALTHY["JPEG-exif"]):
                with contextlib.suppress(BadImage):
                    decode(data, same_size(3))

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert list(warnings.filters) == before
    assert heard == []
