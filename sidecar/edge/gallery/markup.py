"""HTML from template files. `fill` is the only place where a value meets markup, and it escapes every one.

A template is a `string.Template`; its placeholders stand in text or between double quotes, never in a script, a style
or an address's scheme.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from string import Template

_TEMPLATES = {
    file.name.removesuffix(".html"): Template(file.read_text(encoding="utf-8"))
    for file in (files(__package__) / "templates").iterdir()
    if file.name.endswith(".html")
}


@dataclass(frozen=True, slots=True)
class Html:
    """Markup. Only this file makes it."""

    markup: str = ""


def fill(template: str, /, **values: str | int | Html) -> Html:
    """The template with every value in it: text escaped, markup as it is. Raises KeyError for one left out."""
    return Html(_TEMPLATES[template].substitute({name: _markup(value) for name, value in values.items()}).strip())


def joined(parts: Iterable[Html]) -> Html:
    return Html("\n".join(part.markup for part in parts))


def _markup(value: str | int | Html) -> str:
    if isinstance(value, Html):
        return value.markup
    return html.escape(str(value).encode("utf-8", "replace").decode(), quote=True)  # no lone surrogates
