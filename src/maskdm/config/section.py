"""What all groups of settings are made of: frozen and typed; the text under a field is its help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from maskdm.files import expanded


def _as_whole(value: object) -> object:
    """1e5 and 100000.0 are whole numbers too; what is not stays, for pydantic to refuse."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Every number has an upper bound: what lies beyond it would hang, or overflow, or fill the memory.
LARGEST = 10**12
"""Of numbers of steps, images and the like: more than a cluster gets through in a lifetime."""

Whole = Annotated[int, BeforeValidator(_as_whole)]
"""A whole number, however it is written."""
Positive = Annotated[Whole, Field(gt=0, le=LARGEST)]
Count = Annotated[Whole, Field(ge=0, le=LARGEST)]
Side = Annotated[Whole, Field(gt=0, le=65_536)]
Pixels = Annotated[Whole, Field(gt=0, le=16_384)]
"""Side of an image."""
Layers = Annotated[Whole, Field(ge=0, le=1024)]
"""Numbers of blocks, levels and tokens of a network."""
BatchSize = Annotated[Whole, Field(gt=0, le=65_536)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Number = Annotated[int, Field(gt=-(2**63), lt=2**63)] | Annotated[float, Field(ge=-1e300, le=1e300)]
"""Of options whose meaning is not known here."""
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST)]
Scale = Annotated[float, Field(ge=1e-4, le=1e4)]
"""Factors and levels of noise: squared, and divided by, in single precision."""
Share = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]

PathText = Annotated[str, AfterValidator(expanded)]
"""Text that is a path, or may be one: `~` at its beginning is the home directory, which no shell says for `key=~/x`."""

Tree = dict[str, Any]
"""Settings as plain values, as they stand in a file; perhaps only some of a section."""


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


@dataclass(frozen=True)
class Variants:
    """A section whose options depend on one of them, which chooses its class.

    Attributes:
        key: the setting that chooses.
        base: what all classes have in common.
        classes: name of a variant -> its class; the first is the default.
        find: value of the setting -> the class; raises ArgumentError where there is none.
        reset: options that choosing another variant sets back to their defaults, even where both have them.
    """

    key: str
    base: type[Section]
    classes: Mapping[str, type[Section]]
    find: Callable[[object], type[Section]]
    reset: tuple[str, ...] = ()

    @property
    def default(self) -> str:
        """The variant of settings that do not choose."""
        return next(iter(self.classes))

    def having(self, option: str) -> list[str]:
        """Names of the variants that have an option."""
        return [name for name, section in self.classes.items() if option in section.model_fields]


def option_home(section: type[Section], option: str) -> type:
    """The class that defines an option of `section`.

    Where two variants inherit an option from one class, it is the same option; where each defines one, they are two
    that happen to have the same name.
    """
    return next(home for home in section.__mro__ if option in inspect.get_annotations(home))


def to_dict(section: Section) -> Tree:
    """Plain mappings, lists and scalars, as in a file."""
    return section.model_dump(mode="json")
