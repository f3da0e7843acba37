"""Alerts and the dashboard, by a real Prometheus beside a sidecar at work."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from structlog.testing import capture_logs

from sidecar.config import read_settings
from sidecar.errors import ImageNotFound, InvalidRequest, JobNotFound, SidecarError, StorageFailure, StorageFull
from sidecar.events import FAULTLESS, StorageOperation
from sidecar.observe.logs import EventLog
from tests.conftest import Sidecar, StartSidecar, metric_becomes
from tests.fake_kserve import FakeKServe, say, succeed_when
from tests.real_parts import require
from tools.generate_docs import exposed_metrics

pytestmark = pytest.mark.real

ROOT = Path(__file__).parent.parent
RULES = yaml.safe_load((ROOT / "manifests" / "prometheusrule" / "prometheusrule.yaml").read_text())["spec"]
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((ROOT / "manifests" / "grafana" / "dashboard.json").read_text())
QUERIES = sorted({target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]})
EXPECTED = ROOT / "tests" / "alerts.yaml"


def program(name: str) -> str:
    found = shutil.which(name)
    require(found is not None, f"{name} is not installed")
    return str(found)


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The alerts as a Prometheus reads them."""
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(RULES))
    return path


def promtool(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_promtool_accepts_the_alerts(rules: Path) -> None:
    status, said = promtool("check", "rules", rules)
    assert (status, f"{len(ALERTS)} rules found" in said) == (0, True), said


def test_each_alert_fires_when_it_should_and_not_otherwise(rules: Path) -> None:
    shutil.copy(EXPECTED, rules.parent)
    status, said = promtool("test", "rules", rules.parent / EXPECTED.name)
    assert status == 0, said


def test_each_alert_is_tested_both_ways() -> None:
    tests = [test for group in yaml.safe_load(EXPECTED.read_text())["tests"] for test in group["alert_rule_test"]]
    names = {rule["alert"] for rule in ALERTS}
    assert {test["alertname"] for test in tests if test["exp_alerts"]} == names
    assert {test["alertname"] for test in tests if not test["exp_alerts"]} == names


def test_an_alert_that_no_longer_fires_fails_its_test(rules: Path) -> None:
    rules.write_text(rules.read_text().replace("> 600", "> 6000"))
    shutil.copy(EXPECTED, rules.parent)
    status, said = promtool("test", "rules", rules.parent / EXPECTED.name)
    assert (status, "ImageQueueStuck" in said) == (1, True)


def metric_names(expression: str) -> set[str]:
    names = re.findall(r"\bimagegen_\w+", expression)
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}


def test_alerts_and_dashboard_name_only_metrics_that_exist() -> None:
    known = {*exposed_metrics()}
    for expression in (*QUERIES, *(rule["expr"] for rule in ALERTS)):
        assert metric_names(expression) <= known, expression
    named = set().union(*(metric_names(query) for query in QUERIES))
    assert known - named == set(), "not on the dashboard"


