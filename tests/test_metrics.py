"""What Prometheus scrapes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sidecar.domain import Inventory
from sidecar.events import StorageCounted
from sidecar.observe.metrics import Metrics
from tests.conftest import Sidecar, StartSidecar, metric_becomes, raw_tool_call
from tests.fake_kserve import FakeKServe, cut_off, say, succeed_when

CONTRACT = (
    "generations_total",
    "generation_duration_seconds",
    "queue_wait_seconds",
    "runtime_request_duration_seconds",
    "runtime_retries_total",
    "queue_depth",
    "in_flight",
    "image_bytes",
    "storage_operation_duration_seconds",
    "stored_images_total",
    "stored_bytes_total",
    "storage_images",
    "storage_bytes",
    "storage_free_bytes",
    "storage_capacity_bytes",
    "oldest_wait_seconds",
    "queue_stalled_seconds",
    "runtime_ready",
    "cleanup_passes_total",
    "cleanup_deleted_total",
    "cleanup_freed_bytes_total",
    "cleanup_duration_seconds",
    "cleanup_last_success_timestamp_seconds",
    "http_requests_total",
    "http_request_duration_seconds",
    "build_info",
)


QUEUE = ("queue_depth", "in_flight", "oldest_wait_seconds", "queue_stalled_seconds")


async def scrape(sidecar: Sidecar) -> str:
    return (await sidecar.get("/metrics"))[1].decode()


async def test_every_metric_is_there_with_help_before_anything_has_happened(sidecar: Sidecar) -> None:
    text = await scrape(sidecar)
    for name in CONTRACT:
        assert re.search(rf"^# HELP imagegen_{name} \S", text, re.MULTILINE), name


async def test_the_label_sets_of_every_model_start_at_zero(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    models = tmp_path / "models.yaml"
    models.write_text("models: [{endpoint: 'http://a/v1/models/x'}, {endpoint: 'http://a/v1/models/y'}]")
    sidecar = await start_sidecar(MODELS_FILE=str(models))
    for model in ("x", "y"):
        for outcome in ("completed", "failed", "rejected", "cancelled"):
            assert await sidecar.metric(f'imagegen_generations_total{{model="{model}",outcome="{outcome}"}}') == 0
        for name in (*QUEUE, "generation_duration_seconds_count"):
            assert await sidecar.metric(f'imagegen_{name}{{model="{model}"}}') == 0
    assert await sidecar.metric('imagegen_stored_images_total{backend="file"}') == 0


async def test_the_outcomes_that_start_at_zero_are_those_that_a_predict_can_have(sidecar: Sidecar) -> None:
    counts = r'^imagegen_runtime_request_duration_seconds_count{model="painter",outcome="(\w+)"} 0\.0$'
    assert set(re.findall(counts, await scrape(sidecar), re.MULTILINE)) == {
        *("completed", "cancelled", "internal", "runtime_failed", "unreachable", "not_ready", "busy"),
        *("unknown_model", "refused_parameters", "out_of_memory", "lost_answer", "answered_nonsense"),
        *("storage_unavailable", "storage_full"),
    }


@pytest.mark.parametrize(
    ("free", "bound", "shown"),
    [
        (None, 1000, {}),
        (300, None, {"free": 300, "capacity": 500}),
        (300, 400, {"free": 300, "capacity": 400}),
        (0, 400, {"free": 0, "capacity": 200}),
    ],
)
async def test_room_is_shown_once_it_is_known_and_never_for_a_bucket(
    free: int | None, bound: int | None, shown: dict[str, int]
) -> None:
    metrics = Metrics({}, "file", bound)
    assert await room(metrics) == {}
    metrics(StorageCounted(backend="file", inventory=Inventory(images=1, size_bytes=200, free_bytes=free)))
    assert await room(metrics) == shown


async def room(metrics: Metrics) -> dict[str, float]:
    text = (await metrics.exposition.scrape(""))[0].decode()
    return {
        name: float(value) for name, value in re.findall(r"^imagegen_storage_(\w+)_bytes (\S+)$", text, re.MULTILINE)
    }


async def test_the_capacity_is_the_bound_of_the_settings(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(STORAGE_MAX_BYTES="64KiB")
    await metric_becomes(sidecar, "imagegen_storage_capacity_bytes", 64 * 2**10)
    assert await sidecar.metric("imagegen_storage_capacity_bytes") == 64 * 2**10


async def test_what_happens_is_counted(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(QUEUE_LIMIT="0")
    image = await sidecar.made()
    kserve.script.append(say(500, {"error": "broken"}))
    assert (await sidecar.generate()).is_error
    kserve.script.append(succeed_when(release := asyncio.Event()))
    slow = asyncio.create_task(sidecar.generate())
    await kserve.seen(3)
    assert (await sidecar.generate()).is_error
    await metric_becomes(sidecar, 'imagegen_in_flight{model="painter"}', 1)
    release.set()
    await slow
    for outcome, count in (("completed", 2), ("failed", 1), ("rejected", 1), ("cancelled", 0)):
        assert await sidecar.metric(f'imagegen_generations_total{{model="painter",outcome="{outcome}"}}') == count
    predicts = "imagegen_runtime_request_duration_seconds_count"
    assert await sidecar.metric(f'{predicts}{{model="painter",outcome="completed"}}') == 2
    assert await sidecar.metric(f'{predicts}{{model="painter",outcome="runtime_failed"}}') == 1
    assert await sidecar.metric('imagegen_stored_images_total{backend="file"}') == 2
    assert await sidecar.metric('imagegen_stored_bytes_total{backend="file"}') == 2 * image["size_bytes"]
    assert await sidecar.metric('imagegen_runtime_ready{model="painter"}') == 1


async def test_labels_never_carry_what_a_caller_chose(sidecar: Sidecar) -> None:
    await sidecar.generate(prompt="xyzzy", model="xyzzy")
    await sidecar.generate(prompt="xyzzy")
    await sidecar.get("/xyzzy")
    await sidecar.get("/images/xyzzy?xyzzy=1", method="XYZZY")
    await sidecar.get("/metrics/runtime?model=xyzzy")
    assert "xyzzy" not in (await scrape(sidecar)).lower()


async def test_promtool_finds_nothing_to_mend(sidecar: Sidecar) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        assert "CI" not in os.environ, "promtool must be installed in CI"
        pytest.skip("promtool is not installed")
    await sidecar.made()
    text = await scrape(sidecar)
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


async def test_the_buckets_reach_from_a_tenth_of_a_second_to_ten_minutes(sidecar: Sidecar) -> None:
    text = await scrape(sidecar)
    for edge in ("0.1", "600.0"):
        assert f'imagegen_generation_duration_seconds_bucket{{le="{edge}",model="painter"}}' in text


async def test_openmetrics_is_spoken_where_it_is_asked_for(sidecar: Sidecar) -> None:
    response, body = await sidecar.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert response.content_type == "application/openmetrics-text"
    assert body.endswith(b"# EOF\n")


async def test_the_runtimes_own_metrics_pass_through(sidecar: Sidecar, kserve: FakeKServe) -> None:
    response, body = await sidecar.get("/metrics/runtime")
    assert (response.status, b"request_predict_seconds 1" in body) == (200, True)
    assert (await sidecar.get("/metrics/runtime?model=painter"))[0].status == 200
    assert (await sidecar.get("/metrics/runtime?model=nobody"))[0].status == 400
    await kserve.server.close()
    assert (await sidecar.get("/metrics/runtime"))[0].status == 502


async def test_a_port_of_their_own_takes_the_metrics_off_the_other(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(METRICS_LISTEN_PORT="0")
    assert sidecar.metrics_url is not None
    for path in ("/metrics", "/metrics/runtime"):
        assert (await sidecar.get(path))[0].status == 404
        assert (await sidecar.get(f"{sidecar.metrics_url}{path}"))[0].status == 200
    assert (await sidecar.get(f"{sidecar.metrics_url}/mcp"))[0].status == 404


async def test_clean_up_is_counted(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(IMAGE_TTL="100ms", CLEANUP_INTERVAL="100ms")
    image = await sidecar.made()
    await metric_becomes(sidecar, "imagegen_cleanup_deleted_total", 1)
    assert await sidecar.metric("imagegen_cleanup_freed_bytes_total") == image["size_bytes"]
    assert await sidecar.metric('imagegen_cleanup_passes_total{outcome="completed"}') >= 1
    assert await sidecar.metric("imagegen_cleanup_last_success_timestamp_seconds") > 1e9
    assert sidecar.stored() == []


FAILURES = [
    say(500, {"error": "broken"}),
    say(400, {"error": "Prediction failed: bad size"}),
    say(400, {"error": "Prediction failed: CUDA out of memory"}),
    say(200, {"predictions": []}),
    cut_off(after=100),
]


def label_sets(text: str) -> set[str]:
    """Every counter and histogram of a model, without values and buckets."""
    found = re.findall(r'^(imagegen_\w+(?:_total|_count)\{[^}]*model="[^}]*\}) ', text, re.MULTILINE)
    return set(found)


async def test_no_label_set_of_a_model_appears_only_once_something_has_gone_wrong(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    """A counter born at 1 hides its first increase from rate() and increase()."""
    before = label_sets(await scrape(sidecar))
    kserve.script.extend(FAILURES)
    for _ in FAILURES:
        assert (await sidecar.generate()).is_error
    await sidecar.made()
    assert label_sets(await scrape(sidecar)) - before == set()


async def test_a_caller_who_leaves_the_queue_is_counted_once_and_its_place_is_free(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(succeed_when(release := asyncio.Event()))
    slow = asyncio.create_task(sidecar.made())
    await kserve.seen(1)
    call = raw_tool_call("auto", {"prompt": "a cat", "num_images": 3})
    leaving = asyncio.create_task(sidecar.get("/mcp", method="POST", **call))
    await metric_becomes(sidecar, 'imagegen_queue_depth{model="painter"}', 1)
    assert await sidecar.metric('imagegen_oldest_wait_seconds{model="painter"}') >= 0
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await metric_becomes(sidecar, 'imagegen_generations_total{model="painter",outcome="cancelled"}', 1)
    release.set()
    await slow
    await metric_becomes(sidecar, 'imagegen_in_flight{model="painter"}', 0)
    for name, value in (("queue_depth", 0), ("oldest_wait_seconds", 0), ("generation_duration_seconds_count", 1)):
        assert await sidecar.metric(f'imagegen_{name}{{model="painter"}}') == value
    for outcome, count in (("completed", 1), ("failed", 0), ("rejected", 0), ("cancelled", 1)):
        assert await sidecar.metric(f'imagegen_generations_total{{model="painter",outcome="{outcome}"}}') == count
    assert await sidecar.metric('imagegen_queue_wait_seconds_count{model="painter"}') == 1
    assert len(kserve.instances) == 1


async def test_a_call_of_several_images_is_one_generation_and_several_images(sidecar: Sidecar) -> None:
    await sidecar.generate(num_images=3, result="link")
    assert await sidecar.metric('imagegen_generations_total{model="painter",outcome="completed"}') == 1
    assert await sidecar.metric('imagegen_generation_duration_seconds_count{model="painter"}') == 1
    predicts = 'imagegen_runtime_request_duration_seconds_count{model="painter",outcome="completed"}'
    for sample in (
        predicts,
        'imagegen_stored_images_total{backend="file"}',
        'imagegen_image_bytes_count{model="painter"}',
    ):
        assert await sidecar.metric(sample) == 3


async def test_http_requests_are_counted_by_pattern_and_only_by_methods_that_exist(sidecar: Sidecar) -> None:
    image = await sidecar.made()
    for method, path, status in (
        ("GET", image["url"], 200),
        ("HEAD", image["url"], 200),
        ("GET", "/images/unknown", 404),
        ("GET", "/../../etc/passwd", 404),
        ("PROPFIND", "/livez", 405),
    ):
        assert (await sidecar.get(path, method=method))[0].status == status
    seen = set(re.findall(r"^imagegen_http_requests_total\{(.*)\} ", await scrape(sidecar), re.MULTILINE))
    assert seen >= {
        'method="GET",route="/images/{image_id}",status="200"',
        'method="HEAD",route="/images/{image_id}",status="200"',
        'method="GET",route="/images/{image_id}",status="404"',
        'method="GET",route="other",status="404"',
        'method="other",route="other",status="405"',
    }


@pytest.mark.parametrize("size", [2**20, 17 * 2**20])
async def test_a_runtimes_metrics_are_passed_on_or_refused_but_never_an_error_of_ours(
    size: int, start_sidecar: StartSidecar, aiohttp_server: Any
) -> None:
    async def plenty(_request: web.Request) -> web.Response:
        return web.Response(body=b"# " + b"x" * size, content_type="text/plain")

    runtime = web.Application()
    runtime.router.add_get("/metrics", plenty)
    server = await aiohttp_server(runtime)
    sidecar = await start_sidecar(KSERVE_ENDPOINT=f"http://127.0.0.1:{server.port}/v1/models/painter")
    response, body = await sidecar.get("/metrics/runtime")
    assert (response.status, len(body) > size) == ((200, True) if size <= 16 * 2**20 else (502, False))


async def test_a_real_prometheus_scrapes_both_without_complaint(sidecar: Sidecar, tmp_path: Path) -> None:
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        assert "CI" not in os.environ, "prometheus must be installed in CI"
        pytest.skip("prometheus is not installed")
    target = sidecar.url.removeprefix("http://")
    jobs = [
        {"job_name": path, "metrics_path": path, "static_configs": [{"targets": [target]}]}
        for path in ("/metrics", "/metrics/runtime")
    ]
    (tmp_path / "p.yml").write_text(json.dumps({"global": {"scrape_interval": "100ms"}, "scrape_configs": jobs}))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    where = (f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={tmp_path / 'tsdb'}")
    process = await asyncio.create_subprocess_exec(
        prometheus, f"--config.file={tmp_path / 'p.yml'}", *where, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(20):
            while await _health_of_targets(sidecar, f"http://127.0.0.1:{port}/api/v1/targets") != {"up": 2}:
                await asyncio.sleep(0.05)
    finally:
        process.kill()
        await process.wait()


async def _health_of_targets(sidecar: Sidecar, url: str) -> dict[str, int]:
    try:
        _, body = await sidecar.get(url)
        targets = json.loads(body)["data"]["activeTargets"]
    except (aiohttp.ClientError, ValueError, KeyError):  # not yet up
        return {}
    return dict(Counter(target["health"] for target in targets))
