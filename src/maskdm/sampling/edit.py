"""Changing pictures by the denoiser that makes them: from a picture, around a hole, between two.

Nothing here knows more than a sampler and a process: an edit chooses where sampling starts and what it is held to.
Strength is a noise share (0 leaves the picture as it is, 1 forgets it), the same for every process. At 1 the picture is
left out altogether: the last level of many a process still holds a little of it, enough to tell how bright it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from maskdm.diffusion.patches import to_unit
from maskdm.diffusion.process import share_of
from maskdm.errors import InputError
from maskdm.sampling import samplers
from maskdm.sampling.guidance import Estimate
from maskdm.sampling.sample import Plan, SeededNoise, check_counts

Count = Callable[[int], None]
"""Called with the number of (picture x step) units done."""


def silent(steps: int) -> None:
    """Reports nothing."""


@torch.no_grad()
def vary(
    how: Plan, images: Tensor, strength: float, num: int, *, batch_size: int = 64, report: Count = silent
) -> Tensor:
    """Variations: noise is added up to a strength, and taken away again (SDEdit, Meng et al. 2021, arXiv 2108.01073).

    Args:
        how: made by `maskdm.sampling.sample.plan`.
        images: (M, C, H, W) in [-1, 1]; picture i starts from image i, and from the first when they run out.
        strength: noise share to start from, more than 0 and at most 1, which is sampling anew.
        num: how many pictures.
        batch_size: how many at once.
        report: for a progress bar.

    Returns:
        (num, C, H, W) float32 in [0, 1] on the CPU.
    """
    check_counts(num, batch_size)
    times = below(how, strength)
    at = samplers.level(how.denoiser.process, times[0])
    how = _taking(how, len(times) - 1)

    def one(batch: range, noise: SeededNoise, estimate: Estimate) -> Tensor:
        x_t = at.sigma * noise()
        if strength < 1:
            x_t = x_t + at.alpha * _turn(images, batch, how)
        return how.finish(x_t, times, noise, estimate, partial(report, len(batch)))

    return _in_batches(how, num, batch_size, one)


@torch.no_grad()
def inpaint(
    how: Plan,
    image: Tensor,
    hole: Tensor,
    num: int,
    *,
    strength: float = 1.0,
    resample: int = 1,
    batch_size: int = 64,
    report: Count = silent,
) -> Tensor:
    """Fills a hole: what is known is put back at every noise level (RePaint, Lugmayr et al. 2022, arXiv 2201.09865).

    Args:
        how: see `vary`; samplers with a memory take each step for itself.
        image: (C, H, W) in [-1, 1].
        hole: (H, W), True where pixels are to be made.
        num: how many pictures.
        strength: noise share to start from; 1 forgets what was in the hole.
        resample: how often every step is taken, with noise added again in between: more of it joins the parts better.
        batch_size: how many at once.
        report: for a progress bar.

    Returns:
        (num, C, H, W) float32 in [0, 1] on the CPU; outside the hole the image itself.
    """
    check_counts(num, batch_size)
    if resample < 1:
        raise InputError(f"resample: got {resample}, wanted at least 1; 5 to 10 joins the parts well")
    times, process, device = below(how, strength), how.denoiser.process, how.denoiser.device
    known, hole = image.to(device), hole.to(device)
    begun = known if strength < 1 else torch.where(hole, 0.0, known)
    how = _taking(how, 1)

    def one(batch: range, noise: SeededNoise, estimate: Estimate) -> Tensor:
        start = samplers.level(process, times[0])
        x_t = start.alpha * begun + start.sigma * noise()
        for t, s in pairwise(times):
            at = samplers.level(process, s)
            for again in reversed(range(resample)):
                x_s = how.run(estimate, process, x_t, (t, s), noise=noise, amount=how.amount, report=lambda: None)
                x_s = torch.where(hole, x_s, at.alpha * known + (at.sigma * noise() if at.sigma else 0.0))
                if again:
                    x_t = samplers.noised(process, x_s, s, t, noise())
                report(len(batch))
            x_t = x_s
        return x_t

    return _in_batches(how, num, batch_size, one)


@torch.no_grad()
def interpolate(
    how: Plan, ends: Tensor, strength: float, num: int, *, batch_size: int = 64, report: Count = silent
) -> Tensor:
    """Pictures on the way from one to another: both are followed back into noise, mixed there, and made anew.

    The way back is the sampler's own ODE, taken from the clean image upwards (Song et al. 2021, arXiv 2010.02502,
    section 5.3), so that the ends come out as they went in but for the error of the steps. Mixed by angle, as noise.

    Args:
        how: see `vary`; its sampler must be deterministic, and its label one for the whole way.
        ends: (2, C, H, W) in [-1, 1].
        strength: noise share up to which both are followed.
        num: how many pictures, the ends among them; at least 2.
        batch_size: how many at once.
        report: for a progress bar; the way back counts 2 x steps.

    Returns:
        (num, C, H, W) float32 in [0, 1] on the CPU.

    Raises:
        InputError: a sampler that adds noise, several labels, or fewer than two pictures.
    """
    check_counts(num, batch_size)
    if num < 2:
        raise InputError(f"num: got {num}, wanted at least 2 for a way between two pictures")
    if how.amount:
        raise InputError("sampler: adds fresh noise, but a way back needs none; choose ddim, heun or dpm++ without eta")
    if len(set(how.labels)) > 1:
        raise InputError("labels: got several, wanted one for the whole way; none is the unconditional answer")
    times = below(how, strength)
    process, device = how.denoiser.process, how.denoiser.device
    latents = _followed_back(how, ends.to(device), times, partial(report, 2))
    amounts = torch.linspace(0, 1, num, device=device)
    x = torch.stack([slerp(latents[0], latents[1], float(amount)) for amount in amounts])

    def one(batch: range, noise: SeededNoise, estimate: Estimate) -> Tensor:
        part = x[batch.start : batch.stop]
        return how.run(estimate, process, part, times, noise=noise, amount=0.0, report=partial(report, len(batch)))

    return _in_batches(how, num, batch_size, one)


def _followed_back(how: Plan, x_0: Tensor, times: Sequence[float], report: samplers.Report) -> Tensor:
    """Clean images up to times[0] along the ODE, by the sampler's grid walked the other way."""
    process = how.denoiser.process
    (_, _, estimate), *_ = how.batches(range(len(x_0)), len(x_0))
    up = list(reversed(times))
    # Where there is no noise at all nothing says in which direction it lies: the first step is taken from the least
    # noise of the grid, at which the image is as good as clean.
    x = samplers.level(process, up[1]).alpha * x_0
    for s, t in pairwise(up[1:]):
        image, eps = estimate(x, s)
        at, to = samplers.level(process, s), samplers.level(process, t)
        ahead = to.alpha * image + to.sigma * eps
        # Heun, whatever the way down is: each end is walked once, and should be met again.
        image_t, eps_t = estimate(ahead, t)
        n_s, n_t = (float(process.frame(*torch.tensor([c.alpha, c.sigma]))) for c in (at, to))
        x = n_t * (
            x / n_s
            + (to.alpha / n_t - at.alpha / n_s) * (image + image_t) / 2
            + (to.sigma / n_t - at.sigma / n_s) * (eps + eps_t) / 2
        )
        report()
    return x


