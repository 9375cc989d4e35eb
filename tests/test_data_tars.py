"""Tars and shards of them: the same images as in a folder, read from their places; labels of webdatasets."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from data_helpers import Listener, png, refused

from maskdm.data.image_set import load_images
from maskdm.data.sources import open_source


def tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_one_tar_is_like_a_folder(tmp_path):
    files = {"./cat/b.png": png(1), "dog/a.png": png(2), "dog/notes.txt": b"x", "dog/.hidden.png": png(3)}
    source = open_source(tar(tmp_path / "images.tar", files))
    assert [(item.name, item.label) for item in source.items] == [("cat/b.png", 0), ("dog/a.png", 1)]
    assert source.class_names == ("cat", "dog")
    assert [source.read(item) for item in source.items] == [png(1), png(2)]


def test_shards_are_no_classes(tmp_path):
    for shard in range(3):
        tar(tmp_path / "set" / f"part-{shard}.tar", {f"{key}.png": png(10 * shard + key) for key in range(4)})
    source = open_source(tmp_path / "set")
    assert [item.name for item in source.items[:5]] == [*(f"part-0/{key}.png" for key in range(4)), "part-1/0.png"]
    assert source.class_names == ()
    assert {item.label for item in source.items} == {None}
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, source.items)) == [png(10 * s + k) for s in range(3) for k in range(4)]


@pytest.mark.parametrize(
    ("words", "names", "labels"),
    [(["7", "3", "7"], ("3", "7"), [1, 0, 1]), (["owl", "cat", "owl"], ("cat", "owl"), [1, 0, 1])],
)
def test_labels_of_a_webdataset(tmp_path, words, names, labels):
    files = {}
    for key, word in enumerate(words):
        files |= {f"{key:03}.png": png(key), f"{key:03}.cls": f"{word}\n".encode(), f"{key:03}.json": b"{}"}
    source = open_source(tar(tmp_path / "set" / "a.tar", files).parent)
    assert source.class_names == names
    assert [item.label for item in source.items] == labels


def test_an_image_without_a_class_is_refused(tmp_path):
    path = tar(tmp_path / "a.tar", {"1.png": png(1), "1.cls": b"0", "2.png": png(2)})
    with refused(path, "has no .cls file for 1 of 2 images, the first '2.png'", remedy="add them"):
        open_source(path)


@pytest.mark.parametrize(
    ("content", "problem", "remedy"),
    [
        ("empty", "cannot be read as a tar (", "pack it again"),
        ("cut", "cannot be read as a tar (unexpected end of data)", "pack it again"),
        ("compressed", "cannot be read as a tar (", "do not compress it"),
        ("noise", "cannot be read as a tar (", "pack it again"),
    ],
)
def test_damage(tmp_path, content, problem, remedy):
    path = tar(tmp_path / "a.tar", {"1.png": png(1)}, "w:gz" if content == "compressed" else "w")
    if content == "empty":
        path.write_bytes(b"")
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:540])
    elif content == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    with refused(path, problem, remedy=remedy):
        load_images(open_source(path), cache_dir=tmp_path / "cache", console=Listener())


def test_shards_without_images_are_refused(tmp_path):
    for shard in range(2):
        tar(tmp_path / "set" / f"{shard}.tar", {"a.txt": b"x"})
    with refused(tmp_path / "set", "holds no image of a kind that is read (png, jpg"):
        open_source(tmp_path / "set")


def test_the_same_images_whatever_holds_them(tmp_path):
    files = {f"{key:02}.png": png(20 * key) for key in range(10)}
    (tmp_path / "folder").mkdir()
    for name, content in files.items():
        (tmp_path / "folder" / name).write_bytes(content)
    sets = [
        load_images(open_source(path), cache_dir=tmp_path / "cache", console=Listener())
        for path in (tar(tmp_path / "a.tar", files), tmp_path / "folder")
    ]
    assert np.array_equal(sets[0].images, sets[1].images)
    assert len(list((tmp_path / "cache").iterdir())) == 1  # known by their contents


def test_streaming_gives_the_same_and_writes_nothing(tmp_path):
    files = {f"{key:02}.png": png(20 * key) for key in range(10)} | {"99.png": png(3)[:40]}
    source = open_source(tar(tmp_path / "a.tar", files))
    kept = load_images(source, cache_dir=tmp_path / "cache", console=Listener())
    streamed = load_images(source, cache_dir=tmp_path / "nowhere", console=Listener(), keep=False)
    rows = np.array([3, 9, 3, 0])
    assert np.array_equal(streamed.images[rows], kept.images[rows])
    assert (streamed.sha256_px, streamed.bad, len(streamed)) == (kept.sha256_px, kept.bad, len(kept))
    assert streamed.fingerprint == kept.fingerprint
    assert not (tmp_path / "nowhere").exists()


def test_a_streamed_image_that_changed_stops_the_step(tmp_path):
    for key in range(9):
        (tmp_path / f"{key}.png").write_bytes(png(key))
    streamed = load_images(open_source(tmp_path), cache_dir=tmp_path, console=Listener(), keep=False)
    (tmp_path / "4.png").write_bytes(png(200))
    with refused(tmp_path / "4.png", "changed while it was being read"):
        streamed.images[np.array([3, 4])]
