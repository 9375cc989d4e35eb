"""Layers of settings, merged: recipes and files are read, `key.sub=value` is applied, unknown keys are named."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from maskdm.config.schema import LENGTHS, Config, MaskConfig, ModelConfig, Section, StageConfig, default_stages, to_dict
from maskdm.errors import InputError

Tree = dict[str, Any]
WORD = re.compile(r"(?!(?:true|false|null|none|yes|no|on|off|y|n)$)[a-z][a-z0-9_-]*", re.IGNORECASE)
"""Text that no reader of YAML takes for anything else."""
STAGE = re.compile(r"^stages\.[^.]+")


def resolve(*, recipe: str | None = None, file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Settings from all layers, the later winning: defaults, recipe, file, `key=value` words.

    Mappings merge, lists replace, `stages.0.lr=1e-4` sets one value of one stage. Where a later layer gives a stage
    another measure of length (steps, images, minutes), the earlier one goes.

    Raises:
        InputError: an unknown recipe or key, an unreadable file, a value of the wrong type.
    """
    tree = to_dict(Config())
    if recipe is not None:
        tree = _merge(tree, read_recipe(recipe), f"recipe {recipe}")
    if file is not None:
        tree = _merge(tree, read_yaml(file), str(file))
    for word in overrides:
        tree = _merge(tree, _parse_word(word), "the command line")
    return to_config(tree)


def to_config(tree: Tree) -> Config:
    """A tree of plain values -> `Config`.

    Raises:
        InputError: a value of the wrong type or out of its range, named by its key.
    """
    try:
        # Through JSON: only there do lists count as tuples while "3" still is no number.
        config = Config.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise InputError(_readable(error)) from None
    return config


def _readable(error: ValidationError) -> str:
    """The first fault in one line: key, what was got, what was wanted."""
    # A union complains once for each of its members; those that are about the value's range say most.
    key = _key(error.errors()[0]["loc"])
    faults = [f for f in error.errors(include_url=False) if _key(f["loc"]) == key]
    fault = next((f for f in faults if f["type"].startswith(("greater_than", "less_than"))), faults[0])
    if fault["type"] == "missing" and not isinstance(fault["loc"][-1], int):
        return f"{key}: missing; every {'mask of a mixture' if '.mixture.' in key else 'stage'} needs it"
    value = fault["input"]
    if fault["type"] in ("value_error", "greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        wanted = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    elif key == "stages":
        wanted = "at least one stage"
    elif key == "model.backbone" and fault["type"] == "string_pattern_mismatch":
        wanted = "uvit, jit, unet, or a class of your own as module:Class"
    elif fault["type"].startswith("string_"):
        wanted = "a name of at most 40 letters, digits, - and _"
    else:
        wanted = _types()[_levelled(key)]
    got = "" if isinstance(value, dict) else f"got {value!r}, "
    return f"{key}: {got}wanted {wanted}; see maskdm train --settings"


def _key(place: tuple[int | str, ...]) -> str:
    """("stages", 0, "lr", "constrained-float") -> "stages.0.lr": members of unions and of lists are no keys."""
    parts = [str(part) for part in place if isinstance(part, int) or part.isidentifier()]
    key = ".".join(parts) or "stages"
    for end in range(len(parts), 0, -1):
        if _levelled(".".join(parts[:end])) in _types():
            return ".".join(parts[:end])
    return key


def recipes() -> dict[str, str]:
    """Shipped recipes: name -> the first line of its header."""
    return shipped("recipes")


def shipped(kind: str) -> dict[str, str]:
    """Files of settings that come with the package, in its folder `kind`: name -> the first line of its header."""
    folder = resources.files("maskdm") / kind
    texts = {f.name.removesuffix(".yaml"): f.read_text() for f in folder.iterdir() if f.name.endswith(".yaml")}
    return {name: texts[name].partition("\n")[0].lstrip("# ") for name in sorted(texts)}


def read_recipe(name: str) -> Tree:
    """A shipped recipe as a tree."""
    known = recipes()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise InputError(f"recipe: got {name!r}{_did_you_mean(close)}, wanted one of {', '.join(known)}")
    return _parse((resources.files("maskdm") / "recipes" / f"{name}.yaml").read_text(), f"recipe {name}")


def read_yaml(path: Path) -> Tree:
    """A settings file as a tree."""
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"config: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"config: cannot read {path}: it is not text") from None
    return _parse(text, str(path))


def write_yaml(path: Path, section: Section) -> None:
    """Settings as a file that `--config` reads."""
    path.write_text("\n".join(_block(to_dict(section))) + "\n")


def _block(tree: object, indent: str = "") -> Iterator[str]:
    """Mappings, and lists of them, as lines of YAML; other values, but for words, as JSON, which is YAML too."""
    pairs = tree.items() if isinstance(tree, dict) else (("-", item) for item in tree)  # type: ignore[attr-defined]
    for key, value in pairs:
        name = key if key == "-" else f"{key if WORD.fullmatch(key) else json.dumps(key)}:"
        if value and (isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict))):
            yield f"{indent}{name}"
            yield from _block(value, indent + "  ")
        else:
            yield f"{indent}{name} {value if WORD.fullmatch(str(value)) else json.dumps(value)}"


