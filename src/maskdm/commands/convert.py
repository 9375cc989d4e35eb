"""`maskdm import`: weights from elsewhere as a file of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from maskdm.errors import InputError, StorageError, within
from maskdm.files import make_folder
from maskdm.models import weights as files
from maskdm.models.official import read_official


def convert(
    source: Literal["official"],
    checkpoint: str | Path,
    output: str | Path,
    *,
    weights: Literal["ema", "raw"] = "ema",
    heads: int | None = None,
) -> Path:
    """Turns a checkpoint from elsewhere into a weights file of ours.

    Args:
        source: official: the authors' code (jiachenlei/maskdm).
        checkpoint: the file.
        output: a .safetensors to write.
        weights: which of the two that it holds.
        heads: attention heads, which a checkpoint does not say; by default width / 64.

    Returns:
        The file that was written.

    Raises:
        InputError: another source, a file that is no such checkpoint, heads that do not divide its width, a place that
            cannot be written to.

    Example:
        >>> convert("official", "model-20.pt", "celeba.safetensors", heads=8)
    """
    if source != "official":
        raise InputError("source", got=source, wanted="official")
    output = Path(output)
    if output.suffix != ".safetensors":
        raise InputError("output", got=str(output), wanted="a name that ends in .safetensors")
    with within(""):
        read = read_official(Path(checkpoint), which=weights, heads=heads)
    files.require_finite(read.tensors, Path(checkpoint))
    make_folder(output.parent, "output")
    try:
        files.write_weights(output, read)
    except StorageError as error:
        raise InputError("output", str(error), remedy="choose another place") from None
    return output
