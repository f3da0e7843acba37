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
    assert not_green(checks) == exceptions(scenario, revision), done.output


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_what_a_revision_requires_of_any_server_is_green(
    revision: str, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    """The set that was frozen at the revision's release, run as the tool runs it: whole."""
    required = await offered_by(NEXT, "--requirements", revision, home=tmp_path)
    ours = [name for name in required if name in GENERIC]
    assert [name for name in required if name not in ours and why_out(name) is None] == []
    sidecar = await start_sidecar()
    await sidecar.made()
    which = ("--url", f"{sidecar.url}/mcp", "--requirements", revision)
    done = await node(entry(NEXT), "server", *which, "--output-dir", str(tmp_path / "results"), home=tmp_path)
    assert len(ours) >= 8, required
    for name in ours:
        (written,) = (tmp_path / "results").glob(f"server-{name}-{'[0-9]' * 4}-*/checks.json")
        checks = json.loads(written.read_text(encoding="utf-8"))
        assert not_green(checks) == exceptions(name, revision), (name, done.output)


def not_green(checks: list[dict[str, Any]]) -> dict[str, str]:
    """The checks of a scenario that did not succeed, with their verdicts."""
    return {check["id"]: verdict(check) for check in checks if check["status"] not in ("SUCCESS", "INFO")}


@pytest.mark.parametrize("release", [STABLE, NEXT])
async def test_every_scenario_that_is_left_out_says_why(release: str, tmp_path: Path) -> None:
    listed = await offered(release, tmp_path)
    assert [name for name in listed if name not in GENERIC and why_out(name) is None] == []


async def test_every_generic_scenario_runs_at_every_revision_it_is_about(tmp_path: Path) -> None:
    listed = await offered(NEXT, tmp_path)
    assert {name: listed.get(name) for name in GENERIC} == GENERIC


async def offered(release: str, home: Path) -> dict[str, tuple[str, ...]]:
    """The server scenarios that a release has, with their revisions."""
    return {
        name: tuple(revisions.strip(" []").split(","))
        for name, revisions in (await offered_by(release, "--server", home=home)).items()
    }


async def offered_by(release: str, *which: str, home: Path) -> dict[str, str]:
    """The server scenarios that a release lists, each with what is said behind it."""
    done = await node(entry(release), "list", *which, home=home)
    listing = done.output.partition("Server scenarios")[2].partition("Client scenarios")[0]
    found = dict(re.findall(r"^ +- (\S+)(.*)$", listing, re.MULTILINE))
    assert found, done
    return found
