"""Pictures from pictures: variations, holes filled, ways from one to another; and the options of `maskdm sample`.

Most of it is asked of denoisers that are exact: of pixels that are independent and normal, and of pictures of one
brightness, in which what is known of a picture says what is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import maskdm
from maskdm.cli.main import main
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.pixels import to_model, to_uint8_nhwc, to_unit
from maskdm.diffusion.prediction import X0
from maskdm.diffusion.process import noise_level
from maskdm.diffusion.schedules import cosine, edm, flow, linear, sigmoid, ve, vp, zero_terminal
from maskdm.errors import InputError
from maskdm.sampling import edit as editing
from maskdm.sampling import samplers
from maskdm.sampling.edit import below, inpaint, interpolate, slerp, vary
from maskdm.sampling.sample import Plan, pictures, plan
from maskdm.sampling.samplers import SAMPLERS

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
        at = samplers.level(self.process, t)
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
        at = samplers.level(self.process, t)
        count = x_t[0].numel()
        gain = at.alpha * STD**2 / (at.alpha**2 * STD**2 * count + at.sigma**2)
        x_0 = (gain * x_t.sum(dim=(1, 2, 3), keepdim=True)).expand_as(x_t)
        return x_0, (x_t - at.alpha * x_0) / at.sigma


def plan_of(process: str = "cosine", *, side: int = 8, kind: type[Denoiser] = Normal, names=(), **more) -> Plan:
    denoiser = kind(lambda *a, **k: None, PROCESSES[process], X0, 2, (side, side), class_names=names)
    return plan(denoiser, **({"steps": 20, "seeds": range(8)} | more))


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
    how = plan_of(process, steps=100, grid="logsnr")
    changes = [change(vary(how, images, strength, 4), images) for strength in (0.03, 0.15, 0.4, 1.0)]
    assert 0 < changes[0] < 0.04
    assert all(1.1 * a < b for a, b in pairwise(changes)), changes


def test_strength_one_is_sampling_anew_whatever_the_picture(process):
    how = plan_of(process)
    anew = pictures(how, range(6))
    assert torch.equal(vary(how, images_of(2), 1.0, 6), anew)
    assert torch.equal(vary(how, torch.full((1, 2, 8, 8), -1.0), 1.0, 6), anew)
    assert not torch.equal(vary(how, images_of(2), 0.9, 6), anew)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_variations_of_the_data_are_distributed_as_the_data(sampler, process):
    """Noise is added as the process adds it: where the data's law is known, all strengths give it back."""
    images = images_of(4, side=32)
    made = 2 * vary(plan_of(process, side=32, sampler=sampler, steps=300), images, 0.5, 4) - 1
    assert float(made.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(made.std()) == pytest.approx(STD, rel=0.06)
    assert 0.02 < change(to_unit(made), images) < 1.42 * STD


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_a_variation_depends_on_its_seed_and_its_picture_alone(sampler):
    images = images_of(3)
    how = plan_of(sampler=sampler, seeds=[7, 1, 4, 9, 2])
    made = vary(how, images, 0.5, 8)
    assert made.shape == (8, 2, 8, 8)
    assert made.dtype == torch.float32
    for size in (1, 3, 100):
        assert torch.equal(vary(how, images, 0.5, 8, batch_size=size), made)
    # Picture 4 has the fifth seed and the second picture.
    alone = vary(plan_of(sampler=sampler, seeds=[2]), images[1:2], 0.5, 1)
    assert torch.equal(alone[0], made[4])
    same_seed = vary(plan_of(sampler=sampler, seeds=[7, 1, 4, 9, 2]), images[[0, 0, 0]], 0.5, 8)
    assert torch.equal(same_seed[0], made[0])
    assert not torch.equal(same_seed[1], made[1])
    assert len(torch.unique(made.flatten(1), dim=0)) == 8  # the sixth has the first seed, but its second noise


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_variations_count_their_steps(strength):
    done: list[int] = []
    how = plan_of()
    vary(how, images_of(1), strength, 5, batch_size=2, report=done.append)
    assert sum(done) == 5 * (len(below(how, strength)) - 1)


def test_times_begin_at_the_strength(process):
    how = plan_of(process, steps=100)
    assert below(how, 1.0) == how.times
    for strength in (0.1, 0.5, 0.9):
        times = below(how, strength)
        assert times == how.times[-len(times) :]
        shares = noise_level(*how.denoiser.process.alpha_sigma(torch.tensor(how.times, dtype=torch.float64)))
        assert shares[-len(times)] <= strength < shares[-len(times) - 1]


@pytest.mark.parametrize("strength", [0, -0.1, 1.01, 60, math.nan])
def test_a_strength_is_a_share(strength):
    for edit in (vary, interpolate):
        with pytest.raises(InputError, match=r"strength: got .*, wanted more than 0 \(as it is\) and at most 1"):
            edit(plan_of(), images_of(2), strength, 2)


def test_a_strength_below_the_first_step_is_refused(process):
    with pytest.raises(InputError, match="strength: got 1e-06, less than the first of the steps"):
        vary(plan_of(process), images_of(1), 1e-6, 1)


# --- holes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_outside_the_hole_is_the_picture_and_inside_is_made(sampler, process, hole):
    (image,) = images_of(1)
    how = plan_of(process, sampler=sampler)
    for strength, resample in ((1.0, 1), (1.0, 3), (0.5, 1)):
        made = inpaint(how, image, hole, 4, strength=strength, resample=resample)
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
    how = plan_of(process, kind=Flat, sampler=sampler, steps=50)
    made = 2 * inpaint(how, image, hole, 8, resample=3)[..., hole] - 1
    assert float((made - 0.4).square().mean().sqrt()) < 0.06


def test_taking_steps_again_joins_the_parts_better(process, hole):
    image = torch.full((2, 8, 8), 0.4)
    how = plan_of(process, kind=Flat, sampler="ancestral")
    errors = [float((2 * inpaint(how, image, hole, 8, resample=n)[..., hole] - 1.4).square().mean()) for n in (1, 2, 8)]
    assert errors[0] > errors[1] > errors[2]


def test_what_was_in_the_hole_is_forgotten(process, hole):
    """Also its brightness, of which the last level of many a process still holds a little."""
    (image,) = images_of(1)
    made = []
    for content in (-1.0, 1.0, math.nan):
        other = image.clone()
        other[:, hole] = content
        made.append(inpaint(plan_of(process), other, hole, 3))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_a_strength_below_one_remembers_what_was_in_the_hole(process, hole):
    (image,) = images_of(1)
    how = plan_of(process, steps=60)
    changes = [
        change(inpaint(how, image, hole, 8, strength=strength)[..., hole], image[:, hole]) for strength in (0.1, 0.4, 1)
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
    inpaint(plan_of(sampler=sampler), images_of(1)[0], hole, 3, resample=resample, batch_size=2, report=done.append)
    assert sum(done) == 3 * 20 * resample
    # Heun needs no second call for the step to the clean image.
    assert sum(asked) == 3 * resample * (20 * calls - (calls - 1))


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "heun"])
def test_a_filled_hole_depends_on_its_seed_alone(sampler, hole):
    (image,) = images_of(1)
    how = plan_of(sampler=sampler, seeds=[3, 8, 5])
    made = inpaint(how, image, hole, 5, resample=2)
    for size in (1, 2):
        assert torch.equal(inpaint(how, image, hole, 5, resample=2, batch_size=size), made)
    assert torch.equal(inpaint(plan_of(sampler=sampler, seeds=[5]), image, hole, 1, resample=2)[0], made[2])
    assert len(torch.unique(made.flatten(1), dim=0)) == 5


