"""Spans by OpenTelemetry's API, which does nothing until an exporter is set up (observe/tracing.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from opentelemetry import trace

_tracer = trace.get_tracer("sidecar")


def span(name: str, **attributes: str | int) -> AbstractContextManager[Any]:
    """A span around a block, below the current one."""
    return _tracer.start_as_current_span(
        name, attributes={f"imagegen.{key}": value for key, value in attributes.items()}
    )


def current_ids() -> dict[str, str]:
    """`trace_id` and `span_id` of what is going on, for a log line; nothing outside of a trace."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}


def exemplar() -> dict[str, str] | None:
    """What leads from a histogram's bucket to a trace; only to one that somebody keeps."""
    sampled = trace.get_current_span().get_span_context().trace_flags.sampled
    return (current_ids() or None) if sampled else None
