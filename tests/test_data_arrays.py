"""Arrays in files: of other tools, cut, flipped, and with headers that lie about their size."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from maskdm.cli.main import main
from maskdm.data.arrays import read_arrays
from maskdm.data.sources import open_source
from maskdm.errors import InputError

IMAGES = np.random.default_rng(0).integers(256, size=(12, 8, 8, 3), dtype=np.uint8)


def lying(shape: tuple[int, ...], content: bytes = b"\0" * 64) -> bytes:
    """A .npy whose header says `shape`."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


def pack(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_samples_of_other_tools_are_read(suffix, save, tmp_path):
    """guided-diffusion, ADM and EDM save `arr_0`, uint8 NHWC, and labels as `arr_1`."""
    path = tmp_path / f"samples.{suffix}"
    if suffix == "npy":
        np.save(path, IMAGES)
    else:
        save(path, IMAGES, np.arange(12) % 3)
    source = open_source(path)
    assert np.array_equal(np.stack([source.read(item) for item in source.items]), IMAGES)
    assert source.class_names == (() if suffix == "npy" else ("0", "1", "2"))


def test_arrays_in_another_order_and_under_another_suffix(tmp_path):
    np.save(tmp_path / "f.npy", np.asfortranarray(IMAGES))
    assert np.array_equal(read_arrays(tmp_path / "f.npy", ())[0]["arr_0"], IMAGES)
    (tmp_path / "bare.npz").write_bytes((tmp_path / "f.npy").read_bytes())
    assert len(open_source(tmp_path / "bare.npz").items) == 12


@pytest.mark.parametrize("shape", [(10**12, 64, 64, 3), (2**62, 2**62), (65,), (63,), (0,)])
def test_a_header_that_lies_takes_no_memory(shape, tmp_path):
    (tmp_path / "bare.npy").write_bytes(lying(shape))
    pack(tmp_path / "packed.npz", "images.npy", lying(shape))
    for name in ("bare.npy", "packed.npz"):
        with pytest.raises(InputError) as caught:
            open_source(tmp_path / name)
        assert caught.value.name == str(tmp_path / name)
        assert "bytes" in caught.value.problem


def test_an_archive_that_lies_with_its_header_takes_no_memory(tmp_path):
    """The directory of the zip says 2 GB too, of a few bytes."""
    path, size = tmp_path / "lie.npz", 2 * 10**9
    pack(path, "images.npy", lying((size - 128,)))
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", size)
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_source(path)
    assert "says that it unpacks to 2,000,000,000" in caught.value.problem


def test_every_cut_and_many_flips_are_read_or_said_in_a_line(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", images=IMAGES)
    np.save(tmp_path / "whole.npy", IMAGES)
    for kind in ("npz", "npy"):
        whole, rng = (tmp_path / f"whole.{kind}").read_bytes(), np.random.default_rng(0)
        damaged = [whole[:end] for end in range(0, len(whole), len(whole) // 40)]
        flips = zip(rng.integers(0, len(whole), 60), 1 << rng.integers(8, size=60), strict=True)
        damaged += [whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :] for place, bit in flips]
        said = [said_of(tmp_path / f"damaged.{kind}", content) for content in damaged]
        assert any(said)
        assert not any("\n" in line for line in said)


def said_of(path: Path, content: bytes) -> str:
    """What is said of a damaged file; nothing where the images are what they were, or a .npy, which has no checksum."""
    path.write_bytes(content)
    try:
        source = open_source(path)
    except InputError as error:
        return str(error)
    images = np.stack([source.read(item) for item in source.items])
    return "" if path.suffix == ".npy" or np.array_equal(images, IMAGES) else "wrong images\nwithout a word"


def test_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="pickled"):
        open_source(tmp_path / "o.npy")


@pytest.mark.parametrize("name", ["arr.npz", "bare.npy"])
def test_eval_reads_them(name, tmp_path, capsys):
    np.savez(tmp_path / "arr.npz", IMAGES, np.arange(12) % 2)
    np.save(tmp_path / "bare.npy", IMAGES)
    np.savez(tmp_path / "real.npz", images=255 - IMAGES)
    assert main(["eval", str(tmp_path / name), "--reference", str(tmp_path / "real.npz")]) == 0
    assert "12 generated images against 12" in capsys.readouterr().out


def test_eval_says_in_a_line_what_cannot_be_read(tmp_path, capsys):
    np.savez(tmp_path / "real.npz", images=IMAGES)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "real.npz").read_bytes()[:900])
    for words in (["cut.npz", "--reference", "real.npz"], ["real.npz", "--reference", "cut.npz"]):
        assert main(["eval", *(str(tmp_path / word) if word.endswith("z") else word for word in words)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("maskdm: error: ")
        assert "cut.npz" in error
        assert "cannot be read as arrays" in error


def test_a_reference_may_hold_images_beside_statistics_of_more(tmp_path, capsys):
    """As those of guided-diffusion: statistics of other features leave the images to compare with."""
    np.savez(tmp_path / "both.npz", arr_0=IMAGES, mu=np.zeros(5), sigma=np.eye(5))
    np.savez(tmp_path / "real.npz", images=IMAGES)
    printed = []
    for name in ("both.npz", "real.npz"):
        assert main(["eval", str(tmp_path / "real.npz"), "--reference", str(tmp_path / name)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "recall" in printed[0]


def test_a_checksum_that_does_not_fit_is_said(tmp_path):
    np.savez(tmp_path / "s.npz", images=IMAGES)
    content = bytearray((tmp_path / "s.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as arrays"):
        open_source(tmp_path / "s.npz")
