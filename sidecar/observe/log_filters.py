"""What a peer can make libraries log is kept to one short line each, and to a few of a kind in a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from sidecar.errors import bounded

_BURST = 20
_PER_SECOND = 1.0
_PEER_MADE = ("aiohttp.server", "asyncio")
_FLOODABLE = (*_PEER_MADE, "sidecar.connections", "sidecar.guard", "sidecar.http", "sidecar.jsonrpc", "sidecar.mcp")
"""Loggers with lines that a peer can cause as often as it likes."""


def install_filters() -> None:
    """Put the filters on the loggers that need them."""
    flood = FloodLimit()
    for name in _FLOODABLE:
        logging.getLogger(name).filters[:] = [flood.filter]
    for name in _PEER_MADE:
        logging.getLogger(name).filters.insert(0, without_peer_traceback)
    logging.getLogger("opentelemetry.util.re").filters[:] = [_without_arguments]


def without_peer_traceback(record: logging.LogRecord) -> bool:
    """One line in place of a traceback for a connection that broke or that did not speak HTTP.

    aiohttp logs either as an error, with the peer's bytes; port scanners make that daily bread.
    """
    error = record.exc_info[1] if record.exc_info else None
    not_http = type(error).__module__.startswith("aiohttp.")  # by name: observers do not import the HTTP server
    if not (not_http or isinstance(error, OSError)):
        return True
    if not_http or isinstance(error, (ConnectionError, TimeoutError)):
        record.levelno, record.levelname = logging.INFO, "INFO"
    text = "closed a connection that did not speak HTTP" if not_http else f"{record.getMessage()}: {error!r}"
    record.msg, record.args, record.exc_info, record.exc_text = bounded(text), (), None, None
    return logging.getLogger().isEnabledFor(record.levelno)


def _without_arguments(record: logging.LogRecord) -> bool:
    """OpenTelemetry logs OTEL_EXPORTER_OTLP_HEADERS, which hold secrets, where they are malformed."""
    if record.args:
        record.args = tuple("***" for _ in record.args)
    return True


@dataclass(slots=True)
class _Bucket:
    """A token bucket for one kind of line, and how many lines found it empty."""

    tokens: float
    filled: float
    left_out: int = field(default=0)


class FloodLimit:
    """Of each kind of line `burst` at once, then `per_second`. The next line through says how many were left out."""

    def __init__(
        self,
        burst: int = _BURST,
        per_second: float = _PER_SECOND,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = burst
        self._per_second = per_second
        self._now = now
        self._buckets: dict[Hashable, _Bucket] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """A filter for logging: whether the line may be written."""
        now = self._now()
        bucket = self._buckets.setdefault(_kind(record), _Bucket(self._burst, now))
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.filled) * self._per_second)
        bucket.filled = now
        if bucket.tokens < 1:
            bucket.left_out += 1
            return False
        bucket.tokens -= 1
        if bucket.left_out:
            _tell_of_left_out(record, bucket.left_out)
            bucket.left_out = 0
        return True


def _kind(record: logging.LogRecord) -> Hashable:
    """Lines of one place in the code. Ours all come through structlog and are told apart by their event."""
    event = record.msg.get("event") if isinstance(record.msg, dict) else None
    return record.name, record.pathname, record.lineno, event


def _tell_of_left_out(record: logging.LogRecord, count: int) -> None:
    if isinstance(record.msg, dict):
        record.msg["left_out"] = count
    else:
        record.msg, record.args = f"{record.getMessage()} ({count} more of these were left out)", ()
