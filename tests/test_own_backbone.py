"""Networks of the user's own: the examples of docs/backbones.md really train, and the page says what is so."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY, write_photos
from torch import Tensor, nn

import maskdm
from maskdm.cli.main import main
from maskdm.config.model_config import MODELS, ModelBase, model_class
from maskdm.config.process_config import PROCESSES, DDPMConfig
from maskdm.config.resolve import resolve
from maskdm.config.yaml_files import write_yaml
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.masks import masking
from maskdm.errors import ArgumentError, InputError
from maskdm.models import build, transfer, weights
from maskdm.models.spec import ModelSpec
from maskdm.models.weights import Weights
from maskdm.training.read_run import read_config
from maskdm.training.time_left import TimeLeft

PAGE = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FILES = {block.split()[1]: block for block in BLOCKS if block.startswith("# ")}
LINES = re.findall(r"^    (maskdm .*)$", PAGE, re.MULTILINE)
SHORT = [word for word in TINY if not word.startswith("model.")]
MINE = "modules_of_mine"


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder with photos/ and the files of the page, in which the user stands."""
    write_photos(tmp_path / "photos")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in list(sys.modules):
        if name.split(".")[0] in ("mynet", "borrowed", MINE):
            del sys.modules[name]
    importlib.invalidate_caches()


def diffusers() -> None:
    """Imports it, or leaves the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("diffusers", exc_type=ImportError)
        pytest.importorskip("diffusers.models.unets.unet_2d", exc_type=ImportError)


def train(line: str, *more: str) -> Path:
    """A line of the page, made short: the run."""
    before = set(Path("runs").glob("*"))
    assert main([*line.split()[1:], *SHORT, *more]) == 0
    (run,) = set(Path("runs").glob("*")) - before
    return run


def mine(text: str, folder: Path) -> str:
    """A module of the user's own."""
    (folder / f"{MINE}.py").write_text(f"import torch\nfrom torch import nn\n\n\n{text}")
    importlib.invalidate_caches()
    return MINE


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err.strip().rpartition("\r")[2].splitlines()[-1]
    assert error.startswith("maskdm: error: ")
    return error


def spec_of(backbone: str, *, size: int = 8, channels: int = 3, classes: tuple[str, ...] = (), **model) -> ModelSpec:
    return ModelSpec(
        model=model_class(backbone)(backbone=backbone, **({"patch_size": 4} | model)),
        process=DDPMConfig(),
        image_size=(size, size),
        channels=channels,
        class_names=classes,
    )


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_has_two_networks_and_the_words_to_use_them():
    assert list(FILES) == ["mynet.py", "borrowed.py"]
    assert [line.split()[1] for line in LINES] == ["train", "sample", "train"]
    assert all(len(line) <= 120 for text in FILES.values() for line in text.splitlines())


def test_the_first_example_trains_samples_and_is_loaded_as_the_page_says(desk):
    run = train(LINES[0], "model.patch_size=4", "stages.1.steps=30", "stages.1.lr=1e-2", "ema.decay=0.8")
    assert run == Path("runs/00000-photos")
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(event["loss"]) for event in events if event["event"] == "train")
    heldout = [event["error_ema"] for event in events if event["event"] == "heldout"]
    assert heldout[-1] < 0.8 * heldout[0]
    spec = weights.read_weights(run / "weights" / "ema.safetensors").spec
    assert spec.model.backbone == "mynet:MyNet"
    assert spec.model.options == {"width": 32}
    assert read_config(run).model.options == {"width": 32}

    (usage,) = (block for block in BLOCKS if not block.startswith("# "))
    scope: dict[str, object] = {}
    exec(usage, scope)
    images, denoiser = scope["images"], scope["denoiser"]
    assert isinstance(images, Tensor)
    assert isinstance(denoiser, Denoiser)
    assert images.shape == (16, 3, 16, 16)
    assert images.isfinite().all()
    assert type(denoiser.backbone) is sys.modules["mynet"].MyNet
    assert denoiser.backbone.enter.weight.shape == (32, 4, 3, 3)

    assert main([*LINES[1].split()[1:], "--num", "4", "--steps", "50", "-o", "here.npz"]) == 0
    guided = ("--guide", "pretrain", "--guidance", "2", "--num", "4", "--steps", "5", "-o", "guided")
    assert main([*LINES[1].split()[1:], *guided]) == 0
    assert len(list(Path("guided").iterdir())) == 6  # four images, their grid, samples.json
    assert main([*LINES[1].split()[1:], "--weights", "pretrain-raw", "--num", "1", "--steps", "5"]) == 0
    assert len(list(Path("samples/00000-photos").iterdir())) == 3
    assert main(["info", str(run)]) == 0


