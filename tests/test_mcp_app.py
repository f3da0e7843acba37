"""The MCP App as a host with MCP Apps finds it, and as one without never notices it."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.extension import advertise
from mcp.server.apps import APP_MIME_TYPE, EXTENSION_ID
from mcp.shared.exceptions import MCPError

from sidecar.edge.mcp_app.app import APP_URI, app_resource, document, origin, read_app
from tests.conftest import ERAS, Sidecar, StartSidecar


def ui(sidecar_meta: dict[str, Any] | None) -> dict[str, Any]:
    assert sidecar_meta is not None
    found: dict[str, Any] = sidecar_meta["ui"]
    return found


@pytest.mark.parametrize("era", ERAS)
async def test_the_tool_names_a_page_that_can_be_read(era: str, sidecar: Sidecar) -> None:
    async with sidecar.client(era) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        uri = ui(tools["generate_image"].meta)["resourceUri"]
        (page,) = (await client.read_resource(uri)).contents
    assert (page.uri, page.mime_type) == (APP_URI, "text/html;profile=mcp-app")
    assert getattr(page, "text", "").startswith("<!doctype html>")


@pytest.mark.parametrize("era", ERAS)
async def test_the_page_may_load_images_from_where_this_caller_gets_them_and_nothing_else(
    era: str, sidecar: Sidecar
) -> None:
    async with sidecar.client(era) as client:
        (page,) = (await client.read_resource(APP_URI)).contents
    image = await sidecar.made()
    assert ui(page.meta) == {
        "csp": {"connectDomains": [], "resourceDomains": [sidecar.url]},
        "permissions": {"clipboardWrite": {}},
        "prefersBorder": True,
    }
    assert image["url"].startswith(f"{sidecar.url}/")


async def test_behind_a_public_address_the_page_loads_images_from_there(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(PUBLIC_BASE_URL="https://images.example.com/paint")
    async with sidecar.client() as client:
        (page,) = (await client.read_resource(APP_URI)).contents
    assert ui(page.meta)["csp"]["resourceDomains"] == ["https://images.example.com"]


async def test_the_server_says_that_it_has_apps(sidecar: Sidecar) -> None:
    async with sidecar.client() as client:  # the handshake era's capabilities have no place for extensions
        extensions = client.server_capabilities.extensions or {}
    assert extensions[EXTENSION_ID] == {"mimeTypes": [APP_MIME_TYPE]}


@pytest.mark.parametrize("era", ERAS)
async def test_a_host_without_apps_gets_the_very_same_results(era: str, sidecar: Sidecar) -> None:
    with_apps = [advertise(EXTENSION_ID, {"mimeTypes": [APP_MIME_TYPE]})]
    results = []
    for extensions in (with_apps, None):
        async with Client(f"{sidecar.url}/mcp", mode=era, extensions=extensions) as client:
            results.append(await client.call_tool("generate_image", {"prompt": "a cat", "seed": 7}))
    seen = [(result.meta, [block.type for block in result.content], result.is_error) for result in results]
    assert seen[0] == seen[1]
    assert seen[1][1:] == (["text", "image"], False)
    assert [set(result.structured_content["images"][0]) for result in results] == [
        set(results[0].structured_content["images"][0])
    ] * 2


@pytest.mark.parametrize("era", ERAS)
async def test_another_page_is_an_error_that_names_it(era: str, sidecar: Sidecar) -> None:
    async with sidecar.client(era) as client:
        with pytest.raises(MCPError, match="ui://mcp-image-sidecar/other"):
            await client.read_resource("ui://mcp-image-sidecar/other.html")


class _References(HTMLParser):
    """Everything in a document by which a browser would load something, and what elements it has."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[tuple[str, str]] = []
        self.elements: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        loading = ("src", "href", "srcset", "action", "formaction", "data", "poster", "background", "ping", "style")
        self.references += [(tag, name) for name, _ in attrs if name in loading or name.startswith("on")]


def test_the_document_refers_to_nothing_outside_itself() -> None:
    text = document()
    parser = _References()
    parser.feed(text)
    parser.close()
    assert parser.references == []
    assert (parser.elements.count("style"), parser.elements.count("script")) == (1, 1)
    assert not {"link", "base", "iframe", "object", "embed", "form"} & set(parser.elements)
    assert text.rstrip().endswith("</html>")
    for reaching_out in ("http://", "https://", "@import", "url(", "fetch(", "XMLHttpRequest", "WebSocket", "import("):
        assert reaching_out not in text.replace("that take no url() read", ""), reaching_out
    for markup in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert markup not in text, markup


def test_the_listed_resource_declares_what_reading_it_does() -> None:
    listed, (read,) = app_resource(["http://images:8000"]), read_app(["http://images:8000"]).contents
    assert (listed.uri, listed.mime_type, listed.meta) == (read.uri, read.mime_type, read.meta)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://images.example.com/a/b?c", "https://images.example.com"),
        ("https://me:secret@images.example.com/", "https://images.example.com"),
        ("http://[::1]:8000/images", "http://[::1]:8000"),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, expected: str) -> None:
    assert origin(url) == expected


@pytest.mark.parametrize("given", ["http://a; script-src *", "http://a b", "data:", "*", "", "http://a'", "ftp://a"])
def test_what_is_no_origin_never_reaches_the_policy(given: str) -> None:
    (page,) = read_app([given, "http://images:8000"]).contents
    assert ui(page.meta)["csp"]["resourceDomains"] == ["http://images:8000"]