def slerp(a: Tensor, b: Tensor, amount: float) -> Tensor:
    """Between two tensors of one shape by angle, so that what is as long as noise stays so."""
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    angle = torch.acos(cosine)
    if float(torch.sin(angle)) < 1e-4:  # alike, or opposite, which leaves no angle to follow
        return torch.lerp(a, b, amount)
    return (torch.sin((1 - amount) * angle) * a + torch.sin(amount * angle) * b) / torch.sin(angle)


def below(how: Plan, strength: float) -> tuple[float, ...]:
    """The times of the grid with a noise share of at most `strength`.

    Raises:
        InputError: a strength out of range, or so small that the grid has no time below it.
    """
    if not 0 < strength <= 1:
        raise InputError(f"strength: got {strength:g}, wanted more than 0 (as it is) and at most 1 (anew)")
    alpha, sigma = how.denoiser.process.alpha_sigma(torch.tensor(how.times, dtype=torch.float64))
    times = tuple(t for t, share in zip(how.times, share_of(alpha, sigma).tolist(), strict=True) if share <= strength)
    if len(times) < 2:
        raise InputError(f"strength: got {strength:g}, less than the first of the steps; take more, or more steps")
    return times


def _taking(how: Plan, steps: int) -> Plan:
    """For so many steps at a time: samplers deal churn out over those they are given, not over all of the grid."""
    if not any(sampler.run is how.run and sampler.amount == "churn" for sampler in samplers.SAMPLERS.values()):
        return how
    return replace(how, amount=how.amount * steps / (len(how.times) - 1))


def _turn(images: Tensor, batch: range, how: Plan) -> Tensor:
    return images[[i % len(images) for i in batch]].to(how.denoiser.device)


def _in_batches(how: Plan, num: int, batch_size: int, one: Callable[[range, SeededNoise, Estimate], Tensor]) -> Tensor:
    return torch.cat([to_unit(one(*parts)).float().cpu() for parts in how.batches(range(num), batch_size)])
