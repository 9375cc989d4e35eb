"""Starting from another model: what is kept, fitted, new and dropped, and what the network still does afterwards."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, write_digits
from torch import Tensor, nn
from torch.nn import functional as F

from maskdm.cli.main import main
from maskdm.config.model_config import MODELS as CONFIGS
from maskdm.config.process_config import DDPMConfig, FlowConfig, ProcessConfig, VPConfig
from maskdm.diffusion.patches import patchify
from maskdm.errors import ArgumentError, InputError
from maskdm.models import build, transfer, weights
from maskdm.models.haar import Haar
from maskdm.models.layers import resize_positions
from maskdm.models.official import read_official
from maskdm.models.spec import ModelSpec
from maskdm.models.weights import Weights
from maskdm.training.read_run import read_history

OFFICIAL = Path(__file__).parent / "data"
MODELS = {
    "uvit": {"backbone": "uvit", "width": 16, "depth": 3, "heads": 2, "time_mlp": True, "qkv_bias": True},
    "jit": {"backbone": "jit", "width": 16, "depth": 3, "heads": 2, "bottleneck": 12, "class_tokens": 2},
    "unet": {"backbone": "unet", "width": 8, "depth": 1, "heads": 2, "levels": (1, 2)},
}
VITS = ("uvit", "jit")
T = torch.tensor([3, 500, 999])
IMAGES = len(T)


def spec_of(
    backbone: str,
    *,
    size: tuple[int, int] = (8, 8),
    channels: int = 1,
    patch: int = 4,
    classes: tuple[str, ...] = (),
    haar: int = 0,
    process: ProcessConfig | None = None,
    **model: Any,
) -> ModelSpec:
    if backbone == "unet" and haar and "levels" not in model:
        model["levels"] = (2, 1)
    settings = MODELS[backbone] | {"patch_size": patch, "haar_levels": haar} | model
    return ModelSpec(
        model=CONFIGS[backbone](**settings),
        process=process or DDPMConfig(),
        image_size=size,
        channels=channels,
        class_names=classes,
    )


def network_of(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """Weights none of which is zero, or alike."""
    torch.manual_seed(seed)
    network = build.backbone(spec)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network.eval().requires_grad_(False)


def write(path: Path, spec: ModelSpec, network: nn.Module) -> Path:
    weights.write_weights(path, Weights(spec, {}, network.state_dict()))
    return path


def moved(old: ModelSpec, new: ModelSpec, folder: Path) -> tuple[nn.Module, nn.Module, list[str]]:
    """A model as `old` says, one as `new` says that starts from its file, and what is said of it."""
    source, network = network_of(old), network_of(new, seed=1)
    said = transfer.inherit(network, new, write(folder / "old.safetensors", old, source), "ema")
    assert said[0] == str(folder / "old.safetensors")
    assert all("\n" not in sentence for sentence in said)
    return source, network, said[1:]


def names(said: list[str], what: str) -> set[str]:
    """The tensors that a sentence such as "fitted: a, b" lists, without the prefix of wavelets."""
    lists = [line.removeprefix(f"{what}: ") for line in said if line.startswith(f"{what}: ")]
    assert len(lists) <= 1
    return {name.removeprefix("inner.") for text in lists for name in text.split(", ")}


def bare(network: nn.Module) -> nn.Module:
    return network.inner if isinstance(network, Haar) else network


def output(network: nn.Module, images: Tensor, label: Tensor | None = None) -> Tensor:
    return network(images, T, label=label)


def close(a: Tensor, b: Tensor) -> None:
    assert a.abs().max() > 0.01  # there is something to compare
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(a.abs().max()))


@pytest.fixture(params=itertools.product(MODELS, (0, 1)), ids=lambda p: p[0] + ("-haar" if p[1] else ""))
def kind(request) -> dict[str, Any]:
    backbone, haar = request.param
    return {"backbone": backbone, "haar": haar}


# --- the same model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [(), ("cat", "dog")], ids=str)
def test_the_same_model_is_the_same_model(kind, classes, tmp_path):
    spec = spec_of(**kind, classes=classes, channels=3)
    old, new, said = moved(spec, spec, tmp_path)
    assert said == [f"{len(old.state_dict())} tensors kept"]
    label = torch.tensor([0, 1, 2]) if classes else None
    x_t = torch.randn(IMAGES, 3, 8, 8)
    assert torch.equal(output(old, x_t, label), output(new, x_t, label))


def test_raw_weights_are_others_than_the_average(photos_run):
    read = {which: transfer.read_source(photos_run, which)[1].tensors for which in ("ema", "raw", "pretrain-ema")}
    assert not torch.equal(read["ema"]["head.weight"], read["raw"]["head.weight"])
    assert not torch.equal(read["ema"]["head.weight"], read["pretrain-ema"]["head.weight"])


# --- another size ----------------------------------------------------------------------------------------------------


def test_images_of_another_size_leave_everything_but_learned_positions(kind, tmp_path):
    old, new, said = moved(spec_of(**kind), spec_of(**kind, size=(16, 8)), tmp_path)
    fitted = {"position.weight"} if kind["backbone"] == "uvit" else set()
    assert names(said, "fitted") == fitted
    assert not names(said, "new") | names(said, "dropped")
    assert said[0] == f"{len(old.state_dict()) - len(fitted)} tensors kept"
    assert said[-1] == "images (16, 8) instead of (8, 8)"
    for name, tensor in bare(new).state_dict().items():
        if name not in fitted:
            assert torch.equal(tensor, bare(old).state_dict()[name]), name
    assert output(new, torch.randn(IMAGES, 1, 16, 8)).isfinite().all()


@pytest.mark.parametrize("classes", [(), ("cat", "dog")], ids=str)
def test_positions_are_resized_as_an_image_and_extra_tokens_keep_theirs(classes, tmp_path):
    shared: dict[str, Any] = {"backbone": "uvit", "classes": classes}
    old, new, _ = moved(spec_of(**shared), spec_of(**shared, size=(16, 24)), tmp_path)
    rows, resized = old.position.weight, new.position.weight
    extras = 2 if classes else 1
    assert resized.shape == (extras + 24, 16)
    assert torch.equal(rows[:extras], resized[:extras])
    assert torch.equal(resized, resize_positions(rows, (2, 2), (4, 6)))


# --- other channels --------------------------------------------------------------------------------------------------


def test_gray_to_colour_puts_out_in_every_channel_what_gray_did(kind, tmp_path):
    old, new, said = moved(spec_of(**kind), spec_of(**kind, channels=3), tmp_path)
    gray = torch.randn(IMAGES, 1, 8, 8)
    close(output(old, gray).expand(-1, 3, -1, -1), output(new, gray.expand(-1, 3, -1, -1)))
    layout = {name for name, role in type(bare(new)).layout.items() if role not in ("positions", "labels")}
    assert names(said, "fitted") == layout
    assert not names(said, "new") | names(said, "dropped")
    assert said[-1] == "channels 3 instead of 1"


def test_gray_to_colour_hears_every_channel_alike(kind, tmp_path):
    _, new, _ = moved(spec_of(**kind), spec_of(**kind, channels=3), tmp_path)
    colour = torch.randn(IMAGES, 3, 8, 8)
    close(output(new, colour), output(new, colour.roll(1, dims=1)))
    other = colour + torch.randn(IMAGES, 3, 8, 8)
    assert not torch.allclose(output(new, colour), output(new, other), atol=1e-3)


def test_colour_to_gray_puts_out_the_mean_of_what_colour_did(kind, tmp_path):
    old, new, said = moved(spec_of(**kind, channels=3), spec_of(**kind), tmp_path)
    gray = torch.randn(IMAGES, 1, 8, 8)
    close(output(old, gray.expand(-1, 3, -1, -1)).mean(dim=1, keepdim=True), output(new, gray))
    assert said[-1] == "channels 1 instead of 3"


def test_gray_to_colour_and_back_is_nothing(kind, tmp_path):
    gray, colour = spec_of(**kind), spec_of(**kind, channels=3)
    old, middle, _ = moved(gray, colour, tmp_path)
    new = network_of(gray, seed=2)
    transfer.inherit(new, gray, write(tmp_path / "middle.safetensors", colour, middle), "ema")
    x_t = torch.randn(IMAGES, 1, 8, 8)
    close(output(old, x_t), output(new, x_t))


@pytest.mark.parametrize(("there", "here"), [(3, 4), (4, 1), (1, 2), (2, 3)])
def test_other_changes_of_channels_start_those_tensors_from_fresh_weights(kind, there, here, tmp_path):
    fresh = network_of(spec_of(**kind, channels=here), seed=1)
    old, new, said = moved(spec_of(**kind, channels=there), spec_of(**kind, channels=here), tmp_path)
    fresh_tensors = {name for name, role in type(bare(new)).layout.items() if role not in ("positions", "labels")}
    assert names(said, "new") == fresh_tensors
    assert not names(said, "fitted") | names(said, "dropped")
    for name, tensor in bare(new).state_dict().items():
        origin = fresh if name in fresh_tensors else old
        assert torch.equal(tensor, bare(origin).state_dict()[name]), name


# --- other classes ---------------------------------------------------------------------------------------------------


def test_classes_go_by_their_names_and_a_new_one_begins_as_none(kind, tmp_path):
    there, here = ("cat", "dog", "emu"), ("dog", "bee", "cat")
    old, new, said = moved(spec_of(**kind, classes=there), spec_of(**kind, classes=here), tmp_path)
    x_t = torch.randn(IMAGES, 1, 8, 8)

    def outputs(network: nn.Module, number: int) -> Tensor:
        return output(network, x_t, torch.full((IMAGES,), number))

    before = [outputs(old, number) for number in range(4)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(before, 2))
    for number, name in enumerate(here):
        assert torch.equal(outputs(new, number), before[there.index(name) if name in there else 3]), name
    assert torch.equal(outputs(new, 3), before[3])
    assert torch.equal(output(new, x_t), before[3])
    assert names(said, "fitted") == {"label.weight"}
    assert said[-1] == "2 classes known, 1 new, 1 dropped"


def test_an_unconditional_model_becomes_conditional(kind, tmp_path):
    old, new, said = moved(spec_of(**kind), spec_of(**kind, classes=("cat", "dog")), tmp_path)
    backbone = kind["backbone"]
    assert names(said, "new") == {"label.weight"} | ({"class_token.weight"} if backbone == "jit" else set())
    assert names(said, "fitted") == ({"position.weight"} if backbone == "uvit" else set())
    assert not names(said, "dropped")
    assert said[-1] == "0 classes known, 2 new, 0 dropped"
    if backbone == "uvit":  # the token of the label stands first
        fresh = bare(network_of(spec_of(**kind, classes=("cat", "dog")), seed=1)).position.weight
        assert torch.equal(bare(new).position.weight[1:], bare(old).position.weight)
        assert torch.equal(bare(new).position.weight[:1], fresh[:1])
    assert output(new, torch.randn(IMAGES, 1, 8, 8), torch.tensor([0, 1, 2])).isfinite().all()


def test_a_conditional_model_becomes_unconditional(kind, tmp_path):
    old, new, said = moved(spec_of(**kind, classes=("cat", "dog")), spec_of(**kind), tmp_path)
    backbone = kind["backbone"]
    assert names(said, "dropped") == {"label.weight"} | ({"class_token.weight"} if backbone == "jit" else set())
    assert names(said, "fitted") == ({"position.weight"} if backbone == "uvit" else set())
    assert not names(said, "new")
    assert said[-1] == "0 classes known, 0 new, 2 dropped"
    if backbone == "uvit":
        assert torch.equal(bare(new).position.weight, bare(old).position.weight[1:])


def test_a_unet_that_forgets_its_classes_is_what_it_was_but_for_none(tmp_path):
    """Its label is only added: without, its output is as if "no class" were a row of zeros."""
    old, new, _ = moved(spec_of("unet", classes=("cat", "dog")), spec_of("unet"), tmp_path)
    old.label.weight[-1] = 0
    x_t = torch.randn(IMAGES, 1, 8, 8)
    assert torch.equal(output(old, x_t), output(new, x_t))


# --- other patches ---------------------------------------------------------------------------------------------------


def enlarged(images: Tensor, patch: int, wanted: int) -> Tensor:
    """Every patch resized for itself, as a small image."""
    B, C, H, W = images.shape
    cells = images.unflatten(3, (W // patch, patch)).unflatten(2, (H // patch, patch)).permute(0, 2, 4, 1, 3, 5)
    cells = F.interpolate(cells.flatten(0, 2), size=(wanted, wanted), mode="bilinear", align_corners=False)
    cells = cells.view(B, H // patch, W // patch, C, wanted, wanted).permute(0, 3, 1, 4, 2, 5)
    return cells.flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("haar", [0, 1, 2])
@pytest.mark.parametrize("backbone", VITS)
@pytest.mark.parametrize(("patch", "classes"), [(8, ()), (12, ("cat",))], ids=["twice", "three times"])
def test_an_enlarged_image_gives_an_enlarged_output(backbone, haar, patch, classes, tmp_path):
    shared: dict[str, Any] = {"backbone": backbone, "haar": haar, "channels": 2, "classes": classes}
    size = (2 * patch, 3 * patch)
    old, new, said = moved(spec_of(**shared, size=(8, 12)), spec_of(**shared, size=size, patch=patch), tmp_path)
    small = torch.randn(IMAGES, 2, 8, 12)
    large = enlarged(small, 4, patch)
    assert large.shape[2:] == size
    if not haar:
        close(old.embed(patchify(small, 4)), new.embed(patchify(large, patch)))
    close(enlarged(output(old, small), 4, patch), output(new, large))
    assert not {"position.weight"} & names(said, "fitted")  # the grid is the same
    assert f"patches of {patch} instead of 4" in said
    assert f"images {size} instead of (8, 12)" in said


@pytest.mark.parametrize("backbone", VITS)
def test_size_channels_and_classes_change_at_once(backbone, tmp_path):
    old, new, said = moved(
        spec_of(backbone, classes=("cat", "dog")),
        spec_of(backbone, classes=("dog",), size=(16, 16), patch=8, channels=3, haar=0),
        tmp_path,
    )
    gray = torch.randn(IMAGES, 1, 8, 8)
    before = output(old, gray, torch.full((IMAGES,), 1))
    after = output(new, enlarged(gray, 4, 8).expand(-1, 3, -1, -1), torch.zeros(IMAGES, dtype=torch.int64))
    close(enlarged(before, 4, 8).expand(-1, 3, -1, -1), after)
    assert said[-4:] == [
        "images (16, 16) instead of (8, 8)",
        "patches of 8 instead of 4",
        "channels 3 instead of 1",
        "1 classes known, 0 new, 1 dropped",
    ]


@pytest.mark.parametrize("backbone", VITS)
def test_smaller_patches_of_the_same_images_make_a_finer_grid(backbone, tmp_path):
    old, new, said = moved(spec_of(backbone), spec_of(backbone, patch=2), tmp_path)
    assert names(said, "fitted") >= {"head.weight", "head.bias"}
    assert not names(said, "new") | names(said, "dropped")
    assert said[-1] == "patches of 2 instead of 4"
    image = old.head.bias.view(1, 1, 4, 4)
    half = F.interpolate(image, size=(2, 2), mode="bilinear", antialias=True)
    close(half.flatten(), new.head.bias)
    # The embedding of a small patch is that of the plainest large one that it could have been.
    shrink = F.interpolate(torch.eye(16).view(16, 1, 4, 4), size=(2, 2), mode="bilinear", antialias=True).view(16, 4).T
    patch = torch.randn(5, 4)
    close(old.embed(patch @ torch.linalg.pinv(shrink).T), new.embed(patch))
    assert output(new, torch.randn(IMAGES, 1, 8, 8)).isfinite().all()


def test_patches_are_nothing_to_a_unet(tmp_path):
    old, new, said = moved(spec_of("unet"), spec_of("unet", patch=2), tmp_path)
    assert said == [f"{len(old.state_dict())} tensors kept", "patches of 2 instead of 4"]
    x_t = torch.randn(IMAGES, 1, 8, 8)
    assert torch.equal(output(old, x_t), output(new, x_t))


# --- other networks and processes ------------------------------------------------------------------------------------

OTHERS = {
    "width": ("uvit", {"width": 32}, "width is 16 there and 32 here"),
    "depth": ("jit", {"depth": 5}, "depth is 3 there and 5 here"),
    "heads": ("jit", {"heads": 1}, "heads is 2 there and 1 here"),
    "levels": ("unet", {"levels": (2, 2)}, "levels is (1, 2) there and (2, 2) here"),
    "wavelets": ("uvit", {"haar": 1}, "haar_levels is 0 there and 1 here"),
    "mixer": ("uvit", {"mixer_depth": 1}, "mixer_depth is 0 there and 1 here"),
    "bottleneck": ("jit", {"bottleneck": 8}, "bottleneck is 12 there and 8 here"),
    "bias": ("uvit", {"qkv_bias": False}, "qkv_bias is True there and False here"),
}


def refused(old: ModelSpec, new: ModelSpec, folder: Path) -> str:
    """What is said of weights of `old` that a model as `new` says cannot start from."""
    with pytest.raises(ArgumentError) as caught:
        moved(old, new, folder)
    error = caught.value
    file = folder / "old.safetensors"
    assert error.name == "init_from"
    assert error.problem.startswith(f"{file} holds weights of another model: ")
    assert "\n" not in str(error)
    return error.problem.partition("another model: ")[2]


@pytest.mark.parametrize("name", OTHERS)
def test_another_network_is_refused_in_one_line(name, tmp_path):
    backbone, changes, difference = OTHERS[name]
    found = refused(spec_of(backbone), spec_of(backbone, **changes), tmp_path)
    assert difference in found.split("; ")


def test_another_backbone_is_refused_and_every_difference_is_named(tmp_path):
    found = refused(spec_of("uvit"), spec_of("jit", width=32, mixer_depth=1), tmp_path)
    assert found == (
        "backbone is uvit there and jit here; width is 16 there and 32 here; mixer_depth is 0 there and 1 here"
    )


def test_a_refusal_leaves_the_network_as_it_was(tmp_path):
    old, new = spec_of("uvit"), spec_of("uvit", width=32)
    network = network_of(new)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ArgumentError):
        transfer.inherit(network, new, write(tmp_path / "old.safetensors", old, network_of(old)), "ema")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_another_process_is_told(tmp_path):
    there = VPConfig(prediction="v", schedule="linear")
    here = FlowConfig(prediction="velocity", loss="x0")
    _, _, said = moved(spec_of("uvit", process=there), spec_of("uvit", process=here), tmp_path)
    assert said[-1] == ("trained for another process (kind vp -> flow, prediction v -> velocity, loss same -> x0)")


def test_a_layout_with_an_unknown_role_is_refused(tmp_path, monkeypatch):
    spec = spec_of("uvit")
    network = network_of(spec)
    monkeypatch.setattr(type(network), "layout", {"embed.weight": "patchin"})
    with pytest.raises(InputError) as caught:
        transfer.inherit(network, spec, write(tmp_path / "old.safetensors", spec, network), "ema")
    assert caught.value.name == "model.backbone"
    assert caught.value.problem == "the layout of uvit calls embed.weight 'patchin'"


# --- runs ------------------------------------------------------------------------------------------------------------


def trained(data: Path, folder: Path, *words: str) -> tuple[Path, str]:
    """A run of `maskdm train`, and its log."""
    assert main(["train", "--data", str(data), "--output-dir", str(folder), *TINY, "eval.samples=0", *words]) == 0
    (run,) = folder.iterdir()
    return run, (run / "log.txt").read_text()


def test_a_run_starts_from_another_of_gray_digits(digits_run, photos, tmp_path):
    """8 x 8 gray without classes -> 16 x 16 colour with two."""
    run, log = trained(photos, tmp_path / "runs", f"stages.0.init_from={digits_run}", "model.patch_size=4")
    (line,) = (line for line in log.splitlines() if str(digits_run) in line)
    for words in (
        f"starts from ema weights of {digits_run}",
        str(digits_run / "weights" / "ema.safetensors"),
        "tensors kept; fitted: embed.weight, position.weight, ",
        "new: label.weight",
        "images (16, 16) instead of (8, 8); patches of 4 instead of 2; channels 3 instead of 1",
        "0 classes known, 2 new, 0 dropped",
    ):
        assert words in line
    assert "process" not in line
    stages = read_history(run).stages
    assert stages[0].started_from == f"ema weights of {digits_run}"
    assert stages[1].started_from == "ema weights of pretrain"


def test_a_later_stage_may_start_from_another_run_and_its_last_weights(digits_run, tmp_path):
    data = write_digits(tmp_path / "digits.npz")
    words = ("model.classes=none", f"stages.1.init_from={digits_run}", "stages.1.weights=raw", "stages.1.lr=1e-20")
    run, log = trained(data, tmp_path / "runs", *words, "stages.1.weight_decay=0")
    assert f"starts from raw weights of {digits_run}" in log
    after, before = (weights.read_weights(r / "weights" / "raw.safetensors").tensors for r in (run, digits_run))
    for name, tensor in before.items():
        torch.testing.assert_close(tensor, after[name], rtol=0, atol=1e-6)


def test_weights_that_do_not_fit_are_refused_before_there_is_a_run(digits_run, photos, tmp_path, capsys):
    words = [*TINY, "model.width=32", f"stages.1.init_from={digits_run}"]
    assert main(["train", "--data", str(photos), "--output-dir", str(tmp_path / "runs"), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("maskdm: error: stages.1.init_from: ")
    assert "width is 16 there and 32 here" in error
    assert not (tmp_path / "runs").exists()


OFFICIAL_RUNS = {
    "official_uncond_linear": ["model.patch_size=4", "model.width=48", "process.schedule=linear"],
    "official_class_cosine": ["model.patch_size=2", "model.width=32", "model.qkv_bias=true", "model.time_mlp=true"],
}


@pytest.mark.parametrize("name", OFFICIAL_RUNS)
def test_a_run_starts_from_an_official_checkpoint(name, tmp_path):
    """The learning rate is next to nothing, so that what the run ends with is what it started from."""
    theirs = OFFICIAL / f"{name}.pt"
    source = read_official(theirs, which="ema")
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, source.spec.channels), dtype=np.uint8)
    labels = {"labels": np.arange(60) % 10} if source.spec.class_names else {}
    np.savez(tmp_path / "data.npz", images=images, **labels)
    words = ["model.depth=5", "model.heads=1", "process.prediction=eps", *OFFICIAL_RUNS[name]]
    words += [f"stages.0.init_from={theirs}", "stages.0.lr=1e-20", "stages.1.lr=1e-20"]
    words += ["stages.0.weight_decay=0", "stages.1.weight_decay=0", "stages.0.mask.block=1"]
    run, log = trained(tmp_path / "data.npz", tmp_path / "runs", *words)
    assert f"starts from ema weights of {theirs}; {theirs}; {len(source.tensors)} tensors kept; the file" in log
    ours = weights.read_weights(run / "weights" / "ema.safetensors")
    assert ours.spec.class_names == source.spec.class_names
    assert ours.spec.process == source.spec.process
    assert ours.tensors.keys() == source.tensors.keys()
    for key, tensor in source.tensors.items():
        torch.testing.assert_close(ours.tensors[key], tensor, rtol=1e-6, atol=1e-7)


def test_an_official_checkpoint_for_another_network_is_refused(photos, tmp_path, capsys):
    words = [*TINY, f"stages.0.init_from={OFFICIAL / 'official_uncond_linear.pt'}"]
    assert main(["train", "--data", str(photos), "--output-dir", str(tmp_path / "runs"), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "width is 48 there and 16 here; depth is 5 there and 3 here; heads is 1 there and 2 here" in error
