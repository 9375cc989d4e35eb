"""Weights files: what is written is read back, and what is none of ours, or of another version, is one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maskdm.commands.convert import convert
from maskdm.config.model_config import JiTConfig
from maskdm.config.process_config import FlowConfig
from maskdm.errors import InputError
from maskdm.models import build
from maskdm.models.spec import ModelSpec
from maskdm.models.weights import FORMAT, Weights, find_weights, load, load_state, read_weights, write_weights

SPEC = ModelSpec(
    model=JiTConfig(width=16, depth=1, heads=2, bottleneck=8),
    process=FlowConfig(prediction="velocity", time_mean=0.5),
    image_size=(8, 12),
    channels=1,
    class_names=("cat", "dog"),
)


def write(path: Path, **header: object) -> Path:
    """A file with one tensor and this header."""
    save_file({"x": torch.ones(1)}, path, {"maskdm": json.dumps(header)} if header else None)
    return path


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert caught.value.name == str(path)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_is_written_is_read_back_and_nothing_else_is_left(tmp_path):
    network = build.backbone(SPEC)
    written = Weights(SPEC, {"which": "ema", "steps": 3, "loss": None}, network.state_dict())
    write_weights(tmp_path / "w.safetensors", written)
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
    read = read_weights(tmp_path / "w.safetensors")
    assert (read.spec, read.metadata) == (SPEC, written.metadata)
    assert read.tensors.keys() == written.tensors.keys()
    assert all(torch.equal(tensor, read.tensors[name]) for name, tensor in written.tensors.items())


def test_the_same_model_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        write_weights(tmp_path / name, Weights(SPEC, {"which": "raw"}, {"x": torch.ones(2, 3).T}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("version", ["1", "3", 2, None])
def test_another_format_is_refused(version, tmp_path):
    error = refused(write(tmp_path / "w.safetensors", format=version, model={}, facts={}))
    assert error.problem == f"weights of format {version}"
    assert error.wanted == f"format {FORMAT}"


def test_a_file_of_the_first_format_says_what_to_do(tmp_path):
    assert (
        refused(write(tmp_path / "w.safetensors", format="1")).remedy == "train again, or use the maskdm that wrote it"
    )


@pytest.mark.parametrize("header", [{}, {"model": {}}, {"format": FORMAT}, {"format": FORMAT, "model": {}}])
def test_tensors_without_a_model_are_refused(header, tmp_path):
    assert "no maskdm model" in refused(write(tmp_path / "w.safetensors", **header)).problem


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("model", "backbone", "vit"), ("model", "levels", [1]), ("process", "kind", "sde"), ("process", "shift", -1)],
)
def test_a_model_that_is_not_known_is_refused_and_the_setting_named(section, key, value, tmp_path):
    model = SPEC.model_dump(mode="json")
    model[section][key] = value
    problem = refused(write(tmp_path / "w.safetensors", format=FORMAT, model=model, metadata={})).problem
    assert f"{section}.{key}" in problem
    assert "tag" not in problem


def test_weights_are_found_in_a_run_and_in_a_checkpoint(tmp_path):
    file = tmp_path / "weights" / "ema.safetensors"
    file.parent.mkdir()
    write(file)
    assert find_weights(tmp_path) == find_weights(file.parent) == find_weights(file) == file
    with pytest.raises(InputError) as caught:
        find_weights(tmp_path, "raw")
    assert (caught.value.name, caught.value.wanted) == (str(tmp_path), "one of ema")
    with pytest.raises(InputError) as caught:
        find_weights(tmp_path / "nothing")
    assert caught.value.problem == "no such run or file"


def test_tensors_are_loaded_all_or_none_left_over(tmp_path):
    network, origin = torch.nn.Linear(2, 2), tmp_path / "w.safetensors"
    load_state(network, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, origin)
    assert torch.equal(network.weight, torch.ones(2, 2))
    for tensors in ({"weight": torch.ones(2, 2)}, {"weight": torch.ones(3, 2), "bias": torch.zeros(2)}):
        with pytest.raises(InputError) as caught:
            load_state(network, tensors, origin)
        assert caught.value.name == str(origin)
        assert "\n" not in str(caught.value)


def test_an_official_checkpoint_that_is_not_finite_is_not_imported(tmp_path):
    def spoil(value: object) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                spoil(inner)
        elif isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1:
            value.fill_(float("nan"))

    state = torch.load(Path(__file__).parent / "data" / "official_uncond_linear.pt", weights_only=True)
    spoil(state)
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(InputError) as caught:
        convert("official", tmp_path / "nan.pt", tmp_path / "out.safetensors", heads=1)
    assert caught.value.name == str(tmp_path / "nan.pt")
    assert "NaN" in caught.value.problem
    assert not (tmp_path / "out.safetensors").exists()


def test_a_pipe_is_no_weights_file(tmp_path):
    """And nobody waits for whoever might write to it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "pipe")
    assert (caught.value.name, caught.value.problem) == (str(tmp_path / "pipe"), "is not a regular file")
