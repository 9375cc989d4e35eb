"""Checkpoints of the authors' code (jiachenlei/maskdm), `torch.save({"step", "model", "opt", "ema", "scaler"})`.

Everything but the number of heads can be read off the tensors: widths and depth off their shapes, the noise schedule
off the buffer of alpha_bar. Unpickling is restricted to tensors and plain containers.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from maskdm.config.model_config import UViTConfig
from maskdm.config.process_config import DDPMConfig
from maskdm.diffusion import schedules
from maskdm.errors import InputError
from maskdm.models.spec import ModelSpec
from maskdm.models.weights import Weights, Which

UNREADABLE = (pickle.UnpicklingError, SafetensorError, LookupError, ValueError, TypeError, AttributeError)
"""What `torch.load` raises on files that are something else."""

PREFIX = {"raw": ("model", "model."), "ema": ("ema", "ema_model.model.")}
"""Entry of the checkpoint and prefix of the network's keys in it."""

NAMES = [
    (r"encoder\.patch_embed\.proj\.bias", "embed.bias"),
    (r"encoder\.time_embed\.(\d+)\.(.+)", r"time.\1.\2"),
    (r"encoder\.in_blocks\.(.+)", r"blocks_in.\1"),
    (r"encoder\.mid_block\.(.+)", r"block_mid.\1"),
    (r"encoder\.out_blocks\.(.+)", r"blocks_out.\1"),
    (r"encoder\.norm\.(.+)", r"norm.\1"),
    (r"encoder_to_output\.(.+)", r"head.\1"),
    (r"(.+)\.attn\.(.+)", r"\1.attention.\2"),
    (r"(.+)\.mlp\.fc1\.(.+)", r"\1.mlp.up.\2"),
    (r"(.+)\.mlp\.fc2\.(.+)", r"\1.mlp.down.\2"),
    (r"(.+)\.skip_linear\.(.+)", r"\1.skip.\2"),
]
"""Their name -> ours; all that fit are applied, in this order. The rest changes shape: see `_tensors`."""


def read_official(path: Path, *, which: Which = "ema", heads: int | None = None) -> Weights:
    """An official checkpoint as weights of ours.

    Args:
        path: a file such as model-20.pt.
        which: the moving average or the last weights.
        heads: attention heads; default width / 64.

    Raises:
        InputError: not such a checkpoint, or heads that do not divide the width.
    """
    checkpoint = _unpickle(path)
    entry, prefix = PREFIX[which]
    state = checkpoint.get(entry)
    if not isinstance(state, dict) or not any(key.startswith(prefix + "encoder.") for key in state):
        problem = f"holds no {which} weights of the official network (no keys {prefix}encoder.*)"
        raise InputError(str(path), problem)
    network = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
    try:
        spec = _spec(network, checkpoint["model"]["alphas_cumprod"], heads, path)
        tensors = _tensors(network)
    except KeyError as error:
        raise InputError(str(path), f"lacks {error}: not a checkpoint of the official network") from None
    return Weights(spec, {"which": which, "source": "official", "steps": checkpoint.get("step")}, tensors)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():  # about pickles of other kinds, which are refused anyway
            warnings.simplefilter("ignore", UserWarning)
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(str(path), "no such file") from None
    except (OSError, RuntimeError, EOFError, *UNREADABLE) as error:
        # The first sentence: torch's next ones advise to run whatever the file holds.
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise InputError(str(path), f"not a readable torch checkpoint ({reason})") from None
    if not isinstance(checkpoint, dict) or not {"model", "ema"} <= checkpoint.keys():
        raise InputError(str(path), "no checkpoint of the official code", wanted="entries model and ema")
    return dict(checkpoint)


def _spec(network: dict[str, Tensor], alpha_bar: Tensor, heads: int | None, path: Path) -> ModelSpec:
    width, channels, patch_size, _ = network["encoder.patch_embed.proj.weight"].shape
    classes = len(network["encoder.label_emb.weight"]) if "encoder.label_emb.weight" in network else 0
    patches = network["encoder.encoder_pos_embed"].shape[1] - (2 if classes else 1)
    side = round(patches**0.5) * patch_size  # the official network knows square images only
    depth = 1 + 2 * len({m[1] for key in network if (m := re.match(r"encoder\.in_blocks\.(\d+)\.", key))})
    heads = max(width // 64, 1) if heads is None else heads
    if heads < 1 or width % heads:
        raise InputError("heads", got=heads, wanted=f"a number that divides the network's width, {width}")
    model = UViTConfig(
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=network["encoder.mid_block.mlp.fc1.weight"].shape[0] / width,
        qkv_bias="encoder.mid_block.attn.q_bias" in network,
        time_mlp="encoder.time_embed.0.weight" in network,
    )
    names = tuple(str(i) for i in range(classes))
    return ModelSpec(
        model=model, process=_process(alpha_bar, path), image_size=(side, side), channels=channels, class_names=names
    )


def _process(alpha_bar: Tensor, path: Path) -> DDPMConfig:
    known = {"linear": schedules.linear, "cosine": schedules.cosine}
    for name, make in known.items():
        if torch.allclose(make(len(alpha_bar)).alpha_bar[1:].float(), alpha_bar, rtol=1e-3, atol=1e-7):
            schedule: Literal["linear", "cosine"] = "linear" if name == "linear" else "cosine"
            return DDPMConfig(schedule=schedule, timesteps=len(alpha_bar), prediction="eps")
    raise InputError(str(path), "its noise schedule is neither linear nor cosine; no other is known")


def _tensors(network: dict[str, Tensor]) -> dict[str, Tensor]:
    kernel = network.pop("encoder.patch_embed.proj.weight")
    tensors = {
        "embed.weight": kernel.permute(0, 2, 3, 1).flatten(1),  # a p x p convolution, as a linear layer on (p, p, C)
        "position.weight": network.pop("encoder.encoder_pos_embed")[0],
    }
    if "encoder.label_emb.weight" in network:
        none = network.pop("encoder.uncond_embed")
        tensors["label.weight"] = torch.cat([network.pop("encoder.label_emb.weight"), none])
    for key in [key for key in network if key.endswith(".q_bias")]:
        q, v = network.pop(key), network.pop(key.replace("q_bias", "v_bias"))
        network[key.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(v), v])
    return tensors | {_rename(key): t for key, t in network.items()}


def _rename(key: str) -> str:
    for theirs, ours in NAMES:
        key = re.sub(f"^{theirs}$", ours, key)
    return key
