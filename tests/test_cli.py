"""The command line: its commands and options, which are frozen here, and what they do end to end."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import train
from PIL import Image
from safetensors import SafetensorError

from maskdm import __version__
from maskdm.cli import main as cli
from maskdm.cli.main import main
from maskdm.cli.parsing import numbers
from maskdm.cli.renamed import NEW_NAMES
from maskdm.config.keys import all_settings
from maskdm.config.recipes import recipes
from maskdm.data.manifest import read_manifest
from maskdm.data.write import CAPTION
from maskdm.models import weights
from maskdm.sampling.samplers import SAMPLERS
from maskdm.sampling.timesteps import SPACINGS
from maskdm.training.runs import read_config

OFFICIAL = Path(__file__).parent / "data" / "official_uncond_linear.pt"

SETTINGS = ["--data", "--recipe", "--config", "--image-size --resolution", "--mixed-precision", "--seed"]

# What users have in their scripts. An option may be added here; taking one away breaks somebody's work, so that an old
# name is refused by naming the new one (`maskdm.cli.renamed`).
COMMANDS = {
    "train": [
        "-h --help",
        "--quiet -q",
        *SETTINGS,
        "--minutes",
        "--hours",
        "--output-dir --outdir",
        "--name",
        "--resume",
        "-n --dry-run",
        "--settings",
        "--recipes",
    ],
    "sample": [
        "-h --help",
        "--quiet -q",
        "RUN|FILE",
        "--num",
        "--seeds",
        "--labels",
        "--steps",
        "--sampler",
        "--eta",
        "--s-churn",
        "--spacing",
        "--shift",
        "--guidance",
        "--guidance-interval",
        "--guide",
        "--init",
        "--strength",
        "--inpaint",
        "--resample",
        "--interpolate",
        "--weights",
        "--backbone",
        "--batch-size",
        "--device",
        "--mixed-precision",
        "--compile",
        "--output -o",
        "--overwrite",
    ],
    "eval": [
        "-h --help",
        "--quiet -q",
        "RUN|FILE|IMAGES",
        "--reference",
        "--data",
        "--features",
        "--features-weights",
        "--num",
        "--sampler",
        "--steps",
        "--guidance",
        "--first-seed",
        "--weights",
        "--backbone",
        "--mixed-precision",
        "--bootstrap",
        "--batch-size",
        "--device",
        "--output -o",
    ],
    "compare": [
        "-h --help",
        "--quiet -q",
        "FILE|NAME",
        "--data",
        "--output-dir --outdir",
        "--pretrain-data",
        "--minutes",
        "--seeds",
        "-n --dry-run",
        "--show",
        "--list",
    ],
    "audit": [
        "-h --help",
        "--quiet -q",
        "RUN|FILE",
        "--profile",
        "--stage",
        "--weights",
        "--backbone",
        "--data",
        "--members",
        "--nonmembers",
        "--num",
        "--generated",
        "--features",
        "--group-by",
        "--budget-minutes",
        "--estimate",
        "--fail-above-auc",
        "--include-training-images",
        "--seed",
        "--batch-size",
        "--device",
        "--output -o --out",
    ],
    "audit compare": ["-h --help", "--quiet -q", "A", "B"],
    "plan": ["-h --help", "--quiet -q", *SETTINGS, "--minutes", "--hours", "--seconds", "--watts"],
    "bench": ["-h --help", "--quiet -q", *SETTINGS, "--ratios", "--rounds", "--output -o"],
    "info": ["-h --help", "--quiet -q", "RUN|FILE"],
    "report": ["-h --help", "--quiet -q", "RUN"],
    "import": ["-h --help", "--quiet -q", "source", "FILE", "--output -o", "--weights", "--heads", "--check"],
    "demo": ["-h --help", "--quiet -q", "--output-dir --outdir"],
}


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in cli.make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All that is below a folder: the bytes of its files, None for folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def maskdm(*arguments: object) -> None:
    """Runs a command that has to succeed."""
    assert main([str(argument) for argument in arguments]) == 0


def sampled(model: Path, folder: Path, *more: object) -> dict[str, np.ndarray]:
    """File name -> pixels of what `maskdm sample` makes; two steps are enough to tell models apart."""
    maskdm("sample", model, "--steps", 2, "--output", folder, *more)
    return {path.name: pixels(path) for path in sorted(folder.glob("*.png"))}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# --- the options -----------------------------------------------------------------------------------------------------


def test_the_list_of_commands_and_options():
    found = {
        name: [" ".join(a.option_strings) or str(a.metavar or a.dest) for a in parser._actions]
        for name, parser in subcommands().items()
    }
    assert found == COMMANDS


@pytest.mark.parametrize(("command", "old"), [(name, old) for name, table in NEW_NAMES.items() for old in table])
def test_an_option_under_its_old_name_is_refused_by_the_new_one(command, old, capsys):
    new = NEW_NAMES[command][old]
    assert new in " ".join(COMMANDS[command])
    for typed in ([old, "1"], [f"{old}=1"]):
        assert main([command, "runs/00000-photos", *typed]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"maskdm: error: {old}: ")
        assert new in line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_work(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert not err
    _, _, examples = out.partition("examples:\n")
    lines = re.findall(r"^  (maskdm .*)$", examples, re.MULTILINE)
    assert lines
    for line in lines:
        typed = line.split()[1:]
        assert " ".join(typed).startswith(command)
        options = [word for word in typed[len(command.split()) :] if "=" not in word or word.startswith("-")]
        cli.make_parser().parse_args([command, *options])


def test_every_option_has_a_help_text():
    for name, parser in subcommands().items():
        for action in parser._actions:
            assert action.help or not action.option_strings, f"{name} {action.option_strings}"


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert re.findall(r"^    ([a-z]+(?: [a-z]+)?)(?:  |$)", said, re.MULTILINE) == list(COMMANDS)
    assert main([]) == 0  # the same where nothing is asked
    assert capsys.readouterr().out == said


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"maskdm {__version__}\n"


def test_help_imports_nothing_heavy():
    code = "import sys, maskdm, maskdm.cli.main as c; c.make_parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "maskdm.cli.main" in loaded
    assert {"torch", "numpy", "PIL", "pydantic", "ruamel.yaml", "scipy", "tqdm", "jinja2", "matplotlib"}.isdisjoint(
        loaded
    )


def test_settings_are_listed(capsys):
    maskdm("train", "--settings")
    out = capsys.readouterr().out
    for setting in all_settings():
        assert f"{setting}\n" in out
    assert "stages.0.mask.ratio = " in out


def test_recipes_are_listed(capsys):
    maskdm("train", "--recipes")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [[name, header] for name, header in recipes().items()]


# --- train -----------------------------------------------------------------------------------------------------------


def test_train_sample_info_report(photos, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    maskdm("train", "--data", photos, *tiny)
    said = capsys.readouterr()
    assert not said.out  # what a program would read; what goes on is on stderr
    (run,) = Path("runs").iterdir()
    assert run.name == "00000-photos"
    assert "30 images at 16 x 16 x 3, 2 classes" in said.err
    for kind, path in re.findall(r"^(weights|samples|report) +(.*)$", said.err, re.MULTILINE):
        assert Path(path).is_file(), kind
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "env.json",
        "log.txt",
        "metrics.jsonl",
        "manifest.jsonl",
        "report.html",
    }
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]
    assert (run / "log.txt").read_text().count("held-out error") == 4

    maskdm("sample", run, "--num", 2, "--steps", 2)
    folder = Path("samples") / run.name
    names = ["grid.png", "samples.json", "seed-000000.png", "seed-000001.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert f"2 images in {folder}" in capsys.readouterr().err

    maskdm("info", run)
    out = capsys.readouterr().out
    for words in (
        "finished, saved at step 7 (56 images",
        "held-out   error 0.",
        "(raw) at noise 0.50 to 0.74: shapes",  # one image is held out
        "model      uvit, patches of 2 px, width 16, depth 3, heads 2; 0.01 M parameters",
        "images     16 x 16 x 3",
        "process    ddpm, cosine schedule, 1000 timesteps; predicts x0",
        "classes    2: cat, dog",
    ):
        assert words in out

    (run / "report.html").unlink()
    maskdm("report", run)
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert "Finished" in (run / "report.html").read_text()


def test_flags_are_settings(digits_npz, tiny, tmp_path, capsys):
    flags = ["--data", digits_npz, "--image-size", 4, "--seed", 3, "--name", "my/run", "--output-dir", tmp_path]
    maskdm("train", *flags, *[word for word in tiny if "mixed" not in word], "--mixed-precision", "bf16")
    config = read_config(tmp_path / "00000-my-run")
    assert config.data.path == str(digits_npz.resolve())
    assert config.data.image_size == (4, 4)
    assert config.train.seed == 3
    assert config.train.mixed_precision == "bf16"
    assert "60 images at 4 x 4 x 1" in capsys.readouterr().err


def test_the_settings_of_a_run_have_nothing_open(digits_npz, tiny, tmp_path, capsys):
    words = ["train", "--data", digits_npz, "--output-dir", tmp_path, "model.size=B", *tiny, "model.depth=null"]
    maskdm(*words, "stages.0.steps=1", "stages.1.steps=1")
    model = read_config(tmp_path / "00000-digits").model
    assert (model.width, model.depth, model.heads) == (16, 13, 2)
    assert "  width: 16\n  depth: 13\n  heads: 2\n" in (tmp_path / "00000-digits" / "config.yaml").read_text()
    assert main(["train", "--resume", "latest", "--output-dir", str(tmp_path)]) == 0
    assert "is finished" in capsys.readouterr().err  # and not: has other settings


def test_the_name_of_a_run(digits_npz, tiny, tmp_path):
    words = ["train", "--data", digits_npz, "--output-dir", tmp_path, *tiny, "stages.0.steps=1", "stages.1.steps=1"]
    maskdm(*words)
    maskdm(*words, "--recipe", "digits", "--seed", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000-digits", "00001-digits"]


@pytest.mark.parametrize(
    "name", ["2023", "2024-01-01", "1e3", "0x10", "true", "null", "a: b", "a #1", "[x]", "{x}", "'q'"]
)
def test_a_folder_of_any_name(name, photos, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos.rename(tmp_path / name)
    maskdm("train", "--data", name, "--dry-run", *tiny)
    assert "30 images at 16 x 16 x 3" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_dry_run_says_what_would_be_done_and_makes_nothing(digits_npz, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", digits_npz, *tiny, "stages.1.minutes=5", "stages.0.images=33"]
    maskdm(*words, "--dry-run", "--output-dir", tmp_path / "not" / "there")
    err = capsys.readouterr().err
    assert "60 images at 8 x 8 x 1, 10 classes" in err
    assert "stage 1, pretrain: 5 steps, 40 images, batch 8" in err
    assert "from fresh weights" in err
    assert "stage 2, finetune: 5 minutes, batch 8" in err
    assert snapshot(tmp_path) == {}


def test_a_dry_run_leaves_runs_as_they_are(digits_run, tiny, capsys):
    before = snapshot(digits_run.parent)
    data = digits_run.parent.parent / "digits.npz"
    maskdm("train", "--data", data, "--output-dir", digits_run.parent, "-n", *tiny, "model.classes=none")
    assert snapshot(digits_run.parent) == before
    assert "stage 2, finetune: 3 steps" in capsys.readouterr().err


def test_a_new_run_from_the_weights_of_another(digits_run, tiny, tmp_path, capsys):
    data = digits_run.parent.parent / "digits.npz"
    words = ["--data", data, "--output-dir", tmp_path, *tiny, "model.classes=none", f"stages.0.init_from={digits_run}"]
    maskdm("train", *words)
    file = digits_run / "weights" / "ema.safetensors"
    assert f"  starts from ema weights of {digits_run}; {file}; 42 tensors kept\n" in capsys.readouterr().err


def test_ctrl_c_before_there_is_anything_to_save(digits_npz, tiny, tmp_path, monkeypatch, capsys):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("maskdm.training.prepare.read_dataset", interrupt)
    assert main(["train", "--data", str(digits_npz), "--output-dir", str(tmp_path / "runs"), *tiny]) == 130
    assert capsys.readouterr().err == "maskdm: interrupted; nothing had been saved\n"
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("writing", ["weights", "grid"])
def test_a_disk_that_fills_up_in_training_is_one_line(writing, digits_npz, tiny, tmp_path, monkeypatch, capsys):
    def full_for_tensors(*_: object) -> None:  # what safetensors 0.8 raises
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if writing == "weights":
        monkeypatch.setattr(weights, "save_file", full_for_tensors)
    else:
        monkeypatch.setattr(Image.Image, "save", full)
    assert main(["train", "--data", str(digits_npz), "--output-dir", str(tmp_path), *tiny]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "maskdm: error: " in line
    assert "No space left on device" in line
    assert "what was saved before is intact" in line


def test_training_that_diverges_is_one_line_and_code_1(digits_npz, tiny, tmp_path, capsys):
    words = ["--data", str(digits_npz), "--output-dir", str(tmp_path), *tiny]
    words += ["stages.0.lr=1e4", "stages.0.weight_decay=1e4"]
    assert main(["train", *words]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "maskdm: error: loss or gradient not finite at step 2 of stage pretrain" in line
    assert "stages.0.lr" in line


# --- sample ----------------------------------------------------------------------------------------------------------


def test_a_folder_has_an_image_for_every_seed_and_a_grid(photos_run, tmp_path):
    generated = sampled(photos_run, tmp_path / "deep" / "generated", "--seeds", "7,0-3")
    assert list(generated) == ["grid.png", *(f"seed-{seed:06d}.png" for seed in (0, 1, 2, 3, 7))]
    grid = generated.pop("grid.png")
    factor = 15  # 512 px over 2 columns of 17 px, one for each class, and a gap
    grid = grid[CAPTION:]
    assert grid.shape == ((3 * 17 + 1) * factor, (2 * 17 + 1) * factor, 3)
    assert all(image.shape == (16, 16, 3) for image in generated.values())
    first = grid[factor : 17 * factor : factor, factor : 17 * factor : factor]
    assert (first == generated["seed-000007.png"]).all()  # in the order in which they were asked for


def test_images_of_one_channel(digits_run, tmp_path):
    generated = sampled(digits_run, tmp_path / "generated", "--num", 2)
    assert generated["seed-000001.png"].shape == (8, 8)
    assert generated["grid.png"].ndim == 2


def test_an_npz_of_samples_is_data_again(photos_run, tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generated = sampled(photos_run, tmp_path / "generated", "--seeds", "0-8")
    maskdm("sample", photos_run, "--steps", 2, "--seeds", "0-8", "--output", "deep/generated.npz")
    assert [path.name for path in Path("deep").iterdir()] == ["generated.npz"]
    with np.load("deep/generated.npz") as archive:
        assert archive.files == ["images", "samples"]
        images = archive["images"]
    assert images.dtype == np.uint8
    assert images.shape == (9, 16, 16, 3)
    assert all((images[seed] == generated[f"seed-{seed:06d}.png"]).all() for seed in range(9))
    capsys.readouterr()
    maskdm("train", "--data", "deep/generated.npz", "--dry-run", *tiny)
    assert "9 images at 16 x 16 x 3" in capsys.readouterr().err


def test_a_seed_means_the_same_image_tomorrow(photos_run, tmp_path):
    once = sampled(photos_run, tmp_path / "once", "--seeds", "0-4", "--sampler", "ancestral")
    again = sampled(photos_run, tmp_path / "again", "--seeds", "0-4", "--sampler", "ancestral")
    assert same(once, again)
    assert not (once["seed-000000.png"] == once["seed-000002.png"]).all()  # of one class, with other noise


def test_a_seed_does_not_depend_on_its_company(photos_run, tmp_path):
    many = sampled(photos_run, tmp_path / "many", "--seeds", "0-8", "--labels", "cat", "--eta", 1)
    some = sampled(photos_run, tmp_path / "some", "--seeds", "8,3", "--labels", "cat", "--eta", 1, "--batch-size", 1)
    for name in ("seed-000003.png", "seed-000008.png"):
        apart = np.abs(many[name].astype(int) - some[name].astype(int)).max()
        assert apart <= 1  # other batches round differently


def test_more_images_than_seeds(photos_run, tmp_path):
    generated = sampled(photos_run, tmp_path / "generated", "--seeds", "4,5", "--num", 3, "--labels", "dog")
    assert list(generated) == ["grid.png", "seed-000004-0.png", "seed-000004-1.png", "seed-000005-0.png"]
    assert not (generated["seed-000004-0.png"] == generated["seed-000004-1.png"]).all()
    alone = sampled(photos_run, tmp_path / "alone", "--seeds", "4", "--labels", "dog")
    assert np.abs(generated["seed-000004-0.png"].astype(int) - alone["seed-000004.png"].astype(int)).max() <= 1


def test_as_many_files_as_images(photos_run, tmp_path, capsys):
    generated = sampled(photos_run, tmp_path / "generated", "--seeds", "1,1,0-1")
    said = int(re.search(r"(\d+) images in", capsys.readouterr().err)[1])
    assert len(generated) - 1 == said


def test_labels_by_name_and_number(photos_run, tmp_path):
    def one(*labels: str) -> dict[str, np.ndarray]:
        return sampled(photos_run, tmp_path / "-".join(["generated", *labels]), "--seeds", "0-1", *labels)

    cats, dogs, nothing = one("--labels", "cat"), one("--labels", "dog"), one("--labels", "none")
    assert same(cats, one("--labels", "0"))
    assert same(dogs, one("--labels", " dog "))
    assert not same(cats, dogs)
    assert not same(cats, nothing)
    mixed = one("--labels", "dog,cat")
    assert (mixed["seed-000000.png"] == dogs["seed-000000.png"]).all()
    assert (mixed["seed-000001.png"] == cats["seed-000001.png"]).all()
    assert same(one("--labels", "cat,dog"), one())  # by default all classes in turn


def test_guidance(photos_run, tmp_path):
    def guided(weight: float) -> dict[str, np.ndarray]:
        folder = tmp_path / str(weight)
        return sampled(photos_run, folder, "--seeds", "0-3", "--labels", "dog", "--guidance", weight)

    plain = sampled(photos_run, tmp_path / "plain", "--seeds", "0-3", "--labels", "dog")
    nothing = sampled(photos_run, tmp_path / "nothing", "--seeds", "0-3", "--labels", "none")
    assert same(guided(1), plain)
    assert not same(guided(4), plain)
    del nothing["grid.png"]  # has no class above it
    unguided = guided(0)  # all of the unconditional answer; in batches of twice the size
    assert all(np.abs(unguided[name].astype(int) - nothing[name].astype(int)).max() <= 1 for name in nothing)


def test_steps_samplers_and_eta_matter(photos_run, tmp_path):
    options = [(), ("--steps", 3), ("--sampler", "ancestral"), ("--eta", 0.5), ("--seeds", "1-2")]
    generated = [sampled(photos_run, tmp_path / str(i), "--num", 2, *more) for i, more in enumerate(options)]
    assert not any(same(generated[0], other) for other in generated[1:])
    assert same(sampled(photos_run, tmp_path / "ddim", "--num", 2, "--sampler", "ddim", "--eta", 0), generated[0])


def test_a_run_a_checkpoint_and_a_file_are_the_same_model(photos_run, tmp_path):
    of_run = sampled(photos_run, tmp_path / "run", "--num", 2)
    for i, model in enumerate([photos_run / "checkpoints" / "latest", photos_run / "weights" / "ema.safetensors"]):
        assert same(sampled(model, tmp_path / str(i), "--num", 2), of_run)
    shutil.copy(photos_run / "weights" / "ema.safetensors", tmp_path / "alone.bin")
    assert same(sampled(tmp_path / "alone.bin", tmp_path / "alone", "--num", 2), of_run)


def test_raw_weights(photos_run, tmp_path):
    raw = sampled(photos_run, tmp_path / "raw", "--num", 2, "--weights", "raw")
    assert same(sampled(photos_run / "weights" / "raw.safetensors", tmp_path / "file", "--num", 2), raw)
    assert not same(sampled(photos_run, tmp_path / "ema", "--num", 2), raw)


def test_weights_of_a_stage(photos_run, tmp_path):
    early = sampled(photos_run, tmp_path / "stage", "--num", 2, "--weights", "pretrain-ema")
    file = photos_run / "weights" / "pretrain-ema.safetensors"
    assert same(sampled(file, tmp_path / "file", "--num", 2), early)
    assert not same(sampled(photos_run, tmp_path / "last", "--num", 2), early)


def test_a_backbone_of_ones_own(own_run, tmp_path, capsys):
    generated = sampled(own_run, tmp_path / "generated", "--num", 2, "--backbone", "ownnet:Net")
    assert generated["seed-000001.png"].shape == (8, 8)
    maskdm("info", own_run)
    assert "model      ownnet:Net, patches of 2 px, layers 2; 0.00 M parameters\n" in capsys.readouterr().out


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_with_every_spacing(sampler, spacing, photos_run, tmp_path):
    options = ("--steps", 4, "--num", 2, "--sampler", sampler)
    generated = sampled(photos_run, tmp_path / "spacing", *options, "--spacing", spacing)
    assert len(generated) == 3
    assert same(sampled(photos_run, tmp_path / "default", *options), generated) == (spacing == "uniform")
    assert not same(sampled(photos_run, tmp_path / "shift", *options, "--spacing", spacing, "--shift", 3), generated)


def test_s_churn(photos_run, tmp_path):
    plain, still, churned = (
        sampled(photos_run, tmp_path / str(i), "--steps", 4, "--num", 2, "--sampler", "heun", *more)
        for i, more in enumerate([(), ("--s-churn", 0), ("--s-churn", 2)])
    )
    assert same(plain, still)
    assert not same(plain, churned)


def test_guidance_in_an_interval(photos_run, tmp_path):
    def guided(*interval: str) -> dict[str, np.ndarray]:
        words = ("--seeds", "0-3", "--labels", "dog", "--guidance", 4, *interval)
        return sampled(photos_run, tmp_path / "-".join(["generated", *interval]).replace(".", ""), *words)

    plain = sampled(photos_run, tmp_path / "plain", "--seeds", "0-3", "--labels", "dog")
    assert same(guided("--guidance-interval", "0,1"), guided())
    assert same(guided("--guidance-interval", "0.2,0.3"), plain)  # two steps from 1 and a half: it is not met
    assert not same(guided("--guidance-interval", "0.3,0.9"), plain)
    assert not same(guided("--guidance-interval", "0.3,0.9"), guided())


def test_autoguidance_by_a_stage_or_a_file(digits_run, tmp_path):
    words = ("--num", 2, "--guidance", 2, "--guide")  # a model without classes can be guided so
    by_stage = sampled(digits_run, tmp_path / "stage", *words, "pretrain")
    assert same(
        sampled(digits_run, tmp_path / "file", *words, digits_run / "weights/pretrain-ema.safetensors"), by_stage
    )
    assert not same(sampled(digits_run, tmp_path / "plain", "--num", 2), by_stage)
    assert same(
        sampled(digits_run, tmp_path / "run", *words, digits_run), sampled(digits_run, tmp_path / "a", "--num", 2)
    )


# --- editing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def init(photos, tmp_path) -> Path:
    """A gray image of another size than the model's."""
    with Image.open(photos / "cat" / "00.png") as image:
        image.convert("L").resize((48, 40)).save(tmp_path / "init.png")
    return tmp_path / "init.png"


