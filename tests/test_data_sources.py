"""Listing: names, order and labels of folders, zips and arrays; every refusal on one line with its remedy."""

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdm.data.sources import SUFFIXES, Source, open_source
from maskdm.errors import InputError


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """An `InputError` on one line that holds all of `words`."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


def make_folder(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(len(name)))
    return root


def make_zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, png(len(name)))
    return path


def make(kind: str, tmp_path: Path, names: list[str], more: dict[str, str] | None = None) -> Path:
    if kind == "folder":
        root = make_folder(tmp_path / "pictures", names)
        for name, text in (more or {}).items():
            (root / name).write_text(text)
        return root
    path = make_zip(tmp_path / "pictures.zip", names)
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in (more or {}).items():
            archive.writestr(name, text)
    return path


def listed(source: Source) -> list[tuple[str, str | None]]:
    return [(item.name, None if item.label is None else source.class_names[item.label]) for item in source.items]


both = pytest.mark.parametrize("kind", ["folder", "zip"])


@both
def test_names_are_relative_sorted_and_only_of_pictures(kind: str, tmp_path: Path) -> None:
    names = [f"b.{suffix.upper()}" for suffix in SUFFIXES] + ["sub/a.png", "a.png"]
    others = ["notes.txt", ".hidden.png", "png", "Thumbs.db", "sub/.cache/a.png", "__MACOSX/a.png"]
    source = open_source(make(kind, tmp_path, names + others))
    assert [item.name for item in source.items] == sorted(names)
    assert all(source.read(item) == png(len(item.name)) for item in source.items)


@both
@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["cat/1.png", "dog/1.png", "cat/deep/2.png"], ["cat", "cat", "dog"]),
        (["root/cat/1.png", "root/dog/1.png"], ["cat", "dog"]),
        (["a/b/cat/1.png", "a/b/dog/1.png"], ["cat", "dog"]),
        (["cat/1.png", "cat/2.png"], [None, None]),  # one class is none
        (["cat/1.png", "dog/1.png", "stray.png"], [None, None, None]),
        (["1.png", "2.png"], [None, None]),
        (["ab/1.png", "abc/1.png"], ["ab", "abc"]),  # folders in common, not letters
    ],
)
def test_labels_from_folders(kind: str, names: list[str], labels: list[str | None], tmp_path: Path) -> None:
    source = open_source(make(kind, tmp_path, names))
    assert listed(source) == list(zip(sorted(names), labels, strict=True))


@both
def test_dataset_json_gives_the_labels(kind: str, tmp_path: Path) -> None:
    names = ["00000/a.png", "00000/b.png", "00001/c.png"]
    labels = {"labels": [["00000/a.png", 7], ["00000\\b.png", 3], ["00001/c.png", 7], ["absent.png", 1]]}
    source = open_source(make(kind, tmp_path, names, {"dataset.json": json.dumps(labels)}))
    assert source.class_names == ("3", "7")
    assert [item.label for item in source.items] == [1, 0, 1]


@both
def test_dataset_json_below_a_common_folder(kind: str, tmp_path: Path) -> None:
    path = make(
        kind, tmp_path, ["root/a.png", "root/b.png"], {"root/dataset.json": '{"labels": [["a.png", 0], ["b.png", 1]]}'}
    )
    assert listed(open_source(path)) == [("root/a.png", "0"), ("root/b.png", "1")]


@both
def test_dataset_json_with_null_means_no_labels(kind: str, tmp_path: Path) -> None:
    source = open_source(make(kind, tmp_path, ["0/a.png", "1/b.png"], {"dataset.json": '{"labels": null}'}))
    assert source.class_names == ()
    assert [item.label for item in source.items] == [None, None]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        ("[]", "'labels'"),
        ('{"labels": 3}', "int"),
        ('{"labels": [["a.png", 0.5]]}', "0.5"),
        ('{"labels": [["a.png", true]]}', "True"),
        ('{"labels": [["a.png", [0, 1]]]}', "entry"),
        ('{"labels": []}', "a.png"),
    ],
)
def test_dataset_json_that_is_wrong(text: str, word: str, tmp_path: Path) -> None:
    path = make("folder", tmp_path, ["a.png"], {"dataset.json": text})
    with refused("dataset.json", word, "wanted"):
        open_source(path)


def test_no_such_path(tmp_path: Path) -> None:
    with refused("does not exist", "give a folder"):
        open_source(tmp_path / "no\nthing")


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.rar").write_bytes(b"")
    with refused("another kind", "give a folder"):
        open_source(tmp_path / "a.rar")


@both
def test_without_any_picture(kind: str, tmp_path: Path) -> None:
    with refused("3 files were seen", "png, jpg, jpeg, webp, bmp, tif, tiff, gif", "give the folder"):
        open_source(make(kind, tmp_path, ["a.txt", ".b.png", "c.heic"]))


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "root", ["cat/1.png"])
    elsewhere = make_folder(tmp_path / "elsewhere", ["1.png"])
    (root / "dog").symlink_to(elsewhere)
    (root / "dog" / "loop").symlink_to(root)
    assert [item.name for item in open_source(root).items] == ["cat/1.png", "dog/1.png"]


def test_zip_members_never_reach_the_disk(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "evil.zip", ["../outside.png", "ok.png"])
    source = open_source(path)
    assert [item.name for item in source.items] == ["ok.png"]
    assert source.read(source.items[0]) == png(6)
    assert sorted(tmp_path.iterdir()) == [path]


def test_zip_is_read_by_many_threads(tmp_path: Path) -> None:
    names = [f"{number:03}{'x' * number}.png" for number in range(60)]
    source = open_source(make_zip(tmp_path / "a.zip", names))
    start = threading.Barrier(8)

    def read_all(_: int) -> bool:
        start.wait()
        return all(source.read(item) == png(len(item.name)) for item in source.items)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read_all, range(8)))


def test_zip_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 nothing more")
    with refused("a.zip", "cannot be opened as a zip", "pack the pictures"):
        open_source(tmp_path / "a.zip")


def test_zip_with_a_password(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", ["a.png"])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(data)
    with refused("encrypted", "unpack it"):
        open_source(path)


def test_damaged_zip_member_is_an_error_of_that_picture(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", ["a.png", "b.png"])
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 0xFF
    path.write_bytes(data)
    source = open_source(path)
    with pytest.raises(OSError, match="damaged in the zip"):
        source.read(source.items[0])
    assert source.read(source.items[1]) == png(5)


@pytest.mark.parametrize("shape", [(12, 4, 5), (12, 4, 5, 1), (12, 4, 5, 3), (12, 4, 5, 4)])
def test_npz_images(shape: tuple[int, ...], tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", images=images, more=np.zeros(3))
    source = open_source(tmp_path / "a.npz")
    assert [item.name for item in source.items] == [f"{row:02d}" for row in range(12)]
    assert all(np.array_equal(source.read(item), images[row]) for row, item in enumerate(source.items))
    assert source.class_names == ()


def test_npz_labels(tmp_path: Path) -> None:
    images = np.zeros((3, 2, 2), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([5, -1, 5]))
    assert listed(open_source(tmp_path / "a.npz")) == [("0", "5"), ("1", "-1"), ("2", "5")]
    np.savez(tmp_path / "b.npz", images=images, labels=np.array([1, 0, 1]), classes=np.array(["shoe", "bag", "hat"]))
    source = open_source(tmp_path / "b.npz")
    assert listed(source) == [("0", "bag"), ("1", "shoe"), ("2", "bag")]
    assert source.class_names == ("shoe", "bag", "hat")


IMAGES = np.zeros((3, 2, 2), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"pictures": IMAGES}, "no array 'images' but ['pictures']"),
        ({"images": IMAGES.astype(np.float32)}, "float32"),
        ({"images": IMAGES[0]}, "(2, 2)"),
        ({"images": np.zeros((3, 2, 2, 5), np.uint8)}, "(3, 2, 2, 5)"),
        ({"images": IMAGES[:0]}, "(0, 2, 2)"),
        ({"images": np.array([{}, {}, {}], dtype=object)}, "allow_pickle"),
        ({"images": IMAGES, "labels": np.zeros(2, int)}, "'labels'"),
        ({"images": IMAGES, "labels": np.zeros(3)}, "float64"),
        ({"images": IMAGES, "labels": np.arange(3), "classes": np.array(["a", "b"])}, "0 to 1"),
        ({"images": IMAGES, "labels": np.arange(3), "classes": np.arange(3)}, "list of strings"),
    ],
)
def test_npz_that_is_wrong(arrays: dict[str, np.ndarray], word: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with refused("a.npz", word, "save"):
        open_source(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"no arrays here", b"PK\x03\x04", b"\x93NUMPY"])
def test_npz_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with refused("a.npz", "save it with np.savez"):
        open_source(tmp_path / "a.npz")


def test_npz_that_is_a_bare_array(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, IMAGES)
    with refused("a.npz", "save it with np.savez"):
        open_source(tmp_path / "a.npz")
