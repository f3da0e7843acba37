"""A KServe runtime's refusals as distinct errors.

Shapes seen: `{"error": "…"}` (kserve 400, 404, 500, 503; every failure of some diffusers runtimes is a 400, out of
memory too), `{"detail": "…" | [{"msg": …}]}` (FastAPI 422), HTML from a proxy in between. Some runtimes answer 200 with
an error where the image should be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
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
from sidecar.runtimes.kserve_probe import Seen, redirect_target

_UNEXPECTED_KEYWORD = re.compile(r"unexpected keyword argument '(\w{1,64})'")
_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|not enough memory", re.IGNORECASE)
_FILTERED = re.compile(r"nsfw|safety|content[ _](?:filter|policy)|moderation|inappropriate|prohibited", re.IGNORECASE)


def error_text(body: bytes) -> str:
    """What an error body says; an empty text when it says nothing readable. Not bounded: its end may be what counts."""
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        text = body[:4096].decode("utf-8", "replace").strip()
        return "" if text.startswith("<") else text
    return said_in(document, ("error", "detail"))


def said_in(document: Any, keys: Collection[str]) -> str:
    """The text of the first of these keys that has one; an empty text where none has."""
    said = next((document[key] for key in keys if document.get(key)), None) if isinstance(document, dict) else None
    if isinstance(said, list):
        said = "; ".join(str(item.get("msg", item)) if isinstance(item, dict) else str(item) for item in said[:5])
    if isinstance(said, dict):
        said = said.get("message", json.dumps(said))
    return str(said) if said else ""


def unexpected_keyword(status: int, text: str) -> str | None:
    """The key that an error says the pipeline does not take."""
    match = _UNEXPECTED_KEYWORD.search(text) if status in (200, 400, 422, 500) else None
    return match[1] if match else None


def refusal(status: int, text: str, *, retry_after: float | None, seen: Seen | None) -> RuntimeFailure:
    """The error for a status that is no success. `seen` is what the model's own URL answered, where it was asked."""
    said = f": {bounded(text)}" if text else ""
    if _OUT_OF_MEMORY.search(text):
        return _out_of_memory(said)
    if status == 404 and seen is not None and not seen.has_get:
        return ModelUnknownToRuntime(f"The runtime does not know the configured model (404){said}")
    if status == 404 and seen is not None and seen.readiness.ready:
        return ModelUnknownToRuntime(
            f"The runtime says that the model is ready, but answers 404 to a prediction (…:predict){said}"
        )
    if status == 429 or (status == 503 and seen is not None and seen.may_be_at_work):
        return RuntimeBusy(f"The model's runtime is busy; try again shortly{said}", retry_after=retry_after or 10)
    if status in (404, 503):
        return RuntimeNotReady(
            f"The model is not ready yet; it may still be loading. Try again in a minute{said}", retry_after=60
        )
    if status in (400, 422):
        return RuntimeRefusedParameters(f"The model's runtime refused these parameters{said or ' without saying why'}")
    return RuntimeFailure(f"The model's runtime failed (HTTP {status}){said}")


def answered_error(text: str) -> RuntimeFailure:
    """The error for a success that says why it has no image."""
    said = bounded(text)
    if _OUT_OF_MEMORY.search(text):
        return _out_of_memory(f": {said}")
    if _FILTERED.search(text):
        return RuntimeRefusedParameters(
            f"The model's runtime gave no image for this prompt: {said}. Another prompt or another seed may help."
        )
    return RuntimeFailure(f"The model's runtime answered with an error instead of an image: {said}")


def redirected(status: int, location: str) -> RuntimeFailure:
    """A redirect is never followed: the prompt and the token are for the configured runtime only."""
    return RuntimeFailure(
        f"The model's runtime, or a proxy before it, redirects to {redirect_target(location)} (HTTP {status}), and "
        "redirects are not followed. Its operator sets KSERVE_ENDPOINT to a URL that answers by itself."
    )


def _out_of_memory(said: str) -> RuntimeOutOfMemory:
    return RuntimeOutOfMemory(
        "The model's accelerator ran out of memory. Ask for a smaller size or fewer images at once"
        f"; width and height in multiples of 8, at least 64{said}"
    )
