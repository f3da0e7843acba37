"""Runs clients as programs beside a sidecar that lives in this process, so without blocking its event loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"


@dataclass(frozen=True)
class Finished:
    """What a program said until it ended."""

    code: int
    output: str
    complaint: str


def node_program() -> str:
    """The Node that make found or installed."""
    program = os.environ.get("NODE")
    assert program, "NODE is not set: run `make conformance`"
    return program


async def node(script: Path, *arguments: str, home: Path) -> Finished:
    """Run a script to its end. `home` is all of this user's home that it gets to see."""
    return await finished(node_program(), str(script), *arguments, home=home)


async def finished(program: str, *arguments: str, home: Path) -> Finished:
    """Run a program to its end, in `home`."""
    process = await asyncio.create_subprocess_exec(
        program, *arguments, cwd=home, env={**os.environ, "HOME": str(home), "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        output, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Finished(process.returncode or 0, output.decode(), complaint.decode())
