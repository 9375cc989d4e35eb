"""The files of an audit: `audit.json`, its record for programs and pages, and `scores.npz`, one row for every image.

`audit.json` names no image. Its keys, in the schema maskdm-audit/2:

    schema, statistic   "maskdm-audit/2", and the name of the primary statistic
    maskdm, command     the version and the command line that made it
    seed, profile       as asked for; profile is quick, standard or full
    seconds             how long it took
    verdict             name, summary, exit_code; auc, low, high of the primary statistic (null where none may be
                        headlined); detectable: the AUC that would have been found four times in five
    subject             weights (a file's name), weights_sha256, manifest_sha256 ("" without one), split (certified or
                        not certified), model (its specification), metadata (what the weights say of their training),
                        epochs (how often each member was seen on average, or null)
    remarks             sentences that a reader must know
    images              members, heldout, calibration, generated: numbers of images; groups: of the first three, the
                        numbers of groups, or null
    error               members, heldout: mean squared error of the estimated image
    attacks             the primary statistic, then each attack: name, auc, low, high (95 %), members, heldout, raw_auc
                        (before calibration), balanced_accuracy, p (of secondary ones adjusted by Holm), and at_fpr:
                        for "0.01" and "0.001" null where not resolved, else tpr, tpr_interval, fpr, fpr_interval,
                        epsilon_lower_bound
    set_p               p-value for all members at once, or null
    controls            name, value, low, high (99 %), passed, wanted
    generation          measures of copying: name, value, low, high (95 %), n, baseline, baseline_low, baseline_high
                        (of held-out images, or null), note
    classes             class, auc, low, high, members, heldout, for each class that is large enough
    groups, outliers    the same without class, or null: groups by the mean of their images; the quarter of images that
                        are least like others

`scores.npz` holds member_ids and heldout_ids (hashes of pixels), member_groups and heldout_groups (numbers, where there
are groups), and for every attack NAME/members, NAME/heldout, NAME/raw_members and NAME/raw_heldout. Both files say who
was in the training set: only their owner can read them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskdm import __version__
from maskdm.auditing import statistics
from maskdm.auditing.attacks import STATISTIC
from maskdm.auditing.audit import Audit
from maskdm.auditing.scoring import ScoredAttack
from maskdm.auditing.statistics import Auc, OperatingPoint
from maskdm.auditing.subject import Subject
from maskdm.errors import InputError
from maskdm.experiments.ratios import holm
from maskdm.files import make_folder, write_bytes, write_json

SCHEMA = "maskdm-audit/2"
RECORD, SCORES = "audit.json", "scores.npz"
FPR_TARGETS = (0.01, 0.001)
"""False positive rates at which attacks are recorded."""


def save_audit(folder: Path, audit: Audit, command: str) -> dict[str, Any]:
    """Writes `audit.json` and `scores.npz`, for their owner alone, into `folder`, which is made.

    Args:
        folder: where.
        audit: what was found.
        command: the command line that makes it again.

    Returns:
        The content of `audit.json`.

    Raises:
        InputError: the folder cannot be made.
        StorageError: a file cannot be written.
    """
    make_folder(folder)
    record = audit_record(audit, command)
    write_json(folder / RECORD, record, private=True)
    content = io.BytesIO()
    np.savez(content, **_score_arrays(audit))
    write_bytes(folder / SCORES, content.getvalue(), private=True)
    return record


# --- writing ---------------------------------------------------------------------------------------------------------


def audit_record(audit: Audit, command: str) -> dict[str, Any]:
    """The content of `audit.json`, with the keys that are described above; it names no image.

    Args:
        audit: what was found.
        command: the command line that makes it again.
    """
    primary, *secondary = audit.scored
    p_values = [primary.auc.p_value, *holm([each.auc.p_value for each in secondary])]
    groups = primary.groups
    return {
        "schema": SCHEMA,
        "statistic": STATISTIC,
        "maskdm": __version__,
        "command": command,
        "seed": audit.options.seed,
        "profile": audit.options.profile,
        "seconds": audit.seconds,
        "verdict": asdict(audit.verdict) | {"exit_code": audit.verdict.exit_code},
        "subject": _subject_row(audit.subject),
        "remarks": list(audit.subject.remarks),
        "images": {
            "members": len(audit.subject.members),
            "heldout": len(audit.subject.heldout),
            "calibration": len(audit.subject.calibration),
            "generated": 0 if audit.generated is None else len(audit.generated),
            "groups": None if groups is None else [len(set(role)) for role in groups],
        },
        "error": {"members": audit.errors[0], "heldout": audit.errors[1]},
        "attacks": [_attack_row(each, p) for each, p in zip(audit.scored, p_values, strict=True)],
        "set_p": audit.set_p,
        "controls": [asdict(control) for control in audit.controls],
        "generation": [asdict(share) for share in audit.copies],
        "classes": [{"class": name, **_auc_row(found)} for name, found in audit.classes],
        "groups": None if audit.groups is None else _auc_row(audit.groups),
        "outliers": None if audit.outliers is None else _auc_row(audit.outliers),
    }


def _subject_row(subject: Subject) -> dict[str, Any]:
    return {
        "weights": subject.weights.name,
        "weights_sha256": subject.sha256,
        "manifest_sha256": subject.manifest,
        "split": "certified" if subject.certified else "not certified",
        "model": subject.spec.model_dump(mode="json"),
        "metadata": subject.metadata,
        "epochs": subject.epochs,
    }


def _auc_row(found: Auc) -> dict[str, Any]:
    low, high = found.interval()
    return {"auc": found.value, "low": low, "high": high, "members": found.members, "heldout": found.heldout}


def _attack_row(each: ScoredAttack, p: float) -> dict[str, Any]:
    return {
        "name": each.name,
        **_auc_row(each.auc),
        "raw_auc": each.raw_auc.value,
        "balanced_accuracy": statistics.balanced_accuracy(each.members, each.heldout),
        "p": p,
        "at_fpr": {f"{target:g}": _point_row(each.operating_point(target)) for target in FPR_TARGETS},
    }


def _point_row(point: OperatingPoint | None) -> dict[str, Any] | None:
    if point is None:
        return None
    return {
        "tpr": point.tpr,
        "tpr_interval": point.tpr_interval(),
        "fpr": point.fpr,
        "fpr_interval": point.fpr_interval(),
        "epsilon_lower_bound": point.epsilon(),
    }


def _score_arrays(audit: Audit) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        "member_ids": np.array(audit.subject.members.ids),
        "heldout_ids": np.array(audit.subject.heldout.ids),
    }
    if audit.primary.groups is not None:  # numbers, no names: who belongs together
        for role, groups in zip(("member", "heldout"), audit.primary.groups[:2], strict=True):
            arrays[f"{role}_groups"] = np.unique(np.array(groups), return_inverse=True)[1]
    for each in audit.scored:
        arrays |= {f"{each.name}/members": each.members, f"{each.name}/heldout": each.heldout}
        arrays |= {f"{each.name}/raw_members": each.raw[0], f"{each.name}/raw_heldout": each.raw[1]}
    return arrays


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavedAudit:
    """An audit as its files hold it.

    Attributes:
        folder: where.
        record: `audit.json`.
        members, heldout: primary scores by the ids of images.
        groups: numbers of groups by the ids of members and of held-out images, where they have any.
    """

    folder: Path
    record: Mapping[str, Any]
    members: Mapping[str, float]
    heldout: Mapping[str, float]
    groups: tuple[Mapping[str, int], Mapping[str, int]] | None = None


def read_audit(folder: Path) -> SavedAudit:
    """The files that `save_audit` wrote.

    Args:
        folder: where, or the folder of the run.

    Raises:
        InputError: they are not there, cannot be read, or are of another version.
    """
    if (folder / "audit" / RECORD).is_file():
        folder = folder / "audit"
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        with np.load(folder / SCORES, allow_pickle=False) as arrays:
            members, heldout = (
                dict(zip(map(str, arrays[f"{role}_ids"]), arrays[f"primary/{name}"].tolist(), strict=True))
                for role, name in (("member", "members"), ("heldout", "heldout"))
            )
            groups = None
            if "member_groups" in arrays:
                groups = (
                    dict(zip(members, arrays["member_groups"].tolist(), strict=True)),
                    dict(zip(heldout, arrays["heldout_groups"].tolist(), strict=True)),
                )
    except FileNotFoundError:
        raise InputError(str(folder), "holds no audit", remedy="run maskdm audit first") from None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            str(folder), f"holds an audit that cannot be read ({type(error).__name__})", remedy="audit again"
        ) from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or record.get("statistic") is None:
        schema = record.get("schema") if isinstance(record, dict) else None
        raise InputError(
            str(folder), "holds an audit of another version", got=schema, wanted=SCHEMA, remedy="audit it again"
        )
    return SavedAudit(folder, record, members, heldout, groups)
