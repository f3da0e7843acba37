"""What the GET routes of a KServe v1 runtime say: `/v1/models/NAME`, whether the model is ready, and `/v1/models`."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sidecar.errors import bounded
from sidecar.ports import Readiness

_NO_GET = (404, 405)
_GATEWAY_LOST_IT = (502, 504)
_UNKNOWN_MODEL = re.compile(rb"model.{0,300}(?:does not exist|not found)", re.IGNORECASE | re.DOTALL)
"""KServe's own words in a 404: it has the route, but not the model."""
_MAX_NAMES = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """The answer of a model's own URL; `status` is None where there was none."""

    readiness: Readiness
    status: int | None = None

    @property
    def has_get(self) -> bool:
        """Whether the runtime answers for this model at all."""
        return self.status not in _NO_GET

    @property
    def may_be_at_work(self) -> bool:
        """Whether a prediction that was refused may have started all the same.

        A runtime that works answers no probe, so silence counts, and so does a gateway that reports it.
        """
        return self.readiness.ready or not self.readiness.reached or self.status in _GATEWAY_LOST_IT


def seen(status: int, body: bytes, location: str) -> Seen:
    """What the model's own URL says by this answer; `location` is its Location header."""
    ready, detail = _verdict(status, body, location)
    return Seen(Readiness(ready=ready, reached=True, detail=detail), status)


def _verdict(status: int, body: bytes, location: str) -> tuple[bool, str]:
    if status == 404 and _UNKNOWN_MODEL.search(body):
        return False, "does not know the model (HTTP 404)"
    if status in _NO_GET:
        return True, f"whether the model is ready is not known: the runtime has no GET for it (HTTP {status})"
    if 300 <= status < 400:
        return False, f"redirects to {redirect_target(location)} (HTTP {status}), which is not followed"
    try:
        document = json.loads(body or b"null")
    except (ValueError, RecursionError):
        return False, f"answers HTTP {status} without JSON"
    if status != 200:
        return False, f"answers HTTP {status}"
    if isinstance(document, dict) and document.get("ready", True) in (True, "True", "true"):
        return True, ""
    return False, "says that the model is not ready"


def redirect_target(location: str) -> str:
    """The host that a Location header names. Its path and its query may hold secrets."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(location)
        if parts.hostname:
            return "the host " + bounded(parts.hostname + (f":{parts.port}" if parts.port else ""), 100)
    return "another path of the same host"


def listed_models(body: bytes, configured: str) -> str:
    """A sentence on the models of `/v1/models` and the configured name; an empty text where there is no such list."""
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    models = document.get("models") if isinstance(document, dict) else None
    if not isinstance(models, list):
        return ""
    names = [name for model in models if isinstance(name := _name(model), str)]
    if not names:
        return f"At /v1/models it lists none; the configured name is {configured}."
    shown = ", ".join(bounded(name, 63) for name in names[:_MAX_NAMES])
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"At /v1/models it lists {shown}{more}; the configured name is {configured}."


def _name(model: Any) -> Any:
    return model.get("name") if isinstance(model, dict) else model
