"""What sampled images start from: noise, or images that are edited."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from maskdm.data.decode import Transform, decode_file
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.pixels import to_model
from maskdm.errors import InputError
from maskdm.sampling import edit
from maskdm.sampling.sample import Callback, Maker, SamplingConfig, from_noise

Image: TypeAlias = str | Path | Tensor
"""A file, or (C, H, W) in [0, 1] in the model's size."""
STRENGTH = 0.6
"""Of `init` where nothing is masked."""


@dataclass(frozen=True)
class Edit:
    """What images start from.

    Attributes:
        init: an image to vary, or to inpaint where `mask` says so.
        mask: an image, white where pixels are to be regenerated.
        ends: two images to interpolate between.
        strength: noise level to start from, 0 to 1.
        resample: how often every step of inpainting is taken.
    """

    init: Image | None
    mask: Image | None
    ends: Sequence[Image] | None
    strength: float
    resample: int

    @property
    def active(self) -> bool:
        """Whether there is an image to start from."""
        return self.init is not None or self.ends is not None


def choose_edit(
    init: Image | None,
    strength: float | None,
    inpaint: Image | None,
    resample: int | None,
    interpolate: Sequence[Image] | None,
) -> Edit:
    """What the images start from; arguments that need one another are there together."""
    if interpolate is not None and (init is not None or inpaint is not None):
        raise InputError("interpolate", "takes its two images itself", remedy="leave init and inpaint out")
    if interpolate is not None and len(interpolate) != 2:
        raise InputError("interpolate", got=len(interpolate), wanted="two images")
    if inpaint is not None and init is None:
        raise InputError("inpaint", "needs the image around the mask", remedy="give it as init")
    if strength is not None and init is None and interpolate is None:
        raise InputError("strength", "given without an image", remedy="give one as init")
    if resample is not None and inpaint is None:
        raise InputError("resample", "given without inpaint", remedy="leave it out")
    usual = STRENGTH if init is not None and inpaint is None else 1.0
    return Edit(
        init, inpaint, interpolate, usual if strength is None else strength, 1 if resample is None else resample
    )


def maker_of(config: SamplingConfig, wanted: Edit, num: int, callback: Callback) -> tuple[Maker, int, int]:
    """How a batch is made, the steps of an image, and the (image x step) units that are none of an image's own."""
    denoiser, strength = config.denoiser, wanted.strength
    steps = len(edit.truncate(config, strength)) - 1
    if wanted.ends is not None:
        ends = torch.stack([_image(each, denoiser) for each in wanted.ends])
        return edit.between(config, ends, strength, num, callback), steps, 2 * (steps - 1)
    if wanted.init is None:
        return from_noise(config, callback), steps, 0
    init = _image(wanted.init, denoiser)
    if wanted.mask is None:
        return edit.from_images(config, init[None], strength, callback), steps, 0
    hole, again = _hole(wanted.mask, denoiser), wanted.resample
    make = edit.around_a_hole(config, init, hole, strength=strength, resample=again, callback=callback)
    return make, steps * again, 0


def _image(image: Image, denoiser: Denoiser) -> Tensor:
    """An image as the model sees it: (C, H, W) in [-1, 1]."""
    if isinstance(image, Tensor):
        wanted = (denoiser.channels, *denoiser.image_size)
        if tuple(image.shape) != wanted:
            raise InputError("init", got=tuple(image.shape), wanted=f"the shape of the model's images, {wanted}")
        return image.float().mul(2).sub(1)
    return to_model(decode_file(Path(image), Transform(*denoiser.image_size, denoiser.channels))[None])[0]


def _hole(mask: Image, denoiser: Denoiser) -> Tensor:
    """(H, W), True where the mask is white."""
    if isinstance(mask, Tensor):
        if tuple(mask.shape) != denoiser.image_size:
            raise InputError("inpaint", got=tuple(mask.shape), wanted=f"the model's (H, W), {denoiser.image_size}")
        hole = mask > 0.5
    else:
        hole = torch.from_numpy(decode_file(Path(mask), Transform(*denoiser.image_size, 1))[..., 0] > 127)
    if not hole.any():
        name = "its mask" if isinstance(mask, Tensor) else str(mask)
        raise InputError(
            "inpaint", f"{name} is white nowhere, so there is nothing to regenerate", remedy="paint a part of it white"
        )
    return hole


def identity_of(config: SamplingConfig, wanted: Edit, num: int) -> dict[str, Any]:
    """The model, its guidance and what images start from, by their content."""
    guidance, guide = config.guidance, config.guidance.weak
    identity: dict[str, Any] = {
        "model": _digest(config.denoiser),
        "times": hashlib.sha256(repr(config.times).encode()).hexdigest()[:16],
        "guidance": guidance.weight,
        "guidance_interval": list(guidance.interval),
        "guide": None if guide is None else _digest(guide),
    }
    if wanted.active:
        images = {"init": wanted.init, "inpaint": wanted.mask}
        images |= {f"interpolate {i}": each for i, each in enumerate(wanted.ends or ())}
        identity |= {name: _image_digest(each) for name, each in images.items() if each is not None}
        identity |= {"strength": wanted.strength, "resample": wanted.resample}
        if wanted.ends is not None:
            identity["num"] = num
    return identity


def _digest(denoiser: Denoiser) -> str:
    """Of a model's weights, by which it is known again."""
    found = hashlib.sha256(repr((denoiser.image_size, denoiser.channels, denoiser.class_names)).encode())
    tensors = denoiser.backbone.state_dict() if isinstance(denoiser.backbone, nn.Module) else {}
    for tensor in tensors.values():
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _image_digest(image: Image) -> str:
    """Of an image's file, or of its pixels."""
    content = image.numpy().tobytes() if isinstance(image, Tensor) else Path(image).read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]
