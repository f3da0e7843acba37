"""What the records of generations amount to: counted at each inventory, kept current by this process in between."""

from __future__ import annotations

from dataclasses import replace

from sidecar.domain import JobCount, JobId, JobRecord, JobResult
from sidecar.errors import Interrupted
from sidecar.events import JobsCounted
from sidecar.ports import Observer

_MAX_OFFERED = 10_000


class JobTally:
    """To be told on the event loop. Sizes in bytes."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._offered: dict[JobId, int] = {}
        self.count = JobCount()

    def offered(self, record: JobRecord, size: int) -> None:
        if record.job_id in self._offered:
            return
        self._offered[record.job_id] = size
        if len(self._offered) > _MAX_OFFERED:  # taken over by another process, which ends it
            del self._offered[next(iter(self._offered))]
        self._changed(open=1, size_bytes=size)

    def withdrawn(self, job_id: JobId) -> None:
        size = self._offered.pop(job_id, None)
        if size is not None:
            self._changed(open=-1, size_bytes=-size)

    def ended(self, result: JobResult, size: int) -> None:
        """With its result it takes `size`; its record as an open job is gone."""
        self.withdrawn(result.job_id)
        completed = result.status == "completed"
        self._changed(completed=completed, failed=not completed, size_bytes=size)

    def counted(self, found: JobCount, before: JobCount) -> JobCount:
        """`found` by an inventory; what has come since `before` may not have been counted."""
        come = max(0, self.count.size_bytes - before.size_bytes)
        self.count = replace(found, size_bytes=found.size_bytes + come)
        self._observer(JobsCounted(count=self.count))
        return self.count

    def _changed(self, **by: int) -> None:
        self.count = replace(
            self.count, **{name: max(0, getattr(self.count, name) + change) for name, change in by.items()}
        )
        self._observer(JobsCounted(count=self.count))


def is_disposable(record: JobRecord, result: JobResult | None) -> bool:
    """Whether an ended generation may go before its time: no image of it was made, no caller can repeat it by a key."""
    return (
        result is not None
        and result.status != "completed"
        and result.reason != Interrupted.reason
        and record.key_digest is None
    )
