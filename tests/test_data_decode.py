"""Decoding: every kind of pixel, the geometry, transparency, rotation; and probing."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from maskdm.data.decode import Transform, decode, decode_file, fit_array, probe
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


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_gray_is_kept_bit_for_bit(kind: str) -> None:
    data = file_of(GRAY, kind)
    assert np.array_equal(decode(data, same_size(1))[..., 0], GRAY)
    assert np.array_equal(decode(data, same_size(3)), np.repeat(GRAY[..., None], 3, 2))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_colour_is_kept_bit_for_bit(kind: str, options: dict[str, bool]) -> None:
    data = file_of(RGB, kind, **options)
    assert np.array_equal(decode(data, same_size(3)), RGB)
    assert np.array_equal(decode(data, same_size(1))[..., 0], np.asarray(Image.fromarray(RGB).convert("L")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit(kind: str) -> None:
    pixels = decode(file_of(Image.fromarray(GRAY).convert("1", dither=Image.Dither.NONE), kind), same_size(1))
    assert np.array_equal(pixels[..., 0], np.where(GRAY > 127, 255, 0))


def test_alpha_kept_or_added() -> None:
    assert np.array_equal(decode(file_of(RGBA), same_size(4)), RGBA)
    assert np.array_equal(decode(file_of(RGB), same_size(4)), np.dstack([RGB, np.full((6, 8), 255, np.uint8)]))
    gray_alpha = RGBA[..., :2]
    assert np.array_equal(decode(file_of(gray_alpha), same_size(2)), gray_alpha)
    assert np.array_equal(decode(file_of(GRAY), same_size(2)), np.dstack([GRAY, np.full((6, 8), 255, np.uint8)]))
    assert np.array_equal(decode(file_of(gray_alpha), same_size(4)), RGBA[..., [0, 0, 0, 1]])


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 20, 30)])
def test_alpha_laid_on_the_background(background: tuple[int, int, int]) -> None:
    alpha = RGBA[..., 3:] / 255
    expected = RGBA[..., :3] * alpha + np.array(background) * (1 - alpha)
    assert np.abs(decode(file_of(RGBA), same_size(3, background)) - expected).max() <= 1
    clear = RGBA.copy()
    clear[..., 3] = 0
    assert (decode(file_of(clear), same_size(3, background)) == background).all()
    opaque = RGBA.copy()
    opaque[..., 3] = 255
    assert np.array_equal(decode(file_of(opaque), same_size(3, background)), RGBA[..., :3])
    gray_alpha = np.dstack([GRAY, np.zeros_like(GRAY)])
    assert (decode(file_of(gray_alpha), same_size(3, background)) == background).all()


def test_palette_with_transparency() -> None:
    image = Image.new("P", (8, 6), 1)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.paste(0, (0, 0, 4, 6))
    for data in (
        file_of(image, transparency=0),
        file_of(image, transparency=b"\0\xff\xff"),
        file_of(image, "GIF", transparency=0),
    ):
        pixels = decode(data, same_size(3, (9, 9, 9)))
        assert (pixels[:, :4] == (9, 9, 9)).all()
        assert (pixels[:, 4:] == (0, 255, 0)).all()
        assert (decode(data, same_size(4))[..., 3] == [[0] * 4 + [255] * 4] * 6).all()
        assert not probe(data)[2]


@pytest.mark.parametrize(
    ("pixels", "key"), [(RGB, tuple(RGB[0, 0].tolist())), (GRAY, int(GRAY[0, 0])), (DEEP, int(DEEP[0, 0]))]
)
def test_one_transparent_colour(pixels: np.ndarray, key: int | tuple[int, ...]) -> None:
    if pixels is DEEP:  # Pillow does not write this chunk for 16 bits
        data = file_of(pixels)
        plain = data.index(b"IDAT") - 4
        chunk = b"tRNS" + int(key).to_bytes(2, "big")
        data = data[:plain] + b"\0\0\0\x02" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[plain:]
    else:
        data = file_of(pixels, transparency=key)
    alpha = decode(data, same_size(4))[..., 3]
    transparent = (pixels == pixels[0, 0]).all(-1) if pixels.ndim == 3 else pixels == pixels[0, 0]
    assert np.array_equal(alpha == 0, transparent)
    assert not probe(data)[2]


def test_palette_of_transparency_in_a_tiff() -> None:
    image = Image.fromarray(RGB).quantize(16).convert("PA")
    assert np.array_equal(decode(file_of(image, "TIFF"), same_size(3)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray(kind: str) -> None:
    assert np.array_equal(decode(file_of(DEEP, kind), same_size(1))[..., 0], np.rint(DEEP / 257))
    assert decode(file_of(np.full((6, 8), 65535, np.uint16), kind), same_size(1)).min() == 255


def test_sixteen_bit_gray_of_other_byte_order_and_width() -> None:
    big = Image.frombytes("I;16B", (8, 6), DEEP.astype(">u2").tobytes())
    wide = Image.fromarray(DEEP.astype(np.int32))
    for image in (big, wide):
        assert np.array_equal(decode(file_of(image, "TIFF"), same_size(1))[..., 0], np.rint(DEEP / 257))
    for outside in (-1, 65536):
        with pytest.raises(BadImage, match="white_level"):
            decode(file_of(np.full((6, 8), outside, np.int32), "TIFF"), same_size(1))


def test_floating_point() -> None:
    unit = GRAY.astype(np.float32) / 255
    assert np.array_equal(decode(file_of(unit, "TIFF"), same_size(1))[..., 0], GRAY)
    for wrong in (1.01, -0.01, np.nan, np.inf):
        unit[0, 0] = wrong
        with pytest.raises(BadImage, match="floating-point"):
            decode(file_of(unit, "TIFF"), same_size(1))


def test_ink_and_video_colours() -> None:
    flat = Image.new("RGB", (8, 6), (200, 40, 90))
    for data in (
        file_of(flat.convert("CMYK"), "JPEG", quality=100),  # Adobe's inverted kind
        file_of(flat.convert("CMYK"), "TIFF"),
        file_of(flat.convert("YCbCr"), "TIFF"),
        file_of(flat, "JPEG", quality=100),
    ):
        assert np.abs(decode(data, same_size(3)).astype(int) - (200, 40, 90)).max() <= 3
    with pytest.raises(BadImage, match="mode LAB"):
        decode(file_of(Image.new("LAB", (8, 6)), "TIFF"), same_size(3))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decode(data, same_size(3)).astype(int) - (255, 0, 0)).max() <= 2


# --- geometry --------------------------------------------------------------------------------------------------------


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3))),
    st.integers(1, 12),
    st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_fits_as_pillow_does(pixels: np.ndarray, height: int, width: int) -> None:
    expected = np.asarray(ImageOps.fit(Image.fromarray(pixels), (width, height), Image.Resampling.LANCZOS))
    transform = Transform(height, width, 3)
    assert np.array_equal(decode(file_of(pixels), transform), expected)
    assert np.array_equal(decode(pixels, transform), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    corner = np.zeros((48, 64, 3), np.uint8)
    corner[:16, :16] = 255
    data = file_of(corner, kind, exif=exif)
    width, height, *_ = probe(data)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert (height, width) == upright.shape[:2] == ((64, 48) if orientation > 4 else (48, 64))
    assert np.array_equal(decode(data, Transform(height, width, 3)), upright)


def test_a_camera_with_odd_metadata_is_still_turned() -> None:
    exif = Image.Exif()
    exif[274] = 6
    exif[271] = "maker"
    fields = exif.tobytes().replace(b"\x01\x0f", b"\x01\x00", 1)  # now text where a width belongs
    data = file_of(RGB, "JPEG", exif=fields)
    with pytest.raises(struct.error):  # why `decode` turns images by itself
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert probe(data)[:2] == (6, 8)
    assert decode(data, Transform(8, 6, 3)).shape == (8, 6, 3)


def test_invisible_colours_do_not_bleed() -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (255, 0, 0, 0)  # red, but invisible
    pixels[:, 4:] = (0, 0, 255, 255)
    small = decode(file_of(pixels), Transform(3, 3, 4))
    assert small[..., 0].max() == 0
    assert decode(file_of(pixels), Transform(3, 3, 3, (0, 0, 0)))[..., 0].max() == 0


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (6, 8, 2), (6, 8, 3), (6, 8, 4)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_arrays_go_the_way_of_files(shape: tuple[int, ...], channels: int) -> None:
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    for size in ((6, 8), (3, 3)):
        transform = Transform(*size, channels, (1, 2, 3))
        fitted = fit_array(pixels, transform)
        assert fitted.shape == transform.shape
        assert np.array_equal(fitted, decode(file_of(pixels.squeeze()), transform))
    assert probe(pixels)[:3] == (8, 6, len(shape) == 2 or shape[2] == 1)


def test_description_is_json_and_names_all_that_matters() -> None:
    described = Transform(6, 8, 3, (1, 2, 3)).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["filter"] == "lanczos"
    assert isinstance(described["version"], int)


def test_a_file_that_a_user_names(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with refused(path, "cannot be read (No such file or directory)", wanted="an image"):
        decode_file(path, same_size(3))
    path.write_bytes(b"text")
    with refused(path, "cannot be read (not an image that can be read", wanted="an image"):
        decode_file(path, same_size(3))
    path.write_bytes(file_of(RGB))
    assert np.array_equal(decode_file(path, same_size(3)), RGB)


# --- probing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "gray"),
    [
        (file_of(GRAY), True),
        (file_of(GRAY, "JPEG"), True),
        (file_of(DEEP), True),
        (file_of(Image.new("1", (8, 6))), True),
        (file_of(GRAY / np.float32(255), "TIFF"), True),
        (file_of(Image.fromarray(GRAY).convert("P")), True),
        (file_of(Image.fromarray(GRAY).quantize(7), "GIF"), True),
        (file_of(Image.fromarray(GRAY).quantize(7), "BMP"), True),
        (file_of(Image.fromarray(RGB).quantize(7)), False),
        (file_of(Image.fromarray(RGB).quantize(7), "TIFF"), False),
        (file_of(RGB), False),
        (file_of(np.dstack([GRAY, GRAY])), False),
        (file_of(RGBA), False),
        (file_of(Image.new("CMYK", (8, 6)), "JPEG"), False),
    ],
)
def test_probe(data: bytes, gray: bool) -> None:
    assert probe(data) == (8, 6, gray, False)


def test_probe_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [file_of(RGB, kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")]

    def load(*_: object) -> None:
        raise AssertionError("probing must not decode")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert [probe(data)[:2] for data in files] == [(8, 6)] * len(files)
