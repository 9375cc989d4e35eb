"""Layers of settings, merged: recipes and files are read, `key.sub=value` is applied, unknown keys are named."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from maskdm.errors import InputError
from maskdm.training.config import LENGTHS, Config, Section, StageConfig, to_dict

Tree = dict[str, Any]


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
        return Config.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise InputError(_readable(error)) from None


def _readable(error: ValidationError) -> str:
    """The first fault in one line: key, what was got, what was wanted."""
    # A union complains once for each of its members; those that are about the value's range say most.
    faults = [f for f in error.errors(include_url=False) if _key(f["loc"]) == _key(error.errors()[0]["loc"])]
    fault = next((f for f in faults if f["type"] in ("greater_than", "greater_than_equal", "less_than")), faults[0])
    key = _key(fault["loc"])
    if fault["type"] == "missing":
        return f"{key}: missing; every stage needs it"
    got = "" if isinstance(fault["input"], dict) else f"got {fault['input']!r}, "
    known = all_keys().get(re.sub(r"^stages\.\d+", "stages.0", key))
    wanted = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if known is not None and fault["type"].endswith(("_type", "_parsing", "literal_error")):
        wanted = known[0]
    return f"{key}: {got}wanted {wanted}; see maskdm train --settings"


def _key(place: tuple[int | str, ...]) -> str:
    """("stages", 0, "lr", "constrained-float") -> "stages.0.lr": the members of unions are no keys."""
    return ".".join(str(part) for part in place if isinstance(part, int) or part.isidentifier()) or "stages"


def recipes() -> dict[str, str]:
    """Shipped recipes: name -> the first line of its header."""
    folder = resources.files("maskdm") / "recipes"
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
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config: cannot read {path}: {error}") from None
    return _parse(text, str(path))


def write_yaml(path: Path, section: Section) -> None:
    """Settings as a file that `--config` reads."""
    yaml = YAML()
    yaml.default_flow_style = None
    text = StringIO()
    yaml.dump(to_dict(section), text)
    path.write_text(text.getvalue())


def _parse(text: str, origin: str) -> Tree:
    # YAML 1.2: "2e-4" is a number and "no" is a word, as they are on the command line.
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        place = " ".join(str(error).split())
        raise InputError(f"config: {origin} is not YAML: {place}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"config: {origin} holds {type(tree).__name__}, wanted sections such as `data:` and `model:`")
    return tree


def _merge(below: Tree, above: Tree, origin: str, section: type[Section] = Config, prefix: str = "") -> Tree:
    """`above`, from `origin`, laid over `below`; both are trees of `section`, which stands at `prefix`."""
    known = section.model_fields
    merged = dict(below)
    if any(above.get(name) is not None for name in LENGTHS):
        merged.update(dict.fromkeys(set(LENGTHS) & set(known)))
    for key, value in above.items():
        if key not in known:
            raise _unknown(f"{prefix}{key}", origin)
        inner = _section(known[key])
        if key == "stages" and section is Config:
            merged[key] = _merge_stages(below.get(key, []), value, origin)
        elif inner is None and isinstance(value, dict):
            raise _unknown(f"{prefix}{key}.{next(iter(value), '')}", origin)
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
    numbers = {str(stage.get("name")): i for i, stage in enumerate(below)} | {str(i): i for i in range(len(below))}
    for key, value in above.items():
        if str(key) not in numbers:
            wanted = ", ".join(f"{i} ({stage.get('name')})" for i, stage in enumerate(below))
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
    try:
        value: Any = YAML(typ="safe", pure=True).load(text) if text else ""
    except YAMLError:
        value = text  # a regular expression, say
    for key in reversed(name.split(".")):
        value = {key: value}
    tree: Tree = value
    return tree


def _section(field: FieldInfo) -> type[Section] | None:
    """The class of a sub-section, or None for a plain value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _unknown(name: str, origin: str) -> InputError:
    # Compared with stage numbers levelled, and by the last part too: "stages.1.ratio" should find "mask.ratio".
    level = re.sub(r"^stages\.[^.]+", "stages.0", name)
    known = list(all_keys())
    close = difflib.get_close_matches(level, known, n=1, cutoff=0.6)
    close = close or [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return InputError(f"unknown setting {name!r} in {origin}{_did_you_mean(close)}; see maskdm train --settings")


def _did_you_mean(close: Sequence[str]) -> str:
    return f" (did you mean {close[0]}?)" if close else ""


def all_keys() -> dict[str, tuple[str, str, str]]:
    """Every setting: key -> (type, default, help). Keys of a stage are given for stage 0."""
    return dict(_walk(Config, ""))


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
    if origin is tuple:
        return "[" + ", ".join(_type_name(a) if a is not ... else "..." for a in arguments) + "]"
    return " or ".join(_type_name(a) for a in arguments)
