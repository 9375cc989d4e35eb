"""One file is a model: safetensors with everything needed to rebuild the denoiser in its metadata.

Nothing is ever unpickled. The metadata says what the model is and how it came to be, but holds no path and no name of
a picture: weights are made to be passed on.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from maskdm.backbones.uvit import UViT
from maskdm.errors import InputError, StorageError
from maskdm.method.denoiser import Denoiser
from maskdm.method.prediction import PREDICTIONS
from maskdm.method.process import Process, cosine, linear
from maskdm.training.config import ModelSpec

Which = Literal["ema", "raw"]
FORMAT = "1"

Facts = dict[str, str | int | float | None]
Network = UViT
"""Any of the backbones."""
BACKBONES = {"uvit": UViT}
SCHEDULES = {"linear": linear, "cosine": cosine}


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


def build(spec: ModelSpec) -> Network:
    """A fresh backbone as `spec` says, from torch's global random state."""
    m = spec.model
    return BACKBONES[m.backbone](
        image_size=spec.image_size,
        channels=spec.channels,
        patch_size=m.patch_size,
        width=m.width,
        depth=m.depth,
        heads=m.heads,
        mlp_ratio=m.mlp_ratio,
        qkv_bias=m.qkv_bias,
        time_mlp=m.time_mlp,
        classes=len(spec.class_names),
    )


def process_of(spec: ModelSpec) -> Process:
    """The forward process of a model."""
    return SCHEDULES[spec.process.schedule](spec.process.timesteps)


def denoiser(spec: ModelSpec, backbone: Network) -> Denoiser:
    """The denoiser around a backbone; it follows the backbone's weights and device."""
    return Denoiser(
        backbone=backbone,
        process=process_of(spec),
        prediction=PREDICTIONS[spec.process.prediction],
        channels=spec.channels,
        image_size=spec.image_size,
        class_names=spec.class_names,
        device=next(backbone.parameters()).device,
    )


def save(path: Path, weights: Weights) -> None:
    """Writes the file whole or not at all."""
    metadata = {
        "format": "pt",  # what other readers of safetensors look for
        "maskdm": FORMAT,
        "model": weights.spec.model_dump_json(),
        "facts": json.dumps(weights.facts),
    }
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
    if "maskdm" not in metadata or "model" not in metadata:
        raise InputError(f"{path} holds tensors, but no maskdm model: its metadata does not describe one")
    if metadata["maskdm"] != FORMAT:
        raise InputError(f"{path} has format {metadata['maskdm']}, this version reads {FORMAT}; install a newer maskdm")
    try:
        spec = ModelSpec.model_validate_json(metadata["model"])
    except ValidationError as error:
        raise InputError(
            f"{path} describes a model that this version does not know: {error.errors()[0]['msg']}"
        ) from None
    return Weights(spec, json.loads(metadata.get("facts", "{}")), tensors)


def find(path: Path, which: Which = "ema") -> Path:
    """The weights file of a run, a checkpoint folder, or the file itself."""
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"no such run or file: {path}")
        return path
    for candidate in (path / "weights" / f"{which}.safetensors", path / f"{which}.safetensors"):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"{path} holds no {which} weights yet; wanted a run folder, a checkpoint folder, or a .safetensors file"
    )


def load(path: str | Path, *, weights: Which = "ema", device: str | torch.device = "cpu") -> Denoiser:
    """A denoiser from a run folder or a weights file.

    Args:
        path: a run folder, a checkpoint folder, or a .safetensors file.
        weights: of a folder: the moving average (ema) or the last weights (raw).
        device: where to put it.

    Raises:
        InputError: nothing there that can be read as a model.
    """
    file = find(Path(path), weights)
    read_weights = read(file)
    backbone = build(read_weights.spec)
    restore(backbone, read_weights.tensors, file)
    return denoiser(read_weights.spec, backbone.to(device).eval().requires_grad_(False))


def restore(backbone: nn.Module, tensors: dict[str, Tensor], origin: Path) -> None:
    """Strictly: every tensor, and no other."""
    try:
        backbone.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        first = " ".join(str(error).split("\n\t")[1:2]) or str(error)
        raise InputError(f"{origin} does not fit the model it describes: {first}") from None


def inherit(backbone: Network, spec: ModelSpec, path: Path, which: Which) -> list[str]:
    """Starts `backbone`, described by `spec`, from the weights at `path`; says in sentences what was done.

    Raises:
        InputError: see `read_fitting`.
    """
    file, source = read_fitting(spec, path, which)
    restore(backbone, backbone.adapt(source.tensors, source.spec.image_size), file)
    said = [f"inherited {len(source.tensors)} tensors from {file}"]
    if source.spec.image_size != spec.image_size:
        here, there = (" x ".join(map(str, size)) for size in (spec.image_size, source.spec.image_size))
        said.append(f"positions resized for images of {here} instead of {there}")
    if source.spec.process != spec.process:
        said.append(f"the weights were trained for {source.spec.process!r}, this stage for {spec.process!r}")
    if source.spec.class_names != spec.class_names:
        said.append("class names differ; labels are taken by number")
    return said


def read_fitting(spec: ModelSpec, path: Path, which: Which) -> tuple[Path, Weights]:
    """Weights from which a model as `spec` says can start, and their file.

    The images may have another size (positions are resized) and the process may differ; the network may not.

    Raises:
        InputError: nothing that can be read, or weights of another network; every difference is named.
    """
    file = find(path, which)
    source = read(file)
    here, there = (
        s.model.model_dump() | {"channels": s.channels, "classes": len(s.class_names)} for s in (spec, source.spec)
    )
    different = [f"{k} is {there[k]} there and {v} here" for k, v in here.items() if there[k] != v]
    if different:
        raise InputError(f"init_from {file}: weights of another model: {'; '.join(different)}")
    return file, source
