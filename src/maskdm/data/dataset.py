"""The images that settings name, decoded and split: what training, evaluation and the audit read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from maskdm.config.schema import DataConfig
from maskdm.data.image_set import ImageSet, load_images
from maskdm.data.sources import open_source
from maskdm.data.split import Role, assign_roles, given_roles, group_names, matching, read_salt
from maskdm.runtime.console import Console


@dataclass(frozen=True)
class Dataset:
    """All images that could be read, and of every one of them its role and, where there are groups, its group."""

    images: ImageSet
    roles: list[Role]
    groups: list[str] | None

    @property
    def counts(self) -> dict[str, int]:
        """Images of every role."""
        return {role: self.roles.count(role) for role in get_args(Role)} | {"excluded": len(self.images.bad)}

    def rows(self, role: Role) -> np.ndarray:
        """Of the images that have this role."""
        return np.flatnonzero([each == role for each in self.roles])


def read_dataset(config: DataConfig, console: Console) -> Dataset:
    """Reads, decodes and splits the images.

    Raises:
        InputError: there are none, or too few; or they cannot be split as asked.
    """
    cache = cache_dir(config)
    images = load_images(
        open_source(config.path),
        cache_dir=cache,
        say=console.warn,
        image_size=config.image_size,
        channels=config.channels,
        background=config.background,
        on_bad_image=config.on_bad_image,
        keep=config.store != "stream",
        progress=console.bar,
    )
    groups = group_names(images.names, config.group_by)
    salt = read_salt(config.salt, cache)
    if config.heldout_by is not None:
        given = matching(images.names, config.heldout_by)
        roles = given_roles(
            images.sha256_px, groups, given, salt=salt, files=images.sha256, calibration=config.calibration
        )
    else:
        roles = assign_roles(
            images.sha256_px,
            groups,
            salt=salt,
            files=images.sha256,
            heldout=config.heldout,
            calibration=config.calibration,
        )
    return Dataset(images, roles, groups)


def cache_dir(config: DataConfig) -> Path:
    """Where decoded images are kept."""
    return default_cache() if config.cache_dir == "auto" else Path(config.cache_dir).expanduser()


def default_cache() -> Path:
    """The same where no setting says otherwise: $MASKDM_CACHE, else ~/.cache/maskdm."""
    return Path(os.environ.get("MASKDM_CACHE") or Path.home() / ".cache" / "maskdm")


def load_image_set(path: str, console: Console, shape: tuple[int, int, int] | None = None) -> ImageSet:
    """Images by themselves, with no role: as (H, W, C), or in the size and colour that they have."""
    return load_images(
        open_source(path),
        cache_dir=default_cache(),
        say=console.warn,
        image_size="auto" if shape is None else shape[:2],
        channels="auto" if shape is None else shape[2],
        progress=console.bar,
    )
