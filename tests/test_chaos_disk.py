"""A disk that is full, from any moment on: one line, what was saved is intact, and with room the run goes on."""

from __future__ import annotations

import ctypes
import os
import traceback
from pathlib import Path

import pytest
from chaos import FORKS, Outcome, Sabotage, command, left_over, run_of, same, train_words, weights_of, write_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """Images, the run that nothing disturbed, and its number of moments."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_images(folder / "images")
    outcome = command(train_words(data, folder / "runs"), folder, Sabotage(folder, 0, "count", folder / "count"))
    assert outcome.check().code == 0, outcome.text
    return data, run_of(folder / "runs"), int((folder / "count").read_text())


def test_full_from_every_moment_on(whole, tmp_path):
    data, run, moments = whole
    for at in range(1, moments + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        outcome = command(train_words(data, folder / "runs"), folder, Sabotage(folder, at, "full")).check()
        if outcome.code == 0:  # from here on only the removal of old files is left
            assert "space" in outcome.text or same(weights_of(run), weights_of(run_of(folder / "runs")))
        else:
            assert "space" in outcome.error, outcome.text
        check_end(folder, data, run)
    print(f"full at {moments} moments")


def check_end(folder: Path, data: Path, whole: Path) -> None:
    """With room, the same command ends the run, whole and equal, and nothing is left over."""
    outcome = command(train_words(data, folder / "runs"), folder).check()
    assert outcome.code == 0, outcome.text
    assert same(weights_of(whole), weights_of(run_of(folder / "runs")))
    assert not left_over(folder)


def test_a_small_disk_of_every_size(whole, tmp_path):
    """A real one, whose writes fail in the middle: from no room at all to enough, in steps of a page or two."""
    data, run, _ = whole
    used = sum(path.stat().st_size for path in run.rglob("*") if path.is_file() and not path.is_symlink())
    codes = []
    for kib in range(8, 2 * used // 1024 + 400, max(8, used // 1024 // 40)):
        report = tmp_path / f"{kib}.txt"
        child = FORKS.Process(target=_on_a_small_disk, args=(kib, data, run, tmp_path / "disk", report))
        child.start()
        child.join(240)
        assert child.exitcode is not None, "it hangs"
        said = report.read_text(encoding="utf-8")
        if said.startswith("unable"):
            pytest.skip(said)
        assert child.exitcode == 0, (kib, said)
        codes.append(int(said))
    print("exit codes", codes)
    assert codes[0] != 0
    assert codes[-1] == 0


def _on_a_small_disk(kib: int, data: Path, whole: Path, place: Path, report: Path) -> None:
    """In a mount namespace of its own: train on a disk of `kib` KiB, then with room."""
    libc = ctypes.CDLL(None, use_errno=True)
    place.mkdir(exist_ok=True)
    new_user, new_mounts = 0x10000000, 0x20000
    if libc.unshare(new_mounts if os.geteuid() == 0 else new_user | new_mounts):
        report.write_text("unable to make a namespace", encoding="utf-8")
        return
    libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None)  # private from here on
    if libc.mount(b"none", os.fsencode(place), b"tmpfs", 0, f"size={kib}k".encode()):
        report.write_text("unable to mount a disk", encoding="utf-8")
        return
    try:
        outcome = _forked(train_words(data, place / "runs"), place, report.with_suffix(".log"))
        outcome.check()
        assert outcome.code == 0 or "space" in outcome.error, outcome.text
        libc.mount(b"none", os.fsencode(place), b"tmpfs", 0x20, b"size=64m")  # more room
        again = _forked(train_words(data, place / "runs"), place, report.with_suffix(".log"))
        assert again.check().code == 0, again.text
        assert same(weights_of(whole), weights_of(run_of(place / "runs"))), again.text
        assert not left_over(place)
    except BaseException:
        report.write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)
    report.write_text(str(outcome.code), encoding="utf-8")


def _forked(words: list[str], place: Path, log: Path) -> Outcome:
    """The command in a fork of this process, which sees the same disks."""
    from chaos import _child

    pid = os.fork()
    if pid == 0:
        try:
            _child(words, log, {"MASKDM_CACHE": str(place / "cache")}, None)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    return Outcome(os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace"), 0.0)
