"""A tool call by langchain-mcp-adapters, and the request that each provider's library then sends to its model.

python drive.py URL: one JSON object, {"tools": [names], "content": [types of the result's blocks],
"providers": {name: request, or {"raised": error}}}. The models are at a listener of our own on loopback, which records
the request and refuses it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_aws import ChatBedrockConverse
from langchain_core.messages import AIMessage, HumanMessage
from langchain_google_genai import ChatGoogleGenerativeAI
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_openai import ChatOpenAI


class Recorder(BaseHTTPRequestHandler):
    """Keeps the body of the last POST and answers 400, after which no library tries again."""

    last: Any = None

    def do_POST(self) -> None:
        type(self).last = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._refuse()

    def do_GET(self) -> None:
        self._refuse()

    def _refuse(self) -> None:
        body = b'{"error": {"message": "recorded", "code": 400, "status": "INVALID_ARGUMENT"}}'
        self.send_response(400)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def models(url: str) -> dict[str, Any]:
    aws = {"aws_access_key_id": "none", "aws_secret_access_key": "none", "region_name": "us-east-1"}
    return {
        "openai chat": ChatOpenAI(model="gpt-4.1", api_key="none", base_url=url, max_retries=0),
        "openai responses": ChatOpenAI(
            model="gpt-4.1", api_key="none", base_url=url, max_retries=0, use_responses_api=True
        ),
        "anthropic": ChatAnthropic(model="claude-sonnet-4-5", api_key="none", base_url=url, max_retries=0),
        "bedrock": ChatBedrockConverse(model="anthropic.claude-sonnet-4-5-v1:0", endpoint_url=url, **aws),
        "gemini": ChatGoogleGenerativeAI(model="gemini-2.5-flash", api_key="none", base_url=url, max_retries=1),
    }


def request_of(model: Any, tools: list[Any], conversation: list[Any]) -> Any:
    """The body that the library posts, or what it raised before it could."""
    Recorder.last = None
    try:
        model.bind_tools(tools).invoke(conversation)
    except Exception as error:
        if Recorder.last is None:
            return {"raised": repr(error)}
    return Recorder.last


async def called(url: str) -> tuple[list[Any], list[Any]]:
    """The tools, and a conversation that ends with a result of generate_image."""
    tools = await MultiServerMCPClient({"images": {"transport": "streamable_http", "url": url}}).get_tools()
    (generate,) = (tool for tool in tools if tool.name == "generate_image")
    call = {"type": "tool_call", "id": "call_1", "name": generate.name, "args": {"prompt": "a cat"}}
    message = await generate.ainvoke(call)
    return tools, [HumanMessage("a cat, please"), AIMessage("", tool_calls=[call]), message]


def main() -> None:
    tools, conversation = asyncio.run(called(sys.argv[1]))
    listener = HTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    chats = models(f"http://127.0.0.1:{listener.server_port}")
    report = {
        "tools": [tool.name for tool in tools],
        "content": [block["type"] for block in conversation[-1].content],
        "providers": {name: request_of(model, tools, conversation) for name, model in chats.items()},
    }
    print(json.dumps(report))


main()
