"""What the chaos tests share: commands in processes of their own, killed or starved of disk at chosen moments."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["maskdm.cli.main", "maskdm.commands.train", "maskdm.commands.sample"])
"""Processes that start with everything imported, so that a thousand of them take minutes."""

TINY = (
    "model.patch_size=2",
    "model.width=16",
    "model.depth=3",
    "model.heads=2",
    "stages.0.steps=6",
    "stages.0.batch_size=8",
    "stages.0.warmup_steps=0",
    "stages.1.steps=5",
    "stages.1.batch_size=8",
    "stages.1.warmup_steps=0",
    "train.save_every=2",
    "train.mixed_precision=no",
    "eval.samples=4",
    "eval.sample_steps=2",
    "eval.heldout_images=4",
    "data.salt=public",
    "log.every=1",
)
"""Two stages of a moment, with a checkpoint at every other step."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: its exit code; minus the signal that killed it; None where it was still running and was killed.
        text: all that it said.
        seconds: how long it took.
    """

    code: int | None
    text: str
    seconds: float

    @property
    def error(self) -> str:
        """The line in which it says what is wrong, or nothing."""
        return next((line for line in self.text.splitlines() if line.startswith("maskdm: ")), "")

    def check(self) -> Outcome:
        """It went well, or it failed as a command may: in one line, without a traceback, within its time."""
        assert self.code is not None, f"it hangs\n{self.text}"
        assert "Traceback" not in self.text, self.text
        assert self.code in (0, 1, 2, 130, 143), (self.code, self.text)
        assert (self.code == 0) == (not self.error), (self.code, self.text)
        return self


class Sabotage:
    """An audit hook of Python that strikes when a process changes the disk below a folder for the n-th time.

    Opening a file to write, renaming, linking, making and removing are moments; what is written between two of them
    lies between two moments.
    """

    CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
    NEEDS_ROOM = ("open", "os.mkdir", "os.link", "os.symlink")

    def __init__(self, folder: Path, at: int, how: str, record: Path | None = None) -> None:
        self.folder, self.at, self.how, self.record, self.count = str(folder), at, how, record, 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not (event in self.CHANGES or (event == "open" and self._writes(arguments))):
            return
        path = arguments[0]
        path = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        if path.startswith("/") and not path.startswith(self.folder):
            return
        if self.record is not None and path == str(self.record):
            return
        self.count += 1
        if self.how == "count" and self.record is not None:
            self.record.write_text(str(self.count))
        if self.how == "kill" and self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "full" and self.count >= self.at and event in self.NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    @staticmethod
    def _writes(arguments: tuple[object, ...]) -> bool:
        flags = arguments[2]
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _child(words: Sequence[str], log: Path, environment: Mapping[str, str], sabotage: Sabotage | None) -> None:
    os.environ.update(environment)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    from maskdm.cli.main import main

    if sabotage is not None:
        sys.addaudithook(sabotage)
    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(words: Sequence[str], log: Path, cache: Path, sabotage: Sabotage | None = None, **more: str) -> BaseProcess:
    """The command in a process of its own, which writes to `log` what it says."""
    process = FORKS.Process(target=_child, args=(list(words), log, {"MASKDM_CACHE": str(cache), **more}, sabotage))
    process.start()
    return process


def finish(process: BaseProcess, log: Path, timeout: float | None = 120) -> Outcome:
    """Waits for a command, and kills it when its time is over."""
    began = time.monotonic()
    process.join(timeout)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return Outcome(code, log.read_text(encoding="utf-8", errors="replace"), time.monotonic() - began)


def command(words: Sequence[str], folder: Path, sabotage: Sabotage | None = None, timeout: float = 120) -> Outcome:
    """Runs a command to its end, with `folder`/cache as its cache."""
    log = folder / "command.log"
    return finish(start(words, log, folder / "cache", sabotage), log, timeout)


def write_images(folder: Path, count: int = 24) -> Path:
    """Images of 8 x 8 pixels in the classes cat and dog."""
    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{i:03}.png")
    return folder


def train_words(data: Path, output_dir: Path, *more: str) -> list[str]:
    """A command that trains for a moment."""
    return ["train", "--data", str(data), "--output-dir", str(output_dir), "--name", "t", *TINY, *more]


def run_of(output_dir: Path) -> Path:
    """The one run in a folder."""
    (run,) = (path for path in output_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    return run


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """All that was learned."""
    return {
        f"{which}/{name}": tensor
        for which in ("ema", "raw")
        for name, tensor in load_file(run / "weights" / f"{which}.safetensors").items()
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def left_over(folder: Path) -> list[Path]:
    """What unfinished writing left behind."""
    return [path for path in folder.rglob(".*") if ".tmp-" in path.name]


def damages(content: bytes, dice: random.Random, flips: int = 3) -> dict[str, bytes]:
    """A file cut in several ways, and with single bits flipped."""
    found = {"empty": b"", "half": content[: len(content) // 2], "last byte gone": content[:-1]}
    for i in range(flips if content else 0):
        at, bit = dice.randrange(len(content)), dice.randrange(8)
        found[f"bit {bit} of byte {at} flipped ({i})"] = (
            content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]
        )
    return found
