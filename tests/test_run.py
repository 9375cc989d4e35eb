"""A run on disk, the writing side: its number, its lock, its log, and how it is found again by its settings."""

from __future__ import annotations

import errno
import fcntl
import gc
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskdm import files
from maskdm.config.resolve import resolve
from maskdm.config.schema import Config
from maskdm.errors import InputError
from maskdm.files import digest
from maskdm.runtime.distributed import Runtime
from maskdm.training.events import EndEvent, StoppedEvent
from maskdm.training.find_run import _flat, differences, find_resumable, find_run, same_settings
from maskdm.training.progress import Progress, write_state_file
from maskdm.training.read_run import is_finished, list_runs, read_config, read_history
from maskdm.training.runs import Run, begin_run, resume_run, write_env

CONFIG = resolve()
OTHER = resolve(overrides=["stages.0.lr=1e-3"])
STOPPED = StoppedEvent(stage="pretrain", step=3, images=24, reason="interrupted")
END = EndEvent(stage="finetune", step=9, images=72, seconds=1.5)


def open_run(output_dir: Path, name: str, config: Config, resume: str | None) -> Run:
    """As training does."""
    found = find_run(output_dir, config, resume)
    return resume_run(found, config) if found else begin_run(output_dir, name, config)


def make(output_dir: Path, config: Config = CONFIG, *, name: str = "a", ended: bool = False) -> Path:
    """A run that nobody holds."""
    run = open_run(output_dir, name, config, "never")
    run.record(STOPPED)
    if ended:
        run.record(END)
    run.release()
    return run.path


def names(output_dir: Path) -> list[str]:
    return sorted(path.name for path in output_dir.iterdir())


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_runs_are_numbered_in_the_order_in_which_they_start(tmp_path):
    output_dir = tmp_path / "deep" / "runs"
    assert [make(output_dir, name=name).name for name in ("b", "a", "a")] == ["00000-b", "00001-a", "00002-a"]
    assert [path.name for path in list_runs(output_dir)] == ["00000-b", "00001-a", "00002-a"]


def test_a_number_is_not_given_twice(tmp_path):
    for number in range(3):
        make(tmp_path, name=f"r{number}")
    (tmp_path / "00001-r1" / "config.yaml").unlink()  # no run any more, but its number is taken
    (tmp_path / "00007-notes").mkdir()
    (tmp_path / "notes").mkdir()
    assert make(tmp_path).name == "00008-a"
    assert [path.name for path in list_runs(tmp_path)] == ["00000-r0", "00002-r2", "00008-a"]


def test_list_runs_knows_runs_from_other_things(tmp_path):
    make(tmp_path, name="z")
    (tmp_path / "00003-file").write_text("no folder")
    (tmp_path / "backup-00000-z").mkdir()
    (tmp_path / "backup-00000-z" / "config.yaml").write_text("")
    assert [path.name for path in list_runs(tmp_path)] == ["00000-z"]
    assert list_runs(tmp_path / "missing") == []
    assert list_runs(tmp_path / "00003-file") == []


def test_a_new_run_has_its_folders_and_its_settings(tmp_path):
    run = open_run(tmp_path, "a", OTHER, None)
    assert not run.resumed
    assert {path.name for path in (run.checkpoints, run.weights, run.samples) if path.is_dir()} == {
        "checkpoints",
        "weights",
        "samples",
    }
    assert read_config(run.path) == OTHER
    assert names(tmp_path) == ["00000-a"]
    assert not is_finished(run.path)
    run.release()


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path):
    with pytest.raises(InputError) as caught:  # the remedy is another name, not another folder
        open_run(tmp_path / "runs", "x" * 300, CONFIG, None)
    assert caught.value.name == "name"
    assert names(tmp_path) == []


def test_a_folder_in_which_nothing_can_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    for below in (tmp_path / "file", tmp_path / "file" / "runs" / "mine"):
        with pytest.raises(InputError) as caught:
            open_run(below, "a", CONFIG, None)
        assert caught.value.name == "output_dir"
    assert names(tmp_path) == ["file"]


# --- finding ---------------------------------------------------------------------------------------------------------


def test_the_same_settings_find_their_unfinished_run(tmp_path):
    first = make(tmp_path)
    make(tmp_path, OTHER)
    assert find_run(tmp_path, CONFIG, None) == first
    run = open_run(tmp_path, "b", CONFIG, None)
    assert run.resumed
    assert run.path == first
    run.release()
    assert names(tmp_path) == ["00000-a", "00001-a"]


