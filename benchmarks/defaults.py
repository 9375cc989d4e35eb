"""Choices that became defaults, measured: prediction, weights that a stage hands over, average that is released.

    python benchmarks/defaults.py [--seeds 0 1 2] [--output defaults.json] [key=value ...]

Trains the demo's recipe on its digits for every choice and seed and prints, as mean and standard deviation over the
seeds: the held-out denoising loss of the released (averaged) weights, and the Frechet distance of 1,000 pictures to
the held-out digits (Gaussians on raw pixels). Further words change the recipe for all choices alike.
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

CHOICES = {
    "the recipe (x0; ema; power 0.1)": (),
    "prediction eps": ("process.prediction=eps",),
    "prediction v": ("process.prediction=v",),
    "hand over raw weights": ("stages.1.weights=raw",),
    "average power 0.05": ("ema.sigma_rel=0.05",),
    "average power 0.2": ("ema.sigma_rel=0.2",),
    "average 0.99": ("ema.decay=0.99",),
    "average 0.999": ("ema.decay=0.999",),
}


def measure(words: tuple[str, ...], folder: Path) -> dict[str, float]:
    """Held-out loss and Frechet distance after one run."""
    images, labels = digits()
    data = folder / "digits.npz"
    save_npz(data, images, labels=labels)
    quiet = ("eval.samples=0", "eval.heldout_every=1000000000")
    config = resolve(recipe="digits", overrides=(f"data.path={data}", *quiet, *words))
    run = start_training(config, output_dir=folder, name="run", resume="never", console=Console(quiet=True))
    made = to_uint8_nhwc(sample(load(run), 1000, sampler="ddim", steps=50, batch_size=250))
    manifest = read_manifest(run)
    rows = demo_scores(
        made, images[manifest.indices("member")][..., None], images[manifest.indices("heldout")][..., None]
    )
    loss = read_history(run).heldout[-1].error_ema
    return {"heldout_loss": float(str(loss)), "frechet": float(rows[1]["value"])}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path)
    parser.add_argument("words", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CHOICES}
    for seed in arguments.seeds:  # seeds outside: what is compared runs side by side
        for name, words in CHOICES.items():
            with tempfile.TemporaryDirectory() as folder:
                results[name].append(measure((*arguments.words, *words, f"train.seed={seed}"), Path(folder)))
            print(f"seed {seed}, {name}: {results[name][-1]}", flush=True)
    print(f"\n{'choice':36} {'held-out loss':>20} {'Frechet distance':>20}")
    for name, found in results.items():
        columns = []
        for key in ("heldout_loss", "frechet"):
            values = np.array([f[key] for f in found])
            columns.append(f"{values.mean():12.4f} ± {values.std(ddof=1) if len(values) > 1 else 0:.4f}")
        print(f"{name:36} {columns[0]:>20} {columns[1]:>20}")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
