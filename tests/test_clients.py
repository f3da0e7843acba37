"""What clients are told: every text is what it says it is, and leads to the URL it was made for."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from sidecar import __version__
from sidecar.cli import build_parser
from sidecar.clients import (
    ClientConfiguration,
    Program,
    client_configurations,
    for_terminal,
    more_configurations,
    this_program,
)
from sidecar.config import VARIABLES

ROOT = Path(__file__).parent.parent
LOCAL = "http://localhost:8000/mcp"
PUBLIC = "https://images.example.com/mcp"
ODD = "http://[fd00::1]:8000/a b/'x'\"y\"/ü🐈?q={1}&r=$HOME#`%2f`:\\ -"
every_url = pytest.mark.parametrize("url", [LOCAL, PUBLIC, ODD], ids=["local", "public", "odd"])


def every(url: str) -> tuple[ClientConfiguration, ...]:
    return (*client_configurations(url), *more_configurations(url))


def of(name: str, url: str) -> ClientConfiguration:
    (found,) = (configuration for configuration in every(url) if configuration.name == name)
    return found


def printed_by(command: str, path: Path) -> dict[str, Any]:
    """What a shell prints that has `path` alone in its PATH."""
    done = subprocess.run(["/bin/sh", "-c", command], env={"PATH": str(path)}, capture_output=True, check=True)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with programs by the names that configurations start."""
    folder = tmp_path / "some 'odd' folder"
    folder.mkdir()
    for name in ("mcp-image-sidecar", "npx"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def link_of(name: str, url: str) -> str:
    link = of(name, url).link
    assert link is not None
    return link


def test_the_clients_are_named() -> None:
    names = [configuration.name for configuration in client_configurations(LOCAL)]
    assert names == ["Claude Code", "Claude Desktop", "VS Code", "Cursor", "LibreChat", "Open WebUI"]
    assert [configuration.name for configuration in more_configurations(LOCAL)] == [
        "Codex CLI",
        "Gemini CLI",
        "Kiro",
        "n8n",
        "LangChain (Python)",
        "LangChain (JS)",
        "OpenAI Agents SDK",
        "Google ADK",
        "LlamaIndex",
        "mcp-remote",
        "supergateway",
    ]


@every_url
def test_claude_code_gets_a_command_that_a_shell_passes_on_unchanged(url: str) -> None:
    assert shlex.split(of("Claude Code", url).text) == ["claude", "mcp", "add", "--transport", "http", "images", url]


def test_claude_desktop_gets_the_absolute_path_at_which_the_shell_finds_the_command(programs: Path) -> None:
    """It starts commands with a PATH of its own."""
    servers = printed_by(of("Claude Desktop", LOCAL).text, programs)
    server = {"command": str(programs / "mcp-image-sidecar"), "args": ["stdio", "--demo"]}
    assert servers == {"mcpServers": {"images": server}}
    assert build_parser().parse_args(server["args"]).demo


def test_claude_desktop_gets_the_program_that_is_running_where_it_is_known() -> None:
    program = Program("/opt/venv/bin/mcp-image-sidecar", ("stdio", "--demo"))
    (desktop,) = (c for c in client_configurations(LOCAL, program) if c.name == "Claude Desktop")
    server = {"command": "/opt/venv/bin/mcp-image-sidecar", "args": ["stdio", "--demo"]}
    assert json.loads(desktop.text) == {"mcpServers": {"images": server}}


def test_the_program_that_is_running_is_its_console_script(programs: Path) -> None:
    assert this_program("stdio", scripts=str(programs)) == Program(str(programs / "mcp-image-sidecar"), ("stdio",))


def test_a_checkout_that_is_not_installed_is_run_from_where_it_lies(tmp_path: Path) -> None:
    program = this_program("stdio", "--demo", scripts=str(tmp_path))
    assert program == Program(sys.executable, ("-m", "sidecar", "stdio", "--demo"), {"PYTHONPATH": str(ROOT)})


@every_url
def test_bridges_get_the_path_of_npx_and_the_shells_path(url: str, programs: Path) -> None:
    for name, fixed in (("mcp-remote", ["-y", "mcp-remote"]), ("supergateway", ["-y", "supergateway"])):
        server = printed_by(of(name, url).text, programs)["mcpServers"]["images"]
        assert (server["command"], server["env"]) == (str(programs / "npx"), {"PATH": str(programs)})
        assert (server["args"][:2], url in server["args"]) == (fixed, True)


@pytest.mark.parametrize(("url", "needed"), [(LOCAL, False), (PUBLIC, False), ("http://sidecar:8000/mcp", True)])
def test_mcp_remote_is_allowed_http_where_the_host_is_not_this_machine(url: str, needed: bool, programs: Path) -> None:
    server = printed_by(of("mcp-remote", url).text, programs)["mcpServers"]["images"]
    assert ("--allow-http" in server["args"]) is needed


SWITCHES = {
    "Codex CLI": "image=off",
    "Kiro": "image=off",
    "n8n": "image=off",
    "LangChain (Python)": "image=off",
    "LangChain (JS)": "image=off",
    "OpenAI Agents SDK": "budget=4s",
    "Google ADK": "image=off",
    "LlamaIndex": "image=off",
}


def test_a_switch_goes_behind_what_the_url_has_and_its_reason_is_given() -> None:
    for name, switch in SWITCHES.items():
        assert f"/mcp?{switch}" in of(name, LOCAL).text
        assert f"/mcp?result=link&{switch}" in of(name, f"{LOCAL}?result=link").text
        assert f"`?{switch}`" in of(name, LOCAL).how


@every_url
def test_commands_of_further_hosts_reach_them_unchanged(url: str) -> None:
    assert shlex.split(of("Gemini CLI", url).text)[-2:] == ["images", url]
    assert shlex.split(of("Codex CLI", url).text)[:5] == ["codex", "mcp", "add", "images", "--url"]


@every_url
def test_python_is_python_and_json_is_json(url: str) -> None:
    for configuration in every(url):
        if configuration.language == "python":  # `await` and `async with` stand at the top, as in a notebook
            compile(f"async def main():\n    {configuration.text.replace(chr(10), chr(10) + '    ')}", "", "exec")
        elif configuration.language == "json":
            json.loads(configuration.text)


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
    for configuration in every(url):
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
    configurations = every(url)
    shown = [line.removeprefix("    ") for line in for_terminal(configurations).splitlines()]
    for configuration in configurations:
        assert f"{configuration.name}: {configuration.how}" in shown
        for line in (*configuration.text.splitlines(), *filter(None, [configuration.link])):
            assert line in shown


def test_the_pages_show_every_client_its_exact_configuration() -> None:
    readme, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/clients.md"))
    for configuration in every(LOCAL):
        assert configuration.text in page
        assert f"\n## {configuration.name}\n" in page
    for configuration in client_configurations(LOCAL):
        for line in configuration.text.splitlines():
            assert line in readme


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
