"""How each chat client is told about this server: one place for the demonstration, docs/clients.md and the README."""

from __future__ import annotations

import base64
import ipaddress
import json
import shlex
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlsplit

SERVER_NAME = "images"
"""What clients call this server. It becomes a part of tool names, so it is short and plain."""

_REQUEST_TIMEOUT_MS = 300_000  # RUNTIME_TIMEOUT's default; clients give up sooner unless told otherwise


@dataclass(frozen=True, slots=True)
class ClientConfiguration:
    """One client: what to do with `text`, and a link that does the same where the client knows one."""

    name: str
    how: str
    text: str
    language: Literal["sh", "json", "yaml"]
    link: str | None = None


def client_configurations(mcp_url: str) -> tuple[ClientConfiguration, ...]:
    """For every client that we know, what connects it to the MCP endpoint at `mcp_url`."""
    return (
        _claude_code(mcp_url),
        _claude_desktop(),
        _vs_code(mcp_url),
        _cursor(mcp_url),
        _librechat(mcp_url),
        _open_webui(mcp_url),
    )


def for_terminal(configurations: Iterable[ClientConfiguration]) -> str:
    """All of them as plain text. Commands and files keep their lines, so that they can be copied."""
    return "\n\n".join(_paragraph(configuration) for configuration in configurations)


def _paragraph(configuration: ClientConfiguration) -> str:
    texts = (configuration.text, configuration.link) if configuration.link else (configuration.text,)
    indented = (textwrap.indent(text, "    ") for text in texts)
    return "\n".join((f"{configuration.name}: {configuration.how}", *indented))


def _claude_code(url: str) -> ClientConfiguration:
    command = shlex.join(("claude", "mcp", "add", "--transport", "http", SERVER_NAME, url))
    how = "Run this; for all your projects add `--scope user` before the name."
    return ClientConfiguration("Claude Code", how, command, "sh")


def _claude_desktop() -> ClientConfiguration:
    """Its file takes only commands. A URL goes into its settings, and has to be one that Anthropic's cloud reaches."""
    server = {"command": "mcp-image-sidecar", "args": ["stdio"]}
    how = (
        "Put this into `claude_desktop_config.json` (Settings → Developer → Edit Config); "
        "it starts a sidecar of its own. A public https URL goes into Settings → Connectors instead."
    )
    return ClientConfiguration("Claude Desktop", how, _json({"mcpServers": {SERVER_NAME: server}}), "json")


def _vs_code(url: str) -> ClientConfiguration:
    server = {"name": SERVER_NAME, "type": "http", "url": url}
    link = f"vscode:mcp/install?{quote(_compact_json(server), safe='')}"
    return ClientConfiguration(
        "VS Code", "Run this, or open the link.", f"code --add-mcp {shlex.quote(_json(server))}", "sh", link
    )


def _cursor(url: str) -> ClientConfiguration:
    server = {"url": url}
    encoded = quote(base64.b64encode(_compact_json(server).encode()), safe="")
    link = f"cursor://anysphere.cursor-deeplink/mcp/install?name={SERVER_NAME}&config={encoded}"
    how = "Open the link, or put this into `~/.cursor/mcp.json`."
    return ClientConfiguration("Cursor", how, _json({"mcpServers": {SERVER_NAME: server}}), "json", link)


def _librechat(url: str) -> ClientConfiguration:
    """It connects to no private address unless its administrator lists it, with the port."""
    server = f"{{type: streamable-http, url: {_json(url)}, timeout: {_REQUEST_TIMEOUT_MS}}}"
    text = f"mcpServers: {{{SERVER_NAME}: {server}}}"
    if address := _private_address(url):
        text += f"\nmcpSettings: {{allowedAddresses: [{_json(address)}]}}"
    how = "Put this into `librechat.yaml` and restart LibreChat."
    return ClientConfiguration("LibreChat", how, text, "yaml")


def _open_webui(url: str) -> ClientConfiguration:
    connection = {
        "type": "mcp",
        "url": url,
        "path": "",
        "auth_type": "none",
        "key": "",
        "config": {"enable": True},
        "info": {"id": SERVER_NAME, "name": "Images", "description": "Image generation"},
    }
    how = (
        "Add the URL in Admin Settings → Integrations, with type MCP (Streamable HTTP) and auth None; "
        "or start a new installation with this as `TOOL_SERVER_CONNECTIONS` in its environment."
    )
    return ClientConfiguration("Open WebUI", how, _json([connection]), "json")


def _json(value: Any) -> str:
    """On one line. Characters stay themselves, so that a text is good YAML too."""
    return json.dumps(value, ensure_ascii=False)


def _compact_json(value: Any) -> str:
    """For links, in which each space would be three characters."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _private_address(url: str) -> str | None:
    """HOST:PORT of a URL whose host looks like a private one; None for a public one."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        private = not ipaddress.ip_address(host).is_global
    except ValueError:
        private = "." not in host or host.endswith((".local", ".internal", ".svc"))
    if not private:
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
