"""Every file of a run and of the cache, cut, flipped and gone: what is wrong is said, or nothing has changed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from chaos import command, damages, run_of, same, train_words, weights_of, write_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TEXTS = {"metrics.jsonl", "log.txt", "env.json", "report.html"}
"""Nothing is computed from them: they are shown to people, and a letter changed in them is not noticed."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with images, their cache, and a run which stopped in its second stage; and what it would have become."""
    folder = tmp_path_factory.mktemp("stopped")
    data = write_images(folder / "images")
    for name in ("whole", "half"):
        (folder / name).mkdir()
        assert command(train_words(data, folder / name / "runs"), folder / name).check().code == 0
    run = run_of(folder / "half" / "runs")
    *_, last = sorted((run / "checkpoints").glob("step-*"))
    shutil.rmtree(last)  # as if it had been killed before
    for path in ((run / "checkpoints" / "latest"), *(run / "weights").glob("*")):
        if not path.name.startswith("pretrain"):
            path.unlink()
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if '"step": 9' in line or '"step":9' in line)
    (run / "metrics.jsonl").write_text("".join(lines[:cut]), encoding="utf-8")
    return folder, run_of(folder / "whole" / "runs")


def files_of(folder: Path) -> list[Path]:
    """All files of the run and of the cache, by their paths in `folder`."""
    return sorted(
        path.relative_to(folder)
        for place in ("runs", "cache")
        for path in (folder / place).rglob("*")
        if path.is_file() and not path.is_symlink()
    )


def test_every_file_cut_flipped_and_gone(stopped, tmp_path):
    folder, whole = stopped
    data, source = folder / "images", folder / "half"
    wanted, dice, silent, cases = weights_of(whole), random.Random(0), [], 0
    for name in files_of(source):
        content = (source / name).read_bytes()
        cases_here: dict[str, bytes | None] = {**damages(content, dice), "gone": None}
        for what, damaged in cases_here.items():
            place = tmp_path / str(cases)
            shutil.copytree(source, place, symlinks=True)
            runs = place / "runs"
            if damaged is None:
                (place / name).unlink()
            else:
                (place / name).write_bytes(damaged)
            outcome = command(train_words(data, runs), place).check()
            if outcome.code == 0:
                ends = [run for run in runs.iterdir() if (run / "weights" / "ema.safetensors").is_file()]
                right = any(same(wanted, weights_of(run)) for run in ends)
                said = len(ends) > 1 or ("maskdm" in outcome.text.casefold() and "damaged" in outcome.text)
                if not right and not said and name.name not in TEXTS:
                    silent.append((str(name), what, outcome.text))
            cases += 1
            shutil.rmtree(place)
    print(f"{cases} damaged files")
    assert not silent, silent
