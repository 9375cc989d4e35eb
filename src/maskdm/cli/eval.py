"""maskdm eval."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maskdm.cli.parsing import Commands, add_machine, command, own_backbone
from maskdm.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from maskdm.data.image_set import ImageSet
    from maskdm.diffusion.denoiser import Denoiser
    from maskdm.evaluation.features import Features
    from maskdm.evaluation.scores import Reference
    from maskdm.runtime.console import Console
    from maskdm.runtime.distributed import Runtime

LEAST_RESAMPLES = 20
MOST_KNOWN = 10_000
"""Training pictures that others are compared with, at most: a sample of them says as much, and takes minutes."""


def add(commands: Commands) -> None:
    """Its options."""
    p = command(
        commands,
        "eval",
        "measure how near generated pictures come to real ones",
        "  maskdm eval runs/00000-photos\n"
        "  maskdm eval runs/00000-photos --features encoder --num 2000 --bootstrap 200\n"
        "  maskdm eval samples/ --reference photos/ --features inception\n"
        "  maskdm eval runs/00000-photos --features dinov2 --num 5000 --mixed-precision bf16\n"
        "  maskdm eval model.safetensors --reference statistics.npz --features inception --weights inception.pth\n\n"
        "A run is compared with its own held-out pictures unless --reference says otherwise. Frechet distance (with\n"
        "inception: FID), KID, precision, recall, density, coverage, and how near pictures lie to the training set.\n"
        "Numbers compare only in the same features and with as many pictures.",
    )
    p.add_argument("subject", metavar="RUN|FILE|IMAGES", type=Path, help="a model, or pictures that were made before")
    p.add_argument("--reference", metavar="DATA|NPZ", help="real pictures, or an .npz with mu and sigma")
    p.add_argument(
        "--features",
        default="pixels",
        metavar="NAME|FILE",
        help="pixels, inception, dinov2, clip, encoder, or a TorchScript or torch.export file (default: pixels)",
    )
    p.add_argument(
        "--weights", type=Path, metavar="PATH", help="of inception (a file), dinov2 or clip (a folder): no download"
    )
    p.add_argument("--num", type=int, default=1000, metavar="N", help="pictures that a model makes (default: 1000)")
    p.add_argument("--sampler", default="dpm++", help="of a model (default: dpm++)")
    p.add_argument("--steps", type=int, default=25, metavar="N", help="of the sampler (default: 25)")
    p.add_argument("--guidance", type=float, default=1.0, metavar="W", help="of a model (default: 1, none)")
    p.add_argument("--first-seed", type=int, default=0, metavar="N", help="seeds count from here (default: 0)")
    p.add_argument(
        "--model-weights", default="ema", metavar="ema|raw", help="of a run, or of a stage: pretrain-ema (default: ema)"
    )
    p.add_argument("--backbone", metavar="MODULE:CLASS", help="the class of a backbone of your own")
    p.add_argument(
        "--mixed-precision",
        choices=["auto", "bf16", "fp16", "no"],
        default="no",
        help="arithmetic of a model (default: no, float32)",
    )
    p.add_argument("--bootstrap", type=int, default=0, metavar="B", help="resamples for an interval of the distance")
    add_machine(p)
    p.add_argument("--output", "-o", type=Path, metavar="FILE.json", help="also write the scores there")
    p.set_defaults(run=_eval)


def _eval(a: argparse.Namespace) -> None:
    from maskdm.data.dataset import load_image_set
    from maskdm.data.write import check_folder
    from maskdm.evaluation.features import check
    from maskdm.evaluation.scores import without_grid
    from maskdm.runtime.console import Console
    from maskdm.runtime.distributed import join
    from maskdm.sampling.sample import check_counts

    check(a.features, a.weights)
    check_counts(a.num, a.batch_size)
    if a.bootstrap != 0 and a.bootstrap < LEAST_RESAMPLES:
        raise InputError(f"--bootstrap: got {a.bootstrap}, wanted 0 (none) or at least {LEAST_RESAMPLES}")
    if a.num < 2:
        raise InputError(f"--num: got {a.num}, wanted at least 2")
    if not a.subject.exists():
        raise InputError(f"eval: {a.subject} does not exist; give a run, a .safetensors file, or pictures")
    if a.output is not None:
        check_folder(a.output.parent, "--output")
    runtime = join(a.device, "--device")
    try:
        console = Console(quiet=not runtime.main)
        with runtime.main_first():
            denoiser = _denoiser(a, runtime) if _is_model(a.subject) else None
            reference = _reference(a, console, denoiser)
            features = _features(a, runtime, console, reference) if runtime.main else None
        if denoiser is not None:
            made = _made(a, denoiser, reference, runtime, console)
        else:
            made = without_grid(load_image_set(str(a.subject), console, reference.shape))
        if features is not None:
            _score(a, made, reference, features, console)
        runtime.barrier()
    finally:
        runtime.close()


def _score(a: argparse.Namespace, made: np.ndarray, real: Real, features: Features, console: Console) -> None:
    """Scores, for whoever reads, for the run's report, and for programs."""
    from maskdm import __version__
    from maskdm.data.dataset import default_cache
    from maskdm.data.write import make_folder
    from maskdm.evaluation import scores as evaluate
    from maskdm.reports.run_page import write_report

    reference = real.reference
    total = sum(len(part) for part in (made, reference.real, reference.known) if part is not None)
    with console.bar("features", total) as bar:
        scores = evaluate.evaluate(
            made, reference, features, cache_dir=default_cache() / "features", resamples=a.bootstrap, report=bar.update
        )
    note = evaluate.remark(len(made), None if reference.real is None else len(reference.real))
    print("\n".join([f"features   {features.name}", *evaluate.lines(scores), note]))
    if _is_model(a.subject) and a.subject.is_dir():
        against = "held-out pictures" if a.reference is None else Path(a.reference).name
        title = f"{a.model_weights} weights in {features.name}, {len(made):,} pictures against {against}"
        path = evaluate.write(a.subject / "eval", scores, title=title, command=a.typed, note=note)
        console.say(f"scores  {path}")
        console.say(f"report  {write_report(a.subject)}")
    if a.output is not None:
        make_folder(a.output.parent)
        page = {
            "command": a.typed,
            "maskdm": __version__,
            "features": features.name,
            "note": note,
            "scores": [asdict(score) for score in scores],
        }
        a.output.write_text(json.dumps(page, indent=2) + "\n")
        console.say(f"scores  {a.output}")


