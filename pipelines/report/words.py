"""Labels as the page holds them: in English, with the key and the data from which its script says them in French."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from pipelines.report.labels import LABELS


class Key(str):
    """The key of a label, where it stands as data in another label."""

    __slots__ = ()


def said(key: str, **data: object) -> str:
    """Return a label in English, filled with data."""
    return LABELS[key][0].format(**{name: said(v) if isinstance(v, Key) else v for name, v in data.items()})


def keyed(key: str, **data: object) -> Markup:
    """Return the attribute by which the script finds a label, for elements that hold text alone."""
    return _named("data-t", key, data)


def label(key: str, **data: object) -> Markup:
    """Return a label as an element of HTML."""
    return Markup("<span {}>{}</span>").format(keyed(key, **data), said(key, **data))


def svg_label(key: str, **data: object) -> Markup:
    """Return a label as a part of a text of SVG."""
    return Markup("<tspan {}>{}</tspan>").format(keyed(key, **data), said(key, **data))


def attribute(name: str, key: str, **data: object) -> Markup:
    """Return a label as an attribute of an element: aria-label, title or alt."""
    assert name in ("aria-label", "title", "alt"), f"{name} is not among those that the script translates"
    return Markup('{}="{}" {}').format(Markup(name), said(key, **data), _named(f"data-t-{name}", key, data))


def _named(name: str, key: str, data: dict[str, object]) -> Markup:
    """Return what the script reads: the key, and the data as JSON where there are any."""
    filled: dict[str, Any] = {n: {"t": str(v)} if isinstance(v, Key) else str(v) for n, v in data.items()}
    return Markup('{}="{}"').format(Markup(name), json.dumps([key, filled]) if filled else key)
