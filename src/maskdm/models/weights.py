"""One file is a model: safetensors with everything needed to rebuild the denoiser in its metadata.

Nothing is ever unpickled. The metadata says what the model is and how it came to be, but holds no path and no name of
an image: weights are made to be passed on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from maskdm.config.validate import validate
from maskdm.diffusion.denoiser import Denoiser
from maskdm.errors import InputError, within
from maskdm.files import replacing
from maskdm.models import build
from maskdm.models.inference import for_inference
from maskdm.models.spec import ModelSpec

Which = Literal["ema", "raw"]
FORMAT = "2"

LoadState = Callable[[nn.Module, dict[str, Tensor]], object]
"""(network, state) -> None, strictly: `nn.Module.load_state_dict`, or that of a network in shards."""
Metadata = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Weights:
    """A weights file, read.

    Attributes:
        spec: what the model is.
        metadata: how it came to be: which average, stage, steps, images, the hash of the manifest, ...
        tensors: the backbone's state.
    """

    spec: ModelSpec
    metadata: Metadata
    tensors: dict[str, Tensor]


def write_weights(path: Path, weights: Weights) -> None:
    """Writes the file whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    described = {"format": FORMAT, "model": weights.spec.model_dump(mode="json"), "metadata": weights.metadata}
    # One entry: safetensors writes several in any order, and the same model should be the same file.
    header = {"maskdm": json.dumps(described)}
    tensors = {name: t.detach().cpu().contiguous() for name, t in weights.tensors.items()}
    with replacing(path) as temporary:
        _save(temporary, tensors, header)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Tensors that are no model, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    with replacing(path) as temporary:
        _save(temporary, tensors, None)


def _save(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None) -> None:
    """safetensors' `save_file`, which has an error of its own for a full disk."""
    try:
        save_file(tensors, path, header)
    except SafetensorError as error:
        raise OSError(" ".join(str(error).split())) from None


def read_weights(path: Path) -> Weights:
    """A file that `write_weights` wrote.

    Raises:
        InputError: it is not there, not readable, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise InputError(str(path), "no such file") from None
    except (OSError, SafetensorError) as error:
        remedy = "for a checkpoint of the official code: maskdm import official" if path.suffix in PICKLES else ""
        raise InputError(str(path), f"not a readable safetensors file ({error})", remedy=remedy) from None
    try:
        described = json.loads(header.get("maskdm", ""))
        version = described["format"]
        if version == FORMAT:
            model, metadata = dict(described["model"]), dict(described["metadata"])
    except (ValueError, KeyError, TypeError):
        raise InputError(str(path), "holds tensors, but no maskdm model: its header does not describe one") from None
    if version != FORMAT:
        remedy = "train again, or use the maskdm that wrote it" if version == "1" else "install a newer maskdm"
        raise InputError(str(path), f"weights of format {version}", wanted=f"format {FORMAT}", remedy=remedy)
    try:
        spec = validate(ModelSpec, model)
    except InputError as error:
        raise InputError(str(path), f"describes a model that this version does not know ({error})") from None
    return Weights(spec, metadata, tensors)


def nan_tensor(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN, or None.

    Infinite numbers are no damage: a buffer may hold them, such as a mask of attention. The cost is that of reading the
    tensors once: a third of a second for 1 GB on one core.
    """
    for name, tensor in tensors.items():
        # Both bounds are NaN where one number is, and this reads memory once, where isnan() writes it too.
        if tensor.is_floating_point() and tensor.numel() and torch.stack(tensor.aminmax()).isnan().any():
            return name
    return None