def test_no_hole_is_the_picture_and_nothing_but_a_hole_is_made():
    (image,) = images_of(1)
    none, all_of_it = torch.zeros(8, 8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool)
    assert torch.equal(inpaint(plan_of(), image, none, 2), to_unit(image).expand(2, -1, -1, -1))
    how = plan_of(sampler="ddim")  # one without a memory
    torch.testing.assert_close(inpaint(how, image, all_of_it, 4), pictures(how, range(4)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("resample", [0, -2])
def test_a_step_is_taken_at_least_once(resample, hole):
    with pytest.raises(InputError, match=f"resample: got {resample}, wanted at least 1"):
        inpaint(plan_of(), images_of(1)[0], hole, 1, resample=resample)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_churn_is_dealt_out_over_all_steps_however_many_are_taken(sampler, hole, monkeypatch):
    shares: list[float] = []
    churned = samplers._churned

    def spy(process, x_t, t, share, noise):
        shares.append(share)
        return churned(process, x_t, t, share, noise)

    monkeypatch.setattr(samplers, "_churned", spy)
    how = plan_of(sampler=sampler, churn=2.0)
    pictures(how, range(1))
    vary(how, images_of(1), 0.5, 1)
    inpaint(how, images_of(1)[0], hole, 1)
    inpaint(how, images_of(1)[0], hole, 1, strength=0.5)
    assert len(shares) == 2 * (20 + len(below(how, 0.5)) - 1)
    assert shares == pytest.approx([0.1] * len(shares))


@pytest.mark.parametrize("edit", [vary, inpaint, interpolate])
def test_no_pictures_and_no_batches_are_refused(edit, hole):
    given = (images_of(1)[0], hole) if edit is inpaint else (images_of(2), 0.5)
    with pytest.raises(InputError, match="num: got 0"):
        edit(plan_of(), *given, 0)
    with pytest.raises(InputError, match="batch_size: got 0"):
        edit(plan_of(), *given, 2, batch_size=0)


# --- ways from one to another ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_the_ends_of_a_way_come_back(sampler, process):
    ends = images_of(2)
    for strength in (1.0, 0.5):
        way = interpolate(plan_of(process, sampler=sampler, steps=100), ends, strength, 3)
        assert change(way[[0, 2]], ends) < 0.03


def test_the_ends_of_a_way_of_second_order_come_back_closely(process):
    """The way back is of second order, and so is Heun's down; first order on either would be off by 0.003 and more."""
    ends = images_of(2)
    assert change(interpolate(plan_of(process, sampler="heun", grid="logsnr", steps=50), ends, 1.0, 2), ends) < 0.002


def test_every_picture_is_a_step_further_on_the_way(process):
    ends = images_of(2)
    way = 2 * interpolate(plan_of(process, steps=50, sampler="heun"), ends, 1.0, 9) - 1
    from_a, from_b = ((way - end).square().mean(dim=(1, 2, 3)) for end in ends)
    assert (from_a.diff() > 0).all()
    assert (from_b.diff() < 0).all()
    # By angle: the middle is as rough as the ends, where a mean of the two would be smooth.
    assert float(way[4].std()) == pytest.approx(float(ends.std()), rel=0.15)
    assert float(ends.mean(dim=0).std()) < 0.75 * float(ends.std())


def test_a_way_has_no_chance_in_it():
    ends = images_of(2)
    way = interpolate(plan_of(seeds=[0]), ends, 0.7, 5)
    assert torch.equal(interpolate(plan_of(seeds=[17, 4]), ends, 0.7, 5), way)
    assert torch.equal(interpolate(plan_of(), ends, 0.7, 5, batch_size=2), way)


def test_a_way_counts_its_steps():
    done: list[int] = []
    how = plan_of()
    interpolate(how, images_of(2), 0.7, 5, batch_size=2, report=done.append)
    steps = len(below(how, 0.7)) - 1
    assert sum(done) == 5 * steps + 2 * (steps - 1)  # the way back begins at the least noise


@pytest.mark.parametrize(
    "noisy",
    [{"sampler": "ancestral"}, {"sampler": "dpm++sde"}, {"eta": 0.5}, {"sampler": "heun", "churn": 1.0}],
    ids=str,
)
def test_a_sampler_that_adds_noise_knows_no_way_back(noisy):
    with pytest.raises(InputError, match=r"sampler: adds fresh noise, .*; choose ddim, heun or dpm\+\+ without eta"):
        interpolate(plan_of(**noisy), images_of(2), 1.0, 3)


def test_a_way_has_one_label(process):
    """The ends would not come back as another class."""
    ends = images_of(2)
    for names in (["dog"], ["none"], ["cat", "cat"]):
        how = plan_of(process, names=("cat", "dog"), labels=names, steps=100, sampler="heun")
        assert change(interpolate(how, ends, 1.0, 3)[[0, 2]], ends) < 0.03
    for labels in (None, ["cat", "dog"]):
        with pytest.raises(InputError, match="labels: got several, wanted one for the whole way"):
            interpolate(plan_of(process, names=("cat", "dog"), labels=labels), ends, 1.0, 3)


def test_a_way_has_two_ends():
    with pytest.raises(InputError, match="num: got 1, wanted at least 2"):
        interpolate(plan_of(), images_of(2), 1.0, 1)


def test_halfway_between_two_directions_is_the_direction_between():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    torch.testing.assert_close(slerp(a, b, 0.5), torch.full((2,), 3 / math.sqrt(2)))
    torch.testing.assert_close(slerp(a, b, 1 / 3), torch.tensor([3 * math.cos(math.pi / 6), 1.5]))


@pytest.mark.parametrize("amount", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_a_mixture_of_noises_is_as_long_as_noise(amount):
    a, b = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mixed = slerp(a, b, amount)
    assert float(mixed.norm()) == pytest.approx(float(torch.lerp(a.norm(), b.norm(), amount)), rel=0.01)
    if amount in (0.0, 1.0):
        torch.testing.assert_close(mixed, b if amount else a)


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-6, 2.0, -1.0, -3.0])
@pytest.mark.parametrize("amount", [0.0, 0.3, 0.5, 1.0])
def test_where_there_is_no_angle_a_mixture_is_a_mean(factor, amount):
    a = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slerp(a, factor * a, amount), torch.lerp(a, factor * a, amount), rtol=0, atol=1e-2)


