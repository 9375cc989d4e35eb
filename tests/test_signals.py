"""Signals: the first is heeded after a step, and none of them is ever a traceback."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY

from maskdm.cli.main import main
from maskdm.runtime.signals import interruptible
from maskdm.training import loop

TWICE = """
import os, signal, sys
from maskdm.runtime.signals import ending, interruptible, own_process

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a launcher of the tests has had ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
own_process()
first, second, place = sys.argv[1:]
def kill(name):
    os.kill(os.getpid(), getattr(signal, name))
try:
    if place == "inside":
        with interruptible() as signals:
            kill(first)
            kill(second)
        print([int(number) for number in signals])
    elif place == "behind":
        with interruptible():
            kill(first)
        kill(second)
    elif place == "unwinding":
        try:
            kill(first)
        finally:
            kill(second)
    elif place == "leaving":
        ending()
        kill(first)
except KeyboardInterrupt:
    print("once")
"""


def twice(first: str, second: str, place: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", TWICE, first, second, place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize("place", ["inside", "behind", "unwinding", "leaving"])
def test_a_second_ctrl_c_ends_the_process_at_once_wherever_it_is(place):
    code, out, err = twice("SIGINT", "SIGINT", place)
    assert (code, out) == (130, "")
    assert err == "maskdm: interrupted, and ended at once; what was saved before is intact"


@pytest.mark.parametrize(
    ("first", "second"), [("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGHUP"), ("SIGHUP", "SIGTERM"), ("SIGTERM", "SIGINT")]
)
def test_others_are_waited_for_however_often_they_come(first, second):
    numbers = [int(getattr(signal, name)) for name in (first, second)]
    assert twice(first, second, "inside") == (0, str(numbers), "")


def test_where_the_library_is_called_the_process_is_not_ended():
    def interrupt_twice() -> None:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_launcher_sends_ctrl_c_twice(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with interruptible() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signals == [signal.SIGINT, signal.SIGINT]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_a_closed_terminal_saves_as_a_scheduler_does(number, code, digits_npz, tmp_path, monkeypatch, capsys):
    step, before = loop.training_step, signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP, and so do its runs
    monkeypatch.setattr(loop, "training_step", lambda *a: (os.kill(os.getpid(), number), step(*a))[1])
    try:
        assert main(["train", "--data", str(digits_npz), "--output-dir", str(tmp_path), *TINY]) == code
    finally:
        signal.signal(number, before)
    assert "interrupted: saved at step 1; " in capsys.readouterr().err
    assert (tmp_path / "00000-digits" / "checkpoints" / "step-0000001").is_dir()


def test_a_hang_up_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with interruptible() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals == []
    finally:
        signal.signal(signal.SIGHUP, before)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if list(path.parent.glob(path.name)):
            return
        assert process.poll() is None
        time.sleep(0.05)
    pytest.fail(f"{path} was not written")


LONG = [word for word in TINY if not word.startswith(("stages.0.steps", "log.every"))]
LONG += ["stages.0.steps=1000000", "train.save_every=20"]


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.002, 0.01, 0.02])
def test_a_command_that_is_interrupted_twice_is_two_lines_at_most(pause, digits_npz, tmp_path):
    words = ["train", "--data", str(digits_npz), "--output-dir", str(tmp_path), *LONG]
    process = subprocess.Popen([sys.executable, "-m", "maskdm", *words], stderr=subprocess.PIPE)
    with process:
        wait_for(tmp_path / "00000-digits" / "checkpoints" / "step-*", process)
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "Exception" not in said


@pytest.mark.slow
def test_a_terminal_that_is_closed_loses_no_step(digits_npz, tmp_path):
    words = ["train", "--data", str(digits_npz), "--output-dir", str(tmp_path), *LONG, "train.save_every=100000"]
    own, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "maskdm", *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    wait_for(tmp_path / "00000-digits" / "metrics.jsonl", process)
    time.sleep(1)
    os.close(own)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 129
    run = tmp_path / "00000-digits"
    assert len(list((run / "checkpoints").glob("step-*"))) == 1
    assert '"stopped"' in (run / "metrics.jsonl").read_text()
