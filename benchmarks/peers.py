"""What others use against maskdm: equal minutes, the same cores, images, split and features.

    pip install denoising-diffusion-pytorch diffusers accelerate     # none of them is needed by maskdm itself
    taskset -c 1 python benchmarks/peers.py --data emoji-google-64.zip --output peers

trains each peer and maskdm for 5, 20 and 60 minutes on one core, samples 256 images of each, and scores them against
the same held-out images: Frechet distance, KID, precision and recall in the features of one encoder. By estimate about
18 hours of the core: 12 of training (denoising-diffusion-pytorch passes all three times in one run, the others have
one run for each, since their schedules end with the time), the rest sampling, most of it of the three large networks.
`--peers` and `--minutes` choose; the same command resumes, and trains and samples nothing that is done.

    denoising-diffusion-pytorch   ddpm-pytorch-64 (its README's dim), ddpm-pytorch-32: its Trainer's defaults
    diffusers                     diffusers (its unconditional example), diffusers-small (scaled down to few minutes)
    the authors of the paper      paper (size S, half of the time 50 % masked, then whole), paper-plain (never masked),
                                  paper-small, paper-plain-small (width 128, 7 blocks): patch 4, epsilon, linear
                                  schedule, batches of 256 masked and 128 whole, 2e-4, a constant average of 0.999;
                                  run by maskdm
    maskdm                        maskdm (no classes, which no peer has), maskdm-classes: `train --minutes`

`benchmarks/peer_packages.py` says what is whose in the first four. A variant is one more peer, so that they can be
tuned: `--peers diffusers-small@lr=8e-4,batch=16`. `--maskdm NAME='ARGUMENTS'` is one more arm of `maskdm train`, such
as --maskdm 'laptop=--recipe laptop64 stages.0.minutes={minutes*0.25} stages.1.minutes={minutes*0.75}', where
{minutes*0.25} is a quarter of the minutes. data.key=value, in front of the options, says how the images are read and
split, for all of them; left out, as the recipe emoji64 does it.

Minutes are those of training steps on both sides; where maskdm's own --minutes says how long a run is, they are what
that keeps. results.json has `wall_seconds`, all that a command of maskdm took, and `cpu_seconds`: if they are far below
`seconds`, something else ran on the core. Samplers: DDIM with 50 steps and eta 0 for the packages, which is their own
cheap one, and for the authors' recipe; dpm++ with 25 for maskdm, as in `maskdm eval`. Of the authors' recipe the
averaged and the last weights are scored and the better ones count, since a constant average remembers the fresh network
for a thousand steps. The encoder is trained on the members, as that of `maskdm eval RUN` is.

The other packages compute in fp32, their default, and maskdm in what suits the machine. Where that is bf16 they have
`--mixed-precision bf16`, an option of theirs too; where the processor has no bf16, it makes convolutions many times
slower.

Left in the output: results.json, table.md, grids.png (the first 16 images of each, unselected; a row for each time),
and the runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_packages import (
    PEERS,
    missing_batches,
    missing_packages,
    peer,
    read_batches,
    runs_of,
    sample_peer,
    save_batch,
    train_peer,
)
from PIL import Image, ImageDraw, ImageFont

from maskdm import __version__
from maskdm.config.resolve import resolve
from maskdm.data.dataset import default_cache, read_dataset
from maskdm.data.manifest import read_manifest
from maskdm.data.write import image_grid, to_image
from maskdm.diffusion.pixels import to_uint8_nhwc
from maskdm.errors import InputError
from maskdm.evaluation.evaluate import labels_like, reference_features
from maskdm.evaluation.features import Features, hash_images
from maskdm.evaluation.scores import Reference, evaluate_images
from maskdm.files import replacing, write_json, write_text
from maskdm.models.weights import find_weights, load, read_weights
from maskdm.runtime.console import Console
from maskdm.sampling.sample import sample_images, sampling_config
from maskdm.training.read_run import is_finished, list_runs, read_history

Row = dict[str, Any]
DATA = (
    "data.image_size=64",
    "data.channels=3",
    "data.background=white",
    "data.salt=public",
    "data.group_by=([^/-]+)[^/]*$",
)
"""How emoji are read and split, as in the recipe emoji64."""
BATCH = 32
SHOWN = 16


@dataclass(frozen=True)
class Arm:
    """One way of running `maskdm train`.

    Attributes:
        arguments: of the command, with {minutes} in it.
        weights: that are scored; the best count.
        sampler: of its images.
        steps: of the sampler; None for as many as the peers have.
    """

    arguments: str
    weights: tuple[str, ...] = ("ema",)
    sampler: str = "dpm++"
    steps: int | None = 25


def _paper(masked: bool, small: bool) -> Arm:
    """The recipe of the paper's authors for CelebA 64, by the clock."""
    stages: list[dict[str, object]] = [{"name": "train", "minutes": "{minutes}", "batch_size": 128}]
    if masked:
        mask = {"kind": "block", "ratio": 0.5, "block": 4}
        stages = [
            {"name": "pretrain", "minutes": "{minutes*0.5}", "batch_size": 256, "mask": mask},
            {"name": "finetune", "minutes": "{minutes*0.5}", "batch_size": 128, "weights": "raw"},
        ]
    for stage in stages:
        stage |= {"lr": 2e-4, "clip": None, "micro_batch": 32}
    text = re.sub(r'"(\{[^"]*\})"', r"\1", json.dumps(stages))  # minutes are numbers
    size = "model.width=128 model.depth=7 model.heads=4" if small else ""
    quiet = "eval.samples=0 eval.heldout_images=0"
    words = f"--recipe celeba64-s data.flip=0 ema.decay=0.999 {quiet} {size} {shlex.quote('stages=' + text)}"
    return Arm(words, ("ema", "raw"), "ddim", None)


