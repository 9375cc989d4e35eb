"""Published networks whose features agree with people better than Inception's: DINOv2 and CLIP.

    dinov2   the class token of DINOv2 ViT-L/14 (Oquab et al. 2023, arXiv 2304.07193; as features for a Fréchet
             distance: Stein et al. 2023, arXiv 2306.04675)
    clip     the image embedding of CLIP ViT-L/14 (Radford et al. 2021, arXiv 2103.00020; Jayasumana et al. 2024,
             arXiv 2401.09603)

Weights and networks come from transformers (`pip install 'maskdm[features]'`), which keeps what it has downloaded; a
folder that its `save_pretrained` wrote does as well. Images are resized to the network's side by bicubic
interpolation with antialiasing and normalised as it was trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskdm.errors import ArgumentError
from maskdm.evaluation.encoder import hash_weights


@dataclass(frozen=True)
class Published:
    """One of them.

    Attributes:
        hub: its name on the Hugging Face hub.
        network: its class in transformers.
        output: the field of its output that is the feature.
        mean, std: of RGB in 0..1, by which its inputs are normalised.
        side: at which its features were compared, where that is less than what it was trained at; or None.
    """

    hub: str
    network: str
    output: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    side: int | None = None


PUBLISHED = {
    "dinov2": Published(
        "facebook/dinov2-large", "Dinov2Model", "pooler_output", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), side=224
    ),
    "clip": Published(
        "openai/clip-vit-large-patch14",
        "CLIPVisionModelWithProjection",
        "image_embeds",
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
}


def load_published(
    name: str, folder: Path | None, device: torch.device, say: Callable[[str], None]
) -> tuple[Callable[[Tensor], Tensor], str]:
    """(B, 3, H, W) in 0..255 -> (B, D), and the hash of the weights.

    Args:
        name: a key of PUBLISHED.
        folder: with the weights, or None to download them.
        device: where to compute.
        say: called with a line where they may be downloaded.

    Raises:
        ArgumentError: transformers is not there, or the weights cannot be had or are another network's.
    """
    which = PUBLISHED[name]
    network = _network(name, which, folder, say).to(device).eval().requires_grad_(False)
    trained_at = int(network.config.image_size)
    side = min(trained_at, which.side or trained_at)  # the same for a download and for a folder of the same weights
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (which.mean, which.std))

    def extract(x: Tensor) -> Tensor:
        resized = F.interpolate(x, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
        found: Tensor = getattr(network((resized.clamp(0, 255) / 255 - mean) / std), which.output)
        return found

    return extract, hash_weights(network.state_dict())


def _network(name: str, which: Published, folder: Path | None, say: Callable[[str], None]) -> Any:
    """The network of transformers with its weights, all of them there."""
    try:
        import transformers
    except ImportError:
        raise ArgumentError("features", f"{name} needs transformers", remedy="pip install 'maskdm[features]'") from None
    if folder is not None and not (folder / "config.json").is_file():
        raise ArgumentError("features_weights", f"{folder} is not a folder that save_pretrained of transformers wrote")
    if folder is None:
        say(f"features of {which.hub} (downloaded where they are not yet there)")
    log: Any = transformers.logging
    before = log.get_verbosity()
    log.set_verbosity_error()
    origin = str(folder or which.hub)
    try:
        network, info = getattr(transformers, which.network).from_pretrained(origin, output_loading_info=True)
    except Exception as error:  # of many kinds: no connection, another architecture, damaged files
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ArgumentError(
            "features" if folder is None else "features_weights",
            f"{origin} cannot be read as {name} ({type(error).__name__}: {reason})",
            remedy=f"get the files of {which.hub} elsewhere, and give their folder",
        ) from None
    finally:
        log.set_verbosity(before)
    if missing := sorted(info["missing_keys"]):
        name = "features" if folder is None else "features_weights"
        raise ArgumentError(name, f"{origin} lacks {len(missing)} tensors, such as {missing[0]}")
    return network
