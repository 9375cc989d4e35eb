"""What our pages share: one HTML file that opens anywhere, loads nothing and runs nothing."""

from __future__ import annotations

import base64
from collections.abc import Container, Sequence
from importlib import resources

from maskdm.reports.markup import Html, tag
from maskdm.reports.read_run import Picture

COLUMN = 856  # pixels: what `report.css` leaves between the page's margins
# Nothing is loaded and nothing runs, even if some text were not escaped.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def whole(title: str, body: Html) -> str:
    """The page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),  # or else the browser asks for one
        tag("title", title),
        tag("style", Html(resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8"))),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def section(title: str, *content: str, empty: str) -> Html:
    """A heading and what is below it, or the sentence `empty` if that is nothing."""
    return tag("section", tag("h2", title), *(content if any(content) else [tag("p", empty, class_="muted")]))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[str]) -> Html:
    """A table whose columns `numbers` are set flush right, and whose first one names the rows."""
    kinds = ["number" if name in numbers else None for name in columns]
    head = tag("tr", *(tag("th", name, scope="col", class_=kind) for name, kind in zip(columns, kinds, strict=True)))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)),
        )
        for row in rows
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="table")


def image(picture: Picture, alt: str, style: str | None = None) -> Html:
    data = base64.b64encode(picture.png).decode("ascii")
    return tag(
        "img",
        src=f"data:image/png;base64,{data}",
        alt=alt,
        width=picture.width,
        height=picture.height,
        style=style,
        class_="pixelated" if picture.width < COLUMN / 2 else None,
    )
