"""Where errors meet the wire: the only table of its kind.

Two planes for MCP: what a caller or its model can act on is a tool result with `isError`; what is wrong with the
protocol itself is a JSON-RPC error. HTTP gets a status and a JSON body. The unknown is logged whole and answered in
general words.
"""

from __future__ import annotations

from aiohttp import web

from sidecar.errors import (
    ImageNotFound,
    InvalidRequest,
    JobNotFound,
    KeyConflict,
    QueueFull,
    RuntimeFailure,
    ShuttingDown,
    SidecarError,
    StorageFailure,
    UndecodablePicture,
)

_HTTP_STATUS: tuple[tuple[type[SidecarError], int], ...] = (
    (ImageNotFound, 404),
    (JobNotFound, 404),
    (KeyConflict, 409),
    (InvalidRequest, 400),
    (QueueFull, 429),
    (ShuttingDown, 503),
    (UndecodablePicture, 422),
    (StorageFailure, 503),
    (RuntimeFailure, 502),
)


def http_answer(error: SidecarError) -> web.Response:
    """The HTTP answer for an error of ours."""
    status, headers = http_status(error)
    return web.json_response({"error": error.message, "reason": error.reason}, status=status, headers=headers)


def http_status(error: SidecarError) -> tuple[int, dict[str, str]]:
    """Status and headers for an error of ours, whatever its body is made of."""
    status = next((status for kind, status in _HTTP_STATUS if isinstance(error, kind)), 500)
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if error.retry_after is not None and status in (429, 503):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return status, headers
