"""How fast images reach a training step: our stores against PNGs decoded by a torch DataLoader.

    python benchmarks/loader.py [--sides 64 256] [--images 2000] [--batch-size 64] [--seconds 3] [--output FILE]

The same images (smooth shapes with a little noise, so that a PNG takes about as long as a photograph's) as PNG files
and in the cache. Measured in turn, five rounds, medians: images a second of a DataLoader with two workers that opens,
decodes and stacks PNGs; of the mapped cache; of the cache in memory; and of decoding at every step (`stream`). On a
GPU, also of the cache on it, and all of them end on the GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maskdm.data.image_set import load_images
from maskdm.data.sources import open_source
from maskdm.runtime.console import Console
from maskdm.runtime.device import pick_device
from maskdm.training.store import Store, make_store

ROUNDS = 5


class Files(Dataset[Tensor]):
    """PNGs, decoded when asked for."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        with Image.open(self.paths[i]) as image:
            return torch.from_numpy(np.asarray(image.convert("RGB")).copy())


def write_images(folder: Path, count: int, side: int) -> None:
    """Sums of a few waves, with noise of two or three grey levels."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    for i in range(count):
        waves = sum(
            np.sin(2 * np.pi * (a * x + b * y) + c)[..., None] * rng.random(3)
            for a, b, c in rng.uniform(-4, 4, size=(4, 3))
        )
        pixels = 128 + 30 * waves + rng.normal(0, 1.5, (side, side, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:06d}.png")


def endless(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    """Epoch after epoch."""
    while True:
        yield from loader


def rate(take: Callable[[], Tensor], device: torch.device, seconds: float) -> float:
    """Images a second."""
    images, since = 0, time.perf_counter()
    while time.perf_counter() - since < seconds:
        images += len(take())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return images / (time.perf_counter() - since)


def taker(store: Store, count: int, batch: int) -> Callable[[], Tensor]:
    """Batches as a step takes them: the next is prefetched while this one is used."""
    rng = np.random.default_rng(1)
    ahead = [rng.integers(count, size=batch)]

    def take() -> Tensor:
        pixels = store.take(ahead[0])
        ahead[0] = rng.integers(count, size=batch)
        store.prefetch(ahead[0])
        return pixels

    return take


def measure(side: int, count: int, batch: int, seconds: float, device: torch.device) -> dict[str, float]:
    """Images a second of every store."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = folder / "images"
        files.mkdir()
        write_images(files, count, side)
        loader = DataLoader(Files(files), batch, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True)
        batches = endless(loader)
        takes: dict[str, Callable[[], Tensor]] = {"DataLoader": lambda: next(batches).to(device)}
        source = open_source(files)
        cached = load_images(source, cache_dir=folder / "cache", console=Console(), image_size=side)
        fresh = load_images(source, cache_dir=folder / "cache", console=Console(), image_size=side, keep=False)
        takes["map"] = taker(make_store(cached.images, device, "map"), count, batch)
        takes["ram"] = taker(make_store(cached.images, device, "ram"), count, batch)
        takes["stream"] = taker(make_store(fresh.images, device, "map"), count, batch)
        if device.type == "cuda":
            takes["device"] = taker(make_store(cached.images, device, "device"), count, batch)
        for take in takes.values():
            take()
        rounds = [{name: rate(take, device, seconds) for name, take in takes.items()} for _ in range(ROUNDS)]
        return {name: median(r[name] for r in rounds) for name in takes}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--output", type=Path)
    a = parser.parse_args()
    device = pick_device("auto")
    results = {}
    for side in a.sides:
        found = results[side] = measure(side, a.images, a.batch_size, a.seconds, device)
        print(f"{side} px, batches of {a.batch_size}, to {device}")
        for name, images in found.items():
            print(f"  {name:12} {images:12,.0f} images/s  {images / found['DataLoader']:8.1f} x", flush=True)
    if a.output:
        a.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
