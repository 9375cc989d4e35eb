"""Attacks: from what a model says of a picture, how well it seems to know it.

Each asks for the noise in a picture, in one way or another, and takes a size of the answer's error or of the answer; a
score is the negative logarithm of that size, so that it is higher for what looks like a member. Written from the
formulas of the papers; timesteps are those of the linear schedule of DDPM as the sigma that they stand for:

    loss    |eps_theta(x_t) - eps|^2, the same noise for every picture     Matsumoto et al. 2023; Carlini et al. 2023
    sima    |eps_theta(x_0, t)|^4 of the clean picture                     Rao et al. 2025, arXiv 2509.25003
    pia     |eps_theta(alpha x_0 + sigma e, t) - e|^4, e = eps_theta(x_0)  Kong et al. 2024, arXiv 2305.18355
    pian    the same with e scaled to the mean size of a normal number     ibid.
    secmi   |x_t - (one step on and back)|^2 along the deterministic path  Duan et al. 2023, arXiv 2302.01316
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from maskdm.audit.statistics import Float64
from maskdm.audit.target import LEAST, Eye, ModelEye

SIGMAS = (0.09, 0.17, 0.32, 0.46)
"""The grid of noise, as sigma of a variance-preserving process."""
SECMI_STEPS, SECMI_EVERY = 100, 10
NORMAL_MEAN = math.sqrt(2 / math.pi)
"""E|N(0, 1)|."""


@dataclass(frozen=True)
class Batch:
    """A model, and pictures that it is asked about.

    Attributes:
        eye: the model.
        x_0: the pictures, (B, C, H, W) in [-1, 1], where the model computes.
        label: their classes (B,), or None.
    """

    eye: Eye
    x_0: Tensor
    label: Tensor | None

    def eps(self, x: Tensor, sigma: float) -> Tensor:
        """The noise in x, with the labels of these pictures."""
        return self.eye.eps(x, sigma, self.label)

    @cached_property
    def first(self) -> Tensor:
        """The noise in the clean pictures at the least level: where several attacks begin, asked once."""
        return self.eps(self.x_0, self.eye.level(LEAST))


@dataclass(frozen=True)
class Attack:
    """One number for every picture.

    Attributes:
        name: such as "sima 0.17".
        calls: of the network, for each picture, when it is alone.
        size: what is taken the logarithm of: a batch -> (B,).
        first: whether one of the calls is `Batch.first`, which others may have paid for.
    """

    name: str
    calls: int
    size: Callable[[Batch], Tensor]
    first: bool = False

    def __call__(self, batch: Batch) -> Tensor:
        """Scores: (B,)."""
        return -self.size(batch).double().clamp_min(1e-30).log()


def calls(attacks: Sequence[Attack]) -> int:
    """Of the network, for each picture, over all of them."""
    return sum(attack.calls for attack in attacks) - max(sum(attack.first for attack in attacks) - 1, 0)


def mix(x_0: Tensor, eps: Tensor, sigma: float) -> Tensor:
    """sqrt(1 - sigma^2) x_0 + sigma eps."""
    return math.sqrt(1 - sigma**2) * x_0 + sigma * eps


def shared_noise(shape: torch.Size, number: int, device: torch.device) -> Tensor:
    """The k-th noise, one for all pictures: (1, C, H, W), drawn on the CPU."""
    generator = torch.Generator().manual_seed(1_000_003 + number)
    return torch.randn((1, *shape[1:]), generator=generator).to(device)


def loss(sigma: float, draws: int) -> Attack:
    """The denoising error at one level, over `draws` noises."""

    def size(batch: Batch) -> Tensor:
        x_0, level = batch.x_0, batch.eye.level(sigma)
        total = torch.zeros(len(x_0), device=x_0.device)
        for number in range(draws):
            eps = shared_noise(x_0.shape, number, x_0.device).expand_as(x_0)
            total += ((batch.eps(mix(x_0, eps, level), level) - eps) ** 2).mean(dim=(1, 2, 3))
        return total / draws

    return Attack(f"loss {sigma:g}", draws, size)


def sima(sigma: float) -> Attack:
    """The size of the noise that is found in the clean picture."""

    def size(batch: Batch) -> Tensor:
        return (batch.eps(batch.x_0, batch.eye.level(sigma)).abs() ** 4).mean(dim=(1, 2, 3))

    return Attack(f"sima {sigma:g}", 1, size)


def pia(sigmas: Sequence[float], *, normalised: bool = False) -> list[Attack]:
    """One attack for every level."""

    def size_at(sigma: float) -> Callable[[Batch], Tensor]:
        def size(batch: Batch) -> Tensor:
            first = normal_size(batch.first) if normalised else batch.first
            level = batch.eye.level(sigma)
            return ((batch.eps(mix(batch.x_0, first, level), level) - first).abs() ** 4).mean(dim=(1, 2, 3))

        return size

    name = "pian" if normalised else "pia"
    return [Attack(f"{name} {sigma:g}", 2, size_at(sigma), first=True) for sigma in sigmas]


def normal_size(eps: Tensor) -> Tensor:
    """Scaled to the mean absolute value of standard normal numbers, each picture by itself."""
    return eps / eps.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12) * NORMAL_MEAN


def linear_sigmas() -> Float64:
    """sigma of DDPM's linear schedule at t = 0 .. 999 (Ho et al. 2020)."""
    found: Float64 = np.sqrt(1 - np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    return found


def secmi(steps: int = SECMI_STEPS, every: int = SECMI_EVERY) -> Attack:
    """The error of one deterministic step on and back, after a chain of them up to t = `steps`."""
    sigmas = linear_sigmas()[: steps + every + 1 : every].tolist()

    def size(batch: Batch) -> Tensor:
        levels = [batch.eye.level(sigma) for sigma in sigmas[1:]]
        x = mix(batch.x_0, batch.first, levels[0])
        for here, there in pairwise(levels[:-1]):
            x = ddim(batch, x, here, there)
        on = ddim(batch, x, levels[-2], levels[-1])
        back = ddim(batch, on, levels[-1], levels[-2])
        return ((back - x) ** 2).mean(dim=(1, 2, 3))

    return Attack(f"secmi {sigmas[-2]:.2g}", steps // every + 2, size, first=True)


def ddim(batch: Batch, x: Tensor, here: float, there: float) -> Tensor:
    """One deterministic step between two levels of noise."""
    eps = batch.eps(x, here)
    x_0 = (x - here * eps) / math.sqrt(1 - here**2)
    return mix(x_0, eps, there)


def masked(sigma: float, draws: int, ratio: float = 0.75) -> Attack:
    """The denoising error where the model is shown random patches only, over `draws` masks and noises (for models).

    After masked language models, which give an attacker one more question with every mask (arXiv 2601.20125).
    """

    def size(batch: Batch) -> Tensor:
        eye, x_0, label = batch.eye, batch.x_0, batch.label
        assert isinstance(eye, ModelEye), "closed forms see whole pictures"
        level, total = eye.level(sigma), torch.zeros(len(x_0), device=x_0.device)
        for number in range(draws):
            eps = shared_noise(x_0.shape, number, x_0.device).expand_as(x_0)
            total += eye.masked_error(x_0, eps, level, ratio, number, label)
        return total / draws

    return Attack(f"masked {sigma:g}", draws, size)


def gradients(sigmas: Sequence[float] = SIGMAS[:3]) -> Attack:
    """The norm of the loss's gradient, the logarithms of all tensors' norms averaged (for models; white-box).

    After Pang et al. 2025, arXiv 2308.06405, without their shadow models.
    """

    def size(batch: Batch) -> Tensor:
        eye, x_0, label = batch.eye, batch.x_0, batch.label
        assert isinstance(eye, ModelEye), "closed forms have no weights"
        levels = [eye.level(sigma) for sigma in sigmas]
        noises = [shared_noise(x_0.shape, number, x_0.device) for number in range(len(sigmas))]
        found = []
        for i in range(len(x_0)):
            own = None if label is None else label[i : i + 1]
            found.append(eye.gradient_norm(x_0[i : i + 1], noises, levels, own))
        return torch.stack(found).exp()

    return Attack("gradient", 3 * len(sigmas), size)


# --- sets of attacks -------------------------------------------------------------------------------------------------

PRIMARY = ("loss 0.09", "loss 0.17", "pia 0.17", "sima 0.09", "sima 0.17")
"""The primary statistic, maskdm-audit-v1: the mean of the difficulty-calibrated scores of these. Fixed in advance."""
VERSION = "maskdm-audit-v1"


def quick(draws: int = 2) -> list[Attack]:
    """Nine calls for each picture."""
    return [
        *(sima(sigma) for sigma in SIGMAS[:3]),
        *pia(SIGMAS[1:2]),
        *(loss(sigma, draws) for sigma in SIGMAS[:2]),
    ]


def standard(draws: int = 4) -> list[Attack]:
    """The default: with four draws 36 calls for each picture."""
    return [
        *(sima(sigma) for sigma in SIGMAS),
        *pia(SIGMAS[1:]),
        *pia(SIGMAS[2:3], normalised=True),
        *(loss(sigma, draws) for sigma in SIGMAS),
        secmi(),
    ]


def primary(draws: int) -> list[Attack]:
    """Those that the primary statistic is made of."""
    return [attack for attack in standard(draws) if attack.name in PRIMARY]


def unlabelled(attack: Attack) -> Attack:
    """The same on the unconditional answer of a model with classes."""
    return Attack(f"{attack.name}, no class", attack.calls, lambda batch: attack.size(replace(batch, label=None)))


def full(draws: int = 4, *, classes: bool = False, by_masks: bool = True) -> list[Attack]:
    """The default, and what costs more."""
    without = [unlabelled(attack) for attack in primary(draws)] if classes else []
    return [*standard(draws), *without, *([masked(SIGMAS[1], 32)] if by_masks else []), gradients()]


def scores(
    eye: Eye,
    attacks: Sequence[Attack],
    images: Sequence[Tensor] | Tensor,
    labels: Tensor | None,
    *,
    batch_size: int,
    report: Callable[[int], object] = lambda images: None,
) -> dict[str, Float64]:
    """All attacks on pictures (N, C, H, W) in [-1, 1]: name -> (N,) float64."""
    found: dict[str, list[Tensor]] = {attack.name: [] for attack in attacks}
    for part in _parts(len(images), batch_size):
        x_0 = torch.as_tensor(images[part]).to(eye.device)
        label = None if labels is None else labels[part].to(eye.device)
        batch = Batch(eye, x_0, label)
        for attack in attacks:
            found[attack.name].append(attack(batch).cpu())
        report(len(x_0))
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def _parts(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
