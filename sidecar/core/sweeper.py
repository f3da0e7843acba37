"""Expire → delete → forget, on a clock it is given. Several pods may sweep one store at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sidecar.core.clock_guard import ClockGuard
from sidecar.domain import SweepReport
from sidecar.errors import SidecarError
from sidecar.events import CleanupSkipped, StorageCounted, Swept
from sidecar.ports import Clock, ExpiredImage, JobStore, Observer, Storage
from sidecar.spans import span

DELETIONS_PER_PASS = 10_000
KEPT_FAILED_JOBS = 1000
"""Records of generations that ended without an image; each holds the prompts, up to 17 kB."""
FAILED_JOB_LIFE = timedelta(hours=1)
"""How long each is kept at least, for callers that come back for it."""
_BATCH = 100


class Sweeper:
    """One pass, by hand or every `interval` seconds. `guard` may be shared, so that it knows the clock's course."""

    def __init__(
        self,
        storage: Storage,
        jobs: JobStore,
        *,
        interval: float,
        guard: ClockGuard | None = None,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._storage = storage
        self._jobs = jobs
        self._interval = interval
        self._clock = clock
        self._observer = observer
        self._guard = guard or ClockGuard(storage, clock)
        self._failed_first: str | None = None
        """What the first image of this pass that could not be deleted came to."""
        self._behind = ""
        """The key of the last image that was tried in a pass that came to its bound."""

    async def run(self) -> None:
        """Sweep at once and then at each interval, until cancelled. A pass that fails does not stop the next one."""
        while True:
            with span("clean-up"):
                report = await self.sweep()
            await self._clock.sleep(0.1 if report.more else self._interval)

    async def sweep(self) -> SweepReport:
        """Delete what has expired and what crashed writers left, and count what remains.

        Where the clock is not to be believed, only count.
        """
        started = self._clock.monotonic()
        counts: Counter[str] = Counter()
        more, skipped, failure = False, False, None
        self._failed_first = None
        try:
            if doubt := await self._guard.doubt():
                skipped = True
                self._observer(CleanupSkipped(reason="clock", detail=doubt))
                await self._take_inventory(None, counts)
            else:
                more = await self._delete_expired(counts)
                await self._tidy(counts)
        except Exception as error:
            failure = _detail_of(error)
            counts["errors"] += 1
        report = replace(SweepReport(more=more, skipped=skipped, **counts), seconds=self._clock.monotonic() - started)
        self._observer(Swept(report=report, failure=failure or self._failed_first))
        return report

    async def _delete_expired(self, counts: Counter[str]) -> bool:
        """In batches, which cost a bucket no more than a single deletion does; whether there is more to do at once.

        After a pass that reached its bound the next one goes on behind it, so that images which cannot be deleted do
        not block the others.
        """
        behind, self._behind = self._behind, ""
        tried = gone = 0
        batch: list[ExpiredImage] = []
        async for expired in self._storage.expired(self._clock.now()):
            if expired.key <= behind:
                continue
            if tried == DELETIONS_PER_PASS:
                self._behind = batch[-1].key
                break
            if len(batch) == _BATCH:
                gone += await self._delete(batch, counts)
                batch = []
            tried += 1
            batch.append(expired)
        gone += await self._delete(batch, counts)
        return bool(self._behind and gone)

    async def _delete(self, batch: Sequence[ExpiredImage], counts: Counter[str]) -> int:
        """How many are gone. An image that resists stays for a later pass; the others need not wait for it."""
        gone = 0
        for deletion in await self._storage.delete_expired(batch):
            if isinstance(deletion, BaseException):
                counts["errors"] += 1
                self._failed_first = self._failed_first or _detail_of(deletion)
            else:
                gone += 1
                counts["deleted"] += deletion.first
                counts["freed_bytes"] += deletion.freed_bytes
        return gone

    async def _tidy(self, counts: Counter[str]) -> None:
        now = self._clock.now()
        counts["leftovers_deleted"] += await self._storage.delete_leftovers(now)
        counts["jobs_deleted"] += await self._jobs.delete_expired_jobs(now)
        counts["jobs_deleted"] += await self._jobs.delete_failed_jobs(
            keep=KEPT_FAILED_JOBS, ended_before=now - FAILED_JOB_LIFE
        )
        await self._take_inventory(now, counts)

    async def _take_inventory(self, now: datetime | None, counts: Counter[str]) -> None:
        await self._jobs.take_inventory()
        inventory = await self._storage.take_inventory(now)
        if inventory is None:
            return
        counts["leftovers_deleted"] += inventory.orphans_deleted
        counts["errors"] += inventory.errors
        self._observer(StorageCounted(backend=self._storage.backend, inventory=inventory))


def _detail_of(error: BaseException) -> str:
    return error.detail if isinstance(error, SidecarError) else repr(error)
