"""The MCP server: tools, resources, prompts and tasks on the SDK's low-level server, for Streamable HTTP and for stdio.

Every request is complete in itself, in both protocol eras, so that any replica can answer any request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import mcp_types as types
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types.methods import CacheableMethod

from sidecar import __version__
from sidecar.config import Settings
from sidecar.core.job import JobView
from sidecar.core.jobs import JobService
from sidecar.core.service import ImageService
from sidecar.edge import prompts, resources, tasks
from sidecar.edge.asgi_bridge import ASGIApp
from sidecar.edge.errors_map import jsonrpc_errors, no_such_resource
from sidecar.edge.jsonrpc import MAX_MESSAGE_BYTES
from sidecar.edge.mcp_app import app as mcp_app
from sidecar.edge.response_form import ResponseForm
from sidecar.edge.tools import TOOLS
from sidecar.edge.tools.presentation import presentation
from sidecar.edge.tools.results import where_it_stands
from sidecar.edge.tools.tool import Call, Tool, ToolResult
from sidecar.errors import ImageNotFound, InvalidRequest, bounded

INSTRUCTIONS = """\
This server paints images with its operator's own diffusion models. Use generate_image when the user wants a picture,
and show the user the link in its result. When a result says queued or working, wait with get_generation. Images are
deleted when their time is up; the result says when."""

_LASTING = CacheHint(ttl_ms=300_000, scope="public")
_CACHE_HINTS: dict[CacheableMethod, CacheHint] = {
    "server/discover": _LASTING,
    "tools/list": _LASTING,
    "prompts/list": _LASTING,
    "resources/templates/list": _LASTING,
    "resources/list": CacheHint(ttl_ms=2_000, scope="private"),
    "resources/read": CacheHint(ttl_ms=60_000, scope="private"),
}

_Context = ServerRequestContext[Any, Any]


class ImageMCPServer:
    """Registers everything. `own_url` gives this server's address for callers that name none (stdio)."""

    def __init__(self, service: ImageService, jobs: JobService, settings: Settings, own_url: Callable[[], str]) -> None:
        self._service = service
        self._jobs = jobs
        self._settings = settings
        self._own_url = own_url
        self._tools: dict[str, Tool[Any]] = {tool.definition.name: tool for tool in TOOLS}
        self.server: Server[Any] = Server(
            "mcp-image-sidecar",
            version=__version__,
            title="Image generation",
            instructions=INSTRUCTIONS,
            cache_hints=_CACHE_HINTS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_resource_templates,
            on_read_resource=self._read_resource,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
            on_completion=self._complete,
            get_tool_input_schema=lambda _name: None,  # no argument of ours is mirrored in an Mcp-Param header
        )
        tasks.register(self.server, self._call)
        self.server.extensions[mcp_app.EXTENSION_ID] = {"mimeTypes": [mcp_app.APP_MIME_TYPE]}

    # --- tools --------------------------------------------------------------------------------------------------------

    async def _list_tools(
        self, _context: _Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool.definition for tool in self._tools.values()])

    async def _call_tool(self, context: _Context, params: types.CallToolRequestParams) -> Any:
        """A CallToolResult, or a task in the wire's own shape, which the SDK's types do not know."""
        with jsonrpc_errors(params.name):
            tool = self._tools.get(params.name)
            if tool is None:
                known = ", ".join(self._tools)
                raise InvalidRequest(f"Unknown tool {bounded(params.name, 60)!r}; this server has {known}.")
            return await self._run(tool, context, dict(params.arguments or {}))

    async def _run(self, tool: Tool[Any], context: _Context, arguments: dict[str, Any]) -> ToolResult:
        try:
            call = self._call(context)
        except InvalidRequest as error:
            return tool.failed(error)
        return await tool.call(call, arguments)

    # --- resources ----------------------------------------------------------------------------------------------------

    async def _list_resources(
        self, context: _Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        """The images page by page; on the first one also the page that hosts show them with."""
        cursor = params.cursor if params is not None else None
        with jsonrpc_errors("resources/list"):
            page = await resources.list_images(self._call(context), cursor)
            if cursor is None:
                page.resources.append(mcp_app.app_resource(self._image_origins(context)))
            return page

    async def _list_resource_templates(
        self, _context: _Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        return resources.templates()

    async def _read_resource(
        self, context: _Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        uri = str(params.uri)
        with jsonrpc_errors("resources/read"):
            if uri == mcp_app.APP_URI:
                return mcp_app.read_app(self._image_origins(context))
            try:
                return await resources.read_image(self._call(context), uri)
            except ImageNotFound as error:
                raise no_such_resource(error, uri, context.protocol_version) from None

    # --- prompts ------------------------------------------------------------------------------------------------------

    async def _list_prompts(
        self, _context: _Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListPromptsResult:
        return prompts.listed()

    async def _get_prompt(self, context: _Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        with jsonrpc_errors("prompts/get"):
            return prompts.rendered(self._call(context), params.name, params.arguments or {})

    async def _complete(self, context: _Context, params: types.CompleteRequestParams) -> types.CompleteResult:
        with jsonrpc_errors("completion/complete"):
            return await prompts.completed(self._call(context), params)

    # --- a call -------------------------------------------------------------------------------------------------------

    def _call(self, context: _Context) -> Call:
        """Raises InvalidRequest for an MCP URL with switches that mean nothing."""
        query = context.request.query_params if context.request is not None else {}
        return Call(
            service=self._service,
            jobs=self._jobs,
            settings=self._settings,
            base_url=self._base_url(context),
            presentation=presentation(
                query,
                mode=self._settings.result_mode,
                resource_link=self._settings.resource_link,
                protocol_version=context.protocol_version,
            ),
            takes_tasks=tasks.declared(context),
            report=_Reporter(context).report,
        )

    def _image_origins(self, context: _Context) -> list[str]:
        elsewhere = self._service.link_origin
        return [mcp_app.origin(self._base_url(context)), *([] if elsewhere is None else [elsewhere])]

    def _base_url(self, context: _Context) -> str:
        """What links start with: PUBLIC_BASE_URL, or the Host this call came to (which the guard has let through)."""
        if self._settings.listen.public_base_url is not None:
            return self._settings.listen.public_base_url
        host = context.request.headers.get("host") if context.request is not None else None
        return f"{context.request.url.scheme}://{host}" if context.request is not None and host else self._own_url()


class _Reporter:
    """Progress for one call. The number is seconds since its start and only grows, as the protocol demands."""

    def __init__(self, context: _Context) -> None:
        self._session = context.session
        self._started = asyncio.get_running_loop().time()

    async def report(self, view: JobView) -> None:
        elapsed = asyncio.get_running_loop().time() - self._started
        await self._session.report_progress(round(elapsed, 3), None, where_it_stands(view))


def _session_manager(server: Server[Any], *, json_response: bool) -> StreamableHTTPSessionManager:
    """The SDK's session manager, stateless.

    Its own Host check is off: `guard.HostGuard` has checked every request of this server before it comes here.
    """
    return StreamableHTTPSessionManager(
        server,
        stateless=True,
        json_response=json_response,
        max_request_body_size=MAX_MESSAGE_BYTES,
        security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )


@asynccontextmanager
async def served(server: Server[Any]) -> AsyncIterator[ASGIApp]:
    """The MCP endpoint. The SDK's managers are entered and left in one task, as their cancel scopes demand."""
    json, events = (_session_manager(server, json_response=flag) for flag in (True, False))
    started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def run() -> None:
        try:
            async with json.run(), events.run():
                started.set_result(None)
                await stop.wait()
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    task = asyncio.create_task(run(), name="mcp sessions")
    await started
    try:
        yield ResponseForm(json.handle_request, events.handle_request)
    finally:
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task
