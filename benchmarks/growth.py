"""What a step costs as images, patches, masks and data sets grow: what is linear, and what is not.

    python benchmarks/growth.py [--rounds 5] [--most 1000000] [--output growth.json] [key=value ...]

A U-ViT of width 256 and 7 blocks, batch 16. Time is the median of the rounds, all cases of a table in turn; memory is
what one image adds (`estimate_memory`). The last table takes batches of 64 from caches of ever more images of 64 px,
mapped from a sparse file, in the shuffled order of training: the time of a batch, and of the shuffling at the start of
an epoch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

from maskdm.config.resolve import resolve
from maskdm.models.flops import training_flops
from maskdm.training.batches import member_order
from maskdm.training.prepare import synthetic_task
from maskdm.training.step_profiler import StepProfiler
from maskdm.training.store import HostStore

USUAL = ("model.width=256", "model.depth=7", "model.heads=4", "stages.0.batch_size=16")
NONE = "stages.0.mask={kind: none, ratio: 0}"
Case = tuple[str, tuple[str, ...]]
TABLES: dict[str, tuple[Case, ...]] = {
    "image size, patches of 4": tuple((f"{n} px", (f"data.image_size={n}", NONE)) for n in (32, 64, 96, 128)),
    "image size, patches of n / 16": tuple(
        (f"{n} px", (f"data.image_size={n}", f"model.patch_size={n // 16}", NONE)) for n in (32, 64, 128, 256)
    ),
    "patch size, 64 px": tuple((f"{p} px", (f"model.patch_size={p}", NONE)) for p in (2, 4, 8, 16)),
    "hidden, 64 px, patches of 2": tuple(
        (f"{r:.0%}", ("model.patch_size=2", f"stages.0.mask={{kind: patch, ratio: {r}}}" if r else NONE))
        for r in (0.0, 0.5, 0.75, 0.9)
    ),
}


def steps(cases: Sequence[Case], words: Sequence[str], rounds: int) -> list[dict[str, float | str]]:
    """A row for each case."""
    trials = [StepProfiler(synthetic_task(resolve(overrides=[*USUAL, *settings, *words]))) for _, settings in cases]
    needs = [trial.memory() for trial in trials]
    for trial in trials:
        trial.step()
    taken = [[trial.step() for trial in trials] for _ in range(rounds)]
    rows: list[dict[str, float | str]] = []
    for i, (name, _) in enumerate(cases):
        task, need = trials[i].task, needs[i]
        rows.append(
            {
                "case": name,
                "patches": task.masks[0].maskings[0].num_visible,
                "seconds": median(seconds[i] for seconds in taken),
                "flops": training_flops(task.spec, task.masks[0].phases[0]) * trials[i].batch_size,
                "bytes_an_image": need.per_image if need else float("nan"),
            }
        )
    return rows


def show(title: str, rows: Sequence[dict[str, float | str]]) -> None:
    """With each row's cost over the first."""
    print(f"\n{title}\n\n| case | patches | s/step | over the first | FLOPs over the first | MiB an image |")
    print("|---|---|---|---|---|---|")
    first = rows[0]
    for row in rows:
        seconds, flops, size = (float(row[key]) for key in ("seconds", "flops", "bytes_an_image"))
        time_over, flops_over = seconds / float(first["seconds"]), flops / float(first["flops"])
        print(
            f"| {row['case']} | {row['patches']:,} | {seconds:.4f} | {time_over:.2f} | {flops_over:.2f} | "
            f"{size / 2**20:.1f} |",
            flush=True,
        )


def batches(most: int, rounds: int) -> list[dict[str, float]]:
    """Batches from caches of a hundredth, a tenth and all of `most` pictures."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (most // 100, most // 10, most):
            shape = (count, 64, 64, 3)
            images = np.lib.format.open_memmap(Path(folder) / f"{count}.npy", "w+", np.uint8, shape)
            del images  # and mapped again as a run maps it
            store = HostStore(np.load(Path(folder) / f"{count}.npy", mmap_mode="r"), torch.device("cpu"))
            since = time.perf_counter()
            member_order(count, 64, 0, "growth", count)
            shuffling, seconds = time.perf_counter() - since, []
            for step in range(1, 20 * rounds):
                since = time.perf_counter()
                store.take(member_order(count, 64, step, "growth", count))
                seconds.append(time.perf_counter() - since)
            rows.append({"pictures": count, "batch_seconds": median(seconds), "epoch_seconds": shuffling})
    return rows


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("words", nargs="*", metavar="key=value")
    a = parser.parse_intermixed_args()
    found: dict[str, object] = {}
    for title, cases in TABLES.items():
        rows = steps(cases, a.words, a.rounds)
        show(title, rows)
        found[title] = rows
    found["data set"] = rows_of_data = batches(a.most, a.rounds)
    print("\npictures in the set\n\n| pictures | ms a batch of 64 | ms to shuffle an epoch |\n|---|---|---|")
    for row in rows_of_data:
        print(f"| {row['pictures']:,} | {1e3 * row['batch_seconds']:.3f} | {1e3 * row['epoch_seconds']:.2f} |")
    if a.output:
        a.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
