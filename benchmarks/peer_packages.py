"""Networks of other packages, trained by the clock: their classes and settings, in a loop of ours.

Nothing of these packages is copied: networks, diffusions, averages and samplers are imported from them. What their
trainers do around these (optimizer, clipping, average after every step, loss read at every step) is done here in the
same order:

- denoising-diffusion-pytorch (2.3.4): class `Trainer`, whose defaults are read from its signature where it is
  installed: Adam 1e-4 with betas 0.9 and 0.99, batch 16, clipping at 1, an average of 0.995 every 10 steps
  (ema-pytorch), `GaussianDiffusion` with its defaults (v-prediction, sigmoid schedule), which samples by DDIM (eta 0).
- diffusers (0.42): examples/unconditional_image_generation/train_unconditional.py of its repository: AdamW 1e-4 with
  betas 0.95 and 0.999 and weight decay 1e-6, batch 16, clipping at 1, 500 steps of warm-up, then half a cosine, an
  average with inv_gamma 1, power 3/4 and 0.9999 at most, epsilon-prediction on the linear schedule; sampled by its
  DDIMPipeline (eta 0).

In their favour: images lie decoded in memory, neither loading nor saving counts, the step that crosses the end of the
time is taken to its end, and the cosine ends with the time. Images are not mirrored, here or there, so that all learn
from the same ones. Their trainers' default precision is fp32.

denoising-diffusion-pytorch imports torchvision for its reader of images, which is not used here; where torchvision is
missing, or does not fit this torch, an empty module stands in for it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from versus import stand_in

from maskdm.errors import InputError
from maskdm.files import replacing, write_json

TIMESTEPS = 1000
SIDE_OF_ATTENTION = 2
"""Levels of diffusers' example with attention, counted from the lowest: the one but last."""


@dataclass(frozen=True)
class Peer:
    """A network of another package and how it is trained.

    Attributes:
        package: whose.
        widths: channels of its levels; of denoising-diffusion-pytorch's only the first, which the others follow.
        batch, lr: None for the trainer's own default.
        warmup: steps over which the rate rises.
        schedule: of the rate: constant, or half a cosine down to zero at the end of the time.
    """

    package: Literal["denoising-diffusion-pytorch", "diffusers"]
    widths: tuple[int, ...]
    batch: int | None = None
    lr: float | None = None
    warmup: int = 0
    schedule: Literal["constant", "cosine"] = "constant"


PEERS = {
    "ddpm-pytorch-64": Peer("denoising-diffusion-pytorch", (64,)),
    "ddpm-pytorch-32": Peer("denoising-diffusion-pytorch", (32,)),
    "diffusers": Peer("diffusers", (128, 128, 256, 256, 512, 512), 16, 1e-4, 500, "cosine"),
    "diffusers-small": Peer("diffusers", (32, 64, 128, 128), 8, 4e-4, 50, "cosine"),
}
"""Dim 64 is that of its README; diffusers is the example as it is, and diffusers-small what it was scaled down to."""
MODULES = {
    "denoising-diffusion-pytorch": ("denoising_diffusion_pytorch", "ema_pytorch", "accelerate", "einops"),
    "diffusers": ("diffusers",),
}


def peer(name: str) -> Peer:
    """A peer by its name, or a variant of one, such as diffusers-small@batch=16,lr=1e-3,widths=64/128.

    Raises:
        InputError: there is none of this name, or what is varied is none of its settings.
    """
    base, _, changes = name.partition("@")
    if base not in PEERS:
        raise InputError("--peers", got=base, wanted=f"one of {', '.join(PEERS)}")
    found = PEERS[base]
    readers: dict[str, Callable[[str], Any]] = {
        "batch": int,
        "lr": float,
        "warmup": int,
        "widths": lambda text: tuple(int(width) for width in text.split("/")),
    }
    for word in changes.split(",") if changes else ():
        key, _, text = word.partition("=")
        try:
            found = replace(found, **{key: readers[key](text)})
        except (KeyError, ValueError):
            raise InputError("--peers", got=word, wanted=f"one of {', '.join(readers)} and a value") from None
    return found