# --- the command -----------------------------------------------------------------------------------------------------


def sampled(*words: object) -> None:
    assert main(["sample", *map(str, words)]) == 0


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["sample", *map(str, words)]) == 2
    error = capsys.readouterr().err.strip().rpartition("\r")[2]  # after a bar that was taken away
    assert error.startswith("maskdm: error: ")
    assert "\n" not in error
    return error


def pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image))


def unit(path: Path) -> Tensor:
    with np.load(path) as archive:
        return torch.from_numpy(archive["images"])


def made_by(how: Plan, images: Tensor) -> Tensor:
    """(num, C, H, W) in [0, 1] -> as the files have it."""
    return torch.from_numpy(to_uint8_nhwc(images))


@pytest.fixture
def photo(tmp_path) -> Path:
    """A picture of the size of the run's: dark above and bright below."""
    array = np.full((16, 16, 3), 220, dtype=np.uint8)
    array[:8] = (10, 60, 120)
    Image.fromarray(array).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def other_photo(tmp_path) -> Path:
    """Larger, in gray and with alpha, and bright above."""
    array = np.full((40, 40, 2), 255, dtype=np.uint8)
    array[20:, :, 0] = 30
    Image.fromarray(array, "LA").save(tmp_path / "other.png")
    return tmp_path / "other.png"


