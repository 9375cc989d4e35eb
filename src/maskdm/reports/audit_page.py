"""The pages of an audit, `report.html` and `report.md`: the verdict first, then what it stands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.auditing.attacks import PRIMARY
from maskdm.auditing.audit import Audit
from maskdm.auditing.copies import all_pixels, nearest_neighbors
from maskdm.auditing.scoring import ScoredAttack
from maskdm.auditing.statistics import Float64, effective_n, roc, share_interval
from maskdm.auditing.subgroups import MIN_GROUP_SIZE, most_exposed
from maskdm.data.write import to_image
from maskdm.files import write_text
from maskdm.reports.charts import ROC_FLOOR, Chart, roc_chart, score_histogram
from maskdm.reports.drawing import standalone
from maskdm.reports.formatting import format_duration
from maskdm.reports.html import PageImage, Table, encode_png, render_page

STATES = {
    "LEAKAGE DETECTED": "bad",
    "NO LEAKAGE DETECTED BY THESE ATTACKS": "good",
    "INCONCLUSIVE": "warn",
    "INVALID": "bad",
}
"""How the page marks each verdict."""
LIMITS = (
    "It finds what these attacks find. Shadow models, attacks that are not listed, and attacks to come may find more.",
    "An average hides people: a few images may leak much while most leak nothing. The columns at 1 % and 0.1 % false "
    "positives, the subgroups and the most exposed members look for that, as far as there are enough images.",
    "It says nothing of images that were not asked about: those that another run saw before this one started from its "
    "weights, and copies of an image that exist elsewhere.",
    "Images that were not generated may be generated yet: a copy that was not found is not a copy that cannot be.",
    "It is no guarantee. Only training with differential privacy gives one, and this model was not trained so.",
)
ATTACK_NOTE = (
    f"Primary is the mean of {', '.join(PRIMARY)}, fixed before anything was seen; it alone decides, at 99 %. "
    "The others are secondary: of so many, some intervals miss one half by chance, so their p-values are adjusted for "
    "their number (Holm). The number behind a name is sigma, the noise level at which the model is asked. loss: its "
    "error; sima: the noise it predicts for the clean image; pia, pian: whether its prediction stays the same when it "
    "is mixed in; secmi: whether a step on and back returns. AUC: the chance that a member scores above a held-out "
    "image; one half tells nothing. TPR at 1 % FPR: the share of members identified at a threshold that takes at most "
    "1 % of held-out images for members. Epsilon: the least that differential privacy would have to allow, a lower "
    "bound from these attacks."
)
ATTACK_COLUMNS = [
    "attack",
    "AUC",
    "95 %",
    "raw AUC",
    "accuracy",
    "TPR at 1 % FPR",
    "TPR at 0.1 % FPR",
    "epsilon ≥",
    "p",
]
CONTROL_COLUMNS = ["control", "value", "99 % interval", "outcome", "wanted"]
COPY_COLUMNS = ["generated images that are", "share", "same share of held-out images", "n", "note"]
SUBGROUP_COLUMNS = ["subgroup", "AUC", "95 %", "members"]
MAX_NEIGHBORS, MAX_EXPOSED = 16, 20
"""Generated images that are shown beside members, and exposed members that are shown."""
ROC_POINTS = 120


def write_audit_pages(folder: Path, audit: Audit, record: Mapping[str, Any], *, include_training_images: bool) -> Path:
    """Writes `report.html`, `report.md` and `roc.svg`; where they show training images, for their owner alone.

    Args:
        folder: where; it exists.
        audit: what was found.
        record: the same as `audit.json` has it.
        include_training_images: show the most exposed members, and members that generated images are near to.

    Returns:
        The HTML page.

    Raises:
        StorageError: a file cannot be written.
    """
    roc_drawing = primary_roc(audit.primary)
    histogram = score_histogram(audit.primary.members, audit.primary.heldout)
    page = _values(audit, record, [roc_drawing, histogram], include_training_images)
    path = folder / "report.html"
    write_text(path, render_page("audit.html", **page), private=include_training_images)
    write_text(folder / "report.md", audit_markdown(record), private=include_training_images)
    write_text(folder / "roc.svg", standalone(roc_drawing.svg), private=include_training_images)
    return path


def audit_markdown(record: Mapping[str, Any]) -> str:
    """An audit's record for a terminal or a model card."""
    parts = [f"# {record['verdict']['name']}", record["verdict"]["summary"], *record["remarks"]]
    parts.append("\n".join(f"- {key}: {value}" for key, value in _subject(record)))
    parts += ["## Attacks", _markdown_table(_attacks(record)), _attack_note(record)]
    parts += ["## Controls", _markdown_table(_controls(record))]
    for title, table in (("Subgroups", _subgroups(record)), ("Generated images", _copies(record))):
        if table.rows:
            parts += [f"## {title}", _markdown_table(table)]
    parts += ["## What this audit cannot show", "\n".join(f"- {each}" for each in LIMITS)]
    parts += ["## Command", f"    {record['command']}"]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _values(audit: Audit, record: Mapping[str, Any], charts: list[Chart], include_images: bool) -> dict[str, object]:
    """All that the template shows."""
    return {
        "verdict": record["verdict"]["name"],
        "state": STATES[record["verdict"]["name"]],
        "summary": record["verdict"]["summary"],
        "remark_list": record["remarks"],
        "subject": _subject(record),
        "attacks": _attacks(record),
        "attack_note": _attack_note(record),
        "charts": charts,
        "exposed_note": _exposed_note(audit.primary, shown=include_images),
        "exposed": _exposed(audit) if include_images else [],
        "controls": _controls(record),
        "copies": _copies(record),
        "neighbors": _neighbors(audit) if include_images and audit.generated is not None else [],
        "subgroups": _subgroups(record),
        "min_group_size": MIN_GROUP_SIZE,
        "limits": LIMITS,
        "command_line": record["command"],
    }


