"""What clients are told: every text is what it says it is, and leads to the URL it was made for."""

from __future__ import annotations

import base64
import json
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from sidecar import __version__
from sidecar.cli import build_parser
from sidecar.clients import ClientConfiguration, client_configurations, for_terminal
from sidecar.config import VARIABLES

ROOT = Path(__file__).parent.parent
LOCAL = "http://localhost:8000/mcp"
PUBLIC = "https://images.example.com/mcp"
ODD = "http://[fd00::1]:8000/a b/'x'\"y\"/ü🐈?q={1}&r=$HOME#`%2f`:\\ -"
every_url = pytest.mark.parametrize("url", [LOCAL, PUBLIC, ODD], ids=["local", "public", "odd"])


def of(name: str, url: str) -> ClientConfiguration:
    (found,) = (configuration for configuration in client_configurations(url) if configuration.name == name)
    return found


def link_of(name: str, url: str) -> str:
    link = of(name, url).link
    assert link is not None
    return link


def test_the_six_clients_are_named() -> None:
    names = [configuration.name for configuration in client_configurations(LOCAL)]
    assert names == ["Claude Code", "Claude Desktop", "VS Code", "Cursor", "LibreChat", "Open WebUI"]


@every_url
def test_claude_code_gets_a_command_that_a_shell_passes_on_unchanged(url: str) -> None:
    assert shlex.split(of("Claude Code", url).text) == ["claude", "mcp", "add", "--transport", "http", "images", url]


@every_url
def test_claude_desktop_gets_a_command_because_its_file_takes_no_url(url: str) -> None:
    servers = json.loads(of("Claude Desktop", url).text)
    assert servers == {"mcpServers": {"images": {"command": "mcp-image-sidecar", "args": ["stdio"]}}}
    assert build_parser().parse_args(servers["mcpServers"]["images"]["args"]).command


@every_url
def test_vs_code_gets_a_command_and_a_link_that_say_the_same(url: str) -> None:
    program, option, server = shlex.split(of("VS Code", url).text)
    scheme, _, encoded = link_of("VS Code", url).partition("?")
    expected = {"name": "images", "type": "http", "url": url}
    assert (program, option, json.loads(server)) == ("code", "--add-mcp", expected)
    assert (scheme, json.loads(unquote(encoded))) == ("vscode:mcp/install", expected)


@every_url
def test_cursor_gets_a_file_and_a_link_that_say_the_same(url: str) -> None:
    link = urlsplit(link_of("Cursor", url))
    query = parse_qs(link.query, strict_parsing=True)
    assert (link.scheme, link.netloc, link.path) == ("cursor", "anysphere.cursor-deeplink", "/mcp/install")
    assert (query["name"], json.loads(base64.b64decode(query["config"][0], validate=True))) == (
        ["images"],
        {"url": url},
    )
    assert json.loads(of("Cursor", url).text) == {"mcpServers": {"images": {"url": url}}}


@every_url
def test_links_are_made_of_characters_that_need_no_quotes(url: str) -> None:
    for configuration in client_configurations(url):
        assert re.fullmatch(r"[A-Za-z0-9:/?&=%._~-]*", configuration.link or "")


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        (LOCAL, ["localhost:8000"]),
        (ODD, ["[fd00::1]:8000"]),
        (PUBLIC, None),
        ("http://93.184.215.14/mcp", None),
        ("http://127.0.0.1:8000/mcp", ["127.0.0.1:8000"]),
        ("http://host.docker.internal:8000/mcp", ["host.docker.internal:8000"]),
        ("http://sidecar/mcp", ["sidecar:80"]),
        ("https://10.0.0.5/mcp", ["10.0.0.5:443"]),
    ],
)
def test_librechat_is_allowed_to_reach_a_private_address_and_nothing_more(url: str, allowed: list[str] | None) -> None:
    given = yaml.safe_load(of("LibreChat", url).text)
    server = {"type": "streamable-http", "url": url, "timeout": 300_000}
    expected: dict[str, Any] = {"mcpServers": {"images": server}}
    assert given == expected | ({"mcpSettings": {"allowedAddresses": allowed}} if allowed else {})


