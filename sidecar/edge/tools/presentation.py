"""What a result carries besides its text: switches for hosts that break on one kind of block or another.

Kiro drops a result that holds a resource link, LibreChat breaks models without vision by an image block. The call's
`result` argument comes first, then `?result=` of the MCP URL, then RESULT_MODE; `?resource_link=off` and `?image=off`
leave these blocks out of every result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar, get_args

from sidecar.config import ResultMode
from sidecar.errors import InvalidRequest, bounded

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Presentation:
    """What this caller's host can take."""

    mode: ResultMode
    resource_link: bool = True
    image: bool = True


def presentation(query: Mapping[str, str], default: ResultMode) -> Presentation:
    """Read the switches of an MCP URL's query. Raises InvalidRequest naming what is allowed."""
    modes: dict[str, ResultMode] = {mode: mode for mode in get_args(ResultMode)}
    return Presentation(
        mode=_choice(query, "result", modes, default),
        resource_link=_choice(query, "resource_link", _SWITCH, True),
        image=_choice(query, "image", _SWITCH, True),
    )


_SWITCH = {"on": True, "off": False}


def _choice(query: Mapping[str, str], name: str, choices: Mapping[str, _T], default: _T) -> _T:
    given = query.get(name)
    if given is None:
        return default
    if given not in choices:
        raise InvalidRequest(
            f"The MCP URL has {name}={bounded(given, 40)!r}; allowed: {', '.join(choices)}. Its user corrects the URL."
        )
    return choices[given]
