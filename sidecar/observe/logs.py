"""structlog for us and, by the standard library's logging, for aiohttp and the MCP SDK: one JSON line each, on stderr.

Prompts, negative prompts and image ids are logged at debug only: a prompt is its author's, an id opens an image.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

import structlog

from sidecar.config import LogSettings
from sidecar.errors import bounded, cleaned
from sidecar.events import (
    CleanupSkipped,
    Crashed,
    EndForgotten,
    Event,
    FileDamaged,
    GenerationEnded,
    ImageLost,
    ImageRecovered,
    ImageStored,
    JobTakenOver,
    PredictRetried,
    PredictStarted,
    RuntimeSeen,
    SpooledImageLost,
    StorageOperation,
    StorageProbed,
    StorageSeen,
    Swept,
)
from sidecar.observe.log_filters import install_filters
from sidecar.observe.log_writer import STANDARD_ERROR, LogWriter, QueuedHandler
from sidecar.spans import current_ids

_DAMAGED_FILES = 1000  # each is told once, as far back as this
_IDS = re.compile(r"([0-9a-z]{9})[0-9a-z]{28}([0-9a-z]{6})", re.ASCII)
_QUIET = ("asyncio", "aiohttp.access", "httpx", "PIL")
_MAX_EVENT = 1000
_MAX_VALUE = 4000  # characters of one value in a line
_MAX_ESCAPED_VALUE = 1000  # the same where JSON writes up to twelve for one


def configure_logging(settings: LogSettings) -> None:
    """Route every logger of the process, warnings and crashed threads to stderr in one format.

    To be called before the MCP SDK is used. Lines are written by a thread (log_writer), so that logging never waits.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _traced,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_handler(settings, shared)]
    root.setLevel(settings.level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # The SDK tells of every refused request at warning; ours are counted and logged once, at the edge.
    logging.getLogger("mcp").setLevel(logging.ERROR if settings.level != "debug" else logging.DEBUG)
    install_filters()
    logging.captureWarnings(True)
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_crashed_thread


def flush_log(seconds: float) -> None:
    """Wait at most `seconds` until what was logged is written."""
    if (writer := _writer()) is not None:
        writer.flush(seconds)


def lines_dropped() -> int:
    """Log lines of this process that were lost."""
    writer = _writer()
    return 0 if writer is None else writer.dropped


def _writer() -> LogWriter | None:
    """logging's root is the process's own, and so is the one handler that we put there."""
    handlers = logging.getLogger().handlers
    return next((handler.writer for handler in handlers if isinstance(handler, QueuedHandler)), None)


def _handler(settings: LogSettings, foreign: list[Any]) -> logging.Handler:
    if sys.stderr is None:  # closed by the parent: its number may belong to another file by now
        return logging.NullHandler()
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_plain_traceback)
        if console
        else structlog.processors.JSONRenderer()
    )
    last = [] if console else [structlog.processors.format_exc_info]
    handler = QueuedHandler(LogWriter(STANDARD_ERROR))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=foreign,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, _bounded, renderer],
        )
    )
    return handler