def test_other_settings_begin_a_run(tmp_path):
    make(tmp_path)
    assert find_run(tmp_path, OTHER, None) is None
    assert find_run(tmp_path / "elsewhere", CONFIG, None) is None
    run = open_run(tmp_path, "b", OTHER, None)
    assert not run.resumed
    assert run.path.name == "00001-b"
    run.release()


def test_of_several_runs_of_the_same_settings_the_newest_counts(tmp_path):
    make(tmp_path)
    newest = make(tmp_path)
    assert find_run(tmp_path, CONFIG, None) == newest
    finished = make(tmp_path, ended=True)
    assert find_run(tmp_path, CONFIG, None) == finished  # it was done again, and done


def test_never_begins_another(tmp_path):
    make(tmp_path)
    run = open_run(tmp_path, "a", CONFIG, "never")
    assert not run.resumed
    run.release()
    assert names(tmp_path) == ["00000-a", "00001-a"]


@pytest.mark.parametrize("text", ["model: {gone: 3}", "model: {width: [", "\x07"])
def test_a_run_whose_settings_cannot_be_read_stands_in_nobodys_way(tmp_path, text):
    mine = make(tmp_path)
    damaged = make(tmp_path, name="of-another-version")
    (damaged / "config.yaml").write_text(text)
    assert find_run(tmp_path, CONFIG, None) == mine


def test_resume_latest_and_by_path(tmp_path):
    first, latest = make(tmp_path), make(tmp_path, OTHER)
    assert find_resumable(tmp_path, "latest") == latest
    assert find_resumable(tmp_path, str(first)) == first
    (first / "checkpoints" / "step-0000003").mkdir()
    assert find_resumable(tmp_path, str(first / "checkpoints" / "step-0000003")) == first
    run = open_run(tmp_path, "b", OTHER, "latest")
    assert run.resumed
    assert run.path == latest
    run.release()


def test_nothing_to_resume(tmp_path):
    for resume in ("latest", str(tmp_path / "missing"), str(tmp_path)):
        with pytest.raises(InputError) as caught:
            find_resumable(tmp_path, resume)
        assert (caught.value.name, caught.value.got) == ("resume", resume)
    assert names(tmp_path) == []


def test_resuming_with_other_settings_names_them(tmp_path):
    path = make(tmp_path)
    with pytest.raises(InputError) as caught:
        open_run(tmp_path, "a", OTHER, str(path))
    assert caught.value.name == "resume"
    assert "stages.0.lr 0.0002 -> 0.001" in caught.value.problem
    assert "init_from" in caught.value.remedy


def test_a_finished_run_is_found_too(tmp_path):
    path = make(tmp_path, ended=True)
    for resume in (None, "latest", str(path)):
        assert find_run(tmp_path, CONFIG, resume) == path


def test_finished_is_what_ended_last(tmp_path):
    path = make(tmp_path)
    assert not is_finished(path)
    run = Run(path, resumed=True)
    run.record(STOPPED)
    assert not is_finished(path)
    run.record(END)
    assert is_finished(path)


# --- settings that are damaged ---------------------------------------------------------------------------------------


def save(run: Path, config_sha256: str | None) -> None:
    """The state of a checkpoint, with nothing in it."""
    checkpoint = run / "checkpoints" / "step-0000003"
    checkpoint.mkdir()
    write_state_file(checkpoint, Progress(step=3), {}, config_sha256)


@pytest.mark.parametrize("text", ["model: {width: [", None])
def test_an_unfinished_run_that_lost_its_settings_is_not_passed_over_in_silence(text, tmp_path):
    path = make(tmp_path)
    save(path, None)
    (path / "config.yaml").unlink()
    if text:
        (path / "config.yaml").write_text(text)
    said: list[str] = []
    assert find_run(tmp_path, CONFIG, None, None, said.append) is None
    (line,) = said
    assert path.name in line
    assert "config.yaml is missing or damaged" in line
    with pytest.raises(InputError) as caught:
        find_run(tmp_path, CONFIG, "latest")
    assert "config.yaml" in str(caught.value)
    said.clear()
    Run(path, resumed=True).record(END)  # nobody waits for it
    assert find_run(tmp_path, CONFIG, None, None, said.append) is None
    assert not said


