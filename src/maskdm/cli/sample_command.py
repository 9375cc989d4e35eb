"""maskdm sample: images from a model, from noise or from images."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskdm.cli.parsing import Commands, add_machine, add_model, add_precision, command, floats, integer, numbers
from maskdm.errors import InputError


def add_sample(commands: Commands) -> None:
    """Its options."""
    p = command(
        commands,
        "sample",
        "sample images from a trained model",
        "  maskdm sample runs/00000-photos\n"
        "  maskdm sample runs/00000-photos --num 64 --steps 50 --sampler ddim --seeds 0-63 --output ddim/\n"
        "  maskdm sample runs/00000-photos --sampler heun --steps 25\n"
        "  maskdm sample model.safetensors --labels cat,dog --guidance 2 --output cats.npz\n"
        "  maskdm sample runs/00000-photos --guidance 1.5 --guide pretrain\n"
        "  maskdm sample runs/00000-photos --init photo.png --strength 0.6\n"
        "  maskdm sample runs/00000-photos --init photo.png --inpaint mask.png --resample 5\n"
        "  maskdm sample runs/00000-photos --interpolate a.png b.png --num 10\n\n"
        "Every batch is written as it is made, and the same command again goes on where it was interrupted.\n"
        "A strength or guidance interval is a noise level, sigma / (alpha + sigma): 0 is the clean image, 1 is noise.",
    )
    p.add_argument("model", metavar="RUN|FILE", type=Path, help="a run folder or a .safetensors file")
    p.add_argument("--num", type=integer, metavar="N", help="images (default: one per seed, else 64; edits: 16)")
    p.add_argument("--seeds", metavar="0-63", help="ranges and numbers, e.g. 0-9,20 (default: 0, 1, ...)")
    p.add_argument(
        "--labels",
        metavar="A,B",
        help="class names or numbers, or none; taken in turn (default: all in turn; edits: none); a name that has "
        "commas is put into double quotes",
    )
    _add_sampler(p)
    _add_guidance(p)
    _add_edits(p)
    add_model(p, "of a run, or of a stage of it: pretrain, pretrain-raw (default: ema)")
    add_machine(p)
    add_precision(p)
    p.add_argument("--compile", action="store_true", help="compile the network first: a minute, for many images")
    p.add_argument(
        "--output",
        "-o",
        type=Path,
        metavar="DIR|FILE.npz",
        help="a folder for PNGs and a grid, or an .npz (default: samples/, and in it the name of the run or file)",
    )
    p.add_argument(
        "--overwrite",
        action="store_true",
        help="replace all samples that an earlier command made there; other files stay",
    )
    p.set_defaults(call=call_sample)


def _add_sampler(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("sampler")
    group.add_argument("--steps", type=integer, default=25, metavar="N", help="steps per image (default: 25)")
    group.add_argument(
        "--sampler", default="dpm++", help="ddim, ancestral, euler, heun, dpm++ or dpm++sde (default: dpm++)"
    )
    group.add_argument(
        "--eta", type=float, metavar="X", help="fresh noise of ddim, ancestral and dpm++, 0 to 1 (default: 0, 1, 0)"
    )
    group.add_argument(
        "--s-churn", type=float, metavar="X", help="fresh noise of euler and heun, 0 or more (default: 0)"
    )
    group.add_argument(
        "--spacing", metavar="NAME", help="of the times: uniform, karras or logsnr (default: the process's own)"
    )
    group.add_argument(
        "--shift", type=float, default=1.0, metavar="X", help="above 1: more of the steps at high noise (default: 1)"
    )


def _add_guidance(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("guidance")
    group.add_argument("--guidance", type=float, default=1.0, metavar="W", help="its weight (default: 1, none)")
    group.add_argument("--guidance-interval", metavar="LOW,HIGH", help="noise levels between which it is applied")
    group.add_argument(
        "--guide",
        metavar="STAGE|RUN|FILE",
        help="guided away from this weaker model (autoguidance): weights of the run, named as for --weights "
        "(pretrain), or another model",
    )


def _add_edits(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("editing")
    group.add_argument("--init", metavar="IMAGE", type=Path, help="start from an image (img2img)")
    group.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="how much of it is forgotten, 0 to 1 (default: 0.6; with --inpaint: 1)",
    )
    group.add_argument("--inpaint", metavar="MASK", type=Path, help="regenerate where this image is white")
    group.add_argument("--resample", type=integer, metavar="N", help="take each step of --inpaint N times (default: 1)")
    group.add_argument(
        "--interpolate", nargs=2, metavar=("A", "B"), type=Path, help="interpolate between two images, A to B"
    )


def call_sample(a: argparse.Namespace) -> None:
    """Samples, and says where the images are."""
    seeds = numbers(a.seeds, "seeds") if a.seeds is not None else None
    interval = (0.0, 1.0) if a.guidance_interval is None else _interval(a.guidance_interval)
    from maskdm.commands.sample import sample

    sample(
        a.model,
        a.num,
        seeds=seeds,
        labels=a.labels,
        steps=a.steps,
        sampler=a.sampler,
        eta=a.eta,
        s_churn=a.s_churn,
        spacing=a.spacing,
        shift=a.shift,
        guidance=a.guidance,
        guidance_interval=interval,
        guide=a.guide,
        init=a.init,
        strength=a.strength,
        inpaint=a.inpaint,
        resample=a.resample,
        interpolate=a.interpolate,
        weights=a.weights,
        backbone=a.backbone,
        batch_size=a.batch_size,
        device=a.device,
        mixed_precision=a.mixed_precision,
        compile=a.compile,
        output=a.output or Path("samples") / _name(a.model),
        overwrite=a.overwrite,
        return_images=False,
        quiet=a.quiet,
    )


def _name(model: Path) -> str:
    """The folder of its samples, below samples/: called as the run or the file, without what looks like an ending."""
    path = model.resolve()
    return (path.name if path.is_dir() else path.stem).replace(".", "-") or "model"


def _interval(text: str) -> tuple[float, float]:
    wanted = "two numbers such as 0.1,0.8"
    found = floats(text, "guidance_interval", wanted)
    if len(found) != 2:
        raise InputError("guidance_interval", got=text, wanted=wanted)
    return found[0], found[1]
