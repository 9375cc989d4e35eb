"""Names as users have them: one form in folders, zips and tars; what is no data, and what is told of it."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest
from conftest import TINY
from data_helpers import Listener, png, refused
from safetensors import safe_open

import maskdm
from maskdm.cli.main import main
from maskdm.config.resolve import resolve
from maskdm.data.image_set import load_images
from maskdm.data.names import LITTER, SUFFIXES, names_of, own_grids, tidy_path, unread_files
from maskdm.data.source import Source
from maskdm.data.sources import open_source, resolved_path
from maskdm.data.split import group_names
from maskdm.files import is_utf8, readable

NFC, NFD = "café", unicodedata.normalize("NFD", "café")
LATIN1 = b"caf\xe9"
KINDS = ["folder", "zip", "tar"]


def packed(kind: str, tmp_path: Path, names: list[str], *, shade: int = 0) -> Path:
    """A folder, zip or tar of files with these names; bytes that are no UTF-8 are surrogate escapes."""
    if kind == "folder":
        for number, name in enumerate(names):
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(shade + number))
        return tmp_path / "set"
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for number, name in enumerate(names):
                archive.writestr(name, png(shade + number))
        return tmp_path / "set.zip"
    with tarfile.open(tmp_path / "set.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            content = png(shade + number)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return tmp_path / "set.tar"


def listed(source: Source) -> dict[str, str | None]:
    return {item.name: None if item.label is None else source.class_names[item.label] for item in source.items}


def contents(source: Source) -> set[bytes]:
    return {source.read(item) for item in source.items}


# --- one form --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "backslashes", "tidy"),
    [
        ("./a.png", False, "a.png"),
        ("././/b//a.png", False, "b/a.png"),
        ("/b/a.png", False, "b/a.png"),
        ("b\\a.png", True, "b/a.png"),
        ("b\\a.png", False, "b\\a.png"),
        (".\\b\\.a.png", True, "b/.a.png"),
    ],
)
def test_tidy_paths(path, backslashes, tidy):
    assert tidy_path(path, backslashes=backslashes) == tidy


def test_different_paths_have_different_names_that_any_file_can_hold():
    latin1 = os.fsdecode(LATIN1)
    paths = [NFC, NFD, latin1, "caf\\xe9", f"{NFD}.png", f"{NFC}.png", "plain.png", "\ud800.png", f"{NFC}~2.png"]
    named = names_of(paths)
    assert sorted(named.values()) == sorted(paths)
    assert len(named) == len(paths)
    assert all(is_utf8(name) and unicodedata.is_normalized("NFC", name) for name in named)
    assert {name: named[name] for name in ("plain.png", "caf\\xe9")} == {"plain.png": "plain.png", "caf\\xe9": latin1}
    assert readable(latin1) == "caf\\xe9"


@pytest.mark.parametrize("kind", KINDS)
def test_two_spellings_of_a_class_are_one_and_no_image_is_lost(kind, tmp_path):
    path = packed(kind, tmp_path, [f"{NFC}/1.png", f"{NFD}/2.png", f"{NFC}/3.png", f"{NFD}/3.png", "owl/1.png"])
    source = open_source(path)
    assert source.class_names == (NFC, "owl")
    assert set(listed(source)) == {f"{NFC}/1.png", f"{NFC}/2.png", f"{NFC}/3.png", f"{NFC}/3~2.png", "owl/1.png"}
    assert contents(source) == {png(number) for number in range(5)}


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_bytes_that_are_no_utf8_train_and_are_saved(kind, tmp_path):
    latin1 = os.fsdecode(LATIN1)
    names = [f"{folder}/{number}{latin1}.png" for folder in (latin1, "owl") for number in range(10)]
    path = packed(kind, tmp_path, names)
    result = maskdm.train(
        path,
        settings=[*TINY, "stages.0.steps=1", "stages.1.steps=1", "eval.samples=0", "data.image_size=4"],
        output_dir=tmp_path / "runs",
        quiet=True,
    )
    assert result.finished
    with safe_open(result.weights, framework="pt") as file:
        saved = json.loads(file.metadata()["maskdm"])
    assert saved["model"]["class_names"] == ["caf\\xe9", "owl"]
    records = (result.run / "manifest.jsonl").read_text(encoding="utf-8")
    assert records.count('"path": "caf\\\\xe9/') == 10


def test_names_of_a_json_and_a_csv_are_of_the_same_form(tmp_path):
    path = packed("folder", tmp_path, [f"{NFD}.png", "b/c.png"])
    (path / "dataset.json").write_text(f'{{"labels": [["{NFC}.png", 0], ["./b/c.png", 1]]}}', encoding="utf-8")
    source = open_source(path)
    assert listed(source) == {f"{NFC}.png": "0", "b/c.png": "1"}
    groups = tmp_path / "groups.csv"
    groups.write_text(f"path,group\n{NFD}.png,x\n./b/c.png,y\n", encoding="utf-8")
    assert group_names([item.name for item in source.items], str(groups)) == ["y", "x"]


# --- zips ------------------------------------------------------------------------------------------------------------


def windows_zip(path: Path, names: list[str], system: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            info = zipfile.ZipInfo(name.replace("\\", "?"))  # `ZipInfo` would change them itself on Windows
            info.filename, info.create_system = name, system
            archive.writestr(info, b"" if name.endswith("\\") else png(number))
    return path


@pytest.mark.parametrize("system", [0, 3], ids=["dos", "unix"])
def test_zips_of_windows(system, tmp_path):
    path = windows_zip(
        tmp_path / "set.zip", ["set\\", "set\\cat\\1.png", "set\\dog\\2.png", "set\\.hidden\\3.png"], system
    )
    assert listed(open_source(path)) == {"set/cat/1.png": "cat", "set/dog/2.png": "dog"}


def test_a_backslash_in_a_zip_of_unix_is_part_of_a_name(tmp_path):
    path = windows_zip(tmp_path / "set.zip", ["cat/1\\2.png", "dog/1.png"], 3)
    assert listed(open_source(path)) == {"cat/1\\\\2.png": "cat", "dog/1.png": "dog"}


@pytest.mark.parametrize(
    ("stored", "system", "name"),
    [
        (NFC.encode(), 3, NFC),  # UTF-8 that does not say so, as of macOS
        (NFD.encode(), 0, NFC),
        (LATIN1, 3, "caf\\xe9"),  # as in a folder or a tar
        (NFC.encode("cp437"), 0, NFC),  # as zips of DOS are
    ],
)
def test_names_of_a_zip_that_do_not_say_their_encoding(stored, system, name, tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, folder in enumerate(("x" * len(stored), "owl")):
            info = zipfile.ZipInfo(f"{folder}/1.png")
            info.create_system = system
            archive.writestr(info, png(number))
    path.write_bytes(path.read_bytes().replace(b"x" * len(stored), stored))
    source = open_source(path)
    assert source.class_names == tuple(sorted((name, "owl")))
    assert contents(source) == {png(0), png(1)}


# --- what is no data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_litter_is_not_entered(kind, tmp_path):
    folders = ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", ".Trashes", "__MACOSX", "System Volume Information"]
    litter = [f"{folder}/{number}.png" for folder in folders for number in range(2)]
    files = [".DS_Store", "cat/Thumbs.db", "cat/._1.png", "desktop.ini"]
    source = open_source(packed(kind, tmp_path, ["cat/1.png", "dog/1.png", "dog/@eaDir/1.png", *litter, *files]))
    assert listed(source) == {"cat/1.png": "cat", "dog/1.png": "dog"}
    assert source.remarks == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_litter_that_cannot_be_listed(tmp_path):
    path = packed("folder", tmp_path, ["a.png", "lost+found/b.png"])
    (path / "lost+found").chmod(0)
    try:
        assert set(listed(open_source(path))) == {"a.png"}
    finally:
        (path / "lost+found").chmod(0o700)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_not_read_are_counted_by_suffix(kind, tmp_path):
    files = ["a.jfif", "b.JPE", "c.heic", "d.HEIC", "e/notes.txt", "LICENSE", ".hidden.txt"]
    source = open_source(packed(kind, tmp_path, files))
    assert set(listed(source)) == {"a.jfif", "b.JPE"}
    assert source.remarks == ("not images, and not read: 2 .heic, 1 .txt, 1 without suffix",)
    assert unread_files(f"1.s{number}" for number in range(10)).endswith("2 more suffixes")
    assert {*SUFFIXES, *LITTER} == {name.lower() for name in (*SUFFIXES, *LITTER)}


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_grid_is_no_image(kind, tmp_path):
    names = ["grid.png", "seed-000000.png", "seed-000001-0.png", "other/grid.png", "more/grid.png", "more/samples.json"]
    source = open_source(packed(kind, tmp_path, names))
    assert own_grids(names) == {"grid.png", "more/grid.png"}
    assert set(listed(source)) == {"seed-000000.png", "seed-000001-0.png", "other/grid.png"}
    assert any("grid of maskdm sample" in remark for remark in source.remarks)


@pytest.mark.parametrize("kind", KINDS)
def test_one_stray_image_does_not_cost_the_classes(kind, tmp_path):
    names = [f"{folder}/{number}.png" for folder in ("cat", "dog") for number in range(5)]
    source = open_source(packed(kind, tmp_path, [*names, "cover.png"]))
    assert set(listed(source)) == set(names)
    assert source.class_names == ("cat", "dog")
    assert source.left_out == (("cover.png", "in no class folder"),)
    console = Listener()
    load_images(source, cache_dir=tmp_path / "cache", console=console)
    assert console.said == ["warning: left out 1 image: 'cover.png' (in no class folder)"]


def test_a_stray_image_above_the_folder_that_all_others_share(tmp_path):
    names = [f"photos/{folder}/{number}.png" for folder in ("cat", "dog") for number in range(5)]
    assert open_source(packed("folder", tmp_path, [*names, "cover.png"])).class_names == ("cat", "dog")


def test_many_images_without_a_class_are_kept_and_it_is_said(tmp_path):
    source = open_source(packed("folder", tmp_path, ["cat/1.png", "dog/1.png", "1.png", "2.png"]))
    assert (len(source.items), source.class_names) == (4, ())
    assert source.remarks[0].startswith("no classes: 2 of 4 images lie in no class folder")


def test_a_published_test_set_is_no_class(tmp_path):
    names = [
        f"{split}/{kind}/{number}.png"
        for split in ("train", "test")
        for kind in ("cats", "dogs")
        for number in range(6)
    ]
    path = packed("folder", tmp_path, names)
    result = maskdm.train(
        path,
        settings=[*TINY, "stages.0.steps=1", "stages.1.steps=1", "data.heldout_by=^test/", "eval.samples=0"],
        output_dir=tmp_path / "runs",
        dry_run=True,
        quiet=True,
    )
    assert result.stages
    assert open_source(path).class_names == ("cats", "dogs")


def test_what_is_said_once(tmp_path):
    path = packed("folder", tmp_path, [*(f"{number}.png" for number in range(9)), "a.txt"])

    def said() -> list[str]:
        console = Listener()
        load_images(open_source(path), cache_dir=tmp_path / "cache", console=console)
        return console.said

    assert said() == [f"{path}: not images, and not read: 1 .txt"]
    assert said() == []
    (path / "b.txt").touch()
    assert said() == [f"{path}: not images, and not read: 2 .txt"]


# --- paths that users type -------------------------------------------------------------------------------------------


def test_a_path_that_is_not_utf8_is_refused_in_a_line(tmp_path, capsys):
    folder = packed("folder", tmp_path, ["a.png"]).rename(tmp_path / os.fsdecode(LATIN1))
    with refused("data.path", got=f"{tmp_path}/caf\\xe9", wanted="UTF-8", remedy="rename it"):
        resolve(overrides=[f"data.path={folder}"])
    assert main(["train", "--data", str(folder), "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 300
    places = {"train": ["--output-dir"], "sample": ["model", "--output"]}
    for command, words in places.items():  # safetensors would write there, and not read it again
        data = ["--data", str(tmp_path)] if command == "train" else []
        assert main([command, *data, *words, str(folder)]) == 2
        assert f"{words[-1]}: got '{tmp_path}/caf\\\\xe9', wanted a path in UTF-8" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(folder)
    assert resolved_path(str(tmp_path / "link")) == str(tmp_path / "link")
    with refused("data.path", "not UTF-8", got=f"{tmp_path}/caf\\xe9", remedy="rename it"):
        resolved_path(str(folder))


def test_the_home_directory_after_an_equals_sign(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = resolve(overrides=["data.path=~/x", "data.salt=~/salt", "data.group_by=~/g.csv", "stages.0.init_from=~/w"])
    found = [config.data.path, config.data.salt, config.data.group_by, config.stages[0].init_from]
    assert found == [f"{tmp_path}/{name}" for name in ("x", "salt", "g.csv", "w")]
    for words in (["eval", "--reference=~/x", "no"], ["train", "--data=~/x"], ["info", "~/x"]):
        main(words)
    assert main(["sample", "model", "--output=~/file.png"]) == 2
    assert f"{tmp_path}/file.png" in capsys.readouterr().err


def test_printing_what_the_terminal_cannot():
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(Path(maskdm.__file__).parents[1])}
    command = [sys.executable, "-m", "maskdm", "sample", "model", "--seeds", "bébé\u3042"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "b\\xe9b\\xe9\\u3042" in line


def test_text_is_read_and_written_in_utf8_whatever_the_locale():
    """Ruff's rule cannot see the type of most objects."""
    package = Path(maskdm.__file__).parent
    texts = {file.relative_to(package): file.read_text(encoding="utf-8") for file in package.rglob("*.py")}
    calls = [
        (f"{file}:{node.lineno}", node)
        for file, text in texts.items()
        if ".open(" in text or "_text(" in text
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert [place for place, node in calls if _is_text_without_encoding(node)] == []


def _is_text_without_encoding(node: ast.Call) -> bool:
    name = node.func.attr
    if any(keyword.arg == "encoding" for keyword in node.keywords):
        return False
    given = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    if name == "open":
        return (bool(given) and given[0] in ("r", "w", "a", "x")) or (not node.args and not node.keywords)
    return {"read_text": 0, "write_text": 1}.get(name, 9) == len(node.args)
