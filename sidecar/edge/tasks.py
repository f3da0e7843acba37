"""The extension `io.modelcontextprotocol/tasks` (SEP-2663) on the jobs: a task is a job, its id the job's.

Only the 2026-07-28 protocol has it, and only a client that declares it on its request ever sees a task. A queued job is
a working task; a generation that failed is a completed task whose result has `isError`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import HEADER_MISMATCH, METHOD_NOT_FOUND, MISSING_REQUIRED_CLIENT_CAPABILITY
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ConfigDict, Field

from sidecar.domain import JobId
from sidecar.edge.errors_map import jsonrpc_errors
from sidecar.edge.tools.results import generation_result
from sidecar.edge.tools.task_result import task_of, unknown_task
from sidecar.edge.tools.tool import Call
from sidecar.errors import GenerationUnknown

EXTENSION_ID = "io.modelcontextprotocol/tasks"

_Context = ServerRequestContext[Any, Any]
_MakeCall = Callable[[_Context], Call]
_Answer = Callable[[Call, JobId], Awaitable[dict[str, Any]]]


class TaskParams(types.RequestParams):
    """What `tasks/get` and `tasks/cancel` take."""

    model_config = ConfigDict(populate_by_name=True)

    task_id: str = Field(alias="taskId", max_length=200)


class UpdateTaskParams(TaskParams):
    """What `tasks/update` takes. No task of ours ever asks for input."""

    input_responses: dict[str, Any] = Field(alias="inputResponses")


def declared(context: _Context) -> bool:
    """Whether the client of this request takes tasks."""
    if context.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        return False
    capabilities = context.session.client_capabilities
    extensions = capabilities.extensions if capabilities is not None else None
    return EXTENSION_ID in (extensions or {})


def register(server: Server[Any], make_call: _MakeCall) -> None:
    """Serve the three methods and say so."""
    server.add_request_handler("tasks/get", TaskParams, _handler(_get, make_call))
    server.add_request_handler("tasks/update", UpdateTaskParams, _handler(_update, make_call))
    server.add_request_handler("tasks/cancel", TaskParams, _handler(_cancel, make_call))
    server.extensions[EXTENSION_ID] = {}


def _handler(answer: _Answer, make_call: _MakeCall) -> Callable[[_Context, TaskParams], Awaitable[dict[str, Any]]]:
    async def handle(context: _Context, params: TaskParams) -> dict[str, Any]:
        with jsonrpc_errors(context.method):
            _check(context, params)
            return {"resultType": "complete", **await answer(make_call(context), JobId.parse(params.task_id))}

    return handle


def _check(context: _Context, params: TaskParams) -> None:
    """Raises MCPError for a request that may not be made, or is not made in the protocol's way."""
    if context.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        raise MCPError(METHOD_NOT_FOUND, "Method not found", data=context.method)
    if not declared(context):
        missing: dict[str, Any] = {"requiredCapabilities": {"extensions": {EXTENSION_ID: {}}}}
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, f"This method needs the capability {EXTENSION_ID}", missing)
    if context.request is not None and context.request.headers.get("mcp-name") != params.task_id:
        raise MCPError(HEADER_MISMATCH, "The Mcp-Name header does not name the task of the request's taskId")


async def _get(call: Call, job_id: JobId) -> dict[str, Any]:
    try:
        view = await call.jobs.view(job_id, call.owner)
    except GenerationUnknown as error:  # an error would end the client's polling
        return unknown_task(job_id, error, call.settings.jobs.ttl)
    task = task_of(view, call.settings.jobs.ttl)
    if view.status in ("completed", "failed"):
        result = await generation_result(call, view)
        task["result"] = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    return task


async def _update(call: Call, job_id: JobId) -> dict[str, Any]:
    """Acknowledged where there is such a task; nothing was asked for, so nothing changes."""
    await call.jobs.view(job_id, call.owner)
    return {}


async def _cancel(call: Call, job_id: JobId) -> dict[str, Any]:
    await call.jobs.cancel(job_id, call.owner)
    return {}
