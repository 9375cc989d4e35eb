"""The writing side of a run on disk: its folder, its lock, its log.

    <output-dir>/<n>-<name>/  config.yaml  env.json  manifest.jsonl  manifest.head.json  metrics.jsonl  log.txt
                              checkpoints/step-0001000/  checkpoints/latest  weights/  samples/  eval/  report.html
                              budget.json, where settings were chosen for a time

A run is known by its settings and its images: the command that started it finds it again
(`maskdm.training.find_run`) and resumes it. What others read of a run is `maskdm.training.read_run`.
"""

from __future__ import annotations

import errno
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch

from maskdm import __version__, files
from maskdm.config.schema import Config
from maskdm.config.section import Tree
from maskdm.config.yaml_files import write_yaml
from maskdm.errors import InputError, StorageError
from maskdm.runtime.distributed import Runtime
from maskdm.training.events import Event
from maskdm.training.find_run import REQUEST, check_config
from maskdm.training.read_run import CONFIG, FOLDER, read_config

LONGEST_NAME = 200
"""Bytes: a file system allows 255, and numbers and temporary names come on top."""
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
"""What a lock says that another process has; all else is a file system that has no locks."""


@dataclass
class Run:
    """A run folder that this process holds.

    Attributes:
        path: the folder.
        resumed: whether it was there before.
        config_sha256: of its config.yaml.
    """

    path: Path
    resumed: bool
    config_sha256: str | None = None
    _lock: IO[str] | None = field(default=None, repr=False)

    @property
    def metrics(self) -> Path:
        """The file of events, see `maskdm.training.events`."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The folder of weights that others read."""
        return self.path / "weights"

    @property
    def samples(self) -> Path:
        """The folder of sample grids."""
        return self.path / "samples"

    def record(self, event: Event) -> None:
        """Appends a line to metrics.jsonl."""
        files.append_line(self.metrics, event.line())

    def recorded(self) -> int:
        """Bytes of metrics.jsonl so far: what `rewind` takes."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def rewind(self, recorded: int) -> None:
        """Forgets what was recorded after that many bytes: it is about to happen again."""
        if self.recorded() > recorded:
            os.truncate(self.metrics, recorded)

    def release(self) -> None:
        """Lets another process have it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def begin_run(
    output_dir: Path,
    name: str,
    config: Config,
    warn: Callable[[str], object] = lambda text: None,
    request: Tree | None = None,
) -> Run:
    """A new run in a folder of its own, held by this process.

    Args:
        output_dir: where runs lie.
        name: of the run.
        config: the settings, resolved.
        warn: called with a line where the run cannot be locked.
        request: what the settings were chosen for, see `maskdm.training.find_run.REQUEST`.

    Raises:
        InputError: the name is too long, or the folder cannot be made.
    """
    length = len(name.encode())
    if length > LONGEST_NAME:
        wanted = f"at most {LONGEST_NAME}"
        raise InputError("name", f"it has {length} bytes", wanted=wanted, remedy="choose a shorter one")
    temporary = files.temporary_name(output_dir / "run")
    try:
        temporary.mkdir(parents=True)
        _sweep_folders(output_dir)
        run = _claim(temporary, resumed=False, warn=warn)
        for folder in (run.checkpoints, run.weights, run.samples):
            folder.mkdir()
        write_yaml(temporary / CONFIG, config)
        if request is not None:
            files.write_json(temporary / REQUEST, request)
        run.config_sha256 = files.digest(temporary / CONFIG)
        # Whole, and locked, before it has the name of a run. The lock belongs to the open file and moves along.
        run.path = _rename_to_next(temporary, output_dir, name)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        problem = f"cannot make a run in {output_dir} ({error.strerror or error})"
        raise InputError("output_dir", problem, remedy="choose another folder") from None
    return run


def resume_run(path: Path, config: Config, warn: Callable[[str], object] = lambda text: None) -> Run:
    """A run that is there, held by this process, with all of its folders.

    What processes that are no more left of unfinished files is removed.

    Args:
        path: of the run.
        config: its settings, which are written again where config.yaml is missing or damaged.
        warn: called with a line about that, and where the run cannot be locked.

    Raises:
        InputError: it is being trained by another process.
        StorageError: it cannot be written to.
    """
    try:
        run = _claim(path, resumed=True, warn=warn)
        for folder in (run.checkpoints, run.weights, run.samples):
            folder.mkdir(exist_ok=True)
            files.sweep(folder)
        files.sweep(path)
        try:
            check_config(path)
            read_config(path)
        except InputError:
            write_yaml(path / CONFIG, config)
            warn(f"{path / CONFIG} was missing or damaged, and is written again")
        run.config_sha256 = files.digest(path / CONFIG)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from None
    return run


def write_env(run: Run, runtime: Runtime, command: str | None = None) -> None:
    """env.json: with what, on what and by which command the run was made; a resumed run keeps its first.

    Args:
        run: the run.
        runtime: where it computes.
        command: the command line; by default that of this process.
    """
    file = run.path / "env.json"
    if file.exists():
        return
    env = {
        "maskdm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if runtime.device.type == "cuda" else str(runtime.device),
        "mixed_precision": runtime.precision,
        "world_size": runtime.world_size,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    files.write_json(file, env)


def _rename_to_next(made: Path, output_dir: Path, name: str) -> Path:
    """Gives a folder the next free number; several processes may be looking for one."""
    while True:
        taken = [int(p.name[:5]) for p in output_dir.iterdir() if FOLDER.fullmatch(p.name)]
        path = output_dir / f"{max(taken, default=-1) + 1:05d}-{name}"
        try:
            return made.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise


def _claim(path: Path, *, resumed: bool, warn: Callable[[str], object]) -> Run:
    """Takes the lock, which the system releases when this process ends, however it ends."""
    lock = (path / ".lock").open("w", encoding="utf-8")
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass  # not a POSIX system: runs are not protected from a second process
    except OSError as error:
        if error.errno in HELD:
            lock.close()
            remedy = "wait, or start another run with --resume never"
            raise InputError(str(path), "is being trained by another process", remedy=remedy) from None
        warn(f"this disk locks no files ({error.strerror}): do not train one run by two processes at a time")
    return Run(path, resumed, _lock=lock)


def _sweep_folders(output_dir: Path) -> None:
    """Removes folders of runs that processes of this machine did not live to finish."""
    for path in output_dir.glob(".run.tmp-*"):
        if files.orphaned(path):
            shutil.rmtree(path, ignore_errors=True)
