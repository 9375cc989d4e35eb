"""Files of settings that come with the package."""

from __future__ import annotations

import difflib
from importlib import resources

from maskdm.config.section import Tree
from maskdm.config.yaml_files import parse_yaml
from maskdm.errors import InputError


def recipes() -> dict[str, str]:
    """Shipped recipes: name -> the first line of its header."""
    return shipped("recipes")


def shipped(kind: str) -> dict[str, str]:
    """Files of settings in the package's folder `kind`: name -> the first line of its header."""
    folder = resources.files("maskdm") / kind
    files = {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}
    return {name: files[name].read_text("utf-8").partition("\n")[0].lstrip("# ") for name in sorted(files)}


def read_recipe(name: str) -> Tree:
    """A shipped recipe as a tree.

    Raises:
        InputError: there is none of this name.
    """
    known = recipes()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean {close[0]}?" if close else ""
        raise InputError("recipe", got=name, wanted=f"one of {', '.join(known)}", remedy=remedy)
    text = (resources.files("maskdm") / "recipes" / f"{name}.yaml").read_text("utf-8")
    return parse_yaml(text, f"recipe {name}")
