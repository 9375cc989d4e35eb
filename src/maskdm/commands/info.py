"""What a run or a weights file is, in lines for a person."""

from __future__ import annotations

from pathlib import Path

from maskdm.config import summary
from maskdm.config.schema import to_dict
from maskdm.errors import InputError
from maskdm.models import weights
from maskdm.training import checkpoint
from maskdm.training.runs import finished, read_metrics


def describe(path: Path) -> list[str]:
    """Lines for `maskdm info`.

    Raises:
        InputError: neither a run nor a weights file.
    """
    run = path if (path / "config.yaml").is_file() else None
    if run is None:
        return _of_file(weights.find(path))
    lines = [f"run        {run}", f"state      {_state(run)}"]
    heldout = [e for e in read_metrics(run) if e["event"] == "heldout"]
    if heldout:
        last = heldout[-1]
        lines.append(f"held-out   error {last['loss_ema']:.4f} (ema), {last['loss_raw']:.4f} (raw), n = {last['n']}")
    try:
        file = weights.find(run)
    except InputError:
        return [*lines, "weights    none yet"]
    return lines + _of_file(file)


def _state(run: Path) -> str:
    newest = checkpoint.newest(run / "checkpoints")
    if newest is None:
        return "begun, nothing saved yet"
    progress = checkpoint.read_progress(newest)
    ended = "finished" if finished(run) else "unfinished"
    return (
        f"{ended}, saved at step {progress.step:,} ({progress.images:,} images, {progress.seconds:,.0f} s of training)"
    )


def _of_file(file: Path) -> list[str]:
    read = weights.read(file)
    spec = read.spec
    model, process = to_dict(spec.model), to_dict(spec.process)
    parameters = sum(t.numel() for t in read.tensors.values())
    lines = [
        f"weights    {file}",
        f"model      {summary.backbone(model)}; {parameters / 1e6:.2f} M parameters",
        f"images     {spec.image_size[0]} x {spec.image_size[1]} x {spec.channels}",
        f"process    {summary.process(process)}; {summary.objective(process)}",
    ]
    if spec.class_names:
        lines.append(f"classes    {len(spec.class_names)}: {', '.join(spec.class_names[:20])}")
    lines += [f"{key:10} {value}" for key, value in read.facts.items() if value is not None]
    return lines
