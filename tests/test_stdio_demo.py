"""A host's first try: what the demonstration prints for it starts from anywhere, and brings a painter along."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from sidecar.clients import Program, client_configurations, this_program
from tests.conftest import ERAS, TOOL_NAMES
from tests.test_commands import COMMAND
from tests.test_stdio import LEGACY, lines

ROOT = str(Path(__file__).parent.parent)
FOREIGN_PATH = "/usr/bin:/bin"
MODEL = "demo-painter-not-a-diffusion-model"


def claude_desktops_server(program: Program) -> dict[str, Any]:
    """The server in what the demonstration prints for Claude Desktop."""
    (desktop,) = (c for c in client_configurations("http://x/mcp", program) if c.name == "Claude Desktop")
    server: dict[str, Any] = json.loads(desktop.text)["mcpServers"]["images"]
    return server


def quick(tmp_path: Path) -> dict[str, str]:
    """An environment as hosts give it: none of this process's, a PATH of the host's own."""
    return {"PATH": FOREIGN_PATH, "HOME": str(tmp_path), "STORAGE_PATH": str(tmp_path / "images")}


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "a checkout"])
async def test_what_is_printed_for_claude_desktop_starts_from_anywhere(installed: bool, tmp_path: Path) -> None:
    program = this_program("stdio", "--demo", scripts=None if installed else str(tmp_path))
    server = claude_desktops_server(program)
    assert Path(server["command"]).is_absolute()
    parameters = StdioServerParameters(
        command=server["command"], args=server["args"], env=quick(tmp_path) | server.get("env", {}), cwd="/"
    )
    with (tmp_path / "log").open("w") as log:
        async with Client(stdio_client(parameters, errlog=log)) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == TOOL_NAMES
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("era", ERAS)
async def test_a_host_without_a_model_gets_a_painted_image(era: str, tmp_path: Path) -> None:
    environment = quick(tmp_path) | {"KSERVE_ENDPOINT": "http://127.0.0.1:9/v1/models/mine", "PYTHONPATH": ROOT}
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "sidecar", "stdio", "--demo"], env=environment
    )
    with (tmp_path / "log").open("w") as log:
        async with Client(stdio_client(parameters, errlog=log), mode=era) as client:
            result = await client.call_tool("generate_image", {"prompt": "a cat", "num_inference_steps": 1})
            assert result.structured_content is not None, result
            (image,) = result.structured_content["images"]
            async with aiohttp.ClientSession() as session, session.get(image["url"]) as response:
                assert (response.status, response.content_type) == (200, "image/png")
    assert (image["model"], image["seed_applied"]) == (MODEL, True)
    said = (tmp_path / "log").read_text()
    assert ("not a diffusion model" in said, "Traceback" in said) == (True, False)


@pytest.mark.parametrize(("end", "code"), [("input", 0), ("SIGTERM", 0), ("SIGKILL", -9)])
async def test_the_painter_goes_when_the_server_goes(end: str, code: int, tmp_path: Path) -> None:
    """The painter shares standard error, a pipe here, which reads to its end only once both have gone."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "stdio", "--demo", env={**os.environ, **quick(tmp_path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(lines(LEGACY[0]))
    async with asyncio.timeout(30):
        assert json.loads(await process.stdout.readline())["id"] == 1
        if end == "input":
            process.stdin.close()
        else:
            process.send_signal(signal.Signals[end])
        _, said = await process.communicate()
    assert (process.returncode, b"Traceback" in said) == (code, False)


async def test_a_wrong_setting_is_told_before_a_painter_is_started(tmp_path: Path) -> None:
    environment = {**os.environ, **quick(tmp_path), "IMAGE_TTL": "soon"}
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "stdio", "--demo", env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        output, said = await process.communicate()
    assert (process.returncode, output) == (2, b"")
    assert re.match(rb"mcp-image-sidecar: IMAGE_TTL: 'soon' was given", said)
    assert b"painting" not in said
    assert b"diffusion" not in said
