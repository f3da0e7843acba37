"""What several JSON objects have in common, written once: the images of one generation differ by their seeds alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def folded(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`{"shared": {…}, "each": [{…}, …]}`: the fields that are equal in all items, and what each has besides."""
    first, rest = (items[0], items[1:]) if items else ({}, ())
    shared = {key: value for key, value in first.items() if all(key in one and one[key] == value for one in rest)}
    return {"shared": shared, "each": [{key: one[key] for key in one if key not in shared} for one in items]}


def unfolded(document: Any) -> list[dict[str, Any]]:
    """The inverse; a plain list is taken as it is. Raises KeyError, TypeError for what is neither."""
    if isinstance(document, list):
        return document
    shared = document["shared"]
    return [{**shared, **one} for one in document["each"]]