# --- tables, for both pages ------------------------------------------------------------------------------------------


def _subject(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was audited, on what."""
    subject, images, error = record["subject"], record["images"], record["error"]
    metadata, epochs = subject["metadata"], subject["epochs"]
    rows = [
        ("weights", f"{subject['weights']}, sha256 {subject['weights_sha256'][:16]}"),
        ("stage", f"{metadata.get('stage', 'unknown')}; {metadata.get('mask', '')}".strip("; ")),
        ("epochs", "unknown" if epochs is None else f"each member was seen {epochs:,.1f} times on average"),
        ("split", f"{subject['split']}; manifest {subject['manifest_sha256'][:16] or 'none'}"),
        (
            "images",
            f"{images['members']:,} members, {images['heldout']:,} held out, {images['calibration']:,} for "
            f"calibration, {images['generated']:,} generated",
        ),
    ]
    if images["groups"] is not None:
        members, heldout, calibration = images["groups"]
        counts = f"{members:,} of members, {heldout:,} held out, {calibration:,} for calibration"
        rows.append(("groups", f"{counts}; in intervals, images of one group count for less"))
    errors = f"{error['members']:.4f} on members, {error['heldout']:.4f} on held-out images"
    return [
        *rows,
        ("error of the estimated image", errors),
        ("all members at once", _set_level(record["set_p"])),
        ("statistic, profile, seed", f"{record['statistic']}, {record['profile']}, {record['seed']}"),
        ("time", format_duration(record["seconds"])),
    ]


def _set_level(p: float | None) -> str:
    """Whether members score higher on average, in words."""
    if p is None:
        return "n/a: too few groups"
    shown = _p_value(p)
    equals = shown if shown.startswith("<") else f"= {shown}"
    return f"p {equals}: how often chance alone makes so large a difference of the means"


def _attacks(record: Mapping[str, Any]) -> Table:
    valid = record["verdict"]["name"] != "INVALID"
    rows = []
    for each in record["attacks"]:
        at_1, at_01 = each["at_fpr"]["0.01"], each["at_fpr"]["0.001"]
        rows.append(
            [
                each["name"] if valid or each["name"] != "primary" else "primary (a control failed)",
                f"{each['auc']:.3f}",
                _interval(each),
                f"{each['raw_auc']:.3f}",
                f"{each['balanced_accuracy']:.3f}",
                _rate(at_1),
                _rate(at_01),
                "n/a" if at_1 is None else f"{at_1['epsilon_lower_bound']:.2f}",
                _p_value(each["p"]),
            ]
        )
    return Table(ATTACK_COLUMNS, rows, numbers=ATTACK_COLUMNS[1:])


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['low']:.3f} to {row['high']:.3f}"


def _rate(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return "n/a"
    low, high = point["tpr_interval"]
    return f"{point['tpr']:.1%} ({low:.1%} to {high:.1%})"


def _p_value(p: float) -> str:
    """Down to where the normal distribution means something."""
    return f"{p:.2g}" if p >= 1e-15 else "< 1e-15"


def _attack_note(record: Mapping[str, Any]) -> str:
    """What the columns mean, and what is missing in them."""
    heldout = record["images"]["heldout"]
    missing = [f"{needed:,} at {share}" for share, needed in (("1 %", 1000), ("0.1 %", 10_000)) if heldout < needed]
    if not missing:
        return ATTACK_NOTE
    return f"{ATTACK_NOTE} n/a: needs {' and '.join(missing)} held-out images, has {heldout:,}."


def _controls(record: Mapping[str, Any]) -> Table:
    rows = [
        [
            each["name"],
            f"{each['value']:.3f}",
            _interval(each),
            "passed" if each["passed"] else "FAILED",
            each["wanted"],
        ]
        for each in record["controls"]
    ]
    return Table(CONTROL_COLUMNS, rows, numbers={"value", "99 % interval"}, prose={"wanted"})


def _copies(record: Mapping[str, Any]) -> Table:
    rows = []
    for each in record["generation"]:
        share = f"{each['value']:.3f} ({_interval(each)})"
        baseline = "n/a"
        if each["baseline"] is not None:
            baseline = f"{each['baseline']:.3f} ({each['baseline_low']:.3f} to {each['baseline_high']:.3f})"
        rows.append([each["name"], share, baseline, f"{each['n']:,}", each["note"]])
    return Table(COPY_COLUMNS, rows, numbers=COPY_COLUMNS[1:4], prose={COPY_COLUMNS[0], "note"})


def _subgroups(record: Mapping[str, Any]) -> Table:
    """Classes, and what else an average over all images may hide."""
    found = [(each["class"], each) for each in record["classes"]]
    found.append(("outliers: the quarter of images least like others", record["outliers"]))
    found.append(("groups, by the mean of their images", record["groups"]))
    rows = [
        [name, f"{each['auc']:.3f}", _interval(each), f"{each['members']:,}"]
        for name, each in found
        if each is not None
    ]
    return Table(SUBGROUP_COLUMNS, rows, numbers=SUBGROUP_COLUMNS[1:])


# --- charts ----------------------------------------------------------------------------------------------------------


def primary_roc(primary: ScoredAttack) -> Chart:
    """The ROC of the primary statistic with the 95 % band of Clopper and Pearson.

    What lies left of ten false positives is not resolved.
    """
    fpr, tpr = roc(primary.members, primary.heldout)
    x = np.geomspace(ROC_FLOOR, 1, ROC_POINTS)
    x[-1] = 1.0
    y: Float64 = tpr[np.searchsorted(fpr, x, "right") - 1]  # the best with no more false positives
    thresholds = np.append(np.sort(primary.members), np.inf)
    groups = primary.groups and primary.groups[0]
    found = [primary.members >= thresholds[round((1 - share) * len(primary.members))] for share in y]
    band = [share_interval(share, effective_n(each, groups)) for share, each in zip(y.tolist(), found, strict=True)]
    low, high = zip(*band, strict=True)
    return roc_chart(x, y, low, high, resolved=10 / len(primary.heldout))


# --- images ----------------------------------------------------------------------------------------------------------


def _exposed_note(primary: ScoredAttack, *, shown: bool) -> str:
    """How exposed the first few members are, without saying who they are."""
    rows, shares = most_exposed(primary, MAX_EXPOSED)
    members, heldout = primary.members, primary.heldout
    above = int((members > heldout.max()).sum())
    expected = f"; by chance it would be about {len(members) / (len(heldout) + 1):.1f}"
    if primary.groups is not None:  # then chance comes in lumps
        expected = ""
    hint = "" if shown else "; --include-training-images shows them here"
    return (
        f"Each of the first {len(rows)} scores higher than at least {1 - shares[-1]:.1%} of held-out images. "
        f"{above:,} of the members score higher than all {len(heldout):,} held-out images{expected}. Which they are "
        f"is in scores.npz, for its owner alone{hint}."
    )


def _exposed(audit: Audit) -> list[PageImage]:
    """The members with the highest scores, the highest first, with the share of held-out images above them."""
    rows, shares = most_exposed(audit.primary, MAX_EXPOSED)
    images = audit.subject.members.images
    return [
        encode_png(to_image(images[row]), "a training image", f"{share:.1%}")
        for row, share in zip(rows, shares, strict=True)
    ]


def _neighbors(audit: Audit) -> list[PageImage]:
    """Generated images, the nearest member and the nearest held-out image; first those nearest to a member."""
    assert audit.generated is not None, "asked for only where images were generated"
    generated, members, heldout = audit.generated, audit.subject.members.images, audit.subject.heldout.images
    to_member, rows = nearest_neighbors(all_pixels(generated), all_pixels(members))
    to_heldout, others = nearest_neighbors(all_pixels(generated), all_pixels(heldout))
    order = np.argsort(to_member / np.maximum(to_heldout, 1e-12))[:MAX_NEIGHBORS]
    gap = np.full((generated.shape[1], max(generated.shape[2] // 8, 1), generated.shape[3]), 255, np.uint8)
    return [_strip([generated[i], gap, members[rows[i]], gap, heldout[others[i]]]) for i in order]


def _strip(images: Sequence[np.ndarray]) -> PageImage:
    return encode_png(to_image(np.concatenate(images, axis=1)), "generated, nearest member, nearest held-out image")
