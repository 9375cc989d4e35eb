"""Stages of other image and patch sizes: what they learn from, hand over, save and say, and what is refused."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NET, TINY, train, write_photos
from safetensors.torch import load_file
from test_ranks import run_ranks, short
from torch import nn

import maskdm
from maskdm.auditing.subject import run_subject
from maskdm.cli.main import main
from maskdm.config.process_config import DDPMConfig, EDMConfig, FlowConfig, VEConfig
from maskdm.config.resolve import resolve
from maskdm.data.labelled import LabelledImages
from maskdm.diffusion.mask_schedule import constant
from maskdm.diffusion.masks import masking
from maskdm.diffusion.pixels import area_average, to_model
from maskdm.errors import InputError, Interrupted
from maskdm.experiments import runner
from maskdm.models import build, transfer, weights
from maskdm.models.flops import training_flops
from maskdm.models.spec import ModelSpec
from maskdm.profiling.bench import bench_masks
from maskdm.profiling.forecast import forecast_stages, format_forecasts
from maskdm.reports.run_page import write_run_page
from maskdm.runtime.console import Console
from maskdm.training import loop, monitor, step
from maskdm.training.batches import TrainingSet, draw_batch
from maskdm.training.events import HeldoutEvent, parse_event
from maskdm.training.prepare import prepare, synthetic_task
from maskdm.training.read_run import read_history
from maskdm.training.stage_specs import check_stage_specs, shifted_process, stage_spec
from maskdm.training.step_profiler import StepProfiler
from maskdm.training.store import HostStore

CPU = torch.device("cpu")
HALF = ["stages.0.image_size=8"]
"""Of the 16 x 16 pixels of `photos`."""
NETWORKS = {
    "uvit": ["model.backbone=uvit"],
    "jit": ["model.backbone=jit", "model.heads=2"],
    "jit-conv": ["model.backbone=jit", "model.heads=2", "model.pixel_head=conv", "model.pixel_features=4"],
    "unet": ["model.backbone=unet", "model.width=8", "model.depth=1", "model.levels=[1,2]"],
}
SIZES = {"smaller": ["stages.0.image_size=8"], "patches": ["stages.0.patch_size=4"]}
SIZES["both"] = [*SIZES["smaller"], "stages.0.patch_size=4"]


@pytest.fixture(scope="module")
def coarse_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of RGB images of 16 px whose first stage has images of 8 px. Look, but do not touch."""
    folder = tmp_path_factory.mktemp("coarse-run")
    data = write_photos(folder / "photos")
    return train(
        data,
        folder / "runs",
        *HALF,
        "stages.0.mask={kind: patch, ratio: 0.5}",
        "eval.scores=pixels",
        "eval.score_images=4",
        "data.heldout=0.3",
    )


def settings(data: Path, *more: str) -> list[str]:
    return [f"data.path={data}", *TINY, *more]


def spec_of(*words: str, size: tuple[int, int] = (16, 16)) -> tuple[Any, ModelSpec]:
    config = resolve(overrides=[*TINY, *words])
    config = config.model_copy(update={"model": build.resolved_model(config.model)})
    return config, ModelSpec(model=config.model, process=config.process, image_size=size, channels=3)


def refused(*words: str, size: tuple[int, int] = (16, 16)) -> InputError:
    with pytest.raises(InputError) as caught:
        check_stage_specs(*spec_of(*words, size=size))
    assert "\n" not in str(caught.value)
    return caught.value