@pytest.mark.parametrize("edit", [lambda text: text.replace("0.0002", "0.0006"), None])
def test_settings_are_written_again_where_the_manifest_says_which_they_were(edit, tmp_path):
    path = make(tmp_path)
    settings = path / "config.yaml"
    whole = settings.read_text()
    save(path, digest(settings))
    head = {"config_sha256": hashlib.sha256(CONFIG.model_dump_json().encode()).hexdigest()}
    (path / "manifest.head.json").write_text(json.dumps(head))
    settings.unlink()
    if edit:
        settings.write_text(edit(whole))
        assert settings.read_text() != whole
        assert read_config(path) != CONFIG
    for resume in ("latest", str(path)):
        with pytest.raises(InputError, match=r"config\.yaml"):
            find_run(tmp_path, CONFIG, resume)
    assert find_run(tmp_path, CONFIG, None) == path
    said: list[str] = []
    resume_run(path, CONFIG, said.append).release()
    assert settings.read_text() == whole
    assert said == [f"{settings} was missing or damaged, and is written again"]
    assert find_run(tmp_path, CONFIG, "latest") == path


# --- differences -----------------------------------------------------------------------------------------------------


def test_flat():
    tree = {"a": {"b": 1, "c": [2, {"d": None}]}, "e": "x"}
    assert _flat(tree) == {"a.b": 1, "a.c.0": 2, "a.c.1.d": None, "e": "x"}
    assert _flat({"a": [], "b": {}}) == {}


def test_equal_settings_do_not_differ():
    assert differences(CONFIG, resolve()) == []
    assert differences(resolve(recipe="digits"), resolve(recipe="digits")) == []


@pytest.mark.parametrize(
    ("word", "difference"),
    [
        ("model.width=64", "model.width None -> 64"),
        ("process.shift=3", "process.shift 1.0 -> 3.0"),
        ("stages.1.clip=null", "stages.1.clip 1.0 -> None"),
        ("stages.0.mask.ratio=0.5", "stages.0.mask.ratio auto -> 0.5"),
        ("stages.0.betas=[0.9, 0.99]", "stages.0.betas.0 0.99 -> 0.9"),
        ("log.track=[wandb]", "log.track.0 None -> wandb"),
    ],
)
def test_a_difference_names_its_key_and_both_values(word, difference):
    assert differences(CONFIG, resolve(overrides=[word])) == [difference]


def test_where_images_lie_is_no_difference():
    assert same_settings(CONFIG, resolve(overrides=["data.path=photos", "data.cache_dir=/scratch"]))


def test_a_stage_more_is_a_difference():
    first = "{name: pretrain, steps: 200000, mask: {kind: auto}}"
    shorter = resolve(overrides=[f"stages=[{first}]"])
    keys = {difference.split()[0] for difference in differences(CONFIG, shorter)}
    assert keys
    assert all(key.startswith("stages.1.") for key in keys)


def test_differences_come_in_the_order_of_the_settings():
    words = ["data.flip=0.5", "model.width=64", "model.depth=3", "process.timesteps=10", "stages.0.lr=1"]
    words += ["ema.decay=0.9", "train.seed=1", "train.keep=1", "eval.samples=1", "log.every=1"]
    found = [difference.split()[0] for difference in differences(CONFIG, resolve(overrides=words))]
    assert found == [word.partition("=")[0] for word in words]


# --- the lock --------------------------------------------------------------------------------------------------------


def test_a_run_is_held_by_one_process_at_a_time(tmp_path):
    holder = open_run(tmp_path, "a", CONFIG, None)
    for resume in (None, "latest"):
        with pytest.raises(InputError) as caught:
            open_run(tmp_path, "a", CONFIG, resume)
        assert caught.value.name == str(holder.path)
        assert "--resume never" in caught.value.remedy
    assert names(tmp_path) == ["00000-a"]
    beside = open_run(tmp_path, "a", CONFIG, "never")
    assert beside.path.name == "00001-a"
    beside.release()
    holder.release()
    holder.release()  # twice is no fault
    again = open_run(tmp_path, "a", CONFIG, str(holder.path))
    assert again.resumed
    again.release()


