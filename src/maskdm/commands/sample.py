"""`maskdm sample`: images from a model, from noise or from other images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from maskdm.commands.arguments import Precision, open_model
from maskdm.data.decode import Transform, decode_file
from maskdm.data.write import save_grid, save_images, save_npz
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.pixels import to_model, to_uint8_nhwc
from maskdm.errors import InputError, StorageError, within
from maskdm.files import check_folder, make_folder
from maskdm.reports.formatting import format_plural
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime, init_distributed
from maskdm.sampling import edit
from maskdm.sampling.guidance import ALWAYS
from maskdm.sampling.sample import (
    SAMPLER,
    STEPS,
    SamplingConfig,
    check_counts,
    check_images_fit,
    sample_across_ranks,
    sampling_config,
)
from maskdm.sampling.samplers import get_sampler

Image: TypeAlias = str | Path | Tensor
"""A file, or (C, H, W) in [0, 1] in the model's size."""
FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".npy", ".zip", ".tar", ".pt", ".safetensors")
"""Endings by which an output is meant as a file of a kind that is not written."""
USUAL, USUAL_EDITS = 64, 16
"""Images where neither a number nor seeds are given."""
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


def sample(
    model: Denoiser | str | Path,
    num: int | None = None,
    *,
    seeds: Sequence[int] | None = None,
    labels: str | Sequence[str | int] | None = None,
    steps: int = STEPS,
    sampler: str = SAMPLER,
    eta: float | None = None,
    s_churn: float | None = None,
    spacing: str | None = None,
    shift: float = 1.0,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] = ALWAYS,
    guide: Denoiser | str | Path | None = None,
    init: Image | None = None,
    strength: float | None = None,
    inpaint: Image | None = None,
    resample: int | None = None,
    interpolate: Sequence[Image] | None = None,
    weights: str = "ema",
    backbone: str | type[nn.Module] | None = None,
    batch_size: int = 64,
    device: str = "auto",
    mixed_precision: Precision = "no",
    compile: bool = False,
    output: str | Path | None = None,
    callback: Callable[[int], object] | None = None,
    quiet: bool = False,
) -> Tensor:
    """Images from a model.

    Under torchrun the images of a run or a weights file are sampled across the ranks and returned on every rank; a
    `Denoiser` samples all of them wherever it is called.

    Args:
        model: what `maskdm.load` gives, a run's folder, or a weights file.
        num: how many; by default one for each seed, and 64 where no seeds are given (16 for edits).
        seeds: image i uses seed i, and starts again from the first when they run out; default 0, 1, 2, ...
        labels: class names or numbers (or "none"), or text with commas between them, likewise; by default all classes
            in turn, for edits none.
        steps: steps of each image; the network is called once in each (heun: twice).
        sampler: ddim, ancestral, euler, heun, dpm++ or dpm++sde.
        eta: fresh noise of ddim, ancestral and dpm++, 0 (none) to 1 (as much as DDPM).
        s_churn: fresh noise of euler and heun, 0 (none) or more (EDM's S_churn).
        spacing: of the times: uniform, karras or logsnr; by default the usual one of the process.
        shift: more than 1 puts more of the steps where there is much noise.
        guidance: weight of guidance; 1 is none.
        guidance_interval: noise levels (0 clean, 1 noise) between which it is applied.
        guide: a weaker model to be guided away from instead of the unconditional one (autoguidance): a `Denoiser`, a
            run, a weights file, or the name of a stage of `model`.
        init: an image to start from: img2img (SDEdit), or with `inpaint` what is around the mask.
        strength: how much of it is forgotten, a noise level, more than 0 and at most 1; default 0.6, for inpainting 1.
        inpaint: a mask image, regenerated where it is white (RePaint).
        resample: take each step of inpainting so often.
        interpolate: two images; interpolates from the first to the second, both included.
        weights: of a run: the moving average (ema), the last weights (raw), or either of a stage (pretrain-ema).
        backbone: the class of a backbone of your own, or its name, module:Class.
        batch_size: images at once. An image depends on its seed and label, not on this.
        device: where a run or file is loaded: auto, cpu, cuda, ...; a `Denoiser` stays where it is.
        mixed_precision: precision of a network that is loaded: bf16 is faster, auto uses it where the device has it.
        compile: compile a network that is loaded: a minute, for many images.
        output: a folder for PNGs and a grid, or an .npz; by default nothing is written.
        callback: called with the number of (image x step) units done.
        quiet: no progress on standard error.

    Returns:
        (num, C, H, W) float32 in [0, 1] on the CPU.

    Raises:
        InputError: a model or image that cannot be read, an unknown sampler, spacing or label, guidance by nothing,
            numbers out of range, a place that cannot be written to.

    Example:
        >>> images = maskdm.sample("runs/00000-photos", 16, labels=["cat"], guidance=2.0)
        >>> edited = maskdm.sample("runs/00000-photos", 4, init="photo.png", inpaint="mask.png", output="edits/")
    """
    wanted = _edit(init, strength, inpaint, resample, interpolate)
    target = _output(output)
    with _opened(model, weights, backbone, device, mixed_precision, compile) as (denoiser, runtime):
        console = Console(quiet=quiet, main=runtime.main)
        count, used = _counts(num, seeds, USUAL_EDITS if wanted.active else USUAL)
        if wanted.active and labels is None and denoiser.class_names:
            labels = ["none"]  # an image of one's own belongs to whatever class it shows
        with within(""):
            check_counts(count, batch_size)
            check_images_fit(denoiser, count)
            config = sampling_config(
                denoiser,
                steps=steps,
                sampler=get_sampler(sampler, eta=eta, s_churn=s_churn),
                spacing=spacing,
                shift=shift,
                seeds=used,
                labels=labels,
                guidance=guidance,
                guidance_interval=guidance_interval,
                guide=_guide(guide, model, denoiser, backbone),
            )
            unit = _make(config, wanted, count, batch_size, runtime, console, callback)
        if target is not None and runtime.main:
            console.say(_save(target, unit, _names(used, count)))
    return unit


