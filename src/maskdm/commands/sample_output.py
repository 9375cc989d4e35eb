"""Where `maskdm sample` writes: a folder of PNGs, or an .npz. Every batch is there as soon as it is made.

Beside the images lies samples.json, which says how they were made and of which seed and class each is. By it the same
command goes on where it was cut off, and other samples are not mixed with them.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from maskdm import __version__
from maskdm.data.decode import Pixels
from maskdm.data.write import save_grid, save_images
from maskdm.errors import InputError, shown
from maskdm.files import make_folder, replacing, sweep, write_json
from maskdm.reports.formatting import format_plural
from maskdm.sampling.sample import SamplingConfig

RECORD, GRID = "samples.json", "grid.png"
OURS = re.compile(r"seed-\d{6,}(-\d+)?\.png")
"""Names of samples, also of those from before there was a record."""
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MOST_OF_GRID, PIXELS_OF_GRID = 256, 2**24
"""A grid has no more images, and no more pixels."""
ELSEWHERE = "choose another --output"


@dataclass(frozen=True)
class Sample:
    """What an image is of.

    Attributes:
        seed: of its noise.
        repeat: how many images before it were made of this seed.
        class_name: its class, "" for none.
    """

    seed: int
    repeat: int
    class_name: str


@dataclass(frozen=True)
class Plan:
    """What is to be made.

    Attributes:
        settings: all that decides an image besides its own seed and class, as JSON has it.
        images: by the names of their files, in the order of their numbers.
        shape: (H, W, C) of each.
    """

    settings: Mapping[str, Any]
    images: Mapping[str, Sample]
    shape: tuple[int, int, int]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the files."""
        return tuple(self.images)


def plan_samples(config: SamplingConfig, num: int, settings: Mapping[str, Any]) -> Plan:
    """The first `num` images of a configuration, each with a name: its seed, and a number where a seed has several."""
    streams = [config.stream(i) for i in range(num)]
    several, counts, images = len({seed for seed, _ in streams}) < num, Counter[int](), {}
    for i, (seed, repeat) in enumerate(streams):
        name = f"seed-{seed:06d}" + (f"-{counts[seed]}" if several else "") + ".png"
        images[name] = Sample(seed, repeat, config.class_name(i))
        counts[seed] += 1
    shape = (*config.denoiser.image_size, config.denoiser.channels)
    return Plan(json.loads(json.dumps(settings)), images, shape)


class Samples(Protocol):
    """Images in their place.

    Attributes:
        plan: what is to be made.
    """

    plan: Plan

    def open(self, overwrite: bool) -> None:
        """Makes the place, or finds what an interrupted call left there.

        Raises:
            InputError: something else is there.
        """
        ...

    def missing(self, numbers: range) -> list[int]:
        """Those of these images that are yet to be made."""
        ...

    def read(self, numbers: range) -> Pixels:
        """Images that are there, (N, H, W, C)."""
        ...

    def write(self, numbers: range, images: Pixels) -> None:
        """Those of these images that are missing, from all of them, (N, H, W, C)."""
        ...

    def progress(self) -> str:
        """How many are there, and where, for who interrupted it."""
        ...

    def finish(self) -> str:
        """What is made of all of them; says where they are."""
        ...