@dataclass(frozen=True)
class Real:
    """What pictures are compared with, and what else is known of it.

    Attributes:
        reference: pictures or statistics.
        shape: (H, W, C) of a picture, or None where there are only statistics.
        labels: of the reference pictures, and of those that an encoder is trained on; None without classes.
        class_names: that they number.
    """

    reference: Reference
    shape: tuple[int, int, int] | None = None
    labels: np.ndarray | None = None
    known_labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()


def _is_model(subject: Path) -> bool:
    return (subject / "config.yaml").is_file() or subject.suffix == ".safetensors"


def _denoiser(a: argparse.Namespace, runtime: Runtime) -> Denoiser:
    from maskdm.models.weights import load

    return load(
        a.subject,
        weights=a.model_weights,
        device=runtime.device,
        backbone=own_backbone(a.backbone),
        mixed_precision=a.mixed_precision,
    )


def _reference(a: argparse.Namespace, console: Console, denoiser: Denoiser | None) -> Real:
    from maskdm.data.dataset import load_image_set
    from maskdm.evaluation.scores import Reference, read_statistics

    if a.reference is None:
        if not (a.subject / "config.yaml").is_file():
            raise InputError("--reference: missing; give real pictures (only a run has held-out ones of its own)")
        return _own(a.subject, console)
    if a.reference.endswith(".npz"):
        statistics = read_statistics(Path(a.reference))
        if statistics is not None:
            return Real(Reference(None, statistics))
    pictures = load_image_set(a.reference, console, (*denoiser.image_size, denoiser.channels) if denoiser else None)
    height, width, channels = pictures.images.shape[1:]
    if denoiser is not None and any(size != (height, width) for size in pictures.source_sizes):
        console.warn(f"--reference: its pictures are resized to the model's {height} x {width} x {channels}")
    return Real(
        Reference(_all(pictures)),
        (height, width, channels),
        pictures.labels,
        pictures.labels,
        tuple(pictures.class_names or ()),
    )


