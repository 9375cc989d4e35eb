"""Whether generated images are copies: how near they come to training images, compared with held-out images.

Alone these say little: a model may leak membership and copy nothing. Every share stands beside the same share with
held-out images in place of generated ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskdm.auditing import statistics
from maskdm.auditing.statistics import Float64
from maskdm.data.labelled import LabelledImages
from maskdm.evaluation.distances import squared_distances

COPY_RATIO = 1 / 3
"""A copy is nearer to one training image than this share of its distance to the next (Yoon et al. 2023)."""
TILES = 4
CHUNK = 256
"""Images that are floats at one time."""
Bytes = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32] | Float64 | Bytes
"""(N, D): features of images; bytes stand for [0, 1]."""
FeatureMap = Callable[[np.ndarray], Vectors]
"""(N, H, W, C) uint8 -> (N, D): the features in which images are compared."""


@dataclass(frozen=True)
class CopyShare:
    """A share of generated images, and the same share of held-out images in their place.

    Attributes:
        name: what is counted.
        value, low, high: the share, and its 95 % interval.
        n: generated images.
        baseline, baseline_low, baseline_high: of held-out images, or None where that cannot be asked.
        note: what else a reader must know.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    baseline: float | None
    baseline_low: float | None = None
    baseline_high: float | None = None
    note: str = ""


def measure_copies(
    generated: np.ndarray,
    members: LabelledImages,
    heldout: LabelledImages,
    features: FeatureMap | None = None,
    name: str = "pixels",
) -> list[CopyShare]:
    """All measures of copying in one kind of features.

    Args:
        generated: (N, H, W, C) uint8.
        members, heldout: images of these roles, in the same size.
        features: in which distances are taken; by default all pixels, and then tile by tile too.
        name: of the features.
    """
    # In random order: neighbors in a list are often alike, and the first of them would be no sample.
    members, heldout = (role.unique().shuffled(seed) for seed, role in enumerate((members, heldout)))
    kinds, others = kinds_of(members), kinds_of(heldout)
    g, m, h = ((features or all_pixels)(images) for images in (generated, members.images, heldout.images))
    single = m[one_of_each(kinds)]
    half = np.random.default_rng(0).permutation(others.max() + 1)[others] % 2 == 0
    generators, judges = h[half], h[~half][one_of_each(others[~half])]  # in place of generated images, and against
    p, low, high = member_preference(g, single, h[one_of_each(others)])
    p2, low2, high2 = member_preference(generators, single, judges) if len(judges) else (None, None, None)
    title = f"nearer to a member than to a held-out image ({name})"
    found = [CopyShare(title, p, low, high, len(g), p2, low2, high2, "one half where nothing is copied")]
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
    if features is None:
        ours, theirs = tile_distances(generated, members.images), tile_distances(heldout.images, members.images)
        closest = float(theirs.min())
        found.append(
            _counted(
                "nearer to a member, in the worst of 16 tiles, than any held-out image is",
                int((ours < closest).sum()),
                len(ours),
                None,
                0,
            )
        )
    return found


# --- measures --------------------------------------------------------------------------------------------------------


def member_preference(generated: Vectors, members: Vectors, heldout: Vectors) -> tuple[float, float, float]:
    """The share of images nearer to a member than to any held-out image, and its 95 % interval.

    With as many members as held-out images, drawn at random from one pool, it is one half for a model that has seen
    neither. Images whose nearest neighbor is the same one count as one for the interval.

    Args:
        generated, members, heldout: features, (N, D), (M, D) and (L, D); of the last two as many are used as both have.
    """
    count = min(len(members), len(heldout))
    to_member, row = nearest_neighbors(generated, members[:count])
    to_heldout, other = nearest_neighbors(generated, heldout[:count])
    wins = (to_member <= to_heldout).astype(np.float64)
    rows = np.where(wins, row, count + other)
    p = float(wins.mean())
    sums = np.bincount(rows, weights=wins - p, minlength=2 * count)
    half = 1.96 * float(np.sqrt(np.square(sums).sum())) / len(wins)
    if p in (0.0, 1.0):  # all alike: the spread says nothing, the number of neighbors does
        bound = statistics.upper_bound(0, len(np.unique(rows)))
        return p, max(p - bound, 0.0), min(p + bound, 1.0)
    return p, max(p - half, 0.0), min(p + half, 1.0)