ARMS = {
    "paper": _paper(masked=True, small=False),
    "paper-plain": _paper(masked=False, small=False),
    "paper-small": _paper(masked=True, small=True),
    "paper-plain-small": _paper(masked=False, small=True),
    "maskdm": Arm("--minutes {minutes} model.classes=none"),
    "maskdm-classes": Arm("--minutes {minutes}"),
}
USUAL = [name for name in (*PEERS, *ARMS) if name != "paper-plain"]
"""What is trained where nothing is chosen."""


def fill(template: str, minutes: float) -> list[str]:
    """The words of a template; {minutes} and {minutes*0.25} become numbers.

    Raises:
        InputError: quotes that do not end.
    """
    text = re.sub(
        r"\{minutes(?:\*([0-9.]+))?\}", lambda found: f"{minutes * float(found[1] or 1):g}", template, flags=re.ASCII
    )
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError("--maskdm", f"cannot be read ({error})", got=template) from None


def named_arm(word: str) -> tuple[str, Arm]:
    """NAME=ARGUMENTS of --maskdm."""
    name, found, arguments = word.partition("=")
    if not found or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in PEERS:
        raise InputError("--maskdm", got=word, wanted="NAME=ARGUMENTS with a name that no peer has")
    return name, Arm(arguments)


def best(rows: Sequence[Row], key: str) -> list[Row]:
    """For each name and time the row of the weights that score least, in order of time and then as they come."""
    chosen: dict[tuple[float, str], Row] = {}
    for row in rows:
        place = (row["minutes"], row["name"])
        if place not in chosen or row["scores"][key] < chosen[place]["scores"][key]:
            chosen[place] = row
    return sorted(chosen.values(), key=lambda row: float(row["minutes"]))


