"""A run on disk: its folder, its lock, its log.

    <output-dir>/<n>-<name>/  config.yaml  env.json  manifest.jsonl  manifest.head.json  metrics.jsonl  log.txt
                              checkpoints/step-0001000/  checkpoints/latest  weights/  samples/  eval/  report.html

A run is known by its settings: the command that started it finds it again and goes on where it was.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shlex
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch

from maskdm import __version__
from maskdm.config.resolve import resolve, write_yaml
from maskdm.config.schema import Config, to_dict
from maskdm.data.write import check_folder
from maskdm.errors import InputError
from maskdm.runtime.distributed import Runtime

FOLDER = re.compile(r"\d{5}-.+")
LONGEST_NAME = 200


@dataclass
class Run:
    """A run folder that this process holds."""

    path: Path
    resumed: bool
    _lock: IO[str] | None = field(default=None, repr=False)

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def record(self, event: str, **values: object) -> None:
        """One line of metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")

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


def check_writable(output_dir: Path) -> None:
    """Refuses early, before anything is decoded, a folder in which no run could be made."""
    check_folder(output_dir, "--output-dir")


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
    """The run that `open_run` would go on with; None where it would begin one. Makes nothing."""
    if resume is None:
        return find_unfinished(output_dir, config)
    if resume == "never":
        return None
    path = find_resumable(output_dir, resume)
    differences = _differences(read_config(path), config)
    if differences:
        raise InputError(
            f"--resume: {path} was started with other settings ({'; '.join(differences[:3])}); resume it with its own, "
            "or start a new run from its weights with stages.0.init_from"
        )
    if finished(path):
        raise InputError(
            f"--resume: {path} is finished; start a new run from its weights with stages.0.init_from={path}"
        )
    return path


def find_resumable(output_dir: Path, resume: str) -> Path:
    """The run that `--resume latest` or `--resume PATH` means."""
    if resume == "latest":
        runs = list_runs(output_dir)
        if not runs:
            raise InputError(f"--resume latest: there is no run in {output_dir}; leave --resume out to start one")
        return runs[-1]
    path = Path(resume)
    if path.parent.name == "checkpoints":
        path = path.parent.parent
    if not (path / "config.yaml").is_file():
        raise InputError(f"--resume: {resume} is no run (it has no config.yaml); leave --resume out to start one")
    return path


def find_unfinished(output_dir: Path, config: Config) -> Path | None:
    """The newest run of these settings, if it is not finished."""
    for path in reversed(list_runs(output_dir)):
        try:
            settings = read_config(path)
        except InputError:  # of another version, or damaged: none of these settings
            continue
        if not _differences(settings, config):
            return None if finished(path) else path
    return None


def same_settings(there: Config, here: Config) -> bool:
    """Whether two runs are of the same settings."""
    return not _differences(there, here)


def list_runs(output_dir: Path) -> list[Path]:
    """Runs in the order in which they were started."""
    if not output_dir.is_dir():
        return []
    return sorted(p for p in output_dir.iterdir() if FOLDER.fullmatch(p.name) and (p / "config.yaml").is_file())


def read_config(path: Path) -> Config:
    """The settings of a run."""
    return resolve(file=path / "config.yaml")


def read_metrics(path: Path) -> list[dict[str, object]]:
    """The events of a run, whole lines only."""
    events = []
    file = path / "metrics.jsonl"
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def finished(path: Path) -> bool:
    """Whether the last stage of a run has ended."""
    events = read_metrics(path)
    return bool(events) and events[-1]["event"] == "end"


def _create(output_dir: Path, name: str, config: Config) -> Run:
    if len(name.encode()) > LONGEST_NAME:
        raise InputError(f"--name: got {len(name)} characters, wanted at most {LONGEST_NAME}; choose a shorter one")
    temporary = output_dir / f".new-{os.getpid()}-{time.time_ns()}"
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
        raise InputError(
            f"--output-dir: cannot make a run in {output_dir} ({error.strerror}); choose another folder"
        ) from None
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
    lock = (path / ".lock").open("w")
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass  # not a POSIX system: runs are not protected from a second process
    except OSError:
        lock.close()
        raise InputError(
            f"{path} is being trained by another process; wait, or start another with --resume never"
        ) from None
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


def write_env(run: Run, runtime: Runtime) -> None:
    """env.json: with what, on what and by which command the run was made; a resumed run keeps its first."""
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
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    file.write_text(json.dumps(env, indent=2) + "\n")