def noisy(network: nn.Module) -> nn.Module:
    """Weights none of which is zero, or alike."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network.eval().requires_grad_(False)


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_pixel_of_a_smaller_image_is_the_mean_of_those_it_covers(k):
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 24, 2), dtype=np.uint8)
    means = images.reshape(3, 12 // k, k, 24 // k, k, 2).mean(axis=(2, 4))
    small = area_average(to_model(images), (12 // k, 24 // k))
    torch.testing.assert_close(small, to_model(torch.from_numpy(means)), atol=1e-6, rtol=0)
    rounded = LabelledImages(images, ids=("a", "b", "c")).averaged((12 // k, 24 // k))
    assert rounded.ids == ("a", "b", "c")
    assert rounded.images.dtype == np.uint8
    assert np.abs(rounded.images - means).max() <= 0.5
    with pytest.raises(ValueError, match="no multiple"):
        LabelledImages(images).averaged((5, 10))


def test_a_batch_at_half_the_size_holds_the_means_of_the_same_images():
    images = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    data = TrainingSet(HostStore(images, CPU), np.arange(20), None, 0)
    _, spec = spec_of()
    process = build.make_objective(spec.process).process

    def drawn(**more: Any) -> Any:
        (batch,) = draw_batch(
            data,
            constant(masking("none", (2, 2))).phases[0],
            process,
            step=3,
            batch_size=6,
            seed=(0,),
            flip=0.0,
            label_dropout=0.0,
            device=CPU,
            **more,
        )
        return batch

    whole, half = drawn(), drawn(image_size=(4, 4))
    assert half.x_0.shape == half.eps.shape == (6, 3, 4, 4)
    assert torch.equal(half.x_0, torch.nn.functional.avg_pool2d(whole.x_0, 2))
    assert 0.6 < float(half.eps.std()) < 1.4  # noise is drawn at that size, and not averaged
    assert torch.equal(drawn(image_size=(8, 8)).x_0, whole.x_0)


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_stage_has_the_runs_model_unless_it_says_otherwise():
    config, spec = spec_of(*HALF, "stages.0.patch_size=4")
    assert stage_spec(spec, config.stages[1]) is spec
    own = stage_spec(spec, config.stages[0])
    assert (own.image_size, own.model.patch_size) == ((8, 8), 4)
    same = {"image_size": (16, 16), "model": spec.model, "process": spec.process}
    assert own.model_copy(update=same) == spec


@pytest.mark.parametrize("config", [DDPMConfig(shift=0.5), FlowConfig(), EDMConfig(), VEConfig()])
def test_a_shift_multiplies_sigma_over_alpha_in_training_and_in_sampling(config):
    before, after = (build.make_objective(each).process for each in (config, shifted_process(config, 0.5)))
    u = torch.linspace(0.01, 0.98, 30, dtype=torch.float64)
    ratios = []
    for process in (before, after):
        alpha, sigma = process.alpha_sigma(process.training_time(u))
        ratios.append(sigma / alpha)
    torch.testing.assert_close(ratios[1], 0.5 * ratios[0], rtol=1e-6, atol=0)
    assert shifted_process(config, 1.0) is config


def test_a_shift_by_the_side_leaves_the_whole_of_an_image_as_noisy_as_it_was():
    """Noise of the larger image, averaged as its pixels are, is that of the smaller one at the same time."""
    config, spec = spec_of(*HALF, "stages.0.shift=0.5")
    own = stage_spec(spec, config.stages[0])
    large, small = (build.make_objective(each.process).process for each in (spec, own))
    t = torch.arange(0, 990, 30)
    alpha, sigma = large.alpha_sigma(t)
    noise = area_average(torch.randn(64, 1, 64, 64, generator=torch.Generator().manual_seed(0)), (32, 32)).std()
    alpha_small, sigma_small = small.alpha_sigma(t)
    torch.testing.assert_close(sigma * float(noise) / alpha, sigma_small / alpha_small, rtol=0.01, atol=0)


@pytest.mark.parametrize("change", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_carried_over_to_other_sizes(name, change):
    config, spec = spec_of(*NETWORKS[name], *SIZES[change])
    check_stage_specs(config, spec)
    old = stage_spec(spec, config.stages[0])
    assert transfer.unfitted(old, spec) == []
    source, network = noisy(build.backbone(old)), build.backbone(spec)
    state, _ = transfer.fit(network, spec, weights.Weights(old, {}, source.state_dict()))
    network.load_state_dict(state)
    network.eval()
    changed = [key for key, value in source.state_dict().items() if not torch.equal(value, state[key])]
    blocks = [key for key in changed if "block" in key and "mixer" not in key]
    assert blocks == []


def test_a_network_on_as_many_larger_patches_does_to_an_enlarged_image_what_it_did():
    config, spec = spec_of("model.backbone=jit", "model.heads=2", "model.patch_size=4", *HALF, "stages.0.patch_size=2")
    old = stage_spec(spec, config.stages[0])
    source, network = noisy(build.backbone(old)), build.backbone(spec)
    state, _ = transfer.fit(network, spec, weights.Weights(old, {}, source.state_dict()))
    network.load_state_dict(state)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 500.0])

    def enlarged(images: torch.Tensor) -> torch.Tensor:
        """Every patch of 2 x 2 pixels by itself."""
        patches = images.reshape(2, 3, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 2, 2)
        patches = nn.functional.interpolate(patches, size=(4, 4), mode="bilinear")
        return patches.reshape(2, 4, 4, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 16, 16)

    torch.testing.assert_close(network(enlarged(x), t), enlarged(source(x, t)), atol=1e-4, rtol=1e-4)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_sizes_that_images_cannot_be_averaged_to_are_refused():
    error = refused("stages.0.image_size=12")
    assert (error.name, error.got) == ("stages.0.image_size", (12, 12))
    assert error.remedy == "try 8 or 4 or 2"
    assert refused("stages.0.image_size=32").name == "stages.0.image_size"
    assert refused("stages.0.image_size=8", size=(16, 24)).remedy == "try [8, 12] or [4, 6] or [2, 3]"
    check_stage_specs(*spec_of("stages.0.image_size=[8,12]", size=(16, 24)))


@pytest.mark.parametrize("words", ["image_size=8", "patch_size=4", "shift=0.5"])
def test_the_last_stage_trains_the_runs_model(words):
    error = refused(f"stages.1.{words}")
    assert error.name == f"stages.1.{words.partition('=')[0]}"
    assert "in the last stage" in error.wanted
    assert "add a stage after this one" in error.remedy


def test_the_last_stage_may_say_what_it_has_anyway():
    check_stage_specs(*spec_of("stages.1.image_size=16", "stages.1.patch_size=2", "stages.1.shift=1"))


def test_patches_that_do_not_fit_are_refused_by_the_setting_of_the_stage():
    error = refused("stages.0.patch_size=3")
    assert error.name == "stages.0.patch_size"
    assert "patches of 3 px" in error.problem
    assert "stages.0.image_size to go with it" in error.remedy
    error = refused("model.patch_size=16", "stages.0.image_size=8")
    assert error.name == "stages.0.image_size"
    assert "stages.0.patch_size to go with it" in error.remedy
    error = refused(*NETWORKS["unet"], "model.levels=[1,2,2]", "model.patch_size=4", "stages.0.patch_size=2")
    assert error.name == "stages.0.patch_size"


def test_a_shift_out_of_range_is_refused():
    error = refused("process.kind=edm", "stages.0.shift=1e-3")
    assert error.name == "stages.0.shift"
    assert "process.sigma_min" in error.problem


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings of networks of one's own: one of convolutions, and one with a weight for every pixel."""
    made = NET + (
        "\n\nclass Sized(Net):\n"
        "    def __init__(self, *, image_size, channels, patch_size, classes):\n"
        "        super().__init__(image_size=image_size, channels=channels, patch_size=patch_size, classes=classes)\n"
        "        import torch\n"
        "        self.each = nn.Parameter(torch.zeros(image_size))\n"
    )
    (tmp_path / "sizednet.py").write_text(made)
    monkeypatch.syspath_prepend(tmp_path)
    return ["model.width=null", "model.depth=null", "model.heads=null"]


