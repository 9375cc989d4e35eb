"""The `maskdm` command. Heavy modules are imported by the command that needs them, so that --help is quick."""

from __future__ import annotations

import argparse
import errno
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from maskdm import __version__
from maskdm.errors import InputError, Interrupted, StorageError, TrainingError

Words = list[str]
MOST_SEEDS = 1_000_000
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 1 (training failed), 2 (bad input), 130 (Ctrl-C)."""
    try:
        arguments, rest = _parser().parse_known_args(argv)
        if rest and arguments.command != "train":
            raise InputError(f"unknown argument {rest[0]!r}; see maskdm {arguments.command} --help")
        code = arguments.run(arguments, rest) if arguments.command == "train" else arguments.run(arguments)
        return int(code or 0)
    except InputError as error:
        return _fail(f"error: {error}", 2)
    except TrainingError as error:
        return _fail(f"error: {error}", 1)
    except Interrupted as error:
        return _fail(f"interrupted: {error}; to go on, run the same command again", error.code)
    except KeyboardInterrupt:
        return _fail("interrupted before anything was to be saved", 130)
    except StorageError as error:
        return _fail(f"error: {error}; what was saved before is intact", 1)
    except BrokenPipeError:
        return 1
    except (RuntimeError, MemoryError) as error:  # torch has a class for this on a GPU only
        if not isinstance(error, MemoryError) and not re.search(
            r"out of memory|can't allocate|not enough mem", str(error)
        ):
            raise
        return _fail(
            "error: out of memory; try stages.N.micro_batch (the batch in parts, the same result), a smaller batch or "
            "a smaller model; what was saved before is intact",
            1,
        )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"error: {error.strerror}{where}; what was saved before is intact", 1)


def _fail(line: str, code: int) -> int:
    print(f"maskdm: {line}", file=sys.stderr)
    return code


def _parser() -> Parser:
    parser = Parser(
        prog="maskdm",
        allow_abbrev=False,
        description="Trains pixel-space diffusion models on any folder of pictures: masked pre-training first, then "
        "a short fine-tuning on whole images.",
        epilog="maskdm COMMAND --help shows the options and examples of a command.",
    )
    parser.add_argument("--version", action="version", version=f"maskdm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_train, _add_sample, _add_info, _add_report, _add_import, _add_demo):
        add(commands)
    return parser


def _command(commands: Commands, name: str, summary: str, examples: str) -> Parser:
    return commands.add_parser(
        name,
        help=summary,
        allow_abbrev=False,
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


# --- train -----------------------------------------------------------------------------------------------------------


def _add_train(commands: Commands) -> None:
    p = _command(
        commands,
        "train",
        "train a model on pictures, in stages",
        "  maskdm train --data photos/ --output-dir runs\n"
        "  maskdm train --data photos/ --recipe celeba64-s stages.0.mask.ratio=0.75 model.width=384\n"
        "  maskdm train --data photos/ --config mine.yaml --dry-run\n"
        "  maskdm train --resume latest --output-dir runs\n\n"
        "Run the same command again to go on with an interrupted run. Sub-folders of --data are classes.\n"
        "Settings: defaults < --recipe < --config < key.sub=value. --settings lists them, --recipes the recipes.",
    )
    p.add_argument("--data", metavar="DIR|ZIP|NPZ", help="the pictures (data.path)")
    p.add_argument(
        "--output-dir", "--outdir", metavar="DIR", type=Path, default=Path("runs"), help="where runs go (default: runs)"
    )
    p.add_argument("--name", help="name of a new run (default: the recipe's or the data's)")
    p.add_argument("--recipe", metavar="NAME", help="shipped settings")
    p.add_argument("--config", metavar="FILE", type=Path, help="a file of settings (YAML)")
    p.add_argument(
        "--resume", metavar="latest|PATH|never", help="a certain run; by default an unfinished one of the same settings"
    )
    p.add_argument("--image-size", "--resolution", metavar="N", help="pixels (data.image_size)")
    p.add_argument("--mixed-precision", metavar="bf16|fp16|no", help="arithmetic (train.mixed_precision)")
    p.add_argument("--seed", metavar="N", help="of everything random (train.seed)")
    p.add_argument(
        "-n", "--dry-run", action="store_true", help="read the pictures, say what would be done, make nothing"
    )
    p.add_argument("--settings", action="store_true", help="list every setting with its default, and leave")
    p.add_argument("--recipes", action="store_true", help="list the recipes, and leave")
    p.set_defaults(run=_train)


def _train(a: argparse.Namespace, rest: Words) -> None:
    from maskdm.training.settings import all_keys, recipes

    if a.settings:
        for key, (kind, default, text) in all_keys().items():
            print(f"{key} = {default}\n    {text} [{kind}]")
        return
    if a.recipes:
        for name, header in recipes().items():
            print(f"{name:18} {header}")
        return
    stray = [word for word in rest if word.startswith("-")]
    if stray:
        raise InputError(f"unknown option {stray[0]!r}; {_hint(stray[0])}see maskdm train --help")
    places = [word for word in rest if "=" not in word and Path(word).exists()]
    if places:
        raise InputError(f"got {places[0]!r} by itself; for pictures to train on write --data {places[0]}")
    _start_training(a, rest)


def _hint(option: str) -> str:
    """--batch-size=8 -> where the setting of that name is, if there is one."""
    from maskdm.training.settings import all_keys

    name = option.strip("-").partition("=")[0].replace("-", "_")
    keys = [key.replace(".N.", ".0.") for key in all_keys() if key.rpartition(".")[2] == name]
    return f"settings are written {keys[0]}=VALUE; " if keys else ""


def _start_training(a: argparse.Namespace, words: Words) -> None:
    from maskdm.training.settings import resolve

    flags = {
        "data.path": a.data,
        "data.image_size": a.image_size,
        "train.mixed_precision": a.mixed_precision,
        "train.seed": a.seed,
    }
    words = [f"{key}={value}" for key, value in flags.items() if value is not None] + words
    config = None
    if a.resume not in (None, "never") and not (words or a.recipe or a.config):
        from maskdm.training.run import find_resumable, read_config

        config = read_config(find_resumable(a.output_dir, a.resume))
    config = config or resolve(recipe=a.recipe, file=a.config, overrides=words)

    from maskdm.measuring.report import write_report
    from maskdm.training.console import Console
    from maskdm.training.start import dry_run, start

    console = Console()
    if a.dry_run:
        dry_run(config, output_dir=a.output_dir, resume=a.resume, console=console)
        return
    name = a.name or a.recipe or Path(config.data.path).stem or "run"
    path = start(config, output_dir=a.output_dir, name=_slug(name), resume=a.resume, console=console)
    if not console.quiet:
        report = write_report(path)
        grids = sorted((path / "samples").glob("step-*.png"))
        console.say(f"weights  {path / 'weights' / 'ema.safetensors'}")
        if grids:
            console.say(f"samples  {grids[-1]}")
        console.say(f"report   {report}")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"


# --- sample ----------------------------------------------------------------------------------------------------------


def _add_sample(commands: Commands) -> None:
    p = _command(
        commands,
        "sample",
        "make pictures with a trained model",
        "  maskdm sample runs/00000-photos\n"
        "  maskdm sample runs/00000-photos --num 64 --steps 50 --sampler ddim --seeds 0-63 --output samples/\n"
        "  maskdm sample model.safetensors --labels cat,dog --guidance 2 --output cats.npz",
    )
    p.add_argument("model", metavar="RUN|FILE", type=Path, help="a run folder or a .safetensors file")
    p.add_argument("--num", type=int, metavar="N", help="pictures (default: one a seed, else 64)")
    p.add_argument("--steps", type=int, default=50, metavar="N", help="network calls a picture (default: 50)")
    p.add_argument("--sampler", default="ddim", help="ddim or ancestral (default: ddim)")
    p.add_argument("--eta", type=float, metavar="X", help="fresh noise, 0 to 1 (default: 0 for ddim, 1 for ancestral)")
    p.add_argument("--seeds", metavar="0-63", help="ranges and numbers, e.g. 0-9,20 (default: 0, 1, ...)")
    p.add_argument(
        "--labels", metavar="A,B", help="class names or numbers, or none; taken in turn (default: all in turn)"
    )
    p.add_argument(
        "--guidance", type=float, default=1.0, metavar="W", help="classifier-free guidance (default: 1, none)"
    )
    p.add_argument("--weights", choices=["ema", "raw"], default="ema", help="of a run (default: ema)")
    p.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures at once (default: 64)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    p.add_argument(
        "--output",
        "-o",
        type=Path,
        default=Path("samples"),
        metavar="DIR|FILE.npz",
        help="a folder for PNGs and a grid, or an .npz (default: samples)",
    )
    p.set_defaults(run=_sample)


def _sample(a: argparse.Namespace) -> None:
    from maskdm.data.pictures import check_folder, make_folder, save_grid, save_images, save_npz
    from maskdm.method.patches import to_uint8
    from maskdm.method.samplers import sample
    from maskdm.training.console import Console
    from maskdm.training.runtime import pick_device
    from maskdm.training.weights import load

    seeds = _seeds(a.seeds) if a.seeds is not None else None
    labels = [word.strip() for word in a.labels.split(",")] if a.labels is not None else None
    denoiser = load(a.model, weights=a.weights, device=pick_device(a.device, "--device"))
    num = a.num if a.num is not None else len(seeds or range(64))
    seeds = seeds or list(range(max(num, 1)))
    console = Console()
    if a.output.suffix not in ("", ".npz"):
        raise InputError(f"--output: got {a.output}, wanted a folder for PNGs, or a file that ends in .npz")
    folder = a.output.parent if a.output.suffix == ".npz" else a.output
    check_folder(folder, "--output")  # before minutes are spent on pictures
    with console.bar("sampling", num * a.steps, "call") as bar:
        unit = sample(
            denoiser,
            num,
            steps=a.steps,
            sampler=a.sampler,
            eta=a.eta,
            seeds=seeds,
            labels=labels,
            guidance=a.guidance,
            batch_size=a.batch_size,
            report=bar.update,
        )
    images = to_uint8(unit).permute(0, 2, 3, 1).numpy()
    make_folder(folder)
    names = [
        f"seed-{seeds[i % len(seeds)]:06d}" + (f"-{i // len(seeds)}" if num > len(seeds) else "") for i in range(num)
    ]
    try:
        if a.output.suffix == ".npz":
            save_npz(a.output, images)
            console.say(f"{num} pictures in {a.output}")
        else:
            save_images(images, folder, names)
            save_grid(images, folder / "grid.png")
            console.say(f"{num} pictures in {folder}, all of them in {folder / 'grid.png'}")
    except StorageError as error:
        raise InputError(f"--output: {error}; choose another place") from None


def _seeds(text: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise InputError(f"--seeds: got {text!r}, wanted numbers and rising ranges such as 0-63 or 1,5,9")
        if int(match[2] or match[1]) - int(match[1]) >= MOST_SEEDS:
            raise InputError(f"--seeds: got {text!r}, wanted at most {MOST_SEEDS:,} at a time")
        found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return list(dict.fromkeys(found))


# --- info, report, import, demo --------------------------------------------------------------------------------------


def _add_info(commands: Commands) -> None:
    p = _command(
        commands,
        "info",
        "say what a run or a weights file is",
        "  maskdm info runs/00000-photos\n  maskdm info model.safetensors",
    )
    p.add_argument("model", metavar="RUN|FILE", type=Path)
    p.set_defaults(run=_info)


def _info(a: argparse.Namespace) -> None:
    from maskdm.training.info import describe

    print("\n".join(describe(a.model)))


def _add_report(commands: Commands) -> None:
    p = _command(
        commands,
        "report",
        "write the page of a run again, also of one that is still going",
        "  maskdm report runs/00000-photos",
    )
    p.add_argument("run_folder", metavar="RUN", type=Path)
    p.set_defaults(run=_report)


def _report(a: argparse.Namespace) -> None:
    from maskdm.measuring.report import write_report

    print(write_report(a.run_folder))


def _add_import(commands: Commands) -> None:
    p = _command(
        commands,
        "import",
        "turn weights from elsewhere into a file of ours",
        "  maskdm import official model-20.pt -o celeba.safetensors --weights ema --heads 8",
    )
    p.add_argument(
        "source", choices=["official"], help="official: checkpoints of the authors' code (jiachenlei/maskdm)"
    )
    p.add_argument("checkpoint", metavar="FILE", type=Path)
    p.add_argument("--output", "-o", required=True, metavar="FILE.safetensors", type=Path, help="where to")
    p.add_argument("--weights", choices=["ema", "raw"], default="ema", help="which of the two (default: ema)")
    p.add_argument("--heads", type=int, metavar="N", help="attention heads (default: width / 64)")
    p.set_defaults(run=_import)


def _import(a: argparse.Namespace) -> None:
    from maskdm.data.pictures import make_folder
    from maskdm.interop.official import read_official
    from maskdm.training import weights
    from maskdm.training.info import describe

    if a.output.suffix != ".safetensors":
        raise InputError(f"--output: got {a.output}, wanted a name that ends in .safetensors")
    read = read_official(a.checkpoint, which=a.weights, heads=a.heads)
    make_folder(a.output.parent)
    try:
        weights.save(a.output, read)
    except StorageError as error:
        raise InputError(f"--output: {error}; choose another place") from None
    print("\n".join(describe(a.output)))


def _add_demo(commands: Commands) -> None:
    p = _command(
        commands,
        "demo",
        "the whole way on handwritten digits, in a few minutes on two CPU cores",
        "  maskdm demo\n  maskdm demo --output-dir /tmp/demo",
    )
    p.add_argument(
        "--output-dir", "--outdir", metavar="DIR", type=Path, default=Path("demo"), help="where it goes (default: demo)"
    )
    p.set_defaults(run=_demo)


def _demo(a: argparse.Namespace) -> None:
    from maskdm.demo import demo

    demo(a.output_dir)


if __name__ == "__main__":
    sys.exit(main())
