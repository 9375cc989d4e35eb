"""Settings: which layer wins, what is merged and what replaced, and what a wrong one is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from maskdm.config import resolve as merging
from maskdm.config.keys import all_settings
from maskdm.config.model_config import MODELS
from maskdm.config.process_config import PROCESSES
from maskdm.config.recipes import read_recipe, recipes
from maskdm.config.resolve import resolve, to_config
from maskdm.config.schema import Config
from maskdm.config.section import to_dict
from maskdm.config.stage_config import LENGTHS
from maskdm.config.validate import HELP
from maskdm.config.yaml_files import read_yaml, write_yaml
from maskdm.errors import InputError
from maskdm.files import expanded
from maskdm.models import build
from maskdm.models.spec import ModelSpec

DEFAULTS = Config()
PLAIN = ["stages.0.mask.kind=none", "stages.0.mask.ratio=0"]
KINDS = [(name.replace("module:Class", "a:B"), kind) for name in MODELS for kind in PROCESSES]
"""Every backbone with every process."""


@contextmanager
def refused(name: str, **values: object) -> Iterator[None]:
    """An `InputError` about the setting `name`, with these values, and on one line that a person can read."""
    with pytest.raises(InputError) as caught:
        yield
    error = caught.value
    assert {"name": error.name} | {key: getattr(error, key) for key in values} == {"name": name} | values
    message = str(error)
    assert "\n" not in message
    for jargon in ("validation error", "pydantic", "Input should", "String should", "Tuple should", "[type="):
        assert jargon not in message


@contextmanager
def unknown(name: str, meant: str, origin: str = "the command line") -> Iterator[None]:
    """The same of a setting that there is not, for which the nearest is named."""
    with refused(name, problem=f"unknown setting in {origin}", remedy=f"did you mean {meant}? {HELP}"):
        yield


@pytest.fixture
def write(tmp_path):
    """Text -> the path of a settings file with it."""

    def file(text: str | bytes) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return file


# --- precedence ------------------------------------------------------------------------------------------------------


def layers(write, recipe: str | None, text: str | None, words: list[str]) -> list[Config]:
    """The settings after each layer: defaults, recipe, file, command line."""
    file = None if text is None else write(text)
    return [
        resolve(),
        resolve(recipe=recipe),
        resolve(recipe=recipe, file=file),
        resolve(recipe=recipe, file=file, overrides=words),
    ]


def test_a_scalar(write):
    found = layers(write, "digits", "model: {width: 64}", ["model.width=32"])
    widths = [config.model.width for config in found]
    assert widths == [None, read_recipe("digits")["model"]["width"], 64, 32]
    assert len(set(widths)) == 4
    assert {config.model.depth for config in found[1:]} == {read_recipe("digits")["model"]["depth"]}  # its neighbour


def test_a_nested_value_leaves_its_neighbours(write):
    found = layers(write, "digits", "stages: {0: {mask: {kind: crop}}}", ["stages.0.mask.kind=block"])
    assert [config.stages[0].mask.kind for config in found] == ["auto", "patch", "crop", "block"]
    recipe = found[1].stages[0]
    for config in found[2:]:
        assert config.stages[0].mask.ratio == recipe.mask.ratio
        assert config.stages[0].lr == recipe.lr
        assert config.stages[1] == found[1].stages[1]


@pytest.mark.parametrize("stage", ["1", "finetune"])
def test_a_stage_by_number_and_by_name(stage, write):
    found = layers(write, "digits", f"stages: {{{stage}: {{lr: 0.25}}}}", [f"stages.{stage}.lr=0.125"])
    assert [config.stages[1].lr for config in found] == [2e-4, found[1].stages[1].lr, 0.25, 0.125]
    assert [config.stages[0] for config in found[2:]] == [found[1].stages[0]] * 2
    assert found[3].stages[1].model_copy(update={"lr": 0.0}) == found[1].stages[1].model_copy(update={"lr": 0.0})


def test_a_name_that_looks_like_a_number_is_a_number():
    stages = 'stages=[{name: "1", steps: 1}, {name: "0", steps: 1}]'
    config = resolve(overrides=[stages, "stages.0.lr=0.5"])
    assert [stage.lr for stage in config.stages] == [0.5, 2e-4]


def test_a_renamed_stage_is_found_by_its_new_name():
    config = resolve(overrides=["stages.0.name=warm", "stages.warm.lr=0.5"])
    assert config.stages[0].lr == 0.5
    with refused("stages.pretrain", wanted="one of 0 (warm), 1 (finetune)"):
        resolve(overrides=["stages.0.name=warm", "stages.pretrain.lr=0.5"])


def test_a_list_of_stages_replaces_all_of_them(write):
    file = write("stages:\n- {name: only, images: 500, mask: {kind: patch, ratio: 0.5}}\n")
    config = resolve(recipe="digits", file=file)
    (stage,) = config.stages
    assert (stage.name, stage.images, stage.steps, stage.mask.kind) == ("only", 500, None, "patch")
    assert stage.batch_size == 128  # a default, and nothing of the recipe's
    assert stage.mask.block == "auto"
    again = resolve(recipe="digits", file=file, overrides=["stages=[{name: a, steps: 1}, {name: b, steps: 2}]"])
    assert [stage.name for stage in again.stages] == ["a", "b"]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("data.image_size", "[8, 16]", (8, 16)),
        ("data.image_size", "8", 8),
        ("data.image_size", "auto", "auto"),
        ("log.track", "[wandb]", ("wandb",)),
        ("log.track", "[]", ()),
        ("stages.0.betas", "[0.5, 0.25]", (0.5, 0.25)),
    ],
)
def test_plain_lists_are_replaced(key, text, value, write):
    section, _, name = key.rpartition(".")
    file = write("log: {track: [tensorboard, wandb]}\ndata: {image_size: [4, 4]}\n")
    config = resolve(file=file, overrides=[f"{key}={text}"])
    holder = config.stages[0] if section == "stages.0" else getattr(config, section)
    assert getattr(holder, name) == value


def test_of_two_words_the_later_wins():
    assert resolve(overrides=["model.width=64", "model.width=128"]).model.width == 128


@pytest.mark.parametrize("text", ["", "# nothing but a remark\n", "---\n", "model: {}\n"])
def test_an_empty_file_changes_nothing(text, write):
    assert resolve(file=write(text)) == DEFAULTS


# --- the length of a stage -------------------------------------------------------------------------------------------


def lengths(config: Config, stage: int = 0) -> dict[str, float]:
    values = {name: getattr(config.stages[stage], name) for name in LENGTHS}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("measure", LENGTHS)
@pytest.mark.parametrize("stage", ["0", "pretrain"])
def test_a_later_measure_of_length_replaces_the_earlier_one(measure, stage, write):
    assert lengths(resolve(overrides=[f"stages.{stage}.{measure}=7"])) == {measure: 7}
    assert lengths(resolve(recipe="digits", file=write(f"stages: {{{stage}: {{{measure}: 8}}}}"))) == {measure: 8}
    for earlier in LENGTHS:
        file = write(f"stages:\n- {{name: pretrain, {earlier}: 9}}\n")
        assert lengths(resolve(file=file, overrides=[f"stages.{stage}.{measure}=7"])) == {measure: 7}
        assert lengths(resolve(overrides=[f"stages.0.{earlier}=9", f"stages.{stage}.{measure}=7"])) == {measure: 7}


def test_the_length_of_another_stage_stays():
    config = resolve(overrides=["stages.0.images=7"])
    assert lengths(config, 1) == lengths(DEFAULTS, 1)


@pytest.mark.parametrize(
    "text",
    [
        "stages: {0: {steps: 5, images: 7}}",
        "stages: {pretrain: {steps: 5, images: 7}}",
        "stages: [{name: pretrain, images: 7, steps: 5}]",
    ],
)
def test_two_measures_in_one_stage(text, write):
    with refused("stages.0", problem="got steps and images", wanted="exactly one of steps, images and minutes"):
        resolve(file=write(text))


@pytest.mark.parametrize("word", ["stages.0.steps=null", "stages=[{name: a}]"])
def test_a_stage_without_a_length(word):
    with refused("stages.0", problem="got none of them", wanted="exactly one of steps, images and minutes"):
        resolve(overrides=[word])


# --- unknown keys ----------------------------------------------------------------------------------------------------

TYPOS = [
    ("model.widht", "model.width"),
    ("model.Width", "model.width"),
    ("data.pth", "data.path"),
    ("data.imagesize", "data.image_size"),
    ("train.sed", "train.seed"),
    ("eval.sample", "eval.samples"),
    ("ema.sigma", "ema.sigma_rel"),
    ("process.shedule", "process.schedule"),
    ("stages.0.lrr", "stages.0.lr"),
    ("stages.0.batchsize", "stages.0.batch_size"),
    ("stages.0.mask.ratoi", "stages.0.mask.ratio"),
    ("stages.0.mask.mixtures", "stages.0.mask.mixture"),
    ("process.zero_snr", "process.zero_terminal"),
    # a whole level forgotten
    ("width", "model.width"),
    ("flip", "data.flip"),
    ("lr", "stages.0.lr"),
    ("stages.0.ratio", "stages.0.mask.ratio"),
    # the section, not the key
    ("modle.width", "model.width"),
    ("training.seed", "train.seed"),
    # of the stage that was meant
    ("stages.1.lrr", "stages.1.lr"),
    ("stages.1.ratio", "stages.1.mask.ratio"),
    ("stages.finetune.mask.ratoi", "stages.finetune.mask.ratio"),
]


@pytest.mark.parametrize(("typo", "meant"), TYPOS)
def test_an_unknown_key_on_the_command_line_names_the_nearest(typo, meant):
    with unknown(typo, meant):
        resolve(overrides=[f"{typo}=1"])


@pytest.mark.parametrize(("typo", "meant"), [("widht", "width"), ("hads", "heads")])
def test_an_unknown_key_in_a_file_or_recipe_names_the_nearest(typo, meant, write, monkeypatch):
    file = write(f"model:\n  {typo}: 3\n")
    with unknown(f"model.{typo}", f"model.{meant}", str(file)):
        resolve(file=file)
    monkeypatch.setattr(merging, "read_recipe", lambda name: {"model": {typo: 3}})
    with unknown(f"model.{typo}", f"model.{meant}", "recipe mine"):
        resolve(recipe="mine")


def test_an_unknown_key_in_a_list_of_stages(write):
    file = write("stages:\n- {name: a, steps: 1}\n- {name: b, steps: 1, mask: {rato: 0.5}}\n")
    with unknown("stages.1.mask.rato", "stages.1.mask.ratio", str(file)):
        resolve(file=file)


@pytest.mark.parametrize(("key", "name"), [("zzz", "zzz"), ("1", "1"), ("null", "null"), ('"a\\nb"', "a\nb")])
def test_a_key_that_is_like_nothing(key, name, write):
    file = write(f"? {key}\n: 3\n")
    with refused(name, problem=f"unknown setting in {file}", remedy=HELP):
        resolve(file=file)


def test_a_key_that_is_a_list(write):
    with refused("config", wanted="plain values, lists and mappings"):
        resolve(file=write("? [a, b]\n: 3\n"))


def test_a_setting_within_a_setting():
    with unknown("data.path.x", "data.path"):
        resolve(overrides=["data.path.x=1"])


# --- stages that are not there ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["2", "-1", "00", "pretrian"])
def test_a_stage_that_is_not_there(stage, write):
    with refused(f"stages.{stage}", wanted="one of 0 (pretrain), 1 (finetune)"):
        resolve(overrides=[f"stages.{stage}.lr=1"])
    file = write(f"stages: {{'{stage}': {{lr: 1}}}}")
    with refused(f"stages.{stage}", problem=f"no such stage in {file}"):
        resolve(file=file)


@pytest.mark.parametrize(
    ("word", "got"),
    [
        ("stages=3", 3),
        ("stages=[3]", [3]),
        ("stages=", ""),
        ("stages=null", None),
        ("stages.0=3", 3),
        ("stages=[]", []),
    ],
)
def test_what_is_no_stage(word, got):
    with refused(word.partition("=")[0], got=got):
        resolve(overrides=[word])


def test_two_stages_of_one_name():
    with refused("stages", problem="got stages named a, b, a", wanted="names of their own"):
        resolve(overrides=["stages=[{name: a, steps: 1}, {name: b, steps: 1}, {name: a, steps: 1}]"])


def test_a_stage_without_a_name(write):
    with refused("stages.1.name", problem="missing; every stage needs it"):
        resolve(file=write("stages:\n- {name: a, steps: 1}\n- {steps: 1}\n"))


# --- values ----------------------------------------------------------------------------------------------------------


CHOICES = {
    "model.levels": ["model.backbone=unet"],
    "model.options": ["model.backbone=a:B"],
    "process.time_mean": ["process.kind=flow"],
    "process.sigma_min": ["process.kind=edm"],
}
"""What has to be chosen for a setting to be there."""


@pytest.mark.parametrize(
    ("word", "got", "wanted"),
    [
        ("model.patch_size=abc", "abc", "int"),
        ("model.patch_size=16.5", 16.5, "int"),
        ("model.patch_size='16'", "16", "int"),
        ("model.patch_size=true", True, "int"),
        ("model.patch_size=", "", "int"),
        ("model.patch_size=[16]", [16], "int"),
        ("model.width=16.5", 16.5, "int or null"),
        ("model.size=XL", "XL", "S|B|L"),
        ("model.levels=2", 2, "[int, ...]"),
        ("model.options=3", 3, "{name: int or number or true|false or text, ...}"),
        ("model.backbone=vit", "vit", "uvit, jit, unet, or a class of your own as module:Class"),
        ("model.backbone=a:b:c", "a:b:c", "uvit, jit, unet, or a class of your own as module:Class"),
        ("process.kind=ddim", "ddim", "ddpm|vp|ve|edm|flow"),
        ("process.loss=noise", "noise", "same|eps|x0|v|velocity|F"),
        ("process.time_mean=low", "low", "number or null"),
        ("stages.0.mask.ratio=half", "half", "number or [number, ...] or auto"),
        ("stages.0.mask.ratio=[0.5]", [0.5], "number or [number, ...] or auto"),
        ("stages.0.mask.by_noise=0.5", 0.5, "[number, ...]"),
        ("stages.0.mask.mixture=[3]", 3, "[{kind, ratio, block, offset, share}, ...]"),
        ("model.time_mlp=1", 1, "true|false"),
        ("model.time_mlp=yes", "yes", "true|false"),
        ("data.image_size=8x8", "8x8", "int or [int, int] or auto"),
        ("data.image_size=[8]", [8], "int or [int, int] or auto"),
        ("data.image_size=[8, 8, 8]", [8, 8, 8], "int or [int, int] or auto"),
        ("data.channels=5", 5, "auto|1|2|3|4"),
        ("data.channels='3'", "3", "auto|1|2|3|4"),
        ("stages.0.lr=fast", "fast", "number"),
        ("stages.0.steps=1.5e0", 1.5, "int or null"),
        ("stages.0.betas=0.9", 0.9, "[number, number]"),
        ("stages.0.mask.kind=blok", "blok", "none|patch|block|crop|route or auto"),
        ("train.mixed_precision=fp8", "fp8", "auto|bf16|fp16|no"),
        ("process.prediction=epsilon", "epsilon", "eps|x0|v|velocity|F"),
        ("ema.decay=powr", "powr", "number or power"),
        ("log.track=wandb", "wandb", "[tensorboard|wandb, ...]"),
    ],
)
def test_the_wrong_type(word, got, wanted):
    kinds = CHOICES.get(word.partition("=")[0], [])
    with refused(word.partition("=")[0], got=got, wanted=wanted):
        resolve(overrides=[*kinds, word])


@pytest.mark.parametrize(
    ("word", "got", "wanted"),
    [
        ("model.width=0", 0, "greater than 0"),
        ("model.mlp_ratio=-1", -1, "greater than 0"),
        ("stages.0.mask.ratio=1.0", 1.0, "less than 1"),
        ("stages.1.mask.ratio=-0.1", -0.1, "greater than or equal to 0"),
        ("stages.0.micro_batch=0", 0, "greater than 0"),
        ("stages.0.batch_size=-8", -8, "greater than 0"),
        ("stages.0.lr=0", 0, "greater than 0"),
        ("stages.0.minutes=0", 0, "greater than 0"),
        ("stages.0.warmup_steps=-1", -1, "greater than or equal to 0"),
        ("stages.0.label_dropout=1.5", 1.5, "less than or equal to 1"),
        ("data.heldout=1", 1, "less than 1"),
        ("data.flip=2", 2, "less than or equal to 1"),
        ("data.image_size=0", 0, "greater than 0"),
        ("process.timesteps=1", 1, "greater than or equal to 2"),
        ("process.shift=0", 0, "greater than or equal to 0.0001"),
        ("process.sigma_min=-1", -1, "greater than or equal to 0.0001"),
        ("model.haar_levels=9", 9, "less than or equal to 8"),
        ("model.levels=[1, 0]", 0, "greater than 0"),
        ("stages.0.mask.ratio=[0.5, 1.5]", 1.5, "less than 1"),
        ("stages.0.mask.by_noise=[0.5, 1]", 1, "less than 1"),
        ("stages.0.mask.buckets=1", 1, "greater than or equal to 2"),
        ("ema.decay=1", 1, "less than 1"),
        ("ema.sigma_rel=0.5", 0.5, "less than 0.28"),
        ("train.seed=-1", -1, "greater than or equal to 0"),
        ("train.keep=0", 0, "greater than 0"),
    ],
)
def test_out_of_range(word, got, wanted):
    kinds = CHOICES.get(word.partition("=")[0], [])
    with refused(word.partition("=")[0], got=got, wanted=wanted):
        resolve(overrides=[*kinds, word])


@pytest.mark.parametrize("text", [".inf", ".nan"])
def test_numbers_that_are_none(text):
    with pytest.raises(InputError) as caught:
        resolve(overrides=[f"stages.0.lr={text}"])
    assert caught.value.name == "stages.0.lr"


def test_one_of_a_pair():
    with refused("stages.0.betas", got=[0.9], wanted="[number, number]"):
        resolve(overrides=["stages.0.betas=[0.9]"])
    with refused("stages.0.betas", got=1.0, wanted="less than 1"):
        resolve(overrides=["stages.0.betas=[0.9, 1.0]"])


@pytest.mark.parametrize(
    ("schedule", "word", "got", "wanted"),
    [
        ("constant", "lr_floor=0.1", 0.1, "0 with lr_schedule constant"),
        ("constant", "decay_share=0.2", 0.2, "null with lr_schedule constant"),
        ("cosine", "decay_share=0.5", 0.5, "null with lr_schedule cosine"),
        ("wsd", "decay_share=0", 0, "greater than 0"),
        ("wsd", "decay_share=1.1", 1.1, "less than or equal to 1"),
        ("wsd", "lr_floor=1", 1, "less than 1"),
        ("cosine", "lr_floor=-0.1", -0.1, "greater than or equal to 0"),
    ],
)
def test_an_option_that_the_schedule_of_the_rate_does_not_heed(schedule, word, got, wanted):
    words = [f"stages.1.lr_schedule={schedule}", f"stages.1.{word}"]
    for overrides in (words, words[::-1]):
        with refused(f"stages.1.{word.partition('=')[0]}", got=got, wanted=wanted):
            resolve(overrides=overrides)


def test_schedules_of_the_rate_and_optimizers_are_those_of_their_stage():
    words = ["lr_schedule=wsd", "lr_floor=0.1", "decay_share=1", "optimizer=muon", "betas=[0.9, 0.95]"]
    first, second = resolve(overrides=[f"stages.1.{word}" for word in words]).stages
    assert (second.lr_schedule, second.lr_floor, second.decay_share) == ("wsd", 0.1, 1.0)
    assert (second.optimizer, second.betas) == ("muon", (0.9, 0.95))
    assert (first.lr_schedule, first.lr_floor, first.decay_share) == ("constant", 0.0, None)
    assert (first.optimizer, first.betas) == ("adamw", (0.99, 0.99))


def test_a_name_of_a_stage_that_is_no_name():
    with refused("stages.0.name", got="a b", wanted="a name of at most 40 letters, digits, - and _"):
        resolve(overrides=["stages.0.name=a b"])


@pytest.mark.parametrize(
    ("word", "first"),
    [
        ("model=3", "backbone"),
        ("model=null", "backbone"),
        ("process=", "kind"),
        ("data=[a]", "path"),
        ("stages.0.mask=block", "kind"),
        ("train=true", "seed"),
    ],
)
def test_a_section_is_no_value(word, first):
    key = word.partition("=")[0]
    with refused(key, wanted=f"settings such as {key}.{first}"):
        resolve(overrides=[word])


@pytest.mark.parametrize("word", ["foo", "=3", "model.width", "", "model.width:3", "."])
def test_what_is_no_setting(word):
    with refused("", got=word, wanted="key.sub=value, e.g. model.width=256"):
        resolve(overrides=[word])


@pytest.mark.parametrize(
    ("word", "meant"), [("model.=3", "model.size"), (".width=3", "model.width"), ("model..width=3", "model.width")]
)
def test_dots_too_many(word, meant):
    with unknown(word.partition("=")[0], meant):
        resolve(overrides=[word])


def test_numbers_and_words_are_read_as_they_are_meant(write):
    words = ["stages.0.lr=2e-4", "stages.1.clip=null", "train.mixed_precision=no", "data.path=no"]
    words.append("model.time_mlp=true")
    file = write(
        "stages: {0: {lr: 2e-4}, 1: {clip: null}}\ntrain: {mixed_precision: no}\ndata: {path: no}\n"
        "model: {time_mlp: true}\n"
    )
    for config in (resolve(overrides=words), resolve(file=file)):
        assert config.stages[0].lr == 0.0002
        assert isinstance(config.stages[0].lr, float)
        assert config.train.mixed_precision == "no"
        assert config.data.path == "no"
        assert config.stages[1].clip is None
        assert config.model.time_mlp is True


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "y", "a=b", "([^/-]+)[^/]*$", "*.png", "[a", "%x", "#808080", "a #1"]
)
@pytest.mark.parametrize("key", ["group_by", "background", "path"])
def test_text_on_the_command_line_that_yaml_could_take_for_something_else(key, text):
    assert getattr(resolve(overrides=[f"data.{key}={text}"]).data, key) == text


def test_a_value_may_be_empty_text():
    assert resolve(overrides=["data.path=x", "data.path="]).data.path == ""


@pytest.mark.parametrize("value", ["2024-01-01", "2024-01-01 10:00:00"])
def test_a_date_is_text(value, write):
    assert resolve(overrides=[f"data.path={value}"]).data.path == value
    with suppress(InputError):  # in a file it may have to be quoted
        assert resolve(file=write(f"data: {{path: {value}}}")).data.path == value


@pytest.mark.parametrize(
    "text",
    ["data: {path: !!binary aGk=}", "model: {width: !!set {a, b}}", "data: {path: &a [*a]}", "{[a, b]: 3}"],
)
def test_yaml_that_is_more_than_values(text, write):
    with refused("config", wanted="plain values, lists and mappings"):
        resolve(file=write(text))


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        DEFAULTS.model.width = 3
    resolve(recipe="digits", overrides=["stages.0.lr=1", "model.width=8"])
    assert resolve() == Config() == DEFAULTS


# --- models, processes, masks ----------------------------------------------------------------------------------------


def test_a_width_that_is_given_wins_over_the_size():
    model = resolve(overrides=["model.size=B", "model.width=96"]).model
    assert (model.width, model.depth, model.heads) == (96, None, None)
    filled = build.resolved_model(model)
    assert (filled.width, filled.depth, filled.heads) == (96, 13, 12)
    assert build.resolved_model(filled) == filled
    assert build.resolved_model(filled.model_copy(update={"size": "L"})).depth == 13  # what is resolved stays


@pytest.mark.parametrize("size", ["S", "B", "L"])
@pytest.mark.parametrize("backbone", build.BACKBONES)
def test_every_backbone_has_every_size(backbone, size):
    model = build.resolved_model(resolve(overrides=[f"model.backbone={backbone}", f"model.size={size}"]).model)
    assert None not in (model.width, model.depth, model.heads)
    spec = ModelSpec(model=model, process=DEFAULTS.process, image_size=(16, 16), channels=3)
    with torch.device("meta"):
        build.backbone(spec)


def test_options_merge_and_a_list_of_masks_is_replaced(write):
    file = write(
        "model: {backbone: 'a:B', options: {x: 1, y: 2}}\n"
        "stages: {0: {mask: {kind: none, ratio: 0, mixture: [{kind: patch, ratio: 0.5}, {kind: crop}]}}}\n"
    )
    config = resolve(file=file, overrides=["model.options.y=3", "model.options.z=text"])
    assert config.model.options == {"x": 1, "y": 3, "z": "text"}
    config = resolve(file=file, overrides=["stages.0.mask.mixture=[{kind: block, ratio: 0.5, share: 2}]"])
    (part,) = config.stages[0].mask.mixture
    assert (part.kind, part.ratio, part.block, part.share) == ("block", 0.5, "auto", 2)


@pytest.mark.parametrize("word", ["model.options.x=[1]", "model.options.x=null", "model.options.x.y=1"])
def test_an_option_is_one_value(word):
    with refused("model.options", wanted="{name: int or number or true|false or text, ...}"):
        resolve(overrides=["model.backbone=a:B", word])


OWN = "none with mask.mixture, whose masks have their own"
CONFLICTS = [
    (["{ratio: 0.75, by_noise: [0.9, 0]}"], "ratio", 0.75, "0 with mask.by_noise, which has all the ratios"),
    (["{kind: patch, mixture: [{kind: crop}]}"], "kind", "patch", OWN),
    (["{ratio: 0.5, mixture: [{kind: crop}]}"], "ratio", 0.5, OWN.replace("none", "0")),
    (["{mixture: [{kind: crop}], by_noise: [0.5]}"], "by_noise", (0.5,), OWN.replace("none", "[]")),
    (["{schedule: linear}"], "ratio", "auto", "[first, last] with mask.schedule linear"),
    (["{ratio: [0.9, 0.5, 0], schedule: cosine}"], "ratio", (0.9, 0.5, 0), "[first, last] with mask.schedule cosine"),
]


@pytest.mark.parametrize(("masks", "key", "got", "wanted"), CONFLICTS)
def test_a_mask_is_said_in_one_way(masks, key, got, wanted):
    with refused(f"stages.0.mask.{key}", got=got, wanted=wanted):
        resolve(overrides=[f"stages.0.mask={mask}" for mask in masks])


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("{kind: patsch}", "kind", {"got": "patsch", "wanted": "none|patch|block|crop|route or auto"}),
        ("{ratio: 0.5}", "kind", {"problem": "missing; every mask of a mixture needs it"}),
        ("{kind: patch, ratio: 1.0}", "ratio", {"got": 1.0, "wanted": "less than 1"}),
        ("{kind: patch, share: 0}", "share", {"got": 0, "wanted": "greater than or equal to 0.0001"}),
        ("{kind: patch, ratio: [0.5, 0]}", "ratio", {"got": [0.5, 0], "wanted": "number or auto"}),
    ],
)
def test_a_wrong_mask_of_a_mixture(text, key, values, write):
    with refused(f"stages.0.mask.mixture.0.{key}", **values):
        resolve(overrides=[*PLAIN, f"stages.0.mask.mixture=[{text}]"])
    with refused(f"stages.1.mask.mixture.1.{key}", **values):
        resolve(file=write(f"stages: {{1: {{mask: {{mixture: [{{kind: none}}, {text}]}}}}}}"))


def test_an_unknown_key_in_a_mixture():
    with unknown("stages.0.mask.mixture.0.rato", "stages.0.mask.mixture.0.ratio"):
        resolve(overrides=[*PLAIN, "stages.0.mask.mixture=[{kind: patch, rato: 1}]"])


def test_one_value_of_a_mixture_is_not_set_alone():
    with refused("stages.0.mask.mixture", wanted="all of it as a list, [{...}, {...}]"):
        resolve(overrides=[*PLAIN, "stages.0.mask.mixture.0.ratio=0.5"])


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "model: {width: 16",
        "\tmodel:\n\t\twidth: 3",
        "model: {width: 16}\n  depth: 3\n",
        "model:\n  width: 16\nmodel:\n  depth: 3\n",
        "model: {width: 1}\n---\nmodel: {width: 2}\n",
        "data: {path: !!python/object:os.system x}",
        "model: *nothing",
        "\x07: 3",
    ],
)
def test_broken_yaml(text, write):
    file = write(text)
    with pytest.raises(InputError) as caught:
        resolve(file=file)
    assert caught.value.name == "config"
    assert caught.value.problem.startswith(f"{file} is not YAML: ")


@pytest.mark.parametrize(
    ("text", "kind"), [("- model\n- data\n", "list"), ("3", "int"), ("model width 3", "str"), ("true", "bool")]
)
def test_yaml_that_holds_no_sections(text, kind, write):
    file = write(text)
    with refused("config", problem=f"{file} holds {kind}", wanted="sections such as `data:` and `model:`"):
        resolve(file=file)


def test_unreadable_files(write, tmp_path):
    missing = tmp_path / "missing.yaml"
    with refused("config", problem=f"cannot read {missing}: No such file or directory"):
        resolve(file=missing)
    os.mkfifo(tmp_path / "pipe")
    with refused("config", problem="is not a regular file"):
        resolve(file=tmp_path / "pipe")
    with refused("config", problem=f"cannot read {tmp_path}: Is a directory"):
        resolve(file=tmp_path)
    file = write("model: {width: 16}".encode("utf-16"))
    with refused("config", problem=f"cannot read {file}: it is not text"):
        resolve(file=file)


def test_a_name_with_a_line_break_still_gives_one_line(tmp_path):
    with refused("config"):
        resolve(file=tmp_path / "a\nb.yaml")
    with refused("recipe", got="a\nb"):
        resolve(recipe="a\nb")
    with refused("a\nb"):
        resolve(overrides=["a\nb=3"])


def test_a_byte_order_mark_is_no_fault(write):
    assert resolve(file=write(b"\xef\xbb\xbfmodel: {width: 64}")).model.width == 64


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_there_are_recipes_and_each_says_what_it_is():
    found = recipes()
    assert "digits" in found
    for name, header in found.items():
        assert header, name
        assert not header.startswith("#")


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_resolves(name):
    config = resolve(recipe=name)
    assert config.stages
    assert resolve(recipe=name, overrides=["model.width=64", "model.heads=1"]).model.width == 64


@pytest.mark.parametrize(("typo", "meant"), [("digit", "digits"), ("digtis", "digits"), ("Digits", "digits")])
def test_an_unknown_recipe_names_the_nearest(typo, meant):
    with refused("recipe", got=typo, wanted=f"one of {', '.join(recipes())}", remedy=f"did you mean {meant}?"):
        resolve(recipe=typo)


@pytest.mark.parametrize("name", ["zzzz", "", "../settings", "digits.yaml/x"])
def test_no_such_recipe(name):
    with refused("recipe", got=name, wanted=f"one of {', '.join(recipes())}"):
        resolve(recipe=name)


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [None, *recipes()])
def test_written_settings_read_back_the_same(recipe, tmp_path):
    config = resolve(recipe=recipe)
    write_yaml(tmp_path / "config.yaml", config)
    assert resolve(file=tmp_path / "config.yaml") == config
    other = resolve(recipe="digits", file=tmp_path / "config.yaml")
    assert other == config  # a complete file leaves nothing of what is below it


@pytest.mark.parametrize(
    "words",
    [
        ["stages.0.lr=1e-5", "stages.1.lr=1e-30", "data.flip=0.30000000000000004"],
        ["stages.0.minutes=0.1", "stages.1.images=123456789012", "stages.1.clip=null"],
        ["data.image_size=[8, 16]", "data.channels=2", "log.track=[wandb, tensorboard]", "ema.decay=0.9999"],
        ["stages=[{name: '1', steps: 1}, {name: 'no', steps: 1}, {name: '2e4', steps: 1}]", "data.heldout=0"],
        ["data.group_by='([^/-]+)[^/]*$'", "model.time_mlp=true", "model.classes=none"],
        ["model.backbone=nets.mine:Net", "model.options={a: 1, b: 0.5, c: text, d: true, 'no': 'no', 'e f': '1'}"],
        ["model.backbone=unet", "model.levels=[1, 2, 4]", "model.size=B", "model.width=96", "model.haar_levels=1"],
        ["process.kind=edm", "process.prediction=F", "process.sigma_max=100", "process.time_mean=-0.8"],
        ["stages.0.mask.ratio=[0.9, 0.5]", "stages.0.mask.schedule=cosine", "stages.1.mask.kind=crop"],
        ["stages.0.mask.ratio=0", "stages.0.mask.by_noise=[0.9, 0.75, 0]"],
        [*PLAIN, "stages.0.mask.mixture=[{kind: patch, ratio: 0.5}, {kind: block, block: 2, share: 0.25}]"],
    ],
)
def test_unusual_settings_read_back_the_same(words, tmp_path):
    config = resolve(overrides=words)
    write_yaml(tmp_path / "config.yaml", config)
    assert resolve(file=tmp_path / "config.yaml") == config


VALUES = ["2024-01-01", "2e4", "no", "null", "~", "true", "12:30", "0x10", "1_000", "", "a" * 300, "ÄÖ", "\U0001f600"]
SIGNS = ["a: b", "#1", "/a #1", "/a, b", "/{a}", "[a]", "{a}", "*a", "&a", "!a", "%a", "- a", "? a", "'", '"', "\\"]
SPACES = [" x ", "/a  b ", "a\nb", "\t", "/a\x85", "/\u2028"]
ANY = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "\x85" not in text)
AWKWARD = st.text("ab/ ,:;#[]{}&*!|>'\"%@`?-\\\n\r\t~.0é\u2028")


@pytest.mark.parametrize("text", [*VALUES, *SIGNS, *SPACES])
def test_any_path_reads_back_the_same(text, tmp_path):
    assert_reads_back(text, tmp_path)


@hypothesis_settings(max_examples=50, deadline=None)
@given(text=ANY | AWKWARD)
def test_any_absolute_path_reads_back_the_same(text, tmp_path_factory):
    assert_reads_back(f"/{text}", tmp_path_factory.getbasetemp())


def assert_reads_back(text: str, folder: Path) -> None:
    tree = to_dict(DEFAULTS)
    config = to_config(tree | {"data": tree["data"] | {"path": text, "group_by": text}})
    assert config.data.path == expanded(text)
    write_yaml(folder / "config.yaml", config)
    assert resolve(file=folder / "config.yaml") == config


def test_a_written_file_is_for_people_too(tmp_path):
    write_yaml(tmp_path / "config.yaml", resolve(recipe="digits"))
    tree = read_yaml(tmp_path / "config.yaml")
    assert list(tree) == list(Config.model_fields)
    assert [stage["name"] for stage in tree["stages"]] == ["pretrain", "finetune"]


# --- help ------------------------------------------------------------------------------------------------------------


def leaves(tree: object, prefix: str = "") -> Iterator[str]:
    """Keys of all values of a tree of settings, those of stages as stage 0."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else key)
    elif prefix == "stages" and isinstance(tree, list):
        yield from leaves(tree[0], "stages.0")
    else:
        yield prefix


