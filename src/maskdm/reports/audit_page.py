"""An audit for people: `report.html` and `report.md`, from its record. Verdict first, then what it stands on."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.audit import subgroups
from maskdm.audit.attacks import PRIMARY
from maskdm.audit.audit import Audit
from maskdm.audit.copies import nearest, pixels
from maskdm.data.write import to_picture
from maskdm.reports import audit_charts as charts
from maskdm.reports import formatting as wording
from maskdm.reports import page
from maskdm.reports.markup import Html, tag
from maskdm.reports.read_run import Picture

STATES = {
    "LEAKAGE DETECTED": "bad",
    "NO LEAKAGE DETECTED BY THESE ATTACKS": "good",
    "INCONCLUSIVE": "warn",
    "INVALID": "bad",
}
LIMITS = (
    "It finds what these attacks find. Shadow models, attacks that are not listed, and attacks to come may find more.",
    "An average hides people: few pictures may leak much while most leak nothing. The rows at 1 % and 0.1 % false "
    "positives, the parts of the pictures and the members that stand out look for that, as far as there are enough.",
    "It says nothing of pictures that are not asked about: those that another run saw before this one started from its "
    "weights, and copies of a picture that exist elsewhere.",
    "Pictures that were not generated may be generated yet: a copy that was not found is not a copy that cannot be.",
    "It is no guarantee. Only training with differential privacy gives one, and this model was not trained so.",
)
NEIGHBOURS = 16
EXPOSED = 20


def write_pages(folder: Path, found: Audit, record: Mapping[str, Any], *, include_training_images: bool) -> Path:
    """Both, and the ROC by itself; returns the path of the HTML."""
    roc = charts.roc_chart(found.primary)
    body = tag("body", *_sections(found, record, roc, include_training_images))
    title = f"{record['verdict']['name'].capitalize()} · maskdm audit"
    path = folder / "report.html"
    write = page_writer(private=include_training_images)
    write(path, page.whole(title, body))
    write(folder / "report.md", markdown(record))
    drawn = str(roc).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    write(folder / "roc.svg", drawn.replace(">", f"><style>{SVG_STYLE}</style>", 1))
    return path


SVG_STYLE = (
    "text{font:12px sans-serif;fill:#5a6370}.grid{stroke:#dfe3e8}.axis{stroke:#5a6370}.band{fill:#0072b2;opacity:.18}"
    ".unresolved{fill:#9aa4af;opacity:.18}.series path{fill:none;stroke:#0072b2;stroke-width:2}"
)


def page_writer(*, private: bool) -> Any:
    """Writes text; where it shows training pictures, for its owner alone."""

    def write(path: Path, text: str) -> None:
        path.touch(mode=0o600 if private else 0o644)
        if private:
            path.chmod(0o600)
        path.write_text(text, encoding="utf-8", newline="\n")

    return write


def _sections(found: Audit, record: Mapping[str, Any], roc: Html, include_training_images: bool) -> list[Html]:
    return [
        tag("p", "maskdm privacy audit", class_="kind"),
        tag("h1", record["verdict"]["name"]),
        tag("p", record["verdict"]["words"], class_=f"lead {STATES[record['verdict']['name']]}"),
        *([tag("ul", *(tag("li", each) for each in record["remarks"]), class_="remarks")] if record["remarks"] else []),
        page.section("What was audited", _pairs(subject_rows(record)), empty=""),
        page.section(
            "Attacks",
            tag(
                "div",
                page.table(ATTACK_COLUMNS, attack_rows(record), numbers=set(ATTACK_COLUMNS[1:])),
                class_="attacks",
            ),
            tag("p", attack_note(record), class_="muted"),
            empty="",
        ),
        page.section("How well members are found", roc, charts.histogram(found.primary), empty=""),
        page.section(
            "The members that stand out most",
            tag("p", exposed_note(found), class_="muted"),
            *([_exposed(found)] if include_training_images else []),
            empty="",
        ),
        page.section(
            "Controls",
            page.table(CONTROL_COLUMNS, control_rows(record), numbers={"value", "99 % interval"}),
            empty="",
        ),
        page.section(
            "Generated pictures",
            *([page.table(SHARE_COLUMNS, share_rows(record), numbers=set(SHARE_COLUMNS[1:4]))] if found.shares else []),
            *([_neighbours(found)] if include_training_images and found.made is not None else []),
            empty="None were made: give --num, or pictures with --generated.",
        ),
        page.section(
            "Parts of the pictures",
            *([page.table(PART_COLUMNS, rows, numbers=set(PART_COLUMNS[1:]))] if (rows := part_rows(record)) else []),
            empty="No part has 30 pictures on either side.",
        ),
        page.section("What this audit cannot show", tag("ul", *(tag("li", each) for each in LIMITS)), empty=""),
        page.section("Made by", tag("p", tag("code", record["command"]), class_="command"), empty=""),
    ]


# --- rows, for both pages --------------------------------------------------------------------------------------------

ATTACK_COLUMNS = [
    "attack",
    "AUC",
    "95 %",
    "raw AUC",
    "accuracy",
    "found at 1 %",
    "found at 0.1 %",
    "epsilon ≥",
    "p",
]
NOTE = (
    f"Primary is the mean of {', '.join(PRIMARY)}, fixed before anything was seen; it alone decides, at 99 %. "
    "The others are secondary: of so many some intervals miss one half by chance, so their p is adjusted for their "
    "number (Holm). Numbers behind a name are sigma, the noise at which the model is asked. Loss: its error; sima: "
    "what it finds in the clean picture; pia, pian: whether it answers alike when its answer is mixed in; secmi: "
    "whether a step on and back returns. AUC: chance that a member scores above a held-out picture, one half tells "
    "nothing. Found: share of members called so at a threshold that takes at most that share of held-out pictures for "
    "members. Epsilon: what differential privacy at least would have to allow, a lower bound from these attacks."
)
CONTROL_COLUMNS = ["control", "value", "99 % interval", "outcome", "wanted"]
PART_COLUMNS = ["part", "AUC", "95 %", "members"]
SHARE_COLUMNS = ["generated pictures that are", "share", "the same of held-out pictures", "n", "note"]


def subject_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was audited, on what."""
    subject, pictures = record["subject"], record["pictures"]
    facts = subject["facts"]
    epochs = subject["epochs"]
    return [
        ("weights", f"{subject['weights']}, sha256 {subject['weights_sha256'][:16]}"),
        ("stage", f"{facts.get('stage', 'unknown')}; {facts.get('mask', '')}".strip("; ")),
        ("seen each member", "unknown" if epochs is None else f"{epochs:,.1f} times on average"),
        ("split", f"{subject['split']}; manifest {subject['manifest_sha256'][:16] or 'none'}"),
        (
            "pictures",
            f"{pictures['members']:,} members, {pictures['heldout']:,} held out, {pictures['calibration']:,} for "
            f"calibration, {pictures['generated']:,} generated",
        ),
        *([("groups", groups_said(pictures["groups"]))] if pictures["groups"] is not None else []),
        (
            "error of the estimated picture",
            f"{record['error']['members']:.4f} on members, {record['error']['heldout']:.4f} on held-out pictures",
        ),
        ("all members at once", all_at_once(record["set_p"])),
        ("statistic, profile, seed", f"{record['statistic']}, {record['profile']}, {record['seed']}"),
        ("took", wording.duration(record["seconds"])),
    ]