@pytest.fixture
def mask(tmp_path) -> Path:
    """White in the middle, twice as large as the pictures."""
    array = np.zeros((32, 32), dtype=np.uint8)
    array[8:24, 8:24] = 255
    Image.fromarray(array).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def as_model_sees(path: Path) -> Tensor:
    return to_model(pixels(path)[None])


STEPS = ("--steps", "6")


def test_variations_are_what_the_library_makes(photos_run, photo, tmp_path, capsys):
    out = tmp_path / "here" / "varied"
    words = (*STEPS, "--num", 5, "--seeds", "3-5", "--labels", "dog,none", "--sampler", "ancestral")
    sampled(photos_run, "--init", photo, "--strength", 0.4, *words, "-o", out)
    names = ["seed-000003-0", "seed-000004-0", "seed-000005-0", "seed-000003-1", "seed-000004-1"]
    assert {path.name for path in out.iterdir()} == {"grid.png", *(f"{name}.png" for name in names)}
    assert f"5 pictures in {out}" in capsys.readouterr().err
    how = plan(maskdm.load(photos_run), steps=6, sampler="ancestral", seeds=[3, 4, 5], labels=["dog", "none"])
    wanted = made_by(how, vary(how, as_model_sees(photo), 0.4, 5))
    assert torch.equal(torch.stack([pixels(out / f"{name}.png") for name in names]), wanted)


