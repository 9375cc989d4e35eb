"""What many tests share: images, settings that train in a moment, and two runs that have been trained."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries that heed it are imported

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TINY = [
    "model.patch_size=2",
    "model.width=16",
    "model.depth=3",
    "model.heads=2",
    "stages.0.steps=4",
    "stages.0.batch_size=8",
    "stages.0.warmup_steps=0",
    "stages.1.steps=3",
    "stages.1.batch_size=8",
    "stages.1.warmup_steps=0",
    "train.mixed_precision=no",
    "eval.samples=4",
    "eval.sample_steps=2",
    "eval.heldout_images=8",
    "data.salt=public",
    "log.every=1",
]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Decoded images and the machine's salt go to a folder of this session, for child processes too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKDM_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def short_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison measures every stage for a moment instead of seconds: tests ask for runs, not for their speed."""
    monkeypatch.setattr("maskdm.experiments.throughput.SECONDS", 0.02)


@pytest.fixture
def tiny() -> list[str]:
    """Settings that make the two default stages take well under a second together."""
    return list(TINY)


@pytest.fixture
def digits_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 gray images of 8 x 8 pixels in 10 classes."""
    return write_digits(tmp_path_factory.mktemp("data") / "digits.npz")


@pytest.fixture
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 RGB images of 16 x 16 pixels, in the sub-folders cat and dog."""
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without classes. Look, but do not touch."""
    folder = tmp_path_factory.mktemp("digits-run")
    return train(write_digits(folder / "digits.npz"), folder / "runs", "model.classes=none")


@pytest.fixture(scope="session")
def photos_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the classes cat and dog, which has learned to tell them apart. Look, but do not touch."""
    folder = tmp_path_factory.mktemp("photos-run")
    learn = ("stages.1.steps=40", "stages.0.lr=1e-2", "stages.1.lr=1e-2", "ema.decay=0.5")
    return train(write_photos(folder / "photos"), folder / "runs", *learn)


NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, *, image_size, channels, patch_size, classes, layers=1):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers)))

    def forward(self, x_t, t, *, mask=None, label=None):
        return self.layers(x_t)
"""


@pytest.fixture(scope="session")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run with a backbone of one's own, ownnet:Net, which can be imported. Look, but do not touch."""
    folder = tmp_path_factory.mktemp("own-run")
    (folder / "ownnet.py").write_text(NET)
    words = ("model.backbone=ownnet:Net", "model.width=null", "model.depth=null", "model.heads=null")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield train(write_digits(folder / "digits.npz"), folder / "runs", *words, "model.options.layers=2")


def train(data: Path, output_dir: Path, *more: str) -> Path:
    from maskdm.config.resolve import resolve
    from maskdm.runtime.console import Console
    from maskdm.training.start import start_training

    config = resolve(overrides=[f"data.path={data}", *TINY, *more])
    return start_training(config, output_dir=output_dir, name=data.stem, resume=None, console=Console(quiet=True))


def write_digits(path: Path) -> Path:
    """Every class is a bright row or column of its own on dark ground, with a little noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 10
    images = rng.integers(0, 40, (60, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        line = image[label] if label < 8 else image[:, label - 8]
        line += 200
    np.savez(path, images=images, labels=labels)
    return path


def write_photos(folder: Path) -> Path:
    """Cats are dark above and dogs below, each in a colour of its own."""
    rng = np.random.default_rng(1)
    for name, half in (("cat", slice(0, 8)), ("dog", slice(8, 16))):
        (folder / name).mkdir(parents=True)
        for i in range(15):
            pixels = np.full((16, 16, 3), 230, dtype=np.uint8)
            pixels[half] = rng.integers(0, 120, 3)
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    return folder