def groups_said(counts: Sequence[int]) -> str:
    """What pictures that were split together mean for the numbers."""
    members, heldout, calibration = counts
    return (
        f"{members:,} of members, {heldout:,} held out, {calibration:,} for calibration; intervals count pictures "
        "of one for less"
    )


def attack_note(record: Mapping[str, Any]) -> str:
    """What the columns mean, and what is missing in them."""
    heldout = record["pictures"]["heldout"]
    lacking = [f"{needed:,} at {share}" for share, needed in (("1 %", 1000), ("0.1 %", 10_000)) if heldout < needed]
    needs = f" n/a: needs {' and '.join(lacking)} held-out pictures, has {heldout:,}." if lacking else ""
    return NOTE + needs


def all_at_once(p: float | None) -> str:
    """Whether members score higher on average, in words."""
    if p is None:
        return "n/a: too few groups"
    said = p_value(p)
    equals = said if said.startswith("<") else f"= {said}"
    return f"p {equals}: how often chance alone makes so large a difference of their means"


def attack_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """One for each attack."""
    rows = []
    headline = record["verdict"]["name"] != "INVALID"
    for each in record["attacks"]:
        name = each["name"]
        if name == "primary" and not headline:
            name = "primary (a control failed)"
        low = each["at_fpr"]["0.01"]
        rows.append(
            [
                name,
                f"{each['auc']:.3f}",
                f"{each['low']:.3f} to {each['high']:.3f}",
                f"{each['raw_auc']:.3f}",
                f"{each['balanced_accuracy']:.3f}",
                _point(low),
                _point(each["at_fpr"]["0.001"]),
                "n/a" if low is None else f"{low['epsilon_lower_bound']:.2f}",
                p_value(each["p"]),
            ]
        )
    return rows


def p_value(p: float) -> str:
    """Down to where the normal law means something."""
    return f"{p:.2g}" if p >= 1e-15 else "< 1e-15"


