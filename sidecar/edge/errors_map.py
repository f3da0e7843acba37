"""Where errors meet the wire: the only table of its kind.

Two planes for MCP: what a caller or its model can act on is a tool result with `isError`; what is wrong with the
protocol itself is a JSON-RPC error. HTTP gets a status and a JSON body. The unknown is logged whole and answered in
general words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from aiohttp import web
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from sidecar.errors import (
    INTERNAL,
    DecoderUnavailable,
    ImageNotFound,
    InvalidRequest,
    JobNotFound,
    KeyConflict,
    NoPreview,
    QueueFull,
    RuntimeFailure,
    ShuttingDown,
    SidecarError,
    StorageFailure,
    UndecodablePicture,
    bounded,
)

_HTTP_STATUS: tuple[tuple[type[SidecarError], int], ...] = (
    (ImageNotFound, 404),
    (JobNotFound, 404),
    (KeyConflict, 409),
    (InvalidRequest, 400),
    (QueueFull, 429),
    (ShuttingDown, 503),
    (UndecodablePicture, 422),
    (NoPreview, 422),
    (DecoderUnavailable, 503),
    (StorageFailure, 503),
    (RuntimeFailure, 502),
)
_WRONG_PARAMS = (InvalidRequest, ImageNotFound, JobNotFound)
_RESOURCE_NOT_FOUND = -32002  # until 2025-11-25; from 2026-07-28 on it is INVALID_PARAMS (SEP-2164)

_log = structlog.stdlib.get_logger("sidecar.mcp")


def http_answer(error: SidecarError) -> web.Response:
    """The HTTP answer for an error of ours."""
    status, headers = http_status(error)
    return web.json_response({"error": error.message, "reason": error.reason}, status=status, headers=headers)


def http_status(error: SidecarError) -> tuple[int, dict[str, str]]:
    """Status and headers for an error of ours, for any form of the body."""
    status = next((status for kind, status in _HTTP_STATUS if isinstance(error, kind)), 500)
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if error.retry_after is not None and status in (429, 503):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return status, headers


@contextmanager
def jsonrpc_errors(what: str) -> Iterator[None]:
    """Around everything that answers an MCP request: turns every other exception into an MCPError."""
    try:
        yield
    except MCPError:
        raise
    except SidecarError as error:
        code = INVALID_PARAMS if isinstance(error, _WRONG_PARAMS) else INTERNAL_ERROR
        raise MCPError(code, error.message) from None
    except Exception:
        _log.exception("an MCP request failed", what=what)
        raise MCPError(INTERNAL_ERROR, INTERNAL) from None


def no_such_resource(error: ImageNotFound, uri: str, protocol_version: str) -> MCPError:
    """The JSON-RPC error that resources/read has of its own."""
    code = INVALID_PARAMS if protocol_version in MODERN_PROTOCOL_VERSIONS else _RESOURCE_NOT_FOUND
    shown = bounded(uri, 200)
    return MCPError(code, f"There is no resource {shown}. {error.message}", data={"uri": shown})