def test_img2img_starts_from_an_image(photos_run, init, tmp_path):
    few = sampled(photos_run, tmp_path / "few", "--init", init, "--steps", 50, "--strength", 0.05, "--num", 2)
    far = sampled(photos_run, tmp_path / "far", "--init", init, "--steps", 50, "--strength", 1, "--num", 2)
    with Image.open(init) as image:
        start = np.array(image.convert("RGB").resize((16, 16)), dtype=float)
    near, forgotten = (np.abs(generated["seed-000000.png"] - start).mean() for generated in (few, far))
    assert near < forgotten
    assert len(sampled(photos_run, tmp_path / "usual", "--init", init)) == 17  # 16, and the grid
    assert not same(few, {})
    assert not (few["seed-000000.png"] == few["seed-000001.png"]).all()


def test_inpainting_touches_nothing_outside_its_mask(photos_run, photos, tmp_path):
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 6:12] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    first = photos / "cat" / "00.png"
    words = ("--init", first, "--inpaint", tmp_path / "mask.png", "--num", 2)
    generated = sampled(photos_run, tmp_path / "generated", *words)
    for name in ("seed-000000.png", "seed-000001.png"):
        assert (generated[name][mask == 0] == pixels(first)[mask == 0]).all()
        assert (generated[name][mask > 0] != pixels(first)[mask > 0]).any()
    assert not same(sampled(photos_run, tmp_path / "again", *words, "--resample", 2), generated)


