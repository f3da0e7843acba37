"""The image in a KServe v1 answer: `{"predictions": [{"image": {"b64": "…"}}]}`."""

from __future__ import annotations

import binascii
import json
from typing import Any

import pybase64

from sidecar.errors import RuntimeAnsweredNonsense


def image_bytes(body: bytes) -> bytes:
    """The decoded bytes of the first prediction's image. Raises RuntimeAnsweredNonsense saying what is wrong."""
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RuntimeAnsweredNonsense(
            f"The model's runtime did not answer with JSON but with {_kind(body) if body else 'nothing'}"
        ) from error
    try:
        encoded = document["predictions"][0]["image"]["b64"]
    except (KeyError, IndexError, TypeError) as error:
        raise RuntimeAnsweredNonsense(
            "The model's runtime answered JSON without an image at predictions[0].image.b64"
        ) from error
    if not isinstance(encoded, str):
        raise RuntimeAnsweredNonsense("The model's runtime answered an image that is not a base64 text")
    try:
        return pybase64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RuntimeAnsweredNonsense("The model's runtime answered damaged or truncated base64") from error


def _kind(body: bytes) -> str:
    """What there is instead, unquoted: a runtime may echo what it was sent, a token too."""
    start = body[:200].lstrip()
    return "an HTML page" if start.startswith(b"<") else "damaged or truncated JSON" if start[:1] in b"{[" else "text"
