"""Decoded images in memory together with what is known of each: the set that evaluation and audit compute on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from maskdm.data.decode import Pixels


@dataclass(frozen=True)
class LabelledImages:
    """Images and, row by row, their labels, ids and groups.

    Attributes:
        images: (N, H, W, C) uint8.
        ids: N names by which images are told apart, such as hashes of their pixels; () where nobody needs them.
        labels: (N,) class indices, or None.
        groups: N names of groups (a person, a patient, a scene), or None.

    Raises:
        ValueError: ids, labels or groups are not as many as the images.
    """

    images: Pixels
    ids: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None
    groups: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, each in (("ids", self.ids or None), ("labels", self.labels), ("groups", self.groups)):
            if each is not None and len(each) != len(self.images):
                raise ValueError(f"{len(each)} {name} for {len(self.images)} images")

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.images)

    def take(self, rows: NDArray[np.int64]) -> LabelledImages:
        """The images in `rows`, in that order; a row may occur more than once."""
        return LabelledImages(
            self.images[rows],
            tuple(self.ids[row] for row in rows) if self.ids else (),
            None if self.labels is None else self.labels[rows],
            None if self.groups is None else tuple(self.groups[row] for row in rows),
        )

    def averaged(self, size: tuple[int, int]) -> LabelledImages:
        """The same at a smaller size, (h, w): means of k x k pixels, rounded; ids stay those of the images here.

        Raises:
            ValueError: both sides are not divided by one whole number k.
        """
        count, height, width, channels = self.images.shape
        if (height, width) == size:
            return self
        (h, w), k = size, height // size[0]
        if (height, width) != (k * h, k * w):
            raise ValueError(f"{height} x {width} is no multiple of {h} x {w}")
        small = np.empty((count, h, w, channels), np.uint8)
        for row, image in enumerate(self.images):  # one by one: sums are four times as large
            sums = image.reshape(h, k, w, k, channels).sum(axis=(1, 3), dtype=np.uint32)
            small[row] = (sums + k * k // 2) // (k * k)
        return replace(self, images=small)

    def subset(self, count: int, seed: int) -> LabelledImages:
        """At most `count` images drawn at random without replacement, in the order they have here."""
        if len(self) <= count:
            return self
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    def shuffled(self, seed: int) -> LabelledImages:
        """All images in random order."""
        return self.take(np.random.default_rng(seed).permutation(len(self)))

    def unique(self) -> LabelledImages:
        """The first image of each id; without ids, all of them."""
        if not self.ids:
            return self
        first = {name: row for row, name in reversed(list(enumerate(self.ids)))}
        return self.take(np.array(sorted(first.values()), np.int64))
