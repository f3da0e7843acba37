"""The text of a scrape, kept label set by label set: only what has changed since the last scrape is rendered again.

Each label set is a metric of prometheus-client in a registry of its own, which the library renders; here the pieces
are put together under one head per family, a few milliseconds at a time, so that a scrape after many changes does not
hold up the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST as TEXT
from prometheus_client.exposition import generate_latest as as_text
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as as_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_M = TypeVar("_M", bound=MetricWrapperBase)
_Render = Callable[[CollectorRegistry], bytes]

_TURN_SECONDS = 0.002
_EXEMPLAR = b" # {"

disable_created_metrics()  # type: ignore[no-untyped-call]  # one line in twenty, and of no use to a query


class _Series(Generic[_M]):
    """One label set. The library renders it once; after that only its numbers are new."""

    def __init__(self, metric: _M, registry: CollectorRegistry, *, headless: bool) -> None:
        self.metric = metric
        self.registry = registry
        self._headless = headless
        self.rendered: dict[_Render, bytes] = {}
        self._frames: dict[_Render, list[str]] = {}

    def text(self, render: _Render) -> bytes:
        if render not in self.rendered:
            self.rendered[render] = self._framed(render) or self._by_library(render)
        return self.rendered[render]

    def _by_library(self, render: _Render) -> bytes:
        text = _without_head(render(self.registry)) if self._headless else render(self.registry)
        if _EXEMPLAR not in text:
            self._frames[render] = [_without_number(line) for line in text.decode().split("\n")[:-1]]
        return text

    def _framed(self, render: _Render) -> bytes | None:
        """None where the library has to do it: the first time, and with exemplars."""
        frame = self._frames.get(render)
        samples = [sample for metric in self.metric.collect() for sample in metric.samples] if frame else []
        if not frame or any(sample.exemplar for sample in samples):
            return None
        numbers = (floatToGoString(sample.value) for sample in samples)  # type: ignore[no-untyped-call]
        lines = [line if line.startswith("#") else f"{line} {next(numbers)}" for line in frame]
        return "".join(f"{line}\n" for line in lines).encode()


class Description(NamedTuple):
    """What the reference says of a metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    documentation: str


class Family(Generic[_M]):
    """One metric with all its label sets."""

    def __init__(self, kind: type[_M], name: str, documentation: str, labels: tuple[str, ...], **options: Any) -> None:
        self.description = Description(name, kind.__name__.lower(), labels, documentation)
        self._kind = kind
        self._options = options
        self._bare = self._series_of(())
        self._series: dict[tuple[str, ...], _Series[_M]] = {}

    def of(self, *values: str) -> _M:
        """The metric of one label set, about to be changed."""
        series = self._series.get(values) if values else self._bare
        if series is None:
            series = self._series[values] = self._series_of(values)
        series.rendered.clear()
        return series.metric

    def _series_of(self, values: tuple[str, ...]) -> _Series[_M]:
        name, _, labels, documentation = self.description
        registry = CollectorRegistry()
        metric = self._kind(name, documentation, labels, registry=registry, **self._options)
        return _Series(metric.labels(*values) if values else metric, registry, headless=bool(values))

    def render(self, render: _Render) -> Iterator[bytes]:
        """The head, and the lines of all label sets."""
        yield self._bare.text(render)
        for series in list(self._series.values()):  # another may come between two pieces
            yield series.text(render)


def _without_number(line: str) -> str:
    return line if line.startswith("#") else line.rpartition(" ")[0]


def _without_head(text: bytes) -> bytes:
    while text.startswith(b"# "):
        text = text.partition(b"\n")[2]
    return text


class Exposition:
    """Every metric of the process. Not for threads: counted and scraped on one event loop."""

    def __init__(self) -> None:
        self._families: list[Family[Any]] = []
        self._at_each_scrape = CollectorRegistry()

    def counter(self, name: str, text: str, *labels: str) -> Family[Counter]:
        return self._add(Family(Counter, name, text, labels))

    def gauge(self, name: str, text: str, *labels: str) -> Family[Gauge]:
        return self._add(Family(Gauge, name, text, labels))

    def histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Family[Histogram]:
        return self._add(Family(Histogram, name, text, labels, buckets=buckets))

    def at_each_scrape(self, collector: Collector) -> None:
        """Add metrics that are read at each scrape."""
        self._at_each_scrape.register(collector)

    def described(self) -> Iterator[Description]:
        """Every metric there is, also those that nothing has been counted in yet."""
        yield from (family.description for family in self._families)
        for metric in self._at_each_scrape.collect():
            labels = tuple(sorted({label for sample in metric.samples for label in sample.labels}))
            yield Description(metric.name, metric.type, labels, metric.documentation)

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that the Accept header asks for."""
        if "application/openmetrics-text" in accept:
            return await self._render(_openmetrics) + b"# EOF\n", OPENMETRICS
        return await self._render(as_text), TEXT

    async def _render(self, render: _Render) -> bytes:
        pieces = (piece for family in self._families for piece in family.render(render))
        return b"".join([*[piece async for piece in _in_turns(pieces)], render(self._at_each_scrape)])

    def _add(self, family: Family[_M]) -> Family[_M]:
        self._families.append(family)
        return family


async def _in_turns(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """The pieces, letting others have the event loop after each turn."""
    until = time.perf_counter() + _TURN_SECONDS
    for piece in pieces:
        yield piece
        if time.perf_counter() > until:
            await asyncio.sleep(0)
            until = time.perf_counter() + _TURN_SECONDS


def _openmetrics(registry: CollectorRegistry) -> bytes:
    text: bytes = as_openmetrics(registry)  # type: ignore[no-untyped-call]
    return text.removesuffix(b"# EOF\n")
