"""What hosts send with a tool call besides what the tool asks for, and schemas that every host can read (issue 14)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.edge.tools import TOOLS
from sidecar.edge.tools.unknown_arguments import MAX_LOOKED_AT, intended
from tests.conftest import ERAS, Sidecar
from tests.fake_kserve import FakeKServe

FROM_N8N = {"toolCallId": "call_1", "sessionId": "s-1", "action": "sendMessage", "chatInput": "draw me a SECRET cat"}
GENERATE = TOOLS[0].arguments


def keywords(schema: Any) -> Iterator[str]:
    """Every keyword of a schema, at any depth; names of properties are none."""
    if isinstance(schema, list):
        for part in schema:
            yield from keywords(part)
    elif isinstance(schema, dict):
        for keyword, part in schema.items():
            yield keyword
            yield from keywords(list(part.values()) if keyword == "properties" else part)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.definition.name)
def test_schemas_are_flat(tool: Any) -> None:
    given, answered = (
        set(keywords(schema)) for schema in (tool.definition.input_schema, tool.definition.output_schema)
    )
    assert given <= {"type", "properties", "required", "description", "default", "enum", "const", "minimum", "maximum",
                     "minLength", "maxLength"}  # fmt: skip
    assert {"$defs", "$ref"} & answered == set()


@pytest.mark.parametrize("era", ERAS)
async def test_what_a_host_adds_is_ignored_named_and_kept_nowhere(
    era: str, sidecar: Sidecar, kserve: FakeKServe, capfd: pytest.CaptureFixture[str]
) -> None:
    first = await sidecar.generate(era, idempotency_key="k", **FROM_N8N)
    note = "Ignored unknown arguments 'toolCallId', 'sessionId', 'action', 'chatInput'."
    assert (first.is_error, first.structured_content["message"]) == (False, note)
    assert first.content[0].text.endswith(f"\n{note}")
    again = await sidecar.generate(era, idempotency_key="k", toolCallId="call_2")
    assert again.structured_content["job_id"] == first.structured_content["job_id"]
    assert kserve.instances == [{"prompt": "a cat"}]
    kept = "".join(path.read_text("latin-1") for path in sidecar.store.rglob("*.json"))
    logged = capfd.readouterr().out
    assert ("a cat" in kept, "SECRET" in kept) == (True, False)
    assert ("a cat" in logged, "SECRET" in logged) == (True, False)


@pytest.mark.parametrize("name", ["list_models", "list_generated_images"])
async def test_every_tool_ignores_and_names_what_it_does_not_know(name: str, sidecar: Sidecar) -> None:
    async with sidecar.client() as client:
        result: Any = await client.call_tool(
            name, {"x" * 100: 1, "\u202eevil\n": 2, **{f"more{i}": 3 for i in range(9)}}
        )
    message = result.structured_content["message"]
    assert (result.is_error, "and 3 more." in message, len(message) < 300) == (False, True, True)
    assert ("\n" in message, "x" * 61 in message) == (False, False)


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("steps", "num_inference_steps"),
        ("num_steps", "num_inference_steps"),
        ("cfg_scale", "guidance_scale"),
        ("cfgScale", "guidance_scale"),
        ("size", "width and height"),
        ("n", "num_images"),
        ("negativePrompt", "negative_prompt"),
        ("negative-prompt", "negative_prompt"),
        ("promt", "prompt"),
        ("prmopt", "prompt"),
        ("widht", "width"),
        ("hieght", "height"),
        ("seeds", "seed"),
        ("Prompt", "prompt"),
        ("guidence_scale", "guidance_scale"),
        ("aspect_ration", "aspect_ratio"),
    ],
)
async def test_a_misspelt_argument_is_an_error_that_names_the_right_one(
    given: str, right: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    result = await sidecar.generate("auto", **{given: 1})
    told = f"unknown argument {given!r}; use {right}. generate_image takes prompt, "
    assert (result.is_error, result.content[0].text[: len(told)]) == (True, told)
    assert kserve.instances == []


@pytest.mark.parametrize(
    "name",
    [*FROM_N8N, "tool", "toolName", "name", "id", "query", "input", "quality", "style", "user", "metadata", "context",
     "timeout", "type", "mode_", "_meta", "", "x", "read", "request"],
)  # fmt: skip
def test_what_looks_like_no_argument_is_not_taken_for_one(name: str) -> None:
    expected = {"mode_": "model"}.get(name)
    assert intended(name, GENERATE.model_fields, GENERATE.aliases) == expected


async def test_a_flood_of_unknown_arguments_is_ignored_without_a_look_at_each(sidecar: Sidecar) -> None:
    """A message has room for 25,000 of them; to compare each with the known ones takes seconds."""
    flood = dict.fromkeys([*(f"extra{number}" for number in range(MAX_LOOKED_AT)), "promt"], "1")
    result = await sidecar.generate(**flood)
    assert not result.is_error
    assert f"and {len(flood) - 8} more" in result.structured_content["message"]


async def test_an_empty_text_and_a_seed_of_minus_one_leave_an_argument_out(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    empty = {name: "" for name in GENERATE.model_fields if name != "prompt"}
    made = await sidecar.made(**{**empty, "seed": -1, "aspect_ratio": "  ", "result": "link"})
    assert kserve.instances == [{"prompt": "a cat"}]
    assert made["seed"] >= 0
    refused = await sidecar.generate(prompt="")
    assert (refused.is_error, refused.content[0].text[:6]) == (True, "prompt")


@pytest.mark.parametrize(
    "spelling", ["{id}", "{id}.png", "image://{id}", "{url}", "{thumbnail_url}", " {url}?x=1 ", "/images/{id}.png"]
)
async def test_an_image_is_named_by_id_file_link_or_resource(spelling: str, sidecar: Sidecar) -> None:
    image = await sidecar.made()
    named = spelling.format(id=image["image_id"], url=image["url"], thumbnail_url=image["thumbnail_url"])
    async with sidecar.client() as client:
        found: Any = await client.call_tool("get_image_metadata", {"image_id": named})
        assert (found.is_error, found.structured_content["image_id"]) == (False, image["image_id"])
        deleted: Any = await client.call_tool("delete_image", {"image_id": named})
    assert deleted.structured_content["deleted"]


@pytest.mark.parametrize(
    "named", ["https://elsewhere.example/images/{id}.png", "{id}.gif", "image://{id}/x", "{id}{id}"]
)
async def test_an_image_of_elsewhere_is_not_taken_for_one_of_ours(named: str, sidecar: Sidecar) -> None:
    image = await sidecar.made()
    async with sidecar.client() as client:
        found: Any = await client.call_tool("delete_image", {"image_id": named.format(id=image["image_id"])})
    assert (found.is_error, "There is no image with this id" in json.dumps(found.content[0].text)) == (True, True)
