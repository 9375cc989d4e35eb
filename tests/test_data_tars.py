"""Tars and shards of them: the same images as in a folder, read from their places; labels of webdatasets."""

from __future__ import annotations

import io
import json
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
    with refused(path, "has no class in a .cls file for 1 of 2 images, the first '2.png'", remedy="add them"):
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
    with refused(tmp_path / "set", "holds no image: 2 files were seen, none of a kind that is read (png, jpg"):
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


def labelled(path, files):
    source = open_source(tar(path, files))
    return [(item.name, source.class_names[item.label]) for item in source.items]


def test_a_key_with_a_dot_and_masks_beside_images(tmp_path):
    files = {}
    for key, word in (("22.05", "owl"), ("22.5", "cat"), ("0001", "owl")):
        files |= {f"{key}.png": png(1), f"{key}.cls": word.encode(), f"{key}.seg.png": png(2), f"{key}.txt": b"an owl"}
    files["0002.seg.png"] = png(3)  # its image is not there; it is a mask all the same
    assert labelled(tmp_path / "a.tar", files) == [("0001.png", "owl"), ("22.05.png", "owl"), ("22.5.png", "cat")]
    (masks,) = [line for line in open_source(tmp_path / "a.tar").remarks if "same key" in line]
    assert masks.startswith("4 images belong to another")


def test_numbers_after_a_dot_make_no_mask(tmp_path):
    source = open_source(tar(tmp_path / "a.tar", {"22.png": png(1), "22.05.png": png(2), "22.10.png": png(3)}))
    assert len(source.items) == 3


@pytest.mark.parametrize("key", ["label", "class", "cls", "class_name"])
@pytest.mark.parametrize(("values", "names"), [((7, 3), ["3", "7", "7"]), (("owl", "cat"), ["cat", "owl", "owl"])])
def test_labels_in_json(tmp_path, key, values, names):
    files = {}
    for number, value in enumerate((values[1], values[0], values[0])):
        sample = {"caption": f"no. {number}", key: value}
        files |= {f"{number}.jpg": png(1), f"{number}.json": json.dumps(sample).encode()}
    assert [name for _, name in labelled(tmp_path / "a.tar", files)] == names


def test_json_that_is_damaged_or_says_no_class(tmp_path):
    captions = {f"{n}.{kind}": content for n in range(3) for kind, content in (("png", png(n)), ("json", b'{"a": 1}'))}
    source = open_source(tar(tmp_path / "a.tar", captions))
    assert (source.class_names, source.remarks) == ((), ("not images, and not read: 3 .json",))
    damaged = tar(tmp_path / "b.tar", captions | {"1.json": b"{"})
    with refused(damaged / "1.json", "cannot be read (", wanted="an object with label, class, cls, class_name"):
        open_source(damaged)
    some = tar(tmp_path / "c.tar", captions | {"1.json": b'{"label": 1}'})
    with refused(some, "has no class in a .json file for 2 of 3 images, the first '0.png'"):
        open_source(some)


@pytest.mark.parametrize(
    ("lines", "names"), [(["owl", "cat", "owl", "cat"], ("cat", "owl")), (["a", "b", "c", "d"], ())]
)
def test_text_is_a_class_where_images_share_it(tmp_path, lines, names):
    files = {f"{n}.{kind}": c for n, line in enumerate(lines) for kind, c in (("png", png(n)), ("txt", line.encode()))}
    assert open_source(tar(tmp_path / "a.tar", files)).class_names == names


def test_tars_of_a_whole_folder(tmp_path):
    """As `tar -cf s.tar .` makes them: all names begin with ./, and none is hidden."""
    tar(tmp_path / "set" / "a.tar", {f"./{n}.png": png(n) for n in range(12)})
    tar(tmp_path / "set" / "b.tar", {f"{n}.png": png(n) for n in range(8)})
    assert len(open_source(tmp_path / "set").items) == 20


def test_members_that_are_no_plain_files(tmp_path):
    def add(archive, name, kind, link=""):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        archive.addfile(member)

    path = tar(tmp_path / "a.tar", {"a/1.png": png(1), "a/2.png": png(2)})
    with tarfile.open(path, "a") as archive:
        add(archive, "b/hard.png", tarfile.LNKTYPE, "a/1.png")
        add(archive, "b/soft.png", tarfile.SYMTYPE, "../a/2.png")
        add(archive, "dead.png", tarfile.SYMTYPE, "nowhere.png")
        add(archive, "loop.png", tarfile.SYMTYPE, "loop.png")
        add(archive, "pipe.png", tarfile.FIFOTYPE)
        add(archive, "disk", tarfile.BLKTYPE)
        add(archive, "../out.png", tarfile.REGTYPE)
    source = open_source(path)
    assert {item.name: source.read(item) for item in source.items} == {
        "a/1.png": png(1),
        "a/2.png": png(2),
        "b/hard.png": png(1),
        "b/soft.png": png(2),
    }
    missing = "a link to a file that is not in the tar"
    assert dict(source.left_out) == {
        "dead.png": missing,
        "loop.png": missing,
        "pipe.png": "not a regular file",
        "../out.png": "its path leads out of the archive",
    }
    console = Listener()
    with refused(path, "holds 4 images"):
        load_images(source, cache_dir=tmp_path, console=console)
    with refused(f"{path}/pipe.png", "is left out (not a regular file)", remedy="data.on_bad_image to skip"):
        load_images(source, cache_dir=tmp_path, console=console, on_bad_image="fail")


def test_a_sparse_member_is_left_out_and_said(tmp_path):
    path = tar(tmp_path / "a.tar", {"1.png": png(1), "2.png": png(2)} | {"3.png": b"x" * 512})
    content = bytearray(path.read_bytes())
    start = content.index(b"3.png")
    content[start + 156 : start + 157] = tarfile.GNUTYPE_SPARSE
    content[start + 257 : start + 265] = b"ustar  \0"
    content[start + 386 : start + 482] = b"\0" * 96
    content[start + 386 : start + 410] = b"00000000000\0" + b"00000001000\0"
    content[start + 483 : start + 495] = b"00000001000\0"
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    path.write_bytes(content)
    source = open_source(path)
    assert [item.name for item in source.items] == ["1.png", "2.png"]
    assert source.left_out == (("3.png", "stored as a sparse file"),)


def test_a_header_damaged_in_the_middle_loses_no_images_silently(tmp_path):
    path = tar(tmp_path / "a.tar", {f"{n}.png": png(n) for n in range(9)})
    content = bytearray(path.read_bytes())
    start = content.index(b"5.png")
    content[start + 150] ^= 1  # of the checksum
    path.write_bytes(content)
    with refused(path, f"cannot be read as a tar (damaged at byte {start:,})", remedy="pack it again"):
        open_source(path)


def test_tars_joined_by_cat(tmp_path):
    path = tar(tmp_path / "a.tar", {"1.png": png(1)})
    path.write_bytes(2 * path.read_bytes())
    (remark,) = open_source(path).remarks
    assert remark.startswith("a.tar goes on after its end")
