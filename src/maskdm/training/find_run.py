"""How a run is found again: by its settings, and by the content of its images, wherever these lie now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from maskdm.config.schema import Config
from maskdm.config.section import Tree, to_dict
from maskdm.data.image_set import ImageSet
from maskdm.data.manifest import HEAD, read_manifest
from maskdm.errors import InputError
from maskdm.files import digest
from maskdm.training.progress import list_checkpoints, newest_checkpoint, recorded_config
from maskdm.training.read_run import CONFIG, FOLDER, is_finished, is_run, list_runs, read_config

REQUEST = "budget.json"
"""In the folder of a run whose settings were chosen for a time: what was asked for, what was measured, and why."""
PLACES = ("data.path", "data.cache_dir")
"""Settings that say where images lie, and not what they are: they may change within a run."""


def find_run(
    output_dir: Path,
    config: Config,
    resume: str | None,
    images: ImageSet | None = None,
    warn: Callable[[str], object] = lambda text: None,
) -> Path | None:
    """The run of these settings and images, finished or not; None where one is to be begun. Makes nothing.

    Args:
        output_dir: where runs lie.
        config: the settings, resolved.
        resume: None (the newest run of the same settings and images), "never", "latest", or a run's path.
        images: decoded; None takes the same path for the same images.
        warn: called with a line about runs that might have been meant, but cannot be read.

    Raises:
        InputError: the run that is named does not exist, or has other settings or images; or, where none is named,
            there are other images now where those of an unfinished run were.
    """
    if resume is None:
        return _find_same(output_dir, config, images, warn)
    if resume == "never":
        return None
    path = find_resumable(output_dir, resume)
    check_config(path)
    found = differences(read_config(path), config)
    if found:
        raise InputError(
            "resume",
            f"{path} was started with other settings ({'; '.join(found[:3])})",
            remedy="resume it with its own, or start a new run from its weights with stages.0.init_from",
        )
    if images is not None and (path / HEAD).exists():
        read_manifest(path).align(images)
    return path


def find_chosen(output_dir: Path, request: Tree, images: ImageSet) -> Config | None:
    """The settings of the newest run for which the same was asked; None where one is to be begun.

    Settings that are chosen by a measurement are never quite the same again; the request is.

    Args:
        output_dir: where runs lie.
        request: the time and the settings that were given, see `maskdm.profiling.budget.TimeBudget.request`.
        images: decoded; a finished run of others is another run's.
    """
    for path in reversed(_folders(output_dir)):
        try:
            there = json.loads((path / REQUEST).read_text(encoding="utf-8"))
            same = all(_without_places(there[key]) == _without_places(request[key]) for key in request)
            if same and not (is_finished(path) and (path / HEAD).exists() and read_manifest(path).difference(images)):
                return read_config(path)
        except (OSError, ValueError, KeyError, TypeError, InputError):
            continue
    return None


def _without_places(value: object) -> object:
    """Settings without those that say where images lie."""
    return {key: v for key, v in _flat(value).items() if key not in PLACES}


def find_resumable(output_dir: Path, resume: str) -> Path:
    """The run that `resume` means: "latest", or the path of a run or of one of its checkpoints.

    Raises:
        InputError: there is no such run, or the latest has lost its settings.
    """
    if resume == "latest":
        runs = _folders(output_dir)
        if not runs:
            raise InputError(
                "resume", f"there is no run in {output_dir}", got=resume, remedy="leave it out to start one"
            )
        if not is_run(runs[-1]):
            raise InputError("resume", f"{runs[-1]} has lost its {CONFIG}", got=resume, remedy=_PUT_BACK)
        return runs[-1]
    path = Path(resume)
    if path.parent.name == "checkpoints":
        path = path.parent.parent
    if not is_run(path):
        raise InputError(
            "resume", "no run is there, since there is no config.yaml", got=resume, remedy="leave it out to start one"
        )
    return path


def check_config(run: Path) -> None:
    """Refuses a config.yaml that is not what it was when the newest checkpoint was saved.

    Raises:
        InputError: it is missing, or was changed.
    """
    saved = newest_checkpoint(run / "checkpoints")
    expected = recorded_config(saved) if saved else None
    try:
        now = digest(run / CONFIG)
    except OSError as error:
        raise InputError(str(run / CONFIG), f"cannot be read ({error.strerror})", remedy=_PUT_BACK) from None
    if expected is not None and now != expected:
        raise InputError(str(run / CONFIG), "is not as it was written", remedy=_PUT_BACK)


_PUT_BACK = "put it back as it was, or give the command that began the run, which writes it again"


def config_sha256(config: Config) -> str:
    """Names settings in the head of a manifest."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()


def same_settings(there: Config, here: Config) -> bool:
    """Whether two runs are of the same settings, wherever their images lie."""
    return not differences(there, here)


def differences(there: Config, here: Config) -> list[str]:
    """What differs, setting by setting, as "stages.0.lr 0.0002 -> 0.001"; places of images do not count."""
    old, new = _flat(to_dict(there)), _flat(to_dict(here))
    changed = (key for key in old | new if key not in PLACES and old.get(key) != new.get(key))
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in changed]


def _find_same(output_dir: Path, config: Config, images: ImageSet | None, warn: Callable[[str], object]) -> Path | None:
    """The newest run of the same settings and images."""
    unreadable, changed = [], None
    for path in reversed(_folders(output_dir)):
        try:
            check_config(path)
            settings = read_config(path)
        except InputError:  # damaged, or of another version
            if _begun_with(path, config):
                return path
            if list_checkpoints(path / "checkpoints") and not is_finished(path):
                unreadable.append(path)
            continue
        if not same_settings(settings, config):
            continue
        same_path = settings.data.path == config.data.path
        if images is None or not (path / HEAD).exists():  # it was ended before its images were on record
            if same_path:
                return path
            continue
        what = _difference(path, images, same_path)
        if not what:
            return path
        if same_path and changed is None and not is_finished(path):
            changed = path
    if changed is not None and images is not None:
        read_manifest(changed).align(images)  # says what is another
    if unreadable:
        names = ", ".join(path.name for path in reversed(unreadable))
        warn(f"{names} in {output_dir}: {CONFIG} is missing or damaged, so that the run could not be found by it")
    return None


def _difference(run: Path, images: ImageSet, same_path: bool) -> str:
    """What is another in `images` than in those of a run; "" where nothing is."""
    try:
        return read_manifest(run).difference(images)
    except InputError as error:
        if same_path:
            raise
        return str(error)


def _begun_with(run: Path, config: Config) -> bool:
    """Whether a run that has lost its config.yaml began with these settings, by the head of its manifest."""
    try:
        head = json.loads((run / HEAD).read_text(encoding="utf-8"))
        return bool(head["config_sha256"] == config_sha256(config))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _folders(output_dir: Path) -> list[Path]:
    """Folders of runs in the order in which these were started, those that have lost their settings too."""
    if not output_dir.is_dir():
        return []
    begun = (p for p in output_dir.iterdir() if FOLDER.fullmatch(p.name) and (p / "checkpoints").is_dir())
    return sorted({*list_runs(output_dir), *begun})


def _flat(tree: object, prefix: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        pairs = tree.items()
    elif isinstance(tree, list):
        pairs = {str(i): value for i, value in enumerate(tree)}.items()
    else:
        return {prefix: tree}
    return {k: v for key, value in pairs for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}
