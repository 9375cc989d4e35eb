"""Files that are whole or not there, whoever writes them and however the process ends."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maskdm import files
from maskdm.errors import InputError, StorageError
from maskdm.files import (
    alive,
    append_line,
    check_folder,
    digest,
    flush,
    make_folder,
    orphaned,
    publish,
    replacing,
    sweep,
    temporary_name,
    write_bytes,
    write_json,
    write_once,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    assert process.pid is not None
    return process.pid


# --- what is written -------------------------------------------------------------------------------------------------


def test_bytes_text_and_json(tmp_path):
    write_bytes(tmp_path / "a", b"\x00\xff")
    write_text(tmp_path / "b", "α\n\udcff")
    write_json(tmp_path / "c", {"key": [1, None]})
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == b"\xce\xb1\n\xff"
    assert json.loads((tmp_path / "c").read_text()) == {"key": [1, None]}
    assert (tmp_path / "c").read_bytes().endswith(b"}\n")
    assert names(tmp_path) == ["a", "b", "c"]


def test_lines_are_appended(tmp_path):
    append_line(tmp_path / "log", "one")
    append_line(tmp_path / "log", "α\udcff")
    assert (tmp_path / "log").read_bytes() == b"one\n\xce\xb1\xff\n"
    with pytest.raises(StorageError, match=r"cannot write .*log: No such file or directory"):
        append_line(tmp_path / "missing" / "log", "one")


def test_private_files_are_for_their_owner_alone_at_every_moment(tmp_path):
    path = tmp_path / "a"
    write_text(path, "open to all")
    with replacing(path, private=True) as temporary:
        assert mode(temporary) == 0o600
        temporary.write_text("secret")
        assert mode(temporary) == 0o600
    assert mode(path) == 0o600
    write_once(tmp_path / "b", b"secret", private=True)
    write_json(tmp_path / "c", [], private=True)
    assert mode(tmp_path / "b") == mode(tmp_path / "c") == 0o600


def test_without_private_the_mode_is_the_usual_one(tmp_path):
    (tmp_path / "usual").write_text("")
    write_text(tmp_path / "a", "")
    assert mode(tmp_path / "a") == mode(tmp_path / "usual")


def test_a_writer_that_makes_its_file_for_the_owner_alone_changes_no_mode(tmp_path):
    (tmp_path / "usual").write_text("")
    with replacing(tmp_path / "a") as temporary:
        handle = os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600)  # as tempfile does, and safetensors with it
        os.close(handle)
    assert mode(tmp_path / "a") == mode(tmp_path / "usual") != 0o600
    assert names(tmp_path) == ["a", "usual"]


def test_temporary_names_are_unique_hidden_and_keep_the_suffix(tmp_path):
    found = {temporary_name(tmp_path / "made.npz") for _ in range(100)}
    assert len(found) == 100
    assert all(path.parent == tmp_path and path.suffix == ".npz" and path.name.startswith(".") for path in found)


@pytest.mark.parametrize(("durable", "flushed"), [(True, ["half", "whole"]), (False, [])])
def test_content_is_on_disk_before_it_takes_its_place(durable, flushed, tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("half")
    seen: list[str] = []

    def flush(temporary: Path) -> None:
        seen.extend([path.read_text(), temporary.read_text(encoding="utf-8")])

    monkeypatch.setattr(files, "flush", flush)
    with replacing(path, durable=durable) as temporary:
        temporary.write_text("whole")
    assert seen == flushed
    assert path.read_text() == "whole"


# --- whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "raised"),
    [(OSError(28, "No space left on device"), StorageError), (KeyboardInterrupt, None), (ZeroDivisionError, None)],
)
def test_what_breaks_off_leaves_the_old_file_and_no_other(fault, raised, tmp_path):
    write_text(tmp_path / "a", "old")

    def write() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise fault

    with pytest.raises(raised or fault) as caught:
        write()
    if raised:
        assert str(caught.value) == f"cannot write {tmp_path / 'a'}: No space left on device"
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_late_leaves_the_old_file(call, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    write_text(tmp_path / "a", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, broken)
        with pytest.raises(StorageError, match="Input/output error"):
            write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="No such file or directory"), replacing(tmp_path / "a"):
        pass
    with pytest.raises(StorageError, match=r"cannot write .*missing/a: No such file or directory"):
        write_text(tmp_path / "missing" / "a", "x")
    assert names(tmp_path) == []


def test_an_error_of_a_file_inside_keeps_its_own_words(tmp_path):
    with pytest.raises(StorageError, match=r"^of another file$"), replacing(tmp_path / "a"):
        raise StorageError("of another file")


KILLED = """
import sys, time
from pathlib import Path
from maskdm.files import replacing