def test_variations_have_their_defaults(photos_run, photo, tmp_path):
    """Among them no class: a picture belongs to whatever it shows."""
    words = ("--strength", 0.6, "--num", 16, "--labels", "none")
    sampled(photos_run, *STEPS, "--init", photo, "-o", tmp_path / "a.npz")
    sampled(photos_run, *STEPS, "--init", photo, *words, "-o", tmp_path / "b.npz")
    assert unit(tmp_path / "a.npz").shape == (16, 16, 16, 3)
    assert torch.equal(unit(tmp_path / "a.npz"), unit(tmp_path / "b.npz"))


def test_strength_one_is_what_the_command_makes_without_a_picture(photos_run, photo, other_photo, tmp_path):
    words = (*STEPS, "--num", 3, "--labels", "cat,none")
    sampled(photos_run, *words, "-o", tmp_path / "plain.npz")
    for init in (photo, other_photo):
        sampled(photos_run, *words, "--init", init, "--strength", 1, "-o", tmp_path / "anew.npz")
        assert torch.equal(unit(tmp_path / "anew.npz"), unit(tmp_path / "plain.npz"))


def test_a_picture_of_any_kind_is_made_to_fit(photos_run, other_photo, tmp_path):
    sampled(photos_run, "--steps", 200, "--num", 2, "--init", other_photo, "--strength", 0.02, "-o", tmp_path / "a.npz")
    made = unit(tmp_path / "a.npz").float()
    assert made[:, :7].mean() > made[:, 9:].mean() + 100  # still bright above and dark below


def test_the_command_fills_holes(photos_run, photo, mask, tmp_path):
    words = (*STEPS, "--num", 4, "--sampler", "heun", "--labels", "cat", "--init", photo, "--inpaint", mask)
    sampled(photos_run, *words, "-o", tmp_path / "filled")
    made = torch.stack([pixels(path) for path in sorted((tmp_path / "filled").glob("seed-*.png"))])
    hole = torch.zeros(16, 16, dtype=torch.bool)
    hole[4:12, 4:12] = True
    assert torch.equal(made[:, ~hole], pixels(photo)[~hole].expand(4, -1, -1))
    assert not (made[:, hole] == pixels(photo)[hole]).all(dim=(1, 2)).any()
    how = plan(maskdm.load(photos_run), steps=6, sampler="heun", labels=["cat"], seeds=range(4))
    wanted = inpaint(how, as_model_sees(photo)[0], hole, 4)
    assert torch.equal(made, made_by(how, wanted))
    sampled(photos_run, *words, "--resample", 3, "--strength", 0.7, "-o", tmp_path / "again.npz")
    wanted = inpaint(how, as_model_sees(photo)[0], hole, 4, strength=0.7, resample=3)
    assert torch.equal(unit(tmp_path / "again.npz"), made_by(how, wanted))


