"""Settings in files: YAML 1.2, as it is on the command line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from maskdm.config.section import Section, Tree, to_dict
from maskdm.errors import InputError
from maskdm.files import write_text

_WORD = re.compile(r"(?!(?:true|false|null|none|yes|no|on|off|y|n)$)[a-z][a-z0-9_-]*", re.IGNORECASE)
"""Text that no reader of YAML takes for anything else."""
MAX_CHARACTERS = 2**16
"""Of a file of settings; shipped ones have a few thousand."""
MAX_VALUES = 20_000
"""Of a file of settings, every alias counted as all that it stands for."""
_NOT_PLAIN = (TypeError, ValueError, RecursionError)
"""What values raise that could not stand in a file of JSON."""


class TooMuch(ValueError):
    """Text that stands for more than settings could be; the message says of what."""


def read_yaml(path: Path) -> Tree:
    """A settings file as a tree.

    Raises:
        InputError: it cannot be read, or holds no sections of plain values.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would keep its reader waiting for ever
        raise InputError("config", "is not a regular file", got=str(path), wanted="a file of settings")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except OSError as error:
        raise InputError("config", f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError("config", f"cannot read {path}: it is not text") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> Tree:
    """Text as a tree of settings; `origin` says in errors where it stands.

    Raises:
        InputError: it holds no sections of plain values, or more than settings could be.
    """
    try:
        if len(text) > MAX_CHARACTERS:
            raise TooMuch(f"more than {MAX_CHARACTERS:,} characters")
        tree = parse_value(text)
    except TooMuch as error:
        raise InputError("config", f"{origin} holds {error}", wanted="a file of settings") from None
    except YAMLError as error:
        raise InputError("config", f"{origin} is not YAML: {' '.join(str(error).split())}") from None
    except _NOT_PLAIN:
        problem = f"{origin} holds YAML of another kind"
        raise InputError("config", problem, wanted="plain values, lists and mappings") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        problem = f"{origin} holds {type(tree).__name__}"
        raise InputError("config", problem, wanted="sections such as `data:` and `model:`")
    return tree


def parse_value(text: str) -> Any:
    """A plain value: "2e-4" is a number and "no" a word. Dates stay text.

    Raises:
        YAMLError: it is not YAML.
        TypeError, ValueError, RecursionError: it could not stand in a file of JSON.
        TooMuch: its aliases stand for too many values.
    """
    yaml = YAML(typ="safe", pure=True)
    if "*" in text:
        count = _expanded(YAML(typ="safe", pure=True).compose(text), {})
        if count == math.inf:
            raise ValueError("a value holds itself")
        if count > MAX_VALUES:
            raise TooMuch(f"aliases that stand for more than {MAX_VALUES:,} values")
    yaml.constructor.yaml_constructors["tag:yaml.org,2002:timestamp"] = lambda loader, node: node.value
    return json.loads(json.dumps(yaml.load(text)))


def _expanded(node: Any, known: dict[int, float]) -> float:
    """How many values a node of YAML has once every alias in it is what it stands for; infinite if it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until all of its parts are known
        parts = getattr(node, "value", None)
        pairs = [part for part in parts if not isinstance(part, str)] if isinstance(parts, list) else []
        inner = [each for part in pairs for each in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_expanded(each, known) for each in inner)
    return known[id(node)]


def parse_override(text: str) -> Any:
    """A value on the command line; what is no plain value stays text."""
    try:
        return parse_value(text)
    except (YAMLError, *_NOT_PLAIN):
        return text


def write_yaml(path: Path, section: Section) -> None:
    """Settings as a file that `read_yaml` reads."""
    write_text(path, as_yaml(to_dict(section)))


def as_yaml(tree: Tree, comments: Sequence[str] = ()) -> str:
    """Settings as text that `parse_yaml` reads, below lines of comments."""
    return "\n".join([*(f"# {line}" for line in comments), *_block(tree)]) + "\n"


def _block(tree: object, indent: str = "") -> Iterator[str]:
    """Mappings, and lists of them, as lines of YAML; other values, but for words, as JSON, which is YAML too."""
    pairs = tree.items() if isinstance(tree, dict) else (("-", item) for item in tree)  # type: ignore[attr-defined]
    for key, value in pairs:
        name = key if key == "-" else f"{key if _WORD.fullmatch(key) else json.dumps(key)}:"
        if value and (isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict))):
            yield f"{indent}{name}"
            yield from _block(value, indent + "  ")
        else:
            yield f"{indent}{name} {value if _WORD.fullmatch(str(value)) else json.dumps(value)}"
