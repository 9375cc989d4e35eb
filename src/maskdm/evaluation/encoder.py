"""A small network trained on the reference images, whose last layer but one are features.

For images of which Inception knows nothing (emoji, digits, scans): with labels it learns to tell the classes apart,
without them to tell each image from the others under crops, mirrors and changed colours (instance discrimination:
Chen et al. 2020, arXiv 2002.05709). Length and size follow from the images alone, so that all evaluations on a machine
share one encoder, which is kept. Elsewhere rounding, and with it training, takes another way: another encoder, whose
distances do not compare with these. So it is known by the hash of its weights. Distances in it compare models of one
data set; they mean nothing beyond.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from maskdm.data.labelled import LabelledImages
from maskdm.diffusion.pixels import channels_first
from maskdm.files import make_folder, replacing
from maskdm.runtime.console import Console
from maskdm.runtime.device import synchronize

WIDTH = 32
FEATURES = 128
LARGEST, MAP = 64, 24
"""Pixels of a side: larger images are averaged down, and the first convolution makes a map of at most MAP."""
BATCH, RATE, WARM_UP = 64, 2e-3, 0.1
PASSES, LEAST_STEPS, MOST_STEPS = 30, 100, 600
"""How often every image is seen, and in how many steps at least and at most."""
SAVE_SECONDS = 15.0
"""Between savings of an encoder in training."""
TEMPERATURE = 0.2
VERSION = 2
"""Of all of the above: part of the name under which an encoder is kept."""


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder, and what it is known by.

    Attributes:
        network: (B, C, H, W) in 0..255 -> (B, 128).
        sha256: of its weights: where these differ, distances do not compare.
        trained_on: sha256 of the images, their labels and how it is trained.
    """

    network: Encoder
    sha256: str
    trained_on: str


