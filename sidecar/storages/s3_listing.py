"""A page of a bucket's listing: which of its objects are ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[_T]):
    """An object as a listing shows it, its key without the prefix; `names` is what that key stands for."""

    key: str
    names: _T
    size: int
    etag: str
    modified: datetime


def parsed(
    contents: Iterable[Mapping[str, Any]], prefix: str, names: Callable[[str], _T | None]
) -> tuple[list[Entry[_T]], list[str]]:
    """The entries, and the keys that `names` returns None for or that lack the prefix: foreign ones."""
    entries, foreign = list[Entry[_T]](), list[str]()
    for found in contents:
        key = found["Key"].removeprefix(prefix)
        named = names(key) if found["Key"].startswith(prefix) else None
        if named is None:
            foreign.append(found["Key"])
        else:
            entries.append(Entry(key, named, found["Size"], found["ETag"], found["LastModified"]))
    return entries, foreign
