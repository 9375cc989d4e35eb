"""Does masked pre-training leak less? Members told from held-out pictures, against what the model has learned.

    python benchmarks/leakage.py --data fashion-mnist/ --output leakage.json --plot leakage.svg
    python benchmarks/leakage.py --show leakage.json --plot leakage.svg
    python benchmarks/leakage.py --data fashion-mnist/ --seeds 0 1 2 --arms scratch masked

Arms, on 256 member pictures, 16 x 16:

    scratch         trained on members alone
    masked          pre-trained on the same members, 75 % hidden, then trained on them whole
    public-masked   pre-trained on 5,000 other pictures, 75 % hidden, then trained on the members
    public          pre-trained on the same other pictures, nothing hidden, then trained on the members

The last is the arm that separates masking from public pictures. Every arm is audited several times while it is trained
on members, and the leak (AUC of the primary statistic) is compared at equal held-out error, by straight lines between
audits, where that is the least that both of two arms reach. The null hypothesis is that masking makes no difference
there. `--data` is a folder with the files of Fashion-MNIST (train-images-idx3-ubyte.gz).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from curves import curves
from fashion import idx

from maskdm.auditing.attacks import primary_attacks
from maskdm.auditing.audit import role_errors
from maskdm.auditing.scoring import score_attacks
from maskdm.auditing.subject import run_subject
from maskdm.auditing.target import ModelTarget
from maskdm.config.resolve import resolve
from maskdm.experiments.ratios import t_quantile
from maskdm.models.weights import load
from maskdm.runtime.console import Console
from maskdm.training.start import start_training

MEMBERS, POOL, PUBLIC = 256, 2560, 5000
NETWORK = (
    "model.patch_size=4",
    "model.width=96",
    "model.depth=5",
    "model.heads=4",
    "process.prediction=eps",
    "data.image_size=16",
    "data.salt=public",
    "train.mixed_precision=no",
    "eval.samples=0",
    "eval.heldout_images=0",
    "ema.sigma_rel=0.05",
)
STAGE = {"batch_size": 64, "lr": 1e-3, "warmup_steps": 50}
MASK = {"kind": "patch", "ratio": 0.75}
PARTS = 5
"""Audits along an arm."""


@dataclass(frozen=True)
class Point:
    """One audit: how far, what was learned, what leaks."""

    arm: str
    seed: int
    part: int
    heldout_error: float
    member_error: float
    auc: float
    error: float


def train(folder: Path, data: Path, stages: list[dict[str, object]], seed: int, *split: str) -> Path:
    """A run in `folder`."""
    words = [f"data.path={data}", *NETWORK, f"stages={json.dumps(stages)}", f"train.seed={seed}", *split]
    config = resolve(overrides=words)
    return start_training(config, output_dir=folder, name="run", resume="never", console=Console(quiet=True))


def arms(steps: int) -> dict[str, tuple[dict[str, object] | None, dict[str, object] | None]]:
    """Name -> (a stage on public pictures or None, a masked stage on members or None)."""
    before = {"name": "pretrain", "steps": steps, **STAGE}
    return {
        "scratch": (None, None),
        "masked": (None, {**before, "mask": MASK}),
        "public-masked": ({**before, "mask": MASK}, None),
        "public": (before, None),
    }


def audited(run: Path, stage: str, arm: str, seed: int, part: int) -> Point:
    """One stage of a run."""
    subject = run_subject(run, f"{stage}-ema", seed=0, console=Console(quiet=True)).subset(MEMBERS, 600, 500, 0)
    denoiser = load(run, weights=f"{stage}-ema")
    primary = score_attacks(ModelTarget(denoiser), primary_attacks(4), subject, batch_size=256)[0]
    members, heldout = role_errors(denoiser, subject, 256)
    found = primary.auc
    return Point(arm, seed, part, heldout, members, found.value, found.error)


def run_arm(name: str, seed: int, steps: int, pool: Path, public: Path, folder: Path) -> list[Point]:
    """Trains and audits one arm."""
    outside, inside = arms(steps)[name]
    share = 1 - MEMBERS / POOL
    split = (f"data.heldout={share / 2:.4f}", f"data.calibration={share / 2:.4f}")
    own = [{"name": f"part{i}", "steps": steps // PARTS, **STAGE} for i in range(PARTS)]
    if outside is not None:
        before = train(folder, public, [outside], seed, "data.heldout=0", "data.calibration=0")
        own[0]["init_from"] = str(before)
    run = train(folder, pool, [*([inside] if inside else []), *own], seed, *split)
    return [audited(run, f"part{i}", name, seed, i) for i in range(PARTS)]


def at_error(points: list[Point], error: float) -> float:
    """The leak where the held-out error was `error`, on the way down.

    An arm that was below it at its first audit had that leak at most: then it is that of the first audit.
    """
    if points[0].heldout_error <= error:
        return points[0].auc
    here, there = next((a, b) for a, b in pairwise(points) if a.heldout_error >= error >= b.heldout_error)
    way = (here.heldout_error - error) / max(here.heldout_error - there.heldout_error, 1e-12)
    return here.auc + way * (there.auc - here.auc)


def table(points: list[Point], names: list[str], seeds: list[int]) -> list[str]:
    """Where every arm ends, and the leak of two of them at the least held-out error that both reach."""
    lines = ["arm            held-out error at the end  AUC at the end"]
    by = {(n, s): [p for p in points if (p.arm, p.seed) == (n, s)] for n in names for s in seeds}
    for name in names:
        ends = [by[name, s][-1] for s in seeds if by[name, s]]
        lines.append(f"{name:14} {spread([p.heldout_error for p in ends], 4):26} {spread([p.auc for p in ends], 3)}")
    lines.append(
        "AUC at the least error that both reach; difference, 95 % by Student's t over seeds, one pair at a time"
    )
    for one, other in combinations(names, 2):
        pairs = [(by[one, s], by[other, s]) for s in seeds if by[one, s] and by[other, s]]
        if pairs:
            lines.append(f"{one} - {other}".ljust(28) + compared(pairs))
    return lines


def compared(pairs: list[tuple[list[Point], list[Point]]]) -> str:
    """Two arms over seeds, at the least held-out error that both reach."""
    found, bounds = [], 0
    for one, other in pairs:
        error = max(min(p.heldout_error for p in points) for points in (one, other)) + 1e-9
        found.append((at_error(one, error), at_error(other, error)))
        bounds += one[0].heldout_error <= error or other[0].heldout_error <= error
    means = f"{mean(a for a, _ in found):.3f} against {mean(b for _, b in found):.3f}"
    note = f"; in {bounds} of {len(found)} one was below it at its first audit, which is taken" if bounds else ""
    return f"{means}: {difference([a - b for a, b in found])}{note}"


def difference(values: list[float]) -> str:
    """A mean and its interval over seeds."""
    if len(values) < 2:
        return f"{values[0]:+.3f} (1)" if values else "never"
    half = t_quantile(len(values)) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):+.3f} ({mean(values) - half:+.3f} to {mean(values) + half:+.3f})"


def plot(path: Path, points: list[Point]) -> None:
    """The leak against the held-out error, a line for each arm and seed."""
    arms: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for p in points:
        arms.setdefault(p.arm, {}).setdefault(p.seed, []).append((p.heldout_error, p.auc))
    lines = {name: list(by.values()) for name, by in arms.items()}
    curves(path, lines, "held-out error", "AUC of members against held-out pictures")


def spread(values: list[float], digits: int) -> str:
    """Mean and deviation over seeds."""
    if not values:
        return "never"
    said = f"{mean(values):.{digits}f}"
    return f"{said} ± {stdev(values):.{digits}f} ({len(values)})" if len(values) > 1 else f"{said} ({len(values)})"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path)
    what.add_argument("--show", type=Path, metavar="JSON", help="the table of an earlier --output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(arms(1)), choices=list(arms(1)))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path, metavar="SVG")
    a = parser.parse_args()
    points = [Point(**each) for each in json.loads(a.show.read_text(encoding="utf-8"))] if a.show else measured(a)
    found = [name for name in arms(1) if any(p.arm == name for p in points)]
    print("\n".join(table(points, found, sorted({p.seed for p in points}))))
    if a.plot is not None:
        plot(a.plot, points)


def measured(a: argparse.Namespace) -> list[Point]:
    """All arms and seeds, each written as it ends."""
    torch.set_num_threads(1)
    images = idx(a.data / "train-images-idx3-ubyte.gz")[..., None]
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        np.savez(folder / "pool.npz", images=images[:POOL])
        np.savez(folder / "public.npz", images=images[POOL : POOL + PUBLIC])
        for seed in a.seeds:
            for name in a.arms:
                points += run_arm(name, seed, a.steps, folder / "pool.npz", folder / "public.npz", folder / "runs")
                for p in points[-PARTS:]:
                    print(f"{p.arm:14} seed {p.seed} part {p.part}: held-out {p.heldout_error:.4f}, AUC {p.auc:.3f}")
                if a.output is not None:
                    a.output.write_text(json.dumps([asdict(p) for p in points], indent=2) + "\n", encoding="utf-8")
    return points


if __name__ == "__main__":
    main()
