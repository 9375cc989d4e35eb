"""From plain values to a section; what does not fit is an error with its key, what was got and what was wanted."""

from __future__ import annotations

import json
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from maskdm.config.keys import all_keys, levelled, setting_type
from maskdm.config.schema import VARIANTS
from maskdm.config.section import Section, Tree
from maskdm.errors import MISSING, ArgumentError, InputError
from maskdm.files import is_utf8, readable

S = TypeVar("S", bound=Section)
HELP = "see maskdm train --settings"
_RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def validate(section: type[S], tree: Tree) -> S:
    """A tree of plain values as a section.

    Raises:
        InputError: a value of the wrong type or out of its range, or values that do not go together.
    """
    _require_text(tree)
    try:
        # Through JSON: only there do lists count as tuples while "3" still is no number.
        return section.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise first_fault(error) from None


def _require_text(value: object, key: str = "") -> None:
    """Refuses bytes that are no UTF-8, such as those of a path, which no file of settings could hold."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _require_text(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and not is_utf8(value):
        remedy = "rename it, or give a link to it that is called otherwise"
        raise InputError(key, got=readable(value), wanted="text in UTF-8", remedy=remedy)


def first_fault(error: ValidationError) -> InputError:
    """The first thing that does not fit."""
    faults = error.errors(include_url=False)
    key = _key(faults[0]["loc"])
    # A union complains once for each of its members; those that are about the value's range say most.
    of_key = [fault for fault in faults if _key(fault["loc"]) == key]
    fault = next((fault for fault in of_key if fault["type"] in _RANGES), of_key[0])
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, ArgumentError):
        name = ".".join(part for part in (key, cause.name) if part)
        return InputError(name, cause.problem, got=cause.got, wanted=cause.wanted, remedy=cause.remedy or HELP)
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        variants = VARIANTS[key]
        got = fault["input"].get(variants.key, MISSING) if isinstance(fault["input"], dict) else fault["input"]
        return InputError(f"{key}.{variants.key}", got=got, wanted="|".join(variants.classes), remedy=HELP)
    if fault["type"] == "missing" and not isinstance(fault["loc"][-1], int):
        owner = "mask of a mixture" if ".mixture." in key else "stage"
        return InputError(key, f"missing; every {owner} needs it")
    got = MISSING if isinstance(fault["input"], dict) else fault["input"]
    return InputError(key, got=got, wanted=_wanted(key, fault), remedy=HELP)


def _wanted(key: str, fault: ErrorDetails) -> str:
    if fault["type"] in _RANGES:
        return fault["msg"].removeprefix("Input should be ")
    if key == "stages":
        return "at least one stage"
    if key.endswith(".name"):
        return "a name of at most 40 letters, digits, - and _"
    return setting_type(key) or fault["msg"]


def _key(place: tuple[int | str, ...]) -> str:
    """("stages", 0, "lr", "constrained-float") -> "stages.0.lr": members of unions and of lists are no keys."""
    if place and place[0] in VARIANTS:  # ("model", "jit", "width"): the name of the variant is no key
        place = (place[0], *place[2:])
    parts = [str(part) for part in place]
    known = set(all_keys())
    for end in range(len(parts), 0, -1):
        if levelled(".".join(parts[:end])) in known:
            return ".".join(parts[:end])
    return ".".join(part for part in parts if part.isidentifier() or part.isdigit())
