"""maskdm eval, compare."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from maskdm.commands.parsing import Commands, command, numbers
from maskdm.commands.words import Words, check_words
from maskdm.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from maskdm.data.cache import ImageSet
    from maskdm.measuring.evaluate import Reference
    from maskdm.training.console import Console
    from maskdm.training.runtime import Runtime


def add_eval(commands: Commands) -> None:
    """Options of maskdm eval."""
    p = command(
        commands,
        "eval",
        "measure how near generated pictures come to real ones",
        "  maskdm eval runs/00000-photos\n"
        "  maskdm eval runs/00000-photos --features encoder --num 2000 --bootstrap 200\n"
        "  maskdm eval samples/ --reference photos/ --features inception\n"
        "  maskdm eval model.safetensors --reference statistics.npz --features inception --weights inception.pth\n\n"
        "A run is compared with its own held-out pictures unless --reference says otherwise. FID, KID, precision,\n"
        "recall, density, coverage, and how near pictures lie to the training set. Numbers compare only in the same\n"
        "features and with as many pictures.",
    )
    p.add_argument("subject", metavar="RUN|FILE|IMAGES", type=Path, help="a model, or pictures that were made before")
    p.add_argument("--reference", metavar="DATA|NPZ", help="real pictures, or an .npz with mu and sigma")
    p.add_argument(
        "--features",
        default="pixels",
        metavar="NAME|FILE",
        help="pixels, inception, encoder, or a file (default: pixels)",
    )
    p.add_argument("--weights", type=Path, metavar="FILE", help="of inception, in place of the download")
    p.add_argument("--num", type=int, default=1000, metavar="N", help="pictures that a model makes (default: 1000)")
    p.add_argument("--sampler", default="dpm++", help="of a model (default: dpm++)")
    p.add_argument("--steps", type=int, default=25, metavar="N", help="of the sampler (default: 25)")
    p.add_argument("--guidance", type=float, default=1.0, metavar="W", help="of a model (default: 1, none)")
    p.add_argument("--first-seed", type=int, default=0, metavar="N", help="seeds count from here (default: 0)")
    p.add_argument("--model-weights", default="ema", metavar="ema|raw", help="of a run (default: ema)")
    p.add_argument("--bootstrap", type=int, default=0, metavar="B", help="resamples for an interval of the distance")
    p.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures at once (default: 64)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    p.add_argument("--output", "-o", type=Path, metavar="FILE.json", help="also write the scores there")
    p.set_defaults(run=_eval)


def add_compare(commands: Commands) -> None:
    """Options of maskdm compare."""
    p = command(
        commands,
        "compare",
        "train in several ways with the same compute, and say which was better",
        "  maskdm compare masks --data photos/\n"
        "  maskdm compare mine.yaml --data photos/ --output-dir compare --seeds 0,1,2 --minutes 30\n"
        "  maskdm compare masks --data photos/ --dry-run\n"
        "  maskdm compare --list\n\n"
        "Run the same command again to go on. Arms are trained one after another; let nothing else run meanwhile.\n"
        "key.sub=value settings hold for every arm.",
    )
    p.add_argument("config", metavar="FILE|NAME", nargs="?", help="arms, budget and seeds; or a shipped comparison")
    p.add_argument("--data", metavar="DIR|FILE|hf:NAME", help="the pictures (data.path)")
    p.add_argument(
        "--output-dir", "--outdir", metavar="DIR", type=Path, default=Path("compare"), help="where (default: compare)"
    )
    p.add_argument("--pretrain-data", metavar="DIR|FILE|hf:NAME", help="the pictures of models that arms start from")
    p.add_argument("--minutes", type=float, metavar="M", help="another budget than the file's")
    p.add_argument("--seeds", metavar="0,1", help="other seeds than the file's")
    p.add_argument("-n", "--dry-run", action="store_true", help="check all arms and list them, train nothing")
    p.add_argument("--list", action="store_true", help="list the shipped comparisons, and leave")
    p.set_defaults(run=_compare, settings_follow=True)


def _compare(a: argparse.Namespace, rest: Words) -> None:
    from maskdm.data.pictures import check_folder, make_folder
    from maskdm.interop.official import read_any
    from maskdm.measuring import compare
    from maskdm.measuring.compare_page import write_page
    from maskdm.measuring.comparison import Budget, comparisons, read_comparison
    from maskdm.measuring.scoring import scorer
    from maskdm.measuring.verdict import lines, verdicts
    from maskdm.training import start
    from maskdm.training.console import Console

    if a.list:
        for name, header in comparisons().items():
            print(f"{name:18} {header}")
        return
    if a.config is None:
        raise InputError(f"comparison: missing; give a file, or one of {', '.join(comparisons())}")
    check_words(rest, "compare")
    if a.minutes is not None and not a.minutes > 0:
        raise InputError(f"--minutes: got {a.minutes:g}, wanted more than 0")
    comparison = read_comparison(a.config)
    if a.pretrain_data is not None and not comparison.pretrained:
        raise InputError("--pretrain-data: given, but no arm starts from another model; leave it out")
    changes: dict[str, object] = {}
    if a.minutes is not None:
        changes["budget"] = Budget(minutes=a.minutes)
    if a.seeds is not None:
        changes["seeds"] = tuple(numbers(a.seeds, "--seeds"))
        if len(set(numbers(a.seeds, "--seeds"))) < len(numbers(a.seeds, "--seeds")):
            raise InputError(f"--seeds: got {a.seeds!r}, wanted different numbers such as 0,1,2")
    comparison = comparison.model_copy(update=changes)
    words = [*([f"data.path={a.data}"] if a.data is not None else []), *rest]
    elsewhere = [f"data.path={a.pretrain_data}"] if a.pretrain_data is not None else []
    console = Console()
    check_folder(a.output_dir, "--output-dir")
    todo = compare.plan(comparison, words, console, pretrain_words=elsewhere)
    if a.dry_run:
        for (name, seed), prepared in [*todo.pretrained.items(), *todo.arms.items()]:
            console.say(f"{name}, seed {seed}")
            for line in start.plan(prepared):
                console.say(f"  {line}")
        return
    make_folder(a.output_dir)
    done: list[compare.Outcome] = []
    for found in compare.compare(
        comparison, todo, output_dir=a.output_dir, console=console, read=read_any, scorer=scorer
    ):
        done.append(found)
        so_far = verdicts(done, comparison.baseline) if any(o.arm == comparison.baseline for o in done) else []
        path = write_page(a.output_dir, comparison, done, so_far)
    print("\n".join(lines(verdicts(done, comparison.baseline))))
    console.say(f"page  {path}")


def _eval(a: argparse.Namespace) -> None:
    from maskdm.data.pictures import check_folder
    from maskdm.measuring import evaluate
    from maskdm.measuring.features import pick
    from maskdm.training.console import Console
    from maskdm.training.runtime import join
    from maskdm.training.start import usual_cache

    if a.bootstrap < 0:
        raise InputError(f"--bootstrap: got {a.bootstrap}, wanted 0 or more")
    if a.output is not None:
        check_folder(a.output.parent, "--output")
    console, runtime = Console(), join(a.device, "--device")
    model = _is_model(a.subject)
    reference, labels, size = _reference(a, console, model)
    cache = usual_cache()

    def pictures() -> tuple[np.ndarray, np.ndarray | None]:
        known = reference.known if reference.known is not None else reference.real
        if known is None:
            raise InputError("--features: encoder is trained on the reference, which has no pictures but statistics")
        return known, labels

    features = pick(
        a.features, device=runtime.device, cache_dir=cache, reference=pictures, weights=a.weights, say=console.say
    )
    made = _made(a, runtime, console) if model else _loaded(a, console, size)
    total = sum(len(part) for part in (made, reference.real, reference.known) if part is not None)
    with console.bar("features", total) as bar:
        scores = evaluate.evaluate(
            made, reference, features, cache_dir=cache / "features", resamples=a.bootstrap, report=bar.update
        )
    note = evaluate.remark(len(made), None if reference.real is None else len(reference.real))
    print("\n".join([f"features   {features.name}", *evaluate.lines(scores), note]))
    words = ["maskdm eval", str(a.subject), f"--features {a.features}", f"--num {a.num}"] if model else []
    if model and a.subject.is_dir():
        path = evaluate.write(
            a.subject / "eval", scores, title=f"Quality in {features.name}", command=" ".join(words), note=note
        )
        console.say(f"scores  {path}")
    if a.output is not None:
        page = {"features": features.name, "note": note, "scores": [asdict(score) for score in scores]}
        a.output.write_text(json.dumps(page, indent=2) + "\n")


def _is_model(subject: Path) -> bool:
    return (subject / "config.yaml").is_file() or subject.suffix == ".safetensors"


def _reference(
    a: argparse.Namespace, console: Console, model: bool
) -> tuple[Reference, np.ndarray | None, tuple[int, int, int] | None]:
    """What to compare with, the labels of the pictures an encoder would be trained on, and (H, W, C) of a picture."""
    from maskdm.data.manifest import read_manifest
    from maskdm.measuring.evaluate import Reference, read_statistics
    from maskdm.training.run import read_config
    from maskdm.training.start import prepare
    from maskdm.training.weights import find, read

    if a.reference is None:
        if not (a.subject / "config.yaml").is_file():
            raise InputError("--reference: missing; give real pictures (only a run has held-out ones of its own)")
        pictures = prepare(read_config(a.subject), console).pictures
        manifest = read_manifest(a.subject)
        manifest.check(pictures)
        members, heldout = (manifest.indices(role) for role in ("member", "heldout"))
        labels = None if pictures.labels is None else pictures.labels[members]
        height, width, channels = pictures.images.shape[1:]
        return (
            Reference(pictures.images[heldout], known=pictures.images[members]),
            labels,
            (height, width, channels),
        )
    if a.reference.endswith(".npz"):
        statistics = read_statistics(Path(a.reference))
        if statistics is not None:
            return Reference(None, statistics), None, None
    spec = read(find(a.subject, a.model_weights)).spec if model else None
    pictures = _load(a.reference, console, (*spec.image_size, spec.channels) if spec else None)
    height, width, channels = pictures.images.shape[1:]
    return Reference(_all(pictures)), pictures.labels, (height, width, channels)


def _load(path: str, console: Console, size: tuple[int, int, int] | None) -> ImageSet:
    from maskdm.data.cache import load_images
    from maskdm.data.sources import open_source
    from maskdm.training.start import usual_cache

    return load_images(
        open_source(path),
        cache_dir=usual_cache(),
        say=console.warn,
        image_size="auto" if size is None else size[:2],
        channels="auto" if size is None else size[2],
        progress=console.bar,
    )


def _all(pictures: ImageSet) -> np.ndarray:
    import numpy as np

    return pictures.images[np.arange(len(pictures))]


def _loaded(a: argparse.Namespace, console: Console, size: tuple[int, int, int] | None) -> np.ndarray:
    """Pictures that were made before, in the size of the reference; without the grid that `sample` lays beside them."""
    import numpy as np

    pictures = _load(str(a.subject), console, size)
    sampled = any(name.startswith("seed-") for name in pictures.names)
    return pictures.images[np.flatnonzero([not (sampled and name == "grid.png") for name in pictures.names])]


def _made(a: argparse.Namespace, runtime: Runtime, console: Console) -> np.ndarray:
    """Pictures of a model, (N, H, W, C) uint8, as they would be saved."""
    from maskdm.method.patches import to_uint8
    from maskdm.method.sampling import sample
    from maskdm.training.weights import load

    denoiser = load(a.subject, weights=a.model_weights, device=runtime.device)
    with console.bar("sampling", a.num * a.steps, "step") as bar:
        unit = sample(
            denoiser,
            a.num,
            sampler=a.sampler,
            steps=a.steps,
            seeds=range(a.first_seed, a.first_seed + a.num),
            guidance=a.guidance,
            batch_size=a.batch_size,
            report=bar.update,
        )
    return to_uint8(unit).permute(0, 2, 3, 1).numpy()
