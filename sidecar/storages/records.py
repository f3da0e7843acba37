"""An image record as JSON, and back.

Every record carries `schema_version`. A reader ignores fields it does not know and refuses a newer version, so that a
sidecar that was rolled back leaves alone what a newer one wrote.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sidecar.domain import RECORD_SCHEMA_VERSION, GenerationRequest, ImageId, ImageRecord, Picture


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
    """Raises ValueError for anything but a record of this schema version or an older one."""
    try:
        document = json.loads(data)
        if not 1 <= document["schema_version"] <= RECORD_SCHEMA_VERSION:
            raise ValueError(f"schema version {document['schema_version']}")
        return _record(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not an image record") from error


def _record(document: dict[str, Any]) -> ImageRecord:
    request_fields = GenerationRequest.__dataclass_fields__
    return ImageRecord(
        schema_version=document["schema_version"],
        image_id=ImageId(document["image_id"]),
        owner=document["owner"],
        request=GenerationRequest(
            **{key: value for key, value in document["request"].items() if key in request_fields}
        ),
        picture=Picture(media_type=document["media_type"], width=document["width"], height=document["height"]),
        size_bytes=document["size_bytes"],
        sha256=document["sha256"],
        seed_applied=document["seed_applied"],
        dropped_parameters=tuple(document["dropped_parameters"]),
        created=datetime.fromisoformat(document["created_at"]),
        expires=datetime.fromisoformat(document["expires_at"]) if document["expires_at"] else None,
        queue_seconds=document["queue_seconds"],
        runtime_seconds=document["runtime_seconds"],
    )
