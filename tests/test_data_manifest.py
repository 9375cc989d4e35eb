"""A record of the roles that shows every change."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.data.decode import Transform
from maskdm.data.image_set import ImageSet
from maskdm.data.manifest import Manifest, read_manifest, write_manifest
from maskdm.data.split import Role
from maskdm.errors import StorageError


def image_set() -> ImageSet:
    """Four good images, the first and the last equal, and a bad one between."""
    return ImageSet(
        images=np.zeros((4, 2, 2, 1), np.uint8),
        names=("a.png", "c.png", "d\n\udcff.png", "e.png"),
        labels=np.array([0, 1, 1, 0]),
        class_names=("cat", "dog"),
        sha256=("1" * 64, "2" * 64, "3" * 64, "4" * 64),
        sha256_px=("5" * 64, "6" * 64, "7" * 64, "5" * 64),
        source_sizes=((10, 20), (11, 21), (12, 22), (13, 23)),
        bad=(("b.png", "OSError: truncated"),),
        bad_sha256=("8" * 64,),
        transform=Transform(2, 2, 1),
        fingerprint="f" * 64,
    )


ROLES: list[Role] = ["heldout", "member", "calibration", "heldout"]


def write(folder: Path, **more: Any) -> str:
    arguments = {"stages": ["pretrain", "finetune"], "tool_version": "1.2", "config_sha256": "c" * 64} | more
    return write_manifest(folder, image_set(), ROLES, **arguments)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_records(tmp_path: Path) -> None:
    sha256 = write(tmp_path / "run", groups=["g", "h", "i", "g"], parent_sha256="p" * 64)
    manifest = read_manifest(tmp_path / "run")
    assert manifest.sha256 == sha256
    a, b, c, d, e = manifest.records
    assert (a.path, a.sha256, a.sha256_px, a.w, a.h) == ("a.png", "1" * 64, "5" * 64, 10, 20)
    assert (a.label, a.group, a.role, a.stages) == ("cat", "g", "heldout", ())
    assert a.dup_cluster == e.dup_cluster == "5" * 16
    assert (b.path, b.sha256, b.sha256_px, b.w, b.role) == ("b.png", "8" * 64, None, None, "excluded")
    assert (c.role, c.stages, c.dup_cluster) == ("member", ("pretrain", "finetune"), None)
    assert d.path == "d\n\udcff.png"
    head = manifest.head
    assert (head.tool_version, head.config_sha256, head.parent_sha256) == ("1.2", "c" * 64, "p" * 64)
    assert head.fingerprint == "f" * 64
    assert head.transform == image_set().transform.describe()
    assert head.counts == {"member": 1, "heldout": 2, "calibration": 1, "excluded": 1}
    assert head.created.endswith("+00:00")


def test_files_are_whole_and_private(run: Path) -> None:
    write(run)  # over the old ones
    assert sorted(path.name for path in run.iterdir()) == ["manifest.head.json", "manifest.jsonl"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in run.iterdir())
    assert len((run / "manifest.jsonl").read_bytes().splitlines()) == 5


def test_indices_are_rows_of_the_good_images(run: Path) -> None:
    manifest = read_manifest(run)
    rows: dict[Role, list[int]] = {"heldout": [0, 3], "member": [1], "calibration": [2], "excluded": []}
    for role, expected in rows.items():
        assert manifest.indices(role).dtype == np.int64
        assert manifest.indices(role).tolist() == expected


def test_without_labels_and_groups(tmp_path: Path) -> None:
    write_manifest(tmp_path, replace(image_set(), labels=None), ROLES, tool_version="1", config_sha256="c")
    assert {(record.label, record.group, record.stages) for record in read_manifest(tmp_path).records} == {
        (None, None, ())
    }


REMEDY = "put both files of the manifest back as the run wrote them, or start a new run with --resume never"


@pytest.mark.parametrize("file", ["manifest.jsonl", "manifest.head.json"])
def test_missing_files(file: str, run: Path) -> None:
    (run / file).unlink()
    with refused(run / file, "cannot be read (No such file or directory)", remedy=REMEDY):
        read_manifest(run)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_a_changed_byte_never_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    run = tmp_path_factory.getbasetemp() / "flipped"
    write(run)
    path = run / "manifest.jsonl"
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with refused(path, "is not what manifest.head.json says it was", remedy=REMEDY):
        read_manifest(run)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda head: [], "not an object with the keys format, tool_version"),
        (lambda head: {key: head[key] for key in list(head)[1:]}, "not an object with the keys format"),
        (lambda head: head | {"more": 1}, "not an object with the keys format"),
        (lambda head: head | {"counts": 3}, "counts is 3"),
        (lambda head: head | {"format": 99}, "has format 99, wanted 1"),
    ],
)
def test_malformed_heads(edit: Any, problem: str, run: Path) -> None:
    path = run / "manifest.head.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with refused(path, problem, remedy=REMEDY):
        read_manifest(run)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00"])
def test_heads_that_are_no_json(text: str, run: Path) -> None:
    (run / "manifest.head.json").write_text(text)
    with refused(run / "manifest.head.json", remedy=REMEDY):
        read_manifest(run)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b'"member"', b'"friend"', "role is 'friend'"),
        (b'"w": 10', b'"w": "x"', "w is 'x'"),
        (b"{", b"", ""),
    ],
)
def test_malformed_records(old: bytes, new: bytes, problem: str, run: Path) -> None:
    """Even where the head agrees with them."""
    lines = (run / "manifest.jsonl").read_bytes().replace(old, new)
    (run / "manifest.jsonl").write_bytes(lines)
    head = json.loads((run / "manifest.head.json").read_text())
    head["records_sha256"] = hashlib.sha256(lines).hexdigest()
    (run / "manifest.head.json").write_text(json.dumps(head))
    with refused(run / "manifest.jsonl", problem, remedy=REMEDY):
        read_manifest(run)


def test_the_same_images_under_other_names_are_aligned(run: Path) -> None:
    manifest: Manifest = read_manifest(run)
    pixels = np.array([1, 2, 3, 1], np.uint8).repeat(4).reshape(4, 2, 2, 1)
    images = replace(image_set(), images=pixels)
    assert manifest.align(images) is images
    order = np.arange(len(images))[::-1]
    moved = replace(images.in_order(order), fingerprint="0", names=tuple(f"elsewhere/{i}.png" for i in order))
    assert manifest.difference(moved) == ""
    aligned = manifest.align(moved)
    rows = np.arange(len(images))
    assert np.array_equal(aligned.images[rows], images.images[rows])
    assert aligned.sha256_px == images.sha256_px
    assert aligned.source_sizes[1:3] == images.source_sizes[1:3]
    assert images.labels is not None
    assert np.array_equal(aligned.labels, images.labels)


def test_files_that_cannot_be_read_teach_nothing(run: Path) -> None:
    other = replace(image_set(), fingerprint="0", bad=(), bad_sha256=())
    assert read_manifest(run).difference(other) == ""


def test_other_images_are_refused(run: Path) -> None:
    manifest: Manifest = read_manifest(run)
    images = image_set()
    _, *rest = images.sha256_px
    with refused("data.path", "(0 added, 0 removed, 1 changed)", remedy="say where they are now with --data"):
        manifest.align(replace(images, fingerprint="0", sha256_px=("9" * 64, *rest)))
    with refused("data.path", "(1 added, 1 removed, 0 changed)"):
        names = ("new.png", *images.names[1:])
        manifest.align(replace(images, fingerprint="0", names=names, sha256_px=("9" * 64, *rest)))
    assert images.labels is not None
    with refused("data.path", "changed)"):  # an image of another class is another image
        manifest.align(replace(images, fingerprint="0", labels=1 - images.labels))
    with refused("data.path", "'channels': 3", remedy="start a new run with --resume never"):
        manifest.align(replace(images, fingerprint="0", transform=Transform(2, 2, 3)))


def test_the_version_of_the_decoder_matters_by_its_pixels(run: Path) -> None:
    manifest = read_manifest(run)
    older = replace(manifest, head=replace(manifest.head, transform=dict(manifest.head.transform) | {"version": 1}))
    images = image_set()
    assert older.difference(images) == ""
    _, *rest = images.sha256_px
    assert "1 changed" in older.difference(
        replace(images, sha256_px=("9" * 64, *rest))
    )  # the same files, by their hash


def test_run_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("output", f"cannot make the folder {tmp_path / 'file'}"):
        write(tmp_path / "file")


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match=r"cannot write .*manifest\.jsonl: No space left on device"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []
