"""One file is a model: safetensors with everything needed to rebuild the denoiser in its metadata.

Nothing is ever unpickled. The metadata says what the model is and how it came to be, but holds no path and no name of
a picture: weights are made to be passed on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from maskdm.config.schema import ModelSpec
from maskdm.diffusion.denoiser import Denoiser
from maskdm.errors import InputError, StorageError
from maskdm.models import build
from maskdm.runtime import distributed as runtime

Which = Literal["ema", "raw"]
FORMAT = "1"

Fill = Callable[[nn.Module, dict[str, Tensor]], object]
Facts = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Weights:
    """A weights file, read.

    Attributes:
        spec: what the model is.
        facts: how it came to be: which average, stage, steps, images, the hash of the manifest, ...
        tensors: the backbone's state.
    """

    spec: ModelSpec
    facts: Facts
    tensors: dict[str, Tensor]


def save(path: Path, weights: Weights) -> None:
    """Writes the file whole or not at all."""
    model = json.loads(weights.spec.model_dump_json())
    # One entry: safetensors writes several in any order, and the same model should be the same file.
    metadata = {"maskdm": json.dumps({"format": FORMAT, "model": model, "facts": weights.facts})}
    tensors = {name: t.detach().cpu().contiguous() for name, t in weights.tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_tensors(temporary, tensors, metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """safetensors' `save_file`, whose failures are those of a disk."""
    try:
        save_file(tensors, path, metadata)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {' '.join(str(error).split())}") from None


def read(path: Path) -> Weights:
    """A file that `save` wrote.

    Raises:
        InputError: it is not there, not readable, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (OSError, SafetensorError) as error:
        hint = (
            "; for a checkpoint of the official code: maskdm import official" if path.suffix in (".pt", ".pth") else ""
        )
        raise InputError(f"{path} is not a readable safetensors file ({error}){hint}") from None
    try:
        described = json.loads(metadata.get("maskdm", ""))
        version, model, facts = described["format"], json.dumps(described["model"]), dict(described["facts"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} holds tensors, but no maskdm model: its metadata does not describe one") from None
    if version != FORMAT:
        raise InputError(f"{path} has format {version}, this version reads {FORMAT}; install a newer maskdm")
    try:
        spec = ModelSpec.model_validate_json(model)
    except ValidationError as error:
        raise InputError(
            f"{path} describes a model that this version does not know: {error.errors()[0]['msg']}"
        ) from None
    return Weights(spec, facts, tensors)


def find(path: Path, which: str = "ema") -> Path:
    """The weights file of a run, a checkpoint folder, or the file itself."""
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"no such run or file: {path}")
        return path
    for folder in (path / "weights", path):
        if (folder / f"{which}.safetensors").is_file():
            return folder / f"{which}.safetensors"
    there = sorted(file.stem for file in (path / "weights").glob("*.safetensors"))
    if there:
        raise InputError(f"{path} holds no weights called {which!r}; wanted one of {', '.join(there)}")
    if not (path / "config.yaml").is_file():
        raise InputError(f"{path} is no run: it has no config.yaml; wanted a run folder or a .safetensors file")
    raise InputError(
        f"{path} holds no {which} weights yet; wanted a run folder, a checkpoint folder, or a .safetensors file"
    )


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
        mixed_precision: arithmetic of the network when it is called; auto is bf16 where the device multiplies it.
        compile: whether torch compiles the network: a minute at the first call, and faster then on a GPU.

    Raises:
        InputError: nothing there that can be read as a model, or a backbone that was not given.
    """
    file = find(Path(path), weights)
    found = read(file)
    named, given = found.spec.model.backbone, f"{backbone.__module__}:{backbone.__qualname__}" if backbone else None
    if given != (named if ":" in named else None):
        raise InputError(
            f"{file}: its backbone is {named}, got {given or 'none'}; "
            + (f"give load the class, or sample --backbone {named}" if ":" in named else "leave backbone out")
        )
    network = build.backbone(found.spec)
    restore(network, found.tensors, file)
    network = network.to(device).eval().requires_grad_(False)
    denoiser = build.denoiser(found.spec, network)
    return replace(denoiser, backbone=runtime.light(network, denoiser.device, mixed_precision, compile))


def restore(
    backbone: nn.Module, tensors: dict[str, Tensor], origin: Path, fill: Fill = nn.Module.load_state_dict
) -> None:
    """Strictly: every tensor, and no other."""
    try:
        fill(backbone, tensors)
    except RuntimeError as error:
        first = " ".join(str(error).split("\n\t")[1:2]) or str(error)
        raise InputError(f"{origin} does not fit the model it describes: {first}") from None
