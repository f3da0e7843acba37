"""The clients that hosts are built with: releases of both generations of the client SDK, and the inspector."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Sidecar
from tests.npm.programs import HERE, MODULES, node

pytestmark = pytest.mark.npm

OLD_SDKS = ("sdk-1.10 legacy", "sdk-1.17 legacy", "sdk-1.22 legacy")
"""Releases that hosts still ship: before resource links, after them, and one that resolves no `$ref` in a schema."""
SDKS = (*OLD_SDKS, "sdk legacy", "client legacy", "client modern")
CLIENTS = (*SDKS, "inspector legacy", "inspector modern")
INSPECTOR = MODULES / "@modelcontextprotocol" / "inspector" / "clients" / "launcher" / "build" / "index.js"

_TOOL_FAILED = 5  # the inspector's exit code for a result that is an error

Params = Mapping[str, Any]
_SDK_CALLS = {
    "tools/list": "listTools",
    "tools/call": "callTool",
    "prompts/list": "listPrompts",
    "prompts/get": "getPrompt",
    "resources/list": "listResources",
    "resources/templates/list": "listResourceTemplates",
    "resources/read": "readResource",
    "completion/complete": "complete",
}


class NpmClient:
    """One of `CLIENTS` beside a sidecar; each request is a process and a connection of its own."""

    def __init__(self, name: str, sidecar: Sidecar, home: Path) -> None:
        self._name = name
        self._url = f"{sidecar.url}/mcp"
        self._home = home

    async def ask(self, method: str, params: Params | None = None) -> dict[str, Any]:
        """The result of one request."""
        program, _, era = self._name.partition(" ")
        if program == "inspector":
            return await self._inspect(era, method, params or {})
        asked = (self._name, self._url, _SDK_CALLS[method], json.dumps(params or {}))
        done = await node(HERE / "ask.mjs", *asked, home=self._home)
        assert done.code == 0, done
        answer: dict[str, Any] = json.loads(done.output)
        return answer

    async def _inspect(self, era: str, method: str, params: Params) -> dict[str, Any]:
        target = ("--cli", self._url, "--transport", "http", "--protocol-era", era)
        done = await node(INSPECTOR, *target, "--format", "json", *_options(method, params), home=self._home)
        assert done.output, done
        result: dict[str, Any] = json.loads(done.output)["result"]
        assert done.code == (_TOOL_FAILED if result.get("isError") else 0), done
        return result


def _options(method: str, params: Params) -> tuple[str, ...]:
    """A request as the inspector's command line."""
    named: tuple[str, ...] = ()
    match method:
        case "tools/call":
            named = ("--tool-name", params["name"], "--tool-args-json", json.dumps(params["arguments"]))
        case "prompts/get":
            pairs = (f"{name}={value}" for name, value in params["arguments"].items())
            named = ("--prompt-name", params["name"], "--prompt-args", *pairs)
        case "resources/read":
            named = ("--uri", params["uri"])
    return ("--method", method, *named)


@pytest.fixture
def client(request: pytest.FixtureRequest, sidecar: Sidecar, tmp_path: Path) -> NpmClient:
    return NpmClient(request.param, sidecar, tmp_path)


every_client = pytest.mark.parametrize("client", CLIENTS, indirect=True)
every_sdk = pytest.mark.parametrize("client", SDKS, indirect=True)


@every_client
async def test_the_tools_are_listed_with_their_schemas(client: NpmClient) -> None:
    tools = {tool["name"]: tool for tool in (await client.ask("tools/list"))["tools"]}
    assert tools["generate_image"]["inputSchema"]["required"] == ["prompt"]
    assert "images" in tools["generate_image"]["outputSchema"]["properties"]


@every_client
async def test_a_call_becomes_an_image_at_its_link(client: NpmClient, sidecar: Sidecar) -> None:
    arguments = {"prompt": "a cat", "result": "link"}
    result = await client.ask("tools/call", {"name": "generate_image", "arguments": arguments})
    (image,) = result["structuredContent"]["images"]
    assert [block["type"] for block in result["content"]] == ["text"]
    assert (result["structuredContent"]["status"], image["url"] in result["content"][0]["text"]) == ("completed", True)
    response, body = await sidecar.get(image["url"])
    assert (response.status, response.content_type) == (200, "image/png")
    assert hashlib.sha256(body).hexdigest() == image["sha256"]


@every_client
async def test_a_result_with_its_preview_is_read(client: NpmClient) -> None:
    result = await client.ask("tools/call", {"name": "generate_image", "arguments": {"prompt": "a cat"}})
    assert [(block["type"], block.get("mimeType")) for block in result["content"]] == [
        ("text", None),
        ("image", "image/webp"),
    ]


@every_client
async def test_what_the_caller_can_mend_is_a_result_and_no_exception(client: NpmClient) -> None:
    arguments = {"prompt": "a cat", "steps": 4}
    result = await client.ask("tools/call", {"name": "generate_image", "arguments": arguments})
    assert result["isError"]
    assert "num_inference_steps" in result["content"][0]["text"]


@every_client
async def test_the_prompt_is_listed_and_composed(client: NpmClient) -> None:
    prompts = {prompt["name"]: prompt for prompt in (await client.ask("prompts/list"))["prompts"]}
    arguments = {argument["name"]: argument for argument in prompts["compose_image_prompt"]["arguments"]}
    assert {name for name, argument in arguments.items() if argument.get("required")} == {"subject"}
    assert set(arguments) == {"subject", "style", "model"}
    asked = {"name": "compose_image_prompt", "arguments": {"subject": "a lighthouse", "style": "watercolour"}}
    text = json.dumps((await client.ask("prompts/get", asked))["messages"])
    assert "a lighthouse" in text
    assert "watercolour" in text


@every_client
async def test_an_image_is_listed_and_read_as_a_resource(client: NpmClient, sidecar: Sidecar) -> None:
    image = await sidecar.made()
    uri = f"image://{image['image_id']}"
    assert uri in [resource["uri"] for resource in (await client.ask("resources/list"))["resources"]]
    (content,) = (await client.ask("resources/read", {"uri": uri}))["contents"]
    assert (content["uri"], content["mimeType"]) == (uri, "image/png")
    assert hashlib.sha256(base64.b64decode(content["blob"])).hexdigest() == image["sha256"]


@every_client
async def test_the_template_of_the_resources_is_listed(client: NpmClient) -> None:
    templates = (await client.ask("resources/templates/list"))["resourceTemplates"]
    assert "image://{image_id}" in [template["uriTemplate"] for template in templates]


@every_sdk
async def test_the_prompts_model_argument_is_completed(client: NpmClient) -> None:
    reference = {"type": "ref/prompt", "name": "compose_image_prompt"}
    asked = {"ref": reference, "argument": {"name": "model", "value": "pa"}}
    completion = (await client.ask("completion/complete", asked))["completion"]
    assert completion["values"] == ["painter"]
