"""What is audited: a model's exact weights, and images of three roles that were fixed before it was trained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from maskdm.data.dataset import load_image_set, read_unsplit
from maskdm.data.image_set import ImageSet
from maskdm.data.labelled import LabelledImages
from maskdm.data.manifest import Manifest, read_manifest
from maskdm.data.split import LEAST_TO_AUDIT, Role, group_names
from maskdm.errors import InputError, within
from maskdm.models.spec import ModelSpec
from maskdm.models.weights import Weights, find_weights, read_weights
from maskdm.runtime.console import Console
from maskdm.training.read_run import is_run, read_config, read_data_config

AUDIT_ROLES: tuple[Role, ...] = ("member", "heldout", "calibration")
ROLE_IMAGES = {"member": "training images", "heldout": "held-out images", "calibration": "calibration images"}
"""How a person calls the images of these roles."""
MIN_ROLE_IMAGES, MAX_ROLE_IMAGES = LEAST_TO_AUDIT, 10_000
"""Images of a role without which nothing is asked, and that are read at most."""
RoleGroups = tuple[Sequence[str], Sequence[str], Sequence[str]]
"""Names of the groups of members, held-out and calibration images."""


@dataclass(frozen=True)
class Subject:
    """One audit's model and images.

    Attributes:
        weights: the file that is audited.
        sha256: of the file.
        spec: what model it holds.
        metadata: how the weights came to be, as they say themselves.
        members, heldout, calibration: images that it was trained on, and two sets that it was not.
        certified: whether the trainer drew the split by a secret before the first step.
        mirrored: whether training showed mirror images too.
        remarks: what a reader must know of the images.
        manifest: sha256 of the record of the split, or "".
    """

    weights: Path
    sha256: str
    spec: ModelSpec
    metadata: dict[str, str | int | float | None]
    members: LabelledImages
    heldout: LabelledImages
    calibration: LabelledImages
    certified: bool
    mirrored: bool = False
    remarks: tuple[str, ...] = ()
    manifest: str = ""

    @property
    def num_images(self) -> int:
        """Images of all three roles together."""
        return len(self.members) + len(self.heldout) + len(self.calibration)

    @property
    def epochs(self) -> float | None:
        """How often the model saw each member on average; None where its weights do not say."""
        images, members = self.metadata.get("images"), self.metadata.get("members")
        return float(images) / float(members) if images and members else None

    @property
    def groups(self) -> RoleGroups | None:
        """Groups of the images of all roles, if every role has them; else exact duplicates, if there are any."""
        a, b, c = self.members, self.heldout, self.calibration
        if a.groups is not None and b.groups is not None and c.groups is not None:
            return a.groups, b.groups, c.groups
        if all(len(set(role.ids)) == len(role) for role in (a, b, c)):
            return None
        return a.ids, b.ids, c.ids

    def subset(self, members: int, heldout: int, calibration: int, seed: int) -> Subject:
        """The same with at most so many images of each role, drawn by `seed`."""
        return replace(
            self,
            members=self.members.subset(members, seed),
            heldout=self.heldout.subset(heldout, seed + 1),
            calibration=self.calibration.subset(calibration, seed + 2),
        )


def open_subject(
    subject: Path,
    *,
    weights: str = "ema",
    stage: str | None = None,
    members: str | None = None,
    nonmembers: str | None = None,
    group_by: str | None = None,
    data: str | None = None,
    seed: int = 0,
    console: Console,
) -> Subject:
    """What a user wants audited.

    Args:
        subject: a run's folder, or a weights file.
        weights: of a run: ema or raw.
        stage: of a run: a stage's name or number, for the weights as it left them; by default the last.
        members: images that the model was trained on, where no run says so.
        nonmembers: images of the same source that it was not trained on.
        group_by: of a run: which images are of one person or scene, as the setting data.group_by.
        data: of a run: where its images are, if they were moved since.
        seed: of the choice of images.
        console: shows what is read.

    Raises:
        InputError: arguments that do not fit together, or see `run_subject` and `data_subject`.
    """
    if (members is None) != (nonmembers is None):
        missing = "nonmembers" if nonmembers is None else "members"
        raise InputError(missing, "missing", remedy="give both members and nonmembers, or neither for a run")
    if members is not None and group_by is not None:
        raise InputError("group_by", "only for a run, whose images have the names that it was trained on")
    if data is not None and members is not None:
        raise InputError("data", "says where the images of a run are, and members are given", remedy="leave out one")
    if stage is not None and not is_run(subject):
        raise InputError("stage", f"{subject} is not a run folder, and has no stages", remedy="leave it out")
    which = stage_weights(subject, stage, weights) if is_run(subject) else weights
    if members is not None and nonmembers is not None:
        return data_subject(subject, which, members, nonmembers, seed=seed, console=console)
    return run_subject(subject, which, seed=seed, group_by=group_by, data=data, console=console)


def stage_weights(run: Path, stage: str | None, weights: str) -> str:
    """The name of a stage's weights: ("finetune" or its number, "ema") -> "finetune-ema"; without a stage, "ema".

    Raises:
        InputError: the run has no such stage.
    """
    if stage is None:
        return weights
    names = [each.name for each in read_config(run).stages]
    if stage.isdigit() and int(stage) < len(names):
        stage = names[int(stage)]
    if stage not in names:
        numbered = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
        raise InputError("stage", got=stage, wanted=f"one of {numbered}")
    return f"{stage}-{weights}"


# --- a run -----------------------------------------------------------------------------------------------------------


def run_subject(
    run: Path, weights: str, *, seed: int, group_by: str | None = None, data: str | None = None, console: Console
) -> Subject:
    """A run's weights, and its own split; of each role at most 10,000 images, at random.

    Args:
        run: its folder.
        weights: their name: ema, raw, or either of a stage (pretrain-ema).
        seed: of the choice of images.
        group_by: which images are of one person or scene; by default as the run recorded it.
        data: where its images are, if they were moved since.
        console: shows what is read.

    Raises:
        InputError: no such run or weights, too few images of a role, or anything that is not as recorded.
    """
    _require_run(run)
    path = find_weights(run, weights)
    found, manifest = read_weights(path), read_manifest(run)
    if found.metadata.get("manifest_sha256") != manifest.sha256:
        raise InputError(
            str(path),
            f"was not trained by the manifest of {run}",
            remedy="put back the files of one run, or train it again",
        )
    config = read_data_config(run, data)
    images = manifest.align(read_unsplit(config, console))  # by the pixels of every image
    members, heldout, calibration = _roles(run, manifest, images, found.spec, seed, group_by)
    certified = manifest.head.split == "keyed"
    remarks = []
    decoded, shown = images.images.shape[1:3], found.spec.image_size
    if decoded != shown:
        remarks.append(
            f"the stage was trained on images averaged down from {decoded[0]} x {decoded[1]} px to "
            f"{shown[0]} x {shown[1]}; so are all that it is asked about here, rounded to whole levels"
        )
    if not certified:
        remarks.append("the held-out images were given (data.heldout_by), not drawn: the split is not certified")
    if manifest.head.parent_sha256 is not None:
        remarks.append(
            "training began with another run's weights: what that run saw is not asked about here, audit it by itself"
        )
    return _subject(
        path,
        found,
        (members, heldout, calibration),
        certified=certified,
        mirrored=config.flip > 0,
        remarks=remarks,
        manifest=manifest.sha256,
    )


def _require_run(run: Path) -> None:
    if is_run(run):
        return
    owner = run.parent.parent
    if run.is_file() and is_run(owner):
        raise InputError(str(run), "belongs to a run", remedy=f"audit that, by weights or stage: maskdm audit {owner}")
    raise InputError(
        str(run), "is not a run folder", remedy="give a run's folder, or a weights file with members and nonmembers"
    )


def _roles(
    run: Path, manifest: Manifest, images: ImageSet, spec: ModelSpec, seed: int, group_by: str | None
) -> list[LabelledImages]:
    """Members, held-out and calibration images, each as the manifest names it to the last pixel."""
    good = [record for record in manifest.records if record.sha256_px is not None]
    groups = _groups(images, group_by, [record.group for record in good])
    found = []
    for role in AUDIT_ROLES:
        rows = manifest.indices(role)
        if len(rows) < MIN_ROLE_IMAGES:
            raise InputError(
                str(run),
                f"has too few {ROLE_IMAGES[role]} for an audit",
                got=len(rows),
                wanted=f"at least {MIN_ROLE_IMAGES} images",
                remedy="train with larger data.heldout and data.calibration, which are shares of all images, or give "
                "members and nonmembers",
            )
        if len(rows) > MAX_ROLE_IMAGES:
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MAX_ROLE_IMAGES])
        part = LabelledImages(
            images.images[rows],
            tuple(str(good[row].sha256_px) for row in rows),
            None if images.labels is None or not spec.class_names else images.labels[rows],
            None if groups is None else tuple(groups[row] for row in rows),
        )
        _check_pixels(part)
        found.append(part.averaged(spec.image_size))
    return found


def _groups(images: ImageSet, group_by: str | None, recorded: Sequence[str | None]) -> list[str] | None:
    """The names of groups: by `group_by`, else as recorded, else none."""
    if group_by is not None:
        with within(""):
            return group_names(images.names, group_by)
    if any(name is None for name in recorded):
        return None
    return [str(name) for name in recorded]


def _check_pixels(images: LabelledImages) -> None:
    """Refuses decoded images that are not those of the manifest."""
    for image, digest in zip(images.images, images.ids, strict=True):
        if hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() != digest:
            raise InputError(
                "data.cache_dir",
                "a decoded image is not the one that the manifest names",
                remedy="remove the cache of decoded images, and they are decoded again",
            )


# --- images from elsewhere -------------------------------------------------------------------------------------------


def data_subject(weights: Path, which: str, members: str, nonmembers: str, *, seed: int, console: Console) -> Subject:
    """A model, and images of which somebody says that it was, and was not, trained on them.

    Args:
        weights: the file, or a run's folder.
        which: of a run: the name of the weights.
        members: images that the model was trained on: a folder, archive, .npz or hf:NAME.
        nonmembers: images of the same source that it was not; a third of them calibrates.
        seed: of the choice of that third.
        console: shows what is read.

    Raises:
        InputError: something cannot be read, there are too few images, or some are in both.
    """
    path = find_weights(weights, which)
    found = read_weights(path)
    known, others = (_labelled(read_images(data, found.spec, console), found.spec) for data in (members, nonmembers))
    known_ids = set(known.ids)
    in_both = sum(digest in known_ids for digest in others.ids)
    if in_both:
        raise InputError("nonmembers", f"{in_both} of its images are in members too", remedy="take them out of one")
    for name, images, least in (("members", known, MIN_ROLE_IMAGES), ("nonmembers", others, 3 * MIN_ROLE_IMAGES)):
        if len(images) < least:
            raise InputError(name, got=len(images), wanted=f"at least {least} images")
    order = np.random.default_rng(seed).permutation(len(others))
    third = len(order) // 3
    return _subject(
        path,
        found,
        (known, others.take(np.sort(order[third:])), others.take(np.sort(order[:third]))),
        certified=False,
        remarks=["split not certified by the trainer: members and non-members are what somebody says they are"],
    )


def read_images(data: str, spec: ModelSpec, console: Console) -> ImageSet:
    """Images in the size and with the channels that a model makes.

    Raises:
        InputError: they cannot be read.
    """
    return load_image_set(data, console, (*spec.image_size, spec.channels))


def _labelled(images: ImageSet, spec: ModelSpec) -> LabelledImages:
    """All of a set; classes by their names where the model knows them."""
    labels = None
    if spec.class_names and images.labels is not None:
        numbers = {name: i for i, name in enumerate(spec.class_names)}
        unknown = len(spec.class_names)
        table = np.array([numbers.get(name, unknown) for name in images.class_names], np.int64)
        labels = table[images.labels]
    return LabelledImages(images.images[np.arange(len(images))], images.sha256_px, labels)


def _subject(
    path: Path,
    weights: Weights,
    roles: tuple[LabelledImages, LabelledImages, LabelledImages],
    *,
    certified: bool,
    mirrored: bool = False,
    remarks: Sequence[str] = (),
    manifest: str = "",
) -> Subject:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Subject(
        path,
        sha256,
        weights.spec,
        weights.metadata,
        *roles,
        certified=certified,
        mirrored=mirrored,
        remarks=tuple(remarks),
        manifest=manifest,
    )
