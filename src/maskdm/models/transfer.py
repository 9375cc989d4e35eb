"""Starting from the weights of another model: what fits is kept, what depends on the images is fitted, all is reported.

The network must be the same kind, width and depth; the images may have another size, patch grid, patch size, number of
channels and set of classes. A backbone says in its `layout` which of its tensors depend on those, and in what role:

- ``positions`` (extras + N, D): resized like an image;
- ``patch_in`` (., p*p*C), ``patch_out`` (p*p*C, .), ``patch_bias`` (p*p*C,): resized as images of p x p pixels (with
  Haar levels, of the pixels they stand for), such that a patch enlarged with its image is embedded as before and
  answered enlarged (FlexiViT, Beyer et al. 2023, arXiv 2212.08013);
- ``feature_out`` (p*p*F, .), ``feature_bias`` (p*p*F,): the same for F features of every pixel;
- ``conv_in`` (., C + extras, k, k), ``conv_out`` (C, ., k, k), ``conv_bias`` (C,);
- ``labels`` (classes + 1, D): rows go by the names of classes, a new class starts as "no class".

Gray to colour: every channel gets the gray one's weights, a third of them where they are summed; colour to gray: their
sum, or mean. Other changes of channels start those tensors from fresh weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from maskdm.diffusion.patches import patch_grid, patchify, unpatchify
from maskdm.errors import ArgumentError, InputError
from maskdm.models import build
from maskdm.models.haar import haar, unhaar
from maskdm.models.layers import resize_positions
from maskdm.models.official import read_official
from maskdm.models.spec import ModelSpec
from maskdm.models.weights import PICKLES, Weights, Which, find_weights, load_state, read_weights, require_no_nan

ROLES = (
    "positions",
    "patch_in",
    "patch_out",
    "patch_bias",
    "feature_out",
    "feature_bias",
    "conv_in",
    "conv_out",
    "conv_bias",
    "labels",
)


def read_source(path: Path, which: str) -> tuple[Path, Weights]:
    """The file and the weights to start from: of a run or file, or of an official checkpoint (.pt, .pth).

    The heads of an official network are not in its file; here they are taken to be of 64 channels.

    Raises:
        InputError: nothing there that can be read, or weights that hold NaN.
    """
    if path.suffix in PICKLES:
        file, found = path, read_official(path, which="raw" if which == "raw" else "ema")
    else:
        file = find_weights(path, which)
        found = read_weights(file)
    require_no_nan(found.tensors, file)
    return file, found


def inherit(network: nn.Module, spec: ModelSpec, path: Path, which: Which) -> list[str]:
    """Starts `network`, described by `spec`, from the weights at `path`; says in sentences what was done.

    Raises:
        InputError, ArgumentError: see `read_fitting`.
    """
    file, source = read_fitting(spec, path, which)
    fitted, said = fit(network, spec, source)
    if file.suffix in PICKLES:
        said.append("the file does not say how many attention heads its network has; heads of 64 channels are assumed")
    load_state(network, fitted, file)
    changes = different(source.spec.process.model_dump(), spec.process.model_dump())
    if changes:
        said.append(f"trained for another process ({', '.join(f'{key} {old} -> {new}' for key, old, new in changes)})")
    return [f"{file}", *said]


def read_fitting(spec: ModelSpec, path: Path, which: Which) -> tuple[Path, Weights]:
    """Weights from which a model as `spec` says can start, and their file.

    Raises:
        InputError: nothing that can be read.
        ArgumentError: `init_from` is of another network; every difference is named.
    """
    file, source = read_source(path, which)
    changes = different(source.spec.model.architecture(), spec.model.architecture())
    if changes:
        differences = "; ".join(f"{key} is {there} there and {here} here" for key, there, here in changes)
        raise ArgumentError("init_from", f"{file} holds weights of another model: {differences}")
    return file, source


def different(old: Mapping[str, object], new: Mapping[str, object]) -> list[tuple[str, object, object]]:
    """(key, old value, new value) of what differs, of the keys that both have."""
    return [(key, old[key], new[key]) for key in old if key in new and old[key] != new[key]]


def fit(network: nn.Module, spec: ModelSpec, source: Weights) -> tuple[dict[str, Tensor], list[str]]:
    """The state that `network` starts from, and what was kept, fitted, new and dropped, in sentences."""
    state, found, reasons = _fit(network, spec, source)
    said = [f"{what}: {', '.join(names)}" for what, names in found.items() if names and what != "kept"]
    return state, [f"{len(found['kept'])} tensors kept", *said, *reasons]


def _fit(
    network: nn.Module, spec: ModelSpec, source: Weights
) -> tuple[dict[str, Tensor], dict[str, list[str]], list[str]]:
    """The state, names of the tensors that were kept, fitted, new and dropped, and what differs in sentences."""
    roles = tensor_roles(network)
    for name, role in roles.items():
        if role not in ROLES:
            known = ", ".join(ROLES)
            problem = f"the layout of {spec.model.backbone} calls {name} {role!r}"
            raise InputError("model.backbone", problem, wanted=f"one of {known}")
    fitting = _Fitting(source.spec, spec)
    state: dict[str, Tensor] = {}
    found: dict[str, list[str]] = {"kept": [], "fitted": [], "new": []}
    for name, fresh in network.state_dict().items():
        old = source.tensors.get(name)
        made = old
        if name in roles and old is not None:
            made = fitting.fit(roles[name], old, fresh.to(old.device))  # the network may be on a GPU already
        if made is None or made.shape != fresh.shape:
            state[name] = fresh
            found["new"].append(name)
            continue
        state[name] = made.to(fresh.dtype)
        found["kept" if made is old else "fitted"].append(name)
    found["dropped"] = [name for name in source.tensors if name not in state]
    return state, found, fitting.reasons()


def unfitted(old: ModelSpec, new: ModelSpec) -> list[str]:
    """Names of tensors that would not arrive: new ones, and old ones for which there is no place. Computes nothing."""
    with torch.device("meta"):
        source, network = build.backbone(old), build.backbone(new)
    _, found, _ = _fit(network, new, Weights(old, {}, source.state_dict()))
    return [*found["new"], *found["dropped"]]


def tensor_roles(network: nn.Module) -> dict[str, str]:
    """Name of a tensor -> its role, as the network and the modules in it say in their `layout`."""
    found = {}
    for prefix, module in network.named_modules():
        layout = getattr(module, "layout", None)
        if isinstance(layout, dict):
            found.update({f"{prefix}.{name}" if prefix else name: role for name, role in layout.items()})
    return found


class _Fitting:
    """How tensors of one model become those of another."""

    def __init__(self, old: ModelSpec, new: ModelSpec) -> None:
        self.old, self.new = old, new
        self.levels = new.model.haar_levels
        self.sizes = old.model.patch_size, new.model.patch_size
        self.grids = tuple(patch_grid(s.image_size, s.model.patch_size) for s in (old, new))
        self.channels = old.channels, new.channels
        self.per_channel = 4**self.levels  # Haar coefficients, which stand side by side for every channel

    def reasons(self) -> list[str]:
        """What differs between the two models, in sentences."""
        said = []
        for what, a, b in (
            ("images", self.old.image_size, self.new.image_size),
            ("patches of", self.old.model.patch_size, self.new.model.patch_size),
            ("channels", *self.channels),
        ):
            if a != b:
                said.append(f"{what} {b} instead of {a}")
        old, new = set(self.old.class_names), set(self.new.class_names)
        if self.old.class_names != self.new.class_names:
            said.append(f"{len(old & new)} classes known, {len(new - old)} new, {len(old - new)} dropped")
        return said

    def fit(self, role: str, old: Tensor, fresh: Tensor) -> Tensor | None:
        """The old tensor in the shape of the fresh one, itself where nothing changes; None where it does not fit."""
        if role == "positions":
            return self._positions(old, fresh)
        if role == "labels":
            return self._labels(old)
        if role.startswith("feature"):
            return self._features(old)
        if self.channels[0] == self.channels[1] and (role.startswith("conv") or self.sizes[0] == self.sizes[1]):
            return old
        if role == "conv_in":
            count = self.channels[0] * self.per_channel
            image = self._recolour(old[:, :count].movedim(1, 0), self.per_channel, summed=True)
            return None if image is None else torch.cat([image.movedim(0, 1), old[:, count:]], dim=1)
        if role in ("conv_out", "conv_bias"):
            return self._recolour(old, self.per_channel, summed=False)
        enlarge = _enlarge(*self.sizes)
        if role == "patch_in":  # whatever the embedding made of a patch, it shall make of the same patch enlarged
            return self._patches(old, torch.linalg.pinv(enlarge).to(old), summed=True)
        made = self._patches(old.reshape(len(old), -1).T, enlarge.T.to(old), summed=False)
        return None if made is None else made.T.reshape(-1, *old.shape[1:])

    def _positions(self, old: Tensor, fresh: Tensor) -> Tensor:
        extras = len(fresh) - self.grids[1][0] * self.grids[1][1]
        rows = old if self.grids[0] == self.grids[1] else resize_positions(old, *self.grids)
        here = len(rows) - (len(fresh) - extras)
        if here == extras:
            return rows
        # The token of the label comes or goes; it stands first.
        return rows[here - extras :] if here > extras else torch.cat([fresh[: extras - here], rows])

    def _labels(self, old: Tensor) -> Tensor:
        if self.old.class_names == self.new.class_names:
            return old
        numbers = {name: i for i, name in enumerate(self.old.class_names)}
        known = [old[numbers[name]] if name in numbers else old[-1] for name in self.new.class_names]
        return torch.stack([*known, old[-1]])

    def _features(self, old: Tensor) -> Tensor:
        """Weights of the features of one patch, (p*p*F, ...) -> (q*q*F, ...), each resized as an image."""
        p, q = (size // 2**self.levels for size in self.sizes)
        if p == q:
            return old
        rows = old.reshape(len(old), -1).T
        images = unpatchify(rows[:, None], (1, 1), len(old) // p**2)
        images = (images.flatten(2) @ _enlarge(p, q).to(old).T).reshape(*images.shape[:2], q, q)
        return patchify(images, q)[:, 0].T.reshape(-1, *old.shape[1:])

    def _patches(self, rows: Tensor, resize: Tensor, *, summed: bool) -> Tensor | None:
        """Weights of one patch, recoloured and resized as images: (n, p*p*C) and (p*p, q*q) -> (n, q*q*C)."""
        scale = 2**self.levels
        images = unpatchify(rows[:, None], (1, 1), self.channels[0] * self.per_channel)
        for _ in range(self.levels):  # the transform is orthonormal: weights go with what they weigh
            images = unhaar(images)
        recoloured = self._recolour(images.movedim(1, 0), 1, summed=summed)
        if recoloured is None:
            return None
        q = self.sizes[1]
        images = (recoloured.movedim(0, 1).flatten(2) @ resize).reshape(len(rows), -1, q, q)
        for _ in range(self.levels):
            images = haar(images)
        return patchify(images, q // scale)[:, 0]

    def _recolour(self, kernel: Tensor, bands: int, *, summed: bool) -> Tensor | None:
        """(bands * C, ...) weights for other channels; `summed` where the network adds channels up."""
        old, new = self.channels
        if old == new:
            return kernel
        if 2 in (old, new) or 4 in (old, new):
            return None
        by_band = kernel.reshape(bands, old, *kernel.shape[1:])
        if old == 1:
            made = by_band.expand(-1, new, *by_band.shape[2:]) / (new if summed else 1)
        else:
            made = by_band.sum(1, keepdim=True) / (1 if summed else old)
        return made.flatten(0, 1)


def _enlarge(p: int, q: int) -> Tensor:
    """The matrix that resizes images of p x p pixels to q x q, bilinearly: (q q, p p) float32."""
    basis = torch.eye(p * p).reshape(p * p, 1, p, p)
    if p == q:
        return torch.eye(p * p)
    images = nn.functional.interpolate(basis, size=(q, q), mode="bilinear", antialias=q < p, align_corners=False)
    return images.reshape(p * p, q * q).T
