"""The chat hosts that the README names and the demonstration prints."""

from __future__ import annotations

import base64
import ipaddress
import json
import shlex
from typing import Any
from urllib.parse import quote, urlsplit

from sidecar.clients.form import (
    COMMAND,
    SERVER_NAME,
    ClientConfiguration,
    Program,
    one_line,
    printing_servers_file,
    servers_file,
)

_REQUEST_TIMEOUT_MS = 300_000  # RUNTIME_TIMEOUT's default; clients give up sooner unless told otherwise


def client_configurations(mcp_url: str, program: Program | None = None) -> tuple[ClientConfiguration, ...]:
    """What connects each chat host to the MCP endpoint at `mcp_url`.

    `program` is what hosts that only start commands shall start; None where its path is not known, as in documents.
    """
    return (
        _claude_code(mcp_url),
        _claude_desktop(program),
        _vs_code(mcp_url),
        _cursor(mcp_url),
        _librechat(mcp_url),
        _open_webui(mcp_url),
    )


def _claude_code(url: str) -> ClientConfiguration:
    command = shlex.join(("claude", "mcp", "add", "--transport", "http", SERVER_NAME, url))
    how = "Run this; for all your projects add `--scope user` before the name."
    return ClientConfiguration("Claude Code", how, command, "sh")


def _claude_desktop(program: Program | None) -> ClientConfiguration:
    """Its file takes only commands, which it starts with a PATH of its own.

    A URL goes into its settings, and has to be one that Anthropic's cloud reaches.
    """
    where = "into `claude_desktop_config.json` (Settings → Developer → Edit Config)"
    what = (
        "it starts a sidecar of its own with a demonstration in place of a model. For your model leave `--demo` out "
        'and add `"env": {"KSERVE_ENDPOINT": "…"}`. A public https URL goes into Settings → Connectors instead.'
    )
    if program is not None:
        return ClientConfiguration("Claude Desktop", f"Put this {where}; {what}", servers_file(program), "json")
    command = printing_servers_file(COMMAND, ("stdio", "--demo"))
    return ClientConfiguration("Claude Desktop", f"Run this and put what it prints {where}; {what}", command, "sh")


def _vs_code(url: str) -> ClientConfiguration:
    server = {"name": SERVER_NAME, "type": "http", "url": url}
    link = f"vscode:mcp/install?{quote(_compact_json(server), safe='')}"
    return ClientConfiguration(
        "VS Code", "Run this, or open the link.", f"code --add-mcp {shlex.quote(one_line(server))}", "sh", link
    )


def _cursor(url: str) -> ClientConfiguration:
    server = {"url": url}
    encoded = quote(base64.b64encode(_compact_json(server).encode()), safe="")
    link = f"cursor://anysphere.cursor-deeplink/mcp/install?name={SERVER_NAME}&config={encoded}"
    how = "Open the link, or put this into `~/.cursor/mcp.json`."
    return ClientConfiguration("Cursor", how, one_line({"mcpServers": {SERVER_NAME: server}}), "json", link)


def _librechat(url: str) -> ClientConfiguration:
    """It connects to no private address unless its administrator lists it, with the port."""
    server = f"{{type: streamable-http, url: {one_line(url)}, timeout: {_REQUEST_TIMEOUT_MS}}}"
    text = f"mcpServers: {{{SERVER_NAME}: {server}}}"
    if address := _private_address(url):
        text += f"\nmcpSettings: {{allowedAddresses: [{one_line(address)}]}}"
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
    return ClientConfiguration("Open WebUI", how, one_line([connection]), "json")


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