@pytest.mark.parametrize("words", [[f"model.backbone={b}", f"process.kind={k}"] for b, k in KINDS], ids=str)
def test_every_key_of_a_file_is_listed(words):
    written = list(leaves(to_dict(resolve(overrides=words))))
    assert [key for key in written if key not in {setting.key for setting in all_settings()}] == []


def test_every_listed_key_is_in_some_file():
    written = {
        key
        for backbone, kind in KINDS
        for key in leaves(to_dict(resolve(overrides=[f"model.backbone={backbone}", f"process.kind={kind}"])))
    }
    assert {setting.key for setting in all_settings()} == written


def test_every_setting_has_a_type_and_a_help_text():
    for setting in all_settings():
        assert setting.type, setting
        assert len(setting.help) > 10, setting
        assert "\n" not in setting.help, setting
        assert setting.help.endswith((".", ")")), setting


@pytest.mark.parametrize("setting", all_settings(), ids=lambda s: "-".join([s.key, *s.kinds]))
def test_the_default_that_is_shown_is_the_default(setting):
    base = ["stages=[{name: a, steps: 1}]"]
    if setting.kinds:
        choice = "model.backbone" if setting.key.startswith("model.") else "process.kind"
        base.append(f"{choice}={setting.kinds[0].replace('module:Class', 'a:B')}")
    if setting.key == "stages.0.name":
        assert setting.default == ""
        return
    if setting.key.rpartition(".")[2] in LENGTHS:
        assert setting.default == "null"
        return
    assert resolve(overrides=[*base, f"{setting.key}={setting.default}"]) == resolve(overrides=base)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["stages.0.mask.by_noise=[0.5, 0]"], {"ratio": "auto", "by_noise": (0.5, 0.0)}),
        (["stages.0.mask.by_noise=[0.5, 0]", "stages.0.mask.ratio=0.5"], {"ratio": 0.5, "by_noise": ()}),
        (["stages.0.mask={ratio: [0.9, 0], schedule: linear}", "stages.0.mask.by_noise=[0.5]"], {"schedule": "steps"}),
        (["stages.0.mask.mixture=[{kind: none}]"], {"kind": "none", "ratio": "auto"}),
        (["stages.0.mask.mixture=[{kind: none}]", "stages.0.mask.kind=crop"], {"kind": "crop", "mixture": ()}),
    ],
    ids=str,
)
def test_a_later_way_to_mask_replaces_the_earlier_one(words, kept):
    mask = resolve(overrides=words).stages[0].mask
    assert {key: getattr(mask, key) for key in kept} == kept


