"""Pictures as vectors, in which sets of pictures are compared. One pass feeds all metrics.

    pixels      their own values, averaged down to at most 16 x 16: plain, and blind to what they show
    inception   the network of the FID (weights downloaded once, or a file)
    dinov2      DINOv2 ViT-L/14, by transformers, see `maskdm.evaluation.pretrained`
    clip        CLIP ViT-L/14, likewise
    encoder     a small network trained on the reference pictures themselves (`maskdm.evaluation.encoder`), for
                pictures of which Inception knows nothing
    FILE        any TorchScript or torch.export file that takes (B, 3, H, W) in 0..255 and gives (B, D)

A distance is comparable only with distances in the same features; their name says which, weights included.
"""

from __future__ import annotations

import hashlib
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskdm.errors import InputError
from maskdm.evaluation import encoder
from maskdm.evaluation.inception import SHA256, URL, inception
from maskdm.evaluation.metrics import Float64
from maskdm.evaluation.pretrained import PUBLISHED, published

NAMES = ("pixels", "inception", "dinov2", "clip", "encoder")
FILES = (".pt", ".pt2", ".pth", ".ts")
CHUNK = 64
SIDE = 16


@dataclass(frozen=True)
class Features:
    """A map from pictures to vectors.

    Attributes:
        name: which, with the hash of its weights: equal names give equal vectors.
        distance: what the Fréchet distance in them is called.
        extract: (B, C, H, W) float32 in 0..255 -> (B, D), on the device.
        device: where it works.
    """

    name: str
    distance: str
    extract: Callable[[Tensor], Tensor]
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: np.ndarray, report: Callable[[int], object] = lambda images: None) -> Float64:
        """(N, H, W, C) uint8 -> (N, D) float64."""
        if not len(images):
            raise InputError("features: got no pictures, wanted at least one")
        found = []
        for i in range(0, len(images), CHUNK):
            part = torch.from_numpy(np.array(images[i : i + CHUNK])).to(self.device)  # a copy: maps cannot be written
            found.append(self.extract(part.permute(0, 3, 1, 2).float()).double().cpu().numpy())
            report(len(part))
        return np.concatenate(found)


