"""`maskdm demo`: both stages, samples, scores and a page in minutes, on real digits.

The images are those that scikit-learn ships: 1,797 handwritten digits of 8 x 8 pixels (UCI "Optical recognition of
handwritten digits"). The score is the Frechet distance between Gaussians fitted to raw pixels, generated against
held-out digits; noise and the training digits, measured in the same way, are the two ends of its scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from maskdm.commands.arguments import Settings, read_settings
from maskdm.data.dataset import default_cache
from maskdm.data.labelled import LabelledImages
from maskdm.data.manifest import read_manifest
from maskdm.data.write import save_grid, save_npz
from maskdm.diffusion.pixels import to_uint8_nhwc
from maskdm.errors import InputError
from maskdm.evaluation.evaluate import reference_features
from maskdm.evaluation.scores import Reference, evaluate_images
from maskdm.files import make_folder, write_json
from maskdm.models.weights import load
from maskdm.reports.run_page import write_run_page
from maskdm.runtime.console import Console
from maskdm.sampling.sample import sample_images, sampling_config
from maskdm.training.start import start_training

GENERATED = 1000
STEPS = 50
SHOWN = 100
"""Digits of the grid: ten columns, one for each class."""


class Row(TypedDict):
    """A score: its name, value, unit, and of how many images."""

    name: str
    value: float
    unit: str
    n: int


@dataclass(frozen=True)
class DemoResult:
    """What the demo left.

    Attributes:
        run: the run's folder.
        grid: 100 generated digits, a column for each class.
        scores: distances to the held-out digits.
        report: the run's page.
    """

    run: Path
    grid: Path
    scores: tuple[Row, ...]
    report: Path


def digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) uint8 images and their labels, (1797,) int64.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("", "the demo's digits come with scikit-learn", remedy="pip install 'maskdm[demo]'") from None
    found = load_digits()
    return np.round(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.int64)


def demo(output_dir: str | Path = "demo", *, settings: Settings | None = None, quiet: bool = False) -> DemoResult:
    """Trains on handwritten digits, samples and evaluates: 2 to 4 minutes on two CPU cores.

    Args:
        output_dir: where the digits and the run go.
        settings: single settings over those of the recipe `digits`.
        quiet: nothing on standard error.

    Returns:
        The run, its grid of samples, scores and page.

    Raises:
        InputError: scikit-learn is not installed, or a folder that cannot be made.

    Example:
        >>> demo("demo").report
        PosixPath('demo/00000-digits/report.html')
    """
    output_dir, console = Path(output_dir), Console(quiet=quiet)
    images, labels = digits()
    make_folder(output_dir, "output_dir")
    data = output_dir / "digits.npz"
    save_npz(data, images, labels=labels)
    console.say(f"1/4  {len(images):,} handwritten digits in {data}; 2 to 4 minutes on two CPU cores from here")

    console.say("2/4  training, first with most patches masked, then on whole images")
    config = read_settings(data=data, recipe="digits", settings=settings)
    run = start_training(config, output_dir=output_dir, name="digits", resume=None, console=console)

    console.say(f"3/4  sampling {GENERATED:,} digits in {STEPS} steps each")
    denoiser = load(run)
    sampling = sampling_config(denoiser, sampler="ddim", steps=STEPS, seeds=range(GENERATED))
    with console.sampling_bar("sampling", GENERATED, STEPS) as advance:
        unit = sample_images(sampling, range(GENERATED), batch_size=100, callback=advance)
    generated = to_uint8_nhwc(unit)
    grid = run / "samples" / "final.png"
    save_grid(generated[:SHOWN], grid, captions=[sampling.class_name(i) for i in range(SHOWN)])

    console.say("4/4  scores")
    manifest = read_manifest(run)
    real = {role: images[..., None][manifest.indices(role)] for role in ("member", "heldout")}
    rows = demo_scores(generated, real["member"], real["heldout"])
    for row in rows:
        console.say(f"     {row['name']:44} {row['value']:8.4g}{row['unit']}")
    report = _write(run, rows, len(real["heldout"]))
    console.say(f"sample grid  {grid}")
    console.say(f"report       {report}")
    return DemoResult(run, grid, tuple(rows), report)


def _write(run: Path, rows: list[Row], heldout: int) -> Path:
    """The scores as a file of the run, and its page with them."""
    page = {
        "title": "Frechet distance to held-out digits, Gaussians on raw pixels",
        "command": "maskdm demo",
        "note": f"{heldout} held-out digits; few images bias all of these upwards alike",
        "rows": rows,
    }
    make_folder(run / "eval", "output_dir")
    write_json(run / "eval" / "pixels.json", page)
    return write_run_page(run)


def demo_scores(generated: np.ndarray, members: np.ndarray, heldout: np.ndarray) -> list[Row]:
    """Distances to the held-out digits, and how much of that from noise to the training digits was closed.

    Args:
        generated, members, heldout: (N, H, W, C) uint8.
    """
    reference = Reference(LabelledImages(heldout), train=LabelledImages(members))
    features = reference_features("pixels", reference, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    noise = to_uint8_nhwc(torch.rand(generated.shape, generator=generator).permute(0, 3, 1, 2))
    cache = default_cache() / "features"
    ours, training = evaluate_images(generated, reference, features, cache_dir=cache)[:2]
    random = evaluate_images(noise, reference, features, cache_dir=cache)[0]
    closed = (random.value - ours.value) / (random.value - training.value)
    named = {"uniform noise": random, "generated digits": ours, "training digits": training}
    rows: list[Row] = [{"name": name, "value": score.value, "unit": "", "n": score.n} for name, score in named.items()]
    gap: Row = {"name": "gap from noise to training digits, closed", "value": 100 * closed, "unit": " %", "n": ours.n}
    return [*rows, gap]
