"""Further hosts, agent libraries and bridges, for docs/clients.md. `how` says why a URL has the switch it has."""

from __future__ import annotations

import shlex
from urllib.parse import urlsplit

from sidecar.clients.form import (
    SERVER_NAME,
    ClientConfiguration,
    one_line,
    printing_servers_file,
    with_switch,
)

_MODELS_WITHOUT_IMAGES = (
    "`?image=off` fits every model: OpenAI's Chat Completions API takes no image in a tool's result. Leave it out "
    "where the model does take one: Anthropic, Bedrock, Gemini, OpenAI's Responses API."
)
_MCP_REMOTE_LOOPBACK = ("localhost", "127.0.0.1")


def more_configurations(mcp_url: str) -> tuple[ClientConfiguration, ...]:
    """What connects each of them to the MCP endpoint at `mcp_url`."""
    return (
        _codex(mcp_url),
        _gemini_cli(mcp_url),
        _kiro(mcp_url),
        _n8n(mcp_url),
        _langchain_python(mcp_url),
        _langchain_js(mcp_url),
        _openai_agents(mcp_url),
        _google_adk(mcp_url),
        _llamaindex(mcp_url),
        _mcp_remote(mcp_url),
        _supergateway(mcp_url),
    )


def _codex(url: str) -> ClientConfiguration:
    command = shlex.join(("codex", "mcp", "add", SERVER_NAME, "--url", with_switch(url, "image=off")))
    how = (
        "Run this. Codex hands its model the structured result, with the link, in place of the blocks: `?image=off` "
        "saves the preview that it would throw away."
    )
    return ClientConfiguration("Codex CLI", how, command, "sh")


def _gemini_cli(url: str) -> ClientConfiguration:
    command = shlex.join(("gemini", "mcp", "add", "--scope", "user", "--transport", "http", SERVER_NAME, url))
    how = "Run this. It needs no switch: its model sees the preview, and it waits ten minutes for a call."
    return ClientConfiguration("Gemini CLI", how, command, "sh")


def _kiro(url: str) -> ClientConfiguration:
    server = {"url": with_switch(url, "image=off")}
    how = (
        "Put this into `~/.kiro/settings/mcp.json`, or into `.kiro/settings/mcp.json` of a workspace. Kiro's CLI has "
        "kept image blocks as base64 text, which fills its context: hence `?image=off`. Leave `resource_link` off: "
        "Kiro drops a result that holds one."
    )
    return ClientConfiguration("Kiro", how, one_line({"mcpServers": {SERVER_NAME: server}}), "json")


def _n8n(url: str) -> ClientConfiguration:
    fields = (
        f"Endpoint           {with_switch(url, 'image=off')}",
        "Server Transport   HTTP Streamable",
        "Authentication     None",
    )
    how = (
        "Add a node MCP Client Tool to the agent and fill it in like this. n8n hands its model all blocks as JSON, so "
        "a preview would be read as base64: hence `?image=off`. The arguments that n8n adds of its own (`sessionId`, "
        "`toolCallId`, …) are ignored. It waits 60 seconds for a call, longer than `RESPONSE_BUDGET`."
    )
    return ClientConfiguration("n8n", how, "\n".join(fields), "text")


def _langchain_python(url: str) -> ClientConfiguration:
    server = {SERVER_NAME: {"transport": "streamable_http", "url": with_switch(url, "image=off")}}
    text = (
        "from langchain_mcp_adapters.client import MultiServerMCPClient\n\n"
        f"client = MultiServerMCPClient(\n    {one_line(server)}\n)\n"
        "tools = await client.get_tools()"
    )
    return ClientConfiguration("LangChain (Python)", _MODELS_WITHOUT_IMAGES, text, "python")


def _langchain_js(url: str) -> ClientConfiguration:
    servers = {"mcpServers": {SERVER_NAME: {"url": with_switch(url, "image=off")}}}
    text = (
        'import { MultiServerMCPClient } from "@langchain/mcp-adapters";\n\n'
        f"const client = new MultiServerMCPClient({one_line(servers)});\n"
        "const tools = await client.getTools();"
    )
    return ClientConfiguration("LangChain (JS)", _MODELS_WITHOUT_IMAGES, text, "js")


def _openai_agents(url: str) -> ClientConfiguration:
    text = (
        "from agents import Agent\n"
        "from agents.mcp import MCPServerStreamableHttp\n\n"
        f"async with MCPServerStreamableHttp(params={one_line({'url': with_switch(url, 'budget=4s')})}) as server:\n"
        '    agent = Agent(name="painter", mcp_servers=[server])'
    )
    how = (
        "It gives up a call after five seconds. With `?budget=4s` the call is answered before that with a `job_id`, by "
        "which the model gets the image. Or give the server `client_session_timeout_seconds=60` and leave the switch "
        "out."
    )
    return ClientConfiguration("OpenAI Agents SDK", how, text, "python")


def _google_adk(url: str) -> ClientConfiguration:
    text = (
        "from google.adk.tools.mcp_tool import McpToolset, StreamableHTTPConnectionParams\n\n"
        f"parameters = StreamableHTTPConnectionParams(url={one_line(with_switch(url, 'image=off'))})\n"
        "toolset = McpToolset(connection_params=parameters)"
    )
    how = (
        "Install `google-adk[mcp]`. ADK hands its model the result as JSON, so a preview would be read as base64: "
        "hence `?image=off`."
    )
    return ClientConfiguration("Google ADK", how, text, "python")


def _llamaindex(url: str) -> ClientConfiguration:
    text = (
        "from llama_index.tools.mcp import BasicMCPClient, McpToolSpec\n\n"
        f"client = BasicMCPClient({one_line(with_switch(url, 'image=off'))})\n"
        "tools = await McpToolSpec(client=client).to_tool_list_async()"
    )
    how = (
        "Install `llama-index-tools-mcp`. LlamaIndex hands its model the whole result as text, so a preview would be "
        "read as base64: hence `?image=off`."
    )
    return ClientConfiguration("LlamaIndex", how, text, "python")


def _mcp_remote(url: str) -> ClientConfiguration:
    parts = urlsplit(url)
    open_http = parts.scheme == "http" and parts.hostname not in _MCP_REMOTE_LOOPBACK
    arguments = ("-y", "mcp-remote", url, *(("--allow-http",) if open_http else ()))
    how = (
        "For hosts that only start commands, such as Claude Desktop, and a sidecar that runs already. Run this and put "
        "what it prints into the host's file: it holds the path of your `npx` and your `PATH`, because such hosts have "
        "a `PATH` of their own. Switches in the URL pass through. http to another machine needs `--allow-http`."
    )
    return ClientConfiguration("mcp-remote", how, printing_servers_file("npx", arguments, with_path=True), "sh")


def _supergateway(url: str) -> ClientConfiguration:
    """npx finds node by PATH, so the host has to be given one that has it, here as above."""
    arguments = ("-y", "supergateway", "--logLevel", "none", "--streamableHttp", url)
    how = "Another bridge, for the same hosts. `--logLevel none` keeps their log short."
    return ClientConfiguration("supergateway", how, printing_servers_file("npx", arguments, with_path=True), "sh")
