"""`maskdm sample`: images from a model, from noise or from other images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from maskdm.commands.arguments import Precision, open_model
from maskdm.commands.sample_output import Samples, open_samples, plan_samples
from maskdm.commands.sample_start import Edit, Image, choose_edit, identity_of, maker_of
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.pixels import to_uint8_nhwc
from maskdm.errors import InputError, Interrupted, within
from maskdm.files import check_folder
from maskdm.models.weights import find_weights
from maskdm.runtime.console import Console
from maskdm.runtime.distributed import Runtime, init_distributed
from maskdm.sampling.guidance import ALWAYS
from maskdm.sampling.sample import (
    SAMPLER,
    STEPS,
    SamplingConfig,
    check_counts,
    check_images_fit,
    make_round,
    rounds_of,
    sampling_config,
)
from maskdm.sampling.samplers import get_sampler

FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".npy", ".zip", ".tar", ".pt", ".safetensors")
"""Endings by which an output is meant as a file of a kind that is not written."""
USUAL, USUAL_EDITS = 64, 16
"""Images where neither a number nor seeds are given."""


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
    overwrite: bool = False,
    return_images: bool = True,
    callback: Callable[[int], object] | None = None,
    quiet: bool = False,
) -> Tensor:
    """Images from a model.

    With an `output` every batch is written as it is made, and the same call goes on where it was interrupted: what is
    there already is read from there. Under torchrun the images of a run or a weights file are sampled across the ranks
    and returned on every rank; a `Denoiser` samples all of them wherever it is called.

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
        weights: of a run: the moving average (ema), the last weights (raw), or those of a stage (pretrain, which is
            its moving average; pretrain-raw).
        backbone: the class of a backbone of your own, or its name, module:Class.
        batch_size: images at once. An image depends on its seed and label, not on this.
        device: where a run or file is loaded: auto, cpu, cuda, ...; a `Denoiser` stays where it is.
        mixed_precision: precision of a network that is loaded: bf16 is faster, auto uses it where the device has it.
        compile: compile a network that is loaded: a minute, for many images.
        output: a folder for PNGs, a grid and samples.json, or an .npz; by default nothing is written.
        overwrite: replace the samples of other settings that are there, which are refused otherwise.
        return_images: False keeps no more than a batch in memory and returns none: for many images and an `output`.
        callback: called with the number of (image x step) units done.
        quiet: nothing on standard error.

    Returns:
        (num, C, H, W) float32 in [0, 1] on the CPU; without `return_images` (0, C, H, W).

    Raises:
        InputError: a model or image that cannot be read, an unknown sampler, spacing or label, guidance by nothing,
            numbers out of range, a place that cannot be written to or holds other images.
        Interrupted: Ctrl-C while there is an `output`; what was written stays.

    Example:
        >>> images = maskdm.sample("runs/00000-photos", 16, labels=["cat"], guidance=2.0)
        >>> edited = maskdm.sample("runs/00000-photos", 4, init="photo.png", inpaint="mask.png", output="edits/")
    """
    wanted = choose_edit(init, strength, inpaint, resample, interpolate)
    target = _output(output)
    with _opened(model, weights, backbone, device, mixed_precision, compile) as (denoiser, runtime):
        console = Console(quiet=quiet, main=runtime.main)
        count, used = _counts(num, seeds, USUAL_EDITS if wanted.active else USUAL)
        if wanted.active and labels is None and denoiser.class_names:
            labels = ["none"]  # an image of one's own belongs to whatever class it shows
        with within(""):
            check_counts(count, batch_size)
            if return_images:
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
            options: dict[str, object] = {
                "sampler": sampler,
                "eta": eta,
                "s_churn": s_churn,
                "steps": steps,
                "spacing": spacing,
                "shift": shift,
                "mixed_precision": mixed_precision,
            }
            work = Work(config, wanted, count, batch_size, runtime, console, target, overwrite, return_images)
            return _make(work, options, callback)


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
    with init_distributed(device) as runtime:
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
    if seeds is not None and count < len(seeds):
        wanted = f"at least {len(seeds)}, one image for each of the seeds"
        raise InputError("num", got=num, wanted=wanted, remedy="leave it out, or give fewer seeds")
    return count, range(max(count, 1)) if seeds is None else seeds


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
    """The weaker model: itself, weights of the run `model` by their name, or another run or file."""
    if guide is None or isinstance(guide, Denoiser):
        return guide
    source, stages = Path(guide), ""
    if not isinstance(model, Denoiser) and Path(model).is_dir():
        try:
            source = find_weights(Path(model), str(guide))
        except InputError as error:
            stages = f"{error.wanted.removeprefix('one of ')}, "
    if not source.exists():
        raise InputError("guide", got=str(guide), wanted=f"{stages}another run or a weights file")
    return open_model(source, device=denoiser.device, backbone=backbone)


@dataclass(frozen=True)
class Work:
    """All that decides what is made, and how.

    Attributes:
        config: of sampling.
        edit: what images start from.
        num: how many.
        batch_size: of them at once.
        runtime: among which ranks.
        console: what a person sees.
        output: where they are written, or None.
        overwrite: whether samples of other settings there are replaced.
        keep: whether the images are kept in memory.
    """

    config: SamplingConfig
    edit: Edit
    num: int
    batch_size: int
    runtime: Runtime
    console: Console
    output: Path | None
    overwrite: bool
    keep: bool


def _make(work: Work, options: dict[str, object], callback: Callable[[int], object] | None) -> Tensor:
    """The images, (num, C, H, W) in [0, 1], written as they are made; only those that are not there yet."""
    config, runtime, console = work.config, work.runtime, work.console
    report: list[Callable[[int], object]] = [] if callback is None else [callback]

    def advance(steps: int) -> None:
        for each in report:
            each(steps)

    make, steps, more = maker_of(config, work.edit, work.num, advance)  # complains before there is a folder
    samples = None
    if work.output is not None:
        identity = options | identity_of(config, work.edit, work.num)
        samples = open_samples(work.output, plan_samples(config, work.num, identity))
        if runtime.main:
            samples.open(work.overwrite)
    todo = _todo(work, samples)
    own = sum(len(runtime.rank_indices(len(numbers))) for numbers in todo)
    found = {}
    try:
        with console.sampling_bar("sampling", own, steps, more if todo else 0) as show:
            report.append(show)
            for numbers in todo:
                unit = make_round(config, make, numbers, runtime, work.batch_size)
                if samples is not None and runtime.main:
                    samples.write(numbers, to_uint8_nhwc(unit))
                if work.keep:
                    found[numbers] = unit
        if samples is not None and runtime.main:
            console.say(samples.finish())
    except KeyboardInterrupt:
        if samples is None:
            raise
        raise Interrupted(samples.progress()) from None
    if not work.keep:
        return torch.empty(0, config.denoiser.channels, *config.denoiser.image_size)
    if samples is not None:
        rest = [numbers for numbers in rounds_of(work.num, work.batch_size, runtime) if numbers not in found]
        found |= {numbers: torch.from_numpy(samples.read(numbers)).permute(0, 3, 1, 2) / 255 for numbers in rest}
    return torch.cat([found[numbers] for numbers in rounds_of(work.num, work.batch_size, runtime)])


def _todo(work: Work, samples: Samples | None) -> list[range]:
    """The rounds of which an image is missing; whole ones, since a batch of other images rounds differently."""
    rounds = list(rounds_of(work.num, work.batch_size, work.runtime))
    if samples is None:
        return rounds
    missing = [i for i, numbers in enumerate(rounds) if work.runtime.main and samples.missing(numbers)]
    there = work.num - sum(len(rounds[i]) for i in missing)
    if there and work.runtime.main:
        work.console.say(f"{there:,} of {work.num:,} images are there already")
    return [rounds[i] for i in json.loads(work.runtime.broadcast_object(json.dumps(missing)))]
