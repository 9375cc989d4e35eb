"""The whole way in minutes: real digits, both stages, pictures, scores, a page.

The pictures are those that scikit-learn ships: 1,797 handwritten digits of 8 x 8 pixels (UCI "Optical recognition of
handwritten digits"). The score is the Frechet distance between Gaussians fitted to raw pixels, generated against
held-out digits; noise and the training digits, measured in the same way, are the two ends of its scale.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from maskdm.config.resolve import resolve
from maskdm.data.manifest import read_manifest
from maskdm.data.write import make_folder, save_grid, save_npz
from maskdm.diffusion.patches import to_uint8
from maskdm.errors import InputError
from maskdm.evaluation.metrics import frechet_distance, gaussian, pixel_features
from maskdm.models.weights import load
from maskdm.reports.run_page import write_report
from maskdm.runtime.console import Console
from maskdm.sampling.sample import sample
from maskdm.training.start import start

GENERATED = 1000
STEPS = 50


def digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) uint8 pictures and their labels.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the demo's digits come with scikit-learn; pip install 'maskdm[demo]'") from None
    found = load_digits()
    return np.round(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.int64)


def demo(output_dir: Path, overrides: tuple[str, ...] = ()) -> Path:
    """Runs the demo in `output_dir`, says what it does, and returns the run's folder."""
    console = Console()
    images, labels = digits()
    make_folder(output_dir)
    data = output_dir / "digits.npz"
    save_npz(data, images, labels=labels)
    console.say(f"1/4  {len(images):,} handwritten digits in {data}; 2 to 4 minutes on two CPU cores from here")

    console.say("2/4  training, first with most of every picture hidden, then on whole pictures")
    config = resolve(recipe="digits", overrides=(f"data.path={data}", *overrides))
    run = start(config, output_dir=output_dir, name="digits", resume=None, console=console)

    console.say(f"3/4  making {GENERATED:,} digits in {STEPS} steps each")
    denoiser = load(run)
    with console.bar("sampling", GENERATED * STEPS, "call") as bar:
        unit = sample(denoiser, GENERATED, sampler="ddim", steps=STEPS, batch_size=100, report=bar.update)
    made = to_uint8(unit).permute(0, 2, 3, 1).numpy()
    grid = run / "samples" / "final.png"
    save_grid(made[:100], grid)  # ten columns, one for each class

    console.say("4/4  scores")
    manifest = read_manifest(run)
    pictures = images[..., None]
    real = {role: pictures[manifest.indices(role)] for role in ("member", "heldout")}
    rows = scores(made, real["member"], real["heldout"])
    for row in rows:
        console.say(f"     {row['name']:44} {row['value']:8.4g}{row['unit']}")
    page = {
        "title": "Frechet distance to held-out digits, Gaussians on raw pixels",
        "command": "maskdm demo",
        "note": f"{len(real['heldout'])} held-out digits; few images bias all of these upwards alike",
        "rows": rows,
    }
    (run / "eval").mkdir(exist_ok=True)
    (run / "eval" / "pixels.json").write_text(json.dumps(page, indent=2) + "\n")
    report = write_report(run)
    console.say(f"sample grid  {grid}")
    console.say(f"report       {report}")
    return run


def scores(made: np.ndarray, member: np.ndarray, heldout: np.ndarray) -> list[dict[str, str | float | int]]:
    """Distances to the held-out digits, and the share of the way from noise to the training digits that was gone."""
    generator = torch.Generator().manual_seed(0)
    noise = to_uint8(torch.rand(made.shape, generator=generator)).numpy()
    reference = gaussian(pixel_features(heldout))
    distance = {
        name: frechet_distance(*gaussian(pixel_features(images)), *reference)
        for name, images in {"noise": noise, "made": made, "member": member}.items()
    }
    closed = (distance["noise"] - distance["made"]) / (distance["noise"] - distance["member"])
    return [
        {"name": "uniform noise", "value": distance["noise"], "unit": "", "n": len(noise)},
        {"name": "generated digits", "value": distance["made"], "unit": "", "n": len(made)},
        {"name": "training digits", "value": distance["member"], "unit": "", "n": len(member)},
        {"name": "way from noise to training digits", "value": 100 * closed, "unit": " %", "n": len(made)},
    ]
