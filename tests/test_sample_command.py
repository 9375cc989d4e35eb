"""`maskdm sample` against the samplers and edits it stands on: the same images, to the last byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import maskdm
from maskdm.cli.main import main
from maskdm.diffusion.pixels import to_model, to_uint8_nhwc
from maskdm.sampling.edit import img2img, inpaint
from maskdm.sampling.sample import sampling_config

STEPS = ("--steps", "6")


def sampled(*words: object) -> None:
    """Samples, whatever was made in the same place before."""
    assert main(["sample", *map(str, words), "--overwrite"]) == 0


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


def as_files(images: Tensor) -> Tensor:
    """(num, C, H, W) in [0, 1] -> as the files have it."""
    return torch.from_numpy(to_uint8_nhwc(images))


@pytest.fixture
def photo(tmp_path) -> Path:
    """An image of the size of the run's: dark above and bright below."""
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
    """White in the middle, twice as large as the images."""
    array = np.zeros((32, 32), dtype=np.uint8)
    array[8:24, 8:24] = 255
    Image.fromarray(array).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def as_model_sees(path: Path) -> Tensor:
    return to_model(pixels(path)[None])


def test_img2img_gives_the_images_of_the_library(photos_run, photo, tmp_path, capsys):
    out = tmp_path / "here" / "varied"
    words = (*STEPS, "--num", 5, "--seeds", "3-5", "--labels", "dog,none", "--sampler", "ancestral")
    sampled(photos_run, "--init", photo, "--strength", 0.4, *words, "-o", out)
    names = ["seed-000003-0", "seed-000004-0", "seed-000005-0", "seed-000003-1", "seed-000004-1"]
    assert {path.name for path in out.iterdir()} == {"grid.png", "samples.json", *(f"{name}.png" for name in names)}
    assert f"5 images in {out}" in capsys.readouterr().err
    config = sampling_config(
        maskdm.load(photos_run), steps=6, sampler="ancestral", seeds=[3, 4, 5], labels=["dog", "none"]
    )
    wanted = as_files(img2img(config, as_model_sees(photo), 0.4, 5))
    assert torch.equal(torch.stack([pixels(out / f"{name}.png") for name in names]), wanted)


def test_img2img_has_its_defaults(photos_run, photo, tmp_path):
    """Among them no class: an image belongs to whatever it shows."""
    words = ("--strength", 0.6, "--num", 16, "--labels", "none")
    sampled(photos_run, *STEPS, "--init", photo, "-o", tmp_path / "a.npz")
    sampled(photos_run, *STEPS, "--init", photo, *words, "-o", tmp_path / "b.npz")
    assert unit(tmp_path / "a.npz").shape == (16, 16, 16, 3)
    assert torch.equal(unit(tmp_path / "a.npz"), unit(tmp_path / "b.npz"))


def test_strength_one_is_sampling_without_an_image(photos_run, photo, other_photo, tmp_path):
    words = (*STEPS, "--num", 3, "--labels", "cat,none")
    sampled(photos_run, *words, "-o", tmp_path / "plain.npz")
    for init in (photo, other_photo):
        sampled(photos_run, *words, "--init", init, "--strength", 1, "-o", tmp_path / "forgotten.npz")
        assert torch.equal(unit(tmp_path / "forgotten.npz"), unit(tmp_path / "plain.npz"))


def test_an_image_of_any_kind_is_resized(photos_run, other_photo, tmp_path):
    sampled(photos_run, "--steps", 200, "--num", 2, "--init", other_photo, "--strength", 0.02, "-o", tmp_path / "a.npz")
    generated = unit(tmp_path / "a.npz").float()
    assert generated[:, :7].mean() > generated[:, 9:].mean() + 100  # still bright above and dark below


def test_inpainting_gives_the_images_of_the_library(photos_run, photo, mask, tmp_path):
    words = (*STEPS, "--num", 4, "--sampler", "heun", "--labels", "cat", "--init", photo, "--inpaint", mask)
    sampled(photos_run, *words, "-o", tmp_path / "filled")
    generated = torch.stack([pixels(path) for path in sorted((tmp_path / "filled").glob("seed-*.png"))])
    masked = torch.zeros(16, 16, dtype=torch.bool)
    masked[4:12, 4:12] = True
    assert torch.equal(generated[:, ~masked], pixels(photo)[~masked].expand(4, -1, -1))
    assert not (generated[:, masked] == pixels(photo)[masked]).all(dim=(1, 2)).any()
    config = sampling_config(maskdm.load(photos_run), steps=6, sampler="heun", labels=["cat"], seeds=range(4))
    wanted = inpaint(config, as_model_sees(photo)[0], masked, 4)
    assert torch.equal(generated, as_files(wanted))
    sampled(photos_run, *words, "--resample", 3, "--strength", 0.7, "-o", tmp_path / "again.npz")
    wanted = inpaint(config, as_model_sees(photo)[0], masked, 4, strength=0.7, resample=3)
    assert torch.equal(unit(tmp_path / "again.npz"), as_files(wanted))