def test_the_command_finds_ways(photos_run, photo, other_photo, tmp_path):
    words = ("--steps", 20, "--interpolate", photo, other_photo, "--num", 5)
    sampled(photos_run, *words, "-o", tmp_path / "way")
    assert len(list((tmp_path / "way").iterdir())) == 6
    sampled(photos_run, *words, "-o", tmp_path / "way.npz")
    way = unit(tmp_path / "way.npz")
    # Not one class after another, but none, or the one that was asked for.
    sampled(photos_run, *words, "--labels", "none", "-o", tmp_path / "none.npz")
    assert torch.equal(unit(tmp_path / "none.npz"), way)
    sampled(photos_run, *words, "--labels", "cat", "-o", tmp_path / "cat.npz")
    assert not torch.equal(unit(tmp_path / "cat.npz"), way)
    small = pixels(tmp_path / "way" / "seed-000000.png")
    assert torch.equal(small, way[0])
    sampled(photos_run, *words, "--strength", 0.3, "-o", tmp_path / "near.npz")
    near = unit(tmp_path / "near.npz").float()
    errors = [(near[i] - pixels(photo)).abs().mean() for i in (0, 4)]
    assert errors[0] < errors[1]


def test_a_bar_of_steps_ends_where_it_should(photos_run, photo, other_photo, mask, tmp_path, monkeypatch):
    from maskdm.runtime.console import Console

    bars: list[list[int]] = []

    class Bar:
        def __init__(self, name: str, total: int, unit: str) -> None:
            bars.append([total, 0])

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, steps: int) -> None:
            bars[-1][1] += steps

    monkeypatch.setattr(Console, "bar", lambda self, name, total, unit: Bar(name, total, unit))
    edits = [
        (),
        ("--init", photo),
        ("--init", photo, "--strength", 0.3),
        ("--init", photo, "--inpaint", mask, "--resample", 3),
        ("--init", photo, "--inpaint", mask, "--strength", 0.4),
        ("--interpolate", photo, other_photo, "--strength", 0.7),
    ]
    for edit in edits:
        sampled(photos_run, *STEPS, "--num", 3, *edit, "-o", tmp_path / "a.npz")
    assert len(bars) == len(edits)
    assert all(total == done > 0 for total, done in bars), bars


def test_a_stage_of_the_run_guides_it(photos_run, tmp_path):
    words = (*STEPS, "--num", 4)
    sampled(photos_run, *words, "--guide", "pretrain", "--guidance", 1.5, "-o", tmp_path / "guided.npz")
    strong, weak = maskdm.load(photos_run), maskdm.load(photos_run, weights="pretrain-ema")
    wanted = torch.from_numpy(to_uint8_nhwc(maskdm.sample(strong, 4, steps=6, guidance=1.5, guide=weak)))
    assert torch.equal(unit(tmp_path / "guided.npz"), wanted)
    weak_file = photos_run / "weights" / "pretrain-ema.safetensors"
    sampled(photos_run, *words, "--guide", weak_file, "--guidance", 1.5, "-o", tmp_path / "file.npz")
    assert torch.equal(unit(tmp_path / "file.npz"), wanted)
    for other in ((), ("--guidance", 1.5), ("--guide", "pretrain", "--guidance", 2)):
        sampled(photos_run, *words, *other, "-o", tmp_path / "other.npz")
        assert not torch.equal(unit(tmp_path / "other.npz"), wanted)
    interval = ("--guide", "pretrain", "--guidance", 1.5, "--guidance-interval", "0.2,0.7")
    sampled(photos_run, *words, *interval, "-o", tmp_path / "interval.npz")
    wanted = maskdm.sample(strong, 4, steps=6, guidance=1.5, guide=weak, guidance_interval=(0.2, 0.7))
    assert torch.equal(unit(tmp_path / "interval.npz"), torch.from_numpy(to_uint8_nhwc(wanted)))


def test_the_weights_of_a_stage_can_be_asked_for(photos_run, tmp_path):
    for weights in ("pretrain-ema", "pretrain-raw", "finetune-raw"):
        sampled(photos_run, *STEPS, "--num", 2, "--weights", weights, "-o", tmp_path / "a.npz")
        wanted = maskdm.sample(maskdm.load(photos_run, weights=weights), 2, steps=6)
        assert torch.equal(unit(tmp_path / "a.npz"), torch.from_numpy(to_uint8_nhwc(wanted)))