def test_interpolation_between_two_images(photos_run, photos, tmp_path):
    ends = [photos / "cat" / "00.png", photos / "dog" / "00.png"]
    generated = sampled(photos_run, tmp_path / "generated", "--interpolate", *ends, "--num", 5, "--labels", "none")
    assert len(generated) == 6
    assert not (generated["seed-000000.png"] == generated["seed-000004.png"]).all()


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0", [0]),
        ("0-3", [0, 1, 2, 3]),
        ("5,1,9", [5, 1, 9]),
        ("0-2,20,7-8", [0, 1, 2, 20, 7, 8]),
        (" 1 , 2-3 ", [1, 2, 3]),
        ("4-4", [4]),
    ],
)
def test_seeds(text, seeds):
    assert numbers(text, "--seeds") == seeds


# --- info ------------------------------------------------------------------------------------------------------------


def test_info_about_a_file(photos_run, capsys):
    maskdm("info", photos_run / "weights" / "pretrain-raw.safetensors")
    out = capsys.readouterr().out
    for words in (
        "average    none, the last weights (raw)",
        "stage      pretrain",
        "steps      4",
        "seen       32",
        "version    ",
        "mask       ",
    ):
        assert words in out
    assert str(photos_run.parent.parent / "photos") not in out  # weights know no path of an image


