"""Does masked pre-training work with every process and backbone? On digits, at equal images.

    python benchmarks/universal.py [--seeds 0 1] [--images 40000] [--output universal.json] [key=value ...]

For each process x backbone two arms see the same number of images: `plain` whole ones only, `masked` two thirds of them
with 75 % hidden (uvit, jit: random patches; unet: a crop) and the last third whole. Printed as means over the seeds:
held-out error (mean squared error of the estimated image, [-1, 1], at fixed noise shares: the same unit in every row)
and the Frechet distance of 1,000 pictures to the held-out digits (Gaussians on raw pixels). At equal images a masked
arm has also computed less, which this does not count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from maskdm.commands.demo import demo_scores, digits
from maskdm.commands.sample import sample
from maskdm.config.resolve import resolve
from maskdm.data.manifest import read_manifest
from maskdm.data.write import save_npz
from maskdm.diffusion.pixels import to_uint8_nhwc
from maskdm.models.weights import load
from maskdm.runtime.console import Console
from maskdm.training.read_run import read_history
from maskdm.training.start import start_training

PROCESSES = {
    "ddpm, x0": ("process.kind=ddpm", "process.prediction=x0"),
    "vp, v": ("process.kind=vp", "process.prediction=v"),
    "ve, F": ("process.kind=ve", "process.prediction=F"),
    "edm, F": ("process.kind=edm", "process.prediction=F"),
    "flow, x0 by velocity": ("process.kind=flow", "process.prediction=x0", "process.loss=velocity"),
    "flow, velocity": ("process.kind=flow", "process.prediction=velocity"),
}
BACKBONES = {
    "uvit": ("model.backbone=uvit", "model.width=96", "model.depth=5", "model.heads=4"),
    "jit": ("model.backbone=jit", "model.width=96", "model.depth=4", "model.heads=4"),
    "unet": ("model.backbone=unet", "model.width=32", "model.depth=1", "model.heads=2", "model.levels=[1, 2]"),
}
MASKS = {"uvit": "patch", "jit": "patch", "unet": "crop"}
BATCH = 64


def arms(backbone: str, images: int) -> dict[str, tuple[str, ...]]:
    """The settings of both arms."""
    masked = images * 2 // 3
    mask = (f"stages.0.mask.kind={MASKS[backbone]}", "stages.0.mask.ratio=0.75")
    none = ("stages.0.mask.kind=none", "stages.0.mask.ratio=0")
    lengths = (f"stages.0.images={masked}", f"stages.1.images={images - masked}", "stages.1.lr_schedule=cosine")
    return {"plain": (*none, *lengths), "masked": (*mask, *lengths)}


def measure(words: tuple[str, ...], folder: Path) -> dict[str, float]:
    """Held-out error and Frechet distance after one run."""
    images, labels = digits()
    data = folder / "digits.npz"
    save_npz(data, images, labels=labels)
    quiet = ("eval.samples=0", "eval.heldout_every=1000000000")
    usual = (*quiet, *(f"stages.{i}.{word}" for i in (0, 1) for word in (f"batch_size={BATCH}", "lr=1e-3")))
    config = resolve(recipe="digits", overrides=(f"data.path={data}", *usual, *words))
    run = start_training(config, output_dir=folder, name="run", resume="never", console=Console(quiet=True))
    made = to_uint8_nhwc(sample(load(run), 1000, steps=25, sampler="heun", batch_size=250))
    manifest = read_manifest(run)
    rows = demo_scores(
        made, images[manifest.indices("member")][..., None], images[manifest.indices("heldout")][..., None]
    )
    error = read_history(run).heldout[-1].error_ema
    return {"heldout": float(str(error)), "frechet": float(rows[1]["value"])}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("words", nargs="*", metavar="key=value")
    a = parser.parse_intermixed_args()
    results: dict[str, list[dict[str, float]]] = {}
    for seed in a.seeds:
        for process, process_words in PROCESSES.items():
            for backbone, backbone_words in BACKBONES.items():
                for arm, arm_words in arms(backbone, a.images).items():
                    words = (*process_words, *backbone_words, *arm_words, *a.words, f"train.seed={seed}")
                    with tempfile.TemporaryDirectory() as folder:
                        found = measure(words, Path(folder))
                    results.setdefault(f"{process} | {backbone} | {arm}", []).append(found)
                    print(f"seed {seed}, {process}, {backbone}, {arm}: {found}", flush=True)
                    if a.output:
                        a.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table(results)


def table(results: dict[str, list[dict[str, float]]]) -> None:
    """Prints one row for each process and backbone, plain against masked."""
    print(f"\n| {'process':22} | {'backbone':8} | held-out plain | masked | Frechet plain | masked |")
    print("|---|---|---|---|---|---|")
    for name in results:
        process, backbone, arm = name.split(" | ")
        if arm == "plain":
            pair = [results[f"{process} | {backbone} | {which}"] for which in ("plain", "masked")]
            cells = []
            for key in ("heldout", "frechet"):
                for rows in pair:
                    values = np.array([row[key] for row in rows])
                    spread = f" ± {values.std(ddof=1):.4f}" if len(rows) > 1 else ""
                    cells.append(f"{values.mean():.4f}{spread}")
            print(f"| {process:22} | {backbone:8} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
