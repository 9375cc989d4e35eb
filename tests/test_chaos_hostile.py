"""Files made to do harm: nothing in them is executed, no memory is filled, and each is refused in one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chaos import TINY, command, run_of, train_words, write_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Harm:
    """What a pickle would do: make the file that shows that it was executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Harm(canary))


def torch_zip(canary: Path) -> bytes:
    """As torch.save writes it, with harm in place of tensors."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled(canary))
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()


def object_npz(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.array([Harm(canary)], dtype=object), arr_0=np.array([Harm(canary)], dtype=object))
    return buffer.getvalue()


def lying_npz(_: Path) -> bytes:
    """A header that promises 20 TB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 80, 80, 3)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in ("images.npy", "arr_0.npy"):
            file.writestr(name, header.getvalue() + b"\0" * 100)
    return buffer.getvalue()


def huge_header(_: Path) -> bytes:
    """Of safetensors: 2^60 bytes of JSON are to follow."""
    return struct.pack("<Q", 2**60) + b"{}"


def huge_tensor(_: Path) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    return struct.pack("<Q", len(header)) + header


def huge_model(_: Path) -> bytes:
    """A description of a network with 10^12 layers."""
    model = {"model": {"backbone": "uvit", "depth": 10**12}, "image_size": [8, 8], "channels": 3}
    described = json.dumps({"format": "3", "model": model, "metadata": {}})
    header = json.dumps({"__metadata__": {"maskdm": described}}).encode()
    return struct.pack("<Q", len(header)) + header


def zip_bomb(_: Path) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("bomb.png", "w", force_zip64=True) as member,
    ):
        for _ in range(3000):
            member.write(bytes(2**20))
    return buffer.getvalue()


def climbing_zip(_: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("../../climbed.png", b"x")
    return buffer.getvalue()


def climbing_tar(_: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE), ("c.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            file.addfile(member)
        file.addfile(tarfile.TarInfo("../../climbed.png"))
    return buffer.getvalue()


def alias_bomb(_: Path) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(lines).encode()


def yaml_object(canary: Path) -> bytes:
    return f"data: !!python/object/apply:os.mkdir ['{canary}']\n".encode()


def deep_yaml(_: Path) -> bytes:
    return b"[" * 100_000


CASES: list[tuple[str, str, Callable[[Path], bytes]]] = [
    (suffix, what, make)
    for suffix, makes in {
        ".safetensors": (pickled, torch_zip, huge_header, huge_tensor, huge_model),
        ".pt": (pickled, torch_zip),
        ".npz": (pickled, object_npz, lying_npz),
        ".npy": (pickled,),
        ".zip": (zip_bomb, climbing_zip, torch_zip),
        ".tar": (climbing_tar, pickled),
        ".yaml": (alias_bomb, yaml_object, deep_yaml),
    }.items()
    for make in makes
    for what in {
        ".safetensors": ("sample", "info", "init"),
        ".pt": ("import", "features", "sample"),
        ".npz": ("data", "eval"),
        ".npy": ("eval",),
        ".zip": ("data", "eval"),
        ".tar": ("data", "eval"),
        ".yaml": ("config", "compare"),
    }[suffix]
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images and a run."""
    folder = tmp_path_factory.mktemp("finished")
    data = write_images(folder / "images")
    assert command(train_words(data, folder / "runs"), folder).check().code == 0
    return data, run_of(folder / "runs")


@pytest.mark.parametrize(("suffix", "what", "make"), CASES, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_hostile_file(suffix, what, make, finished, tmp_path):
    data, run = finished
    canary, file = tmp_path / "executed", tmp_path / f"hostile{suffix}"
    file.write_bytes(make(canary))
    train = ["train", *TINY, "--output-dir", str(tmp_path / "runs")]
    words = {
        "sample": ["sample", str(file), "-n", "1", "-o", str(tmp_path / "out")],
        "info": ["info", str(file)],
        "init": [*train, "--data", str(data), f"stages.0.init_from={file}"],
        "import": ["import", "official", str(file), "-o", str(tmp_path / "out.safetensors")],
        "features": ["eval", str(run), "--features", str(file)],
        "data": [*train, "--data", str(file)],
        "eval": ["eval", str(file), "--reference", str(data), "--features", "pixels"],
        "config": [*train, "--data", str(data), "--config", str(file)],
        "compare": ["compare", str(file), "--data", str(data)],
    }[what]
    outcome = command(words, tmp_path, timeout=60).check()
    assert outcome.code == 2, outcome.text
    assert not canary.exists()
    assert not list(tmp_path.parent.glob("climbed*"))
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20  # KiB: the largest of all children yet


def test_things_that_are_no_files(finished, tmp_path):
    """A pipe that nobody writes to, a device without end, a socket's kind: left out, at once."""
    data = write_images(tmp_path / "images")
    os.mkfifo(data / "cat" / "pipe.png")
    (data / "dog" / "endless.png").symlink_to("/dev/zero")
    (data / "dog" / "lost.png").symlink_to(tmp_path / "nothing")
    (data / "dog" / "circle").symlink_to(data)
    outcome = command(train_words(data, tmp_path / "runs"), tmp_path, timeout=60).check()
    assert outcome.code == 0, outcome.text
    assert "pipe.png" in outcome.text or "left out" in outcome.text
