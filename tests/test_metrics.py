"""What Prometheus scrapes."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Sidecar, StartSidecar, metric_becomes
from tests.fake_kserve import FakeKServe, say, succeed_when

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
    "oldest_wait_seconds",
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
        for name in ("queue_depth", "in_flight", "oldest_wait_seconds", "generation_duration_seconds_count"):
            assert await sidecar.metric(f'imagegen_{name}{{model="{model}"}}') == 0
    assert await sidecar.metric('imagegen_stored_images_total{backend="file"}') == 0


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
    assert (await sidecar.get(f"{sidecar.metrics_url}/livez"))[0].status == 404


async def test_clean_up_is_counted(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(IMAGE_TTL="100ms", CLEANUP_INTERVAL="100ms")
    image = await sidecar.made()
    await metric_becomes(sidecar, "imagegen_cleanup_deleted_total", 1)
    assert await sidecar.metric("imagegen_cleanup_freed_bytes_total") == image["size_bytes"]
    assert await sidecar.metric('imagegen_cleanup_passes_total{outcome="completed"}') >= 1
    assert await sidecar.metric("imagegen_cleanup_last_success_timestamp_seconds") > 1e9
    assert sidecar.stored() == []
