"""What commands print: nothing that only a terminal understands where there is none, and nothing at all when quiet."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from maskdm.cli.main import main
from maskdm.data.decode import BadImage, Transform, decode
from maskdm.runtime import console
from maskdm.runtime.console import Console, ProgressLines, duration


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ProgressLines, "_clock", staticmethod(clock))
    return clock


# --- logs ------------------------------------------------------------------------------------------------------------


def test_progress_in_a_file_is_a_line_now_and_then(clock, capsys):
    with Console().bar("pretrain", 2_000_000) as bar:
        bar.set_postfix(loss="0.1234", refresh=False)
        for _ in range(100_000):
            clock.now += 1
            bar.update(16)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pretrain: 480 of 2,000,000 images, 16 a second, 34 h 43 min left, loss 0.1234"
    assert 100_000 / console.LONGEST_PAUSE < len(lines) < 2 * 100_000 / console.LONGEST_PAUSE
    assert all(line.startswith("pretrain: ") for line in lines)


def test_progress_that_is_quick_says_nothing_in_a_file(clock, capsys):
    with Console().bar("decoding", 100) as bar:
        clock.now += console.FIRST_LINE / 2
        bar.update(100)
    assert capsys.readouterr() == ("", "")


def test_a_bar_without_an_end_and_one_that_went_on(clock, capsys):
    with Console().bar("reading", None) as bar:
        clock.now += 40
        bar.update(10)
    with Console().bar("finetune", 100, initial=50) as bar:
        clock.now += 40
        bar.update(10)
    assert capsys.readouterr().err.splitlines() == [
        "reading: 10 images, 0.25 a second",
        "finetune: 60 of 100 images, 0.25 a second, 2.67 min left",
    ]


def test_a_bar_of_sampling_counts_images(monkeypatch):
    counted = []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, n):
            counted.append(n)

    monkeypatch.setattr(Console, "bar", lambda self, name, total: Bar())
    with Console().sampling_bar("sampling", 8, 25) as advance:
        for _ in range(2):
            for _ in range(25):
                advance(4)
    assert sum(counted) == 8
    assert max(counted) == 1  # it moves within a batch too
    counted.clear()
    with Console().sampling_bar("sampling", 3, 5, more=8) as advance:
        advance(8)
        for _ in range(5):
            advance(3)
    assert sum(counted) == 3


@pytest.mark.parametrize(
    ("seconds", "words"), [(4, "4 s"), (1800, "30 min"), (7199, "2 h 0 min"), (16 * 86400, "16.0 days")]
)
def test_a_time_in_words(seconds, words):
    assert duration(seconds) == words


def test_no_control_characters_in_logs(photos, tiny, tmp_path, capfdbinary):
    """Of everything that trains, samples and scores, on the two streams themselves."""
    words = [*tiny, "eval.scores=pixels", "eval.score_images=4", "eval.samples_every=8", "data.heldout=0.3"]
    assert main(["train", "--data", str(photos), "--output-dir", str(tmp_path / "runs"), *words]) == 0
    run = tmp_path / "runs" / "00000-photos"
    assert main(["sample", str(run), "--num", "3", "--steps", "2", "-o", str(tmp_path / "out")]) == 0
    assert main(["eval", str(run), "--num", "4", "--steps", "2"]) == 0
    out, err = capfdbinary.readouterr()
    assert b"held-out error" in err
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", out + err)


def test_what_libtiff_says_does_not_reach_the_log(capfd):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF", compression="tiff_lzw")
    damaged = bytearray(file.getvalue())
    damaged[100:140] = bytes(byte ^ 0xFF for byte in damaged[100:140])
    with pytest.raises(BadImage):
        decode(bytes(damaged), Transform(32, 32, 3))
    assert capfd.readouterr() == ("", "")


# --- quiet -----------------------------------------------------------------------------------------------------------


def test_quiet_leaves_results_and_errors(photos, tiny, tmp_path, capfd):
    def said(*words: object) -> tuple[str, str]:
        main([str(word) for word in words])
        out, err = capfd.readouterr()
        return out, err

    data = ["--data", photos, *tiny, "data.heldout=0.3"]
    assert said("train", *data, "--output-dir", tmp_path, "--quiet") == ("", "")
    run = tmp_path / "00000-photos"
    assert (run / "log.txt").read_text().count("held-out error") == 4
    assert said("sample", run, "--num", 2, "--steps", 2, "-o", tmp_path / "out", "-q") == ("", "")
    out, err = said("eval", run, "--num", 4, "--steps", 2, "-q")
    assert out
    assert not err
    out, err = said("info", run, "-q")
    assert out
    out, err = said("sample", run, "--steps", 0, "-q")
    assert (out, err.count("\n")) == ("", 1)
