"""The bridges by which hosts that only start commands reach a server over HTTP: mcp-remote and supergateway."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.conftest import TOOL_NAMES, Sidecar
from tests.fake_kserve import FakeKServe
from tests.npm.programs import MODULES, node_program

pytestmark = pytest.mark.npm

BRIDGES: dict[str, tuple[str, ...]] = {
    "mcp-remote": ("mcp-remote/dist/proxy.js",),
    "mcp-remote, both eras": ("mcp-remote/dist/proxy.js", "--protocol", "auto"),
    "supergateway": ("supergateway/dist/index.js", "--logLevel", "none", "--streamableHttp"),
}
Connect = Callable[..., AbstractAsyncContextManager[Client]]


def bridge_arguments(name: str, url: str) -> list[str]:
    """The bridge's script and its arguments. mcp-remote takes the URL first, supergateway last."""
    script, *options = BRIDGES[name]
    arguments = [url, *options] if name.startswith("mcp-remote") else [*options, url]
    return [str(MODULES / script), *arguments]


@pytest.fixture(params=BRIDGES)
def bridged(request: pytest.FixtureRequest, sidecar: Sidecar, tmp_path: Path) -> Connect:
    """A client at the other end of the bridge; `query` is put behind the MCP URL."""

    @asynccontextmanager
    async def connect(query: str = "") -> AsyncIterator[Client]:
        arguments = bridge_arguments(request.param, f"{sidecar.url}/mcp{query}")
        parameters = StdioServerParameters(
            command=node_program(), args=arguments, env={**os.environ, "HOME": str(tmp_path)}
        )
        with (tmp_path / "bridge.log").open("w") as log:
            async with Client(stdio_client(parameters, errlog=log), mode="legacy") as client:
                yield client

    return connect


async def test_a_host_that_starts_commands_gets_an_image(bridged: Connect, sidecar: Sidecar) -> None:
    async with bridged() as client:
        listed = [tool.name for tool in (await client.list_tools()).tools]
        result = await client.call_tool("generate_image", {"prompt": "a cat"})
        assert result.structured_content is not None, result
        (image,) = result.structured_content["images"]
        (content,) = (await client.read_resource(f"image://{image['image_id']}")).contents
    _, body = await sidecar.get(image["url"])
    assert listed == TOOL_NAMES
    assert [block.type for block in result.content] == ["text", "image"]
    assert base64.b64decode(content.blob) == body  # type: ignore[union-attr]
    assert hashlib.sha256(body).hexdigest() == image["sha256"]


async def test_the_switches_of_the_url_pass_through_a_bridge(bridged: Connect) -> None:
    async with bridged("?image=off&resource_link=on") as client:
        result = await client.call_tool("generate_image", {"prompt": "a cat"})
    assert [block.type for block in result.content] == ["text", "resource_link"]


@pytest.mark.usefixtures("never")
async def test_a_budget_in_the_url_passes_through_a_bridge(bridged: Connect, kserve: FakeKServe) -> None:
    async with bridged("?budget=50ms") as client:
        result = await client.call_tool("generate_image", {"prompt": "a cat"})
    assert result.structured_content is not None, result
    assert result.structured_content["status"] in ("queued", "working")
    assert result.structured_content["job_id"]
