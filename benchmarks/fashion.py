"""Fashion-MNIST's four files as one archive that `--data` reads; its own test set comes last.

python benchmarks/fashion.py fashion-mnist/ fashion.npz
maskdm train --data fashion.npz --image-size 32 'data.heldout_by=^0*6[0-9]{4}$' data.calibration=0.05
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def idx(path: Path) -> np.ndarray:
    """The array of an idx file, uint8."""
    with gzip.open(path) as file:
        content = file.read()
    shape = tuple(int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, 1 + content[3]))
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def main() -> None:
    """Writes the archive."""
    source, target = (Path(word) for word in sys.argv[1:])
    images = [idx(source / f"{part}-images-idx3-ubyte.gz")[..., None] for part in ("train", "t10k")]
    labels = [idx(source / f"{part}-labels-idx1-ubyte.gz").astype(np.int64) for part in ("train", "t10k")]
    np.savez(target, images=np.concatenate(images), labels=np.concatenate(labels), classes=np.array(CLASSES))


if __name__ == "__main__":
    main()
