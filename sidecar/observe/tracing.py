"""Where spans go: to an OTLP receiver over HTTP, if OpenTelemetry's variables name one and the extra is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping

import structlog
from opentelemetry import trace

from sidecar.config import has_credentials, without_credentials
from sidecar.errors import BadConfiguration, bounded

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SPOKEN = "http/protobuf"
_log = structlog.stdlib.get_logger("sidecar.tracing")


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment asks for traces, by the rules of OpenTelemetry's specification."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    return not disabled and exporter == "otlp" and any(environment.get(name) for name in _ENDPOINTS)


@contextlib.contextmanager
def exported_traces(environment: Mapping[str, str]) -> Iterator[None]:
    """While inside, spans are exported, and on the way out what is left. What is missing is said, and is no error.

    Raises BadConfiguration for an endpoint with a user or a password in it, which the exporter would log.
    """
    if not wanted(environment):
        yield
        return
    problems = [
        f"{name}: {bounded(without_credentials(environment[name]), 120)!r} was given; allowed: a URL without user and "
        "password. Credentials go into OTEL_EXPORTER_OTLP_HEADERS."
        for name in _ENDPOINTS
        if has_credentials(environment.get(name, ""))
    ]
    if problems:
        raise BadConfiguration(problems)
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), _SPOKEN)
    if protocol != _SPOKEN:
        _log.warning("traces are not exported: only http/protobuf is spoken", protocol=protocol)
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        _log.warning("traces are not exported: install mcp-image-sidecar[otel]", missing=error.name)
        yield
        return
    provider = TracerProvider(resource=Resource.create(_who(environment)))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


async def flush_traces(seconds: float) -> None:
    """Wait at most `seconds` until the spans so far are exported."""
    provider = trace.get_tracer_provider()
    if hasattr(provider, "force_flush"):  # spans are exported
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.to_thread(provider.force_flush)


def _who(environment: Mapping[str, str]) -> dict[str, str]:
    """The service's name, where OpenTelemetry's variables give it none."""
    if environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        return {}
    return {"service.name": "mcp-image-sidecar"}
