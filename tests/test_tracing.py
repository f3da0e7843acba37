"""Traces from the MCP call to the clean-up, at a real OTLP receiver."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from mcp.client import Client
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from sidecar.observe.tracing import wanted
from tests.conftest import Sidecar, raw_tool_call
from tests.fake_kserve import FakeKServe, say
from tests.test_commands import run

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Span:
    name: str
    trace: str
    span: str
    parent: str
    attributes: dict[str, Any]
    failed: bool
    text: str
    """All that was sent of it, events and status too."""


class Receiver:
    """An OTLP/HTTP receiver: what arrives is decoded and kept."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self._arrived = asyncio.Event()
        self.app = web.Application()
        self.app.router.add_post("/v1/traces", self._traces)

    async def _traces(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        for resource in ExportTraceServiceRequest.FromString(await request.read()).resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            self.spans += [_span(span) for scope in resource.scope_spans for span in scope.spans]
        self._arrived.set()
        return web.Response(content_type="application/x-protobuf")

    async def until(self, *names: str) -> dict[str, Span]:
        """Wait for a span of each name; the first of each."""
        async with asyncio.timeout(20):
            while not {*names} <= {span.name for span in self.spans}:
                self._arrived.clear()
                await self._arrived.wait()
        return {span.name: span for span in reversed(self.spans) if span.name in names}


def _span(span: Any) -> Span:
    values = {entry.key: entry.value.string_value or entry.value.int_value for entry in span.attributes}
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    return Span(span.name, *ids, values, span.status.code == Status.STATUS_CODE_ERROR, str(span))


@dataclass
class Process:
    """`serve` as a process of its own, with its log."""

    url: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)

    async def until_logged(self, event: str) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while (found := next((line for line in self.lines if line["event"] == event), None)) is None:
                await asyncio.sleep(0.01)
        return found


@pytest.fixture
async def receiver(aiohttp_server: Any) -> tuple[Receiver, str]:
    receiver = Receiver()
    server = await aiohttp_server(receiver.app)
    return receiver, f"http://127.0.0.1:{server.port}"