def test_librechat_waits_as_long_as_the_sidecar_waits_for_its_runtime() -> None:
    (variable,) = (variable for variable in VARIABLES if variable.name == "RUNTIME_TIMEOUT")
    timeout = yaml.safe_load(of("LibreChat", LOCAL).text)["mcpServers"]["images"]["timeout"]
    assert (variable.default, timeout) == ("300s", 300_000)


@every_url
def test_open_webui_gets_a_connection_of_the_kind_mcp_without_authentication(url: str) -> None:
    (connection,) = json.loads(of("Open WebUI", url).text)
    assert {connection[name] for name in ("type", "url", "auth_type")} == {"mcp", url, "none"}
    assert (connection["config"], connection["info"]["id"]) == ({"enable": True}, "images")


@every_url
def test_the_terminal_shows_each_line_of_each_text_unbroken(url: str) -> None:
    configurations = client_configurations(url)
    shown = [line.strip() for line in for_terminal(configurations).splitlines()]
    for configuration in configurations:
        assert f"{configuration.name}: {configuration.how}" in shown
        for line in (*configuration.text.splitlines(), *filter(None, [configuration.link])):
            assert line in shown


@pytest.mark.parametrize("page", ["README.md", "docs/clients.md"])
def test_the_pages_show_every_client_its_exact_configuration(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for configuration in client_configurations(LOCAL):
        for line in configuration.text.splitlines():
            assert line in text


MANIFEST: dict[str, Any] = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))
PACKAGES: list[dict[str, Any]] = MANIFEST["packages"]


def test_the_registrys_entry_has_what_its_schema_requires() -> None:
    assert MANIFEST["$schema"] == "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", MANIFEST["name"])
    assert 3 <= len(MANIFEST["name"]) <= 200
    assert 1 <= len(MANIFEST["description"]) <= 100
    assert 1 <= len(MANIFEST["title"]) <= 100
    for package in PACKAGES:
        assert (package["registryType"], package["identifier"]) == ("pypi", "mcp-image-sidecar")
        assert {argument["type"] for argument in package["packageArguments"]} == {"positional"}


def test_the_registrys_entry_is_of_this_version() -> None:
    assert {MANIFEST["version"], *(package["version"] for package in PACKAGES)} == {__version__}


def test_the_registrys_entry_starts_commands_that_exist() -> None:
    transports = {}
    for package in PACKAGES:
        (command,) = (argument["value"] for argument in package["packageArguments"])
        assert build_parser().parse_args([command]).command
        transports[command] = package["transport"]["type"]
    assert transports == {"stdio": "stdio", "serve": "streamable-http"}


def test_the_registrys_entry_asks_for_settings_as_they_are() -> None:
    known = {variable.name: variable for variable in VARIABLES}
    for package in PACKAGES:
        for asked in package["environmentVariables"]:
            variable = known[asked["name"]]
            assert (asked.get("default"), asked.get("isSecret", False)) == (variable.default, variable.secret)
            for choice in asked.get("choices", ()):
                assert choice in variable.allowed


def test_the_registrys_url_is_made_of_settings_it_asks_for() -> None:
    for package in PACKAGES:
        names = {asked["name"]: asked.get("default") for asked in package["environmentVariables"]}
        url = package["transport"].get("url", LOCAL)
        assert url.format_map(names) == LOCAL


def test_the_registry_finds_the_readme_of_the_package_it_names() -> None:
    """It proves by this line that whoever publishes the entry owns the package."""
    assert f"mcp-name: {MANIFEST['name']} " in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_registrys_entry_names_no_address_but_its_schema_and_the_servers_own() -> None:
    addresses = re.findall(r"https?://([^/\"]+)", json.dumps(MANIFEST))
    assert set(addresses) == {"static.modelcontextprotocol.io", "localhost:8080", "localhost:{LISTEN_PORT}"}