class SampleFolder:
    """A PNG for each image, and a grid of them; see `Samples`."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan

    def open(self, overwrite: bool) -> None:
        """See `Samples`; samples that are replaced are removed first, and files of others stay."""
        record = self._record()
        there = {path.name for path in self.folder.glob("*") if path.suffix.lower() in IMAGES}
        ours = there & record["images"].keys() if record else {name for name in there if OURS.fullmatch(name)}
        if ours or record:
            ours |= there & {GRID}
        self._refuse_mixing(there - ours, overwrite)
        if difference := self._difference(record, ours):
            if not overwrite:
                raise InputError("output", f"{self.folder} holds {difference}", remedy=f"{ELSEWHERE}, or --overwrite")
            for name in ours:
                (self.folder / name).unlink(missing_ok=True)
            record = None
        make_folder(self.folder, "output")
        sweep(self.folder)
        images = {name: asdict(sample) for name, sample in self.plan.images.items()}
        known = {name: each for name, each in (record["images"] if record else {}).items() if name not in images}
        settings = dict(self.plan.settings)
        write_json(self.folder / RECORD, {"maskdm": __version__, "settings": settings, "images": known | images})

    def _record(self) -> dict[str, Any] | None:
        """What lies there already, as it was recorded; None where nothing was."""
        path = self.folder / RECORD
        if not path.exists():
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(record["settings"], dict) and isinstance(record["images"], dict):
                made = {name: each for name, each in record["images"].items() if (self.folder / name).is_file()}
                return record | {"images": made}  # an interrupted command had recorded what it was to make
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise InputError("output", f"{path} is not a record of samples", remedy=f"{ELSEWHERE}, or remove it")

    def _refuse_mixing(self, others: set[str], overwrite: bool) -> None:
        taken = sorted(others & {*self.plan.images, GRID})
        if taken:
            raise InputError("output", f"{self.folder / taken[0]} was not made by maskdm sample", remedy=ELSEWHERE)
        if others and not overwrite:
            raise InputError(
                "output",
                f"{self.folder} holds {format_plural(len(others), 'image')} of another origin",
                remedy=f"{ELSEWHERE}, or --overwrite, which leaves those where they are",
            )

    def _difference(self, record: dict[str, Any] | None, ours: set[str]) -> str:
        """In what the samples that are there differ from those to be made, "" where they do not."""
        if record is None:
            return "samples of which no settings are recorded" if ours else ""
        was, now = record["settings"], self.plan.settings
        if was.get("model") != now.get("model"):
            return "samples of another model"
        changed = [key for key in now if was.get(key) != now[key]]
        if changed:
            key = changed[0]
            return f"samples of other settings ({key} was {_short(was.get(key))}, now it is {_short(now[key])})"
        recorded = {tuple(sorted(sample.items())): name for name, sample in record["images"].items()}
        for name, sample in self.plan.images.items():
            fields = asdict(sample)
            if record["images"].get(name, fields) != fields:
                return f"samples of other classes ({name})"
            if recorded.get(tuple(sorted(fields.items())), name) != name:
                return f"the image of seed {sample.seed} under another name"
        return ""

    def missing(self, numbers: range) -> list[int]:
        """See `Samples`. Files are written whole or not at all, so that one that is there is done."""
        names = self.plan.names
        return [i for i in numbers if not (self.folder / names[i]).is_file()]

    def read(self, numbers: range) -> Pixels:
        """See `Samples`."""
        names = self.plan.names
        return np.stack([self._read(names[i]) for i in numbers])

    def _read(self, name: str) -> Pixels:
        try:
            with Image.open(self.folder / name) as image:
                return np.asarray(image).reshape(self.plan.shape)
        except (OSError, ValueError, SyntaxError) as error:
            problem = f"{self.folder / name} is damaged ({error})"
            raise InputError("output", problem, remedy="remove it and run the same command again") from None

    def write(self, numbers: range, images: Pixels) -> None:
        """See `Samples`."""
        names, missing = self.plan.names, set(self.missing(numbers))
        kept = [row for row, i in enumerate(numbers) if i in missing]
        save_images(images[kept], self.folder, [names[numbers[row]].removesuffix(".png") for row in kept])

    def progress(self) -> str:
        """See `Samples`."""
        num = len(self.plan.images)
        return f"{num - len(self.missing(range(num))):,} of {format_plural(num, 'image')} are in {self.folder}"

    def finish(self) -> str:
        """See `Samples`; the grid has the first images, with their classes above them."""
        height, width, _ = self.plan.shape
        num = len(self.plan.images)
        shown_images = min(num, MOST_OF_GRID, max(PIXELS_OF_GRID // (height * width), 1))
        captions = [sample.class_name for sample in list(self.plan.images.values())[:shown_images]]
        save_grid(self.read(range(shown_images)), self.folder / GRID, captions=captions)
        which = "side by side" if shown_images == num else f"the first {shown_images} side by side"
        return f"{format_plural(num, 'image')} in {self.folder}, {which} in {self.folder / GRID}"


class SampleArchive:
    """An .npz, made in the end of a folder beside it, NAME.npz.partial, which then goes; see `Samples`."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self._folder = SampleFolder(path.with_name(f"{path.name}.partial"), plan)
        self._whole = False
        self._images: Pixels | None = None

    def open(self, overwrite: bool) -> None:
        """See `Samples`."""
        if self.path.exists():
            self._whole = self._recorded() == self._content()
            if not self._whole and not overwrite:
                raise InputError("output", f"{self.path} is there already", remedy=f"{ELSEWHERE}, or --overwrite")
        if not self._whole:
            make_folder(self.path.parent, "output")
            self._folder.open(overwrite=True)

    def _content(self) -> dict[str, Any]:
        images = {name: asdict(sample) for name, sample in self.plan.images.items()}
        return {"settings": dict(self.plan.settings), "images": images}

    def _recorded(self) -> object:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                return json.loads(archive["samples"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def missing(self, numbers: range) -> list[int]:
        """See `Samples`."""
        return [] if self._whole else self._folder.missing(numbers)

    def read(self, numbers: range) -> Pixels:
        """See `Samples`."""
        if not self._whole:
            return self._folder.read(numbers)
        if self._images is None:
            with np.load(self.path, allow_pickle=False) as archive:
                self._images = archive["images"]
        images: Pixels = self._images[list(numbers)]
        return images

    def write(self, numbers: range, images: Pixels) -> None:
        """See `Samples`."""
        self._folder.write(numbers, images)

    def progress(self) -> str:
        """See `Samples`."""
        return self._folder.progress()

    def finish(self) -> str:
        """See `Samples`; image after image, so that memory does not grow with their number."""
        num = len(self.plan.images)
        if not self._whole:
            header = {"descr": "|u1", "fortran_order": False, "shape": (num, *self.plan.shape)}
            record = np.frombuffer(json.dumps(self._content()).encode(), np.uint8)
            with replacing(self.path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                with archive.open("images.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    for i in range(num):
                        file.write(self._folder.read(range(i, i + 1)).tobytes())
                with archive.open("samples.npy", "w") as file:
                    np.lib.format.write_array(file, record)
            self._whole = True
            shutil.rmtree(self._folder.folder, ignore_errors=True)
        return f"{format_plural(num, 'image')} in {self.path}"


def open_samples(output: Path, plan: Plan) -> Samples:
    """The place that `output` names: a folder, or an .npz."""
    return SampleArchive(output, plan) if output.suffix == ".npz" else SampleFolder(output, plan)


def _short(value: object) -> str:
    text = shown(tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value)
    return text if len(text) <= 20 else f"{text[:16]}..."
