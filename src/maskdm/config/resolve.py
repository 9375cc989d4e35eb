"""Layers of settings, merged, the later winning:

    defaults < recipe < --config file < key.sub=value on the command line

A tree holds what is given and nothing else; defaults are filled in at the end.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_origin

from maskdm.config.keys import all_keys, levelled, list_member, setting_type, subsection
from maskdm.config.recipes import read_recipe
from maskdm.config.schema import VARIANTS, Config
from maskdm.config.section import LARGEST, Section, Tree, Variants, option_home, to_dict
from maskdm.config.stage_config import LENGTHS, MaskConfig, StageConfig, default_stages
from maskdm.config.validate import HELP, validate
from maskdm.config.yaml_files import parse_override, read_yaml
from maskdm.errors import InputError, within

COMMAND_LINE = "the command line"

RENAMED = {"process.time_law": "process.time_distribution"}
"""Settings of earlier versions -> what they are called now."""

REPLACES: dict[type[Section], dict[str, tuple[str, ...]]] = {
    StageConfig: {length: tuple(other for other in LENGTHS if other != length) for length in LENGTHS},
    MaskConfig: {
        "kind": ("mixture",),
        "ratio": ("by_noise", "mixture"),
        "by_noise": ("ratio", "schedule", "mixture"),
        "mixture": ("kind", "ratio", "schedule", "by_noise"),
    },
    **{section: {"size": ("width", "depth", "heads")} for section in VARIANTS["model"].classes.values()},
}
"""Settings that say the same thing in different ways: where a layer or a later override gives one, those below go."""


def resolve(
    *,
    base: Config | None = None,
    recipe: str | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    origin: str = COMMAND_LINE,
) -> Config:
    """Settings from all layers.

    Mappings merge, lists replace, `stages.0.lr=1e-4` sets one value of one stage. Where a later layer gives a stage
    another measure of length (steps, images, minutes), the earlier one goes; where it chooses another kind of process
    or another backbone, options go that the new one does not have.

    Args:
        base: settings below all layers; the defaults, if None.
        recipe: name of a shipped recipe.
        file: a settings file.
        overrides: settings as `key.sub=value`.
        origin: where the overrides stand, for errors.

    Raises:
        InputError: an unknown recipe or key, an unreadable file, a value of the wrong type.
    """
    stages = [stage.model_dump(mode="json", exclude_defaults=True) for stage in default_stages()]
    tree: Tree = {"stages": stages} if base is None else to_dict(base)
    if recipe is not None:
        tree = _merge(tree, read_recipe(recipe), f"recipe {recipe}")
    if file is not None:
        tree = _merge(tree, read_yaml(file), str(file))
    return to_config(_merge_overrides(tree, overrides, origin))


def given_lengths(*, recipe: str | None = None, file: Path | None = None, overrides: Sequence[str] = ()) -> list[bool]:
    """Of every stage, whether the layers say how long it is; a recipe always does.

    Raises:
        InputError: as `resolve`.
    """
    unsaid = Config(stages=tuple(stage.model_copy(update={"steps": LARGEST}) for stage in default_stages()))
    stages = resolve(base=unsaid, recipe=recipe, file=file, overrides=overrides).stages
    return [stage.steps != LARGEST for stage in stages]


def changed_settings(config: Config) -> Tree:
    """What of the settings is not the default; a file of it resolves to all of them.

    Options that choose a class of settings, such as `model.backbone`, are there whatever they are.
    """
    tree: Tree = config.model_dump(mode="json", exclude_defaults=True)
    for section, variants in VARIANTS.items():
        chosen = getattr(getattr(config, section), variants.key)
        tree[section] = {variants.key: chosen} | tree.get(section, {})
    stages = [stage.model_dump(mode="json", exclude_defaults=True) for stage in config.stages]
    order = ("data", *VARIANTS, "stages")
    tree["stages"] = stages
    return {key: tree[key] for key in (*(k for k in order if k in tree), *(k for k in tree if k not in order))}


def to_config(tree: Tree) -> Config:
    """A tree of plain values -> `Config`.

    Raises:
        InputError: a value of the wrong type or out of its range, named by its key.
    """
    return validate(Config, tree)


def _merge(below: Tree, above: Tree, origin: str, section: type[Section] = Config, prefix: str = "") -> Tree:
    """`above`, from `origin`, laid over `below`; both are trees of `section`, which stands at `prefix`."""
    merged = dict(below)
    for key, others in REPLACES.get(section, {}).items():
        if above.get(key) not in (None, [], {}):
            for other in others:
                merged.pop(other, None)
    for key, value in above.items():
        merged[key] = _merge_value(below.get(key), key, value, origin, section, prefix)
    return merged


def _merge_value(below: object, key: str, value: object, origin: str, section: type[Section], prefix: str) -> object:
    """One setting, or a section of them, laid over what is below it, which may be None."""
    name, field = f"{prefix}{key}", section.model_fields.get(key)
    if field is None:
        raise _unknown(f"{prefix}{_deepest(key, value)}", origin)
    inner, member, tree = subsection(field), list_member(field), below if isinstance(below, dict) else {}
    variants = VARIANTS.get(key) if section is Config else None
    if key == "stages" and section is Config:
        return _merge_stages(below if isinstance(below, list) else [], value, origin)
    if variants or inner:
        if not isinstance(value, dict):
            first = next(iter((variants.base if variants else inner or Section).model_fields))
            raise InputError(name, f"in {origin}", got=value, wanted=f"settings such as {name}.{first}")
        if variants:
            return _merge_variant(tree, value, origin, variants, f"{name}.")
        return _merge(tree, value, origin, inner or Section, f"{name}.")
    if isinstance(value, dict) and get_origin(field.annotation) is dict:
        return tree | value
    if isinstance(value, dict) and member:
        raise InputError(name, f"in {origin}", got=value, wanted="all of it as a list, [{...}, {...}]")
    if isinstance(value, dict) and not value:
        raise InputError(name, f"in {origin}", got=value, wanted=setting_type(name) or "a value", remedy=HELP)
    if isinstance(value, dict):
        raise _unknown(f"{prefix}{_deepest(key, value)}", origin)
    if member and isinstance(value, list) and all(isinstance(v, dict) for v in value):
        return [_merge({}, v, origin, member, f"{name}.{i}.") for i, v in enumerate(value)]
    return value


def _merge_variant(below: Tree, above: Tree, origin: str, variants: Variants, prefix: str) -> Tree:
    """The same for a section with several classes: what the class that `above` chooses does not have goes."""
    was = below.get(variants.key, variants.default)
    chosen = above.get(variants.key, was)
    with within(prefix):
        old, new = variants.find(was), variants.find(chosen)
    for key, value in above.items():
        kinds = variants.having(key)
        if kinds and key not in new.model_fields:
            problem = f"is for {_listed(kinds)}, not for {prefix}{variants.key} {chosen}"
            own = f", or give a backbone of your own {prefix}options.{key}" if "options" in new.model_fields else ""
            raise InputError(f"{prefix}{key}", problem, got=value, remedy=f"leave it out{own}")
    if old is not new:
        below = {key: value for key, value in below.items() if _survives(key, old, new, variants)}
    return _merge(below | {variants.key: chosen}, above, origin, new, prefix)


def _survives(option: str, old: type[Section], new: type[Section], variants: Variants) -> bool:
    """Whether an option means the same in another class of a section."""
    both = option in old.model_fields and option in new.model_fields
    return both and option not in variants.reset and option_home(old, option) is option_home(new, option)


def _merge_stages(below: list[Tree], above: object, origin: str) -> list[Tree]:
    """A list replaces the stages; a mapping from their numbers or names changes single settings of them."""
    if isinstance(above, list) and all(isinstance(stage, dict) for stage in above):
        return [_merge({}, stage, origin, StageConfig, f"stages.{i}.") for i, stage in enumerate(above)]
    if not isinstance(above, dict):
        wanted = "a list of stages, or settings such as stages.0.lr"
        raise InputError("stages", f"in {origin}", got=above, wanted=wanted)
    merged = list(below)
    for key, value in above.items():
        # Looked up every time: one of the settings may be a stage's name.
        numbers = {str(stage.get("name")): i for i, stage in enumerate(merged)}
        numbers |= {str(i): i for i in range(len(merged))}
        if str(key) not in numbers:
            wanted = ", ".join(f"{i} ({stage.get('name')})" for i, stage in enumerate(merged))
            raise InputError(f"stages.{key}", f"no such stage in {origin}", wanted=f"one of {wanted}")
        if not isinstance(value, dict):
            wanted = f"a setting of it, e.g. stages.{key}.lr=1e-4"
            raise InputError(f"stages.{key}", f"in {origin}", got=value, wanted=wanted)
        i = numbers[str(key)]
        merged[i] = _merge(merged[i], value, origin, StageConfig, f"stages.{key}.")
    return merged


def _merge_overrides(tree: Tree, overrides: Sequence[str], origin: str) -> Tree:
    """`key=value` after `key=value`; together they are one layer, whose kinds hold for all of it."""
    trees = [_parse_override(text) for text in overrides]
    choices: Tree = {}
    for each in trees:
        for section, variants in VARIANTS.items():
            given = each.get(section)
            if isinstance(given, dict) and variants.key in given:
                choices.setdefault(section, {})[variants.key] = given.pop(variants.key)
    for each in (choices, *trees):
        tree = _merge(tree, each, origin)
    return tree


def _parse_override(text: str) -> Tree:
    """`a.b.c=value` -> {a: {b: {c: value}}}, the value read as YAML."""
    name, equals, written = text.partition("=")
    if not equals or not name:
        raise InputError("", got=text, wanted="key.sub=value, e.g. model.width=256", remedy=HELP)
    kind = setting_type(name) or ""
    value: Any = written
    if kind == "text or null" and written == "null":
        value = None
    elif written and not kind.startswith("text"):  # text is text, whatever YAML would make of it
        value = parse_override(written)
    *sections, last = name.split(".")
    tree = {last: value}
    for section in reversed(sections):
        tree = {section: tree}
    return tree


def _unknown(name: str, origin: str) -> InputError:
    """Of a setting that there is not, with the nearest that there is."""
    if levelled(name) in RENAMED:
        return InputError(name, f"no setting in {origin} any more", remedy=f"it is now {RENAMED[levelled(name)]}")
    # Compared with stage numbers levelled, and by the last part too: "stages.1.ratio" should find "mask.ratio".
    level, known = levelled(name), all_keys()
    close = difflib.get_close_matches(level, known, n=1, cutoff=0.6)
    close = close or [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    hint = ""
    for key in close:  # with the stage that was meant
        parts = zip_longest(key.split("."), level.split("."), name.split("."), fillvalue="")
        meant = ".".join(mine if there == here else there for there, here, mine in parts if there)
        hint = f"did you mean {meant}? "
    return InputError(name, f"unknown setting in {origin}", remedy=f"{hint}{HELP}")


def _deepest(key: str, value: object) -> str:
    """The whole name of an unknown setting: "modle" with {"width": 3} -> "modle.width"."""
    while isinstance(value, dict) and len(value) == 1:
        inner, value = next(iter(value.items()))
        key = f"{key}.{inner}"
    return key


def _listed(names: Sequence[str]) -> str:
    """ "a, b or c"."""
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
