"""A small network trained on the reference pictures, whose last layer but one are features.

For pictures of which Inception knows nothing (emoji, digits, scans): with labels it learns to tell the classes apart,
without them to tell each picture from the others under crops, mirrors and changed colours (instance discrimination:
Chen et al. 2020, arXiv 2002.05709). The same pictures give the same network: seeds are fixed, and the trained weights
are kept by the hash of the pictures. Distances in it compare models of one data set; they mean nothing beyond.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 32
FEATURES = 128
STEPS, BATCH, RATE = 600, 128, 2e-3
TEMPERATURE = 0.2
VERSION = 1


class Encoder(nn.Module):
    """(B, C, H, W) in 0..255 -> (B, 128): four levels of convolutions, pooled."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        given = channels
        for level in range(4):
            made = WIDTH * 2 ** min(level, 2)
            layers += [nn.Conv2d(given, made, 3, padding=1, bias=False), nn.GroupNorm(8, made), nn.ReLU()]
            given = made
        self.layers = nn.ModuleList(layers)
        self.out = nn.Linear(given, FEATURES)
        self.head = nn.Linear(FEATURES, classes or FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        x = x / 127.5 - 1
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i % 3 == 2 and min(x.shape[2:]) >= 4:  # after each level, while there is something to halve
                x = F.avg_pool2d(x, 2)
        out: Tensor = self.out(x.mean(dim=(2, 3)))
        return out


def trained(
    reference: Callable[[], tuple[np.ndarray, np.ndarray | None]],
    folder: Path,
    *,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[Encoder, str]:
    """The network for these pictures, (N, H, W, C) uint8, and labels, and the hash that names it; kept in `folder`."""
    images, labels = reference()
    digest = hashlib.sha256(f"{VERSION} {images.shape} {STEPS}".encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(b"" if labels is None else np.ascontiguousarray(labels).data)
    key = digest.hexdigest()
    classes = 0 if labels is None else int(labels.max()) + 1
    path = folder / f"{key}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Encoder(images.shape[3], classes).to(device)
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError):
        say(f"training an encoder on {len(images):,} pictures, {STEPS} steps")
        _train(network, images, labels, device)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{key}.safetensors"
        save_file(network.state_dict(), unfinished)
        unfinished.replace(path)
    return network.eval().requires_grad_(False), key


def on_members(members: int, heldout: int) -> bool:
    """Whether the encoder of a run is trained on its members, or on the held-out pictures, where these are more."""
    return members >= heldout


def _train(network: Encoder, images: np.ndarray, labels: np.ndarray | None, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
    size = min(BATCH, len(images))
    for _ in range(STEPS):
        rows = torch.randperm(len(images), generator=generator)[:size].numpy()
        x = torch.from_numpy(np.ascontiguousarray(images[np.sort(rows)])).to(device).permute(0, 3, 1, 2).float()
        if labels is None:
            loss = _alike(network.head(network(changed(x, generator))), network.head(network(changed(x, generator))))
        else:
            y = torch.from_numpy(labels[np.sort(rows)]).to(device)
            loss = F.cross_entropy(network.head(network(changed(x, generator, mirrors=False))), y)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()


def _alike(a: Tensor, b: Tensor) -> Tensor:
    """Two views of one picture shall be nearer to each other than to those of any other."""
    both = F.normalize(torch.cat([a, b]), dim=1)
    likeness = both @ both.T / TEMPERATURE
    likeness.fill_diagonal_(-1e4)
    n = len(a)
    partner = torch.arange(2 * n, device=a.device).roll(n)
    return F.cross_entropy(likeness, partner)


def changed(x: Tensor, generator: torch.Generator, *, mirrors: bool = True) -> Tensor:
    """Pictures cropped to between half and all of their area, shifted in brightness and contrast, perhaps mirrored."""
    B, _, H, W = x.shape

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(B, generator=generator)).to(x.device)

    scale = draw(0.7, 1.0)
    turn = torch.where(draw(0, 1) < 0.5, -1.0, 1.0) if mirrors else torch.ones(B, device=x.device)
    theta = torch.zeros(B, 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1] = scale * turn, scale
    theta[:, 0, 2], theta[:, 1, 2] = draw(-1, 1) * (1 - scale), draw(-1, 1) * (1 - scale)
    grid = F.affine_grid(theta, [B, x.shape[1], H, W], align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False, padding_mode="reflection")
    contrast, brightness = draw(0.7, 1.3)[:, None, None, None], draw(-30, 30)[:, None, None, None]
    return ((x - 127.5) * contrast + 127.5 + brightness).clamp(0, 255)
