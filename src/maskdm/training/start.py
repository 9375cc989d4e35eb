"""From settings to a run: everything checked, folder opened, split on record, loop started.

Bad input leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from maskdm import __version__
from maskdm.config.schema import Config
from maskdm.config.section import Tree, to_dict
from maskdm.data.dataset import Dataset, read_dataset
from maskdm.data.manifest import HEAD, Manifest, read_manifest, write_manifest
from maskdm.errors import InputError, TrainingError
from maskdm.evaluation.heldout import HeldOut
from maskdm.evaluation.scorer import Scorer, make_scorer
from maskdm.files import check_folder
from maskdm.models import build, transfer
from maskdm.models.weights import Metadata
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime, init_runtime
from maskdm.training.describe import describe_stages, describe_task, warn_of_roles
from maskdm.training.find_run import config_sha256, find_resumable, find_run
from maskdm.training.finished import complete_run
from maskdm.training.loop import run_stages
from maskdm.training.monitor import Training
from maskdm.training.origins import check_origins, warn_of_parents
from maskdm.training.prepare import Prepared, check_memory, make_task, prepare
from maskdm.training.read_run import is_finished, read_config
from maskdm.training.runs import Run, begin_run, resume_run, write_env
from maskdm.training.step import Task
from maskdm.training.store import check_store
from maskdm.training.trackers import check_trackers, make_trackers


@dataclass(frozen=True)
class Choice:
    """Settings that were chosen for images and a machine.

    Attributes:
        config: the settings.
        request: what was asked for and why this was chosen, as `maskdm.training.find_run.REQUEST` keeps it in the run's
            folder, so that the same request finds the run again; None where the run is there already.
        reasons: why, a line each.
    """

    config: Config
    request: Tree | None
    reasons: tuple[str, ...]


Choose: TypeAlias = Callable[[Dataset, Runtime], Choice]
"""From the images and the machine to settings."""


@dataclass(frozen=True)
class DryRun:
    """What training would do.

    Attributes:
        resumes: the run that would be resumed, None where one would be begun.
        stages: what each stage would do, a line each.
        config: the settings.
        finished: whether that run is finished, and nothing is left to do.
        reasons: why these settings were chosen, where they were.
    """

    resumes: Path | None
    stages: tuple[str, ...]
    config: Config
    finished: bool = False
    reasons: tuple[str, ...] = ()


def start_training(
    config: Config,
    *,
    output_dir: Path,
    name: str,
    resume: str | None,
    console: Console,
    command: str | None = None,
    choose: Choose | None = None,
) -> Path:
    """Trains `config` in a run folder below `output_dir`, new or found again.

    Args:
        config: the settings.
        output_dir: where runs lie.
        name: of a new run.
        resume: see `maskdm.training.find_run.find_run`.
        console: what a person sees.
        command: for the record, see `maskdm.training.runs.write_env`.
        choose: makes the settings, once the images are read, in place of `config`.

    Returns:
        The run's folder.

    Raises:
        InputError: something in the settings, the images or the folder is not as it must be.
        TrainingError, Interrupted, StorageError: see `maskdm.training.loop.run_stages`.
    """
    _check_before(config, output_dir, resume)
    runtime = init_runtime(config.train)
    console.main = runtime.main
    with runtime:
        choice, prepared = _prepare(config, choose, runtime, console)
        check_batches(prepared.config, runtime)
        check_measures(prepared, runtime)
        check_memory(prepared.config, prepared.spec, runtime)
        found, finished = _agreed_run(prepared, output_dir, resume, runtime, console)
        prepared = as_recorded(prepared, found)
        describe_task(prepared, runtime, console)
        if found and finished:
            complete_run(prepared, runtime, found, console)
            return found
        warn_of_roles(prepared, console)
        warn_of_parents(prepared, console)
        if runtime.main:
            check_origins(prepared, found)
        with runtime.main_first():
            scorer = _scorer(prepared, runtime, console)
        run = _open(found, output_dir, name, prepared.config, choice, runtime, console)
        try:
            run_stages(_training(prepared, runtime, run, console, scorer, command))
        except OSError:
            if runtime.main and not run.path.is_dir():
                raise TrainingError(f"{run.path} is gone: it was removed or moved while it was being trained") from None
            raise
        finally:
            run.release()
    return run.path


def _agreed_run(
    prepared: Prepared, output_dir: Path, resume: str | None, runtime: Runtime, console: Console
) -> tuple[Path | None, bool]:
    """The run of these settings and images, and whether it is finished; every rank hears it of the first."""
    found = None
    if runtime.main:
        found = find_run(output_dir, prepared.config, resume, prepared.dataset.images, console.warn)
    path = runtime.broadcast_object(str(found) if found else "")
    finished = runtime.broadcast(float(found is not None and is_finished(found)))
    return (Path(path) if path else None), finished > 0


def _prepare(config: Config, choose: Choose | None, runtime: Runtime, console: Console) -> tuple[Choice, Prepared]:
    """The settings, chosen once the images are read where that is asked for, and what they come to."""
    if choose is None:
        with runtime.main_first():
            return Choice(config, None, ()), prepare(config, console)
    with runtime.main_first():
        dataset = read_dataset(config.data, console)
    choice = choose(dataset, runtime)
    for line in choice.reasons:
        console.say(f"  {line}")
    return choice, prepare(choice.config, console, dataset)


def _open(
    found: Path | None, output_dir: Path, name: str, config: Config, choice: Choice, runtime: Runtime, console: Console
) -> Run:
    """The run, held by the first rank, and known to the others."""
    run = None
    if runtime.main and found:
        run = resume_run(found, config, console.warn)
    elif runtime.main:
        run = begin_run(output_dir, name, config, console.warn, request=choice.request)
    path = Path(runtime.broadcast_object(str(run.path) if run else ""))
    return run or Run(path, resumed=found is not None)


def as_recorded(prepared: Prepared, run: Path | None) -> Prepared:
    """With the order and the roles of the images as a run has them on record, wherever they lie and are called now.

    Raises:
        InputError: they are other images, or the record is damaged.
    """
    if run is None or not (run / HEAD).exists():
        return prepared
    manifest = read_manifest(run)
    groups = [record.group for record in manifest.good]
    dataset = Dataset(
        manifest.align(prepared.dataset.images),
        [record.role for record in manifest.good],
        None if None in groups else [str(group) for group in groups],
    )
    return replace(prepared, dataset=dataset)


def dry_run(
    config: Config, *, output_dir: Path, resume: str | None, console: Console, choose: Choose | None = None
) -> DryRun:
    """Everything up to the making of a run, then what it would do; images are decoded into the cache.

    Args:
        config, output_dir, resume, console, choose: see `start_training`.

    Raises:
        InputError: as `start_training`.
    """
    _check_before(config, output_dir, resume)
    runtime = init_runtime(config.train)
    choice, prepared = _prepare(config, choose, runtime, console)
    check_batches(prepared.config, runtime)
    check_measures(prepared, runtime)
    check_memory(prepared.config, prepared.spec, runtime)
    found = find_run(output_dir, prepared.config, resume, prepared.dataset.images, console.warn)
    finished = found is not None and is_finished(found)
    prepared = as_recorded(prepared, found)
    describe_task(prepared, runtime, console)
    warn_of_roles(prepared, console)
    warn_of_parents(prepared, console)
    check_origins(prepared, found)
    if finished:
        console.say(f"{found} is finished: nothing would be trained; to begin another run, add --resume never")
    else:
        console.say(f"would resume {found}" if found else f"would begin a run in {output_dir}")
    stages = describe_stages(prepared)
    for line in stages:
        console.say(line)
    return DryRun(found, stages, choice.config, finished, choice.reasons)


def _check_before(config: Config, output_dir: Path, resume: str | None) -> None:
    """What can be refused before anything is decoded."""
    check_folder(output_dir, "output_dir")
    check_trackers(config.log.track)
    if resume not in (None, "never"):
        find_resumable(output_dir, resume)


def check_batches(config: Config, runtime: Runtime) -> None:
    """A batch must be shared out evenly among the ranks.

    Raises:
        InputError: it is not.
    """
    for i, stage in enumerate(config.stages):
        if stage.batch_size % runtime.world_size:
            wanted = f"a multiple of the {runtime.world_size} processes"
            raise InputError(f"stages.{i}.batch_size", got=stage.batch_size, wanted=wanted)


def check_measures(prepared: Prepared, runtime: Runtime) -> None:
    """Refuses what would otherwise be missed after a folder was made, or not before the end of a stage.

    Raises:
        InputError: images that cannot lie where `data.store` wants them, or too few held-out images for `eval.scores`.
    """
    config, heldout = prepared.config, prepared.dataset.counts["heldout"]
    check_store(prepared.dataset.images.images, runtime.device, config.data.store)
    if config.eval.scores is not None and heldout < 2:
        wanted = "at least 2 held-out images"
        raise InputError("eval.scores", got=heldout, wanted=wanted, remedy="raise data.heldout")


def _scorer(prepared: Prepared, runtime: Runtime, console: Console) -> Scorer | None:
    """What scores images during training, where that is asked for."""
    if prepared.config.eval.scores is None:
        return None
    return make_scorer(prepared.config, prepared.spec, prepared.dataset, runtime, console)


def _training(
    prepared: Prepared, runtime: Runtime, run: Run, console: Console, scorer: Scorer | None, command: str | None
) -> Training:
    """The split on record and checked, and all that the loop needs."""
    if runtime.main:
        console.attach(run.path / "log.txt")
    console.say(f"{'resuming' if run.resumed else 'new run'} {run.path}")
    if run.resumed and read_config(run.path).data.path != prepared.config.data.path:
        console.say(f"its images are the same as before, and now in {prepared.config.data.path}")
    if runtime.main:
        _record_manifest(prepared, run)
        write_env(run, runtime, command)
    runtime.barrier()
    prepared = as_recorded(prepared, run.path)
    manifest, config = read_manifest(run.path), prepared.config
    metadata: Metadata = {
        "maskdm": __version__,
        "manifest_sha256": manifest.sha256,
        "heldout_images": len(manifest.indices("heldout")),
        "members": len(manifest.indices("member")),
    }
    task = make_task(prepared, runtime, manifest.indices("member"))
    return Training(
        **vars(task),
        heldout=_heldout(prepared, manifest, task),
        metadata=metadata,
        run=run,
        console=console,
        scorer=scorer,
        trackers=make_trackers(config.log.track, run.path, to_dict(config)) if runtime.main else (),
    )


def _record_manifest(prepared: Prepared, run: Run) -> None:
    """The split, on record before step 0; a resumed run has it already."""
    if (run.path / HEAD).exists():
        return
    first = prepared.config.stages[0]
    parent = None
    if first.init_from not in ("previous", "none"):
        parent = transfer.read_source(Path(first.init_from), first.weights)[1].metadata.get("manifest_sha256")
    write_manifest(
        run.path,
        prepared.dataset.images,
        prepared.dataset.roles,
        groups=prepared.dataset.groups,
        stages=[stage.name for stage in prepared.config.stages],
        tool_version=__version__,
        config_sha256=config_sha256(prepared.config),
        parent_sha256=str(parent) if parent else None,
        split="keyed" if prepared.config.data.heldout_by is None else "given",
    )


def _heldout(prepared: Prepared, manifest: Manifest, task: Task) -> list[HeldOut] | None:
    """`eval.heldout_images` of them, evenly over the rows, at the size of each stage; None where there are none."""
    rows, labels, device = manifest.indices("heldout"), task.data.labels, task.runtime.device
    count = min(prepared.config.eval.heldout_images, len(rows))
    if not count:
        return None
    chosen = rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
    images, own = prepared.dataset.images.images[chosen], None if labels is None else labels[chosen]
    asked: dict[str, HeldOut] = {}
    found = []
    for number in range(len(prepared.config.stages)):
        spec = prepared.stage_spec(number)
        key = spec.model_dump_json()
        if key not in asked:
            with torch.device("meta"):  # only its process and its size are needed
                network = build.backbone(spec)
            asked[key] = HeldOut.ask(images, own, task.denoiser(number, network), device)
        found.append(asked[key])
    return found