def tile_distances(queries: np.ndarray, known: np.ndarray) -> Float64:
    """The distance to the nearest known image, where a distance is that of the worst of 4 x 4 tiles.

    After Carlini et al. 2023, arXiv 2301.13188: so that two images with a like background are no copies.

    Args:
        queries, known: (N, H, W, C) and (M, H, W, C) uint8.

    Returns:
        (N,), from 0 to 1.
    """
    found = []
    for start in range(0, len(queries), CHUNK):
        part = queries[start : start + CHUNK]
        least = torch.full((len(part),), torch.inf)
        for other in range(0, len(known), CHUNK):
            tiles = zip(_tiles(part), _tiles(known[other : other + CHUNK]), strict=True)
            worst = torch.stack([squared_distances(x, y) / x.shape[1] for x, y in tiles]).amax(dim=0)
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


def kinds_of(images: LabelledImages) -> np.ndarray:
    """A number for every image, equal for images of one group; without groups, of one id: (N,) int64."""
    found: np.ndarray = np.unique(np.array(images.groups or images.ids), return_inverse=True)[1]
    return found


def one_of_each(kinds: np.ndarray) -> np.ndarray:
    """The rows of the first image of every kind, in order: as many things, whatever the size of their groups."""
    return np.sort(np.unique(kinds, return_index=True)[1])


def _ratio_copies(generated: Vectors, members: Vectors, kinds: np.ndarray) -> int:
    """How many are a third as far from their nearest member as from the nearest one of another kind."""
    near, far = nearest_two(generated, members, kinds)
    return int((near < COPY_RATIO * far).sum())


def _counted(name: str, k: int, n: int, baseline: int | None, of: int) -> CopyShare:
    """k in n generated images, and `baseline` in `of` held-out ones."""
    low, high = statistics.clopper_pearson(k, n)
    note = ""
    if k == 0:
        high = statistics.upper_bound(0, n)
        note = f"none in {n:,}: less than {high:.2g} of images (95 %); not found is not cannot"
    if baseline is None:
        return CopyShare(name, k / n, low, high, n, None, note=note)
    low2, high2 = statistics.clopper_pearson(baseline, of)
    return CopyShare(name, k / n, low, high, n, baseline / of, low2, high2, note)


# --- distances -------------------------------------------------------------------------------------------------------


def all_pixels(images: np.ndarray) -> Bytes:
    """(N, H, W, C) uint8 -> (N, H W C): all pixels; bytes, which stand for [0, 1]."""
    found: Bytes = images.reshape(len(images), -1)
    return found


def nearest_neighbors(queries: Vectors, known: Vectors) -> tuple[Float64, np.ndarray]:
    """Euclidean distances of queries (N, D) to the nearest of `known` (M, D), and the rows of these: (N,) each."""
    found = [d.min(dim=1) for d in _squares(queries, known)]
    distances, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    return distances.sqrt().double().numpy(), rows.numpy()


def nearest_two(queries: Vectors, known: Vectors, kinds: np.ndarray) -> tuple[Float64, Float64]:
    """Distances to the nearest of `known` (M, D), and to the nearest that is of another kind: (N,) each.

    Args:
        queries: (N, D).
        known: (M, D).
        kinds: of the known, (M,) int64.
    """
    of = torch.from_numpy(kinds)
    first, second = [], []
    for d in _squares(queries, known):
        least, rows = d.min(dim=1)
        first.append(least)
        second.append(d.masked_fill_(of == of[rows][:, None], torch.inf).amin(dim=1))
    near, far = (torch.cat(parts).sqrt().double().numpy() for parts in (first, second))
    return near, far


def _squares(queries: Vectors, known: Vectors) -> Iterator[Tensor]:
    """Squared distances of some queries at a time to all that is known: (n, M)."""
    for a in _float_chunks(queries):
        yield torch.cat([squared_distances(a, b) for b in _float_chunks(known)], dim=1)


def _float_chunks(vectors: Vectors) -> Iterator[Tensor]:
    """Some at a time, as floats."""
    for start in range(0, len(vectors), CHUNK):
        yield _floats(vectors[start : start + CHUNK])


def _floats(vectors: Vectors) -> Tensor:
    """As they are, or where they are bytes in [0, 1]: only a part of the images is floats at one time."""
    found = torch.from_numpy(np.ascontiguousarray(vectors))
    return found.float() / 255 if found.dtype == torch.uint8 else found.float()
