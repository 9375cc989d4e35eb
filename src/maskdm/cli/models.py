"""maskdm info, report, import, demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskdm.cli.parsing import Commands, command
from maskdm.errors import InputError, StorageError


def add_info(commands: Commands) -> None:
    """Options of maskdm info."""
    p = command(
        commands,
        "info",
        "say what a run or a weights file is",
        "  maskdm info runs/00000-photos\n  maskdm info model.safetensors",
    )
    p.add_argument("model", metavar="RUN|FILE", type=Path)
    p.set_defaults(run=_info)


def _info(a: argparse.Namespace) -> None:
    from maskdm.commands.info import describe

    print("\n".join(describe(a.model)))


def add_report(commands: Commands) -> None:
    """Options of maskdm report."""
    p = command(
        commands,
        "report",
        "write the page of a run again, also of one that is still going",
        "  maskdm report runs/00000-photos",
    )
    p.add_argument("run_folder", metavar="RUN", type=Path)
    p.set_defaults(run=_report)


def _report(a: argparse.Namespace) -> None:
    from maskdm.reports.run_page import write_report

    print(write_report(a.run_folder))


def add_import(commands: Commands) -> None:
    """Options of maskdm import."""
    p = command(
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
    from maskdm.commands.info import describe
    from maskdm.data.write import make_folder
    from maskdm.models import weights
    from maskdm.models.official import read_official

    if a.output.suffix != ".safetensors":
        raise InputError(f"--output: got {a.output}, wanted a name that ends in .safetensors")
    read = read_official(a.checkpoint, which=a.weights, heads=a.heads)
    make_folder(a.output.parent)
    try:
        weights.save(a.output, read)
    except StorageError as error:
        raise InputError(f"--output: {error}; choose another place") from None
    print("\n".join(describe(a.output)))


def add_demo(commands: Commands) -> None:
    """Options of maskdm demo."""
    p = command(
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
    from maskdm.commands.demo import demo

    demo(a.output_dir)
