"""What a client's configuration is made of: texts, links, and commands that start wherever a host starts them."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import sysconfig
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

SERVER_NAME = "images"
"""What clients call this server. It becomes a part of tool names, so it is short and plain."""

COMMAND = "mcp-image-sidecar"
_FOUND, _SHELLS_PATH = "@COMMAND@", "@PATH@"


@dataclass(frozen=True, slots=True)
class ClientConfiguration:
    """One client: what to do with `text`, and a link that does the same where the client knows one."""

    name: str
    how: str
    text: str
    language: Literal["sh", "json", "yaml", "python", "js", "text"]
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """A command as a host starts it: with a PATH and a working directory of the host's own."""

    command: str
    args: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def this_program(*arguments: str, scripts: str | None = None) -> Program:
    """This installation with `arguments`, by absolute paths.

    `scripts` is the folder of console scripts, this Python's own by default. Without our script there, as in a checkout
    that is not installed, Python runs the package from where it lies.
    """
    script = shutil.which(COMMAND, path=scripts or sysconfig.get_path("scripts"))
    if script is not None:
        return Program(str(Path(script).absolute()), arguments)
    home = str(Path(__file__).resolve().parents[2])
    return Program(sys.executable, ("-m", "sidecar", *arguments), {"PYTHONPATH": home})


def servers_file(program: Program) -> str:
    """The `mcpServers` file of hosts that start `program`."""
    server = {"command": program.command, "args": list(program.args)} | ({"env": program.env} if program.env else {})
    return one_line({"mcpServers": {SERVER_NAME: server}})


def printing_servers_file(command: str, arguments: Iterable[str], *, with_path: bool = False) -> str:
    """A shell command that prints the `servers_file` with the absolute path at which this shell finds `command`.

    `with_path`: the host gives the command this shell's PATH.
    """
    environment = {"PATH": _SHELLS_PATH} if with_path else {}
    quoted = shlex.quote(servers_file(Program(_FOUND, tuple(arguments), environment)))
    for mark, expansion in ((_FOUND, f"$(command -v {command})"), (_SHELLS_PATH, "$PATH")):
        quoted = quoted.replace(mark, f"'\"{expansion}\"'")
    return f"printf '%s\\n' {quoted}"


def with_switch(url: str, switch: str) -> str:
    """The MCP URL with one more switch in its query."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=f"{parts.query}&{switch}" if parts.query else switch))


def for_terminal(configurations: Iterable[ClientConfiguration]) -> str:
    """All of them as plain text. Commands and files keep their lines, so that they can be copied."""
    return "\n\n".join(_paragraph(configuration) for configuration in configurations)


def _paragraph(configuration: ClientConfiguration) -> str:
    texts = (configuration.text, configuration.link) if configuration.link else (configuration.text,)
    indented = (textwrap.indent(text, "    ") for text in texts)
    return "\n".join((f"{configuration.name}: {configuration.how}", *indented))


def one_line(value: Any) -> str:
    """JSON on one line. Characters stay themselves, so that a text is good YAML too."""
    return json.dumps(value, ensure_ascii=False)