def missing_packages(peers: Sequence[Peer]) -> list[str]:
    """Packages that must be installed for these."""
    modules = {module: None for each in peers for module in MODULES[each.package]}
    return [module.replace("_", "-") for module in modules if importlib.util.find_spec(module) is None]


def runs_of(peer: Peer, minutes: Sequence[float]) -> list[tuple[float, ...]]:
    """The minutes at which weights are kept, for each run: at a constant rate one run passes all of them."""
    ordered = sorted(set(minutes))
    return [tuple(ordered)] if peer.schedule == "constant" else [(each,) for each in ordered]


def rate_share(peer: Peer, step: int, time_share: float) -> float:
    """Of the peak rate in a step (counted from 0) that begins after so much of the time."""
    warm = min(1.0, (step + 1) / peer.warmup) if peer.warmup else 1.0
    if peer.schedule == "constant":
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * min(time_share, 1.0)))


def batch_rows(number: int, batch: int, images: int, seed: int) -> list[int]:
    """Rows of a step's images: in every epoch each once, in an order of its own; a batch may span two epochs."""
    places = range(number * batch, (number + 1) * batch)
    return [int(_order(images, seed, place // images)[place % images]) for place in places]


@lru_cache(maxsize=2)
def _order(images: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


class Learner(Protocol):
    """A peer that is being trained."""

    optimizer: torch.optim.Optimizer
    network: torch.nn.Module
    batch: int
    lr: float
    clip: float

    def loss(self, images: Tensor) -> Tensor:
        """Of (B, C, H, W) in [0, 1]."""
        ...

    def average(self) -> None:
        """After a step: updates the average of the weights."""
        ...

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, by the names of `network`."""
        ...

    def average_state(self) -> dict[str, Any]:
        """What of the average must be kept for `load_average`."""
        ...

    def load_average(self, state: dict[str, Any]) -> None:
        """Goes on with an average."""
        ...

    def sample(self, num: int) -> Tensor:
        """(num, C, H, W) in [0, 1], by the weights in `network`."""
        ...


class DDPMPytorch:
    """denoising-diffusion-pytorch's Unet in its GaussianDiffusion; see `Learner`."""

    def __init__(self, peer: Peer, shape: tuple[int, int, int], sampling_steps: int) -> None:
        stand_in("torchvision", transforms=ModuleType("transforms"), utils=ModuleType("utils"))
        package, averages = (importlib.import_module(name) for name in ("denoising_diffusion_pytorch", "ema_pytorch"))
        if sys.modules["torchvision"].__spec__ is None:  # diffusers, in the same process, asks for it
            del sys.modules["torchvision"]
        usual = {name: each.default for name, each in inspect.signature(package.Trainer.__init__).parameters.items()}
        height, width, channels = shape
        (dim,) = peer.widths
        self.network: torch.nn.Module = package.GaussianDiffusion(
            package.Unet(dim=dim, channels=channels), image_size=(height, width), sampling_timesteps=sampling_steps
        )
        self.batch: int = peer.batch or usual["train_batch_size"] * usual["gradient_accumulate_every"]
        self.lr: float = peer.lr or usual["train_lr"]
        self.clip: float = usual["max_grad_norm"]
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            self.network.parameters(), lr=self.lr, betas=usual["adam_betas"]
        )
        self.ema: Any = averages.EMA(self.network, beta=usual["ema_decay"], update_every=usual["ema_update_every"])

    def loss(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images)
        return found

    def average(self) -> None:
        self.ema.update()

    def averaged(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = self.ema.ema_model.state_dict()
        return weights

    def average_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.ema.state_dict()
        return state

    def load_average(self, state: dict[str, Any]) -> None:
        self.ema.load_state_dict(state)

    def sample(self, num: int) -> Tensor:
        sampler: Any = self.network
        images: Tensor = sampler.sample(batch_size=num)
        return images


class Diffusers:
    """diffusers' UNet2DModel as in its unconditional example; see `Learner`."""

    batch: int
    lr: float
    clip = 1.0

    def __init__(self, peer: Peer, shape: tuple[int, int, int], sampling_steps: int) -> None:
        package, training = (importlib.import_module(name) for name in ("diffusers", "diffusers.training_utils"))
        height, width, channels = shape
        assert peer.batch is not None, "the example's own is written down in PEERS"
        assert peer.lr is not None, "likewise"
        self.batch, self.lr, self.sampling_steps = peer.batch, peer.lr, sampling_steps
        down, up = unet_blocks(len(peer.widths))
        self.network: torch.nn.Module = package.UNet2DModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            layers_per_block=2,
            block_out_channels=peer.widths,
            down_block_types=down,
            up_block_types=up,
        )
        self.noise: Any = package.DDPMScheduler(num_train_timesteps=TIMESTEPS)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        self.ema: Any = training.EMAModel(
            self.network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
        )
        self.package = package

    def loss(self, images: Tensor) -> Tensor:
        clean = images * 2 - 1
        eps = torch.randn_like(clean)
        t = torch.randint(0, TIMESTEPS, (len(clean),))
        predicted = self.network(self.noise.add_noise(clean, eps, t), t).sample
        return torch.nn.functional.mse_loss(predicted.float(), eps)

    def average(self) -> None:
        self.ema.step(self.network.parameters())

    def averaged(self) -> dict[str, Tensor]:
        self.ema.store(self.network.parameters())
        self.ema.copy_to(self.network.parameters())
        weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.ema.restore(self.network.parameters())
        return weights

    def average_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.ema.state_dict()
        return state

    def load_average(self, state: dict[str, Any]) -> None:
        self.ema.load_state_dict(state)

    def sample(self, num: int) -> Tensor:
        scheduler = self.package.DDIMScheduler.from_config(self.noise.config)
        pipeline = self.package.DDIMPipeline(unet=self.network, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        # The pipeline draws its noise from torch's global generator where it is given none.
        images = pipeline(batch_size=num, eta=0.0, num_inference_steps=self.sampling_steps, output_type="np").images
        return torch.from_numpy(images).movedim(3, 1)


def unet_blocks(levels: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Kinds of blocks on the way down and up: attention on the last level but one, as in diffusers' example."""
    attention = levels - SIDE_OF_ATTENTION
    down = tuple("AttnDownBlock2D" if level == attention else "DownBlock2D" for level in range(levels))
    return down, tuple(kind.replace("Down", "Up") for kind in reversed(down))


def make_learner(peer: Peer, shape: tuple[int, int, int], sampling_steps: int) -> Learner:
    """With fresh weights; (H, W, C) images."""
    kind = DDPMPytorch if peer.package == "denoising-diffusion-pytorch" else Diffusers
    return kind(peer, shape, sampling_steps)


def train_peer(
    name: str, images: Path, folders: Mapping[float, Path], *, seed: int, threads: int, bf16: bool, steps: int
) -> None:
    """One run of a peer; weights and `trained.json` are left in a folder for each of its minutes.

    A run of several that was interrupted goes on after the last that it has left; another begins anew.

    Args:
        name: of the peer.
        images: a .npy of (N, H, W, C) uint8.
        folders: minutes of training -> where what there is then goes.
        seed: of weights, order, noise and times.
        threads: of torch.
        bf16: compute the network in bf16 autocast.
        steps: of sampling.
    """
    torch.set_num_threads(threads)
    wanted = peer(name)
    pixels = torch.from_numpy(np.load(images)).movedim(3, 1)
    marks = sorted(folders)
    torch.manual_seed(seed)
    learner = make_learner(wanted, (pixels.shape[2], pixels.shape[3], pixels.shape[1]), steps)
    state_path = folders[marks[-1]].parent / f"state-{marks[-1]:g}min.pt"
    first, seconds, used = _resume(learner, state_path)
    total = 60 * marks[-1]
    marks = [mark for mark in marks if seconds < 60 * mark]
    for step in count(first):
        since, cpu = time.perf_counter(), time.process_time()
        rate = learner.lr * rate_share(wanted, step, seconds / total)
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        x = pixels[batch_rows(step, learner.batch, len(pixels), seed)].float() / 255
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = learner.loss(x)
        if not math.isfinite(loss.item()):
            raise InputError(name, f"the loss of step {step} is {loss.item()}")
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learner.network.parameters(), learner.clip)
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        learner.average()
        seconds, used = seconds + time.perf_counter() - since, used + time.process_time() - cpu
        for mark in [mark for mark in marks if seconds >= 60 * mark]:
            if not (folders[mark] / "trained.json").is_file():
                _save(learner, folders[mark], wanted, step + 1, seconds, used, bf16)
            marks.remove(mark)
            if marks:
                _keep(learner, state_path, step + 1, seconds, used)
        if not marks:
            break
    state_path.unlink(missing_ok=True)


def _save(learner: Learner, folder: Path, peer: Peer, steps: int, seconds: float, cpu: float, bf16: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "weights.safetensors") as temporary:
        save_file({key: tensor.contiguous() for key, tensor in learner.averaged().items()}, temporary)
    trained = {
        "package": f"{peer.package} {importlib.metadata.version(peer.package)}",
        "parameters": sum(each.numel() for each in learner.network.parameters()),
        "steps": steps,
        "images": steps * learner.batch,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "settings": {"batch": learner.batch, "lr": learner.lr, "warmup": peer.warmup, "schedule": peer.schedule},
        "precision": "bf16" if bf16 else "fp32",
        "weights": ["ema"],
    }
    write_json(folder / "trained.json", trained)


def _keep(learner: Learner, path: Path, step: int, seconds: float, cpu: float) -> None:
    """All that `_resume` needs."""
    state = {
        "step": step,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "network": learner.network.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "average": learner.average_state(),
        "random": torch.get_rng_state(),
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _resume(learner: Learner, path: Path) -> tuple[int, float, float]:
    """Steps, seconds and seconds of the processor so far."""
    if not path.is_file():
        return 0, 0.0, 0.0
    state = torch.load(path, weights_only=True)
    learner.network.load_state_dict(state["network"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.load_average(state["average"])
    torch.set_rng_state(state["random"])
    return state["step"], state["seconds"], state["cpu_seconds"]


def sample_peer(
    name: str,
    weights: Path,
    folder: Path,
    shape: tuple[int, int, int],
    *,
    num: int,
    steps: int,
    batch: int,
    threads: int,
) -> None:
    """Images of a peer, a .npy for each batch in `folder`; those that are there are not made again."""
    torch.set_num_threads(threads)
    learner = make_learner(peer(name), shape, steps)
    learner.network.load_state_dict(load_file(weights))
    learner.network.eval()
    for number, size in missing_batches(folder, num, batch):
        torch.manual_seed(number)
        with torch.no_grad():
            unit = learner.sample(size)
        save_batch(folder, number, (unit.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, 3).numpy())


def missing_batches(folder: Path, num: int, batch: int) -> Iterator[tuple[int, int]]:
    """Number and size of the batches of `num` images that are not yet in the folder."""
    for number in range(math.ceil(num / batch)):
        if not _batch_path(folder, number).is_file():
            yield number, min(batch, num - number * batch)


def save_batch(folder: Path, number: int, images: np.ndarray) -> None:
    """(B, H, W, C) uint8."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(_batch_path(folder, number)) as temporary, temporary.open("wb") as file:
        np.save(file, images)


def read_batches(folder: Path, num: int, batch: int) -> np.ndarray:
    """All of them: (num, H, W, C) uint8."""
    return np.concatenate([np.load(_batch_path(folder, number)) for number in range(math.ceil(num / batch))])


def _batch_path(folder: Path, number: int) -> Path:
    return folder / f"{number:04}.npy"