def test_info_about_a_run_that_has_saved_nothing(photos_run, tmp_path, capsys):
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(photos_run / name, tmp_path / name)
    maskdm("info", tmp_path)
    assert "begun, nothing saved yet" in capsys.readouterr().out


def test_info_does_not_call_damaged_weights_missing(photos_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(photos_run, run, symlinks=True)
    (run / "weights" / "ema.safetensors").unlink()  # a link to the checkpoint's
    (run / "weights" / "ema.safetensors").write_bytes(b"x" * 100)
    code, said = main(["info", str(run)]), capsys.readouterr()
    assert "none yet" not in said.out
    assert "not a readable safetensors file" in said.out + said.err
    assert code in (0, 2)


# --- import ----------------------------------------------------------------------------------------------------------


def test_official_weights_can_be_sampled_from(tmp_path, capsys):
    file = tmp_path / "new" / "celeba.safetensors"
    maskdm("import", "official", OFFICIAL, "-o", file, "--heads", 4)
    out = capsys.readouterr().out
    for words in (
        str(file),
        "uvit, patches of 4 px, width 48, depth 5, heads 4",
        "16 x 16 x 3",
        "linear schedule, 1000 timesteps; predicts eps",
        "source     official",
    ):
        assert words in out
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    generated = sampled(file, tmp_path / "generated", "--seeds", "3")
    assert list(generated) == ["grid.png", "seed-000003.png"]
    assert generated["seed-000003.png"].shape == (16, 16, 3)


def test_official_raw_weights_are_others(tmp_path):
    files = {which: tmp_path / f"{which}.safetensors" for which in ("ema", "raw")}
    for which, file in files.items():
        maskdm("import", "official", OFFICIAL, "-o", file, "--heads", 4, "--weights", which)
    ema, raw = map(weights.read_weights, files.values())
    assert ema.spec == raw.spec
    assert [weight.metadata["which"] for weight in (ema, raw)] == ["ema", "raw"]
    assert any(not (ema.tensors[name] == raw.tensors[name]).all() for name in ema.tensors)


def test_several_processes_sample_the_images_that_one_does(digits_run, tmp_path):
    words = ("-m", "maskdm", "sample", digits_run, "--seeds", "0-4", "--steps", "2", "--output")
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *words, tmp_path / "two"]
    done = subprocess.run([str(word) for word in launched], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("5 images in") == 1  # one of them talks
    assert same(
        sampled(digits_run, tmp_path / "one", "--seeds", "0-4"),
        {path.name: pixels(path) for path in sorted((tmp_path / "two").glob("*.png"))},
    )


def test_images_in_half_precision_are_nearly_the_same(digits_run, tmp_path):
    whole = sampled(digits_run, tmp_path / "whole", "--num", 4)
    half = sampled(digits_run, tmp_path / "half", "--num", 4, "--mixed-precision", "bf16")
    assert whole.keys() == half.keys()
    assert not same(whole, half)
    assert all(np.abs(whole[name].astype(int) - half[name].astype(int)).mean() < 6 for name in whole)


def test_one_seed_with_several_labels(photos_run, tmp_path):
    generated = sampled(photos_run, tmp_path / "generated", "--seeds", "3,3", "--labels", "cat,dog")
    assert list(generated) == ["grid.png", "seed-000003-0.png", "seed-000003-1.png"]
    dog = sampled(photos_run, tmp_path / "dog", "--seeds", "3", "--labels", "dog")["seed-000003.png"]
    assert np.abs(generated["seed-000003-1.png"].astype(int) - dog.astype(int)).max() <= 1
    assert not (generated["seed-000003-0.png"] == generated["seed-000003-1.png"]).all()


def test_the_same_run_is_the_same_file(photos, tmp_path):
    files = [train(photos, tmp_path / name) / "weights" / "ema.safetensors" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_that_starts_from_another_holds_out_the_same_images(photos, tmp_path, tiny):
    parent = train(photos, tmp_path / "parent")
    words = [*tiny, "data.image_size=8", f"stages.0.init_from={parent}"]
    maskdm("train", "--data", photos, "--output-dir", tmp_path / "child", *words)
    (child,) = (tmp_path / "child").iterdir()
    assert "was trained on" not in (child / "log.txt").read_text()
    a, b = (read_manifest(run) for run in (parent, child))
    assert [(r.path, r.role) for r in a.records] == [(r.path, r.role) for r in b.records]
    assert (a.head.parent_sha256, b.head.parent_sha256) == (None, a.sha256)


def test_a_run_that_starts_from_one_that_saw_its_held_out_images_says_so(photos, tmp_path, tiny, capsys):
    parent = train(photos, tmp_path / "parent")
    (tmp_path / "salt").write_bytes(bytes(range(32)))
    words = [*tiny, f"data.salt={tmp_path / 'salt'}", f"stages.0.init_from={parent}"]
    maskdm("train", "--data", photos, "--output-dir", tmp_path / "child", *words)
    assert re.search(r"warning: stages\.0\.init_from: .* was trained on \d of the \d images", capsys.readouterr().err)
