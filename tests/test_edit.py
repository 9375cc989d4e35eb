"""Images from images: variations, inpainting, interpolation.

Most of it is asked of denoisers that are exact: of pixels that are independent and normal, and of pictures of one
brightness, in which what is known of a picture says what is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.pixels import to_unit
from maskdm.diffusion.prediction import X0
from maskdm.diffusion.process import noise_level
from maskdm.diffusion.schedules import cosine, edm, flow, linear, sigmoid, ve, vp, zero_terminal
from maskdm.errors import ArgumentError
from maskdm.sampling import samplers
from maskdm.sampling.edit import img2img, inpaint, interpolate, slerp, truncate
from maskdm.sampling.sample import SamplingConfig, sample_images, sampling_config
from maskdm.sampling.samplers import SAMPLERS, get_sampler, time_of

PROCESSES = {
    "linear": linear(),
    "cosine": cosine(),
    "sigmoid": sigmoid(),
    "zero-terminal": zero_terminal(linear()),
    "vp": vp(),
    "ve": ve(),
    "edm": edm(),
    "flow": flow(),
}
DETERMINISTIC = ("ddim", "euler", "heun", "dpm++")
MEAN, STD = 0.1, 0.25


@dataclass(frozen=True, eq=False)
class Normal(Denoiser):
    """Knows that pixels are independent, N(MEAN, STD^2); every class shifts the mean."""

    def estimate(self, x_t: Tensor, t: float, *, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        at = time_of(self.process, t)
        mean = torch.full((len(x_t), 1, 1, 1), MEAN)
        if label is not None:
            mean = mean - 0.2 * label[:, None, None, None]
        gain = at.alpha * STD**2 / (at.alpha**2 * STD**2 + at.sigma**2)
        x_0 = mean + gain * (x_t - at.alpha * mean)
        return x_0, (x_t - at.alpha * x_0) / at.sigma


@dataclass(frozen=True, eq=False)
class Flat(Denoiser):
    """Knows that all pixels of a picture are the same, N(0, STD^2) from picture to picture."""

    def estimate(self, x_t: Tensor, t: float, *, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        at = time_of(self.process, t)
        count = x_t[0].numel()
        gain = at.alpha * STD**2 / (at.alpha**2 * STD**2 * count + at.sigma**2)
        x_0 = (gain * x_t.sum(dim=(1, 2, 3), keepdim=True)).expand_as(x_t)
        return x_0, (x_t - at.alpha * x_0) / at.sigma


def config_of(
    process: str = "cosine",
    *,
    side: int = 8,
    kind: type[Denoiser] = Normal,
    names: tuple[str, ...] = (),
    sampler: str = "dpm++",
    eta: float | None = None,
    s_churn: float | None = None,
    **more,
) -> SamplingConfig:
    denoiser = kind(lambda *a, **k: None, PROCESSES[process], X0, 2, (side, side), class_names=names)
    chosen = get_sampler(sampler, eta=eta, s_churn=s_churn)
    return sampling_config(denoiser, sampler=chosen, **({"steps": 20, "seeds": range(8)} | more))


def images_of(number: int, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return (MEAN + STD * torch.randn(number, 2, side, side, generator=generator)).clamp(-1, 1)


def change(made: Tensor, images: Tensor) -> float:
    return float((2 * made - 1 - images).square().mean().sqrt())


@pytest.fixture(params=PROCESSES)
def process(request) -> str:
    return request.param


@pytest.fixture
def hole() -> Tensor:
    """Five rows of eight."""
    return (torch.arange(8) > 2)[:, None].expand(8, 8)


# --- variations ------------------------------------------------------------------------------------------------------


def test_a_small_strength_changes_little_and_more_changes_more(process):
    images = images_of(4)
    config = config_of(process, steps=100, spacing="logsnr")
    changes = [change(img2img(config, images, strength, 4), images) for strength in (0.03, 0.15, 0.4, 1.0)]
    assert 0 < changes[0] < 0.04
    assert all(1.1 * a < b for a, b in pairwise(changes)), changes


def test_strength_one_is_sampling_whatever_the_image(process):
    config = config_of(process)
    plain = sample_images(config, range(6))
    assert torch.equal(img2img(config, images_of(2), 1.0, 6), plain)
    assert torch.equal(img2img(config, torch.full((1, 2, 8, 8), -1.0), 1.0, 6), plain)
    assert not torch.equal(img2img(config, images_of(2), 0.9, 6), plain)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_variations_of_the_data_are_distributed_as_the_data(sampler, process):
    """Noise is added as the process adds it: where the data's distribution is known, all strengths give it back."""
    images = images_of(4, side=32)
    made = 2 * img2img(config_of(process, side=32, sampler=sampler, steps=300), images, 0.5, 4) - 1
    assert float(made.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(made.std()) == pytest.approx(STD, rel=0.06)
    assert 0.02 < change(to_unit(made), images) < 1.42 * STD


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_a_variation_depends_on_its_seed_and_its_picture_alone(sampler):
    images = images_of(3)
    config = config_of(sampler=sampler, seeds=[7, 1, 4, 9, 2])
    made = img2img(config, images, 0.5, 8)
    assert made.shape == (8, 2, 8, 8)
    assert made.dtype == torch.float32
    for size in (1, 3, 100):
        assert torch.equal(img2img(config, images, 0.5, 8, batch_size=size), made)
    # Picture 4 has the fifth seed and the second picture.
    alone = img2img(config_of(sampler=sampler, seeds=[2]), images[1:2], 0.5, 1)
    assert torch.equal(alone[0], made[4])
    same_seed = img2img(config_of(sampler=sampler, seeds=[7, 1, 4, 9, 2]), images[[0, 0, 0]], 0.5, 8)
    assert torch.equal(same_seed[0], made[0])
    assert not torch.equal(same_seed[1], made[1])
    assert len(torch.unique(made.flatten(1), dim=0)) == 8  # the sixth has the first seed, but its second noise


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_variations_count_their_steps(strength):
    done: list[int] = []
    config = config_of()
    img2img(config, images_of(1), strength, 5, batch_size=2, callback=done.append)
    assert sum(done) == 5 * (len(truncate(config, strength)) - 1)


def test_times_begin_at_the_strength(process):
    config = config_of(process, steps=100)
    assert truncate(config, 1.0) == config.times
    for strength in (0.1, 0.5, 0.9):
        times = truncate(config, strength)
        assert times == config.times[-len(times) :]
        levels = noise_level(*config.denoiser.process.alpha_sigma(torch.tensor(config.times, dtype=torch.float64)))
        assert levels[-len(times)] <= strength < levels[-len(times) - 1]


@pytest.mark.parametrize("strength", [0, -0.1, 1.01, 60, math.nan])
def test_a_strength_is_a_noise_level(strength):
    for edit in (img2img, interpolate):
        with pytest.raises(ArgumentError, match=r"more than 0 .*, at most 1") as error:
            edit(config_of(), images_of(2), strength, 2)
        assert error.value.name == "strength"


def test_a_strength_below_the_first_step_is_refused(process):
    with pytest.raises(ArgumentError) as error:
        img2img(config_of(process), images_of(1), 1e-6, 1)
    assert (error.value.name, error.value.got) == ("strength", 1e-6)


# --- holes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_outside_the_hole_is_the_picture_and_inside_is_made(sampler, process, hole):
    (image,) = images_of(1)
    config = config_of(process, sampler=sampler)
    for strength, resample in ((1.0, 1), (1.0, 3), (0.5, 1)):
        made = inpaint(config, image, hole, 4, strength=strength, resample=resample)
        assert made.isfinite().all()
        assert torch.equal(made[..., ~hole], to_unit(image)[..., ~hole].expand(4, -1, -1))
        inside = made[..., hole]
        assert (inside.std(dim=0) > 0).float().mean() > 0.9  # every seed another
        assert not (inside == to_unit(image)[..., hole]).any(dim=(1, 2)).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_hole_is_filled_with_what_the_rest_says(sampler, process, hole):
    """Of flat pictures, 24 of 64 pixels say all; a hole filled without regard to them would be off by STD."""
    image = torch.full((2, 8, 8), 0.4)
    image[:, hole] = -1  # to be forgotten
    config = config_of(process, kind=Flat, sampler=sampler, steps=50)
    made = 2 * inpaint(config, image, hole, 8, resample=3)[..., hole] - 1
    assert float((made - 0.4).square().mean().sqrt()) < 0.06


def test_taking_steps_again_joins_the_parts_better(process, hole):
    image = torch.full((2, 8, 8), 0.4)
    config = config_of(process, kind=Flat, sampler="ancestral")
    errors = [
        float((2 * inpaint(config, image, hole, 8, resample=n)[..., hole] - 1.4).square().mean()) for n in (1, 2, 8)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_what_was_in_the_hole_is_forgotten(process, hole):
    """Also its brightness, of which the last timestep of many a process still holds a little."""
    (image,) = images_of(1)
    made = []
    for content in (-1.0, 1.0, math.nan):
        other = image.clone()
        other[:, hole] = content
        made.append(inpaint(config_of(process), other, hole, 3))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_a_strength_below_one_remembers_what_was_in_the_hole(process, hole):
    (image,) = images_of(1)
    config = config_of(process, steps=60)
    changes = [
        change(inpaint(config, image, hole, 8, strength=strength)[..., hole], image[:, hole])
        for strength in (0.1, 0.4, 1)
    ]
    assert changes[0] < changes[1] < changes[2]
    assert changes[0] < 0.15


@pytest.mark.parametrize(("sampler", "calls"), [("ddim", 1), ("heun", 2)])
@pytest.mark.parametrize("resample", [1, 4])
def test_resampling_takes_every_step_so_often(sampler, calls, resample, hole, monkeypatch):
    asked: list[int] = []
    plain = Normal.estimate
    monkeypatch.setattr(Normal, "estimate", lambda self, x, t, **k: asked.append(len(x)) or plain(self, x, t, **k))
    done: list[int] = []
    inpaint(config_of(sampler=sampler), images_of(1)[0], hole, 3, resample=resample, batch_size=2, callback=done.append)
    assert sum(done) == 3 * 20 * resample
    # Heun needs no second call for the step to the clean image.
    assert sum(asked) == 3 * resample * (20 * calls - (calls - 1))


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "heun"])
def test_a_filled_hole_depends_on_its_seed_alone(sampler, hole):
    (image,) = images_of(1)
    config = config_of(sampler=sampler, seeds=[3, 8, 5])
    made = inpaint(config, image, hole, 5, resample=2)
    for size in (1, 2):
        assert torch.equal(inpaint(config, image, hole, 5, resample=2, batch_size=size), made)
    assert torch.equal(inpaint(config_of(sampler=sampler, seeds=[5]), image, hole, 1, resample=2)[0], made[2])
    assert len(torch.unique(made.flatten(1), dim=0)) == 5


