"""An agent of the OpenAI Agents SDK that calls one tool, with the SDK's own time-out of five seconds.

python drive.py URL TOOL ARGUMENTS: one JSON object, {"tools": {name: strict schema}, "output": what the model is given
back}. The model is a script of two turns: it calls the tool, then says "done".
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from agents import Agent, Model, ModelResponse, Runner, Usage, set_tracing_disabled
from agents.mcp import MCPServerStreamableHttp
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText


class Scripted(Model):
    """Calls `tool` once, and is content with any result."""

    def __init__(self, tool: str, arguments: str) -> None:
        self.call = ResponseFunctionToolCall(
            type="function_call", call_id="call_1", name=tool, arguments=arguments, id="fc_1"
        )
        self.tools: dict[str, Any] = {}
        self.output: Any = None

    async def get_response(
        self, system_instructions: Any, input: Any, model_settings: Any, tools: Any, *_: Any, **__: Any
    ) -> ModelResponse:
        self.tools = {tool.name: tool.params_json_schema for tool in tools}
        items = [item for item in input if isinstance(item, dict)]
        outputs = [item["output"] for item in items if item.get("type") == "function_call_output"]
        if not outputs:
            return self._turn(self.call)
        (self.output,) = outputs
        done = ResponseOutputText(type="output_text", text="done", annotations=[])
        return self._turn(
            ResponseOutputMessage(id="m_1", type="message", role="assistant", status="completed", content=[done])
        )

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    @staticmethod
    def _turn(item: Any) -> ModelResponse:
        return ModelResponse(output=[item], usage=Usage(), response_id=None)


async def main(url: str, tool: str, arguments: str) -> None:
    set_tracing_disabled(True)
    model = Scripted(tool, arguments)
    async with MCPServerStreamableHttp(params={"url": url}) as server:
        agent = Agent(name="painter", model=model, mcp_servers=[server], mcp_config={"convert_schemas_to_strict": True})
        await Runner.run(agent, "a cat, please")
    print(json.dumps({"tools": model.tools, "output": model.output}))


asyncio.run(main(*sys.argv[1:]))
