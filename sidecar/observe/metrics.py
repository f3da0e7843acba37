"""The facts of the core as Prometheus metrics, in an exposition of the application's own.

The table in docs/reference.md is generated from it. Labels never carry what a caller chose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, get_args

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.domain import Inventory
from sidecar.errors import RuntimeFailure, RuntimeTimedOut, SidecarError, StorageFailure, StorageFull
from sidecar.events import (
    CleanupSkipped,
    CleanupSkipReason,
    Event,
    GenerationEnded,
    ImageStored,
    JobsCounted,
    PredictEnded,
    PredictRetried,
    PredictStarted,
    RuntimeSeen,
    Spooled,
    SpooledImageLost,
    StorageCounted,
    StorageOperation,
    StorageSeen,
    Swept,
)
from sidecar.observe.exposition import Exposition, Family
from sidecar.observe.logs import lines_dropped
from sidecar.spans import exemplar

_GENERATION_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600)
_STORAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_HTTP_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)
_SIZE_BUCKETS = tuple(2**exponent * 1024 for exponent in range(4, 17))  # 16 KiB to 64 MiB
_GENERATION_OUTCOMES = ("completed", "failed", "rejected", "cancelled")
_JOB_STATES = ("open", "completed", "failed")
_ERRORS: set[type[SidecarError]] = {RuntimeFailure, *RuntimeFailure.__subclasses__(), StorageFailure, StorageFull}
_FAILURES = (*sorted(error.reason for error in _ERRORS - {RuntimeTimedOut}), "cancelled", "internal")
"""What a predict may end as instead of completed. A time-out ends its caller's wait and not the predict."""


