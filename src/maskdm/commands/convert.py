"""`maskdm import`: weights from elsewhere as a file of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from maskdm.config.section import to_dict
from maskdm.errors import InputError, StorageError, within
from maskdm.files import make_folder
from maskdm.models import weights as files
from maskdm.models.official import read_official
from maskdm.models.official_check import check_outputs
from maskdm.runtime.console import Console


def convert(
    source: Literal["official"],
    checkpoint: str | Path,
    output: str | Path,
    *,
    weights: Literal["ema", "raw"] = "ema",
    heads: int | None = None,
    check: str | Path | None = None,
    quiet: bool = False,
) -> Path:
    """Turns a checkpoint from elsewhere into a weights file of ours.

    Args:
        source: official: the authors' code (jiachenlei/maskdm).
        checkpoint: the file.
        output: a .safetensors to write.
        weights: which of the two that it holds.
        heads: attention heads, which a checkpoint does not say: any divisor of the width gives a network that runs, and
            all but one other outputs. By default width / 64, with a warning.
        check: an .npz of inputs and outputs of the network that is imported, to compare with: arrays x (B, C, H, W), t
            (B,), output (B, C, H, W) and, with classes, y (B,).
        quiet: nothing is said of the heads.

    Returns:
        The file that was written.

    Raises:
        InputError: another source, a file that is no such checkpoint, heads that do not divide its width, outputs that
            differ from those to compare with by more than rounding, a place that cannot be written to. Then nothing is
            written.

    Example:
        >>> convert("official", "model-20.pt", "celeba.safetensors", heads=8, check="outputs.npz")
    """
    console = Console(quiet=quiet)
    if source != "official":
        raise InputError("source", got=source, wanted="official")
    output = Path(output)
    if output.suffix != ".safetensors":
        raise InputError("output", got=str(output), wanted="a name that ends in .safetensors")
    with within(""):
        read = read_official(Path(checkpoint), which=weights, heads=heads)
    files.require_no_nan(read.tensors, Path(checkpoint))
    if check is None:
        console.warn(_unchecked(read, heads))
    else:
        difference = check_outputs(read, Path(check), weights)
        console.say(f"outputs differ from those in {check} by {difference:.1e} of the largest: as they should")
    make_folder(output.parent, "output")
    try:
        files.write_weights(output, read)
    except StorageError as error:
        raise InputError("output", str(error), remedy="choose another place") from None
    return output


def _unchecked(read: files.Weights, heads: int | None) -> str:
    """What nobody has looked at: the number of heads."""
    model = to_dict(read.spec.model)
    here = f"{model['heads']} attention heads"
    if heads is None:
        here = f"{here} are assumed, width {model['width']} / 64; --heads takes another number"
    else:
        here = f"{here}, as given"
    return (
        f"{here}: the checkpoint does not say how many its network has, and a wrong number gives other outputs without "
        "an error; --check FILE.npz compares with outputs of the network itself"
    )