def test_a_refused_lock_is_closed_at_once(tmp_path, monkeypatch):
    holder = open_run(tmp_path, "a", CONFIG, None)
    left_open: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda fault: left_open.append(fault.exc_value))
    with pytest.raises(InputError):
        open_run(tmp_path, "a", CONFIG, None)
    gc.collect()  # a file that is still open complains when it goes
    assert not left_open
    holder.release()


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL])
def test_a_disk_without_locks_is_said_once_and_trained_on(number, tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    said: list[str] = []
    begin_run(tmp_path, "a", CONFIG, said.append).release()
    (line,) = said
    assert os.strerror(number) in line
    said.clear()
    run = resume_run(tmp_path / "00000-a", CONFIG, said.append)
    assert run.resumed
    assert len(said) == 1
    run.release()


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_what_would_block_is_locked(number, tmp_path, monkeypatch):
    def held(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = make(tmp_path)
    monkeypatch.setattr(fcntl, "flock", held)
    with pytest.raises(InputError, match="another process"):
        resume_run(path, CONFIG)


def test_a_start_removes_what_killed_processes_left(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "alive", lambda pid: pid != 1)
    path = make(tmp_path)
    left = [path / name / f".a.tmp-{files._MACHINE}-1-0123abcd" for name in ("", "weights", "samples", "checkpoints")]
    at_work = path / "weights" / f".a.tmp-{files._MACHINE}-2-0123abcd"
    for file in (*left, at_work):
        file.write_text("x")
    resume_run(path, CONFIG).release()
    assert not [file for file in left if file.exists()]
    assert at_work.exists()
    unborn = tmp_path / f".run.tmp-{files._MACHINE}-1-0123abcd"
    (unborn / "weights").mkdir(parents=True)
    make(tmp_path)
    assert not unborn.exists()


def test_folders_that_were_removed_are_made_again(tmp_path):
    path = make(tmp_path)
    (path / "weights").rmdir()
    resume_run(path, CONFIG).release()
    assert (path / "weights").is_dir()


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


def test_a_killed_process_lets_go(tmp_path):
    path = make(tmp_path)
    command = [sys.executable, "-I", "-S", "-c", HOLD, str(path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process"):
            open_run(tmp_path, "a", CONFIG, None)
        other.kill()
    run = open_run(tmp_path, "a", CONFIG, None)
    assert run.resumed
    run.release()


# --- the log ---------------------------------------------------------------------------------------------------------


def stopped(step: int, reason: str = "interrupted") -> StoppedEvent:
    return StoppedEvent(stage="a", step=step, images=8 * step, reason=reason)


def test_rewind_forgets_what_came_later(tmp_path):
    run = Run(tmp_path, resumed=False)
    assert run.recorded() == 0
    run.record(stopped(0))
    run.record(stopped(10))
    kept, length = run.metrics.read_bytes(), run.recorded()
    run.record(stopped(20))
    with run.metrics.open("a") as file:
        file.write('{"event": "train", "st')
    assert read_history(tmp_path).last == stopped(20)
    run.rewind(length)
    assert run.metrics.read_bytes() == kept
    run.record(stopped(15))
    assert read_history(tmp_path).last == stopped(15)
    assert len(run.metrics.read_bytes().splitlines()) == 3
    assert names(tmp_path) == ["metrics.jsonl"]


def test_rewind_to_the_beginning_and_of_nothing(tmp_path):
    run = Run(tmp_path, resumed=False)
    run.rewind(0)
    run.rewind(100)
    assert names(tmp_path) == []
    run.record(stopped(1))
    run.rewind(10_000)  # a log that was cut short by hand is not made longer
    assert read_history(tmp_path).last == stopped(1)
    run.rewind(0)
    assert read_history(tmp_path).last is None
    assert not is_finished(tmp_path)


# --- the environment -------------------------------------------------------------------------------------------------


def test_env_says_with_what_a_run_was_made_and_keeps_its_first(tmp_path, monkeypatch):
    run = Run(tmp_path, resumed=False)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/maskdm", "train", "--data", "my photos"])
    write_env(run, Runtime(torch.device("cpu"), "no"))
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["command"] == "maskdm train --data 'my photos'"
    assert env["torch"] == torch.__version__
    assert env["device"] == "cpu"
    assert env["mixed_precision"] == "no"
    assert env["world_size"] == 1
    monkeypatch.setattr(sys, "argv", ["maskdm", "train", "--resume", "latest"])
    write_env(run, Runtime(torch.device("cpu"), "bf16"), "maskdm train --resume latest")
    assert json.loads((tmp_path / "env.json").read_text()) == env


def test_env_keeps_the_command_that_it_is_given(tmp_path):
    write_env(Run(tmp_path, resumed=False), Runtime(torch.device("cpu"), "no"), "maskdm train --recipe digits")
    assert json.loads((tmp_path / "env.json").read_text())["command"] == "maskdm train --recipe digits"
