"""The text of a scrape: what the library would write, and never long at a time."""

from __future__ import annotations

import asyncio
import math

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as as_openmetrics

from sidecar.observe.exposition import Exposition

ODD_LABELS = ("plain", 'quo"ted', "two\nlines", "line\u2028separator", "# {", "back\\slash", "猫")
NUMBERS = (0.0, 1.0, 0.1, 3.5e9, 1e21, math.inf, math.nan)
OPENMETRICS = "application/openmetrics-text"


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
async def test_what_has_changed_is_written_as_the_library_would(accept: str) -> None:
    ours, theirs = Exposition(), CollectorRegistry()
    counts = ours.counter("counts", "Counted.", "what"), Counter("counts", "Counted.", ("what",), registry=theirs)
    levels = ours.gauge("levels", "Measured."), Gauge("levels", "Measured.", registry=theirs)
    times = (
        ours.histogram("times", "Timed.", (0.5, 2), "what"),
        Histogram("times", "Timed.", ("what",), buckets=(0.5, 2), registry=theirs),
    )
    for number in NUMBERS:
        for label in ODD_LABELS:
            counts[0].of(label).inc(number)
            counts[1].labels(label).inc(number)
            times[0].of(label).observe(number)
            times[1].labels(label).observe(number)
        levels[0].of().set(number)
        levels[1].set(number)
        text, _ = await ours.scrape(accept)
        expected = as_openmetrics(theirs) if accept else generate_latest(theirs)  # type: ignore[no-untyped-call]
        assert text == expected


async def test_what_leads_to_a_trace_is_written_and_goes_again() -> None:
    exposition = Exposition()
    times = exposition.histogram("times", "Timed.", (0.5, 2), "what")
    for _ in range(2):
        times.of("a").observe(1, {"trace_id": "abc"})
        times.of("b").observe(1)
        text, _ = await exposition.scrape(OPENMETRICS)
        assert text.count(b'# {trace_id="abc"}') == 1
    times.of("a").observe(1)
    assert b'times_count{what="a"} 3.0' in (await exposition.scrape(""))[0]


async def test_a_scrape_after_many_changes_leaves_the_loop_to_others() -> None:
    exposition = Exposition()
    times = exposition.histogram("times", "Timed.", tuple(range(1, 100)), "what")
    for number in range(500):
        times.of(str(number)).observe(number)
    scraping = asyncio.create_task(exposition.scrape(""))
    turns = 0
    while not scraping.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10
    assert scraping.result()[0].count(b"times_count") == 500