def table(rows: Sequence[Row], key: str, own: str) -> list[str]:
    """Markdown: the best rows, and how many times the distance of `own` theirs is."""
    lines = [
        f"| minutes | what | parameters | images (steps) | {key} | over {own} | KID x 1000 | precision | recall |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found = best(rows, key)
    ours = {row["minutes"]: row["scores"][key] for row in found if row["name"] == own}
    for row in found:
        scores = row["scores"]
        over = f"{scores[key] / ours[row['minutes']]:.2f}" if row["minutes"] in ours else ""
        more = [f"{scores['KID x 1000']:.1f}", *(f"{scores[name]:.2f}" for name in ("precision", "recall"))]
        which = row["name"] + (f", {row['weights']}" if row["weights"] != "ema" else "")
        cells = [f"{row['minutes']:g}", which, f"{row['parameters'] / 1e6:.1f} M"]
        cells += [f"{row['images']:,} ({row['steps']:,})", f"{scores[key]:.3g}", over, *more]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def side_by_side(rows: Sequence[Sequence[tuple[str, np.ndarray]]], path: Path) -> None:
    """One PNG: rows of blocks of (N, H, W, C) images, each under its title."""
    font, strip, gap = ImageFont.load_default(), 16, 12
    blocks = [[(title, to_image(image_grid(images)).convert("RGB")) for title, images in row] for row in rows]
    wide = max(block.width for row in blocks for _, block in row) + gap
    tall = max(block.height for row in blocks for _, block in row) + strip + gap
    canvas = Image.new("RGB", (wide * max(map(len, blocks)), tall * len(blocks)), "white")
    for y, row in enumerate(blocks):
        for x, (title, block) in enumerate(row):
            ImageDraw.Draw(canvas).text((x * wide + 2, y * tall + 2), title, fill=0, font=font)
            canvas.paste(block, (x * wide, y * tall + strip))
    with replacing(path) as temporary:
        canvas.save(temporary, format="PNG")


# --- training and sampling ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What all have in common.

    Attributes:
        output: folder of one seed.
        data: the images, as for --data.
        words: data.key=value.
        members: hashes of the pixels of the images that may be learned from.
        reference: held-out images, and the members.
        num, steps: images of each, and steps of the peers' sampler.
        seed: of training.
        threads: of torch.
        bf16: whether other packages compute in bf16.
    """

    output: Path
    data: str
    words: tuple[str, ...]
    members: frozenset[str]
    reference: Reference
    num: int
    steps: int
    seed: int
    threads: int
    bf16: bool

    def folder(self, name: str, minutes: float) -> Path:
        """Of one name and time."""
        return self.output / name / f"{minutes:g}min"

    @property
    def images(self) -> Path:
        """The members' pixels as one array."""
        return self.output / "members.npy"


def in_child(function: Callable[..., None], *arguments: object, **more: object) -> None:
    """A call in a process of its own, whose memory is free afterwards, and which a package has to itself."""
    os.environ["TQDM_DISABLE"] = "1"  # bars of the packages; read as tqdm is imported
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(function, *arguments, **more).result()
    finally:
        del os.environ["TQDM_DISABLE"]


def train_arm(bench: Bench, name: str, arm: Arm, minutes: float) -> None:
    """`maskdm train`, or the rest of it where it was interrupted."""
    folder = bench.folder(name, minutes)
    runs = folder / "runs"
    words = ["--data", bench.data, *fill(arm.arguments, minutes), *bench.words, f"train.seed={bench.seed}"]
    begun = list_runs(runs) if runs.is_dir() else []
    resumed = ["--resume", "latest"] if begun else words
    command = [sys.executable, "-m", "maskdm", "train", *resumed, "--output-dir", str(runs)]
    before, since = _children_seconds(), time.monotonic()
    if not (begun and is_finished(begun[-1])):
        print("$", shlex.join(command), flush=True)
        subprocess.run(command, check=True)
    run = list_runs(runs)[-1]
    manifest = read_manifest(run)
    learned = {record.sha256_px for record in manifest.good if record.role == "member"}
    if learned != bench.members:
        raise InputError(name, "was trained on another split", remedy="leave data.key=value out of its arguments")
    history, weights = read_history(run), read_weights(find_weights(run, arm.weights[0]))
    trained = {
        "package": f"maskdm {__version__}",
        "parameters": sum(tensor.numel() for tensor in weights.tensors.values()),
        "steps": history.step,
        "images": history.images,
        "seconds": history.seconds,
        "cpu_seconds": None if begun else _children_seconds() - before,
        "wall_seconds": None if begun else time.monotonic() - since,
        "settings": {"command": shlex.join(["maskdm", "train", *words])},
        "precision": "as maskdm chooses",
        "weights": list(arm.weights),
    }
    write_json(folder / "trained.json", trained)


def _children_seconds() -> float:
    """Of the processor, by child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def sample_arm(run: Path, weights: str, arm: Arm, steps: int, labels: list[int], folder: Path, threads: int) -> None:
    """Images of a run, a batch after another, with these classes where the model has some."""
    torch.set_num_threads(threads)
    denoiser, num = load(run, weights=weights), len(labels)
    config = sampling_config(
        denoiser,
        sampler=arm.sampler,
        steps=arm.steps or steps,
        seeds=range(num),
        labels=labels if denoiser.class_names else None,
    )
    for number, size in missing_batches(folder, num, BATCH):
        start = number * BATCH
        save_batch(folder, number, to_uint8_nhwc(sample_images(config, range(start, start + size), batch_size=size)))


def train_all(bench: Bench, names: Sequence[str], arms: Mapping[str, Arm], minutes: Sequence[float]) -> None:
    """Whatever is not yet trained."""
    for name in names:
        if name in arms:
            for each in sorted(minutes):
                if not (bench.folder(name, each) / "trained.json").is_file():
                    train_arm(bench, name, arms[name], each)
            continue
        for marks in runs_of(peer(name), minutes):
            folders = {mark: bench.folder(name, mark) for mark in marks}
            if all((folder / "trained.json").is_file() for folder in folders.values()):
                continue
            print(f"{name}: {', '.join(f'{mark:g}' for mark in marks)} minutes", flush=True)
            options: dict[str, Any] = {"seed": bench.seed, "threads": bench.threads, "bf16": bench.bf16}
            in_child(train_peer, name, bench.images, folders, steps=bench.steps, **options)


def sample_all(bench: Bench, name: str, arm: Arm | None, minutes: float) -> dict[str, np.ndarray]:
    """Weights -> (num, H, W, C) uint8, made where they are not there."""
    folder, real = bench.folder(name, minutes), bench.reference.real
    assert real is not None, "held-out images"
    found = {}
    for weights in arm.weights if arm else ("ema",):
        calls = (arm.steps if arm else None) or bench.steps
        samples = folder / f"{weights}-{bench.num}-images-{calls}-steps"
        if any(missing_batches(samples, bench.num, BATCH)):
            print(f"{name}, {minutes:g} minutes: sampling, {weights}", flush=True)
            if arm:
                labels = [0] * bench.num if real.labels is None else labels_like(real.labels, bench.num)
                run = list_runs(folder / "runs")[-1]
                in_child(sample_arm, run, weights, arm, bench.steps, labels, samples, bench.threads)
            else:
                options = {"num": bench.num, "steps": bench.steps, "batch": BATCH, "threads": bench.threads}
                in_child(sample_peer, name, folder / "weights.safetensors", samples, bench.reference.shape, **options)
        found[weights] = read_batches(samples, bench.num, BATCH)
    return found


def score(bench: Bench, images: np.ndarray, features: Features, path: Path) -> dict[str, float]:
    """Scores in one kind of features by their names; kept, since some features are slow."""
    key = hashlib.sha256(f"{features.name} {bench.reference.sha256} {hash_images(images)}".encode()).hexdigest()
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if key not in kept:
        scores = evaluate_images(images, bench.reference, features, cache_dir=default_cache() / "features")
        kept[key] = {each.name: each.value for each in scores}
        write_json(path, kept)
    found: dict[str, float] = kept[key]
    return found


# --- all of it --------------------------------------------------------------------------------------------------------


def prepare(a: argparse.Namespace) -> Bench:
    """Reads and splits the images, and writes the members as one array."""
    words = tuple(a.words or DATA)
    if other := [word for word in words if not word.startswith("data.")]:
        raise InputError(other[0], "is no setting of the images", remedy="settings of maskdm go into --maskdm")
    dataset = read_dataset(resolve(overrides=[f"data.path={a.data}", *words]).data, Console())
    members, heldout = (dataset.images.take(dataset.rows(role)) for role in ("member", "heldout"))
    reference = Reference(heldout, train=members, class_names=tuple(dataset.images.class_names))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    output = a.output / f"seed-{a.seed}"
    bench = Bench(
        output,
        a.data,
        words,
        frozenset(members.ids),
        reference,
        a.num,
        a.steps,
        a.seed,
        threads,
        a.mixed_precision == "bf16",
    )
    output.mkdir(parents=True, exist_ok=True)
    common = {"data": hash_images(members.images), "heldout": hash_images(heldout.images), "threads": threads}
    common |= {"mixed_precision": a.mixed_precision, "words": list(words)}
    begun = output / "common.json"
    if begun.is_file() and (there := json.loads(begun.read_text(encoding="utf-8"))) != common:
        key = next(key for key in common if there.get(key) != common[key])
        raise InputError("--output", f"{output} was begun with another {key}", remedy="give another folder")
    write_json(begun, common)
    if not bench.images.is_file():
        with replacing(bench.images) as temporary, temporary.open("wb") as file:
            np.save(file, members.images)
    print(f"{len(members):,} members, {len(heldout):,} held out, {threads} threads")
    return bench


def results(bench: Bench, names: Sequence[str], arms: Mapping[str, Arm], minutes: Sequence[float], a: Any) -> None:
    """Samples and scores all that is trained; writes and prints."""
    device, console = torch.device("cpu"), Console()
    kinds = [reference_features(each, bench.reference, device=device, console=console) for each in a.features]
    if a.dinov2:
        kinds.append(
            reference_features("dinov2", bench.reference, device=device, features_weights=a.dinov2, console=console)
        )
    real = bench.reference.real
    assert real is not None, "held-out images"
    shown = labels_like(np.arange(len(real)), SHOWN)
    keys = [f"{features.distance}, generated" for features in kinds]
    found: dict[str, list[Row]] = {features.name: [] for features in kinds}
    grids: list[list[tuple[str, np.ndarray]]] = []
    for each in sorted(minutes):
        images = {}
        for name in names:
            trained = json.loads((bench.folder(name, each) / "trained.json").read_text(encoding="utf-8"))
            for weights, generated in sample_all(bench, name, arms.get(name), each).items():
                images[name, weights] = generated
                for features in kinds:
                    scores = score(bench, generated, features, bench.folder(name, each) / "scores.json")
                    row = {"name": name, "minutes": each, **trained, "weights": weights, "scores": scores}
                    found[features.name].append(row)
        first = best([row for row in found[kinds[0].name] if row["minutes"] == each], keys[0])
        blocks = [(row["name"], images[row["name"], row["weights"]][:SHOWN]) for row in first]
        grids.append([(f"{each:g} minutes; held out", real.images[shown]), *blocks])
        side_by_side(grids, bench.output / "grids.png")
    lines = []
    own = next((name for name in names if name in arms and not name.startswith("paper")), names[0])
    for features, key in zip(kinds, keys, strict=True):
        rows = found[features.name]
        floor = rows[0]["scores"][f"{features.distance}, training images"]
        lines += [*table(rows, key, own), f"\nThe training images themselves: {floor:.3g} ({features.name}).\n"]
    page = {
        "command": shlex.join(sys.argv),
        "machine": f"{platform.machine()}, {bench.threads} threads, torch {torch.__version__}",
        "num": bench.num,
        "steps": bench.steps,
        "seed": bench.seed,
        "members": len(bench.members),
        "heldout": len(real),
        "arms": {name: asdict(arm) for name, arm in arms.items() if name in names},
        "features": found,
    }
    write_json(bench.output / "results.json", page)
    write_text(bench.output / "table.md", "\n".join(lines))
    print("\n".join(lines))


def main() -> None:
    """Trains, samples, scores, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images, as for maskdm train")
    parser.add_argument("--output", type=Path, default=Path("peers"), metavar="DIR")
    parser.add_argument("--peers", nargs="+", default=None, metavar="NAME", help=f"of {', '.join((*PEERS, *ARMS))}")
    parser.add_argument("--maskdm", action="append", default=[], metavar="NAME=ARGUMENTS", help="one more arm")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 20, 60])
    parser.add_argument("--num", type=int, default=256, help="images of each (default: 256)")
    parser.add_argument("--steps", type=int, default=50, help="of the peers' sampler (default: 50)")
    parser.add_argument("--features", nargs="+", default=["encoder"], help="as of maskdm eval (default: encoder)")
    parser.add_argument("--dinov2", type=Path, metavar="DIR", help="DINOv2 too, by the weights in this folder")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no", help="of other packages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("words", nargs="*", metavar="data.key=value", help="how images are read and split")
    a = parser.parse_intermixed_args()
    try:
        arms = ARMS | dict(named_arm(word) for word in a.maskdm)
        chosen = USUAL if a.peers is None else a.peers
        names = list(dict.fromkeys([*chosen, *(word.partition("=")[0] for word in a.maskdm)]))
        for name in names:
            if name not in arms and name.partition("@")[0] not in PEERS:
                raise InputError("--peers", got=name, wanted=f"some of {', '.join((*PEERS, *arms))}")
        if missing := missing_packages([peer(name) for name in names if name not in arms]):
            raise InputError("--peers", f"missing packages; pip install {' '.join(missing)}")
        bench = prepare(a)
        os.environ["OMP_NUM_THREADS"] = str(bench.threads)  # of child processes
        torch.set_num_threads(bench.threads)
        train_all(bench, names, arms, a.minutes)
        results(bench, names, arms, a.minutes, a)
    except InputError as error:
        raise SystemExit(f"peers.py: {error}") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"peers.py: {shlex.join(error.cmd)} ended with {error.returncode}") from None


if __name__ == "__main__":
    main()