@asynccontextmanager
async def serving(kserve: FakeKServe, store: Path, **environment: str) -> AsyncIterator[Process]:
    given = {
        "LISTEN_PORT": "0",
        "KSERVE_ENDPOINT": f"http://127.0.0.1:{kserve.server.port}/v1/models/painter",
        "STORAGE_PATH": str(store),
        "PYTHONPATH": str(Path(__file__).parent.parent),
        **environment,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", "serve", env=given, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    running = Process()

    async def read(stream: asyncio.StreamReader) -> None:
        async for line in stream:
            running.lines.append(json.loads(line))

    reading = asyncio.create_task(read(process.stderr))
    try:
        running.url = (await running.until_logged("listening"))["url"]
        yield running
        process.terminate()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await reading


async def call(url: str, *, headers: dict[str, str]) -> None:
    """One generation by a raw call, so that it carries the headers."""
    async with aiohttp.ClientSession() as session:
        wanted = raw_tool_call("auto", {"prompt": "a cat"}, {**headers, "Host": "localhost"})
        async with session.post(f"{url}/mcp", **wanted) as response:
            assert '"status":"completed"' in (await response.text()).replace(" ", "")


async def test_a_generation_is_one_trace_from_its_caller_to_the_runtime(
    kserve: FakeKServe, receiver: tuple[Receiver, str], tmp_path: Path
) -> None:
    arriving, endpoint = receiver
    async with serving(
        kserve, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="100"
    ) as sidecar:
        await call(sidecar.url, headers={"traceparent": TRACEPARENT})
        spans = await arriving.until("tools/call generate_image", "queue", "runtime", "store", "clean-up")
        stored = await sidecar.until_logged("image stored")
        async with aiohttp.ClientSession() as session:
            accept = {"Accept": "application/openmetrics-text;version=1.0.0"}
            async with session.get(f"{sidecar.url}/metrics", headers=accept) as response:
                metrics = await response.text()
    tool = spans["tools/call generate_image"]
    assert (tool.trace, tool.parent) == (TRACE, "b7ad6b7169203331")
    for name in ("queue", "runtime", "store"):
        assert (name, spans[name].trace, spans[name].parent) == (name, TRACE, tool.span)
    assert spans["clean-up"].parent == ""
    assert spans["runtime"].attributes == {"imagegen.model": "painter"}
    assert kserve.headers[0]["traceparent"] == f"00-{TRACE}-{spans['runtime'].span}-01"
    assert arriving.services == {"mcp-image-sidecar"}
    assert stored["trace_id"] == TRACE
    for name in ("generation_duration_seconds", "queue_wait_seconds", "runtime_request_duration_seconds"):
        assert re.search(rf'^imagegen_{name}_bucket\{{.*\}} \S+ # \{{.*trace_id="{TRACE}"', metrics, re.MULTILINE), name


async def test_spans_not_yet_sent_are_sent_on_the_way_out(
    kserve: FakeKServe, receiver: tuple[Receiver, str], tmp_path: Path
) -> None:
    arriving, endpoint = receiver
    names = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{endpoint}/v1/traces", "OTEL_SERVICE_NAME": "painters"}
    async with serving(kserve, tmp_path, **names, OTEL_BSP_SCHEDULE_DELAY="3600000") as sidecar:
        async with Client(f"{sidecar.url}/mcp") as client:
            assert not (await client.call_tool("generate_image", {"prompt": "a cat"})).is_error
        assert arriving.spans == []
    await arriving.until("runtime", "store")
    assert arriving.services == {"painters"}
    assert "a cat" not in repr(arriving.spans)


async def test_a_span_says_why_it_failed_and_not_in_the_words_of_a_runtime_that_repeats_the_prompt(
    kserve: FakeKServe, receiver: tuple[Receiver, str], tmp_path: Path
) -> None:
    arriving, endpoint = receiver
    kserve.script.append(say(400, {"error": "Prediction failed: cannot tokenize a cat"}))
    names = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    async with serving(kserve, tmp_path, **names) as sidecar, Client(f"{sidecar.url}/mcp") as client:
        assert (await client.call_tool("generate_image", {"prompt": "a cat"})).is_error
        spans = await arriving.until("queue", "runtime")
    assert spans["runtime"].failed
    assert spans["runtime"].attributes == {"imagegen.model": "painter", "error.type": "refused_parameters"}
    assert not spans["queue"].failed
    assert [span.name for span in arriving.spans if "a cat" in span.text] == []


async def test_a_receiver_that_is_away_costs_no_generation(kserve: FakeKServe, tmp_path: Path) -> None:
    nobody = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    async with serving(kserve, tmp_path, **nobody, OTEL_BSP_SCHEDULE_DELAY="50") as sidecar:
        await call(sidecar.url, headers={})
        async with Client(f"{sidecar.url}/mcp") as client:
            assert not (await client.call_tool("generate_image", {"prompt": "a cat"})).is_error
    assert len(kserve.instances) == 2


async def test_without_the_extra_the_sidecar_says_so_and_serves(
    kserve: FakeKServe, receiver: tuple[Receiver, str], tmp_path: Path
) -> None:
    """A package of that name that cannot be imported stands before the installed one."""
    missing = tmp_path / "path" / "opentelemetry" / "sdk"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ImportError(name='opentelemetry.sdk')")
    path = f"{missing.parent.parent}:{Path(__file__).parent.parent}"
    arriving, endpoint = receiver
    async with serving(kserve, tmp_path / "i", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, PYTHONPATH=path) as sidecar:
        said = await sidecar.until_logged("traces are not exported: install mcp-image-sidecar[otel]")
        await call(sidecar.url, headers={})
    assert said["level"] == "warning"
    assert arriving.spans == []


async def test_another_protocol_than_http_is_refused_with_a_word(
    kserve: FakeKServe, receiver: tuple[Receiver, str], tmp_path: Path
) -> None:
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver[1], "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    async with serving(kserve, tmp_path, **given) as sidecar:
        said = await sidecar.until_logged("traces are not exported: only http/protobuf is spoken")
    assert said["protocol"] == "grpc"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_traces_are_exported_only_where_opentelemetrys_variables_ask_for_them(
    environment: dict[str, str], expected: bool
) -> None:
    assert wanted(environment) is expected


async def test_without_a_trace_lines_and_buckets_name_none(sidecar: Sidecar) -> None:
    await sidecar.made()
    _, body = await sidecar.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert b"trace_id" not in body


def test_an_endpoint_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    given = {"STORAGE_PATH": str(tmp_path), "LISTEN_PORT": "0", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:hush@h:4318"}
    done = run("serve", **given)
    assert (done.returncode, "hush" in done.stderr + done.stdout) == (2, False)
    assert "OTEL_EXPORTER_OTLP_HEADERS" in done.stderr
