"""HTML and SVG that cannot forget to escape: text becomes markup only by passing through `tag`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = frozenset({"img", "link", "meta"})


class Html(str):
    """A string that is markup already. Any other string is text, and `tag` and `join` escape it."""

    __slots__ = ()


def join(parts: Iterable[str]) -> Html:
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Html:
    """One element. Of attributes, `class_` becomes `class` and `text_anchor` `text-anchor`; None leaves one out."""
    opening = name + "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(content if isinstance(content, str) else f"{content:g}")}"'
        for key, content in attributes.items()
        if content is not None
    )
    return Html(f"<{opening}>" if name in VOID else f"<{opening}>{join(children)}</{name}>")
