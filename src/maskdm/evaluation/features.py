"""Images as vectors, in which sets of images are compared. One pass feeds all metrics.

    pixels           their own values, averaged down to at most 16 x 16: plain, and blind to what they show
    inception        the network of the FID (weights downloaded once, or a file)
    dinov2           DINOv2 ViT-L/14, by transformers, see `maskdm.evaluation.pretrained`
    clip             CLIP ViT-L/14, likewise
    encoder          a small network trained on the reference images themselves (`maskdm.evaluation.encoder`), for
                     images of which Inception knows nothing
    FILE             any TorchScript or torch.export file that takes (B, 3, H, W) in 0..255 and gives (B, D)
    MODULE:CALLABLE  a function of your own, (N, H, W, C) uint8 -> (N, D)

A distance is comparable only with distances in the same features; their name says which, weights included.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass
from torch.nn import functional as F

from maskdm.data.labelled import LabelledImages
from maskdm.diffusion.pixels import channels_first
from maskdm.errors import ArgumentError, InputError
from maskdm.evaluation.encoder import train_encoder
from maskdm.evaluation.inception import SHA256, URL, load_inception
from maskdm.evaluation.metrics import Float64
from maskdm.evaluation.pretrained import PUBLISHED, load_published
from maskdm.files import make_folder, replacing, write_bytes
from maskdm.runtime.console import Console
from maskdm.runtime.device import exact_float32

NAMES = ("pixels", "inception", "dinov2", "clip", "encoder")
FILES = (".pt", ".pt2", ".pth", ".ts")
CHUNK = 64
SIDE = 16
_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Extract = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Features:
    """A map from images to vectors.

    Attributes:
        name: which, with the first digits of the hash of its weights: equal names give equal vectors.
        distance: what the Fréchet distance in them is called, with these digits too, but for the FID's own.
        extract: (B, H, W, C) uint8 -> (B, D), of a few images at once.
        lasting: whether equal names give equal vectors on another day too, so that these may be kept.
        sha256: of the weights, "" where there are none.
        trained_on: of an encoder, the sha256 of its images.
    """

    name: str
    distance: str
    extract: Extract
    lasting: bool = True
    sha256: str = ""
    trained_on: str = ""

    @torch.no_grad()
    @exact_float32()
    def __call__(self, images: np.ndarray, callback: Callable[[int], object] = lambda images: None) -> Float64:
        """(N, H, W, C) uint8 -> (N, D) float64.

        Args:
            images: at least one.
            callback: called after every few images with their number.

        Raises:
            InputError: no images, or what came out is not a vector for every image.
        """
        if not len(images):
            raise InputError(self.name, got=0, wanted="at least one image")
        found = []
        for i in range(0, len(images), CHUNK):
            part = images[i : i + CHUNK]
            vectors = np.asarray(self.extract(part), np.float64)
            if vectors.ndim != 2 or len(vectors) != len(part):
                raise InputError(self.name, got=vectors.shape, wanted=f"({len(part)}, D) for {len(part)} images")
            found.append(vectors)
            callback(len(part))
        return np.concatenate(found)


def get_features(
    features: str,
    *,
    device: torch.device,
    cache_dir: Path,
    reference: Callable[[], LabelledImages],
    features_weights: Path | None = None,
    console: Console | None = None,
) -> Features:
    """The features of a name.

    Args:
        features: pixels, inception, dinov2, clip, encoder, a file, or module:callable.
        device: where to compute.
        cache_dir: where weights are kept.
        reference: gives the images, with labels if they have some, that an encoder is trained on.
        features_weights: in place of the download: for inception a file, for dinov2 and clip a folder.
        console: says what takes time, and shows progress.

    Raises:
        ArgumentError: an unknown name, or weights that cannot be had or are not those that they should be.
    """
    check_features(features, features_weights)
    console = console or Console(quiet=True)
    if features == "pixels":
        return Features(features, f"Frechet distance on {features}", _on(device, pixel_vectors))
    if _CALLABLE.fullmatch(features):
        return Features(features, f"Frechet distance on {features}", _import(features), lasting=False)
    if features == "inception":
        path = features_weights or download(URL, SHA256, cache_dir / "weights", console.say)
        network, digest = load_inception(_read_state(path)).to(device), _sha256(path)
        found = _of_weights(features, digest, _on(device, lambda x: network(to_rgb(x))))
        return replace(found, distance="FID") if digest == SHA256 else found
    if features in PUBLISHED:
        published, digest = load_published(features, features_weights, device, console.say)
        return _of_weights(features, digest, _on(device, lambda x: published(to_rgb(x))))
    if features == "encoder":
        encoder = train_encoder(reference(), cache_dir / "encoders", device=device, console=console)
        found = _of_weights(features, encoder.sha256, _on(device, encoder.network))
        return replace(found, trained_on=encoder.trained_on)
    path = Path(features)
    module = read_network(path, device)
    return _of_weights(path.name, _sha256(path), _on(device, _refusing(path, lambda x: module(to_rgb(x)))))


def _of_weights(name: str, sha256: str, extract: Extract) -> Features:
    """Features of a network, named by its weights: nothing measured with others is taken for the same."""
    name = f"{name} {sha256[:8]}"
    return Features(name, f"Frechet distance on {name}", extract, sha256=sha256)


def check_features(features: str, features_weights: Path | None = None) -> None:
    """Refuses what `get_features` could never give.

    Raises:
        ArgumentError: an unknown name, a function that cannot be imported, or weights for features that need none.
    """
    if _CALLABLE.fullmatch(features):
        _import(features)
    elif features not in NAMES and Path(features).suffix not in FILES:
        wanted = f"{', '.join(NAMES)}, a TorchScript or torch.export file, or module:callable"
        close = difflib.get_close_matches(features.lower(), NAMES, n=1, cutoff=0.5)
        raise ArgumentError(
            "features", got=features, wanted=wanted, remedy=f"did you mean {close[0]}?" if close else ""
        )
    elif features not in NAMES and not Path(features).is_file():
        raise ArgumentError("features", f"no such file: {features}")
    if features_weights is not None and features not in ("inception", *PUBLISHED):
        raise ArgumentError("features_weights", f"given with the features {features}, which need none")


def pixel_vectors(x: Tensor) -> Tensor:
    """(B, C, H, W) in 0..255 -> (B, C x at most 16 x 16) in 0..1."""
    if max(x.shape[2:]) > SIDE:
        x = F.adaptive_avg_pool2d(x, (min(x.shape[2], SIDE), min(x.shape[3], SIDE)))
    return x.flatten(1) / 255


def to_rgb(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 3, H, W): gray is repeated, alpha left out."""
    return x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)


