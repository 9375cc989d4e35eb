"""Every number that a user may set has bounds, files of settings stay small, and what cannot fit is refused before."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from data_helpers import Listener, refused
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from maskdm.config.resolve import resolve
from maskdm.config.schema import Config
from maskdm.config.yaml_files import MAX_CHARACTERS, parse_override, read_yaml
from maskdm.data.dataset import read_dataset
from maskdm.data.workers import CORES, in_order
from maskdm.errors import InputError
from maskdm.experiments.comparison import Comparison, override_comparison, read_comparison
from maskdm.models import build
from maskdm.runtime import host_memory
from maskdm.runtime.host_memory import require_memory
from maskdm.sampling.sample import check_counts, check_images_fit
from maskdm.sampling.timesteps import sampling_times
from maskdm.training.prepare import check_settings, synthetic_task
from maskdm.training.start import start_training
from maskdm.training.store import make_store


def numbers(
    kind: Any, metadata: Sequence[object] = (), place: str = ""
) -> Iterator[tuple[str, list[float], list[float]]]:
    """Every number in a type, with where it stands, its upper bounds and its lower ones."""
    if get_origin(kind) is Annotated:
        base, *more = get_args(kind)
        inner = [each for one in more for each in (one.metadata if isinstance(one, FieldInfo) else [one])]
        yield from numbers(base, [*metadata, *inner], place)
    elif kind in (int, float):
        upper = [getattr(each, key) for each in metadata for key in ("le", "lt") if hasattr(each, key)]
        lower = [getattr(each, key) for each in metadata for key in ("ge", "gt") if hasattr(each, key)]
        yield place, upper, lower
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield from numbers(field.annotation, field.metadata, f"{place}.{name}")
    elif get_origin(kind) is not Literal:
        for inner in get_args(kind):
            yield from numbers(inner, (), place)


@pytest.mark.parametrize(("section", "least"), [(Config, 50), (Comparison, 4)])
def test_every_number_has_finite_bounds(section: type[BaseModel], least: int) -> None:
    found = list(numbers(section))
    assert len(found) >= least
    assert [place for place, *bounds in found if not all(any(map(math.isfinite, each)) for each in bounds)] == []


@pytest.mark.parametrize(
    "word",
    [
        "model.mixer_depth=9999999999999",
        "model.width=10000000000",
        "process.shift=1e308",
        "process.shift=1e-308",
        "process.timesteps=1000000000",
        "data.image_size=1000000",
        "stages.0.batch_size=1000000000",
        "stages.0.steps=100000000000000000000",
        "stages.0.lr=1e300",
        "stages.0.mask.block=99999999999",
        "train.seed=99999999999999999999999",
        "eval.samples=1000000000",
        "eval.heldout_every=[1, 10000000000000000]",
        "data.max_pixels=100000000000000",
    ],
)
def test_absurd_numbers_name_the_bound(word: str) -> None:
    with refused(word.partition("=")[0], wanted="greater than" if "-308" in word else "less than"):
        resolve(overrides=[word])


@pytest.mark.parametrize("backbone", ["uvit", "jit", "unet"])
def test_the_deepest_and_the_widest_are_built_or_refused_at_once(backbone: str) -> None:
    words = [f"model.backbone={backbone}", "data.path=x", "model.width=65536", "model.heads=1"]
    words += ["model.depth=3"] if backbone == "unet" else ["model.depth=31", "model.mixer_depth=31"]
    check_settings(resolve(overrides=words))


LIMITS = {
    "ddpm": ("shift", "sigma_data"),
    "vp": ("shift", "sigma_data"),
    "flow": ("shift", "sigma_data"),
    "ve": ("sigma_min", "sigma_max"),
    "edm": ("sigma_max", "sigma_data"),
}


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity", "F"])
def test_processes_at_their_bounds_are_finite_or_refused(kind: str, prediction: str) -> None:
    for values in (("1e-4", "1e-4"), ("1e4", "1e4"), ("1e-4", "1e4"), ("1e4", "1e-4")):
        words = [f"process.kind={kind}", f"process.prediction={prediction}"]
        words += [f"process.{key}={value}" for key, value in zip(LIMITS[kind], values, strict=True)]
        try:
            objective = build.make_objective(resolve(overrides=words).process)
        except InputError:
            continue
        times = sampling_times(objective.process, objective.prediction, 1)
        alpha, sigma = objective.process.alpha_sigma(times)
        assert torch.isfinite(alpha).all()
        assert torch.isfinite(sigma).all()


# --- files of settings -----------------------------------------------------------------------------------------------


BOMBS = {
    "lists": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "merges": "a: &a {x: 1, y: 2}\n"
    + "".join(
        f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}], k{new}: 1}}\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "keys": "a: &a [x, x]\n"
    + "".join(
        f"b{i}: &b{i} [*{'a' if i == 0 else f'b{i - 1}'}, *{'a' if i == 0 else f'b{i - 1}'}]\n" for i in range(60)
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_alias_bomb_is_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS[name])
    since = time.perf_counter()
    for read in (read_yaml, lambda file: resolve(file=file), lambda file: read_comparison(str(file))):
        with refused("config", "aliases that stand for more than", wanted="a file of settings"):
            read(path)
    assert time.perf_counter() - since < 5


def test_aliases_of_honest_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("stages:\n- &one {name: one, steps: 3}\n- {<<: *one, name: two}\n")
    assert [(stage.name, stage.steps) for stage in resolve(file=path).stages] == [("one", 3), ("two", 3)]
    assert parse_override("*") == "*"


@pytest.mark.parametrize("path", ["/dev/zero", "long"])
def test_a_file_that_is_no_file_of_settings(path: str, tmp_path: Path) -> None:
    if path == "long":
        (tmp_path / path).write_text("# " + "x" * MAX_CHARACTERS)
    with refused("config", "is not a regular file" if path == "/dev/zero" else "more than 65,536 characters"):
        read_yaml(tmp_path / path)  # an absolute path stays itself


def test_minutes_of_a_comparison() -> None:
    with refused("minutes", got=1e300, wanted="at most 1e+12"):
        override_comparison(read_comparison("digits"), minutes=1e300)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_names_its_argument() -> None:
    require_memory(5, 5, "num", what="the images", remedy="fewer")
    with pytest.raises(
        ValueError, match=r"num: the images would take 6.0 GB of memory, where 5.0 GB are free, got 7; fewer"
    ):
        require_memory(6 * 10**9, 5 * 10**9, "num", got=7, what="the images", remedy="fewer")


def test_images_that_cannot_be_returned_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        channels, image_size = 3, (8, 8)

    monkeypatch.setattr("maskdm.sampling.sample.host_available_bytes", lambda: 100 * 768)
    check_images_fit(Model(), 100)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num: the images would take") as caught:
        check_images_fit(Model(), 101)  # type: ignore[arg-type]
    assert caught.value.got == 101
    for arguments, name in (((10**10, 64), "num"), ((64, 10**6), "batch_size")):
        with pytest.raises(ValueError, match="at most") as caught:
            check_counts(*arguments)
        assert caught.value.name == name


@pytest.mark.parametrize(
    ("words", "free", "name"),
    [
        ([], 10_000, "model"),
        (["stages.1.batch_size=512"], 500_000, "stages.1.batch_size"),
        (["eval.samples=1000"], 600_000, "eval.samples"),
        (["eval.samples=0", "eval.scores=pixels", "eval.score_images=1000"], 600_000, "eval.score_images"),
    ],
)
def test_training_that_cannot_fit_makes_no_folder(
    words: list[str], free: int, name: str, digits_npz: Path, tmp_path: Path, tiny: list[str], monkeypatch: Any
) -> None:
    config = resolve(overrides=[f"data.path={digits_npz}", *tiny, "data.image_size=16", *words])
    for function in ("available_bytes", "host_available_bytes"):
        monkeypatch.setattr(f"maskdm.training.prepare.{function}", lambda *_: free)
    with refused(name, "of memory, where"):
        start_training(config, output_dir=tmp_path / "runs", name="x", resume=None, console=Listener())
    assert not (tmp_path / "runs").exists()


def test_images_too_large_to_be_decoded(digits_npz: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("maskdm.data.image_set.host_available_bytes", lambda: 1000)
    config = resolve(overrides=[f"data.path={digits_npz}", "data.image_size=32", f"data.cache_dir={tmp_path}"]).data
    with refused("data.image_size", "images at once would take", got=32):
        read_dataset(config, Listener())


def test_images_that_do_not_fit_into_memory(monkeypatch: Any) -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    monkeypatch.setattr("maskdm.training.store.available_bytes", lambda _: images.nbytes * 2 - 1)
    make_store(images, torch.device("cpu"), "ram")
    with refused("data.store", "of memory, where", got="ram", remedy="write auto"):
        make_store(images, torch.device("cpu"), "ram", ranks=2)


def test_few_large_results_wait_at_once() -> None:
    begun: list[int] = []
    results = in_order(lambda item: begun.append(item) or item, range(1000), lambda _: None, result_bytes=2**28)
    assert next(results) == 0
    assert len(begun) <= CORES
    assert list(results) == list(range(1, 1000))


def test_bench_of_a_network_beyond_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskdm.training.prepare.available_bytes", lambda _: 10**6)
    with refused("model", "parameters, their gradients, moments and average would take"):
        synthetic_task(resolve(overrides=["data.image_size=16"]))


def test_free_memory_of_the_host_is_known() -> None:
    assert 10**7 < host_memory.host_available_bytes() < 10**15
