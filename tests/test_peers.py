"""benchmarks/peers.py and the comparisons of ratio 1: what needs none of the other packages."""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskdm.config.resolve import resolve
from maskdm.errors import InputError
from maskdm.experiments.comparison import arm_config, check_alike, read_comparison

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import peer_packages  # noqa: E402 -- a script's neighbour
import peers  # noqa: E402

RATIO1 = sorted(BENCHMARKS.glob("ratio1-*.yaml"))


def test_variant_changes_what_it_names() -> None:
    usual, changed = (
        peer_packages.peer(name) for name in ("diffusers-small", "diffusers-small@lr=1e-3,batch=16,widths=64/128")
    )
    assert (changed.lr, changed.batch, changed.widths) == (1e-3, 16, (64, 128))
    assert (changed.package, changed.schedule, changed.warmup) == (usual.package, usual.schedule, usual.warmup)


@pytest.mark.parametrize(
    ("name", "got"), [("karras", "karras"), ("diffusers@rate=1", "rate=1"), ("diffusers@lr=x", "lr=x")]
)
def test_unknown_peers_are_refused(name: str, got: str) -> None:
    with pytest.raises(InputError, match=f"got .?{got}"):
        peer_packages.peer(name)


def test_constant_rates_pass_all_times_in_one_run_and_others_have_a_run_each() -> None:
    constant, falling = (peer_packages.peer(name) for name in ("ddpm-pytorch-32", "diffusers"))
    assert peer_packages.runs_of(constant, [20, 5, 60]) == [(5, 20, 60)]
    assert peer_packages.runs_of(falling, [20, 5]) == [(5,), (20,)]


def test_rate_rises_and_falls_to_zero_with_the_time() -> None:
    falling = peer_packages.peer("diffusers-small@warmup=10")
    shares = [peer_packages.rate_share(falling, step, step / 100) for step in range(101)]
    assert shares[0] == pytest.approx(0.1, abs=1e-3)
    assert np.argmax(shares) == 9  # the last step of the warm-up
    assert all(after < before for before, after in pairwise(shares[9:]))
    assert shares[-1] == pytest.approx(0)
    constant = peer_packages.peer("ddpm-pytorch-32")
    assert {peer_packages.rate_share(constant, step, step / 10) for step in range(11)} == {1.0}


