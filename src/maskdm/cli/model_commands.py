"""maskdm info, report, import, demo."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from maskdm.cli.parsing import Commands, command, integer

if TYPE_CHECKING:
    from maskdm.commands.info import RunInfo, WeightsInfo

MOST_CLASSES = 20
"""Names of classes that are listed."""
METADATA = {
    "maskdm": "version",
    "which": "average",
    "images": "seen",
    "manifest_sha256": "split",
    "heldout_images": "held out",
    "members": "trained on",
}
"""Keys of a weights file -> as they are printed, where the key itself does not say it."""
WHICH = {"ema": "moving average of the weights (ema)", "raw": "none, the last weights (raw)"}


def add_info(commands: Commands) -> None:
    """Options of maskdm info."""
    p = command(
        commands,
        "info",
        "say what a run or a weights file is",
        "  maskdm info runs/00000-photos\n  maskdm info model.safetensors",
    )
    p.add_argument("model", metavar="RUN|FILE", type=Path)
    p.set_defaults(call=call_info)


def call_info(a: argparse.Namespace) -> None:
    """Prints what a path is."""
    from maskdm.commands.info import info

    found = info(a.model)
    if found.run is not None:
        print("\n".join(_lines_of_run(found.run)))
    if found.weights is not None:
        print("\n".join(_lines_of_weights(found.weights)))
    else:
        print("weights    none yet")


def _lines_of_run(run: RunInfo) -> Iterator[str]:
    yield f"run        {run.path}"
    if run.step:
        ended = "finished" if run.finished else "unfinished"
        saved = f"step {run.step:,} ({run.images:,} images, {run.seconds:,.0f} s of training)"
        yield f"state      {ended}, saved at {saved}"
    else:
        yield "state      begun, nothing saved yet"
    if run.error_ema is not None:
        at = f" at {run.heldout_size[0]} x {run.heldout_size[1]} px" if run.heldout_size else ""
        yield f"held-out   error{at} {run.error_ema:.4f} (ema), {run.error_raw:.4f} (raw), n = {run.heldout}"
    for part in run.by_noise:
        yield f"           {part.error_ema:.4f} (ema), {part.error_raw:.4f} (raw) at noise {part.levels}: {part.hidden}"


def _lines_of_weights(weights: WeightsInfo) -> Iterator[str]:
    from maskdm.config import summary
    from maskdm.config.section import to_dict

    spec = weights.spec
    model, process = to_dict(spec.model), to_dict(spec.process)
    yield f"weights    {weights.file}"
    if weights.nan_tensor is not None:
        yield f"damaged    holds NaN, first in the tensor {weights.nan_tensor}: it samples nothing"
    yield f"model      {summary.summarize_model(model)}; {weights.parameters / 1e6:.2f} M parameters"
    yield f"images     {spec.image_size[0]} x {spec.image_size[1]} x {spec.channels}"
    yield f"process    {summary.summarize_process(process)}; {summary.summarize_objective(process)}"
    if spec.class_names:
        yield f"classes    {len(spec.class_names)}: {', '.join(spec.class_names[:MOST_CLASSES])}"
    for key, value in weights.metadata.items():
        if value is not None:
            said = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
            yield f"{METADATA.get(key, key.replace('_', ' ')):10} {WHICH.get(str(value), said)}"


def add_report(commands: Commands) -> None:
    """Options of maskdm report."""
    p = command(
        commands,
        "report",
        "write the page of a run again, also while it trains",
        "  maskdm report runs/00000-photos",
    )
    p.add_argument("run", metavar="RUN", type=Path)
    p.set_defaults(call=call_report)


def call_report(a: argparse.Namespace) -> None:
    """Writes the page, and prints where it is."""
    from maskdm.commands.report import report

    print(report(a.run))


def add_import(commands: Commands) -> None:
    """Options of maskdm import."""
    p = command(
        commands,
        "import",
        "convert weights from elsewhere",
        "  maskdm import official model-20.pt -o celeba.safetensors --weights ema --heads 8\n"
        "  maskdm import official model-20.pt -o celeba.safetensors --heads 8 --check outputs.npz",
    )
    p.add_argument(
        "source", choices=["official"], help="official: checkpoints of the authors' code (jiachenlei/maskdm)"
    )
    p.add_argument("checkpoint", metavar="FILE", type=Path)
    p.add_argument("--output", "-o", required=True, metavar="FILE.safetensors", type=Path, help="where to")
    p.add_argument("--weights", choices=["ema", "raw"], default="ema", help="which of the two (default: ema)")
    p.add_argument(
        "--heads", type=integer, metavar="N", help="attention heads, which the file does not say (default: width / 64)"
    )
    p.add_argument(
        "--check",
        type=Path,
        metavar="FILE.npz",
        help="compare with outputs of the network: arrays x, t, output and, with classes, y",
    )
    p.set_defaults(call=call_import)


def call_import(a: argparse.Namespace) -> None:
    """Converts, and prints what came out."""
    from maskdm.commands.convert import convert
    from maskdm.commands.info import info

    file = convert(a.source, a.checkpoint, a.output, weights=a.weights, heads=a.heads, check=a.check, quiet=a.quiet)
    found = info(file).weights
    assert found is not None, "just written"
    print("\n".join(_lines_of_weights(found)))


def add_demo(commands: Commands) -> None:
    """Options of maskdm demo."""
    p = command(
        commands,
        "demo",
        "train, sample and evaluate on handwritten digits, in a few minutes on two CPU cores",
        "  maskdm demo\n  maskdm demo --output-dir /tmp/demo",
    )
    p.add_argument(
        "--output-dir", "--outdir", metavar="DIR", type=Path, default=Path("demo"), help="where it goes (default: demo)"
    )
    p.set_defaults(call=call_demo)


def call_demo(a: argparse.Namespace) -> None:
    """Runs the demo, which says what it does."""
    from maskdm.commands.demo import demo

    demo(a.output_dir, quiet=a.quiet)
