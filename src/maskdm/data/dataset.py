"""The images that settings name, decoded and split: what training, evaluation and the audit read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskdm.config.schema import DataConfig
from maskdm.data.image_set import ImageSet, load_images
from maskdm.data.limits import MB
from maskdm.data.sources import open_source
from maskdm.data.split import ROLES, Role, assign_roles, given_roles, group_names, matching, read_salt
from maskdm.errors import within
from maskdm.runtime.console import Console


@dataclass(frozen=True)
class Dataset:
    """The N images that could be read, split.

    Attributes:
        images: decoded, with what is known of each.
        roles: of each image.
        groups: of each image, or None where there are none.
    """

    images: ImageSet
    roles: list[Role]
    groups: list[str] | None

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of every role; excluded are those that could not be read."""
        counts: dict[str, int] = {role: self.roles.count(role) for role in ROLES}
        return counts | {"excluded": len(self.images.bad)}

    def rows(self, role: Role) -> NDArray[np.int64]:
        """Of the images that have this role."""
        return np.flatnonzero([each == role for each in self.roles])


def read_dataset(config: DataConfig, console: Console) -> Dataset:
    """Reads, decodes and splits the images.

    Raises:
        InputError: there are none, or too few; or they cannot be split as requested.
    """
    images = read_unsplit(config, console)
    with within("data."):
        groups = group_names(images.names, config.group_by)
        return Dataset(images, _roles(config, images, groups, read_salt(config.salt, cache_dir(config))), groups)


def read_unsplit(config: DataConfig, console: Console) -> ImageSet:
    """Reads and decodes the images, and splits nothing: for a run, whose manifest says who had which role.

    Raises:
        InputError: there are none, or too few.
    """
    with within("data."):
        return load_images(
            open_source(config.path, image_column=config.image_column, label_column=config.label_column),
            cache_dir=cache_dir(config),
            console=console,
            image_size=config.image_size,
            channels=config.channels,
            background=config.background,
            on_bad_image=config.on_bad_image,
            keep=config.store != "stream",
            white_level=config.white_level,
            max_file_bytes=config.max_file_mb * MB,
            max_pixels=config.max_pixels,
        )


def _roles(config: DataConfig, images: ImageSet, groups: list[str] | None, salt: bytes) -> list[Role]:
    """Drawn by the salt, or given by `heldout_by`."""
    hashes, files, calibration = images.sha256_px, images.sha256, config.calibration
    if config.heldout_by is None:
        return assign_roles(hashes, groups, salt=salt, files=files, heldout=config.heldout, calibration=calibration)
    with within("data.", pattern="heldout_by", heldout="heldout_by"):
        given = matching(images.names, config.heldout_by)
        return given_roles(hashes, groups, given, salt=salt, files=files, calibration=calibration)


def cache_dir(config: DataConfig) -> Path:
    """Where decoded images are kept."""
    return default_cache() if config.cache_dir == "auto" else Path(config.cache_dir)


def default_cache() -> Path:
    """The same where no setting says otherwise: $MASKDM_CACHE, else ~/.cache/maskdm."""
    return Path(os.environ.get("MASKDM_CACHE") or Path.home() / ".cache" / "maskdm")


def load_image_set(path: str, console: Console, shape: tuple[int, int, int] | None = None) -> ImageSet:
    """Images by themselves, with no role.

    Args:
        path: a folder, a file, or hf:NAME.
        console: warns of images that cannot be read, and shows progress.
        shape: (H, W, C) that they are brought to; None for the size and colour that they have.

    Raises:
        InputError: there are none, or too few.
    """
    return load_images(
        open_source(path),
        cache_dir=default_cache(),
        console=console,
        image_size="auto" if shape is None else shape[:2],
        channels="auto" if shape is None else shape[2],
    )
