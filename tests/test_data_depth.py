"""More than 8 bits, more than one frame, alpha that is none, and notes about a picture that never cost the picture."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import Listener, noise, png
from PIL import Image, PngImagePlugin

from maskdm.data.decode import Transform, decode, probe
from maskdm.data.image_set import ImageSet, load_images
from maskdm.data.pillow import BadImage
from maskdm.data.sources import open_source

RGB = noise(0)
TWELVE_BITS = np.random.default_rng(0).integers(0, 4096, (6, 8), dtype=np.uint16)


def file_of(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def transform(channels: int = 1, white_level: float | None = None) -> Transform:
    return Transform(6, 8, channels, white_level=white_level)


def load(folder: Path, files: dict[str, bytes], console: Listener, **settings: Any) -> ImageSet:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return load_images(open_source(folder), cache_dir=folder.parent / "cache", console=console, **settings)


# --- white levels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        file_of(TWELVE_BITS),
        file_of(TWELVE_BITS, "TIFF"),
        file_of(TWELVE_BITS.astype(np.int32), "TIFF"),
        file_of(TWELVE_BITS.astype(np.float32), "TIFF"),
    ],
)
def test_a_white_level(data: bytes) -> None:
    expected = np.rint(TWELVE_BITS / np.float32(4095) * 255)
    assert np.array_equal(decode(data, transform(1, 4095))[..., 0], expected)
    cut = decode(data, transform(1, 1000))[..., 0]
    assert (cut[TWELVE_BITS >= 1000] == 255).all()


def test_a_white_level_is_of_deep_images_only() -> None:
    assert np.array_equal(decode(file_of(RGB), transform(3, 4095)), RGB)
    assert "white_level" not in transform().describe()  # so caches and manifests of others are as they were
    assert transform(1, 4095).describe()["white_level"] == 4095


def test_values_outside_name_the_setting() -> None:
    for values in (TWELVE_BITS.astype(np.float32), np.full((6, 8), 70_000, np.int32)):
        with pytest.raises(BadImage, match=r"have no known white.*data\.white_level says"):
            decode(file_of(values, "TIFF"), transform())


def deep_colour_png(values: np.ndarray) -> bytes:
    """(H, W, 3) uint16 as a PNG of 16 bits, which Pillow does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("make", "said", "level"),
    [
        (lambda v: file_of(v), "(integer) with values from 0 to 4,095, where 65,535 is white", "data.white_level=4095"),
        (
            lambda v: file_of(v.astype(np.int32), "TIFF"),
            "(integer) with values from 0 to 4,095",
            "data.white_level=4095",
        ),
        (lambda v: file_of(v.astype(np.float32) / 16380, "TIFF"), "(float) with values from 0 to 0.25", "=0.25"),
        (lambda v: deep_colour_png(np.dstack([v] * 3)), "(colour) with values from 0 to 3,855", "to 8 bits first"),
    ],
)
def test_a_set_that_comes_out_dark_is_warned_of(make: Any, said: str, level: str, tmp_path: Path) -> None:
    dark = np.tile(np.array([[0, 4095]], np.uint16), (6, 4))
    files = {f"{number}.png": make(dark) for number in range(9)} | {"light.png": png(noise(1))}
    for keep in (True, True, False):  # decoded, found in the cache, and streamed
        console = Listener()
        load(tmp_path / "set", files, console, keep=keep)
        (line,) = console.said
        assert "9 images of more than 8 bits" in line
        assert said in line
        assert "come out dark" in line
        assert level in line


def test_a_set_that_is_as_it_was_meant_is_not_warned_of(tmp_path: Path) -> None:
    files = {f"{number}.png": file_of(TWELVE_BITS * 16) for number in range(9)}
    console = Listener()
    load(tmp_path / "set", files, console)
    load(tmp_path / "set", {f"{number}.png": file_of(TWELVE_BITS) for number in range(9)}, console, white_level=4095)
    assert console.said == []
    load(tmp_path / "set", {}, console, white_level=1000)
    (line,) = console.said
    assert "cut off; raise data.white_level to" in line


def test_deep_colour_with_a_white_level_is_refused() -> None:
    data = deep_colour_png(np.dstack([TWELVE_BITS] * 3))
    assert decode(data, transform(3)).max() <= 15
    with pytest.raises(BadImage, match="only the upper 8"):
        decode(data, transform(3, 4095))


# --- alpha that is none ----------------------------------------------------------------------------------------------


