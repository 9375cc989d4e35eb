"""Every setting by its key: type, default and help, read off the classes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from maskdm.config.schema import VARIANTS, Config
from maskdm.config.section import Section, Variants, option_home
from maskdm.config.stage_config import MaskConfig, StageConfig, default_stages
from maskdm.errors import shown

_STAGE = re.compile(r"^stages\.[^.]+")


@dataclass(frozen=True)
class Setting:
    """One setting, as a user reads of it.

    Attributes:
        key: `section.name`; settings of stages are given for stage 0.
        type: what values it has: `int`, `a|b|c`, `number or null`.
        default: its value where it is not set, as one writes it; empty where there is none.
        help: a sentence.
        kinds: the backbones or processes it is for, empty where it is for all.
    """

    key: str
    type: str
    default: str
    help: str
    kinds: tuple[str, ...] = ()

    def __str__(self) -> str:
        kinds = f"{', '.join(self.kinds)}: " if self.kinds else ""
        return f"{self.key} = {self.default}\n    {kinds}{self.help} [{self.type}]"


@cache
def all_settings() -> tuple[Setting, ...]:
    """Every setting, in the order of a file; one that two kinds have with defaults of their own is there twice."""
    return tuple(_walk(Config, ""))


def setting_type(key: str) -> str | None:
    """What values a setting has, None for an unknown one; also of stages and members of lists of any number."""
    return _types().get(levelled(key))


def all_keys() -> list[str]:
    """Keys of all settings, also of those in the members of lists: `stages.0.mask.mixture.0.kind`."""
    return list(_types())


def levelled(key: str) -> str:
    """`stages.finetune.lr` -> `stages.0.lr`; members of lists likewise."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "0", re.sub(_STAGE, "stages.0", key))


def stages_as_overrides() -> Iterator[str]:
    """The stages of a run without a recipe, each as the overrides that would make it of the defaults of a stage."""
    for number, stage in enumerate(default_stages()):
        given = stage.model_dump(mode="json", exclude_defaults=True)
        mask = given.pop("mask", {})
        overrides = [f"{key}={value}" for key, value in given.items()]
        overrides += [f"mask.{key}={value}" for key, value in mask.items()]
        yield f"stages.{number}: " + " ".join(overrides)


def subsection(field: FieldInfo) -> type[Section] | None:
    """The class of a section within a section, or None for a plain value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def list_member(field: FieldInfo) -> type[Section] | None:
    """The class of the members of a list of sections, else None."""
    first = next(iter(get_args(field.annotation)), None)
    return first if isinstance(first, type) and issubclass(first, Section) else None


@cache
def _types() -> dict[str, str]:
    types = {setting.key: setting.type for setting in all_settings()}
    for name, field in MaskConfig.model_fields.items():
        if member := list_member(field):
            types |= {setting.key: setting.type for setting in _walk(member, f"stages.0.mask.{name}.0.")}
    return types


def _walk(section: type[Section], prefix: str) -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        inner = subsection(field)
        if section is Config and name in VARIANTS:
            yield from _walk_variants(VARIANTS[name], f"{name}.")
        elif section is Config and name == "stages":
            yield from _walk(StageConfig, "stages.0.")
        elif inner is not None:
            yield from _walk(inner, f"{prefix}{name}.")
        else:
            yield _setting(prefix + name, field)


def _walk_variants(variants: Variants, prefix: str) -> Iterator[Setting]:
    """The choice, what all have in common, and what only some have."""
    base = variants.base.model_fields
    choice = " ".join((base[variants.key].description or "").split())
    yield Setting(prefix + variants.key, "|".join(variants.classes), variants.default, choice)
    yield from (_setting(prefix + name, field) for name, field in base.items() if name != variants.key)
    options: dict[tuple[str, type], list[str]] = {}
    for kind, section in variants.classes.items():
        for name in section.model_fields.keys() - base.keys():
            options.setdefault((name, option_home(section, name)), []).append(kind)
    for kind, section in variants.classes.items():
        for name, field in section.model_fields.items():
            kinds = options.get((name, option_home(section, name)), [])
            if kinds[:1] == [kind]:
                yield _setting(prefix + name, field, tuple(kinds))


def _setting(key: str, field: FieldInfo, kinds: tuple[str, ...] = ()) -> Setting:
    default = "" if field.is_required() else _show(field.default)
    return Setting(key, _type_name(field.annotation), default, " ".join((field.description or "").split()), kinds)


def _show(value: object) -> str:
    """A default as one writes it."""
    return value if isinstance(value, str) else str(value) if isinstance(value, float) else shown(value)


def _type_name(kind: Any) -> str:
    """A type as a user writes its values: "int", "a|b|c", "number or null"."""
    plain = {type(None): "null", float: "number", bool: "true|false", str: "text", int: "int"}
    if kind in plain:
        return plain[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is dict:
        return f"{{name: {_type_name(arguments[1])}, ...}}"
    if isinstance(kind, type) and issubclass(kind, Section):
        return f"{{{', '.join(kind.model_fields)}}}"
    if origin is tuple:
        return "[" + ", ".join(_type_name(a) if a is not ... else "..." for a in arguments) + "]"
    return " or ".join(_type_name(a) for a in arguments)
