"""Jobs as JSON, and back. As with image records, a reader refuses a newer schema version and leaves it alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sidecar.domain import JOB_SCHEMA_VERSION, ImageId, JobId, JobRecord, JobResult, Lease, MissingImage
from sidecar.errors import ImageNotFound, JobNotFound
from sidecar.storages.records import decode_request

_STATUSES = ("completed", "failed", "cancelled")


def encode_job(record: JobRecord, result: JobResult | None = None) -> bytes:
    document: dict[str, Any] = {
        "schema_version": record.schema_version,
        "job_id": record.job_id.text,
        "owner": record.owner,
        "requests": [asdict(request) for request in record.requests],
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
            "missing": [asdict(missing) for missing in result.missing],
            "reason": result.reason,
            "message": result.message,
        }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def decode_job(data: bytes) -> tuple[JobRecord, JobResult | None]:
    """Raises ValueError for anything but a whole job of this schema version or an older one."""
    try:
        document = json.loads(data)
        version = document["schema_version"]
        if not 1 <= version <= JOB_SCHEMA_VERSION:
            raise ValueError("a job of another schema version")
        record = _record(document)
        return record, _result(record.job_id, document["result"]) if "result" in document else None
    except (KeyError, TypeError, AttributeError, RecursionError, ImageNotFound, JobNotFound) as error:
        raise ValueError("not a job") from error


def _record(document: dict[str, Any]) -> JobRecord:
    record = JobRecord(
        schema_version=document["schema_version"],
        job_id=JobId.parse(document["job_id"]),
        owner=str(document["owner"]),
        requests=tuple(decode_request(request) for request in document["requests"]),
        image_ids=tuple(ImageId.parse(text) for text in document["image_ids"]),
        created=_moment(document["created_at"]),
        expires=_moment(document["expires_at"]),
        holder=str(document["holder"]),
        begun=document["begun"] is True,
        key_digest=document["key_digest"],
        arguments_digest=str(document["arguments_digest"]),
        result_mode=document.get("result_mode"),
    )
    if not record.requests or len(record.requests) != len(record.image_ids):
        raise ValueError("a job whose images do not match its requests")
    return record


def _result(job_id: JobId, document: dict[str, Any]) -> JobResult:
    if document["status"] not in _STATUSES:
        raise ValueError("a job that ended in a way nobody knows")
    return JobResult(
        job_id=job_id,
        attempt=int(document["attempt"]),
        status=document["status"],
        finished=_moment(document["finished_at"]),
        missing=tuple(
            MissingImage(
                number=int(missing["number"]),
                seed=int(missing["seed"]),
                reason=str(missing["reason"]),
                message=str(missing["message"]),
            )
            for missing in document["missing"]
        ),
        reason=document["reason"],
        message=document["message"],
    )


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
            holder=str(document["holder"]),
            beat=int(document["beat"]),
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


def _moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("a time without its zone")
    return moment
