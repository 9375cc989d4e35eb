"""A small network trained on the reference images, whose last layer but one are features.

For images of which Inception knows nothing (emoji, digits, scans): with labels it learns to tell the classes apart,
without them to tell each image from the others under crops, mirrors and changed colours (instance discrimination:
Chen et al. 2020, arXiv 2002.05709). The same images give the same network: seeds are fixed, and the trained weights
are kept by the hash of the images. Distances in it compare models of one data set; they mean nothing beyond.
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

from maskdm.data.labelled import LabelledImages
from maskdm.diffusion.pixels import channels_first
from maskdm.files import make_folder, replacing

WIDTH = 32
FEATURES = 128
STEPS, BATCH, RATE = 600, 128, 2e-3
TEMPERATURE = 0.2
VERSION = 1


class Encoder(nn.Module):
    """(B, C, H, W) in 0..255 -> (B, 128): four levels of convolutions, pooled.

    Args:
        channels: of the images.
        classes: that `head` tells apart; 0 for instance discrimination, where it projects to 128 numbers.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(4):
            width = WIDTH * 2 ** min(level, 2)
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
            channels = width
        self.layers = nn.ModuleList(layers)
        self.out = nn.Linear(channels, FEATURES)
        self.head = nn.Linear(FEATURES, classes or FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in 0..255 -> (B, 128)."""
        x = x / 127.5 - 1
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i % 3 == 2 and min(x.shape[2:]) >= 4:  # after each level, while there is something to halve
                x = F.avg_pool2d(x, 2)
        out: Tensor = self.out(x.mean(dim=(2, 3)))
        return out


def train_encoder(
    reference: LabelledImages, folder: Path, *, device: torch.device, say: Callable[[str], None]
) -> tuple[Encoder, str]:
    """The network for these images, and the hash that names it.

    Args:
        reference: what it is trained on; with labels to tell them apart, without by instance discrimination.
        folder: where trained networks are kept; made if it is not there.
        device: where to compute.
        say: called with a line where training is needed.
    """
    images, labels = reference.images, reference.labels
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
        say(f"training an encoder on {len(images):,} images, {STEPS} steps")
        _train(network, images, labels, device)
        make_folder(folder, "cache_dir")
        with replacing(path) as temporary:
            save_file(network.state_dict(), temporary)
    return network.eval().requires_grad_(False), key


def trains_on_members(members: int, heldout: int) -> bool:
    """Whether the encoder of a run is trained on its members, or on the held-out images, where there are more."""
    return members >= heldout


def _train(network: Encoder, images: np.ndarray, labels: np.ndarray | None, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    size = min(BATCH, len(images))
    for _ in range(STEPS):
        rows = torch.randperm(len(images), generator=generator)[:size].numpy()
        x = channels_first(np.ascontiguousarray(images[np.sort(rows)])).to(device).float()
        if labels is None:
            a, b = (network.head(network(augment(x, generator))) for _ in range(2))
            loss = _contrastive_loss(a, b)
        else:
            y = torch.from_numpy(labels[np.sort(rows)]).to(device)
            loss = F.cross_entropy(network.head(network(augment(x, generator, mirrors=False))), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def _contrastive_loss(a: Tensor, b: Tensor) -> Tensor:
    """NT-Xent of two views, (B, D) each: those of one image shall be nearer to each other than to any other."""
    both = F.normalize(torch.cat([a, b]), dim=1)
    similarity = both @ both.T / TEMPERATURE
    similarity.fill_diagonal_(-1e4)
    n = len(a)
    partner = torch.arange(2 * n, device=a.device).roll(n)
    return F.cross_entropy(similarity, partner)


def augment(x: Tensor, generator: torch.Generator, *, mirrors: bool = True) -> Tensor:
    """Images cropped to between half and all of their area, shifted in brightness and contrast, perhaps mirrored.

    Args:
        x: (B, C, H, W) in 0..255; the result is likewise.
        generator: of the CPU, so that every device sees the same images.
        mirrors: False where a mirrored image would be of another class.
    """
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
