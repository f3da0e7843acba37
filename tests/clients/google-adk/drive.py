"""An agent of Google's ADK that calls generate_image once.

python drive.py URL: one JSON object, {"declarations": {name: with JSON schema}, "schemas": {name: as Gemini's own},
"requests": [contents sent to the model]}. The model is a script of two turns: it calls the tool, then says "done".
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.features import FeatureName, override_feature_enabled
from google.adk.models import BaseLlm, LlmRequest, LlmResponse
from google.adk.runners import InMemoryRunner
from google.adk.tools.mcp_tool import McpToolset, StreamableHTTPConnectionParams
from google.genai import types

REQUESTS: list[Any] = []


def dumped(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_none=True)


class Scripted(BaseLlm):
    """Calls generate_image, and is content with any result."""

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        REQUESTS.append({"config": dumped(llm_request.config), "contents": [dumped(c) for c in llm_request.contents]})
        if len(REQUESTS) == 1:
            part = types.Part.from_function_call(name="generate_image", args={"prompt": "a cat"})
        else:
            part = types.Part.from_text(text="done")
        yield LlmResponse(content=types.Content(role="model", parts=[part]))


async def declared(toolset: McpToolset, feature: bool) -> dict[str, Any]:
    """The tools as they are declared to Gemini: with the server's JSON schema, or with it rebuilt as Gemini's own."""
    override_feature_enabled(FeatureName.JSON_SCHEMA_FOR_FUNC_DECL, feature)
    return {tool.name: dumped(tool._get_declaration()) for tool in await toolset.get_tools()}


async def main(url: str) -> None:
    toolset = McpToolset(connection_params=StreamableHTTPConnectionParams(url=url))
    rebuilt, as_json = await declared(toolset, False), await declared(toolset, True)
    runner = InMemoryRunner(agent=LlmAgent(name="painter", model=Scripted(model="scripted"), tools=[toolset]))
    await runner.run_debug("a cat, please", quiet=True)
    await toolset.close()
    print(json.dumps({"declarations": as_json, "schemas": rebuilt, "requests": REQUESTS}))


asyncio.run(main(sys.argv[1]))
