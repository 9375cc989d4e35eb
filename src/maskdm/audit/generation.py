"""Whether generated pictures are copies: how near they come to training pictures, beside how near held-out ones come.

Alone these say little: a model may leak membership and copy nobody. Every number stands beside the same number with
held-out pictures in place of generated ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskdm.audit import statistics
from maskdm.audit.statistics import Float64
from maskdm.audit.subject import Pictures

COPY_RATIO = 1 / 3
TILES = 4
CHUNK = 256
Encode = Callable[[np.ndarray], Float64]
"""(N, H, W, C) uint8 -> (N, D): features in which pictures are compared."""


@dataclass(frozen=True)
class Share:
    """A share of generated pictures, its interval, and the same of held-out pictures in their place."""

    name: str
    value: float
    low: float
    high: float
    n: int
    baseline: float | None
    baseline_low: float | None = None
    baseline_high: float | None = None
    note: str = ""


def nearest(queries: Float64, known: Float64, count: int = 1) -> tuple[Float64, np.ndarray]:
    """Euclidean distances to the `count` nearest of `known`, rising, and which they are: (N, count) each."""
    a, b = torch.from_numpy(queries).float(), torch.from_numpy(known).float()
    squares = (b**2).sum(1)
    distances, rows = [], []
    for part in torch.split(a, CHUNK):
        d = ((part**2).sum(1, keepdim=True) - 2 * part @ b.T + squares).clamp_min(0)
        found = d.topk(min(count, len(b)), dim=1, largest=False)
        distances.append(found.values.sqrt())
        rows.append(found.indices)
    return torch.cat(distances).double().numpy(), torch.cat(rows).numpy()


def tiled(queries: np.ndarray, known: np.ndarray) -> Float64:
    """The distance to the nearest known picture where a distance is that of the worst of 4 x 4 tiles: (N,), 0 to 1.

    After Carlini et al. 2023, arXiv 2301.13188: so that two pictures with a like background are no copies.
    """
    a, b = _tiles(queries), _tiles(known)
    found = []
    for part in torch.split(a, CHUNK, dim=1):
        worst = torch.zeros(part.shape[1], b.shape[1])
        for x, y in zip(part, b, strict=True):
            d = (x**2).sum(1, keepdim=True) - 2 * x @ y.T + (y**2).sum(1)
            worst = torch.maximum(worst, d.clamp_min(0) / x.shape[1])
        found.append(worst.min(dim=1).values.sqrt())
    return torch.cat(found).double().numpy()


def _tiles(images: np.ndarray) -> Tensor:
    """(N, H, W, C) uint8 -> (16, N, d) in [0, 1]; what does not divide by four is left out below and right."""
    n, height, width, channels = images.shape
    h, w = max(height // TILES, 1), max(width // TILES, 1)
    rows, columns = min(height // h, TILES), min(width // w, TILES)
    x = torch.from_numpy(np.ascontiguousarray(images[:, : rows * h, : columns * w])).float() / 255
    x = x.reshape(n, rows, h, columns, w, channels).permute(1, 3, 0, 2, 4, 5)
    return x.reshape(rows * columns, n, h * w * channels)


def pixels(images: np.ndarray) -> Float64:
    """Pictures as vectors in [0, 1]."""
    return images.reshape(len(images), -1) / np.float64(255)


def preference(made: Float64, members: Float64, heldout: Float64) -> tuple[float, float, float]:
    """The share of pictures nearer to a member than to any held-out picture, and its 95 % interval.

    With as many members as held-out pictures, drawn at random from one pool, it is one half for a model that has seen
    neither. Pictures whose nearest neighbour is the same one count as one for the interval.
    """
    count = min(len(members), len(heldout))
    both = np.concatenate([members[:count], heldout[:count]])
    _, rows = nearest(made, both)
    wins = (rows[:, 0] < count).astype(np.float64)
    p = float(wins.mean())
    sums = np.bincount(rows[:, 0], weights=wins - p, minlength=len(both))
    half = 1.96 * float(np.sqrt(np.square(sums).sum())) / len(wins)
    if p in (0.0, 1.0):  # all alike: the spread says nothing, the number of neighbours does
        bound = statistics.upper_bound(0, len(np.unique(rows[:, 0])))
        return p, max(p - bound, 0.0), min(p + bound, 1.0)
    return p, max(p - half, 0.0), min(p + half, 1.0)


def copies(
    made: np.ndarray, members: Pictures, heldout: Pictures, encode: Encode = pixels, name: str = "pixels"
) -> list[Share]:
    """All measures, in the features of `encode`, and tile by tile."""
    # In random order: neighbours in a list are often alike, and halves of it would differ.
    members, heldout = (role.unique().shuffled(seed) for seed, role in enumerate((members, heldout)))
    half = len(heldout) // 2
    generators = heldout.images[:half]  # in place of generated pictures, against the other half
    g, m, h, h2 = (encode(images) for images in (made, members.images, heldout.images, generators))
    p, low, high = preference(g, m, h)
    p2, low2, high2 = preference(h2, m, h[half:])
    found = [
        Share(
            f"nearer to a member than to a held-out picture ({name})",
            p,
            low,
            high,
            len(g),
            p2,
            low2,
            high2,
            "one half where nothing is copied",
        )
    ]
    ratio, baseline = _ratio_copies(g, m), _ratio_copies(h2, m)
    found.append(
        _counted(f"copies: a third as far from one member as from the next ({name})", ratio, len(g), baseline, len(h2))
    )
    if encode is pixels:
        ours, theirs = tiled(made, members.images), tiled(heldout.images, members.images)
        closest = float(theirs.min())
        found.append(
            _counted(
                "nearer to a member, in the worst of 16 tiles, than any held-out picture is",
                int((ours < closest).sum()),
                len(ours),
                None,
                0,
            )
        )
    return found


def _ratio_copies(made: Float64, members: Float64) -> int:
    if len(members) < 2:
        return 0
    distance, _ = nearest(made, members, 2)
    return int((distance[:, 0] < COPY_RATIO * distance[:, 1]).sum())


def _counted(name: str, k: int, n: int, baseline: int | None, of: int) -> Share:
    low, high = statistics.clopper_pearson(k, n)
    note = ""
    if k == 0:
        high = statistics.upper_bound(0, n)
        note = f"none in {n:,}: less than {high:.2g} of pictures (95 %); not found is not cannot"
    if baseline is None:
        return Share(name, k / n, low, high, n, None, note=note)
    low2, high2 = statistics.clopper_pearson(baseline, of)
    return Share(name, k / n, low, high, n, baseline / of, low2, high2, note)