def _plain_traceback(out: TextIO, exc_info: Any) -> None:
    """For people. A rich traceback would print local variables, and so secrets."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    out.write(cleaned(text.getvalue(), _MAX_VALUE))


def _traced(_logger: Any, _name: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """From a line to its trace."""
    entry.update(current_ids())
    return entry


def _bounded(_logger: Any, _name: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """No line grows with what a caller sends, and none commands the terminal or the viewer that shows it."""
    for key, value in entry.items():
        if not isinstance(value, str):
            continue
        if key == "event":
            entry[key] = value if len(value) <= _MAX_EVENT and value.isprintable() else bounded(value, _MAX_EVENT)
        else:
            entry[key] = cleaned(value, _MAX_VALUE if value.isascii() else _MAX_ESCAPED_VALUE)
    return entry


def _log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    error = unraisable.exc_value
    logging.getLogger("sidecar.process").error(unraisable.err_msg or "an exception could not be raised", exc_info=error)


def _log_crashed_thread(crashed: threading.ExceptHookArgs) -> None:
    logging.getLogger("sidecar.process").error("a thread crashed", exc_info=crashed.exc_value)


class EventLog:
    """An observer that logs what an operator wants to read afterwards."""

    def __init__(self) -> None:
        self._log = structlog.stdlib.get_logger("sidecar")
        self._runtime_ready: dict[str, bool] = {}
        self._storage_writable: bool | None = None
        self._damaged: OrderedDict[str, None] = OrderedDict()
        self._skipped_before: set[str] = set()
        self._skipped: set[str] = set()
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            GenerationEnded: self._on_generation_ended,
            PredictStarted: self._on_predict_started,
            PredictRetried: self._on_predict_retried,
            ImageStored: self._on_image_stored,
            ImageLost: self._on_image_lost,
            ImageRecovered: self._on_image_recovered,
            Crashed: self._on_crashed,
            JobTakenOver: self._on_job_taken_over,
            StorageOperation: self._on_storage_operation,
            FileDamaged: self._on_file_damaged,
            SpooledImageLost: self._on_spooled_image_lost,
            StorageSeen: self._on_storage_seen,
            StorageProbed: self._on_storage_probed,
            EndForgotten: self._on_end_forgotten,
            RuntimeSeen: self._on_runtime_seen,
            Swept: self._on_swept,
            CleanupSkipped: self._on_cleanup_skipped,
        }

    def __call__(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _on_generation_ended(self, event: GenerationEnded) -> None:
        level = logging.INFO if event.outcome in ("completed", "cancelled") else logging.WARNING
        self._log.log(
            level,
            f"generation {event.outcome}",
            model=event.model,
            seconds=round(event.seconds, 3),
            reason=event.reason,
        )

    def _on_predict_started(self, event: PredictStarted) -> None:
        self._log.debug("predict started", model=event.model, waited=round(event.waited, 3))

    def _on_predict_retried(self, event: PredictRetried) -> None:
        self._log.warning("predict sent again", model=event.model, reason=event.reason, wait=round(event.wait, 3))

    def _on_image_stored(self, event: ImageStored) -> None:
        record = event.record
        seconds = round(record.runtime_seconds, 3)
        self._log.info(
            "image stored", model=record.request.model, bytes=record.size_bytes, seconds=seconds, late=event.late
        )
        self._log.debug(
            "image parameters", image_id=str(record.image_id), prompt=record.request.prompt, seed=record.request.seed
        )

    def _on_image_lost(self, event: ImageLost) -> None:
        self._log.warning("no image came for a caller that had left", model=event.model, reason=event.reason)
        self._log.debug(
            "why there is no image", model=event.model, detail=event.message
        )  # a runtime may echo the prompt

    def _on_image_recovered(self, event: ImageRecovered) -> None:
        self._log.warning("stored an image that a killed process had left unfinished", bytes=event.record.size_bytes)

    def _on_crashed(self, event: Crashed) -> None:
        self._log.error("something failed unexpectedly", what=event.what, exc_info=event.error)

    def _on_job_taken_over(self, event: JobTakenOver) -> None:
        deed = "adopted a generation" if event.adopted else "recorded a generation as interrupted"
        self._log.warning(f"{deed} whose pod had fallen silent", model=event.model)

    def _on_storage_operation(self, event: StorageOperation) -> None:
        if event.failed:
            self._log.error(
                "storage operation failed",
                operation=event.operation,
                outcome=event.outcome,
                backend=event.backend,
                detail=event.detail,
            )

    def _on_file_damaged(self, event: FileDamaged) -> None:
        """Once for each file, without the random part of an image's id, which is the key to its address."""
        if event.key in self._damaged:
            return
        self._damaged[event.key] = None
        if len(self._damaged) > _DAMAGED_FILES:
            self._damaged.popitem(last=False)
        key = _IDS.sub(r"\1…\2", event.key)
        self._log.error("a file of the store is damaged", backend=event.backend, key=key, reason=event.reason)

    def _on_spooled_image_lost(self, event: SpooledImageLost) -> None:
        self._log.error("a finished image vanished from the spool before it was sent", model=event.model)

    def _on_storage_seen(self, event: StorageSeen) -> None:
        if self._storage_writable != event.writable:
            self._storage_writable = event.writable
            if event.writable:
                self._log.info("store can be written", backend=event.backend)
            else:
                self._log.error("store cannot be written", backend=event.backend, detail=event.detail)

    def _on_storage_probed(self, event: StorageProbed) -> None:
        log = self._log.warning if event.shortfall else self._log.info
        log("probed the store", backend=event.backend, found=event.summary, detail=event.shortfall or None)

    def _on_end_forgotten(self, event: EndForgotten) -> None:
        self._log.error(
            "gave up recording how a generation ended",
            model=event.model,
            status=event.status,
            hours=event.hours,
            detail=event.detail,
        )

    def _on_runtime_seen(self, event: RuntimeSeen) -> None:
        if self._runtime_ready.get(event.model) != event.ready:
            self._runtime_ready[event.model] = event.ready
            self._log.info(
                "runtime is ready" if event.ready else "runtime is not ready", model=event.model, detail=event.detail
            )

    def _on_cleanup_skipped(self, event: CleanupSkipped) -> None:
        """Once, and again only after a pass without it: what keeps on is told by the metric."""
        if event.reason not in self._skipped | self._skipped_before:
            detail = None if event.detail is None else _IDS.sub(r"\1…\2", event.detail)
            self._log.warning("clean-up skipped", reason=event.reason, count=event.count, detail=detail)
        self._skipped.add(event.reason)

    def _on_swept(self, event: Swept) -> None:
        self._skipped_before, self._skipped = self._skipped, set()
        report = event.report
        if event.failure or report.errors:
            self._log.error("clean-up had errors", errors=report.errors, deleted=report.deleted, detail=event.failure)
        elif report.deleted or report.leftovers_deleted:
            self._log.info(
                "clean-up", deleted=report.deleted, freed_bytes=report.freed_bytes, leftovers=report.leftovers_deleted
            )