def pick(
    name: str,
    *,
    device: torch.device,
    cache_dir: Path,
    reference: Callable[[], tuple[np.ndarray, np.ndarray | None]],
    weights: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Features:
    """The features called `name`.

    Args:
        name: pixels, inception, dinov2, clip, encoder, or a file.
        device: where to compute.
        cache_dir: where weights are kept.
        reference: gives the pictures, (N, H, W, C) uint8, and labels that an encoder is trained on.
        weights: in place of the download: for inception a file, for dinov2 and clip a folder.
        say: is told of what takes time.

    Raises:
        InputError: an unknown name, or weights that cannot be had or are not those that they should be.
    """
    check(name, weights)
    if name == "pixels":
        return Features("pixels", "Frechet distance on pixels", pixels, device)
    if name == "inception":
        path = weights or download(URL, SHA256, cache_dir / "weights", say)
        network = inception(_state(path)).to(device)
        usual = _sha256(path) == SHA256
        title = "FID" if usual else "Frechet distance on Inception features"
        return Features(f"inception {_sha256(path)[:8]}", title, lambda x: network(in_colour(x)), device)
    if name in PUBLISHED:
        answer, key = published(name, weights, device, say)
        return Features(f"{name} {key[:8]}", f"Frechet distance on {name}", lambda x: answer(in_colour(x)), device)
    if name == "encoder":
        trained, key = encoder.trained(reference, cache_dir / "encoders", device=device, say=say)
        return Features(f"encoder {key[:8]}", "Frechet distance on an encoder", trained, device)
    network_of = _file(Path(name))
    return Features(f"{Path(name).name} {_sha256(Path(name))[:8]}", "Frechet distance", network_of, device)


def check(name: str, weights: Path | None = None) -> None:
    """Refuses what `pick` could never give.

    Raises:
        InputError: an unknown name, or weights for features that need none.
    """
    if name not in NAMES and Path(name).suffix not in FILES:
        raise InputError(f"--features: got {name!r}, wanted {', '.join(NAMES)}, or a TorchScript or torch.export file")
    if weights is not None and name not in ("inception", *PUBLISHED):
        raise InputError(f"--weights: given with the features {name}, which need none; leave it out")


def pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) in 0..255 -> (B, C x at most 16 x 16) in 0..1."""
    if max(x.shape[2:]) > SIDE:
        x = F.adaptive_avg_pool2d(x, (min(x.shape[2], SIDE), min(x.shape[3], SIDE)))
    return x.flatten(1) / 255


def in_colour(x: Tensor) -> Tensor:
    """Three channels: gray is repeated, alpha left out."""
    return x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)


def download(url: str, sha256: str, folder: Path, say: Callable[[str], None]) -> Path:
    """The file behind `url`, kept in `folder`; refused unless it is the one that was meant.

    Raises:
        InputError: it cannot be had, or has another content.
    """
    path = folder / url.rpartition("/")[2]
    if not path.is_file():
        say(f"downloading {url}")
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.part")
        try:
            urllib.request.urlretrieve(url, unfinished)
            unfinished.replace(path)
        except OSError as error:
            raise InputError(
                f"the weights of inception cannot be downloaded ({error}); get {url} elsewhere, and give it with "
                "--weights"
            ) from None
        finally:
            unfinished.unlink(missing_ok=True)
    if _sha256(path) != sha256:
        raise InputError(f"{path} has sha256 {_sha256(path)}, wanted {sha256}; remove it, and it is downloaded again")
    return path


def _state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "Mixed_7c.branch1x1.conv.weight" not in state:
            raise InputError(f"--weights: {path} holds no Inception network with the names of pytorch-fid")
    except FileNotFoundError:
        raise InputError(f"--weights: no such file: {path}") from None
    except InputError:
        raise
    except Exception as error:  # whatever unpickling may raise
        raise InputError(f"--weights: {path} cannot be read ({type(error).__name__})") from None
    return state


def _file(path: Path) -> Callable[[Tensor], Tensor]:
    if not path.is_file():
        raise InputError(f"--features: no such file: {path}")
    try:
        if path.suffix == ".pt2":
            network: Callable[[Tensor], Tensor] = torch.export.load(path).module()
        else:
            with warnings.catch_warnings():  # deprecated, and what published feature networks come as
                warnings.simplefilter("ignore", DeprecationWarning)
                network = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except Exception:  # of many kinds
        raise InputError(
            f"--features: {path} is no TorchScript or torch.export file that this torch can read"
        ) from None

    def extract(x: Tensor) -> Tensor:
        out = network(in_colour(x))
        if out.ndim != 2 or len(out) != len(x):
            raise InputError(f"--features: {path} gave {tuple(out.shape)} for {len(x)} pictures, wanted (B, D)")
        return out

    return extract


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def content_of(images: np.ndarray) -> str:
    """A hash of pictures."""
    digest = hashlib.sha256(repr(images.shape).encode())
    for i in range(0, len(images), CHUNK):
        digest.update(np.ascontiguousarray(images[i : i + CHUNK]).data)
    return digest.hexdigest()


def cached(features: Features, images: np.ndarray, folder: Path, report: Callable[[int], object]) -> Float64:
    """The vectors of `images`, kept in `folder` by the contents of both."""
    key = hashlib.sha256(f"{features.name} {content_of(images)}".encode()).hexdigest()
    path = folder / f"{key}.npy"
    if path.is_file():
        try:
            found: Float64 = np.load(path, allow_pickle=False)
            report(len(images))
            return found
        except (OSError, ValueError):
            path.unlink(missing_ok=True)
    found = features(images, report)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{key}.npy"
    np.save(unfinished, found)
    unfinished.replace(path)
    return found


__all__: Sequence[str] = ("Features", "cached", "content_of", "pick")
