"""Membership attacks: from what a model says of an image, how well it seems to know it.

Each attack asks for the noise in an image, one way or another, and takes the magnitude of an error or of an estimate;
its score is the negative logarithm of that magnitude, so that it is higher for what looks like a member. Written from
the formulas of the papers; their timesteps are those of DDPM's linear schedule, and stand here as sigma:

    loss    |eps_theta(x_t) - eps|^2, the same noise for every image       Matsumoto et al. 2023; Carlini et al. 2023
    sima    |eps_theta(x_0, t)|^4 of the clean image                       Rao et al. 2025, arXiv 2509.25003
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

from maskdm.auditing.statistics import Float64
from maskdm.auditing.target import MIN_SIGMA, ModelTarget, TargetModel

SIGMAS = (0.09, 0.17, 0.32, 0.46)
"""The levels of noise at which models are asked, as sigma of a variance-preserving process."""
SECMI_STEPS, SECMI_EVERY = 100, 10
NORMAL_MEAN = math.sqrt(2 / math.pi)
"""E|N(0, 1)|."""
PRIMARY = ("loss 0.09", "loss 0.17", "pia 0.17", "sima 0.09", "sima 0.17")
"""The primary statistic, maskdm-audit-v1: the mean of the difficulty-calibrated scores of these. Fixed in advance."""
STATISTIC = "maskdm-audit-v1"
"""The name of the primary statistic; it changes whenever `PRIMARY` or its calibration does."""


@dataclass(frozen=True)
class AttackInput:
    """A model, and images that it is asked about.

    Attributes:
        target: the model.
        x_0: the images, (B, C, H, W) in [-1, 1], where the model computes.
        label: their classes (B,), or None.
    """

    target: TargetModel
    x_0: Tensor
    label: Tensor | None

    def eps(self, x: Tensor, sigma: float) -> Tensor:
        """The noise that the model finds in x (B, C, H, W), given the labels of these images."""
        return self.target.eps(x, sigma, self.label)

    @cached_property
    def clean_eps(self) -> Tensor:
        """The noise found in the clean images at the least sigma: where several attacks begin, computed once."""
        return self.eps(self.x_0, self.target.nearest_sigma(MIN_SIGMA))


@dataclass(frozen=True)
class Attack:
    """One number for every image.

    Attributes:
        name: such as "sima 0.17", the number being sigma.
        calls: calls of the network for each image, when the attack runs alone.
        magnitude: what the logarithm is taken of, positive: a batch -> (B,).
        uses_clean_eps: whether one of the calls is `AttackInput.clean_eps`, which attacks on the same batch share.
    """

    name: str
    calls: int
    magnitude: Callable[[AttackInput], Tensor]
    uses_clean_eps: bool = False

    def __call__(self, batch: AttackInput) -> Tensor:
        """Scores of the images of a batch, higher for what looks like a member: (B,) float64."""
        return -self.magnitude(batch).double().clamp_min(1e-30).log()


def calls_per_image(attacks: Sequence[Attack]) -> int:
    """Calls of the network for each image when these attacks run together."""
    return sum(attack.calls for attack in attacks) - max(sum(attack.uses_clean_eps for attack in attacks) - 1, 0)


# --- pieces ----------------------------------------------------------------------------------------------------------


def vp_mixture(x_0: Tensor, eps: Tensor, sigma: float) -> Tensor:
    """sqrt(1 - sigma^2) x_0 + sigma eps, all (B, C, H, W)."""
    return math.sqrt(1 - sigma**2) * x_0 + sigma * eps


def shared_noise(shape: torch.Size, number: int, device: torch.device) -> Tensor:
    """The noise number `number`, one for all images: (1, C, H, W), drawn on the CPU."""
    generator = torch.Generator().manual_seed(1_000_003 + number)
    return torch.randn((1, *shape[1:]), generator=generator).to(device)


def normalized_eps(eps: Tensor) -> Tensor:
    """eps (B, C, H, W), each scaled to the mean absolute value of standard normal numbers."""
    return eps / eps.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12) * NORMAL_MEAN


def linear_sigmas() -> Float64:
    """sigma of DDPM's linear schedule at t = 0 .. 999 (Ho et al. 2020): (1000,)."""
    found: Float64 = np.sqrt(1 - np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    return found


def deterministic_step(batch: AttackInput, x: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """One DDIM step without noise, of x (B, C, H, W) from one sigma to another (Song et al. 2021, eq. 12)."""
    eps = batch.eps(x, sigma)
    x_0 = (x - sigma * eps) / math.sqrt(1 - sigma**2)
    return vp_mixture(x_0, eps, next_sigma)


# --- attacks ---------------------------------------------------------------------------------------------------------


def loss_attack(sigma: float, draws: int) -> Attack:
    """The denoising error at one sigma, over `draws` noises."""

    def magnitude(batch: AttackInput) -> Tensor:
        x_0, level = batch.x_0, batch.target.nearest_sigma(sigma)
        total = torch.zeros(len(x_0), device=x_0.device)
        for number in range(draws):
            eps = shared_noise(x_0.shape, number, x_0.device).expand_as(x_0)
            total += ((batch.eps(vp_mixture(x_0, eps, level), level) - eps) ** 2).mean(dim=(1, 2, 3))
        return total / draws

    return Attack(f"loss {sigma:g}", draws, magnitude)


def sima_attack(sigma: float) -> Attack:
    """The size of the noise that is found in the clean image."""

    def magnitude(batch: AttackInput) -> Tensor:
        return (batch.eps(batch.x_0, batch.target.nearest_sigma(sigma)).abs() ** 4).mean(dim=(1, 2, 3))

    return Attack(f"sima {sigma:g}", 1, magnitude)


def pia_attacks(sigmas: Sequence[float], *, normalized: bool = False) -> list[Attack]:
    """PIA, or with `normalized` PIAN: one attack for every sigma."""

    def magnitude_at(sigma: float) -> Callable[[AttackInput], Tensor]:
        def magnitude(batch: AttackInput) -> Tensor:
            first = normalized_eps(batch.clean_eps) if normalized else batch.clean_eps
            level = batch.target.nearest_sigma(sigma)
            return ((batch.eps(vp_mixture(batch.x_0, first, level), level) - first).abs() ** 4).mean(dim=(1, 2, 3))

        return magnitude

    name = "pian" if normalized else "pia"
    return [Attack(f"{name} {sigma:g}", 2, magnitude_at(sigma), uses_clean_eps=True) for sigma in sigmas]


def secmi_attack(steps: int = SECMI_STEPS, every: int = SECMI_EVERY) -> Attack:
    """The error of one deterministic step on and back, after a chain of them up to t = `steps`."""
    sigmas = linear_sigmas()[: steps + every + 1 : every].tolist()

    def magnitude(batch: AttackInput) -> Tensor:
        levels = [batch.target.nearest_sigma(sigma) for sigma in sigmas[1:]]
        x = vp_mixture(batch.x_0, batch.clean_eps, levels[0])
        for sigma, next_sigma in pairwise(levels[:-1]):
            x = deterministic_step(batch, x, sigma, next_sigma)
        on = deterministic_step(batch, x, levels[-2], levels[-1])
        back = deterministic_step(batch, on, levels[-1], levels[-2])
        return ((back - x) ** 2).mean(dim=(1, 2, 3))

    return Attack(f"secmi {sigmas[-2]:.2g}", steps // every + 2, magnitude, uses_clean_eps=True)


def masked_attack(sigma: float, draws: int, ratio: float = 0.75) -> Attack:
    """The denoising error where the model sees random patches only, over `draws` masks and noises (networks only).

    After masked language models, which give an attacker one more question with every mask (arXiv 2601.20125).
    """

    def magnitude(batch: AttackInput) -> Tensor:
        target, x_0, label = batch.target, batch.x_0, batch.label
        assert isinstance(target, ModelTarget), "closed forms see whole images"
        level, total = target.nearest_sigma(sigma), torch.zeros(len(x_0), device=x_0.device)
        for number in range(draws):
            eps = shared_noise(x_0.shape, number, x_0.device).expand_as(x_0)
            total += target.masked_error(x_0, eps, level, ratio, number, label)
        return total / draws

    return Attack(f"masked {sigma:g}", draws, magnitude)


def gradient_attack(sigmas: Sequence[float] = SIGMAS[:3]) -> Attack:
    """The norm of the loss's gradient, its logarithm averaged over all tensors (networks only; white-box).

    After Pang et al. 2025, arXiv 2308.06405, without their shadow models.
    """

    def magnitude(batch: AttackInput) -> Tensor:
        target, x_0, label = batch.target, batch.x_0, batch.label
        assert isinstance(target, ModelTarget), "closed forms have no weights"
        levels = [target.nearest_sigma(sigma) for sigma in sigmas]
        noises = [shared_noise(x_0.shape, number, x_0.device) for number in range(len(sigmas))]
        found = []
        for i in range(len(x_0)):
            own = None if label is None else label[i : i + 1]
            found.append(target.gradient_norm(x_0[i : i + 1], noises, levels, own))
        return torch.stack(found).exp()

    return Attack("gradient", 3 * len(sigmas), magnitude)


def unconditional_attack(attack: Attack) -> Attack:
    """The same attack on the unconditional estimate of a model with classes."""
    return Attack(f"{attack.name}, no class", attack.calls, lambda batch: attack.magnitude(replace(batch, label=None)))


# --- sets of attacks -------------------------------------------------------------------------------------------------


def quick_attacks(draws: int = 2) -> list[Attack]:
    """The attacks of the quick profile: with two draws 9 calls for each image."""
    return [
        *(sima_attack(sigma) for sigma in SIGMAS[:3]),
        *pia_attacks(SIGMAS[1:2]),
        *(loss_attack(sigma, draws) for sigma in SIGMAS[:2]),
    ]


def standard_attacks(draws: int = 4) -> list[Attack]:
    """The attacks of the standard profile: with four draws 36 calls for each image."""
    return [
        *(sima_attack(sigma) for sigma in SIGMAS),
        *pia_attacks(SIGMAS[1:]),
        *pia_attacks(SIGMAS[2:3], normalized=True),
        *(loss_attack(sigma, draws) for sigma in SIGMAS),
        secmi_attack(),
    ]


def primary_attacks(draws: int) -> list[Attack]:
    """The attacks that the primary statistic is made of."""
    return [attack for attack in standard_attacks(draws) if attack.name in PRIMARY]


def full_attacks(draws: int = 4, *, has_classes: bool = False, has_patches: bool = True) -> list[Attack]:
    """The attacks of the full profile: the standard ones, and what costs more.

    Args:
        draws: noises of every loss.
        has_classes: whether the model has classes, so that its unconditional estimate is attacked too.
        has_patches: whether its images have several patches, so that they can be masked.
    """
    without = [unconditional_attack(attack) for attack in primary_attacks(draws)] if has_classes else []
    masked = [masked_attack(SIGMAS[1], 32)] if has_patches else []
    return [*standard_attacks(draws), *without, *masked, gradient_attack()]


def attack_scores(
    target: TargetModel,
    attacks: Sequence[Attack],
    images: Tensor,
    labels: Tensor | None,
    *,
    batch_size: int,
    callback: Callable[[int], object] = lambda images: None,
) -> dict[str, Float64]:
    """All attacks on all images.

    Args:
        target: the model.
        attacks: with names that differ.
        images: (N, C, H, W) in [-1, 1].
        labels: (N,) int64, or None.
        batch_size: images at once.
        callback: called with the number of images that are done, after every batch.

    Returns:
        The scores of every attack by its name, (N,) each.
    """
    found: dict[str, list[Tensor]] = {attack.name: [] for attack in attacks}
    for part in _slices(len(images), batch_size):
        x_0 = images[part].to(target.device)
        label = None if labels is None else labels[part].to(target.device)
        batch = AttackInput(target, x_0, label)
        for attack in attacks:
            found[attack.name].append(attack(batch).cpu())
        callback(len(x_0))
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