@pytest.mark.parametrize(
    "option", [("--grid", "karras"), ("--grid", "logsnr"), ("--shift", 3.0), ("--grid", "uniform")]
)
def test_the_grid_of_times_can_be_asked_for(option, digits_run, tmp_path):
    name, value = option
    sampled(digits_run, *STEPS, "--num", 2, name, value, "-o", tmp_path / "a.npz")
    denoiser = maskdm.load(digits_run)
    wanted = maskdm.sample(denoiser, 2, steps=6, **{name.removeprefix("--"): value})
    assert torch.equal(unit(tmp_path / "a.npz"), torch.from_numpy(to_uint8_nhwc(wanted)))
    usual = torch.equal(wanted, maskdm.sample(denoiser, 2, steps=6))
    assert usual == (value == "uniform")


def test_what_makes_no_sense_is_refused_in_one_line(photos_run, digits_run, photo, other_photo, mask, tmp_path, capsys):
    black, text, gone = tmp_path / "black.png", tmp_path / "text.png", tmp_path / "gone.png"
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(black)
    text.write_text("no picture")
    cases = {
        ("--strength", 0.5): "--strength: got it without a picture",
        ("--resample", 2): "--resample: only with --inpaint",
        ("--init", photo, "--resample", 2): "--resample: only with --inpaint",
        ("--inpaint", mask): "--inpaint: needs the picture around the hole; give it with --init",
        ("--interpolate", photo, other_photo, "--init", photo): "--interpolate: takes its two pictures itself",
        ("--interpolate", photo, other_photo, "--inpaint", mask): "--interpolate: takes its two pictures itself",
        ("--interpolate", photo): "--interpolate: expected 2 arguments",
        ("--interpolate", photo, other_photo, "--num", 1): "num: got 1, wanted at least 2",
        ("--interpolate", photo, other_photo, "--labels", "cat,dog"): "labels: got several",
        ("--interpolate", photo, other_photo, "--sampler", "ancestral"): "sampler: adds fresh noise",
        ("--init", gone): f"{gone}: cannot be read (No such file",
        ("--init", tmp_path): f"{tmp_path}: cannot be read (Is a directory",
        ("--init", text): f"{text}: cannot be read",
        ("--init", photo, "--inpaint", gone): f"{gone}: cannot be read",
        ("--init", photo, "--inpaint", black): f"--inpaint: {black} is white nowhere",
        ("--init", photo, "--inpaint", mask, "--resample", 0): "resample: got 0",
        ("--init", photo, "--strength", 2): "strength: got 2",
        ("--init", photo, "--strength", "much"): "--strength",
        ("--init", photo, "--strength", 0.0001): "strength: got 0.0001, less than the first of the steps",
        ("--guide", "pretrain"): "guide: given without guidance",
        (
            "--guide",
            "pretrian",
            "--guidance",
            2,
        ): "--guide: got 'pretrian', wanted finetune, pretrain, another run or a weights file",
        ("--guide", digits_run, "--guidance", 2): "guide: makes images of 1 x (8, 8)",
        ("--guidance", 2, "--guidance-interval", "0.2"): "--guidance-interval: got '0.2'",
        ("--guidance", 2, "--guidance-interval", "0.7,0.2"): "guidance_interval: got 0.7 to 0.2",
        ("--guidance-interval", "0.2,0.7"): "guidance_interval: given without guidance",
        ("--weights", "pretrian-ema"): "pretrian-ema",
        ("--grid", "karas"): "grid: got 'karas', wanted one of uniform, karras, logsnr",
        ("--shift", 0): "shift: got 0",
        ("--backbone", "uvit"): "--backbone: got 'uvit', wanted module:Class",
    }
    for words, sentence in cases.items():
        error = refused(capsys, photos_run, *STEPS, *words, "-o", tmp_path / "out")
        assert sentence in error, words
    assert not (tmp_path / "out").exists()


def test_counts_that_nothing_reads_do_no_harm():
    editing.silent(3)