@contextmanager
def _opened(
    model: Denoiser | str | Path,
    weights: str,
    backbone: str | type[nn.Module] | None,
    device: str,
    mixed_precision: Precision,
    compile: bool,
) -> Iterator[tuple[Denoiser, Runtime]]:
    """The model, and among which ranks its images are sampled: a `Denoiser` is nobody else's."""
    if isinstance(model, Denoiser):
        given = {
            "weights": weights != "ema",
            "backbone": backbone is not None,
            "device": device != "auto",
            "mixed_precision": mixed_precision != "no",
            "compile": compile,
        }
        for name in (name for name, unusual in given.items() if unusual):
            raise InputError(name, "given with a Denoiser, which is loaded already", remedy="give it to maskdm.load")
        yield model, Runtime(model.device, "no")
        return
    with closing(init_distributed(device)) as runtime:
        denoiser = open_model(
            model,
            weights=weights,
            device=runtime.device,
            backbone=backbone,
            mixed_precision=mixed_precision,
            compile=compile,
        )
        yield denoiser, runtime


def _counts(num: int | None, seeds: Sequence[int] | None, usual: int) -> tuple[int, Sequence[int]]:
    """How many images, and their seeds."""
    count = num if num is not None else usual if seeds is None else len(seeds)
    return count, range(max(count, 1)) if seeds is None else seeds


def _edit(
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


def _output(output: str | Path | None) -> Path | None:
    """Where images go, looked at before minutes are spent on them."""
    if output is None:
        return None
    path = Path(output)
    if path.suffix.lower() in FILES and not path.is_dir():
        raise InputError("output", got=str(path), wanted="a folder for PNGs, or a file that ends in .npz")
    check_folder(path.parent if path.suffix == ".npz" else path, "output")
    return path


def _guide(
    guide: Denoiser | str | Path | None,
    model: Denoiser | str | Path,
    denoiser: Denoiser,
    backbone: str | type[nn.Module] | None,
) -> Denoiser | None:
    """The weaker model: itself, a stage of the run `model`, or another run or file."""
    if guide is None or isinstance(guide, Denoiser):
        return guide
    folder = None if isinstance(model, Denoiser) else Path(model) / "weights"
    stage = None if folder is None else folder / f"{guide}-ema.safetensors"
    if stage is not None and stage.is_file():
        return open_model(stage, device=denoiser.device, backbone=backbone)
    if not Path(guide).exists():
        files = [] if folder is None else sorted(folder.glob("*-ema.safetensors"))
        stages = [file.name.removesuffix("-ema.safetensors") for file in files]
        raise InputError("guide", got=str(guide), wanted=", ".join([*stages, "another run or a weights file"]))
    return open_model(guide, device=denoiser.device, backbone=backbone)


def _make(
    config: SamplingConfig,
    wanted: Edit,
    num: int,
    batch_size: int,
    runtime: Runtime,
    console: Console,
    callback: Callable[[int], object] | None,
) -> Tensor:
    """The images, (num, C, H, W) in [0, 1], with a bar."""
    share = 1 if wanted.active else runtime.world_size  # edits are few: every rank makes all of them
    with console.bar("sampling", _steps(config, wanted, num) // share, "step") as bar:

        def report(steps: int) -> None:
            bar.update(steps)
            if callback is not None:
                callback(steps)

        denoiser = config.denoiser
        if wanted.ends is not None:
            ends = torch.stack([_image(each, denoiser) for each in wanted.ends])
            return edit.interpolate(config, ends, wanted.strength, num, batch_size=batch_size, callback=report)
        if wanted.init is None:
            return sample_across_ranks(config, num, runtime, batch_size=batch_size, callback=report)
        init = _image(wanted.init, denoiser)
        if wanted.mask is None:
            return edit.img2img(config, init[None], wanted.strength, num, batch_size=batch_size, callback=report)
        return edit.inpaint(
            config,
            init,
            _hole(wanted.mask, denoiser),
            num,
            strength=wanted.strength,
            resample=wanted.resample,
            batch_size=batch_size,
            callback=report,
        )


def _steps(config: SamplingConfig, wanted: Edit, num: int) -> int:
    """How many there are to take, over all images."""
    steps = len(edit.truncate(config, wanted.strength)) - 1
    return num * steps * wanted.resample + (2 * (steps - 1) if wanted.ends is not None else 0)


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


def _names(seeds: Sequence[int], num: int) -> list[str]:
    """By seed, and where a seed makes several images, by their number too."""
    taken = [seeds[i % len(seeds)] for i in range(num)]
    several, counts, names = len(set(taken)) < num, Counter[int](), []
    for seed in taken:
        names.append(f"seed-{seed:06d}" + (f"-{counts[seed]}" if several else ""))
        counts[seed] += 1
    return names


def _save(output: Path, unit: Tensor, names: list[str]) -> str:
    """Writes the images and says where they are."""
    images = to_uint8_nhwc(unit)
    make_folder(output.parent if output.suffix == ".npz" else output, "output")
    try:
        if output.suffix == ".npz":
            save_npz(output, images)
            return f"{format_plural(len(images), 'image')} in {output}"
        save_images(images, output, names)
        save_grid(images, output / "grid.png")
        return f"{format_plural(len(images), 'image')} in {output}, side by side in {output / 'grid.png'}"
    except StorageError as error:
        raise InputError("output", str(error), remedy="choose another place") from None
