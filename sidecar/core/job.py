"""A job as this process works on it, and as a caller may see it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sidecar.core.generation import Generation, Progress
from sidecar.domain import JobId, JobRecord, JobResult, Lease, MissingImage, StoredImage
from sidecar.errors import GenerationUnknown, Interrupted, RuntimeTimedOut, StorageFailure

MAY_STILL_COME = frozenset({RuntimeTimedOut.reason, Interrupted.reason})
"""Why an image is missing that the runtime may still be working on."""
JobStatus = Literal["queued", "working", "completed", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """What a caller may know of a job. `job_id` is None where nothing would be found by it.

    `gone` counts images that were made and are no longer stored; `progress` is known where the job is worked on here.
    `keyed` says that the same call will always get this job. `handed_over`: this process is about to end and has left
    the job to the next one. `result_mode` is how its first caller wanted the result.
    """

    job_id: JobId | None
    status: JobStatus
    model: str
    total: int
    created: datetime
    updated: datetime
    images: tuple[StoredImage, ...] = ()
    missing: tuple[MissingImage, ...] = ()
    gone: int = 0
    reason: str | None = None
    message: str | None = None
    progress: Progress | None = None
    elapsed: float = 0.0
    keyed: bool = False
    handed_over: bool = False
    result_mode: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")


class Job:
    """A job that this process holds."""

    def __init__(self, record: JobRecord, lease: Lease, generation: Generation) -> None:
        self.record = record
        self.lease = lease
        self.generation = generation
        self.cancelled = False
        self.left = False
        """Whether its caller disconnected without its id, so that it cannot be asked for again."""
        self.released = False
        """Whether it was left to the next process."""
        self.lost = False
        """Whether another process has it, which then reports how it ended."""
        self.recorded: asyncio.Task[None] | None = None
        """Its record on the way to the store, once a caller may come back for it."""
        self.beginning: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[None]
        self.result: JobResult | None = None

    @property
    def job_id(self) -> JobId:
        return self.record.job_id

    @property
    def model(self) -> str:
        return self.record.requests[0].model

    @property
    def told(self) -> bool:
        """Whether a caller may come back for it: then it is not dropped when its caller leaves."""
        return self.recorded is not None

    @property
    def is_recorded(self) -> bool:
        """Whether its record was written, or could not be."""
        return self.recorded is not None and self.recorded.done()

    @property
    def unrecorded(self) -> bool:
        """Whether its record could not be written."""
        recorded = self.recorded
        return recorded is not None and recorded.done() and (recorded.cancelled() or recorded.exception() is not None)

    @property
    def needs_a_record(self) -> bool:
        """Whether its images alone would not tell how it ended: here at once, and everywhere.

        A failure without any image is reported to the waiting caller and not recorded, unless an image may still come.
        """
        if any(stored.held for stored in self.generation.images):
            return True
        if self.nobody_asks or self.result is None:
            return False
        if self.told:
            return True
        missing = self.result.missing
        return bool(missing) and (bool(self.generation.images) or any(one.reason in MAY_STILL_COME for one in missing))

    @property
    def leaves_nothing(self) -> bool:
        """Whether neither record nor image will be found by its id."""
        ended = self.result is not None and not self.needs_a_record and not self.generation.images
        return ended or (self.unrecorded and not self.record.begun)

    @property
    def nobody_asks(self) -> bool:
        """Whether its caller went without its id and no record of it was written: then its end need not be told."""
        return self.left and (self.recorded is None or self.unrecorded)

    def record_by(self, recording: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.recorded = asyncio.create_task(recording)
        self.recorded.add_done_callback(look_at_failure)
        return self.recorded

    def lose(self) -> None:
        """It is not ours: what waits leaves the line without a word, and what the runtime has begun is stored."""
        self.lost = True
        self.generation.withdraw()

    def leave(self) -> None:
        """It cannot be asked for again: what is queued leaves the queue, and what the runtime has begun is stored."""
        self.left = True
        self.cancelled = not self.record.begun
        self.generation.abandon()

    def release(self) -> None:
        self.released = True
        self.generation.withdraw()

    def outcome(self, now: datetime) -> JobResult:
        """How it has ended, once its images have come or do not come any more."""
        images, missing = self.generation.images, self.generation.missing
        if self.cancelled and not images:
            return cancellation(self.lease, now)
        first = missing[0] if missing else None
        return JobResult(
            job_id=self.job_id,
            attempt=self.lease.attempt,
            status="completed" if images else "failed",
            finished=now,
            missing=missing,
            reason=first.reason if first else None,
            message=first.message if first else None,
        )

    @property
    def view(self) -> JobView:
        """How it stands here."""
        progress = self.generation.progress
        result = self.result
        return JobView(
            job_id=None if self.leaves_nothing else self.job_id,
            status=result.status if result else "working" if self.generation.begun else "queued",
            model=self.model,
            total=len(self.record.requests),
            created=self.record.created,
            updated=result.finished if result else self.record.created,
            images=self.generation.images,
            missing=result.missing if result else (),
            reason=result.reason if result else None,
            message=result.message if result else None,
            progress=None if result else progress,
            elapsed=progress.elapsed,
            keyed=self.record.key_digest is not None,
            handed_over=self.released,
            result_mode=self.record.result_mode,
        )


def cancellation(lease: Lease, now: datetime) -> JobResult:
    """The end of a job that was taken out of the line."""
    return JobResult(
        job_id=lease.job_id,
        attempt=lease.attempt,
        status="cancelled",
        finished=now,
        message="The generation was cancelled before the runtime had begun.",
    )


@contextmanager
def unknown_without_the_store(message: str, job_id: JobId | None) -> Iterator[None]:
    """Around questions about a generation: a store that fails says nothing of how the generation stands.

    Raises GenerationUnknown in place of StorageFailure.
    """
    try:
        yield
    except GenerationUnknown:
        raise
    except StorageFailure as error:
        raise GenerationUnknown(
            message,
            job_id=None if job_id is None else job_id.text,
            retry_after=error.retry_after,
            detail=error.detail,
        ) from error


def look_at_failure(task: asyncio.Task[None]) -> None:
    """Mark a failure as retrieved: there may be no caller that awaits the task."""
    if not task.cancelled():
        task.exception()