def _own(run: Path, console: Console) -> Real:
    """A run's held-out pictures, and those that it was trained on."""
    import numpy as np

    from maskdm.data.dataset import read_dataset
    from maskdm.data.manifest import read_manifest
    from maskdm.evaluation.scores import Reference
    from maskdm.training.runs import read_config

    pictures = read_dataset(read_config(run).data, console).images
    manifest = read_manifest(run)
    manifest.check(pictures)
    members, heldout = (manifest.indices(role) for role in ("member", "heldout"))
    if len(heldout) < 2:
        raise InputError(f"--reference: missing; {run} has {len(heldout)} held-out pictures, wanted at least 2")
    if len(members) > MOST_KNOWN:
        members = members[np.linspace(0, len(members) - 1, MOST_KNOWN).round().astype(int)]
    height, width, channels = pictures.images.shape[1:]
    labels = pictures.labels
    return Real(
        Reference(pictures.images[heldout], known=pictures.images[members]),
        (height, width, channels),
        None if labels is None else labels[heldout],
        None if labels is None else labels[members],
        tuple(pictures.class_names or ()),
    )


def _features(a: argparse.Namespace, runtime: Runtime, console: Console, real: Real) -> Features:
    from maskdm.data.dataset import default_cache
    from maskdm.evaluation.encoder import on_members
    from maskdm.evaluation.features import pick

    def pictures() -> tuple[np.ndarray, np.ndarray | None]:
        """What an encoder is trained on: of training and reference pictures whichever are more."""
        reference, known = real.reference.real, real.reference.known
        if reference is None:
            raise InputError("--features: encoder is trained on the reference, which has no pictures but statistics")
        if known is not None and on_members(len(known), len(reference)):
            return known, real.known_labels
        return reference, real.labels

    return pick(
        a.features,
        device=runtime.device,
        cache_dir=default_cache(),
        reference=pictures,
        weights=a.weights,
        say=console.say,
    )


def _all(pictures: ImageSet) -> np.ndarray:
    import numpy as np

    return pictures.images[np.arange(len(pictures))]


def _made(a: argparse.Namespace, denoiser: Denoiser, real: Real, runtime: Runtime, console: Console) -> np.ndarray:
    """Pictures of a model, (N, H, W, C) uint8, as they would be saved; classes as often as in the reference."""
    from maskdm.diffusion.patches import to_uint8
    from maskdm.evaluation.scorer import labels_like
    from maskdm.sampling import ranks as dealing
    from maskdm.sampling.sample import plan

    same = bool(denoiser.class_names) and denoiser.class_names == real.class_names
    how = plan(
        denoiser,
        sampler=a.sampler,
        steps=a.steps,
        seeds=range(a.first_seed, a.first_seed + a.num),
        labels=labels_like(real.labels, a.num) if same and real.labels is not None else None,
        guidance=a.guidance,
    )
    own = len(runtime.turns(a.num))
    with console.bar("sampling", own * a.steps, "step") as bar:
        unit = dealing.make(how, a.num, runtime, batch_size=a.batch_size, report=bar.update)
    return to_uint8(unit).permute(0, 2, 3, 1).numpy()
