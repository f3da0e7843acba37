"""Spans by OpenTelemetry's API, which does nothing until an exporter is set up (observe/tracing.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace

from sidecar.errors import SidecarError

_tracer = trace.get_tracer("sidecar")


@contextmanager
def span(name: str, **attributes: str | int) -> Iterator[None]:
    """A span around a block, below the current one. Of an error it has the kind and not the words, since these may be a
    runtime's, which repeats the prompt that it refuses.
    """
    given = {f"imagegen.{key}": value for key, value in attributes.items()}
    with _tracer.start_as_current_span(
        name, attributes=given, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except Exception as error:
            current.set_attribute(
                "error.type", error.reason if isinstance(error, SidecarError) else type(error).__name__
            )
            current.set_status(trace.StatusCode.ERROR)
            raise


def current_ids() -> dict[str, str]:
    """`trace_id` and `span_id` of what is going on, for a log line; nothing outside of a trace."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}


def exemplar() -> dict[str, str] | None:
    """The exemplar that leads from a histogram's bucket to a trace; only to a sampled one."""
    sampled = trace.get_current_span().get_span_context().trace_flags.sampled
    return (current_ids() or None) if sampled else None
