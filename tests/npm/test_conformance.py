"""The MCP conformance tool against the sidecar: every scenario that applies to any server, at every revision."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartSidecar
from tests.npm.programs import MODULES, node
from tests.npm.scenarios import GENERIC, NEXT, STABLE, exceptions, why_out

pytestmark = pytest.mark.npm

RUNS = [
    *((STABLE, scenario, "2025-11-25") for scenario, revisions in GENERIC.items() if "2025-11-25" in revisions),
    *((NEXT, scenario, revision) for scenario, revisions in GENERIC.items() for revision in revisions),
]


def entry(release: str) -> Path:
    return MODULES / release / "dist" / "index.js"


def verdict(check: dict[str, Any]) -> str:
    """The tool counts what it could not try as a failure; here that has a name of its own."""
    untestable = check["status"] == "FAILURE" and (check.get("details") or {}).get("untestable")
    return "UNTESTABLE" if untestable else str(check["status"])


@pytest.mark.parametrize(("release", "scenario", "revision"), RUNS)
async def test_every_generic_scenario_is_green(
    release: str, scenario: str, revision: str, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    sidecar = await start_sidecar()
    await sidecar.made()  # so that there is a resource to list and to read
    which = ("--url", f"{sidecar.url}/mcp", "--scenario", scenario, "--spec-version", revision)
    done = await node(entry(release), "server", *which, "--output-dir", str(tmp_path / "results"), home=tmp_path)
    (written,) = (tmp_path / "results").rglob("checks.json")
    checks = json.loads(written.read_text(encoding="utf-8"))
    assert any(check["status"] == "SUCCESS" for check in checks) or exceptions(scenario, revision), done.output
    not_green = {check["id"]: verdict(check) for check in checks if check["status"] not in ("SUCCESS", "INFO")}
    assert not_green == exceptions(scenario, revision), done.output


@pytest.mark.parametrize("release", [STABLE, NEXT])
async def test_every_scenario_that_is_left_out_says_why(release: str, tmp_path: Path) -> None:
    listed = await offered(release, tmp_path)
    assert [name for name in listed if name not in GENERIC and why_out(name) is None] == []


async def test_every_generic_scenario_runs_at_every_revision_it_is_about(tmp_path: Path) -> None:
    listed = await offered(NEXT, tmp_path)
    assert {name: listed.get(name) for name in GENERIC} == GENERIC


async def offered(release: str, home: Path) -> dict[str, tuple[str, ...]]:
    """The server scenarios that a release has, with their revisions."""
    done = await node(entry(release), "list", "--server", home=home)
    listing = done.output.partition("Server scenarios")[2].partition("Client scenarios")[0]
    found = re.findall(r"^ +- (\S+) \[([^]]+)\]$", listing, re.MULTILINE)
    assert found, done
    return {name: tuple(revisions.split(",")) for name, revisions in found}