def test_a_network_of_ones_own_changes_size_if_its_tensors_do_not_or_its_layout_says_how(own):
    check_stage_specs(*spec_of("model.backbone=sizednet:Net", *own, *HALF))
    error = refused("model.backbone=sizednet:Sized", *own, *HALF)
    assert error.name == "stages.0.image_size"
    assert "could not take over each" in error.problem
    assert "layout" in error.remedy
    check_stage_specs(*spec_of("model.backbone=sizednet:Sized", *own, *HALF, "stages.1.init_from=none"))


def test_settings_are_refused_before_anything_is_decoded(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("maskdm.training.prepare.read_dataset", lambda *_: pytest.fail("images were read"))
    config = resolve(overrides=settings(photos, "data.image_size=16", "stages.1.image_size=8"))
    with pytest.raises(InputError, match=r"stages\.1\.image_size"):
        prepare(config, Console(quiet=True))


# --- masks and costs -------------------------------------------------------------------------------------------------


def test_masks_are_on_the_grid_of_the_stage(photos):
    words = [*HALF, "stages.0.mask.kind=auto", "stages.1.mask={kind: block, ratio: 0.5}"]
    prepared = prepare(resolve(overrides=settings(photos, *words)), Console(quiet=True))
    assert [masks.maskings[0].grid for masks in prepared.masks] == [(4, 4), (8, 8)]
    assert prepared.config.stages[0].mask.kind == "patch"  # of few patches
    assert prepared.config.stages[1].mask.block == 2


def synthetic(*words: str) -> step.Task:
    return synthetic_task(resolve(overrides=[*TINY, "data.image_size=16", *words]))


def test_steps_flops_and_graphs_are_those_of_the_stage():
    task = synthetic(*HALF, "stages.0.patch_size=4")
    shapes = []
    for number, side in enumerate((8, 16)):
        profiler = StepProfiler(task, number)
        profiler.step()
        (part,) = step.draw_micro_batches(task, profiler._learner, profiler.state.progress)
        shapes.append(tuple(part.x_0.shape[2:]))
        assert shapes[-1] == (side, side)
        assert profiler.memory() is None or profiler.memory().largest > 0
    costs = [training_flops(task.stage_spec(i), masks.phases[0]) for i, masks in enumerate(task.masks)]
    assert costs[0] < costs[1]
    # The same mask on the same grid is another graph where images are larger.
    alike = synthetic(*HALF, "model.patch_size=4", "stages.0.patch_size=2", "stages.0.mask.kind=none")
    plain = synthetic("model.patch_size=4", "stages.0.mask.kind=none")
    assert step.graph_count(alike) > step.graph_count(plain)


def test_plan_and_bench_measure_the_model_of_the_stage():
    task = synthetic(*HALF, "stages.0.mask={kind: patch, ratio: 0.5}", "eval.scores=pixels")
    found = list(forecast_stages(task, seconds=0.01, watts=10))
    lines = format_forecasts(found)
    assert lines[0].startswith("stage 1, pretrain: images of 8 x 8 px, 16 patches of 2 px")
    assert any(line.startswith("stage 2, finetune: nothing") or "stage 2, finetune: " in line for line in lines)
    assert "scores" not in found[0].measuring
    assert "scores" in found[1].measuring
    masks = bench_masks(task.config.stages[0].mask, [0, 0.5], task)
    assert {mask.grid for mask in masks} == {(4, 4)}


def test_a_comparison_charges_every_stage_what_its_model_costs(photos):
    prepared = prepare(resolve(overrides=settings(photos, *HALF)), Console(quiet=True))
    tasks = runner.stage_tasks({"arm": prepared})["arm"]
    assert [task.spec.image_size for task in tasks] == [(8, 8), (16, 16)]
    assert [task.stage_spec(0) for task in tasks] == [task.spec for task in tasks]
    assert tasks[0].spec == prepared.stage_spec(0)
    StepProfiler(tasks[0]).step()


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_each_stage_sees(photos, tmp_path, capsys):
    words = ["--data", str(photos), "--output-dir", str(tmp_path / "runs"), *TINY, *HALF, "stages.0.patch_size=4"]
    assert main(["train", *words, "--dry-run"]) == 0
    err = capsys.readouterr().err
    assert "stage 1, pretrain: 4 steps, 32 images, batch 8, adamw, lr 0.0002 constant; images of 8 x 8 px, 4 pat" in err
    assert not (tmp_path / "runs").exists()


def test_each_stage_leaves_weights_of_its_own_size(coarse_run):
    first = weights.read_weights(coarse_run / "weights" / "pretrain-ema.safetensors").spec
    last = weights.read_weights(coarse_run / "weights" / "finetune-ema.safetensors").spec
    assert (first.image_size, last.image_size) == ((8, 8), (16, 16))
    assert weights.read_weights(coarse_run / "weights" / "ema.safetensors").spec == last
    assert maskdm.sample(maskdm.load(coarse_run, weights="pretrain"), 2, steps=2).shape == (2, 3, 8, 8)
    assert maskdm.sample(maskdm.load(coarse_run), 2, steps=2).shape == (2, 3, 16, 16)


def test_what_is_measured_says_at_what_size(coarse_run):
    history = read_history(coarse_run)
    assert [(stage.image_size, stage.patch_size) for stage in history.stages] == [((8, 8), 2), ((16, 16), 2)]
    sizes = {event.stage: event.image_size for event in history.heldout}
    assert sizes == {"pretrain": (8, 8), "finetune": None}
    fresh = [event.error_fresh for event in history.heldout]
    changed = next(i for i, event in enumerate(history.heldout) if event.stage == "finetune")
    assert [i for i, error in enumerate(fresh) if error is not None] == [changed]
    assert {score.stage for score in history.scores} == {"finetune"}  # only at the size of the held-out images
    line = next(event for event in history.heldout if event.image_size)
    means = {f"heldout_8x8/{key}" for key in ("error_ema", "error_raw", "seconds", "error_mean")}
    assert {name for name in line.numbers() if "/noise_" not in name} == means
    assert all(name.startswith("heldout_8x8/") for name in line.numbers())
    assert parse_event(line.line()) == line
    page = write_run_page(Path(shutil.copytree(coarse_run, coarse_run.parent / "copy"))).read_text()
    assert "Held-out error at 8 x 8 px" in page
    assert "pretrain at 8 x 8 px, patches of 2 px" in page


def test_errors_at_another_size_are_none_of_a_comparison(coarse_run):
    outcome = runner.read_outcome("arm", 0, coarse_run, {"pretrain": 0.01, "finetune": 0.02})
    own_size = [event for event in read_history(coarse_run).heldout if event.image_size is None]
    assert [each.value for each in outcome.evaluations] == [event.error_ema for event in own_size]
    assert outcome.evaluations[0].spent == pytest.approx(32 * 0.01)


def test_weights_of_a_stage_are_evaluated_at_their_own_size(coarse_run, capsys):
    result = maskdm.evaluate(coarse_run, weights="pretrain", num=4, steps=2)
    assert result.scores
    assert "held-out ones are averaged down" in capsys.readouterr().err


def test_an_audit_asks_the_weights_of_a_stage_about_images_of_its_size(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (420, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "many.npz", images=images)
    shares = ("data.heldout=0.3", "data.calibration=0.3", "stages.0.image_size=4")
    run = train(tmp_path / "many.npz", tmp_path, *shares, "eval.samples=0")
    whole, small = (run_subject(run, which, seed=0, console=Console(quiet=True)) for which in ("ema", "pretrain-ema"))
    assert small.spec.image_size == (4, 4)
    assert small.members.ids == whole.members.ids  # the same images, and known by their own pixels
    means = whole.members.images.reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    assert np.abs(small.members.images - means).max() <= 0.5
    assert any("averaged down from 8 x 8 px to 4 x 4" in remark for remark in small.remarks)
    assert not any("averaged" in remark for remark in whole.remarks)
    assert maskdm.audit(run, stage="pretrain", estimate=True, quiet=True).calls > 0


@pytest.mark.parametrize("change", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_across_the_change(name, change, photos, tmp_path):
    run = train(
        photos, tmp_path, *NETWORKS[name], *SIZES[change], "stages.0.steps=1", "stages.1.steps=1", "eval.samples=0"
    )
    assert read_history(run).finished


@pytest.mark.parametrize("name", ["uvit", "jit-conv"])
@pytest.mark.parametrize("at", [2, 4, 5])
def test_a_run_cut_anywhere_ends_as_one_that_was_not(at, name, photos, tmp_path, monkeypatch):
    """In the first stage, at its very end, and in the second."""
    words = settings(photos, *NETWORKS[name], *SIZES["both"], "stages.0.mask={kind: patch, ratio: 0.5}")
    whole = maskdm.train(config=resolve(overrides=words), output_dir=tmp_path / "whole", quiet=True).run
    taken = loop.training_step

    def cut(training, state, learner, model):
        if state.progress.step == at - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return taken(training, state, learner, model)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", cut)
        with pytest.raises(Interrupted):
            maskdm.train(config=resolve(overrides=words), output_dir=tmp_path / "cut", quiet=True)
    run = maskdm.train(config=resolve(overrides=words), output_dir=tmp_path / "cut", quiet=True).run
    for file in ("ema", "raw", "pretrain-ema"):
        left, right = (load_file(folder / "weights" / f"{file}.safetensors") for folder in (whole, run))
        assert all(torch.equal(left[key], right[key]) for key in left)
    errors = [[e.error_ema for e in read_history(folder).heldout] for folder in (whole, run)]
    assert errors[0] == errors[1]


@pytest.fixture(scope="module")
def forks():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maskdm.training.start"])
    return context


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_change_size_together_and_end_like_one(parallel, photos, tmp_path, forks):
    words = (*SIZES["both"], "stages.0.mask={kind: patch, ratio: 0.5}", "eval.samples=0")
    assert run_ranks(forks, short, photos, tmp_path / "two", parallel, *words) == [0, 0]
    short(photos, tmp_path / "one", "ddp", *words)
    one, two = (load_file(tmp_path / which / "00000-t" / "weights" / "ema.safetensors") for which in ("one", "two"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5


@pytest.mark.parametrize("which", ["ema", "raw"])
def test_the_second_stage_starts_from_the_first_ones_weights(which, photos, tmp_path, monkeypatch):
    seen: dict[str, Any] = {}
    start_stage = loop.start_stage

    def spy(training, state, denoiser, learner):
        before = state.model
        result = start_stage(training, state, denoiser, learner)
        if state.progress.stage == 1:
            seen.update(state=state.model.state_dict(), before=before, learner=result[1], model=state.model)
            seen["state"] = {key: value.clone() for key, value in seen["state"].items()}
            assert all(torch.equal(v, seen["state"][k]) for k, v in state.ema.state_dict().items())
            assert {id(p) for g in state.optimizer.param_groups for p in g["params"]} == {
                id(p) for p in state.model.parameters()
            }
        return result

    monkeypatch.setattr(loop, "start_stage", spy)
    run = train(photos, tmp_path, *HALF, f"stages.1.weights={which}")
    handed = weights.read_weights(run / "weights" / f"pretrain-{which}.safetensors")
    spec = weights.read_weights(run / "weights" / "ema.safetensors").spec
    expected, _ = transfer.fit(build.backbone(spec), spec, handed)
    assert seen["before"] is not seen["model"]
    assert seen["learner"].backbone is seen["model"]
    assert all(torch.equal(expected[key], value) for key, value in seen["state"].items())
    kept = [key for key, value in handed.tensors.items() if torch.equal(value, seen["state"].get(key, value[:0]))]
    assert len(kept) == len(expected) - 1  # all but the positions


def test_one_network_serves_stages_of_one_size(photos, tmp_path, monkeypatch):
    seen = []
    start_stage = loop.start_stage

    def spy(training, state, denoiser, learner):
        result = start_stage(training, state, denoiser, learner)
        seen.append((state.model, result[1].backbone, result[0].process))
        return result

    monkeypatch.setattr(loop, "start_stage", spy)
    train(photos, tmp_path, "stages.0.shift=2")
    (one, wrapped_one, first), (other, wrapped_other, second) = seen
    assert one is other
    assert wrapped_one is wrapped_other
    assert first is not second  # noise differs, the network does not


def test_a_change_that_leaves_nothing_is_warned_of(monkeypatch):
    event = HeldoutEvent(stage="fine", step=1, images=8, error_ema=0.5, error_raw=0.5, n=8, seconds=1.0, error_mean=0.3)
    said: list[str] = []

    class Told:
        console = Console(quiet=True)

    monkeypatch.setattr(Told.console, "warn", said.append)
    monitor._warn_of_loss(Told, event, fresh=0.6)
    assert "no better than that of the mean image (0.3000)" in said[0]
    assert "fresh weights" not in said[0]
    monitor._warn_of_loss(Told, event, fresh=0.4)
    assert "fresh weights (0.4000) or the mean image (0.3000)" in said[1]
    monitor._warn_of_loss(Told, event.model_copy(update={"error_ema": 0.2}), fresh=0.4)
    assert len(said) == 2
