"""A KServe runtime's refusals as distinct errors.

Shapes seen: `{"error": "…"}` (kserve 400, 404, 500, 503; every failure of some diffusers runtimes is a 400, out of
memory too), `{"detail": "…" | [{"msg": …}]}` (FastAPI 422), HTML from a proxy in between.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sidecar.errors import (
    ModelUnknownToRuntime,
    RuntimeBusy,
    RuntimeFailure,
    RuntimeNotReady,
    RuntimeOutOfMemory,
    RuntimeRefusedParameters,
    bounded,
)

_UNEXPECTED_KEYWORD = re.compile(r"unexpected keyword argument '(\w{1,64})'")
_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|not enough memory", re.IGNORECASE)


def error_text(body: bytes) -> str:
    """What an error body says; an empty text when it says nothing readable. Not bounded: its end may be what counts."""
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        text = body[:4096].decode("utf-8", "replace").strip()
        return "" if text.startswith("<") else text
    said = document.get("error", document.get("detail")) if isinstance(document, dict) else None
    if isinstance(said, list):
        said = "; ".join(str(item.get("msg", item)) if isinstance(item, dict) else str(item) for item in said[:5])
    if isinstance(said, dict):
        said = said.get("message", json.dumps(said))
    return str(said) if said else ""


def unexpected_keyword(status: int, text: str) -> str | None:
    """The key that a 400 says the pipeline does not take."""
    match = _UNEXPECTED_KEYWORD.search(text) if status in (400, 422, 500) else None
    return match[1] if match else None


def refusal(status: int, text: str, *, retry_after: float | None, ready: bool | None) -> RuntimeFailure:
    """The error for a status that is not 200. `ready` is what the model's own URL said, where it was asked."""
    said = f": {bounded(text)}" if text else ""
    if _OUT_OF_MEMORY.search(text):
        return RuntimeOutOfMemory(
            "The model's accelerator ran out of memory. Ask for a smaller size or fewer images at once"
            f"; width and height in multiples of 8, at least 64{said}"
        )
    if status == 404 and ready is None:
        return ModelUnknownToRuntime(f"The runtime does not know the configured model (404){said}")
    if status == 429 or (status == 503 and ready):
        return RuntimeBusy(f"The model's runtime is busy; try again shortly{said}", retry_after=retry_after or 10)
    if status in (404, 503):
        return RuntimeNotReady(
            f"The model is not ready yet; it may still be loading. Try again in a minute{said}", retry_after=60
        )
    if status in (400, 422):
        return RuntimeRefusedParameters(f"The model's runtime refused these parameters{said or ' without saying why'}")
    return RuntimeFailure(f"The model's runtime failed (HTTP {status}){said}")
