"""The writing side of a run on disk: its folder, its lock, its log, and how it is found again.

    <output-dir>/<n>-<name>/  config.yaml  env.json  manifest.jsonl  manifest.head.json  metrics.jsonl  log.txt
                              checkpoints/step-0001000/  checkpoints/latest  weights/  samples/  eval/  report.html

A run is known by its settings: the command that started it finds it again and resumes it. What others read of a run is
`maskdm.training.read_run`.
"""

from __future__ import annotations

import errno
import os
import platform
import shlex
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch

from maskdm import __version__, files
from maskdm.config.schema import Config
from maskdm.config.section import to_dict
from maskdm.config.yaml_files import write_yaml
from maskdm.errors import InputError
from maskdm.runtime.distributed import Runtime
from maskdm.training.events import Event
from maskdm.training.read_run import FOLDER, is_finished, is_run, list_runs, read_config

LONGEST_NAME = 200
"""Bytes: a file system allows 255, and numbers and temporary names come on top."""


@dataclass
class Run:
    """A run folder that this process holds.

    Attributes:
        path: the folder.
        resumed: whether it was there before.
    """

    path: Path
    resumed: bool
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


def open_run(output_dir: Path, name: str, config: Config, resume: str | None) -> Run:
    """The folder in which `config` is trained: an unfinished run of the same settings, or a new one.

    Args:
        output_dir: where runs lie.
        name: of a new run.
        config: the settings, resolved.
        resume: None (an unfinished run of the same settings if there is one), "never", "latest", or a run's path.

    Raises:
        InputError: the run to resume does not exist, has other settings, is finished, or is being trained.
    """
    found = find_run(output_dir, config, resume)
    return _claim(found, resumed=True) if found else _create(output_dir, name, config)


def find_run(output_dir: Path, config: Config, resume: str | None) -> Path | None:
    """The run that `open_run` would resume; None where it would begin one. Makes nothing.

    Raises:
        InputError: as `open_run`.
    """
    if resume is None:
        return find_unfinished(output_dir, config)
    if resume == "never":
        return None
    path = find_resumable(output_dir, resume)
    differences = _differences(read_config(path), config)
    if differences:
        raise InputError(
            "resume",
            f"{path} was started with other settings ({'; '.join(differences[:3])})",
            remedy="resume it with its own, or start a new run from its weights with stages.0.init_from",
        )
    if is_finished(path):
        remedy = f"start a new run from its weights with stages.0.init_from={path}"
        raise InputError("resume", f"{path} is finished", remedy=remedy)
    return path


def find_resumable(output_dir: Path, resume: str) -> Path:
    """The run that `resume` means: "latest", or the path of a run or of one of its checkpoints.

    Raises:
        InputError: there is no such run.
    """
    if resume == "latest":
        runs = list_runs(output_dir)
        if not runs:
            raise InputError(
                "resume", f"there is no run in {output_dir}", got=resume, remedy="leave it out to start one"
            )
        return runs[-1]
    path = Path(resume)
    if path.parent.name == "checkpoints":
        path = path.parent.parent
    if not is_run(path):
        raise InputError(
            "resume", "no run is there, since there is no config.yaml", got=resume, remedy="leave it out to start one"
        )
    return path


def find_unfinished(output_dir: Path, config: Config) -> Path | None:
    """The newest run of these settings, if it is not finished."""
    for path in reversed(list_runs(output_dir)):
        try:
            settings = read_config(path)
        except InputError:  # of another version, or damaged: none of these settings
            continue
        if same_settings(settings, config):
            return None if is_finished(path) else path
    return None


def same_settings(there: Config, here: Config) -> bool:
    """Whether two runs are of the same settings."""
    return not _differences(there, here)


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


def _create(output_dir: Path, name: str, config: Config) -> Run:
    length = len(name.encode())
    if length > LONGEST_NAME:
        wanted = f"at most {LONGEST_NAME}"
        raise InputError("name", f"it has {length} bytes", wanted=wanted, remedy="choose a shorter one")
    temporary = files.temporary_name(output_dir / "run")
    try:
        temporary.mkdir(parents=True)
        run = _claim(temporary, resumed=False)
        for folder in (run.checkpoints, run.weights, run.samples):
            folder.mkdir()
        write_yaml(temporary / "config.yaml", config)
        # Whole, and locked, before it has the name of a run. The lock belongs to the open file and moves along.
        run.path = _rename_to_next(temporary, output_dir, name)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        problem = f"cannot make a run in {output_dir} ({error.strerror or error})"
        raise InputError("output_dir", problem, remedy="choose another folder") from None
    return run


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


def _claim(path: Path, *, resumed: bool) -> Run:
    """Takes the lock, which the system releases when this process ends, however it ends."""
    lock = (path / ".lock").open("w", encoding="utf-8")
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass  # not a POSIX system: runs are not protected from a second process
    except OSError:
        lock.close()
        remedy = "wait, or start another run with --resume never"
        raise InputError(str(path), "is being trained by another process", remedy=remedy) from None
    return Run(path, resumed, lock)


def _differences(there: Config, here: Config) -> list[str]:
    old, new = _flat(to_dict(there)), _flat(to_dict(here))
    return [f"{k} {old.get(k)} -> {new.get(k)}" for k in old | new if old.get(k) != new.get(k)]


def _flat(tree: object, prefix: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        pairs = tree.items()
    elif isinstance(tree, list):
        pairs = {str(i): value for i, value in enumerate(tree)}.items()
    else:
        return {prefix: tree}
    return {k: v for key, value in pairs for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}
