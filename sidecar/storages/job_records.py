"""Jobs as JSON, and back. As with image records, a reader refuses a newer schema version and leaves it alone.

Version 2 writes once what the images of a job share; in version 1 each had its own copy of the prompts.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sidecar.domain import JOB_SCHEMA_VERSION, ImageId, JobId, JobRecord, JobResult, Lease, MissingImage
from sidecar.errors import ImageNotFound, JobNotFound
from sidecar.storages.records import OtherVersion, decode_request, moment, number, text
from sidecar.storages.shared_fields import folded, unfolded

MAX_JOB_BYTES = 256 * 1024
"""More than any job takes; what is larger is none, and is not read."""
MAX_LEASE_BYTES = 4096
"""The same for leases and idempotency keys."""
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NEVER = datetime.max.replace(tzinfo=UTC)
_MAX_ATTEMPTS = 10**6
_MAX_COUNT = 2**63
_STATUSES = ("completed", "failed", "cancelled")


def encode_job(record: JobRecord, result: JobResult | None = None) -> bytes:
    document: dict[str, Any] = {
        "schema_version": JOB_SCHEMA_VERSION,
        "job_id": record.job_id.text,
        "owner": record.owner,
        "requests": folded([asdict(request) for request in record.requests]),
        "image_ids": [image_id.text for image_id in record.image_ids],
        "created_at": record.created.isoformat(),
        "expires_at": record.expires.isoformat(),
        "holder": record.holder,
        "begun": record.begun,
        "key_digest": record.key_digest,
        "arguments_digest": record.arguments_digest,
        "result_mode": record.result_mode,
    }
    if result is not None:
        document["result"] = {
            "attempt": result.attempt,
            "status": result.status,
            "finished_at": result.finished.isoformat(),
            "missing": folded([asdict(missing) for missing in result.missing]),
            "reason": result.reason,
            "message": result.message,
        }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def decode_job(data: bytes) -> tuple[JobRecord, JobResult | None]:
    """Raises OtherVersion, and ValueError for anything but a whole job of this schema version or an older one."""
    try:
        document = json.loads(data)
        if not 1 <= document["schema_version"] <= JOB_SCHEMA_VERSION:
            raise OtherVersion("a job of another schema version")
        record = _record(document)
        return record, _result(record.job_id, document["result"]) if "result" in document else None
    except (KeyError, TypeError, AttributeError, RecursionError, ImageNotFound, JobNotFound) as error:
        raise ValueError("not a job") from error


def expiry_of_job(data: bytes) -> datetime:
    """When a job expires: never, if a newer version wrote it, so that its idempotency key is not taken from it.

    Raises ValueError.
    """
    try:
        return decode_job(data)[0].expires
    except OtherVersion:
        return _NEVER


def _record(document: dict[str, Any]) -> JobRecord:
    record = JobRecord(
        schema_version=document["schema_version"],
        job_id=JobId.parse(document["job_id"]),
        owner=text(document["owner"]),
        requests=tuple(decode_request(request) for request in unfolded(document["requests"])),
        image_ids=tuple(ImageId.parse(text) for text in document["image_ids"]),
        created=moment(document["created_at"]),
        expires=moment(document["expires_at"]),
        holder=text(document["holder"]),
        begun=document["begun"] is True,
        key_digest=_text_or_none(document["key_digest"]),
        arguments_digest=text(document["arguments_digest"]),
        result_mode=_text_or_none(document.get("result_mode")),
    )
    if record.key_digest is not None and _DIGEST.fullmatch(record.key_digest) is None:
        raise ValueError("a job whose key is no digest")  # it names a file
    if not record.requests or len(record.requests) != len(record.image_ids):
        raise ValueError("a job whose images do not match its requests")
    return record


def _result(job_id: JobId, document: dict[str, Any]) -> JobResult:
    if document["status"] not in _STATUSES:
        raise ValueError("a job with an unknown status")
    return JobResult(
        job_id=job_id,
        attempt=number(document["attempt"], below=_MAX_ATTEMPTS),
        status=document["status"],
        finished=moment(document["finished_at"]),
        missing=tuple(
            MissingImage(
                number=number(missing["number"]),
                seed=number(missing["seed"], least=0, below=_MAX_COUNT),
                reason=text(missing["reason"]),
                message=text(missing["message"]),
            )
            for missing in unfolded(document["missing"])
        ),
        reason=_text_or_none(document["reason"]),
        message=_text_or_none(document["message"]),
    )


def _text_or_none(value: Any) -> str | None:
    return None if value is None else text(value)


def encode_lease(lease: Lease) -> bytes:
    document = {"holder": lease.holder, "beat": lease.beat, "released": lease.released}
    return json.dumps(document, separators=(",", ":")).encode()


def decode_lease(job_id: JobId, attempt: int, data: bytes) -> Lease:
    """Raises ValueError."""
    try:
        document = json.loads(data)
        return Lease(
            job_id=job_id,
            attempt=attempt,
            holder=text(document["holder"]),
            beat=number(document["beat"], least=0, below=_MAX_COUNT),
            released=document["released"] is True,
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a lease") from error


def encode_key(job_id: JobId) -> bytes:
    return json.dumps({"job_id": job_id.text}).encode()


def decode_key(data: bytes) -> JobId:
    """Raises ValueError."""
    try:
        return JobId.parse(json.loads(data)["job_id"])
    except (KeyError, TypeError, RecursionError, JobNotFound) as error:
        raise ValueError("not an idempotency key") from error
