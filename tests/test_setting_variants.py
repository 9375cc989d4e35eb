"""Options that only some backbones and processes have: refused elsewhere, gone when another one is chosen."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import TypeAdapter

from maskdm.config.keys import all_settings
from maskdm.config.model_config import MODELS, OWN, ModelConfig, OwnBackboneConfig, UViTConfig, model_class
from maskdm.config.process_config import PROCESSES, EDMConfig, FlowConfig, ProcessConfig, process_class
from maskdm.config.recipes import read_recipe, recipes
from maskdm.config.resolve import RENAMED, resolve
from maskdm.config.schema import VARIANTS
from maskdm.config.section import to_dict
from maskdm.config.stage_config import MaskConfig, MaskName
from maskdm.config.summary import summarize_model, summarize_objective, summarize_process
from maskdm.config.yaml_files import write_yaml
from maskdm.diffusion import mask_schedule, masks
from maskdm.errors import ArgumentError, InputError
from maskdm.models import build
from maskdm.models.spec import ModelSpec

OWN_NAME = "mine:Net"
CHOICES = [(section, name) for section, variants in VARIANTS.items() for name in variants.classes]
OTHER_VALUES = {
    "model.size": "B",
    "model.mlp_ratio": 3.0,
    "model.mixer_depth": 2,
    "model.pixel_head": "conv",
    "model.pixel_features": 8,
    "model.pixel_layers": 2,
    "model.qkv_bias": True,
    "model.time_mlp": True,
    "model.bottleneck": 64,
    "model.class_tokens": 4,
    "model.levels": [1, 2],
    "model.attention_levels": 2,
    "model.options": {"x": 1},
    "process.schedule": "linear",
    "process.timesteps": 500,
    "process.shift": 2.0,
    "process.zero_terminal": True,
    "process.time_distribution": "normal",
    "process.time_mean": 0.5,
    "process.time_std": 0.5,
    "process.sigma_min": 0.1,
    "process.sigma_max": 10.0,
}
"""A value of every option that not all have, other than its default."""


def choose(section: str, name: str) -> str:
    """The override that chooses a backbone or a process."""
    return f"{section}.{VARIANTS[section].key}={name.replace(OWN, OWN_NAME)}"


def options(section: str, name: str) -> set[str]:
    variants = VARIANTS[section]
    return variants.classes[name].model_fields.keys() - variants.base.model_fields.keys()


def refused(*overrides: str, **layers: object) -> InputError:
    with pytest.raises(InputError) as caught:
        resolve(overrides=overrides, **layers)
    assert "\n" not in str(caught.value)
    return caught.value


def test_there_is_a_value_for_every_option():
    keys = {f"{section}.{key}" for section, name in CHOICES for key in options(section, name)}
    assert OTHER_VALUES.keys() == keys == {setting.key for setting in all_settings() if setting.kinds}


@pytest.mark.parametrize("key", OTHER_VALUES)
@pytest.mark.parametrize(("section", "name"), CHOICES)
def test_an_option_is_kept_where_there_is_one_and_refused_elsewhere(section, name, key):
    if not key.startswith(section):
        return
    option, value = key.partition(".")[2], OTHER_VALUES[key]
    written = str(value).replace("True", "true")
    words = [choose(section, name), f"{key}={written}"]
    if option in ("time_mean", "time_std"):
        words.append("process.time_distribution=normal")
    if option in options(section, name):
        for overrides in (words, words[::-1]):
            assert to_dict(getattr(resolve(overrides=overrides), section))[option] == value
        return
    for overrides in (words[:2], words[1::-1]):
        error = refused(*overrides)
        assert (error.name, error.got) == (key, value)
        kinds = VARIANTS[section].having(option)
        listed = " or ".join(filter(None, [", ".join(kinds[:-1]), kinds[-1]]))
        chosen = words[0].partition("=")[2]
        assert error.problem == f"is for {listed}, not for {section}.{VARIANTS[section].key} {chosen}"


def test_an_option_in_a_file_is_refused_by_the_choice_in_the_file_and_by_that_below_it(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("process: {kind: edm, shift: 2}")
    assert refused(file=file).name == "process.shift"
    file.write_text("model: {bottleneck: 3}")
    assert refused(file=file).name == "model.bottleneck"
    assert resolve(recipe="laptop64", file=file).model.bottleneck == 3  # whose backbone is a jit


@pytest.mark.parametrize("old", PROCESSES)
@pytest.mark.parametrize("new", PROCESSES)
def test_another_process_keeps_what_both_have_and_leaves_the_rest(old, new, tmp_path):
    file = tmp_path / "mine.yaml"
    values = {key.partition(".")[2]: value for key, value in OTHER_VALUES.items()}
    tree = {key: values[key] for key in options("process", old)} | {"kind": old, "prediction": "F", "sigma_data": 1.0}
    file.write_text(f"process: {tree}".replace("True", "true"))
    assert to_dict(resolve(file=file).process).items() >= tree.items()
    found = resolve(file=file, overrides=[choose("process", new)])
    assert (found.process.kind, found.process.prediction, found.process.sigma_data) == (new, "F", 1.0)
    for key in options("process", new):
        kept = key in options("process", old)
        if key.startswith(("time_", "sigma_")):  # which suit one process
            kept = new == old
        assert getattr(found.process, key) == (values[key] if kept else getattr(PROCESSES[new](), key)), key


@pytest.mark.parametrize("old", MODELS)
@pytest.mark.parametrize("new", MODELS)
def test_another_backbone_keeps_what_both_have_and_leaves_the_rest(old, new, tmp_path):
    file = tmp_path / "mine.yaml"
    values = {key.partition(".")[2]: value for key, value in OTHER_VALUES.items()}
    tree = {key: values[key] for key in options("model", old)} | {"width": 96, "patch_size": 8}
    tree["backbone"] = old.replace(OWN, OWN_NAME)
    file.write_text(f"model: {tree}".replace("True", "true"))
    found = resolve(file=file, overrides=[choose("model", new)]).model
    assert (found.width, found.patch_size, type(found)) == (96, 8, MODELS[new])
    fresh = MODELS[new](backbone=new)
    for key in options("model", new):
        kept = key in options("model", old)
        expected = values[key] if kept else getattr(fresh, key)
        assert to_dict(found)[key] == (list(expected) if isinstance(expected, tuple) else expected), key


def test_choices_on_the_command_line_are_one_layer():
    both = resolve(overrides=["process.kind=edm", "process.shift=2", "process.kind=flow"]).process
    assert (both.kind, both.shift) == ("flow", 2.0)
    assert resolve(overrides=["process.sigma_max=9", "process={kind: edm, prediction: F}"]).process.sigma_max == 9
    assert refused("process={kind: flow, shift: 2}", "process.kind=edm").name == "process.shift"


def test_a_layer_over_settings_that_are_resolved():
    base = resolve(recipe="laptop64", overrides=["process.shift=2"])
    changed = resolve(base=base, overrides=["process.kind=vp", "process.time_distribution=normal"])
    assert changed.process.shift == 2
    assert changed.process.schedule == "cosine"
    assert (changed.stages, changed.model) == (base.stages, base.model)
    assert resolve(base=base) == base


@pytest.mark.parametrize("kind", ["ve", "vp"])
@pytest.mark.parametrize("word", ["time_mean=0", "time_mean=0.5", "time_std=1"])
def test_a_mean_needs_a_normal_distribution(kind, word):
    key, _, value = word.partition("=")
    for more in ([], ["process.time_distribution=uniform"]):
        error = refused(f"process.kind={kind}", f"process.{word}", *more)
        assert (error.name, error.got) == (f"process.{key}", float(value))
    resolve(overrides=[f"process.kind={kind}", "process.time_distribution=normal", f"process.{word}"])


def test_a_weight_defines_its_own_quantity():
    error = refused("process.weight=p2", "process.loss=v")
    assert (error.name, error.got) == ("process.loss", "v")


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_setting_of_an_earlier_version_is_named_as_it_is_now(old, new):
    error = refused("process.kind=vp", f"{old}=normal")
    assert error.name == old
    assert new in error.remedy
    resolve(overrides=["process.kind=vp", f"{new}=normal"])


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_sets_only_options_of_its_own_kinds(name):
    tree, config = read_recipe(name), resolve(recipe=name)
    for section in VARIANTS:
        assert tree[section].keys() <= type(getattr(config, section)).model_fields.keys()
    for section, other in CHOICES:
        resolve(recipe=name, overrides=[choose(section, other)])


@pytest.mark.parametrize(("section", "name"), CHOICES)
def test_settings_of_every_kind_read_back_the_same(section, name, tmp_path):
    config = resolve(overrides=[choose(section, name)])
    write_yaml(tmp_path / "config.yaml", config)
    assert resolve(file=tmp_path / "config.yaml") == config
    assert resolve(recipe="laptop64", file=tmp_path / "config.yaml") == config
    spec = ModelSpec(model=config.model, process=config.process, image_size=(8, 8), channels=3)
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


# --- classes ---------------------------------------------------------------------------------------------------------


def test_the_classes_of_a_union_are_those_of_its_table():
    unions = {ModelConfig: MODELS, ProcessConfig: PROCESSES}
    for union, table in unions.items():
        members = [get_args(member)[0] if get_args(member) else member for member in get_args(get_args(union)[0])]
        assert members == list(table.values())
    assert {name: cls().kind for name, cls in PROCESSES.items()} == {name: name for name in PROCESSES}
    assert {name: cls(backbone=name).backbone for name, cls in MODELS.items()} == {name: name for name in MODELS}
    assert build.BACKBONES.keys() == build.SIZES.keys() == MODELS.keys() - {OWN}


def test_kinds_of_masks_are_those_of_the_method():
    assert get_args(MaskName) == get_args(masks.MaskKind)
    assert get_args(MaskConfig.model_fields["schedule"].annotation) == get_args(mask_schedule.RatioSchedule)


@pytest.mark.parametrize("name", ["vit", "", "a:b:c", ":", "a:", ":b", "a.b", "1:a", None, 3, ["uvit"], {}])
def test_what_is_no_backbone(name):
    with pytest.raises(ArgumentError) as caught:
        model_class(name)
    assert (caught.value.name, caught.value.got) == ("backbone", name)


def test_what_is_a_backbone():
    assert model_class("uvit") is UViTConfig
    assert model_class("my.nets:Net") is OwnBackboneConfig
    assert process_class("flow") is FlowConfig
    with pytest.raises(ArgumentError):
        process_class("sde")


@pytest.mark.parametrize("tree", [{"backbone": "vit"}, {"backbone": 3}, {"backbone": "uvit", "levels": [1]}])
def test_a_tree_of_no_backbone_is_none(tree):
    with pytest.raises(ValueError):
        TypeAdapter(ModelConfig).validate_python(tree)


# --- words -----------------------------------------------------------------------------------------------------------


def test_a_summary_names_what_is_not_usual():
    model = to_dict(MODELS["jit"](width=64, bottleneck=32, haar_levels=1))
    assert summarize_model(model) == "jit, patches of 4 px, width 64, bottleneck 32, haar levels 1"
    model = to_dict(OwnBackboneConfig(backbone=OWN_NAME, options={"blocks": 3}))
    assert summarize_model(model) == f"{OWN_NAME}, patches of 4 px, blocks 3"
    assert summarize_model({"backbone": ["odd"], "levels": 3}) == "['odd']"
    process = to_dict(EDMConfig(sigma_min=0.01, time_mean=-1.0, prediction="F", weight="edm"))
    assert summarize_process(process) == "edm, sigma min 0.01, mean -1"
    assert summarize_objective(process) == "predicts F, weight edm"
    assert summarize_process(to_dict(PROCESSES["ddpm"]())) == "ddpm, cosine schedule, 1000 timesteps"
