"""A thousand configurations that nobody would write: each is refused in one line, or trains."""

from __future__ import annotations

import random
from pathlib import Path
from typing import get_args

import pytest
from chaos import TINY, command, write_images
from pydantic import BaseModel

from maskdm.config.schema import VARIANTS, Config
from maskdm.config.stage_config import StageConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

STRANGE = (
    "0", "1", "-1", "2", "3", "0.5", "1.0", "1e3", "1e308", "-1e308", "1e-308", "9999999999999", "-9999999999999",
    ".nan", ".inf", "-.inf", "null", "true", "[]", "{}", "''", "auto", "none", "no", "yes", "[1, 2]", "[0.1, a]",
    "{a: 1}", "{kind: patch}", "{kind: nothing}", "*a", "&a [*a]", "!!python/object:os.system {}", "0x10", "1_000",
    "2026-11-28", "~", "'\\0'", "é", "a" * 5000, "[[[[[]]]]]", "- 1", ": ", "{", "]", "%", "@", "`",
)  # fmt: skip
USUAL = {
    "model.backbone": ("uvit", "jit", "unet", "math:sin", "nothing:Net"),
    "process.kind": ("ddpm", "flow", "edm", "vp", "ve"),
    "process.prediction": ("eps", "x0", "v", "F", "velocity"),
    "process.schedule": ("linear", "cosine"),
    "stages.0.mask.kind": ("none", "patch", "block", "crop", "route"),
    "stages.0.mask.ratio": ("0", "0.5", "0.9", "0.999", "1"),
    "data.image_size": ("1", "2", "3", "7", "8", "[8, 4]"),
    "data.channels": ("1", "2", "3", "4"),
    "model.patch_size": ("1", "2", "3", "4", "8"),
    "train.parallel": ("ddp", "fsdp"),
    "eval.scores": ("pixels", "encoder", "inception", "nothing.pt"),
}
"""Values that mean something, so that many configurations get far."""
HEAVY = {"data.path", "data.cache_dir", "train.device", "train.compile", "log.track"}


def keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every setting below a section, by its full name."""
    found = []
    for name, field in section.model_fields.items():
        inner = [t for t in (field.annotation, *get_args(field.annotation)) if _is_section(t)]
        found += [key for t in inner for key in keys(t, f"{prefix}{name}.")] or [prefix + name]
    return sorted(set(found) - HEAVY)


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def all_keys() -> list[str]:
    """Those of every backbone, every process and both stages too."""
    variants = [
        key
        for section, kinds in VARIANTS.items()
        for kind in kinds.classes.values()
        for key in keys(kind, f"{section}.")
    ]
    stages = [key for i in range(2) for key in keys(StageConfig, f"stages.{i}.")]
    return sorted({*keys(Config), *variants, *stages} - HEAVY)


def configuration(dice: random.Random, names: list[str]) -> list[str]:
    """One to four settings; half of the values are strange, half usual ones."""
    words = []
    for _ in range(dice.randint(1, 4)):
        if dice.random() < 0.5:
            key = dice.choice(list(USUAL))
            words.append(f"{key}={dice.choice(USUAL[key])}")
        else:
            words.append(f"{dice.choice(names)}={dice.choice(STRANGE)}")
    return words


def test_a_thousand_configurations(tmp_path: Path):
    data, names, dice = write_images(tmp_path / "images"), all_keys(), random.Random(0)
    assert len(names) > 80
    trained, faults = 0, []
    for i in range(1000):
        words = configuration(dice, names)
        line = ["train", "--data", str(data), "--output-dir", str(tmp_path / str(i)), *TINY, *words]
        outcome = command(line, tmp_path, timeout=60)
        try:
            outcome.check()
        except AssertionError as error:
            faults.append((words, str(error)[-1500:]))
        trained += outcome.code == 0
        if outcome.code == 2 and (tmp_path / str(i)).exists():
            faults.append((words, "refused, but a folder was made"))
    print(f"{trained} trained, {1000 - trained} refused, {len(faults)} faults")
    assert not faults, "\n\n".join(f"{words}\n{error}" for words, error in faults)
    assert 100 < trained < 900
