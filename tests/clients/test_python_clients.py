"""Python's agent libraries as clients, each in an environment of its own that `make conformance` makes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TOOL_NAMES, Sidecar
from tests.fake_kserve import FakeKServe, succeed_when
from tests.npm.programs import finished

pytestmark = pytest.mark.clients

HERE = Path(__file__).parent
REFUSED_BY_GEMINI = {"exclusiveMaximum", "exclusiveMinimum", "multipleOf", "$ref", "$defs"}
PROVIDERS = ("openai chat", "openai responses", "anthropic", "bedrock", "gemini")


async def driven(client: str, *arguments: str, home: Path) -> dict[str, Any]:
    """What the client's `drive.py` reports, run by that client's own Python."""
    environments = os.environ.get("CLIENTS")
    assert environments, "CLIENTS is not set: run `make conformance`"
    python = Path(environments) / client / "bin" / "python"
    done = await finished(str(python), str(HERE / client / "drive.py"), *arguments, home=home)
    assert done.code == 0, done
    report: dict[str, Any] = json.loads(done.output)
    return report


def strings(value: Any) -> Iterator[str]:
    """Every string in a request, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def addresses(value: Any) -> list[str]:
    """The strings that are nothing but an HTTP address: what a provider may fetch, or fail to."""
    return [text for text in strings(value) if text.startswith(("http://", "https://")) and len(text.split()) == 1]


async def test_langchain_builds_a_request_for_every_provider(sidecar: Sidecar, tmp_path: Path) -> None:
    report = await driven("langchain", f"{sidecar.url}/mcp", home=tmp_path)
    assert (sorted(report["tools"]), report["content"]) == (sorted(TOOL_NAMES), ["text", "image"])
    assert set(report["providers"]) == set(PROVIDERS)
    for provider, request in report["providers"].items():
        assert "raised" not in request, (provider, request)
        assert addresses(request) == [], provider
        assert any(f"{sidecar.url}/images/" in text for text in strings(request)), provider  # in the text, for people


async def test_langchain_without_images_sends_text_alone(sidecar: Sidecar, tmp_path: Path) -> None:
    """OpenAI's Chat Completions takes no image in a tool's message."""
    report = await driven("langchain", f"{sidecar.url}/mcp?image=off", home=tmp_path)
    assert report["content"] == ["text"]
    for provider in PROVIDERS:
        assert not any("image/" in text or "data:" in text for text in strings(messages(report, provider)))


def messages(report: dict[str, Any], provider: str) -> Any:
    """The conversation alone, without the tools."""
    request = report["providers"][provider]
    return next(request[name] for name in ("messages", "input", "contents") if name in request)


async def test_a_resource_link_is_why_it_is_off_by_default(sidecar: Sidecar, tmp_path: Path) -> None:
    """Bedrock's library raises on one, others ask the provider to fetch a loopback address."""
    report = await driven("langchain", f"{sidecar.url}/mcp?resource_link=on", home=tmp_path)
    assert "raised" in report["providers"]["bedrock"]
    assert addresses(report["providers"]["openai chat"])


async def test_an_openai_agent_gets_a_handle_before_it_gives_up_and_later_the_image(
    sidecar: Sidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    """Its session gives up a call after five seconds; the runtime here takes longer than that."""
    kserve.script.append(succeed_when(finish := asyncio.Event()))
    url = f"{sidecar.url}/mcp?budget=4s"
    first = await driven("openai-agents", url, "generate_image", '{"prompt": "a cat"}', home=tmp_path)
    finish.set()
    assert sorted(first["tools"]) == sorted(TOOL_NAMES)
    (text,) = first["output"]
    _, handed_over, job = text["text"].partition("job_id: ")
    assert handed_over, first["output"]
    second = await driven("openai-agents", url, "get_generation", json.dumps({"job_id": job}), home=tmp_path)
    text, image = second["output"]
    assert f"{sidecar.url}/images/" in text["text"]
    assert image["image_url"].startswith("data:image/webp;base64,")
    assert len(kserve.instances) == 1


async def test_google_adk_declares_every_tool_to_gemini_and_gets_an_image(sidecar: Sidecar, tmp_path: Path) -> None:
    report = await driven("google-adk", f"{sidecar.url}/mcp", home=tmp_path)
    assert sorted(report["declarations"]) == sorted(report["schemas"]) == sorted(TOOL_NAMES)
    generate = report["schemas"]["generate_image"]["parameters"]
    assert (generate["required"], generate["properties"]["seed"]["type"]) == (["prompt"], "INTEGER")
    assert not REFUSED_BY_GEMINI & set(keywords(report["declarations"]))
    response = report["requests"][-1]["contents"][-1]["parts"][0]["function_response"]["response"]
    assert (response["isError"], response["structuredContent"]["status"]) == (False, "completed")
    assert [block["type"] for block in response["content"]] == ["text", "image"]


async def test_google_adk_without_images_puts_no_base64_before_the_model(sidecar: Sidecar, tmp_path: Path) -> None:
    """It hands a result to the model as it is, so an image would be read as text."""
    report = await driven("google-adk", f"{sidecar.url}/mcp?image=off", home=tmp_path)
    assert max(map(len, strings(report["requests"][-1]["contents"]))) < 2000


async def test_fastmcps_client_reads_the_result_by_its_schema(sidecar: Sidecar, tmp_path: Path) -> None:
    report = await driven("fastmcp", f"{sidecar.url}/mcp", home=tmp_path)
    (image,) = report["data"]["images"]
    assert (report["tools"], report["blocks"]) == (TOOL_NAMES, ["text", "image"])
    assert (report["data"]["status"], report["resource"]) == ("completed", image["sha256"])
    _, body = await sidecar.get(image["url"])
    assert len(body) == image["size_bytes"]


def keywords(value: Any) -> Iterator[str]:
    """Every key in a schema, at any depth."""
    if isinstance(value, dict):
        yield from value
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from keywords(inner)