class QueueView(Protocol):
    """What the scrape reads of a model's queue."""

    @property
    def waiting(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def oldest_wait(self) -> float: ...
    @property
    def stalled(self) -> float: ...


class Metrics:
    """An observer that counts. `queues` by model are read at each scrape; `max_bytes` bounds what may be stored."""

    def __init__(self, queues: Mapping[str, QueueView], backend: str, max_bytes: int | None = None) -> None:
        self.exposition = Exposition()
        self._make_generation_metrics()
        self._make_storage_metrics()
        self._make_cleanup_metrics()
        self._http = self._counter("http_requests", "HTTP requests.", "route", "method", "status")
        self._http_seconds = self._histogram(
            "http_request_duration_seconds", "HTTP requests.", _HTTP_BUCKETS, "route", "method"
        )
        self._gauge("build_info", "The version that runs.", "version").of(__version__).set(1)
        self._room = _Room(max_bytes)
        self.exposition.at_each_scrape(self._room)
        self.exposition.at_each_scrape(_Queues(queues))
        self.exposition.at_each_scrape(_LogLines())
        self._start_at_zero(queues, backend)
        self._handlers = self._by_event()

    def _make_generation_metrics(self) -> None:
        self._generations = self._counter(
            "generations", "Generations by how they ended for their caller.", "model", "outcome"
        )
        self._generation_seconds = self._histogram(
            "generation_duration_seconds", "From the call to the last image stored.", _GENERATION_BUCKETS, "model"
        )
        self._queue_wait = self._histogram(
            "queue_wait_seconds", "How long an image waited for a slot at the runtime.", _GENERATION_BUCKETS, "model"
        )
        self._runtime_seconds = self._histogram(
            "runtime_request_duration_seconds", "Predict requests by outcome.", _GENERATION_BUCKETS, "model", "outcome"
        )
        self._retries = self._counter("runtime_retries", "Predict requests sent again, by reason.", "model", "reason")
        self._image_bytes = self._histogram("image_bytes", "Size of stored images.", _SIZE_BUCKETS, "model")

    def _make_storage_metrics(self) -> None:
        self._storage_seconds = self._histogram(
            "storage_operation_duration_seconds",
            "Operations of the store.",
            _STORAGE_BUCKETS,
            "backend",
            "operation",
            "outcome",
        )
        self._stored_images = self._counter("stored_images", "Images stored by this process.", "backend")
        self._stored_bytes = self._counter("stored_bytes", "Bytes of images stored by this process.", "backend")
        self._storage_images = self._gauge("storage_images", "Images in the store at the last inventory.", "backend")
        self._storage_bytes = self._gauge(
            "storage_bytes",
            "Bytes in the store at the last inventory, on a volume with the records of generations.",
            "backend",
        )
        self._jobs = self._gauge(
            "jobs",
            "Records of generations in the store: under way (open), ended with an image (completed) and without "
            "(failed). Counted by clean-up, by this process's own changes in between.",
            "state",
        )
        self._jobs_bytes = self._gauge(
            "jobs_bytes", "Bytes of these records; on a volume they count in STORAGE_MAX_BYTES."
        )
        self._spool_images = self._gauge("spool_images", "Images that wait on this pod for a store that is away.")
        self._spool_lost = self._counter(
            "spool_lost_images", "Finished images that vanished from this pod's spool before they were sent.", "model"
        )
        self._storage_writable = self._gauge(
            "storage_writable", "1 when the store could be written at the last look.", "backend"
        )
        self._runtime_ready = self._gauge("runtime_ready", "1 when the model's runtime is ready or busy.", "model")

    def _make_cleanup_metrics(self) -> None:
        self._passes = self._counter("cleanup_passes", "Clean-up passes.", "outcome")
        self._deleted = self._counter("cleanup_deleted", "Expired images deleted by this process.")
        self._freed = self._counter("cleanup_freed_bytes", "Bytes freed by clean-up.")
        self._skipped = self._counter(
            "cleanup_skipped",
            "What clean-up kept: passes while the clock was in doubt (clock), keys that are not the sidecar's "
            "(foreign_key), and what a listing or the expiry index showed wrongly (record_still_there).",
            "reason",
        )
        self._cleanup_seconds = self._histogram("cleanup_duration_seconds", "Clean-up passes.", _STORAGE_BUCKETS)
        self._last_success = self._gauge(
            "cleanup_last_success_timestamp_seconds", "When a clean-up pass last succeeded."
        )

    def _by_event(self) -> dict[type[Event], Callable[[Any], None]]:
        return {
            GenerationEnded: self._on_generation_ended,
            PredictStarted: self._on_predict_started,
            PredictEnded: self._on_predict_ended,
            PredictRetried: self._on_predict_retried,
            ImageStored: self._on_image_stored,
            StorageOperation: self._on_storage_operation,
            StorageCounted: self._on_storage_counted,
            JobsCounted: self._on_jobs_counted,
            Spooled: self._on_spooled,
            SpooledImageLost: self._on_spooled_image_lost,
            StorageSeen: self._on_storage_seen,
            RuntimeSeen: self._on_runtime_seen,
            Swept: self._on_swept,
            CleanupSkipped: self._on_cleanup_skipped,
        }

    def __call__(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def http_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one HTTP request; `route` is a pattern, never a path that a caller chose."""
        self._http.of(route, method, str(status)).inc()
        self._http_seconds.of(route, method).observe(seconds, exemplar())

    def _on_generation_ended(self, event: GenerationEnded) -> None:
        self._generations.of(event.model, event.outcome).inc()
        if event.outcome == "completed":
            self._generation_seconds.of(event.model).observe(event.seconds, exemplar())

    def _on_predict_started(self, event: PredictStarted) -> None:
        self._queue_wait.of(event.model).observe(event.waited, exemplar())

    def _on_predict_ended(self, event: PredictEnded) -> None:
        self._runtime_seconds.of(event.model, event.outcome).observe(event.seconds, exemplar())

    def _on_predict_retried(self, event: PredictRetried) -> None:
        self._retries.of(event.model, event.reason).inc()

    def _on_image_stored(self, event: ImageStored) -> None:
        self._stored_images.of(event.backend).inc()
        self._stored_bytes.of(event.backend).inc(event.record.size_bytes)
        self._image_bytes.of(event.record.request.model).observe(event.record.size_bytes, exemplar())

    def _on_storage_operation(self, event: StorageOperation) -> None:
        self._storage_seconds.of(event.backend, event.operation, event.outcome).observe(event.seconds, exemplar())

    def _on_storage_counted(self, event: StorageCounted) -> None:
        self._storage_images.of(event.backend).set(event.inventory.images)
        self._storage_bytes.of(event.backend).set(event.inventory.size_bytes)
        self._room.inventory = event.inventory

    def _on_jobs_counted(self, event: JobsCounted) -> None:
        for state in _JOB_STATES:
            self._jobs.of(state).set(getattr(event.count, state))
        self._jobs_bytes.of().set(event.count.size_bytes)

    def _on_spooled(self, event: Spooled) -> None:
        self._spool_images.of().set(event.images)

    def _on_spooled_image_lost(self, event: SpooledImageLost) -> None:
        self._spool_lost.of(event.model).inc()

    def _on_storage_seen(self, event: StorageSeen) -> None:
        self._storage_writable.of(event.backend).set(event.writable)

    def _on_runtime_seen(self, event: RuntimeSeen) -> None:
        self._runtime_ready.of(event.model).set(event.ready)

    def _on_swept(self, event: Swept) -> None:
        failed = bool(event.failure or event.report.errors)
        skipped = event.report.skipped
        self._passes.of("failed" if failed else "skipped" if skipped else "completed").inc()
        self._deleted.of().inc(event.report.deleted)
        self._freed.of().inc(event.report.freed_bytes)
        self._cleanup_seconds.of().observe(event.report.seconds, exemplar())
        if not (failed or skipped):
            self._last_success.of().set_to_current_time()

    def _on_cleanup_skipped(self, event: CleanupSkipped) -> None:
        self._skipped.of(event.reason).inc(event.count)

    def _start_at_zero(self, models: Iterable[str], backend: str) -> None:
        for model in models:
            for outcome in _GENERATION_OUTCOMES:
                self._generations.of(model, outcome)
            for histogram in (self._generation_seconds, self._queue_wait, self._image_bytes):
                histogram.of(model)
            for outcome in ("completed", *_FAILURES):
                self._runtime_seconds.of(model, outcome)
            for reason in ("unreachable", "not_ready", "busy", "refused_parameters"):
                self._retries.of(model, reason)
            self._runtime_ready.of(model)
            self._spool_lost.of(model)
        for metric in (self._stored_images, self._stored_bytes, self._storage_images, self._storage_bytes):
            metric.of(backend)
        self._storage_writable.of(backend)
        for state in _JOB_STATES:
            self._jobs.of(state)
        self._jobs_bytes.of()
        for outcome in ("completed", "failed", "skipped"):
            self._passes.of(outcome)
        for reason in get_args(CleanupSkipReason):
            self._skipped.of(reason)

    def _counter(self, name: str, text: str, *labels: str) -> Family[Counter]:
        return self.exposition.counter(f"imagegen_{name}", text, *labels)

    def _gauge(self, name: str, text: str, *labels: str) -> Family[Gauge]:
        return self.exposition.gauge(f"imagegen_{name}", text, *labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Family[Histogram]:
        return self.exposition.histogram(f"imagegen_{name}", text, buckets, *labels)


class _Room(Collector):
    """What the store's volume has room for. No sample before it is known, which for a bucket is never."""

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self.inventory = Inventory()

    def collect(self) -> Iterable[Metric]:
        free, capacity = self.inventory.free_bytes, self._capacity()
        yield GaugeMetricFamily(
            "imagegen_storage_free_bytes", "Bytes free on the store's volume; none for a bucket.", value=free
        )
        yield GaugeMetricFamily(
            "imagegen_storage_capacity_bytes",
            "Bytes the store can hold: STORAGE_MAX_BYTES, or what is stored and free where that is less.",
            value=capacity,
        )

    def _capacity(self) -> int | None:
        if self.inventory.free_bytes is None:
            return None
        room = self.inventory.size_bytes + self.inventory.free_bytes
        return room if self._max_bytes is None else min(room, self._max_bytes)


class _Queues(Collector):
    """Queue depth, slots taken, the oldest wait and the last movement, read at each scrape."""

    def __init__(self, queues: Mapping[str, QueueView]) -> None:
        self._queues = queues

    def collect(self) -> Iterable[Metric]:
        depth = GaugeMetricFamily("imagegen_queue_depth", "Generations waiting for the runtime.", labels=["model"])
        flight = GaugeMetricFamily("imagegen_in_flight", "Predicts at the runtime.", labels=["model"])
        oldest = GaugeMetricFamily(
            "imagegen_oldest_wait_seconds", "How long the first in line has waited.", labels=["model"]
        )
        stalled = GaugeMetricFamily(
            "imagegen_queue_stalled_seconds",
            "How long all slots have been taken without one given or given back; 0 while one is free.",
            labels=["model"],
        )
        for model, queue in self._queues.items():
            depth.add_metric([model], queue.waiting)
            flight.add_metric([model], queue.in_flight)
            oldest.add_metric([model], queue.oldest_wait)
            stalled.add_metric([model], queue.stalled)
        return (depth, flight, oldest, stalled)


class _LogLines(Collector):
    """Log lines that were dropped, read at each scrape."""

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "imagegen_log_lines_dropped",
            "Log lines lost because standard error was not read or could not be written.",
            value=lines_dropped(),
        )
