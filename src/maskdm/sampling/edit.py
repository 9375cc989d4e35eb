"""Editing images with the denoiser that samples them: variations of one, a part regenerated, interpolation of two.

Nothing here knows more than a sampler and a process: an edit chooses where sampling starts and what it is held to.
Strength is a noise level (0 leaves the image as it is, 1 forgets it), the same for every process. At 1 the image is
left out altogether: the last timestep of many a process still holds a little of it, enough to tell how bright it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from maskdm.diffusion.process import noise_level
from maskdm.errors import ArgumentError
from maskdm.sampling.sample import (
    Callback,
    Maker,
    SamplingConfig,
    check_counts,
    check_images_fit,
    make_images,
    no_callback,
)
from maskdm.sampling.samplers import Context, Sampler, heun_step, integrate, renoise, time_of


def img2img(
    config: SamplingConfig,
    images: Tensor,
    strength: float,
    num: int,
    *,
    batch_size: int = 64,
    callback: Callback = no_callback,
) -> Tensor:
    """Variations: noise is added up to a strength, and taken away again (SDEdit, Meng et al. 2021, arXiv 2108.01073).

    Args:
        config: made by `maskdm.sampling.sample.sampling_config`.
        images: (M, C, H, W) in [-1, 1]; image i starts from images[i], and from the first when they run out.
        strength: noise level to start from, more than 0 and at most 1, which is sampling without them.
        num: how many.
        batch_size: how many at once.
        callback: called with the number of (image x step) units done.

    Returns:
        (num, C, H, W) float32 in [0, 1] on the CPU.

    Raises:
        ArgumentError: numbers out of range.
    """
    check_counts(num, batch_size)
    check_images_fit(config.denoiser, num)
    return make_images(config, from_images(config, images, strength, callback), range(num), batch_size)


def from_images(config: SamplingConfig, images: Tensor, strength: float, callback: Callback = no_callback) -> Maker:
    """How `img2img` makes a batch; arguments and errors are its own."""
    times = truncate(config, strength)
    start = time_of(config.denoiser.process, times[0])

    def make(batch: range, context: Context) -> Tensor:
        x_t = start.sigma * context.noise()
        if strength < 1:
            x_t = x_t + start.alpha * images[[i % len(images) for i in batch]].to(config.denoiser.device)
        return config.integrate(context, x_t, times, lambda: callback(len(batch)))

    return make


def inpaint(
    config: SamplingConfig,
    image: Tensor,
    hole: Tensor,
    num: int,
    *,
    strength: float = 1.0,
    resample: int = 1,
    batch_size: int = 64,
    callback: Callback = no_callback,
) -> Tensor:
    """Regenerates a part: the rest is put back at every noise level (RePaint, Lugmayr et al. 2022, arXiv 2201.09865).

    Args:
        config: see `img2img`; samplers of several steps start afresh in each.
        image: (C, H, W) in [-1, 1].
        hole: (H, W), True where pixels are to be regenerated.
        num: how many images.
        strength: noise level to start from; 1 forgets what was in the hole.
        resample: how often every step is taken, with noise added again in between: more of it joins the parts better.
        batch_size: how many at once.
        callback: called with the number of (image x step) units done.

    Returns:
        (num, C, H, W) float32 in [0, 1] on the CPU; outside the hole the image itself.

    Raises:
        ArgumentError: numbers out of range.
    """
    check_counts(num, batch_size)
    check_images_fit(config.denoiser, num)
    make = around_a_hole(config, image, hole, strength=strength, resample=resample, callback=callback)
    return make_images(config, make, range(num), batch_size)


def around_a_hole(
    config: SamplingConfig,
    image: Tensor,
    hole: Tensor,
    *,
    strength: float = 1.0,
    resample: int = 1,
    callback: Callback = no_callback,
) -> Maker:
    """How `inpaint` makes a batch; arguments and errors are its own."""
    if resample < 1:
        raise ArgumentError("resample", got=resample, wanted="at least 1", remedy="5 to 10 joins the parts well")
    process, device = config.denoiser.process, config.denoiser.device
    times = [time_of(process, time) for time in truncate(config, strength)]
    known, hole = image.to(device), hole.to(device)
    begun = known if strength < 1 else torch.where(hole, 0.0, known)

    def make(batch: range, context: Context) -> Tensor:
        x_t = times[0].alpha * begun + times[0].sigma * context.noise()
        for t, s in pairwise(times):
            for repeats_left in reversed(range(resample)):
                x_s = config.integrate(context, x_t, (t.time, s.time), lambda: None)
                x_s = torch.where(hole, x_s, s.alpha * known + (s.sigma * context.noise() if s.sigma else 0.0))
                if repeats_left:
                    x_t = renoise(x_s, s, t, context.noise())
                callback(len(batch))
            x_t = x_s
        return x_t

    return make


def interpolate(
    config: SamplingConfig,
    ends: Tensor,
    strength: float,
    num: int,
    *,
    batch_size: int = 64,
    callback: Callback = no_callback,
) -> Tensor:
    """From one image to another: both are inverted into noise, mixed there, and sampled from.

    The inversion is the sampler's own ODE, taken from the clean image upwards (Song et al. 2021, arXiv 2010.02502,
    section 5.3), so that the ends come out as they went in but for the error of the steps. Mixed by angle, as noise.

    Args:
        config: see `img2img`; its sampler must be deterministic, and its label one for all images.
        ends: (2, C, H, W) in [-1, 1].
        strength: noise level up to which both are inverted.
        num: how many images, the ends among them; at least 2.
        batch_size: how many at once.
        callback: called with the number of (image x step) units done; inversion counts 2 x (steps - 1).

    Returns:
        (num, C, H, W) float32 in [0, 1] on the CPU.

    Raises:
        ArgumentError: a sampler that adds noise, several labels, or fewer than two images.
    """
    check_counts(num, batch_size)
    check_images_fit(config.denoiser, num)
    return make_images(config, between(config, ends, strength, num, callback), range(num), batch_size)


def between(config: SamplingConfig, ends: Tensor, strength: float, num: int, callback: Callback = no_callback) -> Maker:
    """How `interpolate` makes a batch; arguments and errors are its own."""
    if num < 2:
        raise ArgumentError("num", got=num, wanted="at least 2 to interpolate between two images")
    if config.sampler.stochastic:
        raise ArgumentError(
            "sampler",
            "adds fresh noise, which cannot be inverted",
            wanted="ddim, euler, heun or dpm++, without eta and s_churn",
        )
    if len(set(config.labels)) > 1:
        raise ArgumentError(
            "labels", "got several", wanted="one for all images", remedy="none is the unconditional output"
        )
    times = truncate(config, strength)
    device = config.denoiser.device
    latents: list[Tensor] = []
    weights = torch.linspace(0, 1, num).tolist()

    def make(batch: range, context: Context) -> Tensor:
        if not latents:
            latents.extend(ddim_invert(config, ends.to(device), times, lambda: callback(2)))
        x = torch.stack([slerp(latents[0], latents[1], weights[min(i, num - 1)]) for i in batch])
        return config.integrate(context, x, times, lambda: callback(len(batch)))

    return make


@torch.no_grad()
def ddim_invert(
    config: SamplingConfig, x_0: Tensor, times: Sequence[float], callback: Callable[[], None] = lambda: None
) -> Tensor:
    """Clean images (B, C, H, W) up to x_t at times[0] along the ODE, by the times walked the other way.

    By Heun's method, whatever the sampler: each end is walked once, and should be met again.
    """
    _, context = next(config.batches(range(len(x_0)), len(x_0)))
    # Where there is no noise at all nothing says in which direction it lies: the first step is taken from the least
    # noise of the times, at which the image is as good as clean.
    upwards = list(reversed(times))[1:]
    x_t = time_of(context.process, upwards[0]).alpha * x_0
    return integrate(Sampler(heun_step), context, x_t, upwards, callback=callback) if len(upwards) > 1 else x_t


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Between two tensors of one shape by angle, so that what is as long as noise stays so; weight 0 is a, 1 is b."""
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    angle = torch.acos(cosine)
    by_angle = (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)
    # Alike, or opposite, there is no angle to follow. Chosen on the device: nothing waits for it.
    return torch.where(torch.sin(angle) < 1e-4, torch.lerp(a, b, weight), by_angle)


def truncate(config: SamplingConfig, strength: float) -> tuple[float, ...]:
    """The times with a noise level of at most `strength`.

    Raises:
        ArgumentError: a strength out of range, or so small that no step is left.
    """
    if not 0 < strength <= 1:
        raise ArgumentError("strength", got=strength, wanted="more than 0 (the image as it is), at most 1")
    levels = noise_level(*config.denoiser.process.alpha_sigma(torch.tensor(config.times, dtype=torch.float64)))
    times = tuple(t for t, level in zip(config.times, levels.tolist(), strict=True) if level <= strength)
    if len(times) < 2:
        raise ArgumentError(
            "strength", "is less noise than the first of the steps", got=strength, remedy="take more, or more steps"
        )
    return times
