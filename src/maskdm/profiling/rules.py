"""What to train when only the time is given: network, patches, masks, batch and rate, as rules.

The rules are few, and each says what it rests on. What was measured is in docs/evidence.md ("The recipe for a time
budget"); where nothing was, the rule says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from maskdm.config.model_config import NetworkConfig
from maskdm.config.section import Tree

USUAL_MINUTES = 60.0
"""Of a run for which neither a recipe nor a length is given."""


@dataclass(frozen=True)
class NetworkSize:
    """Width, depth and heads of a network.

    Attributes:
        width: of a token, or channels of a U-Net's first level.
        depth: blocks, or blocks of each level of a U-Net.
        heads: of attention, None where the network has none of its own to choose.
    """

    width: int
    depth: int
    heads: int | None = None

    def settings(self) -> Tree:
        """As `model` has them."""
        return {"width": self.width, "depth": self.depth} | ({} if self.heads is None else {"heads": self.heads})


SIZES: Mapping[str, Sequence[NetworkSize]] = {
    "jit": (
        NetworkSize(96, 4, 2),
        NetworkSize(128, 5, 2),
        NetworkSize(192, 6, 3),
        NetworkSize(256, 6, 4),
        NetworkSize(384, 8, 6),
        NetworkSize(384, 12, 6),
        NetworkSize(512, 12, 8),
        NetworkSize(768, 12, 12),
    ),
    "uvit": (
        NetworkSize(128, 5, 2),
        NetworkSize(192, 7, 3),
        NetworkSize(256, 7, 4),
        NetworkSize(384, 9, 6),
        NetworkSize(512, 13, 8),
        NetworkSize(768, 13, 12),
    ),
    "unet": (NetworkSize(32, 1), NetworkSize(48, 2), NetworkSize(64, 2), NetworkSize(128, 2)),
}
"""Backbone -> its sizes that are tried, from small to large."""

IMAGES_PER_PARAMETER = 8e-3
"""Images that a network must see for each of its parameters before the next larger one is taken: at equal compute a
larger network sees fewer images, and learns more from each only once it has seen enough."""
MOST_TOKENS_PER_SIDE, LARGEST_PATCH = 8, 16
BATCH, BATCH_IMAGES, LEAST_BATCH, LARGEST_BATCH = 8, 40_000, 4, 256
"""Images of a step for a run of so many images, and the bounds; it grows with the root of their number, and so does the
number of steps. In short runs steps are what is missing: the smaller the batch, the better."""
GPU_BATCH = 64
"""The smallest on a GPU, which a step of fewer images leaves idle. Not measured."""
RATE, RATE_WIDTH, RATE_BATCH = 1e-3, 256, 16
"""Peak learning rate at this width, up to this batch; it falls with the width, and rises with the root of the batch."""


def sizes_of(backbone: str, model: NetworkConfig) -> Sequence[NetworkSize | None]:
    """The sizes to try, from small to large, as far as they are not given; (None,) for a network of the user's own.

    Args:
        backbone: its name.
        model: what was given of it.
    """
    sizes = SIZES.get(backbone, ())
    if sizes and model.width is not None:
        near = min(sizes, key=lambda size: abs(math.log(size.width / (model.width or 1))))
        return [replace(near, width=model.width, heads=near.heads and _heads_of(model.width))]
    if sizes and model.heads is not None:
        sizes = [size for size in sizes if size.width % (4 * model.heads) == 0] or sizes
    return sizes or (None,)


def _heads_of(width: int) -> int:
    """The number of attention heads that divides a width into multiples of 4, as near to 64 as can be."""
    fitting = [n for n in range(1, width // 4 + 1) if width % (4 * n) == 0] or [1]
    return min(fitting, key=lambda n: abs(width / n - 64))


def patch_side(image_size: tuple[int, int], multiple: int = 1) -> int:
    """The side of a patch in pixels: the largest up to 16 that leaves at least 7 patches to the shorter side.

    With a pixel head few large patches learn most in little time: the step is cheap, and details are the head's.

    Args:
        image_size: (height, width) in pixels.
        multiple: of which the side is to be one where the image allows it.
    """
    sides = math.gcd(*image_size)
    fitting = [p for p in range(1, LARGEST_PATCH + 1) if sides % p == 0]
    fitting = [p for p in fitting if p % multiple == 0] or fitting
    large_enough = [p for p in fitting if min(image_size) // p >= MOST_TOKENS_PER_SIDE - 1]
    return max(large_enough, default=fitting[0])


def sees_enough(parameters: int, images: float) -> bool:
    """Whether a network of so many parameters is worth taking for so many images of a run."""
    return images >= IMAGES_PER_PARAMETER * parameters


def pick_batch(images: float, *, gpu: bool, ranks: int = 1) -> int:
    """Images of a step.

    Args:
        images: of the whole run.
        gpu: whether the device is one.
        ranks: processes that share a batch; it is a multiple of them.
    """
    least = GPU_BATCH if gpu else LEAST_BATCH
    wanted = min(max(BATCH * math.sqrt(images / BATCH_IMAGES), least), LARGEST_BATCH)
    power = int(2 ** round(math.log2(wanted)))
    return max(ranks * math.ceil(power / ranks), ranks)


def pick_rate(width: int, batch: int) -> float:
    """The peak learning rate of AdamW, two digits.

    Args:
        width: of the network.
        batch: images of a step.
    """
    rate = RATE * min(RATE_WIDTH / width, 1.0) * min(max(math.sqrt(batch / RATE_BATCH), 1.0), 2.0)
    return float(f"{rate:.2g}")


def usual_tree(backbone: str, size: NetworkSize | None, image_size: tuple[int, int], batch: int) -> Tree:
    """Settings for a network; the lengths of its stages are placeholders, a step each.

    Args:
        backbone: jit, uvit, unet, or a class of the user's own.
        size: of the network, None for that which it has by itself.
        image_size: (height, width) in pixels.
        batch: images of a step.
    """
    rate = pick_rate(RATE_WIDTH if size is None or backbone == "unet" else size.width, batch)
    stage = {"lr": rate, "steps": 1}
    side = patch_side(image_size, multiple=4 if backbone == "unet" else 1)  # whose levels halve every crop twice
    return {
        "model": {"backbone": backbone, "patch_size": side}
        | ({} if size is None else size.settings())
        | ({"pixel_head": "conv"} if backbone in ("jit", "uvit") else {}),
        "process": {"kind": "flow", "prediction": "x0", "loss": "velocity", "time_mean": 1.0},
        "stages": [
            stage
            | {"name": "pretrain", "batch_size": MASKED_BATCHES * batch, "warmup_steps": 50}
            | {"mask": mask_of(image_size, side)},
            stage | {"name": "finetune", "batch_size": batch, "warmup_steps": 20, "lr_schedule": "cosine"},
        ],
    }


MASKED_SHARE = 0.5
"""Of the time that is spent on the masked stage."""
MASKED_BATCHES = 2
"""Batches of whole images that a masked batch is: an image of which a quarter is seen costs a third."""


def mask_of(image_size: tuple[int, int], patch_size: int) -> Tree:
    """What the first stage masks: three quarters by a crop where patches are few, as `auto` where they are many."""
    few = math.prod(image_size) // patch_size**2 < 256
    return {"kind": "crop"} if few else {"kind": "auto"}
