"""Memory of a training step: by a formula, and as measured, with more and less hidden, blocks kept or computed again.

    python benchmarks/memory.py [--hidden 0 0.9] [--output memory.json] [key=value ...]

Default: U-ViT B at 256 px in patches of 4 (4,096 patches), bf16. The formula counts what a block of U-ViT keeps for the
way back, in bytes for each token and unit of width: `analysis`. Measured: the slope of the peak over the number of
images at once (`maskdm.training.step_profiler.estimate_memory`), and what does not depend on it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from maskdm.config.resolve import resolve
from maskdm.diffusion.mask_schedule import constant
from maskdm.diffusion.masks import Masking, masking
from maskdm.diffusion.patches import patch_grid
from maskdm.training.prepare import synthetic_task
from maskdm.training.step import Task
from maskdm.training.step_profiler import StepProfiler

B256 = (
    "data.image_size=256",
    "model.size=B",
    "model.patch_size=4",
    "stages.0.batch_size=8",
    "stages.0.mask.kind=patch",
)
KEPT = {
    "input of norm 1 (float32)": 4,
    "input of q, k, v": 2,
    "q, k, v": 6,
    "output of attention": 2,
    "input of norm 2 (float32)": 4,
    "input of the MLP": 2,
    "before and after GELU, four times as wide": 16,
}
"""Bytes that a block keeps for each token and unit of width, under autocast to bf16 with a fused attention."""
KEPT_BY_SKIP = 4  # the joined input of the linear layer, twice as wide


def analysis(task: Task, mask: Masking) -> int:
    """Bytes of activations for an image, on the way through all blocks of a U-ViT."""
    model = task.spec.model
    assert model.backbone == "uvit", "the formula is of U-ViT"
    assert model.width, model.depth
    tokens, width, depth = mask.num_visible + 1, model.width, model.depth or 0
    if task.config.train.checkpoint_activations:  # every block's input, and one block whole
        return tokens * width * (4 * depth + sum(KEPT.values()) + KEPT_BY_SKIP)
    return tokens * width * (depth * sum(KEPT.values()) + depth // 2 * KEPT_BY_SKIP)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=float, nargs="+", default=[0.0, 0.9])
    parser.add_argument("--output", type=Path)
    parser.add_argument("words", nargs="*", metavar="key=value")
    a = parser.parse_intermixed_args()
    print("hidden  blocks          formula, MiB an image  measured  ratio  the rest, GiB")
    rows = []
    for again in (False, True):
        words = (*B256, *a.words, f"train.checkpoint_activations={str(again).lower()}")
        task = synthetic_task(resolve(overrides=words))
        grid = patch_grid(task.spec.image_size, task.spec.model.patch_size)
        for hidden in a.hidden:
            mask = masking("patch" if hidden else "none", grid, hidden)
            need = StepProfiler(replace(task, masks=[constant(mask)] * len(task.masks))).memory()
            if need is None:
                raise SystemExit("this system does not tell how much memory a process takes")
            formula = analysis(task, mask)
            rows.append({"hidden": hidden, "again": again, "formula": formula, "measured": need.per_image})
            kind = "computed again" if again else "kept"
            print(
                f"{hidden:6.0%}  {kind:14}  {formula / 2**20:21,.0f}  {need.per_image / 2**20:8,.0f}  "
                f"{need.per_image / formula:5.2f}  {need.fixed / 2**30:13.2f}",
                flush=True,
            )
    if a.output:
        a.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
