"""Whether generated pictures are copies: how near they come to training pictures, beside how near held-out ones come.

Alone these say little: a model may leak membership and copy nobody. Every number stands beside the same number with
held-out pictures in place of generated ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def nearest(queries: Float64, known: Float64) -> tuple[Float64, np.ndarray]:
    """Euclidean distances to the nearest of `known`, and which they are: (N,) each."""
    found = [d.min(dim=1) for d in _squares(queries, known)]
    distances, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    return distances.sqrt().double().numpy(), rows.numpy()


def next_nearest(queries: Float64, known: Float64, kinds: np.ndarray) -> Float64:
    """Distances to the nearest of `known` that is of another kind than the nearest: (N,)."""
    of = torch.from_numpy(kinds)
    found = [d.masked_fill(of == of[d.argmin(dim=1)][:, None], torch.inf).amin(dim=1) for d in _squares(queries, known)]
    return torch.cat(found).sqrt().double().numpy()


def _squares(queries: Float64, known: Float64) -> Iterator[Tensor]:
    """Squared distances of some queries at a time to all that is known: (n, M)."""
    a, b = torch.from_numpy(queries).float(), torch.from_numpy(known).float()
    squares = (b**2).sum(1)
    for part in torch.split(a, CHUNK):
        yield ((part**2).sum(1, keepdim=True) - 2 * part @ b.T + squares).clamp_min(0)


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


def preference(made: Float64, members: Float64, heldout: Float64, kinds: np.ndarray) -> tuple[float, float, float]:
    """The share of pictures nearer to a member than to any held-out picture, and its 95 % interval.

    With as many members as held-out pictures, drawn at random from one pool, it is one half for a model that has seen
    neither. Pictures whose nearest neighbours are of one kind count as one for the interval: `kinds` has a number for
    each of the members and held-out pictures, of which as many as there are of the fewer are asked.
    """
    count = min(len(members), len(heldout))
    both = np.concatenate([members[:count], heldout[:count]])
    _, rows = nearest(made, both)
    wins = (rows < count).astype(np.float64)
    own = np.concatenate([kinds[:count], kinds[len(members) : len(members) + count]])[rows]
    p = float(wins.mean())
    sums = np.bincount(own, weights=wins - p)
    half = 1.96 * float(np.sqrt(np.square(sums).sum())) / len(wins)
    if p in (0.0, 1.0):  # all alike: the spread says nothing, the number of neighbours does
        bound = statistics.upper_bound(0, len(np.unique(own)))
        return p, max(p - bound, 0.0), min(p + bound, 1.0)
    return p, max(p - half, 0.0), min(p + half, 1.0)


def kinds_of(*roles: Pictures) -> np.ndarray:
    """A number for every picture of several roles: that of its group, or where there are none its own."""
    names = [f"{i} {each}" for i, role in enumerate(roles) for each in (role.groups or range(len(role)))]
    found: np.ndarray = np.unique(np.array(names), return_inverse=True)[1]
    return found


def halves(pictures: Pictures) -> tuple[Pictures, Pictures]:
    """Two, in random order; groups are not torn apart."""
    kinds = kinds_of(pictures)
    first = np.random.default_rng(0).permutation(kinds.max() + 1)[kinds] % 2 == 0
    if first.all():  # of one group
        first = np.arange(len(pictures)) % 2 == 0
    return pictures.take(np.flatnonzero(first)), pictures.take(np.flatnonzero(~first))


def copies(
    made: np.ndarray, members: Pictures, heldout: Pictures, encode: Encode = pixels, name: str = "pixels"
) -> list[Share]:
    """All measures, in the features of `encode`, and tile by tile."""
    # In random order: neighbours in a list are often alike, and the first of them would be no sample.
    members, heldout = (role.unique().shuffled(seed) for seed, role in enumerate((members, heldout)))
    generators, others = halves(heldout)  # the first in place of generated pictures, against the second
    g, m, h, h1, h2 = (encode(x) for x in (made, members.images, heldout.images, generators.images, others.images))
    p, low, high = preference(g, m, h, kinds_of(members, heldout))
    p2, low2, high2 = preference(h1, m, h2, kinds_of(members, others))
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
    kinds = kinds_of(members)
    ratio, baseline = _ratio_copies(g, m, kinds), _ratio_copies(h1, m, kinds)
    found.append(
        _counted(f"copies: a third as far from one member as from the next ({name})", ratio, len(g), baseline, len(h1))
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


def _ratio_copies(made: Float64, members: Float64, kinds: np.ndarray) -> int:
    """How many are a third as far from their nearest member as from the nearest one of another kind."""
    if kinds.max() < 1:
        return 0
    return int((nearest(made, members)[0] < COPY_RATIO * next_nearest(made, members, kinds)).sum())


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