def require_no_nan(tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Refuses weights of which nothing could be sampled but noise.

    Args:
        tensors: by their names.
        origin: the file they are from, for the error.

    Raises:
        InputError: one holds NaN.
    """
    name = nan_tensor(tensors)
    if name is not None:
        raise InputError(
            str(origin),
            f"holds NaN, first in the tensor {name}",
            remedy="use weights that were saved before, or train again with a lower learning rate",
        )


PICKLES = (".pt", ".pth")
"""Suffixes of checkpoints of the official code."""


def find_weights(path: Path, which: str = "ema") -> Path:
    """The weights file of a run, a checkpoint folder, or the file itself.

    Args:
        path: a folder or file.
        which: of a folder: ema, raw, either of a stage (pretrain-ema), or a stage, which is its ema.

    Raises:
        InputError: nothing there, or no weights of this name.
    """
    if not path.is_dir():
        if not path.exists():
            raise InputError(str(path), "no such run or file")
        if not path.is_file():  # a pipe would keep its reader waiting for ever
            raise InputError(str(path), "is not a regular file", wanted="a run folder or a .safetensors file")
        return path
    for folder in (path / "weights", path):
        for name in (which, f"{which}-ema"):
            if (folder / f"{name}.safetensors").is_file():
                return folder / f"{name}.safetensors"
    there = sorted(file.stem for file in (path / "weights").glob("*.safetensors"))
    if there:
        raise InputError(str(path), f"holds no weights called {which!r}", wanted=f"one of {', '.join(there)}")
    if not (path / "config.yaml").is_file():
        wanted = "a run folder or a .safetensors file"
        raise InputError(str(path), "is not a run folder: it has no config.yaml", wanted=wanted)
    wanted = "a run folder, a checkpoint folder, or a .safetensors file"
    raise InputError(str(path), f"holds no {which} weights yet", wanted=wanted)


def load(
    path: str | Path,
    *,
    weights: str = "ema",
    device: str | torch.device = "cpu",
    backbone: type[nn.Module] | None = None,
    mixed_precision: Literal["auto", "bf16", "fp16", "no"] = "no",
    compile: bool = False,
) -> Denoiser:
    """A denoiser from a run folder or a weights file.

    Args:
        path: a run folder, a checkpoint folder, or a .safetensors file.
        weights: of a folder: the moving average (ema), the last weights (raw), or either of a stage (pretrain-ema).
        device: where to put it.
        backbone: the class of a backbone of your own. A file only names it, and nothing that a file names is imported.
        mixed_precision: precision of the network when it is called; auto is bf16 where the device multiplies it.
        compile: whether torch compiles the network: a minute at the first call, and faster then on a GPU.

    Raises:
        InputError: nothing there that can be read as a model, weights that hold NaN, or a backbone that was not
            given.
    """
    file = find_weights(Path(path), weights)
    found = read_weights(file)
    require_no_nan(found.tensors, file)
    named, given = found.spec.model.backbone, f"{backbone.__module__}:{backbone.__qualname__}" if backbone else None
    if given != (named if ":" in named else None):
        remedy = f"give that class, or its name {named}" if ":" in named else "leave it out"
        raise InputError("backbone", f"that of {file} is {named}", got=given, remedy=remedy)
    network = build.backbone(found.spec)
    load_state(network, found.tensors, file)
    network = network.to(device).eval().requires_grad_(False)
    denoiser = build.denoiser(found.spec, network)
    with within(""):
        network = for_inference(network, denoiser.device, mixed_precision, compile)
    return replace(denoiser, backbone=network)


def load_state(
    network: nn.Module,
    tensors: dict[str, Tensor],
    origin: Path,
    load_state_dict: LoadState = nn.Module.load_state_dict,
) -> None:
    """Strictly: every tensor, and no other.

    Args:
        network: what they are for.
        tensors: its state.
        origin: the file they are from, for errors.
        load_state_dict: how the network takes them.

    Raises:
        InputError: names or shapes differ.
    """
    try:
        load_state_dict(network, tensors)
    except RuntimeError as error:
        first = " ".join(str(error).split("\n\t")[1:2]) or str(error)
        raise InputError(str(origin), f"does not fit the model it describes: {first}") from None