def test_every_epoch_has_each_image_once_in_another_order() -> None:
    rows = [row for step in range(10) for row in peer_packages.batch_rows(step, 4, 10, seed=3)]
    epochs = [rows[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert peer_packages.batch_rows(7, 4, 10, seed=3) == rows[28:32]  # whatever was asked before


def test_blocks_are_those_of_the_example() -> None:
    down, up = peer_packages.unet_blocks(6)
    assert down == (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D")
    assert up == ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4)


def test_samples_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    assert list(peer_packages.missing_batches(folder, 10, 4)) == [(0, 4), (1, 4), (2, 2)]
    for number, size in ((0, 4), (2, 2)):
        peer_packages.save_batch(folder, number, np.full((size, 2, 2, 3), number, np.uint8))
    assert list(peer_packages.missing_batches(folder, 10, 4)) == [(1, 4)]
    peer_packages.save_batch(folder, 1, np.full((4, 2, 2, 3), 1, np.uint8))
    assert peer_packages.read_batches(folder, 10, 4)[:, 0, 0, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 2


@pytest.mark.parametrize("name", ["diffusers-small@widths=32/32,batch=4", "ddpm-pytorch-32@widths=8"])
def test_a_peer_is_trained_to_its_times_resumed_and_sampled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the package itself where it is installed."""
    if missing := peer_packages.missing_packages([peer_packages.peer(name)]):
        pytest.skip(f"needs {', '.join(missing)}")
    threads = torch.get_num_threads()
    images = tmp_path / "members.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8))
    folders = {minutes: tmp_path / f"{minutes:g}min" for minutes in (1e-5, 1e-3, 2e-3)}
    options: dict[str, Any] = {"seed": 0, "threads": threads, "bf16": False, "steps": 3}
    keep = peer_packages._keep

    def interrupted(*arguments: Any) -> None:
        keep(*arguments)
        if (folders[1e-3] / "trained.json").is_file():
            raise KeyboardInterrupt

    monkeypatch.setattr(peer_packages, "time", FakeClock(0.01))
    monkeypatch.setattr(peer_packages, "_keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        peer_packages.train_peer(name, images, folders, **options)
    monkeypatch.setattr(peer_packages, "_keep", keep)
    first, second = (json.loads((folders[each] / "trained.json").read_text()) for each in (1e-5, 1e-3))
    assert (first["steps"], second["steps"]) == (1, 6)  # 0.6 ms; 60 ms of steps that take 10
    assert not (folders[2e-3] / "trained.json").is_file()
    peer_packages.train_peer(name, images, folders, **options)
    third = json.loads((folders[2e-3] / "trained.json").read_text())
    assert (third["steps"], third["images"]) == (12, 12 * (4 if "diffusers" in name else 16))
    assert json.loads((folders[1e-3] / "trained.json").read_text()) == second
    assert not list(tmp_path.glob("state-*"))
    peer_packages.sample_peer(
        name,
        folders[2e-3] / "weights.safetensors",
        tmp_path / "samples",
        (16, 16, 3),
        num=3,
        steps=3,
        batch=2,
        threads=threads,
    )
    samples = peer_packages.read_batches(tmp_path / "samples", 3, 2)
    assert (samples.shape, samples.dtype) == ((3, 16, 16, 3), np.uint8)
    assert samples.std() > 0


@pytest.mark.parametrize("name", ["diffusers-small@widths=32/32", "ddpm-pytorch-32@widths=8"])
def test_the_exact_network_has_no_loss_and_gives_the_image(name: str) -> None:
    """Ranges, signs and schedules of loss and sampler agree: the answer for one image as the only data is known."""
    if missing := peer_packages.missing_packages([peer_packages.peer(name)]):
        pytest.skip(f"needs {', '.join(missing)}")
    learner = peer_packages.make_learner(peer_packages.peer(name), (8, 8, 3), 10)
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    x_0 = image * 2 - 1
    diffusers = isinstance(learner, peer_packages.Diffusers)
    of_steps: Any = learner.noise.alphas_cumprod if diffusers else learner.network.alphas_cumprod

    def exact(x_t: torch.Tensor, t: torch.Tensor, *_: object, **__: object) -> Any:
        squared = of_steps[t].reshape(-1, 1, 1, 1)
        alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
        eps = (x_t - alpha * x_0) / sigma
        return SimpleNamespace(sample=eps) if diffusers else alpha * eps - sigma * x_0

    network: Any = learner.network if diffusers else learner.network.model
    network.forward = exact
    assert learner.loss(image).item() < 1e-6
    torch.testing.assert_close(learner.sample(4), image, atol=1e-4, rtol=0)


class FakeClock:
    """In place of `time`: every second call is so much later than the one before."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def perf_counter(self) -> float:
        self.calls += 1
        return self.calls // 2 * (self.seconds + 1e-6)

    process_time = staticmethod(time.process_time)


def test_templates_take_minutes() -> None:
    words = peers.fill("--minutes {minutes} stages.0.minutes={minutes*0.25} 'a b'", 20)
    assert words == ["--minutes", "20", "stages.0.minutes=5", "a b"]
    with pytest.raises(InputError, match="--maskdm"):
        peers.fill("'open", 5)


@pytest.mark.parametrize("word", ["--minutes 5", "diffusers=--minutes 5", "a b=x"])
def test_arms_need_a_name_of_their_own(word: str) -> None:
    with pytest.raises(InputError, match="NAME=ARGUMENTS"):
        peers.named_arm(word)


@pytest.mark.parametrize("name", [name for name in peers.ARMS if name.startswith("paper")])
def test_the_authors_recipe_is_theirs(name: str) -> None:
    words = peers.fill(peers.ARMS[name].arguments, 20)
    assert words[:2] == ["--recipe", "celeba64-s"]
    config = resolve(recipe=words[1], overrides=words[2:])
    assert [stage.minutes for stage in config.stages] == ([20] if "plain" in name else [10, 10])
    assert {stage.lr for stage in config.stages} == {2e-4}
    assert config.stages[-1].mask.kind == "none"
    assert (config.stages[-1].batch_size, config.process.prediction, config.ema.decay) == (128, "eps", 0.999)


def row(name: str, minutes: float, weights: str, distance: float) -> dict[str, Any]:
    """A result as far as it is read."""
    scores = {"d": distance, "KID x 1000": 1.0, "precision": 0.5, "recall": 0.25}
    about = {"parameters": 2_000_000, "images": 1000, "steps": 100}
    return {"name": name, "minutes": minutes, "weights": weights, "scores": scores, **about}


def test_better_weights_count_and_distances_are_over_our_own() -> None:
    rows = [
        row("ours", 20, "ema", 2),
        row("paper", 20, "ema", 9),
        row("paper", 20, "raw", 6),
        row("paper", 5, "ema", 8),
    ]
    assert [(each["minutes"], each["name"], each["weights"]) for each in peers.best(rows, "d")] == [
        (5, "paper", "ema"),
        (20, "ours", "ema"),
        (20, "paper", "raw"),
    ]
    lines = peers.table(rows, "d", "ours")[2:]
    assert lines[0] == "| 5 | paper | 2.0 M | 1,000 (100) | 8 |  | 1.0 | 0.50 | 0.25 |"  # ours has no 5 minutes
    assert lines[2] == "| 20 | paper, raw | 2.0 M | 1,000 (100) | 6 | 3.00 | 1.0 | 0.50 | 0.25 |"


def test_grids_stand_side_by_side(tmp_path: Path) -> None:
    block = np.zeros((16, 8, 8, 3), np.uint8)
    peers.side_by_side([[("one", block), ("two", block + 100)], [("three", block)]], tmp_path / "grids.png")
    image = Image.open(tmp_path / "grids.png")
    assert image.size == (2 * (4 * 9 + 1 + 12), 2 * (4 * 9 + 1 + 16 + 12))
    assert image.getpixel((4 * 9 + 1 + 12 + 2, 16 + 2)) == (100, 100, 100)


@pytest.mark.parametrize("pixel_head", ["none", "conv"])
@pytest.mark.parametrize("backbone", ["jit", "uvit"])
@pytest.mark.parametrize("path", RATIO1, ids=[path.stem for path in RATIO1])
def test_ratio_1_takes_both_backbones_and_heads(path: Path, backbone: str, pixel_head: str) -> None:
    comparison = read_comparison(str(path))
    overrides = [f"model.backbone={backbone}", f"model.pixel_head={pixel_head}"]
    configs = {name: arm_config(comparison, name, 0, overrides) for name in comparison.arms}
    check_alike(configs)
    assert {(c.model.backbone, c.model.model_dump()["pixel_head"]) for c in configs.values()} == {
        (backbone, pixel_head)
    }
    first = next(iter(configs.values()))
    assert all(config.model == first.model and config.process == first.process for config in configs.values())
