"""Finding, describing and deleting images by tools; models; the switches of the MCP URL."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from mcp.client import Client

from sidecar.edge.tools import TOOLS
from tests.conftest import ERAS, Sidecar, StartSidecar, raw_tool_call
from tests.fake_kserve import FakeKServe


async def call(sidecar: Sidecar, tool: str, era: str = "auto", **arguments: Any) -> Any:
    async with sidecar.client(era) as client:
        return await client.call_tool(tool, arguments)


async def structured(sidecar: Sidecar, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await call(sidecar, tool, **arguments)
    assert not result.is_error, result.content
    found: dict[str, Any] = result.structured_content
    return found


async def listed(sidecar: Sidecar, **arguments: Any) -> tuple[list[str], str | None]:
    """The prompts of one page, and the cursor of the next."""
    page = await structured(sidecar, "list_generated_images", **arguments)
    return [image["prompt"] for image in page["images"]], page["next_cursor"]


@pytest.mark.parametrize("era", ERAS)
async def test_every_tool_is_described_and_keeps_its_schema(era: str, sidecar: Sidecar) -> None:
    image_id = (await sidecar.made())["image_id"]
    given: dict[str, dict[str, Any]] = {
        "get_image_metadata": {"image_id": image_id},
        "list_generated_images": {},
        "list_models": {},
        "delete_image": {"image_id": image_id},
    }
    async with sidecar.client(era) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        for name, arguments in given.items():
            result = await client.call_tool(name, arguments)
            jsonschema.validate(result.structured_content, tools[name].output_schema or {})
            assert not result.is_error
    assert all(tool.description and tool.annotations for tool in tools.values())
    destructive = {name for name, tool in tools.items() if tool.annotations and tool.annotations.destructive_hint}
    assert destructive == {"delete_image", "cancel_generation"}
    assert {name for name, tool in tools.items() if tool.meta} == {"generate_image", "list_generated_images"}


def test_every_argument_says_what_is_allowed() -> None:
    assert all(set(tool.arguments.allowed) == set(tool.arguments.model_fields) for tool in TOOLS)


async def test_images_are_listed_newest_first_page_by_page(sidecar: Sidecar) -> None:
    for prompt in ("one", "two", "three"):
        await sidecar.made(prompt=prompt)
    prompts, cursor = await listed(sidecar, limit=2)
    await sidecar.made(prompt="four")  # what comes meanwhile does not disturb the pages
    assert (prompts, await listed(sidecar, limit=2, cursor=cursor)) == (["three", "two"], (["one"], None))


async def test_the_images_of_one_call_are_listed_in_the_order_asked_for_beneath_newer_ones(sidecar: Sidecar) -> None:
    for call_number in range(3):
        await sidecar.generate(prompt=f"call {call_number}", num_images=4, seed=10 * call_number, result="link")
    page = await structured(sidecar, "list_generated_images", limit=5)
    rest = await structured(sidecar, "list_generated_images", limit=50, cursor=page["next_cursor"])
    seeds = [image["seed"] for image in page["images"] + rest["images"]]
    assert seeds == [20, 21, 22, 23, 10, 11, 12, 13, 0, 1, 2, 3]


async def test_a_page_goes_on_where_an_image_was_deleted(sidecar: Sidecar) -> None:
    made = [await sidecar.made(prompt=prompt) for prompt in ("one", "two", "three")]
    _, cursor = await listed(sidecar, limit=2)
    await structured(sidecar, "delete_image", image_id=made[1]["image_id"])
    assert await listed(sidecar, limit=2, cursor=cursor) == (["one"], None)


async def test_a_list_is_filtered_by_model_and_prompt(sidecar: Sidecar) -> None:
    for prompt in ("A red Fox", "a blue cat"):
        await sidecar.made(prompt=prompt)
    assert await listed(sidecar, prompt_contains="FOX") == (["A red Fox"], None)
    assert await listed(sidecar, model="painter", prompt_contains="a ") == (["a blue cat", "A red Fox"], None)
    assert await listed(sidecar, model="other") == ([], None)


async def test_metadata_holds_all_that_makes_the_image_again(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(RUNTIME_PROFILE="diffusers-seed")
    asked = {"prompt": "a cat", "negative_prompt": "dogs", "width": 64, "height": 72, "seed": 5, "guidance_scale": 3.5}
    image = await sidecar.made(**asked, num_inference_steps=4)
    found = await structured(sidecar, "get_image_metadata", image_id=image["image_id"])
    assert {key: found[key] for key in image} == image
    assert found["arguments"] == {**asked, "num_inference_steps": 4, "model": "painter"}
    assert (found["seed_applied"], found["model_revision"], found["dropped_parameters"]) == (True, None, [])
    again = await sidecar.made(**found["arguments"])
    assert kserve.instances[0] == kserve.instances[1]
    assert again["image_id"] != image["image_id"]


async def test_deleting_takes_image_thumbnail_and_record_and_twice_is_no_error(sidecar: Sidecar) -> None:
    image = await sidecar.made()
    await sidecar.get(image["thumbnail_url"])
    first = await structured(sidecar, "delete_image", image_id=image["image_id"])
    second = await structured(sidecar, "delete_image", image_id=image["image_id"])
    assert (first["deleted"], second["deleted"]) == (True, False)
    assert [name for name in sidecar.stored() if image["image_id"] in name] == []
    assert (await sidecar.get(image["url"]))[0].status == 404


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("list_generated_images", {"limit": 0}, "limit: 0 was given; allowed: 1 to 50."),
        ("list_generated_images", {"limit": 10**6}, "limit: 1000000 was given; allowed: 1 to 50."),
        ("list_generated_images", {"cursor": "made by hand"}, "cursor: not one that this server gave"),
        ("list_generated_images", {"cursor": "0" * 43}, "cursor: not one that this server gave"),
        ("list_generated_images", {"limits": 2}, "unknown argument 'limits'; use limit. list_generated_images takes"),
        ("get_image_metadata", {"image_id": "../secret"}, "There is no image with this id"),
        ("get_image_metadata", {"image_id": "0" * 43}, "There is no image with this id"),
        ("get_image_metadata", {}, "image_id is required: the image_id of a result"),
        ("delete_image", {"image_id": "*"}, "There is no image with this id"),
    ],
)
async def test_bad_input_is_told_in_one_sentence(
    tool: str, arguments: dict[str, Any], told: str, sidecar: Sidecar
) -> None:
    result = await call(sidecar, tool, **arguments)
    assert (result.is_error, result.content[0].text[: len(told)]) == (True, told)


async def test_models_are_listed_with_the_default_first(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(RUNTIME_PROFILE="diffusers-seed", DEFAULT_IMAGE_SIZE="1024x768")
    assert (await structured(sidecar, "list_models"))["models"] == [
        {
            "name": "painter",
            "default": True,
            "default_width": 1024,
            "default_height": 768,
            "takes_seed": True,
            "waiting": 0,
            "estimate_seconds": None,
        }
    ]


# --- switches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("query", "kinds"),
    [
        ("", ["text", "image"]),
        ("?result=link", ["text"]),
        ("?resource_link=off", ["text", "image"]),
        ("?image=off", ["text"]),
        ("?image=off&resource_link=on", ["text", "resource_link"]),
        ("?result=full&resource_link=on", ["text", "resource_link", "image"]),
    ],
)
async def test_the_urls_switches_leave_out_what_a_host_cannot_take(
    query: str, kinds: list[str], era: str, sidecar: Sidecar
) -> None:
    async with Client(f"{sidecar.url}/mcp{query}", mode=era) as client:
        result = await client.call_tool("generate_image", {"prompt": "a cat"})
    assert [block.type for block in result.content] == kinds


async def test_the_calls_own_result_comes_before_the_urls(sidecar: Sidecar) -> None:
    async with Client(f"{sidecar.url}/mcp?result=link") as client:
        result = await client.call_tool("generate_image", {"prompt": "a cat", "result": "thumbnail"})
    assert [block.type for block in result.content] == ["text", "image"]


@pytest.mark.parametrize(
    ("setting", "query", "version", "links"),
    [
        ("on", "", "2026-07-28", 1),
        ("on", "", "2025-06-18", 1),
        ("on", "", "2025-03-26", 0),
        ("on", "?resource_link=off", "2025-06-18", 0),
        ("off", "?resource_link=on", "2025-06-18", 1),
        ("off", "?resource_link=on", "2025-03-26", 0),
        ("off", "?resource_link=on", "2024-11-05", 0),
    ],
)
async def test_a_resource_link_is_sent_where_it_is_switched_on_to_revisions_that_know_it(
    setting: str, query: str, version: str, links: int, start_sidecar: StartSidecar
) -> None:
    sidecar = await start_sidecar(RESULT_RESOURCE_LINK=setting)
    call = raw_tool_call("auto" if version == "2026-07-28" else "legacy", {"prompt": "a cat", "result": "link"})
    call["headers"]["MCP-Protocol-Version"] = version
    _, answer = await sidecar.get(f"/mcp{query}", method="POST", **call)
    assert answer.count(b'"resource_link"') == links
    (image,) = await listed_urls(sidecar)
    assert image.encode() in answer


async def listed_urls(sidecar: Sidecar) -> list[str]:
    return [image["url"] for image in (await structured(sidecar, "list_generated_images"))["images"]]


@pytest.mark.parametrize("era", ERAS)
async def test_a_host_that_gives_up_early_gets_a_job_within_its_budget(era: str, never: None, sidecar: Sidecar) -> None:
    async with Client(f"{sidecar.url}/mcp?budget=50ms", mode=era) as client:
        result: Any = await client.call_tool("generate_image", {"prompt": "a cat"})
        assert (result.is_error, result.structured_content["status"]) == (False, "working")
        again: Any = await client.call_tool("get_generation", {"job_id": result.structured_content["job_id"]})
    assert again.structured_content["status"] == "working"


async def test_the_servers_own_budget_is_the_upper_bound(never: None, start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(RESPONSE_BUDGET="0.1s")
    async with Client(f"{sidecar.url}/mcp?budget=1h") as client:
        result: Any = await client.call_tool("generate_image", {"prompt": "a cat"})
    assert result.structured_content["status"] == "working"


@pytest.mark.parametrize("given", ["", "0", "-4s", "soon", "4 s", "1e3", "nan"])
async def test_a_budget_that_is_no_duration_is_told(given: str, sidecar: Sidecar, kserve: FakeKServe) -> None:
    async with Client(f"{sidecar.url}/mcp?budget={given}") as client:
        result: Any = await client.call_tool("generate_image", {"prompt": "a cat"})
    told = f"The MCP URL has budget={given!r}; allowed: seconds, or a number with ms"
    assert (result.is_error, result.content[0].text[: len(told)], kserve.instances) == (True, told, [])


async def test_a_switch_that_means_nothing_is_told(sidecar: Sidecar, kserve: FakeKServe) -> None:
    async with Client(f"{sidecar.url}/mcp?result=big") as client:
        result: Any = await client.call_tool("generate_image", {"prompt": "a cat"})
    told = "The MCP URL has result='big'; allowed: link, thumbnail, full."
    assert (result.is_error, result.content[0].text.startswith(told), kserve.instances) == (True, True, [])
