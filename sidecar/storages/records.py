"""An image record as JSON, and back.

Every record carries `schema_version`. A reader ignores fields it does not know and refuses a newer version, so that a
sidecar that was rolled back leaves alone what a newer one wrote.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

from sidecar.domain import IMAGE_EXTENSIONS, RECORD_SCHEMA_VERSION, GenerationRequest, ImageId, ImageRecord, Picture
from sidecar.errors import ImageNotFound

MAX_RECORD_BYTES = 64 * 1024
"""More than any record takes; what is larger is none, and is not read."""
_T = TypeVar("_T")
_MAX_IMAGE_BYTES = 2**40
_MAX_NUMBER = 2**63  # of a request: more than any runtime takes
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)  # no id is older
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NONE = type(None)
_REQUEST_KINDS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "prompt": (str,),
    "seed": (int,),
    "negative_prompt": (str, _NONE),
    "width": (int, _NONE),
    "height": (int, _NONE),
    "num_inference_steps": (int, _NONE),
    "guidance_scale": (float, int, _NONE),
}


def encode_record(record: ImageRecord) -> bytes:
    document = {
        "schema_version": record.schema_version,
        "image_id": record.image_id.text,
        "owner": record.owner,
        "created_at": record.created.isoformat(),
        "expires_at": record.expires.isoformat() if record.expires else None,
        "sha256": record.sha256,
        "size_bytes": record.size_bytes,
        **asdict(record.picture),
        "request": asdict(record.request),
        "seed_applied": record.seed_applied,
        "dropped_parameters": list(record.dropped_parameters),
        "queue_seconds": round(record.queue_seconds, 3),
        "runtime_seconds": round(record.runtime_seconds, 3),
        **({"black": True} if record.black else {}),
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


class OtherVersion(ValueError):
    """A record of a newer schema version: not damaged, and not ours to touch."""


def decode_record(data: bytes) -> ImageRecord:
    """Raises OtherVersion, and ValueError for anything but a whole record of this schema version or an older one."""
    try:
        document = json.loads(data)
        if not 1 <= _of(document["schema_version"], int) <= RECORD_SCHEMA_VERSION:
            raise OtherVersion("a record of another schema version")
        return _record(document)
    except (KeyError, TypeError, AttributeError, RecursionError, ImageNotFound) as error:
        raise ValueError("not an image record") from error


def _record(document: dict[str, Any]) -> ImageRecord:
    media_type = _of(document["media_type"], str)
    if media_type not in IMAGE_EXTENSIONS:
        raise ValueError("not a kind of picture that is served")
    return ImageRecord(
        schema_version=document["schema_version"],
        image_id=ImageId.parse(document["image_id"]),
        owner=text(document["owner"]),
        request=decode_request(document["request"]),
        picture=Picture(media_type=media_type, width=number(document["width"]), height=number(document["height"])),
        size_bytes=number(document["size_bytes"], below=_MAX_IMAGE_BYTES),
        sha256=_matching(_SHA256, document["sha256"]),
        seed_applied=_of(document["seed_applied"], bool),
        dropped_parameters=tuple(text(key) for key in _of(document["dropped_parameters"], list)),
        created=moment(document["created_at"]),
        expires=None if document["expires_at"] is None else moment(document["expires_at"]),
        queue_seconds=_seconds(document["queue_seconds"]),
        runtime_seconds=_seconds(document["runtime_seconds"]),
        black=_of(document.get("black", False), bool),
    )


def decode_request(document: dict[str, Any]) -> GenerationRequest:
    """Raises TypeError, KeyError, AttributeError or ValueError for anything but a request."""
    return GenerationRequest(
        **{key: _argument(document[key], kinds) for key, kinds in _REQUEST_KINDS.items() if key in document}
    )


def _argument(value: Any, kinds: tuple[type, ...]) -> Any:
    given: Any = _of(value, *kinds)
    if isinstance(given, str):
        return text(given)
    if given is not None and not 0 <= given < _MAX_NUMBER:  # also what is no number: NaN
        raise ValueError("a number that no request has")
    return given


def _of(value: Any, *kinds: type[_T]) -> _T:
    """The value, if it is exactly of one of these kinds: to JSON, True is no number."""
    if type(value) not in kinds:
        raise TypeError
    return value  # type: ignore[no-any-return]


def text(value: Any) -> str:
    """A text that can be written again: JSON can spell half of a character. Raises TypeError, ValueError."""
    given = _of(value, str)
    given.encode()
    return given


def number(value: Any, *, least: int = 1, below: int = 2**31) -> int:
    """A whole number. Raises TypeError, ValueError."""
    given = _of(value, int)
    if not least <= given < below:
        raise ValueError("a number out of its range")
    return given


def _seconds(value: Any) -> float:
    given = _of(value, float, int)
    if not (given >= 0 and math.isfinite(given)):
        raise ValueError("a duration that is none")
    return given


def _matching(pattern: re.Pattern[str], value: Any) -> str:
    if pattern.fullmatch(value) is None:
        raise ValueError("not an image record")
    return str(value)


def moment(value: Any) -> datetime:
    """An aware time that every zone can tell. Raises TypeError, ValueError.

    One without a zone cannot be compared with any clock.
    """
    given = datetime.fromisoformat(value)
    if given.tzinfo is None:
        raise ValueError("a time without its zone")
    try:
        given = given.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("a time beyond the calendar") from error
    if given < _EARLIEST:
        raise ValueError("a time before all images")
    return given
