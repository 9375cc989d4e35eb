"""Listing: names, order and labels of folders, zips and arrays; every refusal with its values."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from data_helpers import png, refused

from maskdm.data.names import SUFFIXES
from maskdm.data.source import Source
from maskdm.data.sources import open_source, resolved_path


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
        root = make_folder(tmp_path / "images", names)
        for name, text in (more or {}).items():
            (root / name).write_text(text)
        return root
    path = make_zip(tmp_path / "images.zip", names)
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in (more or {}).items():
            archive.writestr(name, text)
    return path


def listed(source: Source) -> list[tuple[str, str | None]]:
    return [(item.name, None if item.label is None else source.class_names[item.label]) for item in source.items]


both = pytest.mark.parametrize("kind", ["folder", "zip"])


@both
def test_names_are_relative_sorted_and_only_of_images(kind: str, tmp_path: Path) -> None:
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
        (["cat/1.png", "dog/1.png", "1.png", "2.png"], [None] * 4),  # too many without a class to leave them out
        (["train/cat/1.png", "train/dog/1.png", "test/cat/1.png"], ["cat", "cat", "dog"]),
        (["all/Train/cat/1.png", "all/val/dog/1.png"], ["cat", "dog"]),
        (["train/1.png", "test/1.png"], [None, None]),
        (["train/cat/1.png", "plane/cat/1.png"], ["plane", "train"]),
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
    ("text", "problem"),
    [
        ("{", "cannot be read as JSON ("),
        ("[" * 100_000, "cannot be read as JSON ("),
        ("[]", "has no key 'labels'"),
        ('{"labels": 3}', "has 'labels' of type int"),
        ('{"labels": [["a.png", 0.5]]}', "has the entry \"['a.png', 0.5]\""),
        ('{"labels": [["a.png", true]]}', "True"),
        ('{"labels": [["a.png", [0, 1]]]}', "entry"),
        ('{"labels": []}', "has no label for 1 of 1 images, the first 'a.png'"),
    ],
)
def test_dataset_json_that_is_wrong(text: str, problem: str, tmp_path: Path) -> None:
    path = make("folder", tmp_path, ["a.png"], {"dataset.json": text})
    with refused(path / "dataset.json", problem, wanted='{"labels": [[name, integer], ...]}'):
        open_source(path)


def test_no_such_path(tmp_path: Path) -> None:
    with refused(tmp_path / "no\nthing", "does not exist", remedy="give a folder"):
        open_source(tmp_path / "no\nthing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images", ["a.png", "sub/b.png"])
    (root / "sub").chmod(0)
    try:
        with refused(root / "sub", "cannot be listed (Permission denied)", remedy="give read permission"):
            open_source(root)
    finally:
        (root / "sub").chmod(0o700)


def test_paths_that_hold_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolved_path("images") == str(tmp_path.resolve() / "images")
    assert resolved_path("hf:NAME") == "hf:NAME"


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.rar").write_bytes(b"")
    with refused(tmp_path / "a.rar", "another kind", remedy="give a folder"):
        open_source(tmp_path / "a.rar")


@both
def test_without_any_image(kind: str, tmp_path: Path) -> None:
    path = make(kind, tmp_path, ["a.txt", ".b.png", "c.heic"])
    seen = "3 files were seen, none of a kind that is read (png, jpg, jpeg, jpe, jfif, webp, bmp, tif, tiff, gif)"
    with refused(path, f"holds no image: {seen}", remedy="give the folder"):
        open_source(path)


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
    with refused(tmp_path / "a.zip", "cannot be opened as a zip (", remedy="pack the images"):
        open_source(tmp_path / "a.zip")


def test_zip_with_a_password(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", ["a.png"])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(data)
    with refused(path, "is encrypted", remedy="unpack it"):
        open_source(path)


def test_damaged_zip_member_is_an_error_of_that_image(tmp_path: Path) -> None:
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
    ("arrays", "problem", "wanted", "remedy"),
    [
        ({"pixels": IMAGES}, "has no array 'images' or 'arr_0' but ['pixels']", "", "save it with np.savez"),
        ({"images": IMAGES.astype(np.float32)}, "'images' is of type float32", "of uint8", "convert it"),
        ({"images": IMAGES[0]}, "'images' has shape (2, 2)", "(N, H, W)", "convert it"),
        ({"images": np.zeros((3, 2, 2, 5), np.uint8)}, "has shape (3, 2, 2, 5)", "C from 1 to 4", "convert it"),
        ({"images": IMAGES[:0]}, "has shape (0, 2, 2)", "(N, H, W)", "convert it"),
        ({"images": np.array([{}, {}, {}], dtype=object)}, "pickled objects", "", "save it with np.savez"),
        (
            {"images": IMAGES, "labels": np.zeros(2, int)},
            "of shape (2,)",
            "integers of shape (3,)",
            "leave 'labels' out",
        ),
        ({"images": IMAGES, "labels": np.zeros(3)}, "'labels' is float64", "integers", "leave 'labels' out"),
        (
            {"images": IMAGES, "labels": np.arange(3), "classes": np.array(["a", "b"])},
            "'labels' go from 0 to 2",
            "0 to 1",
            "save the missing names",
        ),
        (
            {"images": IMAGES, "labels": np.arange(3), "classes": np.arange(3)},
            "'classes' is int64",
            "a list of strings",
            "leave 'classes' out",
        ),
    ],
)
def test_npz_that_is_wrong(
    arrays: dict[str, np.ndarray], problem: str, wanted: str, remedy: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with refused(tmp_path / "a.npz", problem, wanted=wanted, remedy=remedy):
        open_source(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"no arrays here", b"PK\x03\x04"])
def test_npz_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with refused(tmp_path / "a.npz", "cannot be read as arrays (", remedy="save it with np.savez"):
        open_source(tmp_path / "a.npz")


def test_npz_that_is_a_bare_array(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, IMAGES)
    source = open_source(tmp_path / "a.npz")
    assert np.array_equal(source.read(source.items[0]), IMAGES[0])