def test_interpolation(photos_run, photo, other_photo, tmp_path):
    words = ("--steps", 20, "--interpolate", photo, other_photo, "--num", 5)
    sampled(photos_run, *words, "-o", tmp_path / "between")
    assert len(list((tmp_path / "between").glob("*.png"))) == 6
    sampled(photos_run, *words, "-o", tmp_path / "between.npz")
    between = unit(tmp_path / "between.npz")
    # Not one class after another, but none, or the one that was asked for.
    sampled(photos_run, *words, "--labels", "none", "-o", tmp_path / "none.npz")
    assert torch.equal(unit(tmp_path / "none.npz"), between)
    sampled(photos_run, *words, "--labels", "cat", "-o", tmp_path / "cat.npz")
    assert not torch.equal(unit(tmp_path / "cat.npz"), between)
    small = pixels(tmp_path / "between" / "seed-000000.png")
    assert torch.equal(small, between[0])
    sampled(photos_run, *words, "--strength", 0.3, "-o", tmp_path / "near.npz")
    near = unit(tmp_path / "near.npz").float()
    errors = [(near[i] - pixels(photo)).abs().mean() for i in (0, 4)]
    assert errors[0] < errors[1]


def test_a_bar_of_steps_ends_where_it_should(photos_run, photo, other_photo, mask, tmp_path, monkeypatch):
    from maskdm.runtime.console import Console

    bars: list[list[int]] = []

    class Bar:
        def __init__(self, name: str, total: int) -> None:
            bars.append([total, 0])

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, steps: int) -> None:
            bars[-1][1] += steps

    monkeypatch.setattr(Console, "bar", lambda self, name, total: Bar(name, total))
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
    assert bars == [[3, 3]] * len(edits)  # images, the unit of all bars


def test_a_stage_of_the_run_guides_it(photos_run, tmp_path):
    words = (*STEPS, "--num", 4)
    sampled(photos_run, *words, "--guide", "pretrain", "--guidance", 1.5, "-o", tmp_path / "guided.npz")
    strong, weak = maskdm.load(photos_run), maskdm.load(photos_run, weights="pretrain-ema")
    wanted = as_files(maskdm.sample(strong, 4, steps=6, guidance=1.5, guide=weak))
    assert torch.equal(unit(tmp_path / "guided.npz"), wanted)
    sampled(photos_run, *words, "--guide", "pretrain-ema", "--guidance", 1.5, "-o", tmp_path / "ema.npz")
    assert torch.equal(unit(tmp_path / "ema.npz"), wanted)
    weak_file = photos_run / "weights" / "pretrain-ema.safetensors"
    sampled(photos_run, *words, "--guide", weak_file, "--guidance", 1.5, "-o", tmp_path / "file.npz")
    assert torch.equal(unit(tmp_path / "file.npz"), wanted)
    for other in ((), ("--guidance", 1.5), ("--guide", "pretrain", "--guidance", 2)):
        sampled(photos_run, *words, *other, "-o", tmp_path / "other.npz")
        assert not torch.equal(unit(tmp_path / "other.npz"), wanted)
    interval = ("--guide", "pretrain", "--guidance", 1.5, "--guidance-interval", "0.2,0.7")
    sampled(photos_run, *words, *interval, "-o", tmp_path / "interval.npz")
    wanted = maskdm.sample(strong, 4, steps=6, guidance=1.5, guide=weak, guidance_interval=(0.2, 0.7))
    assert torch.equal(unit(tmp_path / "interval.npz"), as_files(wanted))


def test_the_weights_of_a_stage_can_be_chosen(photos_run, tmp_path):
    for weights in ("pretrain", "pretrain-ema", "pretrain-raw", "finetune-raw"):
        sampled(photos_run, *STEPS, "--num", 2, "--weights", weights, "-o", tmp_path / "a.npz")
        wanted = maskdm.sample(maskdm.load(photos_run, weights=weights), 2, steps=6)
        assert torch.equal(unit(tmp_path / "a.npz"), as_files(wanted))


@pytest.mark.parametrize(
    "option", [("--spacing", "karras"), ("--spacing", "logsnr"), ("--shift", 3.0), ("--spacing", "uniform")]
)
def test_the_spacing_of_times_can_be_chosen(option, digits_run, tmp_path):
    name, value = option
    sampled(digits_run, *STEPS, "--num", 2, name, value, "-o", tmp_path / "a.npz")
    denoiser = maskdm.load(digits_run)
    wanted = maskdm.sample(denoiser, 2, steps=6, **{name.removeprefix("--"): value})
    assert torch.equal(unit(tmp_path / "a.npz"), as_files(wanted))
    usual = torch.equal(wanted, maskdm.sample(denoiser, 2, steps=6))
    assert usual == (value == "uniform")


def test_what_makes_no_sense_is_refused_in_one_line(photos_run, photo, other_photo, mask, tmp_path, capsys):
    black, text, gone = tmp_path / "black.png", tmp_path / "text.png", tmp_path / "gone.png"
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(black)
    text.write_text("no image")
    both = ("--interpolate", photo, other_photo)
    cases = {
        ("--init", photo, "--resample", 2): "--resample",
        (*both, "--init", photo): "--interpolate",
        (*both, "--inpaint", mask): "--interpolate",
        (*both, "--num", 1): "--num: got 1",
        (*both, "--labels", "cat,dog"): "--labels",
        (*both, "--sampler", "ancestral"): "--sampler",
        ("--init", gone): f"{gone}",
        ("--init", tmp_path): f"{tmp_path}",
        ("--init", text): f"{text}",
        ("--init", photo, "--inpaint", gone): f"{gone}",
        ("--init", photo, "--inpaint", black): f"--inpaint: {black}",
        ("--init", photo, "--inpaint", mask, "--resample", 0): "--resample: got 0",
        ("--init", photo, "--strength", 2): "--strength: got 2",
        ("--weights", "pretrian-ema"): f"{photos_run}: ",
    }
    for words, start in cases.items():
        error = refused(capsys, photos_run, *STEPS, *words, "-o", tmp_path / "out")
        assert error.startswith(f"maskdm: error: {start}"), words
    assert not (tmp_path / "out").exists()