def test_the_second_example_trains_and_samples(desk):
    diffusers()
    words = ("model.patch_size=4", "process.kind=flow", "process.prediction=velocity")
    run = train(LINES[2].replace("width=32", "width=8"), *words)
    assert main(["sample", str(run), "--backbone", "borrowed:Borrowed", "--num", "2", "--steps", "3"]) == 0
    denoiser = maskdm.load(run, backbone=sys.modules["borrowed"].Borrowed)
    images = maskdm.sample(denoiser, 2, steps=3, labels=["cat", "none"])
    assert images.shape == (2, 3, 16, 16)
    assert images.isfinite().all()


@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("kind", ["patch", "block", "crop"])
@pytest.mark.parametrize("name", ["mynet:MyNet", "borrowed:Borrowed"])
def test_the_examples_see_nothing_of_masked_patches_and_put_out_zero_there(name, kind, classes, desk):
    if name.startswith("borrowed"):
        diffusers()
    torch.manual_seed(0)
    spec = spec_of(name, size=16, classes=("cat", "dog")[:classes], options={"width": 8})
    network = build.backbone(spec)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    mask = masking(kind, (4, 4), 0.5, block=2).draw(3, torch.Generator().manual_seed(1))
    masked = torch.ones(3, 16).scatter(1, mask.keep.flatten(1), 0).view(3, 1, 4, 4)
    masked = masked.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1) > 0
    x_t, label = torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2]) if classes else None

    def output(x_t: Tensor) -> Tensor:
        return network(x_t, torch.tensor([0, 10, 999]), mask=mask, label=label)

    out = output(x_t)
    assert out.shape == x_t.shape
    assert not out[masked].any()
    assert (out[~masked] != 0).all()
    assert torch.equal(output(torch.where(masked, math.nan, x_t)), out)
    assert not torch.equal(output(torch.where(masked, x_t, x_t + 0.1)), out)


def test_the_examples_go_with_every_process_and_with_wavelets(desk):
    words = ("model.haar_levels=1", "model.patch_size=4", "model.options.width=8", "eval.samples=0")
    for kind in ("vp", "ve", "edm", "flow"):
        run = train("maskdm train --data photos/ model.backbone=mynet:MyNet", *words, f"process.kind={kind}")
        denoiser = maskdm.load(run, backbone=sys.modules["mynet"].MyNet)
        assert denoiser.backbone.inner.enter.weight.shape == (8, 13, 3, 3)
        assert denoiser.backbone.inner.patch_size == 2
        assert maskdm.sample(denoiser, 2, steps=3).isfinite().all()