def bmp_with_alpha(alpha: np.ndarray) -> bytes:
    """A BMP of 32 bits whose header (V5) says that the fourth byte is alpha."""
    pixels = np.dstack([RGB[..., ::-1], alpha])[::-1].tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 124, 8, 6, 1, 32, 3, len(pixels), 2835, 2835, 0, 0) + masks
    info += b"BGRs" + bytes(124 - len(info) - 4)
    return b"BM" + struct.pack("<IHHI", 14 + 124 + len(pixels), 0, 0, 14 + 124) + info + pixels


def test_a_bmp_whose_alpha_is_all_zero_is_opaque() -> None:
    empty = np.zeros((6, 8), np.uint8)
    assert Image.open(io.BytesIO(bmp_with_alpha(empty))).mode == "RGBA"
    assert np.array_equal(decode(bmp_with_alpha(empty), transform(3)), RGB)
    assert (decode(bmp_with_alpha(empty), transform(4))[..., 3] == 255).all()
    some = empty.copy()
    some[0] = 255
    assert (decode(bmp_with_alpha(some), transform(3))[1:] == 255).all()  # white paper behind what is invisible
    assert (decode(file_of(np.dstack([RGB, empty])), transform(3)) == 255).all()  # of a PNG it is meant


# --- notes about a picture -------------------------------------------------------------------------------------------


def with_text(kind: str) -> bytes:
    """A PNG or JPEG with 2 MB of a kind of note."""
    much = np.random.default_rng(0).integers(97, 122, 2 * 2**20, dtype=np.uint8).tobytes()
    info = PngImagePlugin.PngInfo()
    if kind == "tEXt":
        info.add_text("parameters", much.decode())
    elif kind == "zTXt":
        info.add_text("parameters", much.decode(), zip=True)
    elif kind == "bomb":
        info.add_text("parameters", "a" * 30 * 2**20, zip=True)
    elif kind == "many":
        for number in range(70):
            info.add_text(f"note {number}", "a" * (2**20 - 1), zip=True)
    elif kind == "iTXt":
        info.add_itxt("XML:com.adobe.xmp", much.decode(), zip=True)
    elif kind == "exif":
        info.add_text("Raw profile type exif", "\nexif\n 8\n" + much.decode(), zip=True)
    elif kind == "icc":
        return file_of(RGB, icc_profile=much)
    elif kind == "jpeg-icc":
        return file_of(RGB, "JPEG", icc_profile=much)
    elif kind == "tiff-icc":
        return file_of(RGB, "TIFF", icc_profile=much)
    elif kind == "webp-icc":
        return file_of(RGB, "WEBP", icc_profile=much, lossless=True)
    return file_of(RGB, pnginfo=info)


KINDS = ["tEXt", "zTXt", "bomb", "many", "iTXt", "exif", "icc", "jpeg-icc", "tiff-icc", "webp-icc"]


@pytest.mark.parametrize("kind", KINDS)
def test_long_notes_do_not_cost_an_image(kind: str) -> None:
    data = with_text(kind)
    assert probe(data)[:2] == (8, 6)
    difference = np.abs(decode(data, transform(3)).astype(int) - RGB)
    assert difference.max() == 0 or kind == "jpeg-icc"


def test_a_text_after_the_pixels_and_one_that_is_damaged() -> None:
    whole = file_of(RGB)
    text = struct.pack(">I", 2**21) + b"tEXt" + bytes(2**21) + b"crc?"
    assert np.array_equal(decode(whole[:-12] + text + whole[-12:], transform(3)), RGB)


def test_an_orientation_in_a_text_still_turns() -> None:
    exif = Image.Exif()
    exif[274] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(content)}\n{content.hex()}", zip=True)
    info.add_text("parameters", "a" * 3 * 2**20, zip=True)
    data = file_of(RGB, pnginfo=info)
    assert probe(data)[:2] == (6, 8)
    assert np.array_equal(decode(data, Transform(8, 6, 3)), np.rot90(RGB, -1))


def test_exif_that_cannot_be_read_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_of(RGB, "JPEG", exif=Image.Exif())
    expected = decode(data, transform(3))

    def getexif(_: object) -> None:
        raise SyntaxError("not a TIFF file (header b'' not valid)")

    monkeypatch.setattr(Image.Image, "getexif", getexif)
    assert probe(data)[:2] == (8, 6)
    assert np.array_equal(decode(data, transform(3)), expected)


# --- several frames --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_frames_beyond_the_first_are_counted_and_said(kind: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(number)) for number in range(3)]
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    assert probe(data).several
    assert not probe(file_of(frames[0], kind)).several
    console = Listener()
    files = {f"{number}.png": png(noise(number)) for number in range(9)} | {"a.gif": data, "b.gif": data}
    load(tmp_path / "set", files, console)
    said = "warning: 2 images have several frames or pages, and the first of each is used, such as 'a.gif'"
    assert console.said == [said]
