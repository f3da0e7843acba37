"""`make bench`: the sidecar beside a FastMCP peer, the bare runtime and nginx, in one run on one machine.

Prints a table of medians and ratios and writes them as JSON. bench/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import re
import shutil
import signal
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import bucket
import load
import many_images
import wrk
from processes import Server, bare, peer, project, runtime

from sidecar.ports import SystemClock
from sidecar.storages.file import FileStorage
from tests import ceph

MIB = 1024 * 1024
SMALL_IMAGE, IMAGE, LARGE_IMAGE = 4000, int(1.5 * MIB), 8 * MIB


@dataclass
class Row:
    """One measured quantity; None where there was nothing to compare with."""

    what: str
    unit: str
    project: float | None
    peer: float | None = None
    floor: float | None = None
    goal: str = ""


@dataclass
class _Footprint:
    """Megabytes when idle and at the peak, seconds to start; None of a peer that is not there."""

    idle: float | None
    peak: float | None
    started: float | None


@dataclass
class _CpuAndLatency:
    """Milliseconds per call, by who was measured."""

    cpu: dict[str, float]
    latency: dict[str, float]


class Bench:
    """`rounds` is how often each pair is measured in turn; medians are told."""

    def __init__(self, work: Path, rounds: int) -> None:
        self.work = work
        self.rounds = rounds
        self.has_peer = "PEER_PYTHON" in os.environ
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(_line(row), flush=True)

    # --- generating ---------------------------------------------------------------------------------------------------

    def generations(self) -> None:
        with runtime(IMAGE) as endpoint:
            seen = self._cpu_and_latency(endpoint, 60)
            asked = statistics.median(asyncio.run(load.predict(endpoint, 60))) * 1000
            shown = self._cpu_and_latency(endpoint, 40, result="thumbnail")
        self.add(_row("CPU per generation, 1.5 MB, link", seen.cpu, "≤ 4 and ≤ 1/5 of the peer"))
        added = {name: latency - asked for name, latency in seen.latency.items()}
        self.add(_row("latency added to the runtime's, p50", added, "≤ 4"))
        self.add(_row("CPU per generation, 1.5 MB, thumbnail", shown.cpu))
        self.add(Row("latency added to the runtime's, p50, thumbnail", "ms", shown.latency["project"] - asked))
        with runtime(SMALL_IMAGE) as endpoint:
            self.add(_row("CPU per generation, 4 kB, link", self._cpu_and_latency(endpoint, 60).cpu))
        with runtime(LARGE_IMAGE) as endpoint:
            linked = self._cpu_and_latency(endpoint, 16).cpu
            shown = self._cpu_and_latency(endpoint, 8, result="thumbnail")
        self.add(_row("CPU per generation, 8 MB, link", linked, "≤ 1/6 of the peer"))
        self.add(_row("CPU per generation, 8 MB, thumbnail", shown.cpu))

    def _cpu_and_latency(self, endpoint: str, count: int, result: str = "link") -> _CpuAndLatency:
        """Of project, peer and floor, measured in turn, one call at a time. Only the project makes thumbnails."""
        parts = [project, *([peer] if self.has_peer else []), bare] if result == "link" else [project]
        cpu: dict[str, list[float]] = {}
        latency: dict[str, list[float]] = {}
        with ExitStack() as running:
            servers = [running.enter_context(start(endpoint, self.work)) for start in parts]
            for server in servers:
                asyncio.run(load.generate(server.url, 10, result=result))
            for server in servers * self.rounds:
                before = server.cpu_seconds
                calls = asyncio.run(load.generate(server.url, count, result=result))
                cpu.setdefault(server.name, []).append((server.cpu_seconds - before) / count * 1000)
                latency.setdefault(server.name, []).append(statistics.median(calls.seconds) * 1000)
        self._clear()
        return _CpuAndLatency(_medians(cpu), _medians(latency))

    def memory(self) -> None:
        """Of new processes each round: what they take when idle, under load, and to start."""
        seen: dict[str, list[_Footprint]] = {}
        with runtime(LARGE_IMAGE) as endpoint:
            crowded = self._crowded(endpoint)
            for _ in range(self.rounds):
                for result in ("link", "thumbnail"):
                    with project(endpoint, self.work, RUNTIME_CONCURRENCY="8") as server:
                        seen.setdefault(result, []).append(_footprint(server, result))
                    self._clear()
                if self.has_peer:
                    with peer(endpoint, self.work) as server:
                        seen.setdefault("peer", []).append(_footprint(server, "link"))
                    self._clear()
        link, thumbnail, other = (_median_footprint(seen.get(what)) for what in ("link", "thumbnail", "peer"))
        self.add(Row("peak memory, 8 × 8 MB at once, link", "MB", link.peak, other.peak, goal="≤ 130"))
        self.add(Row("peak memory, 8 × 8 MB at once, thumbnail", "MB", thumbnail.peak))
        self.add(Row("peak memory, 400 readers of an 8 MB image who take nothing", "MB", crowded))
        self.add(Row("idle memory", "MB", link.idle, other.idle, goal="≤ 90"))
        self.add(Row("start to ready", "s", link.started, other.started, goal="≤ 1.5 and ≤ the peer's"))

    def _crowded(self, endpoint: str) -> float:
        with project(endpoint, self.work) as server:
            url = asyncio.run(load.generate(server.url, 1)).image_urls[0]
            asyncio.run(load.crowd(url, 400))
            peak = server.peak_memory_mb
        self._clear()
        return peak

    # --- serving ------------------------------------------------------------------------------------------------------

    def serving(self) -> None:
        if not wrk.installed():
            print("images served: left out, wrk is not installed")
            return
        with runtime(IMAGE) as endpoint, project(endpoint, self.work) as server:
            url = asyncio.run(load.generate(server.url, 1, result="thumbnail")).image_urls[0]
            etag = wrk.etag(url)
            with wrk.nginx(self.work) as nginx:
                name = next((self.work / "project" / "images").rglob("*.png")).relative_to(self.work)
                pairs = [(wrk.rate(url), wrk.rate(f"{nginx}/{name}") if nginx else None) for _ in range(self.rounds)]
            mine = statistics.median(pair[0] for pair in pairs)
            floor = statistics.median(pair[1] or 0 for pair in pairs) or None
            self.add(Row("full images served, 1.5 MB", "1/s", mine, None, floor, "≥ 0.75 × nginx, one worker"))
            for what, target, header in (
                ("thumbnails served", f"{url.rsplit('.', 1)[0]}/thumbnail", None),
                ("304s served", url, f"If-None-Match: {etag}"),
            ):
                rates = []
                for _ in range(self.rounds):
                    before = server.cpu_seconds
                    count = wrk.rate(target, header) * wrk.SECONDS
                    rates.append(count / (server.cpu_seconds - before))
                self.add(Row(f"{what}, per core", "1/s", statistics.median(rates), goal="≥ 5,000"))
        self._clear()

    def scrape(self) -> None:
        models = self.work / "models.yaml"
        with runtime(IMAGE) as endpoint:
            entries = (f"- {{name: model{number}, endpoint: '{endpoint}'}}" for number in range(20))
            models.write_text("models:\n" + "\n".join(entries))
            with project(endpoint, self.work, MODELS_FILE=str(models)) as server:
                first = _scrape(server)
                again = statistics.median(_scrape(server) for _ in range(50))
                one, all_of_them = (self._scrape_after(server, models) for models in (1, 20))
                self._clear()
        self.add(Row("/metrics with 20 models, nothing new", "ms", again, goal="≤ 5"))
        self.add(Row("/metrics with 20 models, one has made an image", "ms", one, goal="≤ 5"))
        self.add(Row("/metrics with 20 models, each has made an image", "ms", all_of_them))
        self.add(Row("/metrics with 20 models, the first time", "ms", first))

    def _scrape_after(self, server: Server, models: int) -> float:
        """Milliseconds once so many models have made an image since the last time."""
        costs = []
        for _ in range(5 * self.rounds):
            for number in range(models):
                asyncio.run(load.generate(server.url, 1, model=f"model{number}"))
            costs.append(_scrape(server))
        return statistics.median(costs)

    def stalls(self) -> None:
        """32 generations while images are fetched 200 times a second, forty in turn, so that many have to be opened."""
        for result in ("link", "thumbnail"):
            report = self.work / "stalls.json"
            settings = {"BENCH_WATCH": str(report), "RUNTIME_CONCURRENCY": "4", "QUEUE_LIMIT": "64"}
            with runtime(IMAGE) as endpoint, project(endpoint, self.work, **settings) as server:
                urls = asyncio.run(load.generate(server.url, 40, at_once=4, result=result)).image_urls
                _stalls(server, report)  # forget the start
                asyncio.run(_generate_and_get(server.url, urls, result))
                stall = _stalls(server, report)
            self.add(Row(f"loop blocked by one step at most, {result}", "ms", stall["step"], goal="≤ 10"))
            self.add(Row(f"longest turn of the loop (all that was ready), {result}", "ms", stall["turn"]))
            self.add(Row(f"a timer late by at most (clock on the wall), {result}", "ms", stall["late"]))
            self._clear()

    def many_images(self) -> None:
        """100,000 stored images: the start, a page of the newest, and the first clean-up with 1,000 of them expired."""
        root, report = self.work / "project", self.work / "stalls.json"
        many_images.fill(root, 100_000, 1_000, b"x" * 1000)
        with runtime(IMAGE) as endpoint:
            with project(endpoint, self.work, BENCH_WATCH=str(report)) as server:
                text = ""
                while 'cleanup_passes_total{outcome="completed"} 1.0' not in text:
                    time.sleep(0.1)
                    text = asyncio.run(load.text(f"{server.url}/metrics"))
                sweep = float(re.findall(r"cleanup_duration_seconds_sum ([\d.]+)", text)[0])
                deleted = float(re.findall(r"cleanup_deleted_total ([\d.]+)", text)[0])
                if deleted != 1000:
                    raise RuntimeError(f"{deleted} images were deleted, not 1,000")
                stall = _stalls(server, report)
                started = server.started
        self.add(Row("100,000 images: start to ready", "s", started, goal="≤ 2"))
        self.add(Row("100,000 images: list 50", "ms", asyncio.run(_list_50(root)) * 1000, goal="≤ 50"))
        self.add(Row("100,000 images: a sweep with 1,000 expired", "s", sweep, goal="≤ 10"))
        self.add(Row("100,000 images: one step of the loop meanwhile, at most", "ms", stall["step"], goal="≤ 20"))
        self.add(Row("100,000 images: longest turn of the loop meanwhile", "ms", stall["turn"]))
        self._clear()

    def bucket(self) -> None:
        """Left out where Ceph is not installed."""
        if not ceph.available():
            return
        with ceph.shared(self.work / "ceph") as gateway:
            asyncio.run(self._bucket(gateway.url))

    async def _bucket(self, url: str) -> None:
        png = bytes(64 * 1024)
        async with bucket.store(url, self.work) as opened:
            await opened.check()
            held = await bucket.upload_memory(opened, 8, 32 * MIB)
            self.add(Row("bucket: memory per upload in flight, 8 × 32 MB", "MB", held / MIB))
            asked = await bucket.calls_of_a_generation(opened, png)
            self.add(Row("bucket: PUTs per generation", "calls", asked.get("PUT", 0), goal="≤ 5"))
            self.add(Row("bucket: GETs and LISTs per generation", "calls", asked.get("GET", 0), goal="0"))
            self.add(Row("bucket: deletions per generation", "calls", asked.get("POST", 0) + asked.get("DELETE", 0)))
            await bucket.fill(opened, 10_000, png[:1024])
            unknown, known = await bucket.list_50(opened)
            self.add(Row("bucket of 10,000 images: list 50 by a new process", "ms", unknown * 1000))
            self.add(Row("bucket of 10,000 images: list 50 again", "ms", known * 1000))

    def _clear(self) -> None:
        for name in ("project", "peer", "floor"):
            shutil.rmtree(self.work / name, ignore_errors=True)


def _medians(seen: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seen.items()}


def _footprint(server: Server, result: str) -> _Footprint:
    idle = server.memory_mb
    asyncio.run(load.generate(server.url, 32, at_once=8, result=result))
    return _Footprint(idle, server.peak_memory_mb, server.started)


def _median_footprint(seen: list[_Footprint] | None) -> _Footprint:
    if not seen:
        return _Footprint(None, None, None)
    return _Footprint(*(statistics.median(each) for each in zip(*(astuple(one) for one in seen), strict=True)))


def _scrape(server: Server) -> float:
    """Milliseconds of the event loop for one."""
    before = server.loop_seconds
    asyncio.run(load.text(f"{server.url}/metrics"))
    return (server.loop_seconds - before) * 1000


def _row(what: str, milliseconds: dict[str, float], goal: str = "") -> Row:
    return Row(what, "ms", milliseconds["project"], milliseconds.get("peer"), milliseconds.get("floor"), goal)


async def _generate_and_get(server: str, urls: list[str], result: str) -> None:
    async def gets() -> None:
        for _ in range(8):
            began = time.perf_counter()
            await load.get(urls, 50)
            await asyncio.sleep(max(0.0, 0.25 - (time.perf_counter() - began)))

    await asyncio.gather(load.generate(server, 32, at_once=32, result=result), gets())


async def _list_50(root: Path) -> float:
    """Seconds for a page of the newest 50, the median of ten."""
    clock, seconds = SystemClock(), []
    store = FileStorage(root, max_bytes=None, clock=clock, observer=lambda _event: None)
    async with store.opened():
        for _ in range(10):
            began = time.perf_counter()
            page = await store.page("anonymous", limit=50)
            seconds.append(time.perf_counter() - began)
            if len(page.records) != 50:
                raise RuntimeError(f"{len(page.records)} images were listed, not 50")
    return statistics.median(seconds)


def _stalls(server: Server, report: Path) -> dict[str, float]:
    report.unlink(missing_ok=True)
    server.process.send_signal(signal.SIGUSR1)
    while not report.exists():
        time.sleep(0.01)
    found: dict[str, float] = json.loads(report.read_text())
    return found


def _ratio(row: Row) -> str:
    if row.project and row.floor and row.unit == "1/s":
        return f"{row.project / row.floor:.2f} × nginx"
    return f"{row.project / row.peer:.2f} × peer" if row.project and row.peer else ""


def _line(row: Row) -> str:
    cells = (_number(row.project), _number(row.peer), _number(row.floor), _ratio(row), row.goal)
    return f"| {row.what}, {row.unit} | " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


SECTIONS = ("generations", "memory", "serving", "scrape", "stalls", "many_images", "bucket")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", default=SECTIONS, help=f"any of: {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("bench-result.json"))
    options = parser.parse_args()
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    print(f"{today}, {machine}\n")
    print("| what | project | peer | floor | ratio | goal |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), options.rounds)
        for section in options.sections:
            getattr(bench, section)()
    rows = [{**asdict(row), "ratio": _ratio(row)} for row in bench.rows]
    options.json.write_text(json.dumps({"date": today, "machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