with replacing(Path(sys.argv[1]), private=True) as temporary:
    temporary.write_text("half")
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_the_old_file_and_what_sweep_removes(tmp_path):
    write_text(tmp_path / "a.json", "old")
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "a.json")], stdout=subprocess.PIPE)
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        sweep(tmp_path)  # it is at work
        assert len(names(tmp_path)) == 2
        writer.send_signal(signal.SIGKILL)
    assert (tmp_path / "a.json").read_text() == "old"
    (left,) = set(names(tmp_path)) - {"a.json"}
    assert mode(tmp_path / left) == 0o600
    assert orphaned(tmp_path / left)
    sweep(tmp_path)
    assert names(tmp_path) == ["a.json"]


# --- several at once -------------------------------------------------------------------------------------------------


def write_many(path: str, letter: str, barrier) -> None:
    barrier.wait()
    for _ in range(50):
        write_text(Path(path), letter * 100_000)


def test_two_processes_that_write_one_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    path = tmp_path / "a"
    write_text(path, "a" * 100_000)
    writers = [context.Process(target=write_many, args=(str(path), letter, barrier)) for letter in "bc"]
    for writer in writers:
        writer.start()
    barrier.wait()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_text())
        sweep(tmp_path)  # takes nothing from those at work
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    seen.add(path.read_text())
    assert seen <= {letter * 100_000 for letter in "abc"}
    assert names(tmp_path) == ["a"]


def test_of_those_who_write_once_the_first_wins(tmp_path):
    start = threading.Barrier(8)

    def write(number: int) -> bytes:
        start.wait()
        write_once(tmp_path / "a", bytes([number]) * 1000)
        return (tmp_path / "a").read_bytes()

    with ThreadPoolExecutor(8) as pool:
        seen = set(pool.map(write, range(8)))
    assert len(seen) == 1
    write_once(tmp_path / "a", b"too late")
    assert {(tmp_path / "a").read_bytes()} == seen
    assert names(tmp_path) == ["a"]


def test_write_once_says_where_it_cannot(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*missing/a: No such file or directory"):
        write_once(tmp_path / "missing" / "a", b"")


# --- leftovers -------------------------------------------------------------------------------------------------------


def test_sweep_removes_what_the_dead_of_this_machine_left(tmp_path, dead):
    machine = files._MACHINE
    gone = [f".a.tmp-{machine}-{dead}-0123abcd", f".made.npz.tmp-{machine}-{dead}-0123abcd.npz"]
    stay = [
        temporary_name(tmp_path / "a").name,  # ours
        f".a.tmp-{'0' * 8}-{dead}-0123abcd",  # of another machine that shares the disk
        f"a.tmp-{machine}-{dead}-0123abcd",  # not hidden
        f".a.tmp-{machine}-{dead}-0123abcd.tar.gz",
        f".a.tmp-{machine}-{dead}",
        ".a.tmp-notes",
        "a",
    ]
    for name in gone + stay:
        (tmp_path / name).write_text("x")
    folder = f".b.tmp-{machine}-{dead}-0123abcd"
    (tmp_path / folder).mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == sorted([*stay, folder])
    sweep(tmp_path / "nowhere")  # nothing to do


def test_sweep_removes_what_another_machine_left_a_day_ago(tmp_path, monkeypatch):
    left = tmp_path / f".a.tmp-{'0' * 8}-1-0123abcd"
    left.write_text("x")
    (tmp_path / ".a.tmp-notes").write_text("x")
    sweep(tmp_path)
    assert left.exists()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 60 * 60)
    sweep(tmp_path)
    assert names(tmp_path) == [".a.tmp-notes"]


