"""What is audited: a model's exact weights, and pictures of three roles that were settled before it was trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from maskdm.config.schema import ModelSpec
from maskdm.data.dataset import load_image_set, read_dataset
from maskdm.data.image_set import ImageSet
from maskdm.data.manifest import Manifest, read_manifest
from maskdm.data.split import Role, group_names
from maskdm.errors import InputError
from maskdm.models.weights import find, read
from maskdm.runtime.console import Console
from maskdm.training.runs import read_config

ROLES: tuple[Role, ...] = ("member", "heldout", "calibration")
LEAST, MOST = 10, 10_000
"""Pictures of a role without which nothing is asked, and that are read at most."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of one role.

    Attributes:
        images: (N, H, W, C) uint8, as the model saw such.
        ids: what names each of them: the hash of its pixels.
        labels: (N,) numbers of classes, or None.
        groups: likewise names of groups, or None.
    """

    images: np.ndarray
    ids: tuple[str, ...]
    labels: np.ndarray | None = None
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> Pictures:
        """Those in `rows`."""
        return Pictures(
            self.images[rows],
            tuple(self.ids[row] for row in rows),
            None if self.labels is None else self.labels[rows],
            None if self.groups is None else tuple(self.groups[row] for row in rows),
        )

    def some(self, count: int, seed: int) -> Pictures:
        """At most `count` of them, at random."""
        if len(self) <= count:
            return self
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    def shuffled(self, seed: int) -> Pictures:
        """All of them, in random order."""
        return self.take(np.random.default_rng(seed).permutation(len(self)))

    def unique(self) -> Pictures:
        """Exact duplicates once."""
        first = {digest: row for row, digest in reversed(list(enumerate(self.ids)))}
        return self.take(np.array(sorted(first.values()), np.int64))


@dataclass(frozen=True)
class Subject:
    """One audit's model and pictures.

    Attributes:
        weights: the file that is audited.
        sha256: of it.
        spec, facts: what it says of itself.
        members, heldout, calibration: pictures that it was trained on, and that it was not.
        certified: whether the trainer drew the split by a secret before the first step.
        remarks: what a reader must know of the pictures.
        manifest: the hash of the record of the split, or "".
    """

    weights: Path
    sha256: str
    spec: ModelSpec
    facts: dict[str, str | int | float | None]
    members: Pictures
    heldout: Pictures
    calibration: Pictures
    certified: bool
    remarks: tuple[str, ...] = ()
    manifest: str = ""

    def sized(self, members: int, heldout: int, calibration: int, seed: int) -> Subject:
        """With at most so many pictures of each role."""
        return replace(
            self,
            members=self.members.some(members, seed),
            heldout=self.heldout.some(heldout, seed + 1),
            calibration=self.calibration.some(calibration, seed + 2),
        )


def of_run(run: Path, which: str, console: Console, *, seed: int, group_by: str | None = None) -> Subject:
    """A run's weights, and its own split; of each role at most 10,000 pictures, at random.

    Raises:
        InputError: no such run or weights, too few pictures of a role, or anything that is not as recorded.
    """
    _require_run(run)
    path = find(run, which)
    found, manifest = read(path), read_manifest(run)
    if found.facts.get("manifest_sha256") != manifest.sha256:
        raise InputError(
            f"audit: {path} was not trained by the manifest of {run}; put back the files of one run, or train it again"
        )
    pictures = read_dataset(read_config(run).data, console).images
    manifest.check(pictures)  # by the bytes of every file
    members, heldout, calibration = _roles(run, manifest, pictures, found.spec, seed, group_by)
    certified = manifest.head.split == "keyed"
    remarks = []
    if not certified:
        remarks.append("the held-out pictures were given (data.heldout_by), not drawn: the split is not certified")
    if manifest.head.parent_sha256 is not None:
        remarks.append(
            "training began with another run's weights: what that run saw is not asked about here, audit it by itself"
        )
    return Subject(
        weights=path,
        sha256=_sha256(path),
        spec=found.spec,
        facts=found.facts,
        members=members,
        heldout=heldout,
        calibration=calibration,
        certified=certified,
        remarks=tuple(remarks),
        manifest=manifest.sha256,
    )


def _require_run(run: Path) -> None:
    if (run / "config.yaml").is_file():
        return
    owner = run.parent.parent
    if run.is_file() and (owner / "config.yaml").is_file():
        raise InputError(f"audit: {run} belongs to a run; audit it by --weights or --stage: maskdm audit {owner}")
    raise InputError(f"audit: {run} is no run; give a run's folder, or --members and --nonmembers with a weights file")


def _roles(
    run: Path, manifest: Manifest, pictures: ImageSet, spec: ModelSpec, seed: int, group_by: str | None
) -> list[Pictures]:
    """Members, held-out and calibration pictures, each as the manifest names it to the last pixel."""
    good = [record for record in manifest.records if record.sha256_px is not None]
    groups = _groups(pictures, group_by, [record.group for record in good])
    found = []
    for role in ROLES:
        rows = manifest.indices(role)
        if len(rows) < LEAST:
            raise InputError(
                f"audit: {run} has {len(rows)} pictures of the role {role}, wanted at least {LEAST}; without them "
                "membership cannot be told: train with more data.heldout and data.calibration, or give --members and "
                "--nonmembers"
            )
        if len(rows) > MOST:
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST])
        part = Pictures(
            pictures.images[rows],
            tuple(str(good[row].sha256_px) for row in rows),
            None if pictures.labels is None or not spec.class_names else pictures.labels[rows],
            None if groups is None else tuple(groups[row] for row in rows),
        )
        _check_pixels(part)
        found.append(part)
    return found


def of_folders(weights: Path, which: str, members: str, nonmembers: str, console: Console, seed: int) -> Subject:
    """A model and pictures of which somebody says that it was, and was not, trained on them.

    A third of the non-members calibrates.
    """
    path = find(weights, which)
    found = read(path)
    given = ((members, "--members"), (nonmembers, "--nonmembers"))
    sets = [pictures_of(name, option, found.spec, console) for name, option in given]
    parts = [_pictures(images, found.spec) for images in sets]
    known = set(parts[0].ids)
    both = sum(digest in known for digest in parts[1].ids)
    if both:
        raise InputError(f"--nonmembers: {both} of its pictures are in --members too; take them out of one")
    order = np.random.default_rng(seed).permutation(len(parts[1]))
    third = len(order) // 3
    if min(len(parts[0]), third) < LEAST:
        raise InputError(
            f"audit: got {len(parts[0])} members and {len(order)} non-members, wanted at least {LEAST} and {3 * LEAST}"
        )
    return Subject(
        path,
        _sha256(path),
        found.spec,
        found.facts,
        parts[0],
        parts[1].take(np.sort(order[third:])),
        parts[1].take(np.sort(order[:third])),
        certified=False,
        remarks=("split not certified by the trainer: members and non-members are what somebody says they are",),
    )


def pictures_of(data: str, option: str, spec: ModelSpec, console: Console) -> ImageSet:
    """Pictures that `option` names, in the size that a model makes."""
    try:
        return load_image_set(data, console, (*spec.image_size, spec.channels))
    except InputError as error:
        raise InputError(f"{option}: {error}") from None


def _pictures(images: ImageSet, spec: ModelSpec) -> Pictures:
    """All of a set; classes by their names where the model knows them."""
    labels = None
    if spec.class_names and images.labels is not None:
        numbers = {name: i for i, name in enumerate(spec.class_names)}
        unknown = len(spec.class_names)
        table = np.array([numbers.get(name, unknown) for name in images.class_names], np.int64)
        labels = table[images.labels]
    return Pictures(images.images[np.arange(len(images))], images.sha256_px, labels)


def _groups(pictures: ImageSet, group_by: str | None, recorded: Sequence[str | None]) -> list[str] | None:
    """The names of groups: by `--group-by`, else as recorded, else none."""
    if group_by is not None:
        return group_names(pictures.names, group_by)
    if any(name is None for name in recorded):
        return None
    return [str(name) for name in recorded]


def _check_pixels(pictures: Pictures) -> None:
    """Refuses decoded pictures that are not those of the manifest."""
    for image, digest in zip(pictures.images, pictures.ids, strict=True):
        if hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() != digest:
            raise InputError(
                "audit: a decoded picture is not the one that the manifest names; remove the cache of decoded pictures "
                "(data.cache_dir), and it is made again"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stage_weights(run: Path, stage: str | None, which: str) -> str:
    """The name of a stage's weights: ("finetune" or its number, "ema") -> "finetune-ema"."""
    if stage is None:
        return which
    names = [each.name for each in read_config(run).stages]
    if stage.isdigit() and int(stage) < len(names):
        stage = names[int(stage)]
    if stage not in names:
        numbered = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
        raise InputError(f"--stage: got {stage!r}, wanted one of {numbered}")
    return f"{stage}-{which}"


def trained_for(facts: dict[str, str | int | float | None]) -> float | None:
    """How often the model saw each member on average, as far as its weights say."""
    images, members = facts.get("images"), facts.get("members")
    return float(images) / float(members) if images and members else None


def described(subject: Subject) -> dict[str, object]:
    """For the page and the record; no name of a picture."""
    return {
        "weights": subject.weights.name,
        "weights_sha256": subject.sha256,
        "manifest_sha256": subject.manifest,
        "split": "certified" if subject.certified else "not certified",
        "model": json.loads(subject.spec.model_dump_json()),
        "facts": subject.facts,
        "epochs": trained_for(subject.facts),
    }
