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
from mcp_types import HEADER_MISMATCH, INVALID_PARAMS, METHOD_NOT_FOUND, MISSING_REQUIRED_CLIENT_CAPABILITY
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ConfigDict, Field

from sidecar.core.job import JobView
from sidecar.domain import JobId
from sidecar.edge.tools.results import generation_result
from sidecar.edge.tools.task_result import task_of
from sidecar.edge.tools.tool import Call
from sidecar.errors import JobNotFound, bounded

EXTENSION_ID = "io.modelcontextprotocol/tasks"

_Context = ServerRequestContext[Any, Any]
_MakeCall = Callable[[_Context], Call]


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

    async def get(context: _Context, params: TaskParams) -> dict[str, Any]:
        call, job_id = _checked(context, params, make_call)
        view = await _known(call.jobs.view(job_id, call.owner))
        task = task_of(view, call.settings.jobs.ttl)
        if view.status in ("completed", "failed"):
            result = await generation_result(call, view)
            task["result"] = result.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {"resultType": "complete", **task}

    async def update(context: _Context, params: UpdateTaskParams) -> dict[str, Any]:
        call, job_id = _checked(context, params, make_call)
        await _known(call.jobs.view(job_id, call.owner))
        return {"resultType": "complete"}

    async def cancel(context: _Context, params: TaskParams) -> dict[str, Any]:
        call, job_id = _checked(context, params, make_call)
        await _known(call.jobs.cancel(job_id, call.owner))
        return {"resultType": "complete"}

    server.add_request_handler("tasks/get", TaskParams, get)
    server.add_request_handler("tasks/update", UpdateTaskParams, update)
    server.add_request_handler("tasks/cancel", TaskParams, cancel)
    server.extensions[EXTENSION_ID] = {}


def _checked(context: _Context, params: TaskParams, make_call: _MakeCall) -> tuple[Call, JobId]:
    if context.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        raise MCPError(METHOD_NOT_FOUND, "Method not found", data=context.method)
    if not declared(context):
        missing: dict[str, Any] = {"requiredCapabilities": {"extensions": {EXTENSION_ID: {}}}}
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, f"This method needs the capability {EXTENSION_ID}", missing)
    if context.request is not None and context.request.headers.get("mcp-name") != params.task_id:
        raise MCPError(HEADER_MISMATCH, "The Mcp-Name header does not name the task of the request's taskId")
    try:
        return make_call(context), JobId.parse(params.task_id)
    except JobNotFound as error:
        raise MCPError(INVALID_PARAMS, f"{error.message} taskId: {bounded(params.task_id, 60)!r}") from None


async def _known(view: Awaitable[JobView]) -> JobView:
    try:
        return await view
    except JobNotFound as error:
        raise MCPError(INVALID_PARAMS, error.message) from None
