"""Images as resources, the prompt, completions, and the hints that let clients cache lists."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import mcp_types as types
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from tests.conftest import ERAS, Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, succeed
from tests.pictures import picture


@pytest.mark.parametrize("era", ERAS)
async def test_an_image_is_listed_as_a_resource_and_read(era: str, sidecar: Sidecar) -> None:
    image = await sidecar.made(prompt="a fox")
    async with sidecar.client(era) as client:
        resource, page = (await client.list_resources()).resources
        (contents,) = (await client.read_resource(resource.uri)).contents
        (template,) = (await client.list_resource_templates()).resource_templates
    assert (resource.uri, resource.title, resource.size) == (
        f"image://{image['image_id']}",
        "a fox",
        image["size_bytes"],
    )
    assert isinstance(contents, types.BlobResourceContents)
    assert base64.b64decode(contents.blob) == (await sidecar.get(image["url"]))[1]
    assert (page.uri, page.mime_type) == ("ui://mcp-image-sidecar/image.html", "text/html;profile=mcp-app")
    assert template.uri_template == "image://{image_id}"


async def test_an_image_too_large_for_a_message_is_a_pointer_to_its_url(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(succeed(picture(640, 640, noise=True)))
    image = await sidecar.made()
    assert image["size_bytes"] > 700_000
    async with sidecar.client() as client:
        (contents,) = (await client.read_resource(f"image://{image['image_id']}")).contents
    assert isinstance(contents, types.TextResourceContents)
    assert contents.text.endswith(image["url"])


async def test_resources_are_listed_in_pages(sidecar: Sidecar) -> None:
    made = [await sidecar.made(num_images=4, prompt=f"{number}") for number in range(13)]
    uris: list[str] = []
    async with sidecar.client() as client:
        cursor = None
        while True:
            page = await client.list_resources(cursor=cursor)
            uris += [resource.uri for resource in page.resources]
            cursor = page.next_cursor
            if cursor is None:
                break
    assert (len(made), len(uris), len(set(uris))) == (13, 53, 53)


@pytest.mark.parametrize(("era", "code"), [("auto", types.INVALID_PARAMS), ("legacy", -32002)])
@pytest.mark.parametrize("uri", ["image://" + "0" * 43, "image://../etc", "file:///etc/passwd", "ui://nothing"])
async def test_a_resource_that_is_not_there_is_told_with_its_uri(
    era: str, code: int, uri: str, sidecar: Sidecar
) -> None:
    async with sidecar.client(era) as client:
        with pytest.raises(MCPError) as caught:
            await client.read_resource(uri)
    assert (caught.value.error.code, caught.value.error.data) == (code, {"uri": uri})


async def test_a_cursor_made_by_hand_is_refused(sidecar: Sidecar) -> None:
    async with sidecar.client() as client:
        with pytest.raises(MCPError) as caught:
            await client.list_resources(cursor="by hand")
    assert (caught.value.error.code, caught.value.error.message[:7]) == (types.INVALID_PARAMS, "cursor:")


ASKED: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "resources/list": lambda client: client.list_resources(),
    "resources/read": lambda client: client.read_resource("image://" + "0" * 43),
    "prompts/get": lambda client: client.get_prompt("compose_image_prompt", {"subject": "a fox"}),
    "completion/complete": lambda client: client.complete(
        types.PromptReference(name="compose_image_prompt"), {"name": "model", "value": ""}
    ),
}


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("asked", ASKED)
async def test_a_switch_of_the_mcp_url_that_means_nothing_is_told_whatever_is_asked(
    era: str, asked: str, sidecar: Sidecar
) -> None:
    async with Client(f"{sidecar.url}/mcp?result=bogus", mode=era) as client:
        with pytest.raises(MCPError) as caught:
            await ASKED[asked](client)
    assert (caught.value.error.code, caught.value.error.message) == (
        types.INVALID_PARAMS,
        "The MCP URL has result='bogus'; allowed: link, thumbnail, full. Its user corrects the URL.",
    )


@pytest.mark.parametrize("era", ERAS)
async def test_the_prompt_helps_to_compose_a_prompt(era: str, sidecar: Sidecar) -> None:
    async with sidecar.client(era) as client:
        (prompt,) = (await client.list_prompts()).prompts
        result = await client.get_prompt(prompt.name, {"subject": "a fox in snow", "style": "ink"})
    (message,) = result.messages
    assert (prompt.name, bool(prompt.description)) == ("compose_image_prompt", True)
    assert isinstance(message.content, types.TextContent)
    assert all(
        part in message.content.text for part in ("a fox in snow", "Style: ink", "model painter", "generate_image")
    )


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("compose_image_prompt", {}, "subject is required"),
        ("compose_image_prompt", {"subject": "x", "size": "big"}, "unknown argument 'size'"),
        ("compose_image_prompt", {"subject": "x" * 501}, "subject: 501 characters were given; allowed: 500."),
        ("compose_image_prompt", {"subject": "x", "model": "sdxl"}, "model: there is no model of this name"),
        ("paint", {"subject": "x"}, "Unknown prompt 'paint'; this server has compose_image_prompt."),
    ],
)
async def test_a_wrong_prompt_is_told(name: str, arguments: dict[str, str], told: str, sidecar: Sidecar) -> None:
    async with sidecar.client() as client:
        with pytest.raises(MCPError) as caught:
            await client.get_prompt(name, arguments)
    assert (caught.value.error.code, caught.value.error.message[: len(told)]) == (types.INVALID_PARAMS, told)


@pytest.mark.parametrize("era", ERAS)
async def test_model_names_and_image_ids_are_completed(
    era: str, start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Any
) -> None:
    models = tmp_path / "models.yaml"
    endpoint = f"http://127.0.0.1:{kserve.server.port}/v1/models/painter"
    models.write_text(
        f"models:\n- {{name: painter, endpoint: '{endpoint}'}}\n- {{name: plotter, endpoint: '{endpoint}'}}\n"
    )
    sidecar = await start_sidecar(MODELS_FILE=str(models))
    image_id = (await sidecar.made())["image_id"]
    prompt = types.PromptReference(name="compose_image_prompt")
    image = types.ResourceTemplateReference(uri="image://{image_id}")
    async with sidecar.client(era) as client:
        asked: list[tuple[Any, str, str]] = [
            (prompt, "model", "p"),
            (prompt, "model", "pl"),
            (prompt, "style", "w"),
            (image, "image_id", image_id[:9]),
        ]
        found = [
            (await client.complete(ref, {"name": name, "value": value})).completion.values for ref, name, value in asked
        ]
    assert found == [["painter", "plotter"], ["plotter"], [], [image_id]]


async def test_lists_carry_hints_for_caches(sidecar: Sidecar) -> None:
    async with sidecar.client() as client:
        tools, resources = await client.list_tools(), await client.list_resources()
    assert (tools.ttl_ms, tools.cache_scope) == (300_000, "public")
    assert (resources.ttl_ms, resources.cache_scope) == (2_000, "private")
