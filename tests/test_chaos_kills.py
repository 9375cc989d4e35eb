"""Killed at any moment, a command that is given again ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import socket
from pathlib import Path

import chaos
import pytest
from chaos import Sabotage, command, finish, left_over, run_of, same, start, train_words, weights_of, write_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int, float]:
    """Images, the run that nothing disturbed, its number of moments, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_images(folder / "images")
    counter = Sabotage(folder, 0, "count", folder / "count")
    outcome = command(train_words(data, folder / "runs"), folder, counter).check()
    assert outcome.code == 0, outcome.text
    return data, run_of(folder / "runs"), int((folder / "count").read_text()), outcome.seconds


def check_end(folder: Path, data: Path, whole: Path) -> None:
    """The same command ends the run, whole and equal, with its page, and nothing left over."""
    outcome = command(train_words(data, folder / "runs"), folder).check()
    assert outcome.code == 0, outcome.text
    run = run_of(folder / "runs")
    assert same(weights_of(whole), weights_of(run))
    assert {path.name for path in whole.iterdir()} == {path.name for path in run.iterdir()}
    assert [p.name for p in sorted((whole / "samples").iterdir())] == [
        p.name for p in sorted((run / "samples").iterdir())
    ]
    assert not left_over(folder)


def test_killed_at_every_change_of_the_disk(whole, tmp_path):
    """Before every opening, renaming, linking, making and removing: while caching, between stages, in a checkpoint, in
    the report."""
    data, run, moments, _ = whole
    assert moments > 100
    for at in range(1, moments + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        outcome = command(train_words(data, folder / "runs"), folder, Sabotage(folder, at, "kill"))
        assert outcome.code == -signal.SIGKILL, (at, outcome.text)
        check_end(folder, data, run)
    print(f"killed {moments} times")


def test_killed_at_random_times_again_and_again(whole, tmp_path):
    """Two hundred kills, a run surviving several of them before it may end."""
    data, run, _, seconds = whole
    dice, kills, runs = random.Random(0), 0, 0
    while kills < 200:
        folder = tmp_path / str(runs)
        folder.mkdir()
        runs += 1
        for _ in range(5):
            log = folder / "command.log"
            process = start(train_words(data, folder / "runs"), log, folder / "cache")
            process.join(seconds * dice.uniform(0.05, 0.9))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
        check_end(folder, data, run)
    print(f"killed {kills} times in {runs} runs")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_rank_that_is_killed_ends_the_others_and_the_run_goes_on(parallel, tmp_path):
    """Ten times: whichever rank is killed, and whenever, the others end by themselves within half a minute."""
    data, dice = write_images(tmp_path / "images"), random.Random(parallel)
    words = train_words(data, tmp_path / "runs", f"train.parallel={parallel}", "stages.0.steps=400")
    for _ in range(10):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        logs = [tmp_path / f"rank-{rank}.log" for rank in range(2)]
        ranks = [
            start(words, logs[rank], tmp_path / "cache", None, RANK=str(rank), LOCAL_RANK=str(rank), **common)
            for rank in range(2)
        ]
        victim = dice.randrange(2)
        ranks[victim].join(dice.uniform(1, 6))
        if ranks[victim].exitcode is not None:
            break
        os.kill(ranks[victim].pid, signal.SIGKILL)
        other = finish(ranks[1 - victim], logs[1 - victim], timeout=30)
        ranks[victim].join()
        assert other.code is not None, other.text
        assert "Traceback" not in other.text, other.text
    outcome = command(words, tmp_path).check()
    assert outcome.code == 0, outcome.text
    assert not left_over(tmp_path)
    assert chaos.weights_of(run_of(tmp_path / "runs"))