def download(url: str, sha256: str, folder: Path, say: Callable[[str], None]) -> Path:
    """The file behind `url`, kept in `folder`; refused unless it is the one that was meant.

    Raises:
        ArgumentError: it cannot be had, or has another content.
    """
    path = folder / url.rpartition("/")[2]
    if not path.is_file():
        say(f"downloading {url}")
        make_folder(folder, "cache_dir")
        with replacing(path) as temporary:
            try:
                torch.hub.download_url_to_file(url, str(temporary), hash_prefix=sha256, progress=False)
            except (OSError, RuntimeError) as error:  # RuntimeError: its hash is another
                raise ArgumentError(
                    "features", f"{url} cannot be downloaded ({error})", remedy="get it elsewhere, and give the file"
                ) from None
    if (found := _sha256(path)) != sha256:
        raise ArgumentError(
            "features", f"the sha256 of {path}", got=found, wanted=sha256, remedy="remove it to download it again"
        )
    return path


def _on(device: torch.device, network: Callable[[Tensor], Tensor]) -> Extract:
    """A network of (B, C, H, W) float32 in 0..255 as a function of arrays."""

    def extract(images: np.ndarray) -> np.ndarray:
        x = channels_first(np.array(images)).to(device).float()  # a copy: what is mapped is read here, and once
        vectors: np.ndarray = network(x).double().cpu().numpy()
        return vectors

    return extract


