"""What a result carries besides its text, and how long a call may take: switches for hosts that need it otherwise.

A `resource_link` is off unless its operator or the MCP URL switches it on: LangChain with Bedrock aborts on it, other
providers fetch it, Kiro drops the whole result, and clients of revisions before 2025-06-18 fail on it. LibreChat breaks
models without vision by an image block (`?image=off`). The OpenAI Agents SDK gives up a call after 5 s
(`?budget=4s`). The call's `result` argument comes first, then `?result=` of the MCP URL, then RESULT_MODE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar, get_args

from sidecar.config import DURATION_ALLOWED, ResultMode, positive_duration
from sidecar.errors import InvalidRequest, bounded

_T = TypeVar("_T")

FIRST_REVISION_WITH_LINKS = "2025-06-18"
"""Revisions are dates and compare as texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presentation:
    """What this caller's host can take. `budget`: seconds that it lets a call take, None for the server's own."""

    mode: ResultMode
    resource_link: bool = False
    image: bool = True
    budget: float | None = None


def presentation(
    query: Mapping[str, str], *, mode: ResultMode, resource_link: bool, protocol_version: str
) -> Presentation:
    """Read the switches of an MCP URL's query; the arguments say what holds without one.

    Raises InvalidRequest naming what is allowed.
    """
    modes: dict[str, ResultMode] = {known: known for known in get_args(ResultMode)}
    wants_links = _choice(query, "resource_link", _SWITCH, resource_link)
    return Presentation(
        mode=_choice(query, "result", modes, mode),
        resource_link=wants_links and protocol_version >= FIRST_REVISION_WITH_LINKS,
        image=_choice(query, "image", _SWITCH, True),
        budget=_budget(query.get("budget")),
    )


_SWITCH = {"on": True, "off": False}


def _choice(query: Mapping[str, str], name: str, choices: Mapping[str, _T], default: _T) -> _T:
    given = query.get(name)
    if given is None:
        return default
    if given not in choices:
        raise _not_allowed(name, given, ", ".join(choices))
    return choices[given]


def _budget(given: str | None) -> float | None:
    try:
        return None if given is None else positive_duration(given)
    except ValueError:
        raise _not_allowed("budget", given or "", DURATION_ALLOWED) from None


def _not_allowed(name: str, given: str, allowed: str) -> InvalidRequest:
    return InvalidRequest(
        f"The MCP URL has {name}={bounded(given, 40)!r}; allowed: {allowed}. Its user corrects the URL."
    )