def test_what_the_page_says_of_the_three_is_so():
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", PAGE, re.MULTILINE)[:3]
    assert {name for name, _ in rows} == set(build.BACKBONES)
    for name, text in rows:
        listed = set(re.findall(r"`(\w+)`", text))
        assert listed == set(inspect.signature(build.BACKBONES[name]).parameters) - set(build.GIVEN)
        assert listed == MODELS[name].model_fields.keys() - ModelBase.model_fields.keys() - {"size"}
    roles = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| \([^|]*\|$", PAGE, re.MULTILINE)
    assert {role for row in roles for role in re.findall(r"`(\w+)`", row)} == set(transfer.ROLES)
    assert {name: build.routes(MODELS[name]()) for name in build.BACKBONES} == {
        "uvit": True,
        "jit": True,
        "unet": False,
    }


RECORDER = '''
class Recorder(nn.Module):
    """Remembers what it is given; knows neither classes nor masks."""

    routes = True
    built, calls = [], []

    def __init__(self, **given):
        super().__init__()
        self.built.append(given)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x_t, t, *, mask=None, label=None):
        self.calls.append((x_t.detach(), t, mask, label))
        return self.scale * x_t
'''

TIMES = {"ddpm": (0, 999), "vp": (1, 1000), "flow": (0.1, 1000), "ve": (-1152, 979), "edm": (-1554, 1096)}


@pytest.mark.parametrize("kind", TIMES)
def test_what_the_page_says_of_times_is_so(kind):
    process = build.make_objective(PROCESSES[kind]()).process
    c_noise = process.c_noise(torch.tensor(process.ends, dtype=torch.float64))
    assert c_noise.tolist() == pytest.approx(list(TIMES[kind]), abs=1)


def test_what_the_page_says_of_the_call_is_so(desk, monkeypatch):
    monkeypatch.setattr(TimeLeft, "step_done", lambda _: None)  # which has a call counted
    mine(RECORDER, desk)
    words = [
        "stages.0.mask={kind: patch, ratio: 0.5}",
        "stages.1={mask: {kind: crop, ratio: 0.5}, label_dropout: 0.5}",
        "model.options={a: 1, b: 0.5, c: word, d: true}",
        "model.width=24",
        "model.patch_size=4",
    ]
    run = train(f"maskdm train --data photos/ model.backbone={MINE}:Recorder", *words)
    recorder = sys.modules[MINE].Recorder
    images = {"image_size": (16, 16), "channels": 3, "patch_size": 4, "classes": 2}
    options = {"a": 1, "b": 0.5, "c": "word", "d": True, "width": 24}
    assert recorder.built[-1] == images | options
    assert all(given.keys() == (images | options).keys() for given in recorder.built)

    seen: dict[str, int] = {}
    for x_t, t, mask, label in recorder.calls:
        assert x_t.dtype == torch.float32
        assert x_t.shape[1:] == (3, 16, 16)
        assert t.shape == (len(x_t),)
        assert label is None or (label.shape == (len(x_t),) and 0 <= label.min() <= label.max() <= 2)
        visible = None if mask is None else mask.visible
        if mask is not None:
            assert visible.shape == ((len(x_t), 8) if visible.ndim == 2 else (len(x_t), 3, 3))
            assert (visible.flatten(1).diff(dim=1) > 0).all()
            assert 0 <= visible.min() <= visible.max() < 16
        shape = "all" if visible is None else f"{visible.ndim} dimensions"
        seen[shape] = seen.get(shape, 0) + 1
    assert seen["2 dimensions"] == 4  # steps of the first stage
    assert seen["3 dimensions"] == 3
    assert seen["all"]  # held-out images and samples
    assert any(label is not None and (label == 2).any() for *_, label in recorder.calls)

    recorder.calls.clear()
    train(f"maskdm train --data photos/ model.backbone={MINE}:Recorder", "stages.0.mask={kind: route, ratio: 0.5}")
    routed = [mask for _, _, mask, _ in recorder.calls if mask is not None]
    assert len(routed) == 4
    assert all(mask.visible is None and mask.keep.ndim == 2 for mask in routed)
    assert maskdm.sample(maskdm.load(run, backbone=recorder), 1, steps=2).isfinite().all()


# --- what a file may not do ------------------------------------------------------------------------------------------


@pytest.fixture
def file(desk) -> Path:
    """Weights of the first example."""
    spec = spec_of("mynet:MyNet", options={"width": 8})
    weights.write_weights(desk / "w.safetensors", Weights(spec, {}, build.backbone(spec).state_dict()))
    return desk / "w.safetensors"


def test_a_file_never_imports_what_it_names(file, capsys):
    del sys.modules["mynet"]
    (file.parent / "mynet.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(InputError) as caught:
        maskdm.load(file)
    assert (caught.value.name, caught.value.got) == ("backbone", None)
    assert "mynet:MyNet" in refused(capsys, "sample", file)
    assert main(["info", str(file)]) == 0
    assert "mynet:MyNet" in capsys.readouterr().out
    ours = spec_of("uvit", width=16, depth=1, heads=2)
    with pytest.raises(ArgumentError) as caught:
        transfer.inherit(build.backbone(ours), ours, file, "ema")
    assert caught.value.name == "init_from"
    assert "mynet" not in sys.modules


def test_another_class_than_the_named_one_is_refused(file, digits_run):
    class MyNet(nn.Module):
        pass

    with pytest.raises(InputError) as caught:
        maskdm.load(file, backbone=MyNet)
    assert (caught.value.name, caught.value.got) == ("backbone", f"{__name__}:{MyNet.__qualname__}")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError) as caught:
        maskdm.load(digits_run, backbone=sys.modules["mynet"].MyNet)
    assert (caught.value.name, caught.value.got) == ("backbone", "mynet:MyNet")
    assert maskdm.load(file, backbone=sys.modules["mynet"].MyNet).channels == 3


def test_a_class_that_has_changed_since_is_one_line(file):
    module = sys.modules["mynet"]

    class MyNet(module.MyNet):
        def __init__(self, **given):
            super().__init__(**given)
            self.more = nn.Linear(2, 2)

    MyNet.__module__, MyNet.__qualname__, module.MyNet = "mynet", "MyNet", MyNet
    with pytest.raises(InputError) as caught:
        maskdm.load(file, backbone=MyNet)
    assert caught.value.name == str(file)
    assert caught.value.problem.startswith("does not fit the model it describes: Missing key")
    assert "\n" not in str(caught.value)


def test_a_class_that_a_package_passes_on_is_known_by_its_own_name(desk):
    (desk / MINE).mkdir()
    (desk / MINE / "__init__.py").write_text("from .inside import Net\n")
    (desk / MINE / "inside.py").write_text("from mynet import MyNet\n\n\nclass Net(MyNet):\n    pass\n")
    words = ("model.patch_size=4", "model.options.width=8", "eval.samples=0")
    run = train(f"maskdm train --data photos/ model.backbone={MINE}:Net", *words)
    assert weights.read_weights(run / "weights" / "ema.safetensors").spec.model.backbone == f"{MINE}.inside:Net"
    for name in (f"{MINE}:Net", f"{MINE}.inside:Net"):
        assert main(["sample", str(run), "--backbone", name, "--num", "1", "--steps", "2"]) == 0
    assert maskdm.load(run, backbone=sys.modules[MINE].Net).channels == 3


def test_the_command_finds_modules_where_the_user_stands(desk):
    command = Path(sys.executable).parent / "maskdm"
    if not command.exists():
        pytest.skip("not installed as a command")
    words = ["train", "--data", "photos", "--dry-run", "model.backbone=mynet:MyNet", "model.options.width=8"]
    words += ["stages.0.steps=1", "stages.1.steps=1"]
    done = subprocess.run([command, *words], cwd=desk, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mynet:MyNet" in done.stderr


# --- what does not fit -----------------------------------------------------------------------------------------------

NETS = """
class Plain(nn.Module):
    def __init__(self, *, image_size, channels, patch_size, classes, levels=(7,), mlp_ratio=9.0, width=3, needed):
        super().__init__()
        self.got = {"levels": levels, "mlp_ratio": mlp_ratio, "width": width, "needed": needed}


class NoClasses(nn.Module):
    def __init__(self, *, image_size, channels, patch_size):
        super().__init__()


def function(**given):
    return nn.Identity()
"""


def test_the_defaults_of_a_class_are_its_own(desk):
    mine(NETS, desk)
    made = build.backbone(spec_of(f"{MINE}:Plain", options={"needed": 1}))
    assert made.got == {"levels": (7,), "mlp_ratio": 9.0, "width": 3, "needed": 1}
    made = build.backbone(spec_of(f"{MINE}:Plain", width=24, options={"needed": 1, "mlp_ratio": 4.0}))
    assert made.got == {"levels": (7,), "mlp_ratio": 4.0, "width": 24, "needed": 1}


WRONG = [
    ("model.backbone=mynet", "model.backbone", "got 'mynet'"),
    ("model.backbone=mynot:MyNet", "model.backbone", "cannot import mynot:MyNet (No module named"),
    ("model.backbone=mynet:MyNot", "model.backbone", "(module 'mynet' has no attribute 'MyNot')"),
    ("model.backbone=mynet:visible_pixels", "model.backbone", "got 'mynet:visible_pixels'"),
    (f"model.backbone={MINE}:function", "model.backbone", f"got '{MINE}:function'"),
    (f"model.backbone={MINE}:NoClasses", "model.backbone", "does not take classes"),
    (f"model.backbone={MINE}:Plain", "model.options.needed", "missing"),
    ("model.backbone=mynet:MyNet model.options.depth=3", "model.options.depth", "got 3"),
    ("model.backbone=mynet:MyNet model.options.channels=3", "model.options.channels", "got 3"),
    ("model.backbone=mynet:MyNet model.depth=3", "model.depth", "got 3"),
    ("model.backbone=mynet:MyNet model.mlp_ratio=2", "model.mlp_ratio", "model.options.mlp_ratio"),
    ("model.backbone=mynet:MyNet stages.0.mask.kind=route", "stages.0.mask.kind", "got 'route'"),
    ("model.options.width=3", "model.options", "not for model.backbone uvit"),
]


@pytest.mark.parametrize(("words", "name", "values"), WRONG)
def test_what_does_not_fit_is_refused_in_one_line(words, name, values, desk, capsys):
    mine(NETS, desk)
    error = refused(capsys, "train", "--data", "photos", *SHORT, "model.patch_size=4", *words.split())
    assert error.startswith(f"maskdm: error: {name}: ")
    assert values in error
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["mynot:MyNet", "mynet:MyNot", "mynet:visible_pixels", "json:JSONDecoder"])
def test_what_is_no_class_of_networks_is_an_argument(name, desk):
    with pytest.raises(ArgumentError) as caught:
        build.constructor(name)
    assert caught.value.name == "backbone"
    assert not isinstance(caught.value, InputError)  # it knows no setting


def test_a_backbone_named_to_sample_must_be_one(file, capsys):
    for name in ("uvit", "mynot:MyNet", "mynet:visible_pixels"):
        error = refused(capsys, "sample", file, "--backbone", name)
        assert error.startswith("maskdm: error: --backbone: ")
        assert name in error
    assert not Path("samples").exists()


# --- layout ----------------------------------------------------------------------------------------------------------


def test_a_layout_fits_the_example_to_colour_and_to_classes(desk):
    torch.manual_seed(0)
    old_spec = spec_of("mynet:MyNet", channels=1, classes=("cat", "dog"), options={"width": 8})
    new_spec = spec_of("mynet:MyNet", size=12, channels=3, classes=("dog", "emu"), options={"width": 8})
    old, new = build.backbone(old_spec), build.backbone(new_spec)
    weights.write_weights(desk / "old.safetensors", Weights(old_spec, {}, old.state_dict()))
    said = transfer.inherit(new, new_spec, desk / "old.safetensors", "ema")
    assert said[1:] == [
        "7 tensors kept",
        "fitted: label.weight, enter.weight, leave.weight, leave.bias",
        "images (12, 12) instead of (8, 8)",
        "channels 3 instead of 1",
        "1 classes known, 1 new, 1 dropped",
    ]
    gray, t = torch.randn(2, 1, 12, 12), torch.tensor([5, 900])
    colour = gray.expand(-1, 3, -1, -1)
    for there, here in ((1, 0), (2, 1), (2, 2)):
        before, after = old(gray, t, label=torch.tensor([there] * 2)), new(colour, t, label=torch.tensor([here] * 2))
        torch.testing.assert_close(after, before.expand(-1, 3, -1, -1), rtol=0, atol=1e-5)


def test_without_a_layout_what_differs_starts_from_fresh_weights(desk, monkeypatch):
    old_spec = spec_of("mynet:MyNet", channels=1, options={"width": 8})
    new_spec = spec_of("mynet:MyNet", channels=3, options={"width": 8})
    weights.write_weights(desk / "old.safetensors", Weights(old_spec, {}, build.backbone(old_spec).state_dict()))
    monkeypatch.delattr(sys.modules["mynet"].MyNet, "layout")
    said = transfer.inherit(build.backbone(new_spec), new_spec, desk / "old.safetensors", "ema")
    assert said[1:3] == ["8 tensors kept", "new: enter.weight, leave.weight, leave.bias"]


def test_options_come_back_from_a_settings_file(desk):
    words = ["model.backbone=mynet:MyNet", "model.options.width=8", "model.options.name=x", "model.options.deep=true"]
    config = resolve(overrides=words)
    write_yaml(desk / "config.yaml", config)
    assert resolve(file=desk / "config.yaml") == config