def test_no_hole_is_the_picture_and_nothing_but_a_hole_is_made():
    (image,) = images_of(1)
    none, all_of_it = torch.zeros(8, 8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool)
    assert torch.equal(inpaint(config_of(), image, none, 2), to_unit(image).expand(2, -1, -1, -1))
    config = config_of(sampler="ddim")  # one without a memory
    torch.testing.assert_close(inpaint(config, image, all_of_it, 4), sample_images(config, range(4)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("resample", [0, -2])
def test_a_step_is_taken_at_least_once(resample, hole):
    with pytest.raises(ArgumentError) as error:
        inpaint(config_of(), images_of(1)[0], hole, 1, resample=resample)
    assert (error.value.name, error.value.got) == ("resample", resample)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_churn_is_dealt_out_over_all_steps_however_many_are_taken(sampler, hole, monkeypatch):
    gammas: list[float] = []
    churn = samplers._churn

    def spy(x_t, t, context, gamma):
        gammas.append(gamma)
        return churn(x_t, t, context, gamma)

    monkeypatch.setattr(samplers, "_churn", spy)
    config = config_of(sampler=sampler, s_churn=2.0)
    sample_images(config, range(1))
    img2img(config, images_of(1), 0.5, 1)
    inpaint(config, images_of(1)[0], hole, 1)
    inpaint(config, images_of(1)[0], hole, 1, strength=0.5)
    assert len(gammas) == 2 * (20 + len(truncate(config, 0.5)) - 1)
    assert gammas == pytest.approx([0.1] * len(gammas))


@pytest.mark.parametrize("edit", [img2img, inpaint, interpolate])
def test_no_pictures_and_no_batches_are_refused(edit, hole):
    given = (images_of(1)[0], hole) if edit is inpaint else (images_of(2), 0.5)
    with pytest.raises(ArgumentError, match="num: got 0"):
        edit(config_of(), *given, 0)
    with pytest.raises(ArgumentError, match="batch_size: got 0"):
        edit(config_of(), *given, 2, batch_size=0)


# --- interpolation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_the_ends_of_an_interpolation_come_back(sampler, process):
    ends = images_of(2)
    for strength in (1.0, 0.5):
        images = interpolate(config_of(process, sampler=sampler, steps=100), ends, strength, 3)
        assert change(images[[0, 2]], ends) < 0.03


def test_the_ends_come_back_closely_by_heun(process):
    """Inversion is of second order, and so is Heun's way down; first order on either would be off by 0.003 and more."""
    ends = images_of(2)
    assert (
        change(interpolate(config_of(process, sampler="heun", spacing="logsnr", steps=50), ends, 1.0, 2), ends) < 0.002
    )


def test_every_image_is_a_step_further(process):
    ends = images_of(2)
    images = 2 * interpolate(config_of(process, steps=50, sampler="heun"), ends, 1.0, 9) - 1
    from_a, from_b = ((images - end).square().mean(dim=(1, 2, 3)) for end in ends)
    assert (from_a.diff() > 0).all()
    assert (from_b.diff() < 0).all()
    # By angle: the middle is as rough as the ends, where a mean of the two would be smooth.
    assert float(images[4].std()) == pytest.approx(float(ends.std()), rel=0.15)
    assert float(ends.mean(dim=0).std()) < 0.75 * float(ends.std())


def test_an_interpolation_has_no_chance_in_it():
    ends = images_of(2)
    images = interpolate(config_of(seeds=[0]), ends, 0.7, 5)
    assert torch.equal(interpolate(config_of(seeds=[17, 4]), ends, 0.7, 5), images)
    assert torch.equal(interpolate(config_of(), ends, 0.7, 5, batch_size=2), images)


def test_an_interpolation_counts_its_steps():
    done: list[int] = []
    config = config_of()
    interpolate(config, images_of(2), 0.7, 5, batch_size=2, callback=done.append)
    steps = len(truncate(config, 0.7)) - 1
    assert sum(done) == 5 * steps + 2 * (steps - 1)  # inversion begins at the least noise


@pytest.mark.parametrize(
    "noisy",
    [{"sampler": "ancestral"}, {"sampler": "dpm++sde"}, {"eta": 0.5}, {"sampler": "heun", "s_churn": 1.0}],
    ids=str,
)
def test_a_sampler_that_adds_noise_cannot_be_inverted(noisy):
    with pytest.raises(ArgumentError) as error:
        interpolate(config_of(**noisy), images_of(2), 1.0, 3)
    assert error.value.name == "sampler"


def test_an_interpolation_has_one_label(process):
    """The ends would not come back as another class."""
    ends = images_of(2)
    for names in (["dog"], ["none"], ["cat", "cat"]):
        config = config_of(process, names=("cat", "dog"), labels=names, steps=100, sampler="heun")
        assert change(interpolate(config, ends, 1.0, 3)[[0, 2]], ends) < 0.03
    for labels in (None, ["cat", "dog"]):
        with pytest.raises(ArgumentError) as error:
            interpolate(config_of(process, names=("cat", "dog"), labels=labels), ends, 1.0, 3)
        assert error.value.name == "labels"


def test_an_interpolation_has_two_ends():
    with pytest.raises(ArgumentError) as error:
        interpolate(config_of(), images_of(2), 1.0, 1)
    assert (error.value.name, error.value.got) == ("num", 1)


def test_halfway_between_two_directions_is_the_direction_between():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    torch.testing.assert_close(slerp(a, b, 0.5), torch.full((2,), 3 / math.sqrt(2)))
    torch.testing.assert_close(slerp(a, b, 1 / 3), torch.tensor([3 * math.cos(math.pi / 6), 1.5]))


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_a_mixture_of_noises_is_as_long_as_noise(weight):
    a, b = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mixed = slerp(a, b, weight)
    assert float(mixed.norm()) == pytest.approx(float(torch.lerp(a.norm(), b.norm(), weight)), rel=0.01)
    if weight in (0.0, 1.0):
        torch.testing.assert_close(mixed, b if weight else a)


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-6, 2.0, -1.0, -3.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_where_there_is_no_angle_a_mixture_is_a_mean(factor, weight):
    a = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slerp(a, factor * a, weight), torch.lerp(a, factor * a, weight), rtol=0, atol=1e-2)