def _point(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return "n/a"
    low, high = point["tpr_interval"]
    return f"{point['tpr']:.1%} ({low:.1%} to {high:.1%})"


def control_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """One for each control."""
    return [
        [
            each["name"],
            f"{each['value']:.3f}",
            f"{each['low']:.3f} to {each['high']:.3f}",
            "passed" if each["passed"] else "FAILED",
            each["wanted"],
        ]
        for each in record["controls"]
    ]


def share_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """One for each measure of generated pictures."""
    rows = []
    for each in record["generation"]:
        baseline = "n/a"
        if each["baseline"] is not None:
            baseline = f"{each['baseline']:.3f} ({each['baseline_low']:.3f} to {each['baseline_high']:.3f})"
        share = f"{each['value']:.3f} ({each['low']:.3f} to {each['high']:.3f})"
        rows.append([each["name"], share, baseline, f"{each['n']:,}", each["note"]])
    return rows


def part_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """One for each class, and for other parts of the pictures."""
    parts = [(each["class"], each) for each in record["classes"]]
    parts.append(("the quarter that is least like other pictures", record["least_like_others"]))
    parts.append(("groups, by the mean of their pictures", record["groups"]))
    return [
        [name, f"{each['auc']:.3f}", f"{each['low']:.3f} to {each['high']:.3f}", f"{each['members']:,}"]
        for name, each in parts
        if each is not None
    ]


def exposed_note(found: Audit) -> str:
    """How far out the first few members are, without saying who they are."""
    rows, shares = subgroups.most_exposed(found.primary, EXPOSED)
    heldout = found.primary.heldout
    alone = int((found.primary.members > heldout.max()).sum())
    chance = f"; by chance it would be about {len(found.primary.members) / (len(heldout) + 1):.1f}"
    if found.primary.groups is not None:  # then chance comes in lumps
        chance = ""
    return (
        f"Each of the first {len(rows)} scores higher than at least {1 - shares[-1]:.1%} of held-out pictures. "
        f"{alone:,} members score higher than all {len(heldout):,} of them{chance}. Which they are is in scores.npz, "
        "for its owner alone; --include-training-images shows them here."
    )


def _pairs(rows: Sequence[tuple[str, str]]) -> Html:
    return tag(
        "table", *(tag("tr", tag("th", key, scope="row"), tag("td", value)) for key, value in rows), class_="pairs"
    )


def _neighbours(found: Audit) -> Html:
    """The generated pictures nearest to a member, that member, and the nearest held-out picture."""
    assert found.made is not None, "asked for only where pictures were made"
    made, known, others = found.made, found.subject.members.images, found.subject.heldout.images
    to_members, rows = nearest(pixels(made), pixels(known))
    to_heldout, columns = nearest(pixels(made), pixels(others))
    order = np.argsort(to_members / np.maximum(to_heldout, 1e-12))[:NEIGHBOURS]
    gap = np.full((made.shape[1], max(made.shape[2] // 8, 1), made.shape[3]), 255, np.uint8)
    strips = [np.concatenate([made[i], gap, known[rows[i]], gap, others[columns[i]]], axis=1) for i in order]
    alt = "generated, nearest member, nearest held-out picture"
    figures = [tag("figure", _image(strip, alt)) for strip in strips]
    said = (
        f"The {len(order)} generated pictures whose nearest member is nearest, compared with the nearest held-out "
        "picture. Left: generated. Middle: its nearest member, a training picture. Right: its nearest held-out picture."
    )
    caption = tag("p", said, class_="muted")
    return tag("div", caption, tag("div", *figures, class_="grids"))


def _exposed(found: Audit) -> Html:
    """The members with the highest scores, the highest first."""
    rows, shares = subgroups.most_exposed(found.primary, EXPOSED)
    known = found.subject.members.images
    figures = [
        tag("figure", _image(known[row], "a training picture"), tag("figcaption", f"{share:.1%}"))
        for row, share in zip(rows, shares, strict=True)
    ]
    caption = tag("p", "Training pictures, with the share of held-out pictures that score higher.", class_="muted")
    return tag("div", caption, tag("div", *figures, class_="grids"))


def _image(pixels: np.ndarray, alt: str) -> Html:
    picture, out = to_picture(pixels), io.BytesIO()
    picture.save(out, "PNG")
    return page.image(Picture(out.getvalue(), picture.width, picture.height), alt)


# --- text ------------------------------------------------------------------------------------------------------------


def markdown(record: Mapping[str, Any]) -> str:
    """The same for a terminal or a model card."""
    parts = [f"# {record['verdict']['name']}", record["verdict"]["words"], *record["remarks"]]
    parts.append("\n".join(f"- {key}: {value}" for key, value in subject_rows(record)))
    parts += ["## Attacks", _table(ATTACK_COLUMNS, attack_rows(record)), attack_note(record)]
    parts += ["## Controls", _table(CONTROL_COLUMNS, control_rows(record))]
    if rows := part_rows(record):
        parts += ["## Parts of the pictures", _table(PART_COLUMNS, rows)]
    if record["generation"]:
        parts += ["## Generated pictures", _table(SHARE_COLUMNS, share_rows(record))]
    parts += ["## What this audit cannot show", "\n".join(f"- {each}" for each in LIMITS)]
    parts += ["## Made by", f"    {record['command']}"]
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