def test_who_is_alive(dead, monkeypatch):
    assert alive(os.getpid())
    assert not alive(dead)
    assert alive(1)  # perhaps another's: asking after it is forbidden
    assert alive(2**70)  # no number of a process: nothing is said
    monkeypatch.setattr(os, "name", "nt")
    assert alive(dead)


# --- a second name ---------------------------------------------------------------------------------------------------


def test_publishing_links_and_replaces(tmp_path):
    write_text(tmp_path / "source", "new")
    write_text(tmp_path / "target", "old")
    publish(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").samefile(tmp_path / "source")
    publish(tmp_path / "source", tmp_path / "target")  # again, onto itself
    assert names(tmp_path) == ["source", "target"]
    write_text(tmp_path / "source", "newer")
    assert (tmp_path / "target").read_text() == "new"  # a replaced file lives on under its other name


def test_publishing_copies_where_there_are_no_links(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", none)
    write_text(tmp_path / "source", "new")
    publish(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "new"
    assert not (tmp_path / "target").samefile(tmp_path / "source")
    assert names(tmp_path) == ["source", "target"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.ENOSYS])
def test_writing_once_without_links_the_first_wins_too(number, tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "hardlink_to", none)
    for content in (b"first", b"second"):
        write_once(tmp_path / "once", content, private=True)
    assert (tmp_path / "once").read_bytes() == b"first"
    assert mode(tmp_path / "once") == 0o600
    assert names(tmp_path) == ["once"]


def test_writing_once_on_a_full_disk_is_an_error(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    with pytest.raises(StorageError, match=r"cannot write .*once: No space left on device"):
        write_once(tmp_path / "once", b"")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_that_flushes_nothing_is_written_to(number, tmp_path, monkeypatch):
    def none(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", none)
    write_text(tmp_path / "a", "whole")
    flush(tmp_path)
    assert (tmp_path / "a").read_text() == "whole"


def test_the_digest_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("links", [True, False])
def test_a_publication_that_fails_leaves_the_old_file(links, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", broken)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", broken)
    write_text(tmp_path / "target", "old")
    with pytest.raises(StorageError, match=r"cannot write .*target: No space left on device"):
        publish(tmp_path / "missing", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "old"
    assert names(tmp_path) == ["target"]


# --- folders ---------------------------------------------------------------------------------------------------------


def test_folders_are_made_or_refused(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("x")
    for below in (tmp_path / "file", tmp_path / "file" / "c"):
        with pytest.raises(InputError) as caught:
            make_folder(below, "place")
        assert caught.value.name == "place"
        assert str(below) in caught.value.problem


def test_folders_are_checked_and_none_is_made(tmp_path):
    check_folder(tmp_path, "place")
    check_folder(tmp_path / "a" / "b", "place")
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("x")
    for below in (tmp_path / "file", tmp_path / "file" / "c"):
        with pytest.raises(InputError) as caught:
            check_folder(below, "place")
        assert caught.value.name == "place"
        assert caught.value.problem == f"cannot make {below}, since {tmp_path / 'file'} is a file"
        assert caught.value.remedy == "choose a folder"


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError) as caught:
        check_folder(tmp_path / "a", "place")
    assert caught.value.problem == f"cannot make {tmp_path / 'a'}, since {tmp_path} cannot be written to"
