"""A run on disk: its number, its lock, its log, and how it is found again by its settings."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from maskdm.config.resolve import resolve
from maskdm.config.schema import Config
from maskdm.errors import InputError
from maskdm.runtime.distributed import Runtime
from maskdm.training.runs import (
    Run,
    _differences,
    _flat,
    check_writable,
    find_resumable,
    find_unfinished,
    finished,
    list_runs,
    open_run,
    read_config,
    read_metrics,
    write_env,
)

CONFIG = resolve()
OTHER = resolve(overrides=["stages.0.lr=1e-3"])


def make(output_dir: Path, config: Config = CONFIG, *, name: str = "a", ended: bool = False) -> Path:
    """A run that nobody holds."""
    run = open_run(output_dir, name, config, "never")
    run.record("stage", step=0)
    if ended:
        run.record("end", step=9)
    run.release()
    return run.path


def names(output_dir: Path) -> list[str]:
    return sorted(path.name for path in output_dir.iterdir())


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """An `InputError` on one line that holds all of `words`."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


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
    assert not finished(run.path)
    run.release()


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path):
    with refused("--name"):  # the remedy is another name, not another folder
        open_run(tmp_path / "runs", "x" * 300, CONFIG, None)
    assert names(tmp_path) == []


def test_a_folder_in_which_nothing_can_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    for below in (tmp_path / "file", tmp_path / "file" / "runs" / "mine"):
        with refused("--output-dir", "file is a file"):
            check_writable(below)
    check_writable(tmp_path / "not" / "yet" / "there")
    assert names(tmp_path) == ["file"]


# --- finding ---------------------------------------------------------------------------------------------------------


def test_the_same_settings_find_their_unfinished_run(tmp_path):
    first = make(tmp_path)
    make(tmp_path, OTHER)
    assert find_unfinished(tmp_path, CONFIG) == first
    run = open_run(tmp_path, "b", CONFIG, None)
    assert run.resumed
    assert run.path == first
    run.release()
    assert names(tmp_path) == ["00000-a", "00001-a"]


def test_other_settings_begin_a_run(tmp_path):
    make(tmp_path)
    assert find_unfinished(tmp_path, OTHER) is None
    assert find_unfinished(tmp_path / "elsewhere", CONFIG) is None
    run = open_run(tmp_path, "b", OTHER, None)
    assert not run.resumed
    assert run.path.name == "00001-b"
    run.release()


def test_of_several_runs_of_the_same_settings_the_newest_counts(tmp_path):
    make(tmp_path)
    newest = make(tmp_path)
    assert find_unfinished(tmp_path, CONFIG) == newest
    make(tmp_path, ended=True)
    assert find_unfinished(tmp_path, CONFIG) is None  # it was done again, and done


def test_never_begins_anew(tmp_path):
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
    assert find_unfinished(tmp_path, CONFIG) == mine


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
    with refused("--resume latest", "no run", str(tmp_path)):
        find_resumable(tmp_path, "latest")
    with refused("--resume", "missing", "no run"):
        find_resumable(tmp_path, str(tmp_path / "missing"))
    with refused("--resume", "no run"):
        find_resumable(tmp_path, str(tmp_path))
    assert names(tmp_path) == []


def test_resuming_with_other_settings_names_them(tmp_path):
    path = make(tmp_path)
    with refused("other settings", "stages.0.lr 0.0002 -> 0.001", "init_from"):
        open_run(tmp_path, "a", OTHER, str(path))


def test_a_finished_run_is_not_resumed(tmp_path):
    path = make(tmp_path, ended=True)
    with refused("finished", f"stages.0.init_from={path}"):
        open_run(tmp_path, "a", CONFIG, "latest")


def test_finished_is_what_ended_last(tmp_path):
    path = make(tmp_path)
    assert not finished(path)
    run = Run(path, resumed=True)
    run.record("stopped", step=3, reason="interrupted")
    assert not finished(path)
    run.record("end", step=9)
    assert finished(path)


# --- differences -----------------------------------------------------------------------------------------------------


def test_flat():
    tree = {"a": {"b": 1, "c": [2, {"d": None}]}, "e": "x"}
    assert _flat(tree) == {"a.b": 1, "a.c.0": 2, "a.c.1.d": None, "e": "x"}
    assert _flat({"a": [], "b": {}}) == {}


def test_equal_settings_do_not_differ():
    assert _differences(CONFIG, resolve()) == []
    assert _differences(resolve(recipe="digits"), resolve(recipe="digits")) == []


