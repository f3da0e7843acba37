"""Expire → delete → forget, on a clock it is given. Several pods may sweep one store at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from sidecar.domain import SweepReport
from sidecar.errors import SidecarError
from sidecar.events import StorageCounted, Swept
from sidecar.ports import Clock, JobStore, Observer, Storage
from sidecar.spans import span

DELETIONS_PER_PASS = 10_000


class Sweeper:
    """One pass, by hand or every `interval` seconds."""

    def __init__(self, storage: Storage, jobs: JobStore, *, interval: float, clock: Clock, observer: Observer) -> None:
        self._storage = storage
        self._jobs = jobs
        self._interval = interval
        self._clock = clock
        self._observer = observer

    async def run(self) -> None:
        """Sweep at once and then at each interval, until cancelled. A pass that fails does not stop the next one."""
        while True:
            with span("clean-up"):
                report = await self.sweep()
            await self._clock.sleep(0.1 if report.more else self._interval)

    async def sweep(self) -> SweepReport:
        """Delete what has expired and what crashed writers left, and count what remains."""
        started = self._clock.monotonic()
        counts: Counter[str] = Counter()
        failure = None
        try:
            await self._delete_expired(counts)
            await self._tidy(counts)
        except SidecarError as error:
            failure = error.message
            counts["errors"] += 1
        except Exception as error:
            failure = repr(error)
            counts["errors"] += 1
        report = replace(
            SweepReport(more=counts.pop("more", 0) > 0, **counts), seconds=self._clock.monotonic() - started
        )
        self._observer(Swept(report=report, failure=failure))
        return report

    async def _delete_expired(self, counts: Counter[str]) -> None:
        tried = 0
        async for expired in self._storage.expired(self._clock.now()):
            if tried >= DELETIONS_PER_PASS:
                counts["more"] = 1
                return
            tried += 1
            try:
                deletion = await self._storage.delete_expired(expired)
            except Exception:
                counts["errors"] += 1  # this image stays for the next pass; the others need not wait for it
                continue
            counts["deleted"] += deletion.first
            counts["freed_bytes"] += deletion.freed_bytes

    async def _tidy(self, counts: Counter[str]) -> None:
        now = self._clock.now()
        counts["leftovers_deleted"] += await self._storage.delete_leftovers(now)
        counts["jobs_deleted"] += await self._jobs.delete_expired_jobs(now)
        inventory = await self._storage.take_inventory(now)
        counts["leftovers_deleted"] += inventory.orphans_deleted
        counts["errors"] += inventory.errors
        self._observer(StorageCounted(backend=self._storage.backend, inventory=inventory))
