"""Few steps of one sampler against many of another: distance to held-out pictures, and time.

    python benchmarks/sampling.py RUN DATA [--num 1000] [--repeats 5] [--output sampling.json]

Pictures of the model in RUN by each of the ways below, `repeats` times from other seeds; the Frechet distance of each
set to the run's held-out pictures (Gaussians on raw pixels, averaged down to 8 x 8 where they are larger), mean and
standard deviation over the repeats. DATA is what the run was trained on. Where the difference between two rows is
within those deviations, their pictures cannot be told apart by this measure.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from maskdm.commands.sample import sample
from maskdm.data.manifest import read_manifest
from maskdm.evaluation.metrics import frechet_distance, gaussian
from maskdm.models.weights import load
from maskdm.runtime.console import Console
from maskdm.runtime.device import pick_device
from maskdm.training.prepare import prepare
from maskdm.training.read_run import read_config

WAYS: tuple[tuple[str, int, Literal["auto", "no"]], ...] = (
    ("ddim", 250, "no"),
    ("ddim", 50, "no"),
    ("ddim", 25, "no"),
    ("heun", 25, "no"),
    ("dpm++", 50, "no"),
    ("dpm++", 25, "no"),
    ("dpm++", 20, "no"),
    ("dpm++", 25, "auto"),
)
SIDE = 8


def features(unit: torch.Tensor) -> np.ndarray:
    """(N, C, H, W) in [0, 1] -> (N, at most C x 8 x 8), rounded to grey levels first."""
    rounded = (unit * 255).round() / 255
    small = F.adaptive_avg_pool2d(rounded, SIDE) if max(unit.shape[2:]) > SIDE else rounded
    return small.flatten(1).double().numpy()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    a = parser.parse_args()
    config = read_config(a.run)
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": a.data})})
    images = prepare(config, Console(quiet=True)).dataset.images.images[read_manifest(a.run).indices("heldout")]
    heldout = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    reference = gaussian(features(heldout))
    print(f"{a.num:,} pictures against {len(heldout):,} held out, {a.repeats} times\n")
    print("| sampler | steps | arithmetic | Frechet distance | s for each set |\n|---|---|---|---|---|")
    rows = []
    for sampler, steps, precision in WAYS:
        denoiser = load(a.run, device=pick_device("auto"), mixed_precision=precision)
        distances, since = [], time.perf_counter()
        for repeat in range(a.repeats):
            seeds = range(repeat * a.num, (repeat + 1) * a.num)
            made = sample(denoiser, sampler=sampler, steps=steps, seeds=seeds, batch_size=250)
            distances.append(frechet_distance(*gaussian(features(made)), *reference))
        seconds = (time.perf_counter() - since) / a.repeats
        mean, deviation = float(np.mean(distances)), float(np.std(distances, ddof=1)) if a.repeats > 1 else 0.0
        rows.append({"sampler": sampler, "steps": steps, "arithmetic": precision, "distances": distances})
        arithmetic = "float32" if precision == "no" else "bf16"
        print(f"| {sampler} | {steps} | {arithmetic} | {mean:.4f} ± {deviation:.4f} | {seconds:.1f} |", flush=True)
    if a.output:
        a.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