@pytest.mark.parametrize(
    ("word", "difference"),
    [
        ("model.width=64", "model.width None -> 64"),
        ("model.options.layers=2", "model.options.layers None -> 2"),
        ("process.shift=3", "process.shift 1.0 -> 3.0"),
        ("stages.1.clip=null", "stages.1.clip 1.0 -> None"),
        ("stages.0.mask.ratio=0.5", "stages.0.mask.ratio auto -> 0.5"),
        ("stages.0.betas=[0.9, 0.99]", "stages.0.betas.0 0.99 -> 0.9"),
        ("log.track=[wandb]", "log.track.0 None -> wandb"),
        ("data.path=photos", "data.path  -> photos"),
    ],
)
def test_a_difference_names_its_key_and_both_values(word, difference):
    assert _differences(CONFIG, resolve(overrides=[word])) == [difference]


def test_a_stage_more_is_a_difference():
    first = "{name: pretrain, steps: 200000, mask: {kind: auto}}"
    shorter = resolve(overrides=[f"stages=[{first}]"])
    keys = {difference.split()[0] for difference in _differences(CONFIG, shorter)}
    assert keys
    assert all(key.startswith("stages.1.") for key in keys)


def test_differences_come_in_the_order_of_the_settings():
    words = ["data.flip=0.5", "model.width=64", "model.depth=3", "process.timesteps=10", "stages.0.lr=1"]
    words += ["ema.decay=0.9", "train.seed=1", "train.keep=1", "eval.samples=1", "log.every=1"]
    found = [difference.split()[0] for difference in _differences(CONFIG, resolve(overrides=words))]
    assert found == [word.partition("=")[0] for word in words]


# --- the lock --------------------------------------------------------------------------------------------------------


def test_a_run_is_held_by_one_process_at_a_time(tmp_path):
    holder = open_run(tmp_path, "a", CONFIG, None)
    with refused("being trained by another process", "--resume never", str(holder.path)):
        open_run(tmp_path, "a", CONFIG, None)
    with refused("being trained by another process"):
        open_run(tmp_path, "a", CONFIG, "latest")
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
    with refused("another process"):
        open_run(tmp_path, "a", CONFIG, None)
    gc.collect()  # a file that is still open complains when it goes
    assert not left_open
    holder.release()


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
        with refused("being trained by another process"):
            open_run(tmp_path, "a", CONFIG, None)
        other.kill()
    run = open_run(tmp_path, "a", CONFIG, None)
    assert run.resumed
    run.release()


# --- the log ---------------------------------------------------------------------------------------------------------


def test_rewind_forgets_what_came_later(tmp_path):
    run = Run(tmp_path, resumed=False)
    assert run.recorded() == 0
    run.record("stage", step=0, mask="block 4")
    run.record("train", step=10, loss=0.5)
    kept, length = run.metrics.read_bytes(), run.recorded()
    run.record("train", step=20, loss=0.4)
    run.record("stopped", step=20, reason="interrupted")
    with run.metrics.open("a") as file:
        file.write('{"event": "train", "st')
    assert [event["step"] for event in read_metrics(tmp_path)] == [0, 10, 20, 20]
    run.rewind(length)
    assert run.metrics.read_bytes() == kept
    run.record("train", step=20, loss=0.4)
    assert read_metrics(tmp_path) == [
        {"event": "stage", "step": 0, "mask": "block 4"},
        {"event": "train", "step": 10, "loss": 0.5},
        {"event": "train", "step": 20, "loss": 0.4},
    ]
    assert names(tmp_path) == ["metrics.jsonl"]


def test_rewind_to_the_beginning_and_of_nothing(tmp_path):
    run = Run(tmp_path, resumed=False)
    run.rewind(0)
    run.rewind(100)
    assert names(tmp_path) == []
    run.record("stage", step=0)
    run.rewind(10_000)  # a log that was cut short by hand is not made longer
    assert len(read_metrics(tmp_path)) == 1
    run.rewind(0)
    assert read_metrics(tmp_path) == []
    assert not finished(tmp_path)


@pytest.mark.parametrize("junk", [b"\n", b"\0\0\0\n", b"\xff\xfe\n", b'{"event": "en'])
def test_a_damaged_log_does_not_hide_the_rest(tmp_path, junk):
    run = Run(tmp_path, resumed=False)
    run.record("stage", step=0)
    with run.metrics.open("ab") as file:
        file.write(junk)
    assert not finished(tmp_path)
    assert {"event": "stage", "step": 0} in read_metrics(tmp_path)


def test_an_event_is_one_line_of_json(tmp_path):
    run = Run(tmp_path, resumed=False)
    run.record("stopped", step=1, reason="ü\n\u2028")
    lines = run.metrics.read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == [{"event": "stopped", "step": 1, "reason": "ü\n\u2028"}]
    assert read_metrics(tmp_path) == [json.loads(lines[0])]


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
    write_env(run, Runtime(torch.device("cpu"), "bf16"))
    assert json.loads((tmp_path / "env.json").read_text()) == env
