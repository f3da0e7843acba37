"""The MCP server: the tools on the SDK's low-level server, for Streamable HTTP and for stdio alike.

Every request is complete in itself, in both protocol eras, so that any replica can answer any request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import mcp_types as types
import structlog
from mcp.server.apps import APP_MIME_TYPE, EXTENSION_ID
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError

from sidecar import __version__
from sidecar.config import Settings
from sidecar.core.generation import Progress
from sidecar.core.service import ImageService
from sidecar.edge.errors_map import INTERNAL
from sidecar.edge.mcp_app.app import APP_URI, origin, read_app
from sidecar.edge.tools import generate_image, results
from sidecar.edge.tools.tool import Call, Tool
from sidecar.errors import SidecarError, bounded

MAX_BODY_BYTES = 256 * 1024

INSTRUCTIONS = """\
This server paints images with its operator's own diffusion models. Use generate_image when the user wants a picture,
and show the user the link in its result. Images are deleted when their time is up; the result says when."""

_log = structlog.stdlib.get_logger("sidecar.mcp")
_Context = ServerRequestContext[Any, Any]


class ImageMCPServer:
    """Registers the tools. `own_url` gives this server's address for callers that name none (stdio)."""

    def __init__(self, service: ImageService, settings: Settings, own_url: Callable[[], str]) -> None:
        self._service = service
        self._settings = settings
        self._own_url = own_url
        self._tools: dict[str, Tool[Any]] = {tool.definition.name: tool for tool in _tools()}
        self.server: Server[Any] = Server(
            "mcp-image-sidecar",
            version=__version__,
            title="Image generation",
            instructions=INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_read_resource=self._read_resource,
            get_tool_input_schema=lambda _name: None,  # no argument of ours is mirrored in an Mcp-Param header
        )
        self.server.extensions[EXTENSION_ID] = {"mimeTypes": [APP_MIME_TYPE]}

    async def _list_tools(
        self, _context: _Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool.definition for tool in self._tools.values()])

    async def _call_tool(self, context: _Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        tool = self._tools.get(params.name)
        if tool is None:
            known = ", ".join(self._tools)
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool {bounded(params.name, 60)!r}; this server has {known}.")
        call = Call(
            service=self._service,
            settings=self._settings,
            base_url=self._base_url(context),
            report=_Reporter(context).report,
        )
        try:
            return await tool.call(call, dict(params.arguments or {}))
        except SidecarError as error:
            return results.failed(error)
        except MCPError:
            raise
        except Exception:
            _log.exception("a tool failed", tool=params.name)
            raise MCPError(types.INTERNAL_ERROR, INTERNAL) from None

    async def _read_resource(
        self, context: _Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        if params.uri != APP_URI:
            raise MCPError(types.INVALID_PARAMS, f"Unknown resource {bounded(params.uri, 100)!r}.")
        return read_app([origin(self._base_url(context))])

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

    async def report(self, progress: Progress) -> None:
        elapsed = asyncio.get_running_loop().time() - self._started
        await self._session.report_progress(round(elapsed, 3), None, _sentence(progress))


def _sentence(progress: Progress) -> str:
    if progress.phase == "queued":
        return f"queued, {progress.ahead} ahead"
    done = f", {progress.finished} of {progress.total} done" if progress.total > 1 else ""
    about = f" of about {progress.estimate:.0f} s" if progress.estimate is not None else " s"
    return f"generating, {progress.elapsed:.0f}{about}{done}"


def _tools() -> Iterable[Tool[Any]]:
    return (generate_image.TOOL,)


@asynccontextmanager
async def session_manager(server: Server[Any]) -> AsyncIterator[StreamableHTTPSessionManager]:
    """The SDK's session manager, stateless, entered and left in one task as its cancel scopes demand.

    Its own Host check is off: `guard.HostGuard` has checked every request of this server before it comes here.
    """
    server.streamable_http_app(
        stateless_http=True,
        json_response=False,
        max_request_body_size=MAX_BODY_BYTES,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    manager = server.session_manager
    started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def run() -> None:
        try:
            async with manager.run():
                started.set_result(None)
                await stop.wait()
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    task = asyncio.create_task(run(), name="mcp sessions")
    await started
    try:
        yield manager
    finally:
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task
