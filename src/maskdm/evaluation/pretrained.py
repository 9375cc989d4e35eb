"""Published networks whose features agree with people better than Inception's: DINOv2 and CLIP.

    dinov2   the class token of DINOv2 ViT-L/14 (Oquab et al. 2023, arXiv 2304.07193; as features for a Fréchet
             distance: Stein et al. 2023, arXiv 2306.04675)
    clip     the image embedding of CLIP ViT-L/14 (Radford et al. 2021, arXiv 2103.00020; Jayasumana et al. 2024,
             arXiv 2401.09603)

Weights and networks come from transformers (`pip install 'maskdm[features]'`), which keeps what it has downloaded; a
folder that its `save_pretrained` wrote does as well. Pictures are resized to the network's side by bicubic
interpolation with antialiasing and normalised as it was trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskdm.errors import InputError


@dataclass(frozen=True)
class Published:
    """One of them.

    Attributes:
        hub: its name on the Hugging Face hub.
        network: its class in transformers.
        output: the field of its answer that is the feature.
        mean, std: of RGB in 0..1, by which its inputs are normalised.
    """

    hub: str
    network: str
    output: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


PUBLISHED = {
    "dinov2": Published(
        "facebook/dinov2-large", "Dinov2Model", "pooler_output", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
    "clip": Published(
        "openai/clip-vit-large-patch14",
        "CLIPVisionModelWithProjection",
        "image_embeds",
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
}


def published(
    name: str, folder: Path | None, device: torch.device, say: Callable[[str], None]
) -> tuple[Callable[[Tensor], Tensor], str]:
    """(B, 3, H, W) in 0..255 -> (B, D), and the hash of the weights.

    Raises:
        InputError: transformers is not there, or the weights cannot be had or are another network's.
    """
    which = PUBLISHED[name]
    network = _network(name, which, folder, say).to(device).eval().requires_grad_(False)
    side = 224 if folder is None else int(network.config.image_size)  # what they were compared at, not trained at
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (which.mean, which.std))

    def extract(x: Tensor) -> Tensor:
        resized = F.interpolate(x, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
        found: Tensor = getattr(network((resized.clamp(0, 255) / 255 - mean) / std), which.output)
        return found

    return extract, _hash(network)


def _network(name: str, which: Published, folder: Path | None, say: Callable[[str], None]) -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError(f"--features {name}: needs transformers; pip install 'maskdm[features]'") from None
    if folder is not None and not (folder / "config.json").is_file():
        raise InputError(f"--weights: {folder} is no folder that save_pretrained of transformers wrote")
    if folder is None:
        say(f"features of {which.hub} (downloaded where they are not yet there)")
    talk: Any = transformers.logging
    before = talk.get_verbosity()
    talk.set_verbosity_error()
    try:
        kind = getattr(transformers, which.network)
        network, told = kind.from_pretrained(str(folder or which.hub), output_loading_info=True)
    except Exception as error:  # of many kinds: no connection, another architecture, damaged files
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise InputError(
            f"--features {name}: {folder or which.hub} cannot be read ({type(error).__name__}: {reason}); get the "
            f"files of {which.hub} elsewhere, and give their folder with --weights"
        ) from None
    finally:
        talk.set_verbosity(before)
    if missing := sorted(told["missing_keys"]):
        raise InputError(f"--features {name}: {folder or which.hub} lacks {len(missing)} tensors, such as {missing[0]}")
    return network


def _hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