def _parse(text: str, origin: str) -> Tree:
    try:
        tree = _plain(_load(text))
    except YAMLError as error:
        place = " ".join(str(error).split())
        raise InputError(f"config: {origin} is not YAML: {place}") from None
    except (TypeError, ValueError, RecursionError):
        raise InputError(
            f"config: {origin}: wanted plain values, lists and mappings; got YAML of another kind"
        ) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"config: {origin} holds {type(tree).__name__}, wanted sections such as `data:` and `model:`")
    return tree


def _load(text: str) -> Any:
    """YAML 1.2: "2e-4" is a number and "no" a word, as they are on the command line. Dates stay text."""
    yaml = YAML(typ="safe", pure=True)
    yaml.constructor.yaml_constructors["tag:yaml.org,2002:timestamp"] = lambda loader, node: node.value
    return yaml.load(text)


def _plain(tree: Any) -> Any:
    """The same tree, or a TypeError or ValueError where it could not stand in a file of JSON."""
    return json.loads(json.dumps(tree))


REPLACES: dict[type[Section], dict[str, tuple[str, ...]]] = {
    StageConfig: {length: tuple(other for other in LENGTHS if other != length) for length in LENGTHS},
    ModelConfig: {"size": ("width", "depth", "heads")},
    MaskConfig: {
        "kind": ("mixture",),
        "ratio": ("by_noise", "mixture"),
        "by_noise": ("ratio", "schedule", "mixture"),
        "mixture": ("kind", "ratio", "schedule", "by_noise"),
    },
}
"""Settings that say the same thing in different ways: where a layer or a later word gives one, those below go."""


def _merge(below: Tree, above: Tree, origin: str, section: type[Section] = Config, prefix: str = "") -> Tree:
    """`above`, from `origin`, laid over `below`; both are trees of `section`, which stands at `prefix`."""
    known = section.model_fields
    merged = dict(below)
    for key, others in REPLACES.get(section, {}).items():
        if above.get(key) not in (None, [], {}):
            merged.update({other: _plain(known[other].default) for other in others})
    for key, value in above.items():
        if key not in known:
            raise _unknown(f"{prefix}{_deepest(key, value)}", origin)
        inner = _section(known[key])
        if key == "stages" and section is Config:
            merged[key] = _merge_stages(below.get(key, []), value, origin)
        elif inner is None and isinstance(value, dict) and get_origin(known[key].annotation) is dict:
            merged[key] = below.get(key, {}) | value
        elif (member := _member(known[key])) and isinstance(value, list) and all(isinstance(v, dict) for v in value):
            merged[key] = [_merge({}, v, origin, member, f"{prefix}{key}.{i}.") for i, v in enumerate(value)]
        elif member and isinstance(value, dict):
            raise InputError(
                f"{prefix}{key}: got {value!r} in {origin}, wanted all of it as a list, [{{...}}, {{...}}]"
            )
        elif inner is None and isinstance(value, dict):
            raise _unknown(f"{prefix}{_deepest(key, value)}", origin)
        elif inner is None:
            merged[key] = value
        elif isinstance(value, dict):
            merged[key] = _merge(below.get(key, {}), value, origin, inner, f"{prefix}{key}.")
        else:
            first = next(iter(inner.model_fields))
            raise InputError(f"{prefix}{key}: got {value!r} in {origin}, wanted settings such as {prefix}{key}.{first}")
    return merged


def _merge_stages(below: list[Tree], above: object, origin: str) -> list[Tree]:
    """A list replaces the stages; a mapping from their numbers or names changes single settings of them."""
    if isinstance(above, list) and all(isinstance(stage, dict) for stage in above):
        return [_merge({}, stage, origin, StageConfig, f"stages.{i}.") for i, stage in enumerate(above)]
    if not isinstance(above, dict):
        raise InputError(f"stages: got {above!r} in {origin}, wanted a list of stages, or settings such as stages.0.lr")
    merged = list(below)
    for key, value in above.items():
        # Looked up anew each time: one of the settings may be a stage's name.
        numbers = {str(stage.get("name")): i for i, stage in enumerate(merged)} | {
            str(i): i for i in range(len(merged))
        }
        if str(key) not in numbers:
            wanted = ", ".join(f"{i} ({stage.get('name')})" for i, stage in enumerate(merged))
            raise InputError(f"stages.{key}: got stage {key!r} in {origin}, wanted one of {wanted}")
        if not isinstance(value, dict):
            raise InputError(
                f"stages.{key}: got {value!r} in {origin}, wanted a setting of it, e.g. stages.{key}.lr=1e-4"
            )
        i = numbers[str(key)]
        merged[i] = _merge(merged[i], value, origin, StageConfig, f"stages.{key}.")
    return merged


