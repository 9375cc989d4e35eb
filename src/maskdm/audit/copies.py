"""Whether generated pictures are copies: how near they come to training pictures, beside how near held-out ones come.

Alone these say little: a model may leak membership and copy nobody. Every number stands beside the same number with
held-out pictures in place of generated ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskdm.audit import statistics
from maskdm.audit.statistics import Float64
from maskdm.audit.subject import Pictures

COPY_RATIO = 1 / 3
TILES = 4
CHUNK = 256
Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float32] | Float64 | Bytes
Encode = Callable[[np.ndarray], Numbers]
"""(N, H, W, C) uint8 -> (N, D): features in which pictures are compared; bytes stand for [0, 1]."""


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


def nearest(queries: Numbers, known: Numbers) -> tuple[Float64, np.ndarray]:
    """Euclidean distances to the nearest of `known`, and which they are: (N,) each."""
    found = [d.min(dim=1) for d in _squares(queries, known)]
    distances, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    return distances.sqrt().double().numpy(), rows.numpy()


def nearest_two(queries: Numbers, known: Numbers, kinds: np.ndarray) -> tuple[Float64, Float64]:
    """Distances to the nearest of `known`, and to the nearest that is of another kind: (N,) each."""
    of = torch.from_numpy(kinds)
    first, second = [], []
    for d in _squares(queries, known):
        least, rows = d.min(dim=1)
        first.append(least)
        second.append(d.masked_fill_(of == of[rows][:, None], torch.inf).amin(dim=1))
    near, far = (torch.cat(parts).sqrt().double().numpy() for parts in (first, second))
    return near, far


def _squares(queries: Numbers, known: Numbers) -> Iterator[Tensor]:
    """Squared distances of some queries at a time to all that is known: (n, M)."""
    for a in _parts(queries):
        yield torch.cat([_between(a, b) for b in _parts(known)], dim=1)


def _parts(numbers: Numbers) -> Iterator[Tensor]:
    """Some at a time, as floats."""
    for start in range(0, len(numbers), CHUNK):
        yield _floats(numbers[start : start + CHUNK])


def _between(a: Tensor, b: Tensor) -> Tensor:
    """(N, D), (M, D) -> squared distances (N, M)."""
    return ((a**2).sum(1, keepdim=True) - 2 * (a @ b.T) + (b**2).sum(1)).clamp_min(0)


def _floats(numbers: Numbers) -> Tensor:
    """As they are, or where they are bytes in [0, 1]: only a part of the pictures is floats at one time."""
    found = torch.from_numpy(np.ascontiguousarray(numbers))
    return found.float() / 255 if found.dtype == torch.uint8 else found.float()


def tiled(queries: np.ndarray, known: np.ndarray) -> Float64:
    """The distance to the nearest known picture where a distance is that of the worst of 4 x 4 tiles: (N,), 0 to 1.

    After Carlini et al. 2023, arXiv 2301.13188: so that two pictures with a like background are no copies.
    """
    found = []
    for start in range(0, len(queries), CHUNK):
        part = queries[start : start + CHUNK]
        least = torch.full((len(part),), torch.inf)
        for other in range(0, len(known), CHUNK):
            tiles = zip(_tiles(part), _tiles(known[other : other + CHUNK]), strict=True)
            worst = torch.stack([_between(x, y) / x.shape[1] for x, y in tiles]).amax(dim=0)
            least = torch.minimum(least, worst.amin(dim=1))
        found.append(least.sqrt())
    return torch.cat(found).double().numpy()


def _tiles(images: np.ndarray) -> Iterator[Tensor]:
    """(N, H, W, C) uint8 -> 16 of (N, d) in [0, 1]; what does not divide by four is left out below and right."""
    height, width = images.shape[1:3]
    h, w = max(height // TILES, 1), max(width // TILES, 1)
    for y in range(min(height // h, TILES)):
        for x in range(min(width // w, TILES)):
            yield _floats(images[:, y * h : (y + 1) * h, x * w : (x + 1) * w]).flatten(1)


def pixels(images: np.ndarray) -> Bytes:
    """Pictures as vectors; bytes, which stand for [0, 1]."""
    found: Bytes = images.reshape(len(images), -1)
    return found


def preference(made: Numbers, members: Numbers, heldout: Numbers) -> tuple[float, float, float]:
    """The share of pictures nearer to a member than to any held-out picture, and its 95 % interval.

    With as many members as held-out pictures, drawn at random from one pool, it is one half for a model that has seen
    neither. Pictures whose nearest neighbour is the same one count as one for the interval.
    """
    count = min(len(members), len(heldout))
    to_member, row = nearest(made, members[:count])
    to_heldout, other = nearest(made, heldout[:count])
    wins = (to_member <= to_heldout).astype(np.float64)
    rows = np.where(wins, row, count + other)
    p = float(wins.mean())
    sums = np.bincount(rows, weights=wins - p, minlength=2 * count)
    half = 1.96 * float(np.sqrt(np.square(sums).sum())) / len(wins)
    if p in (0.0, 1.0):  # all alike: the spread says nothing, the number of neighbours does
        bound = statistics.upper_bound(0, len(np.unique(rows)))
        return p, max(p - bound, 0.0), min(p + bound, 1.0)
    return p, max(p - half, 0.0), min(p + half, 1.0)


def kinds_of(pictures: Pictures) -> np.ndarray:
    """A number for every picture: that of its group, or where there are none its own."""
    found: np.ndarray = np.unique(np.array(pictures.groups or pictures.ids), return_inverse=True)[1]
    return found


def one_of_each(kinds: np.ndarray) -> np.ndarray:
    """The rows of the first picture of every kind, in order: as many things, whatever the size of their groups."""
    return np.sort(np.unique(kinds, return_index=True)[1])


def copies(
    made: np.ndarray, members: Pictures, heldout: Pictures, encode: Encode = pixels, name: str = "pixels"
) -> list[Share]:
    """All measures, in the features of `encode`, and tile by tile."""
    # In random order: neighbours in a list are often alike, and the first of them would be no sample.
    members, heldout = (role.unique().shuffled(seed) for seed, role in enumerate((members, heldout)))
    kinds, others = kinds_of(members), kinds_of(heldout)
    g, m, h = (encode(images) for images in (made, members.images, heldout.images))
    single = m[one_of_each(kinds)]
    half = np.random.default_rng(0).permutation(others.max() + 1)[others] % 2 == 0
    generators, judges = h[half], h[~half][one_of_each(others[~half])]  # in place of generated pictures, and against
    p, low, high = preference(g, single, h[one_of_each(others)])
    p2, low2, high2 = preference(generators, single, judges) if len(judges) else (None, None, None)
    said = f"nearer to a member than to a held-out picture ({name})"
    found = [Share(said, p, low, high, len(g), p2, low2, high2, "one half where nothing is copied")]
    if kinds.max() > 0:
        what = "the next" if members.groups is None else "the next of another group"
        found.append(
            _counted(
                f"copies: a third as far from one member as from {what} ({name})",
                _ratio_copies(g, m, kinds),
                len(g),
                _ratio_copies(generators, m, kinds),
                len(generators),
            )
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


def _ratio_copies(made: Numbers, members: Numbers, kinds: np.ndarray) -> int:
    """How many are a third as far from their nearest member as from the nearest one of another kind."""
    near, far = nearest_two(made, members, kinds)
    return int((near < COPY_RATIO * far).sum())


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