def _import(name: str) -> Extract:
    """A function of the user's own; whoever names it wants it imported."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(
            "features", f"cannot be imported ({error})", got=name, remedy="put its folder on PYTHONPATH"
        ) from None
    if not callable(found):
        raise ArgumentError(
            "features", f"is {type(found).__name__}", got=name, wanted="a function of (N, H, W, C) uint8 images"
        )
    extract: Extract = found
    return extract


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that has those of pytorch-fid's."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ArgumentError("features_weights", f"no such file: {path}") from None
    except Exception as error:  # whatever unpickling may raise
        raise ArgumentError("features_weights", f"{path} cannot be read ({type(error).__name__})") from None
    if not isinstance(state, dict) or "Mixed_7c.branch1x1.conv.weight" not in state:
        raise ArgumentError("features_weights", f"{path} holds no Inception network with the names of pytorch-fid")
    return state


def read_network(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A network in a file of torch's own, which needs no code of ours."""
    if not path.is_file():
        raise ArgumentError("features", f"no such file: {path}")
    try:
        if path.suffix == ".pt2":
            exported = move_to_device_pass(torch.export.load(path), device)  # constants and devices in it too
            network: Callable[[Tensor], Tensor] = exported.module()
        else:
            with warnings.catch_warnings():  # deprecated, and what published feature networks come as
                warnings.simplefilter("ignore", DeprecationWarning)
                network = torch.jit.load(str(path), map_location=device).to(device).eval()  # type: ignore[no-untyped-call]
    except Exception:  # of many kinds
        raise ArgumentError(
            "features", f"{path} is not a TorchScript or torch.export file that this torch can read"
        ) from None
    return network


def _refusing(path: Path, network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A network of the user's whose failures are said in one line."""

    def extract(x: Tensor) -> Tensor:
        try:
            return network(x)
        except Exception as error:  # whatever a network may raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ArgumentError(
                "features", f"{path} fails on images of shape {tuple(x.shape)} on {x.device.type} ({reason[:200]})"
            ) from None

    return extract


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None


def hash_images(images: np.ndarray) -> str:
    """A hash of (N, H, W, C) uint8 images and their shape."""
    digest = hashlib.sha256(repr(images.shape).encode())
    for i in range(0, len(images), CHUNK):
        digest.update(np.ascontiguousarray(images[i : i + CHUNK]).data)
    return digest.hexdigest()


def cached_features(
    features: Features, images: np.ndarray, folder: Path, callback: Callable[[int], object] = lambda images: None
) -> Float64:
    """The vectors of `images`, kept in `folder` by the contents of both.

    Args:
        features: which; those of a function of the user's own are not kept, since it may be another tomorrow.
        images: (N, H, W, C) uint8.
        folder: made if it is not there.
        callback: called with the number of images that are done.
    """
    if not features.lasting:
        return features(images, callback)
    key = hashlib.sha256(f"{features.name} {features.sha256} {hash_images(images)}".encode()).hexdigest()
    path = folder / f"{key}.npy"
    kept = _read_vectors(path)
    if kept is not None:
        callback(len(images))
        return kept
    found = features(images, callback)
    content = io.BytesIO()
    np.save(content, found)
    make_folder(folder, "cache_dir")
    write_bytes(path, content.getvalue() + hashlib.sha256(content.getvalue()).digest())
    return found


def _read_vectors(path: Path) -> Float64 | None:
    """What was kept, with its sha256 at the end; None where there is nothing, or where it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    if len(content) < size or hashlib.sha256(content[:-size]).digest() != content[-size:]:
        return None
    found: Float64 = np.load(io.BytesIO(content[:-size]), allow_pickle=False)
    return found
