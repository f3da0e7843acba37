"""An image record as JSON, and back.

Every record carries `schema_version`. A reader ignores fields it does not know and refuses a newer version, so that a
sidecar that was rolled back leaves alone what a newer one wrote.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

from sidecar.domain import IMAGE_EXTENSIONS, RECORD_SCHEMA_VERSION, GenerationRequest, ImageId, ImageRecord, Picture
from sidecar.errors import ImageNotFound

_T = TypeVar("_T")
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
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def decode_record(data: bytes) -> ImageRecord:
    """Raises ValueError for anything but a whole record of this schema version or an older one."""
    try:
        document = json.loads(data)
        version = _of(document["schema_version"], int)
        if not 1 <= version <= RECORD_SCHEMA_VERSION:
            raise ValueError("a record of another schema version")
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
        owner=_of(document["owner"], str),
        request=decode_request(document["request"]),
        picture=Picture(media_type=media_type, width=_of(document["width"], int), height=_of(document["height"], int)),
        size_bytes=_of(document["size_bytes"], int),
        sha256=_matching(_SHA256, document["sha256"]),
        seed_applied=_of(document["seed_applied"], bool),
        dropped_parameters=tuple(_of(key, str) for key in _of(document["dropped_parameters"], list)),
        created=_moment(document["created_at"]),
        expires=None if document["expires_at"] is None else _moment(document["expires_at"]),
        queue_seconds=_of(document["queue_seconds"], float, int),
        runtime_seconds=_of(document["runtime_seconds"], float, int),
    )


def decode_request(document: dict[str, Any]) -> GenerationRequest:
    """Raises TypeError, KeyError or AttributeError for anything but a request."""
    return GenerationRequest(
        **{key: _of(document[key], *kinds) for key, kinds in _REQUEST_KINDS.items() if key in document}
    )


def _of(value: Any, *kinds: type[_T]) -> _T:
    """The value, if it is exactly of one of these kinds: to JSON, True is no number."""
    if type(value) not in kinds:
        raise TypeError
    return value  # type: ignore[no-any-return]


def _matching(pattern: re.Pattern[str], value: Any) -> str:
    if pattern.fullmatch(value) is None:
        raise ValueError("not an image record")
    return str(value)


def _moment(value: Any) -> datetime:
    """An aware time: one without a zone cannot be compared with any clock."""
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("a time without its zone")
    return moment