@asynccontextmanager
async def prometheus(sidecar: Sidecar, rules: Path) -> AsyncIterator[str]:
    """A real one that scrapes the sidecar and evaluates the alerts; yields its URL."""
    target = {"targets": [sidecar.url.removeprefix("http://")], "labels": {"namespace": "here", "pod": "this"}}
    config = {
        "global": {"scrape_interval": "200ms", "evaluation_interval": "500ms"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "sidecar", "static_configs": [target]}],
    }
    file = rules.with_name("prometheus.yml")
    file.write_text(json.dumps(config))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    where = (f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={rules.parent / 'tsdb'}")
    process = await asyncio.create_subprocess_exec(
        program("prometheus"), f"--config.file={file}", *where, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def ask(sidecar: Sidecar, url: str, **parameters: str) -> Any:
    """The data of an API answer, or None while it is not up."""
    try:
        async with sidecar.session.get(url, params=parameters) as response:
            return (await response.json())["data"]
    except aiohttp.ClientError:
        return None


def finite(data: Any) -> bool:
    return any(math.isfinite(float(series["value"][1])) for series in (data or {}).get("result", []))


def filled_in(query: str) -> str:
    """As Grafana sends it, with everything chosen; the range is short because the scrapes are close."""
    chosen = {"$__rate_interval": "20s", "$namespace": ".*", "$model": ".*"}
    for name, value in chosen.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query


async def all_kinds_of_generations(sidecar: Sidecar, kserve: FakeKServe) -> None:
    """One succeeds, one fails, one is at the runtime and one waits behind it, one is refused."""
    image = await sidecar.made()
    await sidecar.get(image["url"])
    kserve.script.append(say(500, {"error": "broken"}))
    assert (await sidecar.generate()).is_error
    kserve.script.append(succeed_when(release := asyncio.Event()))
    waiting = [asyncio.create_task(sidecar.generate()) for _ in range(2)]
    await kserve.seen(3)
    await metric_becomes(sidecar, 'imagegen_queue_depth{model="painter"}', 1)
    assert (await sidecar.generate()).is_error
    release.set()
    await asyncio.gather(*waiting)


async def test_every_query_of_the_dashboard_returns_data(
    start_sidecar: StartSidecar, kserve: FakeKServe, rules: Path
) -> None:
    sidecar = await start_sidecar(QUEUE_LIMIT="1", CLEANUP_INTERVAL="1s")
    await sidecar.until_ready()
    missing = {*QUERIES}
    async with prometheus(sidecar, rules) as url, asyncio.timeout(50):
        while missing:
            await all_kinds_of_generations(sidecar, kserve)
            kserve.instances.clear()
            for query in tuple(missing):
                if finite(await ask(sidecar, f"{url}/api/v1/query", query=filled_in(query))):
                    missing.remove(query)
        groups = (await ask(sidecar, f"{url}/api/v1/rules"))["groups"]
        while any(rule["health"] == "unknown" for group in groups for rule in group["rules"]):
            groups = (await ask(sidecar, f"{url}/api/v1/rules"))["groups"]
        assert {rule["name"]: rule["health"] for group in groups for rule in group["rules"]} == {
            rule["alert"]: "ok" for rule in ALERTS
        }


def sections(page: str) -> Iterator[str]:
    return (heading.lower() for heading in re.findall(r"^## (\w+)$", page, re.MULTILINE))


def test_each_alert_has_a_section_in_the_runbook() -> None:
    headings = list(sections((ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")))
    assert headings == [rule["alert"].lower() for rule in ALERTS]
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def alert_excludes() -> set[str]:
    (rule,) = [rule for rule in ALERTS if rule["alert"] == "ImageStoreFails"]
    (excluded,) = re.findall(r'outcome!~"([^"]+)"', rule["expr"])
    return set(excluded.split("|"))


def runbook_excludes() -> set[str]:
    page = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## ImageStoreFails\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    (sentence,) = re.findall(r"Not counted as failures: ([^.]+)\.", section)
    return set(re.findall(r"`(\w+)`", sentence))


def logged_as_failed(outcome: str) -> bool:
    event = StorageOperation(backend="file", operation="get", outcome=outcome, seconds=0.1)
    with capture_logs() as lines:
        EventLog()(event)
    return bool(lines)


def test_the_alert_the_log_and_the_runbook_agree_on_what_is_no_failure_of_a_store() -> None:
    assert alert_excludes() == set(FAULTLESS)
    assert runbook_excludes() == set(FAULTLESS) - {"ok"}
    outcomes = [*FAULTLESS, StorageFull.reason, StorageFailure.reason, "internal"]
    assert [outcome for outcome in outcomes if not logged_as_failed(outcome)] == [*FAULTLESS]


@pytest.mark.parametrize("error", [ImageNotFound, JobNotFound, InvalidRequest])
def test_what_a_store_tells_a_caller_who_asked_wrongly_is_no_failure_of_it(error: type[SidecarError]) -> None:
    assert error.reason in FAULTLESS


def test_the_alert_on_clean_up_suits_the_interval_that_is_the_default() -> None:
    (limit,) = [re.search(r"> (\d+)", rule["expr"]) for rule in ALERTS if rule["alert"] == "ImageCleanupStale"]
    assert limit is not None
    assert 5 * read_settings({}).storage.cleanup_interval < int(limit[1])
    assert "`CLEANUP_INTERVAL`" in (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