def _parse_word(word: str) -> Tree:
    """`a.b.c=value` -> {a: {b: {c: value}}}, the value read as YAML."""
    name, equals, text = word.partition("=")
    if not equals or not name:
        raise InputError(f"got {word!r}, wanted key.sub=value, e.g. model.width=256; see maskdm train --settings")
    value: Any = text
    kind = all_keys().get(_levelled(name), ("", "", ""))[0]
    if kind == "text or null" and text == "null":
        value = None
    elif text and not kind.startswith("text"):  # text is text, whatever YAML would make of it
        with suppress(YAMLError, TypeError, ValueError):
            value = _plain(_load(text))
    for key in reversed(name.split(".")):
        value = {key: value}
    tree: Tree = value
    return tree


def _section(field: FieldInfo) -> type[Section] | None:
    """The class of a sub-section, or None for a plain value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _member(field: FieldInfo) -> type[Section] | None:
    """The class of the members of a list of sections, else None."""
    first = next(iter(get_args(field.annotation)), None)
    return first if isinstance(first, type) and issubclass(first, Section) else None


def _unknown(name: str, origin: str) -> InputError:
    # Compared with stage numbers levelled, and by the last part too: "stages.1.ratio" should find "mask.ratio".
    level, known = _levelled(name), list(_types())
    close = difflib.get_close_matches(level, known, n=1, cutoff=0.6)
    close = close or [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    for i, key in enumerate(close):  # told with the stage that was meant
        parts = zip_longest(key.split("."), level.split("."), name.split("."), fillvalue="")
        close[i] = ".".join(mine if there == here else there for there, here, mine in parts if there)
    return InputError(f"unknown setting {name!r} in {origin}{_did_you_mean(close)}; see maskdm train --settings")


def _deepest(key: str, value: object) -> str:
    """The whole name of an unknown setting: "modle" with {"width": 3} -> "modle.width"."""
    while isinstance(value, dict) and len(value) == 1:
        inner, value = next(iter(value.items()))
        key = f"{key}.{inner}"
    return key


def _levelled(name: str) -> str:
    """ "stages.finetune.lr" -> "stages.0.lr", as `all_keys` has it; members of lists likewise."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "0", re.sub(STAGE, "stages.0", name))


def _did_you_mean(close: Sequence[str]) -> str:
    return f" (did you mean {close[0]}?)" if close else ""


@cache
def all_keys() -> dict[str, tuple[str, str, str]]:
    """Every setting: key -> (type, default, help). Keys of a stage are given for stage 0."""
    return dict(_walk(Config, ""))


def stages_as_words() -> Iterator[str]:
    """The stages of a run without a recipe, as one would write them."""
    for number, stage in enumerate(default_stages()):
        given = stage.model_dump(mode="json", exclude_defaults=True)
        mask = given.pop("mask", {})
        words = [f"{key}={value}" for key, value in given.items()]
        words += [f"mask.{key}={value}" for key, value in mask.items()]
        yield f"stages.{number}: " + " ".join(words)


@cache
def _types() -> dict[str, str]:
    """The type of every setting, also of those in the members of lists: "stages.0.mask.mixture.0.kind"."""
    types = {key: kind for key, (kind, _, _) in all_keys().items()}
    for name, field in MaskConfig.model_fields.items():
        if member := _member(field):
            inner = _walk(member, f"stages.0.mask.{name}.0.")
            types |= {key: kind for key, (kind, _, _) in inner}
    return types


def _walk(section: type[Section], prefix: str) -> Iterator[tuple[str, tuple[str, str, str]]]:
    for name, field in section.model_fields.items():
        inner = _section(field)
        if name == "stages":
            yield from _walk(StageConfig, "stages.0.")
        elif inner is not None:
            yield from _walk(inner, f"{prefix}{name}.")
        else:
            default = "" if field.is_required() else _show(field.default)
            yield prefix + name, (_type_name(field.annotation), default, " ".join((field.description or "").split()))


def _show(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(_show, value))}]" if isinstance(value, tuple) else str(value)


def _type_name(kind: Any) -> str:
    """A type as a user writes its values: "int", "a|b|c", "number or null"."""
    words = {type(None): "null", float: "number", bool: "true|false", str: "text", int: "int"}
    if kind in words:
        return words[kind]
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
