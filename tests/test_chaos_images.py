"""Five hundred damaged images of six formats in one folder: named and left out, or decoded; training goes on."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from chaos import TINY, command, write_images
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FORMATS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "gif": "GIF", "tif": "TIFF", "webp": "WEBP"}


def damaged_images(count: int) -> dict[str, bytes]:
    """By file name: cut, flipped, overwritten, filled up with zeros, doubled, or all of another format's header."""
    dice, rng, found = random.Random(0), np.random.default_rng(0), {}
    for i in range(count):
        suffix = list(FORMATS)[i % len(FORMATS)]
        buffer = io.BytesIO()
        size = (dice.choice((1, 7, 16)), dice.choice((1, 8, 33)), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(buffer, FORMATS[suffix])
        data = bytearray(buffer.getvalue())
        match i // len(FORMATS) % 6:
            case 0:
                del data[dice.randrange(len(data)) :]
            case 1:
                for _ in range(dice.choice((1, 3, 20))):
                    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            case 2:
                at = dice.randrange(len(data))
                data[at : at + 40] = dice.randbytes(40)
            case 3:
                at = dice.randrange(len(data))
                data[at:] = bytes(len(data) - at)
            case 4:
                data[:12] = dice.choice(
                    (b"\x89PNG\r\n\x1a\n\0\0\0\r", b"GIF89a\xff\xff\xff\xff\xf7\0", b"BM" + b"\xff" * 10)
                )
            case 5:
                at = dice.randrange(min(len(data), 64))  # sizes and counts live here
                data[at : at + 4] = b"\xff\xff\xff\x7f"
        found[f"{i:03}.{suffix}"] = bytes(data)
    return found


@pytest.mark.parametrize("container", ["folder", "zip"])
def test_five_hundred_damaged_images(container: str, tmp_path: Path):
    data = write_images(tmp_path / "images", 40)
    for name, content in damaged_images(500).items():
        (data / "cat" / name).with_stem("damaged-" + Path(name).stem).write_bytes(content)
    if container == "zip":
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
            for path in sorted(p for p in data.rglob("*") if p.is_file()):
                file.write(path, path.relative_to(data).as_posix())
        data = tmp_path / "images.zip"
    words = ["train", "--data", str(data), "--output-dir", str(tmp_path / "runs"), "data.image_size=8", *TINY]
    outcome = command(words, tmp_path, timeout=300).check()
    assert outcome.code == 0, outcome.text
    assert "left out" in outcome.text
    print(outcome.text)


def test_each_damaged_image_alone(tmp_path: Path):
    """A set of one such image and five good ones, as a command reads it: it trains, within seconds."""
    for name, content in list(damaged_images(500).items())[::10]:
        data = write_images(tmp_path / name, 24)
        (data / "cat" / ("damaged-" + name)).write_bytes(content)
        words = ["train", "--data", str(data), "--output-dir", str(tmp_path / "runs"), "--dry-run", "data.image_size=8"]
        outcome = command([*words, *TINY], tmp_path, timeout=60).check()
        assert outcome.code == 0, (name, outcome.text)
