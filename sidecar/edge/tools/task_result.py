"""A job as a task of SEP-2663, in the wire's own shape, which the SDK's types do not know."""

from __future__ import annotations

from typing import Any

from sidecar.core.job import JobView
from sidecar.domain import JobId
from sidecar.edge.tools.results import rfc3339, where_it_stands
from sidecar.errors import GenerationUnknown

POLL_MILLISECONDS = 2000


def created(view: JobView, ttl: float) -> dict[str, Any]:
    """The result of a tools/call that goes on as a task; `ttl` in seconds."""
    return {"resultType": "task", **task_of(view, ttl)}


def task_of(view: JobView, ttl: float) -> dict[str, Any]:
    """A queued job is a working task; one that failed is completed, its result says so."""
    ended = view.ended
    message = view.message if ended else where_it_stands(view)
    task = {
        "taskId": str(view.job_id),
        "status": {"cancelled": "cancelled"}.get(view.status, "completed" if ended else "working"),
        "createdAt": rfc3339(view.created),
        "lastUpdatedAt": rfc3339(view.updated),
        "ttlMs": round(ttl * 1000),
        "pollIntervalMs": POLL_MILLISECONDS,
    }
    return {**task, "statusMessage": message} if message else task


def unknown_task(job_id: JobId, error: GenerationUnknown, ttl: float) -> dict[str, Any]:
    """A task that goes on as far as can be told while the store does not answer."""
    created_at = rfc3339(job_id.created)
    return {
        "taskId": str(job_id),
        "status": "working",
        "createdAt": created_at,
        "lastUpdatedAt": created_at,
        "ttlMs": round(ttl * 1000),
        "pollIntervalMs": max(POLL_MILLISECONDS, round(1000 * (error.retry_after or 0))),
        "statusMessage": error.message,
    }