class Encoder(nn.Module):
    """(B, C, H, W) in 0..255 -> (B, 128): four levels of convolutions, pooled.

    Args:
        channels: of the images.
        classes: that `head` tells apart; 0 for instance discrimination, where it projects to 128 numbers.
        image_size: height and width.
    """

    def __init__(self, channels: int, classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        side = max(image_size)
        self.average = math.ceil(side / LARGEST)
        stride = 2 ** max(0, math.ceil(math.log2(side / self.average / MAP)))
        layers: list[nn.Module] = []
        for level in range(4):
            width = WIDTH * 2 ** min(level, 2)
            if level == 0 and stride > 1:
                layers.append(nn.Conv2d(channels, width, 2 * stride, stride, padding=stride // 2, bias=False))
            else:
                layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            layers += [nn.GroupNorm(8, width), nn.ReLU()]
            channels = width
        self.layers = nn.ModuleList(layers)
        self.out = nn.Linear(channels, FEATURES)
        self.head = nn.Linear(FEATURES, classes or FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in 0..255 -> (B, 128)."""
        x = x / 127.5 - 1
        if self.average > 1:
            x = F.avg_pool2d(x, self.average, ceil_mode=True)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i % 3 == 2 and min(x.shape[2:]) >= 4:  # after each level, while there is something to halve
                x = F.avg_pool2d(x, 2)
        out: Tensor = self.out(x.mean(dim=(2, 3)))
        return out


def train_encoder(reference: LabelledImages, folder: Path, *, device: torch.device, console: Console) -> TrainedEncoder:
    """The encoder for these images: the one that is kept, or else trained now.

    Interrupted, it goes on where it was when it is asked for again.

    Args:
        reference: what it is trained on; with labels to tell them apart, without by instance discrimination.
        folder: where encoders are kept; made if it is not there.
        device: where to compute.
        console: says how long training takes, and shows progress.
    """
    images, labels = reference.images, reference.labels
    steps = num_steps(len(images))
    digest = hashlib.sha256(f"{VERSION} {images.shape} {steps}".encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(b"" if labels is None else np.ascontiguousarray(labels).data)
    key = digest.hexdigest()
    classes = 0 if labels is None else int(labels.max()) + 1
    path = folder / f"{key}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Encoder(images.shape[3], classes, images.shape[1:3]).to(device)
    if not _read(network, path):
        make_folder(folder, "cache_dir")
        partial = folder / f"{key}.partial.safetensors"
        _train(network, images, labels, steps, partial, device, console)
        with replacing(path) as temporary:
            save_file(network.state_dict(), temporary, metadata={"sha256": hash_weights(network.state_dict())})
        partial.unlink(missing_ok=True)
    return TrainedEncoder(network.eval().requires_grad_(False), hash_weights(network.state_dict()), key)


def training_seconds(few: LabelledImages, images: int, device: torch.device) -> float:
    """How long an encoder of `images` images would train here, from two steps on a few of them."""
    classes = 0 if few.labels is None else int(few.labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        network = Encoder(few.images.shape[3], classes, few.images.shape[1:3]).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    for step in (0, 1):
        since = time.perf_counter()
        _step(network, optimizer, few.images, few.labels, step, device)
        synchronize(device)
    return num_steps(images) * (time.perf_counter() - since)


def num_steps(images: int) -> int:
    """Steps of training on so many images."""
    return min(max(PASSES * images // BATCH, LEAST_STEPS), MOST_STEPS)


def hash_weights(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the weights of a network and their names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(network: Encoder, path: Path) -> bool:
    """Whether the weights of a finished encoder are there and whole; then the network has them."""
    tensors, _ = _read_tensors(path)
    if tensors:
        network.load_state_dict(tensors)
    return bool(tensors)


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and what is said of them; none where it is not there, or not whole."""
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return {}, {}
    return (tensors, said) if hash_weights(tensors) == said.get("sha256") else ({}, {})


def trains_on_members(members: int, heldout: int) -> bool:
    """Whether the encoder of a run is trained on its members, or on the held-out images, where there are more."""
    return members >= heldout


def _train(
    network: Encoder,
    images: np.ndarray,
    labels: np.ndarray | None,
    steps: int,
    partial: Path,
    device: torch.device,
    console: Console,
) -> None:
    """All steps, or those that are left; what a step draws depends on its number alone."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    first = step = _resume(network, optimizer, partial)
    saved = since = time.monotonic()
    try:
        with console.bar("encoder", steps, "step", initial=first) as bar:
            while step < steps:
                optimizer.param_groups[0]["lr"] = RATE * _rate_share(step, steps)
                _step(network, optimizer, images, labels, step, device)
                step += 1
                bar.update(1)
                if step - first == 1:
                    since = time.monotonic()  # the first step is slow
                elif step - first == 3:
                    left = (time.monotonic() - since) / 2 * (steps - step)
                    console.say(
                        f"training an encoder on {len(images):,} images: {steps - first} steps, about {left:.0f} s; "
                        "interrupted, the same command goes on with it"
                    )
                if time.monotonic() - saved > SAVE_SECONDS:
                    _save(network, optimizer, step, partial)
                    saved = time.monotonic()
    finally:
        if step < steps:
            _save(network, optimizer, step, partial)


def _rate_share(step: int, steps: int) -> float:
    """Of the peak learning rate: a straight line up, then half a cosine down."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def _step(
    network: Encoder,
    optimizer: torch.optim.Optimizer,
    images: np.ndarray,
    labels: np.ndarray | None,
    step: int,
    device: torch.device,
) -> None:
    generator = torch.Generator().manual_seed(step)
    rows = np.sort(torch.randperm(len(images), generator=generator)[:BATCH].numpy())
    x = channels_first(np.ascontiguousarray(images[rows])).to(device).float()
    if labels is None:
        views = torch.cat([augment(x, generator), augment(x, generator)])
        loss = _contrastive_loss(*network.head(network(views)).chunk(2))
    else:
        y = torch.from_numpy(labels[rows]).to(device)
        loss = F.cross_entropy(network.head(network(augment(x, generator, mirrors=False))), y)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()


def _save(network: Encoder, optimizer: torch.optim.Optimizer, step: int, path: Path) -> None:
    """Weights and moments after `step` steps."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "sha256": hash_weights(tensors)})


def _resume(network: Encoder, optimizer: torch.optim.Optimizer, path: Path) -> int:
    """The steps that are done; 0 where none were saved, or what was saved is damaged."""
    tensors, said = _read_tensors(path)
    if not tensors:
        return 0
    network.load_state_dict({n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, moment = name.split(".")
            moments.setdefault(int(number), {})[moment] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return int(said["step"])


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
