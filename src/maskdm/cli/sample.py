"""maskdm sample: pictures from a model, from noise or from pictures."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from maskdm.cli.parsing import Commands, add_machine, command, numbers, own_backbone
from maskdm.errors import InputError, StorageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from maskdm.diffusion.denoiser import Denoiser
    from maskdm.runtime.console import Bar
    from maskdm.runtime.distributed import Runtime
    from maskdm.sampling.sample import Plan

FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".npy", ".zip", ".tar", ".pt", ".safetensors")
"""Endings by which an output is meant as a file of a kind that is not written."""


def add(commands: Commands) -> None:
    """Its options."""
    p = command(
        commands,
        "sample",
        "make pictures with a trained model",
        "  maskdm sample runs/00000-photos\n"
        "  maskdm sample runs/00000-photos --num 64 --steps 50 --sampler ddim --seeds 0-63 --output samples/\n"
        "  maskdm sample runs/00000-photos --sampler heun --steps 25\n"
        "  maskdm sample model.safetensors --labels cat,dog --guidance 2 --output cats.npz\n"
        "  maskdm sample runs/00000-photos --guidance 1.5 --guide pretrain\n"
        "  maskdm sample runs/00000-photos --init photo.png --strength 0.6\n"
        "  maskdm sample runs/00000-photos --init photo.png --inpaint hole.png --resample 5\n"
        "  maskdm sample runs/00000-photos --interpolate a.png b.png --num 10\n\n"
        "A strength or guidance interval is a noise share: 0 is the clean picture, 1 is noise.",
    )
    p.add_argument("model", metavar="RUN|FILE", type=Path, help="a run folder or a .safetensors file")
    p.add_argument("--num", type=int, metavar="N", help="pictures (default: one a seed, else 64; edits: 16)")
    p.add_argument("--seeds", metavar="0-63", help="ranges and numbers, e.g. 0-9,20 (default: 0, 1, ...)")
    p.add_argument(
        "--labels",
        metavar="A,B",
        help="class names or numbers, or none; taken in turn (default: all in turn; edits: none)",
    )
    _add_sampler(p)
    _add_guidance(p)
    _add_edits(p)
    p.add_argument(
        "--weights", metavar="ema|raw", default="ema", help="of a run, or of a stage of it: pretrain-ema (default: ema)"
    )
    p.add_argument("--backbone", metavar="MODULE:CLASS", help="the class of a backbone of your own")
    add_machine(p)
    p.add_argument(
        "--mixed-precision",
        choices=["auto", "bf16", "fp16", "no"],
        default="no",
        help="arithmetic of the network: bf16 is faster, auto takes it where the device has it (default: no, float32)",
    )
    p.add_argument("--compile", action="store_true", help="compile the network first: a minute, for many pictures")
    p.add_argument(
        "--output",
        "-o",
        type=Path,
        default=Path("samples"),
        metavar="DIR|FILE.npz",
        help="a folder for PNGs and a grid, or an .npz (default: samples)",
    )
    p.set_defaults(run=_sample)


def _add_sampler(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("sampler")
    group.add_argument("--steps", type=int, default=25, metavar="N", help="steps a picture (default: 25)")
    group.add_argument(
        "--sampler", default="dpm++", help="ddim, ancestral, euler, heun, dpm++ or dpm++sde (default: dpm++)"
    )
    group.add_argument(
        "--eta", type=float, metavar="X", help="fresh noise of ddim, ancestral and dpm++, 0 to 1 (default: 0, 1, 0)"
    )
    group.add_argument("--churn", type=float, metavar="X", help="fresh noise of euler and heun, 0 or more (default: 0)")
    group.add_argument("--grid", metavar="NAME", help="times: uniform, karras or logsnr (default: the process's own)")
    group.add_argument(
        "--shift", type=float, default=1.0, metavar="X", help="more than 1: more steps in much noise (default: 1)"
    )


def _add_guidance(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("guidance")
    group.add_argument("--guidance", type=float, default=1.0, metavar="W", help="its weight (default: 1, none)")
    group.add_argument("--guidance-interval", metavar="LOW,HIGH", help="noise shares between which it is applied")
    group.add_argument(
        "--guide",
        metavar="STAGE|RUN|FILE",
        help="guided away from this weaker model (autoguidance): a stage of the run (pretrain), or another model",
    )


def _add_edits(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("pictures from pictures")
    group.add_argument("--init", metavar="IMAGE", type=Path, help="start from a picture")
    group.add_argument(
        "--strength", type=float, metavar="S", help="how much of it is forgotten, 0 to 1 (default: 0.6; a hole: 1)"
    )
    group.add_argument("--inpaint", metavar="MASK", type=Path, help="make anew where this picture is white")
    group.add_argument("--resample", type=int, metavar="N", help="take each step of --inpaint N times (default: 1)")
    group.add_argument("--interpolate", nargs=2, metavar=("A", "B"), type=Path, help="pictures from A to B")


def _sample(a: argparse.Namespace) -> None:
    from maskdm.runtime.distributed import join

    _check_edits(a)
    seeds = numbers(a.seeds, "--seeds") if a.seeds is not None else None
    if a.output.suffix.lower() in FILES and not a.output.is_dir():
        raise InputError(f"--output: got {a.output}, wanted a folder for PNGs, or a file that ends in .npz")
    runtime = join(a.device, "--device")
    try:
        _sample_as(a, runtime, seeds)
    finally:
        runtime.close()


def _sample_as(a: argparse.Namespace, runtime: Runtime, seeds: list[int] | None) -> None:
    """This rank's pictures; the first one saves those of all."""
    from maskdm.data.write import check_folder
    from maskdm.models.weights import load
    from maskdm.runtime.console import Console
    from maskdm.sampling.sample import plan

    own = own_backbone(a.backbone)
    denoiser = load(
        a.model,
        weights=a.weights,
        device=runtime.device,
        backbone=own,
        mixed_precision=a.mixed_precision,
        compile=a.compile,
    )
    labels = [word.strip() for word in a.labels.split(",")] if a.labels is not None else None
    edit = bool(a.init or a.interpolate)
    if edit and labels is None and denoiser.class_names:
        labels = ["none"]  # a picture of one's own belongs to whatever class it shows
    usual = 16 if edit else 64
    num = a.num if a.num is not None else len(seeds or range(usual))
    seeds = seeds or list(range(max(num, 1)))
    how = plan(
        denoiser,
        steps=a.steps,
        sampler=a.sampler,
        eta=a.eta,
        churn=a.churn,
        grid=a.grid,
        shift=a.shift,
        seeds=seeds,
        labels=labels,
        guidance=a.guidance,
        guidance_interval=_interval(a.guidance_interval),
        guide=_guide(a, denoiser),
    )
    check_folder(a.output.parent if a.output.suffix == ".npz" else a.output, "--output")  # before minutes are spent
    console = Console(quiet=not runtime.main)
    share = 1 if edit else runtime.world_size  # edits are few: every rank makes all of them
    with console.bar("sampling", _steps(a, how, num) // share, "step") as bar:
        unit = _make(a, how, num, bar, runtime)
    if runtime.main:
        console.say(_save(a.output, unit, _names(seeds, num)))


def _make(a: argparse.Namespace, how: Plan, num: int, bar: Bar, runtime: Runtime) -> Tensor:
    """The pictures, (num, C, H, W) in [0, 1]."""
    from maskdm.sampling import edit as editing
    from maskdm.sampling import ranks as dealing

    if a.interpolate:
        ends = _images(a.interpolate, how.denoiser)
        return editing.interpolate(how, ends, _strength(a), num, batch_size=a.batch_size, report=bar.update)
    if a.inpaint:
        return editing.inpaint(
            how,
            _images([a.init], how.denoiser)[0],
            _hole(a.inpaint, how.denoiser),
            num,
            strength=_strength(a),
            resample=1 if a.resample is None else a.resample,
            batch_size=a.batch_size,
            report=bar.update,
        )
    if a.init:
        images = _images([a.init], how.denoiser)
        return editing.vary(how, images, _strength(a), num, batch_size=a.batch_size, report=bar.update)
    return dealing.make(how, num, runtime, batch_size=a.batch_size, report=bar.update)


def _strength(a: argparse.Namespace) -> float:
    usual = 0.6 if a.init and not a.inpaint else 1.0
    return usual if a.strength is None else a.strength


def _steps(a: argparse.Namespace, how: Plan, num: int) -> int:
    """How many there are to take, over all pictures."""
    from maskdm.sampling.edit import below

    steps = len(below(how, _strength(a))) - 1
    return num * steps * (a.resample or 1) + (2 * (steps - 1) if a.interpolate else 0)


def _check_edits(a: argparse.Namespace) -> None:
    if a.interpolate and (a.init or a.inpaint):
        raise InputError("--interpolate: takes its two pictures itself; leave --init and --inpaint out")
    if a.inpaint and not a.init:
        raise InputError("--inpaint: needs the picture around the hole; give it with --init")
    if a.strength is not None and not (a.init or a.interpolate):
        raise InputError("--strength: got it without a picture; give one with --init")
    if a.resample is not None and not a.inpaint:
        raise InputError("--resample: only with --inpaint")


def _guide(a: argparse.Namespace, denoiser: Denoiser) -> Denoiser | None:
    from maskdm.models.weights import load

    if a.guide is None:
        return None
    stage = a.model / "weights" / f"{a.guide}-ema.safetensors"
    if not stage.is_file() and not Path(a.guide).exists():
        stages = sorted(file.name.removesuffix("-ema.safetensors") for file in stage.parent.glob("*-ema.safetensors"))
        raise InputError(f"--guide: got {a.guide!r}, wanted {', '.join([*stages, 'another run or a weights file'])}")
    return load(stage if stage.is_file() else Path(a.guide), device=denoiser.device, backbone=own_backbone(a.backbone))


def _interval(text: str | None) -> tuple[float, float]:
    if text is None:
        return (0.0, 1.0)
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        raise InputError(f"--guidance-interval: got {text!r}, wanted two numbers such as 0.1,0.8") from None
    return low, high


def _images(paths: list[Path], denoiser: Denoiser) -> Tensor:
    """Pictures as the model sees them: (M, C, H, W) in [-1, 1]."""
    import numpy as np
    import torch

    from maskdm.diffusion.patches import from_uint8

    pixels = np.stack([_read(path, denoiser.channels, denoiser.image_size) for path in paths])
    return from_uint8(torch.from_numpy(pixels)).permute(0, 3, 1, 2)


def _hole(path: Path, denoiser: Denoiser) -> Tensor:
    """(H, W), True where the picture is white."""
    import torch

    hole = torch.from_numpy(_read(path, 1, denoiser.image_size)[..., 0] > 127)
    if not hole.any():
        raise InputError(f"--inpaint: {path} is white nowhere, so there is nothing to make; paint the hole white")
    return hole


def _read(path: Path, channels: int, size: tuple[int, int]) -> np.ndarray:
    from maskdm.data.decode import BadImage, Transform, decode

    try:
        return decode(path.read_bytes(), Transform(*size, channels))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except BadImage as error:
        raise InputError(f"cannot read {path}: {error}") from None


def _names(seeds: list[int], num: int) -> list[str]:
    """By seed, and where a seed makes several pictures, by their number too."""
    taken = [seeds[i % len(seeds)] for i in range(num)]
    several, counts, names = len(set(taken)) < num, Counter[int](), []
    for seed in taken:
        names.append(f"seed-{seed:06d}" + (f"-{counts[seed]}" if several else ""))
        counts[seed] += 1
    return names


def _count(images: np.ndarray) -> str:
    return "1 picture" if len(images) == 1 else f"{len(images):,} pictures"


def _save(output: Path, unit: Tensor, names: list[str]) -> str:
    """Writes the pictures and says where they are."""
    from maskdm.data.write import make_folder, save_grid, save_images, save_npz
    from maskdm.diffusion.patches import to_uint8

    images = to_uint8(unit).permute(0, 2, 3, 1).numpy()
    make_folder(output.parent if output.suffix == ".npz" else output)
    try:
        if output.suffix == ".npz":
            save_npz(output, images)
            return f"{_count(images)} in {output}"
        save_images(images, output, names)
        save_grid(images, output / "grid.png")
        return f"{_count(images)} in {output}, side by side in {output / 'grid.png'}"
    except StorageError as error:
        raise InputError(f"--output: {error}; choose another place") from None