def test_a_size_replaces_the_width_of_a_recipe_but_not_one_given_with_it():
    model = resolve(recipe="emoji64", overrides=["model.size=L"]).model
    assert (model.size, model.width, model.depth) == ("L", None, None)
    assert resolve(recipe="emoji64", overrides=["model={size: L, width: 8}"]).model.width == 8


def test_the_recipe_for_emoji_is_the_one_for_laptops_but_for_its_split():
    laptop, emoji = resolve(recipe="laptop64"), resolve(recipe="emoji64")
    apart = emoji.data.model_copy(update={"group_by": None, "salt": "machine"})
    assert emoji.model_copy(update={"data": apart}) == laptop


def test_the_settings_page_says_what_stages_there_are(capsys):
    from maskdm.cli.main import main

    assert main(["train", "--settings"]) == 0
    words = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("    stages.")]
    given = [f"stages.{i}.{word}" for i, stage in enumerate(words) for word in stage]
    assert resolve(overrides=given) == resolve()
    assert "stages.0.mask.kind=auto" in given


# --- whole numbers, and settings of nothing --------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["100000", "1e5", "1E+5", "100000.0", "1.0e5"])
def test_whole_numbers_however_they_are_written(written, write):
    words = ["stages.0.steps", "eval.samples_every", "eval.heldout_every", "train.save_every"]
    config = resolve(overrides=[f"{word}={written}" for word in words])
    assert (config.stages[0].steps, config.eval.samples_every, config.eval.heldout_every) == (100_000,) * 3
    file = write(f"stages:\n  0:\n    steps: {written}\n")
    assert resolve(file=file).stages[0].steps == 100_000
    assert resolve(overrides=["data.image_size=[6.4e1, 32.0]"]).data.image_size == (64, 32)
    assert isinstance(config.stages[0].steps, int)


@pytest.mark.parametrize("written", ["1.5", "1e-1", "1e400", ".nan", "true", "'8'"])
def test_what_is_no_whole_number_is_refused(written):
    with pytest.raises(InputError) as caught:
        resolve(overrides=[f"stages.0.steps={written}"])
    assert caught.value.name == "stages.0.steps"


def fault_of(override: str) -> InputError | None:
    try:
        resolve(overrides=[override])
    except InputError as error:
        return error
    return None


@pytest.mark.parametrize("value", ["{}", "{a: 1}"])
@pytest.mark.parametrize("key", [setting.key for setting in all_settings()])
def test_a_mapping_in_place_of_a_value_is_never_answered_by_the_same_setting(key, value):
    error = fault_of(f"{key}={value}")
    if error is not None:  # text may be anything
        unknown = error.name != key  # eval.scores_every.a, which there is not
        assert unknown == error.problem.startswith("unknown setting")
        assert unknown or f"did you mean {key}?" not in error.remedy
