"""Whether an imported network answers as the one that it comes from: compared with outputs of that one, kept in a file.

The number of attention heads is in no official checkpoint, and any that divides the width gives a network that runs.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskdm.config.model_config import UViTConfig
from maskdm.errors import ArgumentError, InputError
from maskdm.models import build
from maskdm.models.weights import Weights, load_state

TOLERANCE = 1e-3
"""The largest difference that is rounding, over the largest output: float32 gives 1e-6, a GPU's TF32 up to 1e-3."""
NAMES = {"x": ("x", "x_t"), "t": ("t",), "y": ("y", "label"), "output": ("output", "dense")}
"""What an array is called in the file, by what it is."""


@dataclass(frozen=True)
class Outputs:
    """What a network answers.

    Attributes:
        x: noisy images as the network sees them, (B, C, H, W) float32.
        t: timesteps, (B,).
        y: labels, (B,) int64, or None.
        output: the answers, (B, C, H, W) float32.
    """

    x: Tensor
    t: Tensor
    y: Tensor | None
    output: Tensor


def read_outputs(path: Path, which: str) -> Outputs:
    """Outputs that were kept in an .npz: arrays x, t, output and, with classes, y; also called x_t, dense, label.

    Args:
        path: the file.
        which: ema or raw; an array `ema.x` goes before `x`.

    Raises:
        InputError: it cannot be read, or lacks an array.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {
                name: archive[key]
                for name, keys in NAMES.items()
                for key in [next((k for own in keys for k in (f"{which}.{own}", own) if k in archive), None)]
                if key is not None
            }
    except FileNotFoundError:
        raise InputError(str(path), "no such file") from None
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(str(path), f"not a readable .npz ({' '.join(str(error).split())})") from None
    lacking = [name for name in ("x", "t", "output") if name not in found]
    if lacking:
        wanted = "arrays x, t, output, and y for a network with classes"
        raise InputError(str(path), f"lacks {', '.join(lacking)}", wanted=wanted)
    try:
        x, t, output = (torch.from_numpy(found[name]).float() for name in ("x", "t", "output"))
        y = torch.from_numpy(found["y"]).long() if "y" in found else None
    except TypeError as error:
        raise InputError(str(path), f"holds arrays that are no numbers ({error})") from None
    if output.shape != x.shape or x.ndim != 4:
        got = f"{tuple(x.shape)} and {tuple(output.shape)}"
        raise InputError(str(path), "x and output differ in shape", got=got, wanted="(B, C, H, W) twice")
    return Outputs(x, t, y, output)


def check_outputs(weights: Weights, path: Path, which: str) -> float:
    """The largest difference between outputs in a file and those of a network, over the largest output.

    Args:
        weights: the network.
        path: the file; see `read_outputs`.
        which: of the checkpoint the weights are: ema or raw.

    Raises:
        InputError: a file that is none, or is for other images; the outputs differ by more than rounding. The error
            says which number of heads would do.
    """
    expected = read_outputs(path, which)
    found = _difference(weights, expected, path)
    if found <= TOLERANCE:
        return found
    model = weights.spec.model
    assert isinstance(model, UViTConfig), "the official network is a U-ViT"
    assert model.width is not None, "read off the file"
    by_heads = {}
    for heads in (n for n in range(1, model.width + 1) if model.width % n == 0 and n != model.heads):
        spec = weights.spec.model_copy(update={"model": model.model_copy(update={"heads": heads})})
        by_heads[heads] = _difference(Weights(spec, weights.metadata, weights.tensors), expected, path)
    best = min(by_heads, key=lambda heads: by_heads[heads])
    fits = by_heads[best] <= TOLERANCE
    remedy = f"with {best} heads it differs by {by_heads[best]:.1g}" if fits else "no number of heads would do"
    raise InputError(
        str(path),
        f"with {model.heads} heads the network's outputs differ by {found:.2g} of the largest",
        wanted=f"at most {TOLERANCE:g}",
        remedy=remedy,
    )


@torch.no_grad()
def _difference(weights: Weights, expected: Outputs, path: Path) -> float:
    network = build.backbone(weights.spec).eval()
    load_state(network, weights.tensors, path)
    spec = weights.spec
    shape = (spec.channels, *spec.image_size)
    if expected.x.shape[1:] != shape:
        raise InputError(str(path), "is for other images", got=tuple(expected.x.shape[1:]), wanted=f"{shape}")
    y = expected.y
    if y is not None and not (spec.class_names and int(y.min()) >= 0 and int(y.max()) <= len(spec.class_names)):
        raise InputError(
            str(path), "has labels that this network does not know", wanted=f"0 to {len(spec.class_names)}"
        )
    try:
        output = network(expected.x, expected.t, label=y)
    except ArgumentError as error:
        raise InputError(str(path), str(error)) from None
    return float((output - expected.output).abs().max() / expected.output.abs().max().clamp_min(1e-12))
