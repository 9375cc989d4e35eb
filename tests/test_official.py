"""Our U-ViT against the authors' network: outputs, losses and samples on checkpoints of their form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maskdm.commands.convert import convert
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import denoising_loss
from maskdm.diffusion.masks import Mask
from maskdm.diffusion.patches import gather, patchify
from maskdm.diffusion.pixels import to_unit
from maskdm.errors import InputError
from maskdm.models import build, weights
from maskdm.models.official import read_official
from maskdm.models.official_check import check_outputs
from maskdm.models.transfer import inherit, read_source
from maskdm.sampling.guidance import Guidance, estimator
from maskdm.sampling.samplers import Context, get_sampler, integrate
from maskdm.sampling.timesteps import sampling_times

DATA = Path(__file__).parent / "data"
TOLERANCE = 1e-4
CASES = [
    (name, heads, which)
    for name, heads in (("official_uncond_linear", 4), ("official_class_cosine", 2))
    for which in ("raw", "ema")
]


Case = tuple[Denoiser, dict[str, torch.Tensor]]


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]}-{c[2]}")
def case(request, tmp_path) -> Case:
    return read_case(*request.param, tmp_path)


def read_case(name: str, heads: int, which: str, tmp_path: Path) -> Case:
    file = tmp_path / "imported.safetensors"
    weights.write_weights(file, read_official(DATA / f"{name}.pt", which=which, heads=heads))
    with np.load(DATA / f"{name}.npz") as archive:
        vectors = {key: torch.from_numpy(archive[key]) for key in archive.files}
    own = {key.removeprefix(f"{which}."): value for key, value in vectors.items() if key.startswith(f"{which}.")}
    shared = {key: value for key, value in vectors.items() if "." not in key}
    return weights.load(file), own | shared


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def test_outputs(case):
    denoiser, v = case
    label = v.get("label")
    visible = (~v["masked"]).nonzero()[:, 1].reshape(len(v["t"]), -1)
    patch_size = denoiser.backbone.patch_size
    dense = denoiser.backbone(v["x_t"], v["t"], label=label)
    masked = denoiser.backbone(v["x_t"], v["t"], mask=Mask(visible), label=label)
    found = {
        "dense": difference(dense, v["dense"]),
        "visible": difference(gather(patchify(masked, patch_size), visible), v["visible_tokens"]),
    }
    if label is not None:
        found["unconditional"] = difference(denoiser.backbone(v["x_t"], v["t"]), v["dense_unconditional"])
    print(found)
    assert max(found.values()) < TOLERANCE, found


def test_losses(case):
    denoiser, v = case
    visible = (~v["masked"]).nonzero()[:, 1].reshape(len(v["t"]), -1)
    arguments = (denoiser, v["x_0"], v["t"], v["eps"])
    masked = denoising_loss(*arguments, mask=Mask(visible), label=v.get("label")).mean()
    full = denoising_loss(*arguments, label=v.get("label")).mean()
    print(difference(masked, v["loss_masked"]), difference(full, v["loss_full"]))
    assert difference(masked, v["loss_masked"]) < TOLERANCE
    assert difference(full, v["loss_full"]) < TOLERANCE


def test_schedule(case):
    denoiser, v = case
    alpha, _ = denoiser.process.alpha_sigma(torch.arange(1000))
    assert difference(alpha.float() ** 2, v["alphas_cumprod"]) < 1e-6


@pytest.mark.parametrize("which", ["raw", "ema"])
def test_ddim(which, tmp_path):
    denoiser, v = read_case("official_uncond_linear", 4, which, tmp_path)
    times = [float(int(t)) for t in torch.linspace(999, -1, 11)]

    def noise() -> torch.Tensor:
        raise AssertionError("eta = 0 draws nothing")

    context = Context(denoiser.process, estimator(denoiser, Guidance(), None), noise)
    ours = to_unit(integrate(get_sampler("ddim", eta=0.0), context, v["ddim_x_T"], times))
    print(difference(ours, v["ddim10_eta0"]))
    assert difference(ours, v["ddim10_eta0"]) < TOLERANCE


def test_the_linear_schedule_is_sampled_on_the_official_grid(tmp_path):
    denoiser, _ = read_case("official_uncond_linear", 4, "ema", tmp_path)
    times = sampling_times(denoiser.process, denoiser.prediction, 10)
    assert times.tolist() == [float(int(t)) for t in torch.linspace(999, -1, 11)]


@pytest.mark.parametrize("which", ["raw", "ema"])
def test_a_stage_can_start_from_a_checkpoint_as_it_is(which, tmp_path):
    path = DATA / "official_uncond_linear.pt"
    file, read = read_source(path, which)
    assert file == path
    assert read.metadata["which"] == which
    assert read.tensors.keys() == read_official(path, which=which).tensors.keys()
    weights.write_weights(tmp_path / "ours.safetensors", read)
    file, again = read_source(tmp_path / "ours.safetensors", which)
    assert again.spec == read.spec


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02K\x01."])
def test_what_is_no_checkpoint_is_one_line(tmp_path, content):
    file = tmp_path / "x.pt"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_official(file)
    assert caught.value.name == str(file)
    assert "\n" not in str(caught.value)


def test_heads_must_divide():
    with pytest.raises(InputError) as caught:
        read_official(DATA / "official_uncond_linear.pt", heads=5)
    assert (caught.value.name, caught.value.got) == ("heads", 5)


def test_what_is_assumed_of_the_heads_is_said(tmp_path, capsys):
    convert("official", DATA / "official_class_cosine.pt", tmp_path / "a.safetensors")
    said = capsys.readouterr().err
    assert "warning: 1 attention heads are assumed, width 32 / 64" in said
    assert "--check" in said
    convert("official", DATA / "official_class_cosine.pt", tmp_path / "b.safetensors", heads=4)
    assert "warning: 4 attention heads, as given: the checkpoint does not say" in capsys.readouterr().err
    convert("official", DATA / "official_class_cosine.pt", tmp_path / "c.safetensors", quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("name", "heads", "which"), CASES)
def test_an_import_is_checked_against_outputs_of_the_network(name, heads, which, tmp_path, capsys):
    file = tmp_path / "imported.safetensors"
    convert("official", DATA / f"{name}.pt", file, weights=which, heads=heads, check=DATA / f"{name}.npz")
    assert file.exists()
    said = capsys.readouterr().err
    assert "warning" not in said
    difference = float(said.split(" by ")[1].split()[0])
    assert 0 <= difference < 1e-5


@pytest.mark.parametrize(("name", "right"), [("official_uncond_linear", 4), ("official_class_cosine", 2)])
@pytest.mark.parametrize("heads", [None, 1, 8, 16])
def test_wrong_heads_are_found_out_and_the_right_ones_named(name, right, heads, tmp_path):
    file = tmp_path / "imported.safetensors"
    with pytest.raises(InputError) as caught:
        convert("official", DATA / f"{name}.pt", file, heads=heads, check=DATA / f"{name}.npz")
    assert caught.value.name == str(DATA / f"{name}.npz")
    assert caught.value.remedy.startswith(f"with {right} heads ")
    assert not file.exists()


def outputs(**changed: object) -> dict[str, object]:
    with np.load(DATA / "official_class_cosine.npz") as archive:
        found = {"x": archive["ema.x_t"], "t": archive["t"], "y": archive["label"], "output": archive["ema.dense"]}
    return {name: value for name, value in (found | changed).items() if value is not None}


def test_arrays_by_their_plain_names_are_compared(tmp_path):
    np.savez(tmp_path / "outputs.npz", **outputs())
    read = read_official(DATA / "official_class_cosine.pt", heads=2)
    assert check_outputs(read, tmp_path / "outputs.npz", "ema") < 1e-5


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"output": None}, "lacks output"),
        ({"x": None, "t": None}, "lacks x, t"),
        ({"x": np.zeros((3, 1, 8, 8)), "output": np.zeros((3, 1, 8, 8))}, "other images"),
        ({"output": np.zeros((3, 1, 8, 8))}, "differ in shape"),
        ({"t": np.zeros(2)}, "another shape"),
        ({"y": np.array([0, 1, 11])}, "labels"),
        ({"t": np.array(["a", "b", "c"])}, "no numbers"),
        ({"t": np.array([None, 1, 2], dtype=object)}, "not a readable"),
    ],
    ids=str,
)
def test_outputs_that_cannot_be_compared_are_one_line(changed, said, tmp_path):
    np.savez(tmp_path / "outputs.npz", **outputs(**changed))
    read = read_official(DATA / "official_class_cosine.pt", heads=2)
    with pytest.raises(InputError) as caught:
        check_outputs(read, tmp_path / "outputs.npz", "ema")
    assert caught.value.name == str(tmp_path / "outputs.npz")
    assert said in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04"])
def test_a_file_of_outputs_that_is_none_is_one_line(content, tmp_path):
    file = tmp_path / "outputs.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        check_outputs(read_official(DATA / "official_class_cosine.pt", heads=2), file, "ema")
    assert caught.value.name == str(file)


def test_starting_from_a_checkpoint_says_what_is_assumed(tmp_path):
    read = read_official(DATA / "official_uncond_linear.pt")
    network = build.backbone(read.spec)
    said = inherit(network, read.spec, DATA / "official_uncond_linear.pt", "ema")
    assert any("attention heads" in line and "assumed" in line for line in said)
