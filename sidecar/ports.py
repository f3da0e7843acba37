"""What the core asks of the world, as Protocols. The adapters that implement them know nothing of each other.

The one implementation here is the machine's own clock, which needs nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from sidecar.domain import (
    Deletion,
    GeneratedImage,
    GenerationRequest,
    ImageId,
    ImageRecord,
    Inventory,
    JobCount,
    JobId,
    JobRecord,
    JobResult,
    Lease,
    RecordPage,
    StoredImage,
    StoredJob,
)
from sidecar.events import Event

Observer = Callable[[Event], None]
"""Is told each fact once, on the event loop; must neither block nor raise."""


class Clock(Protocol):
    """Time, so that tests can hold it."""

    def now(self) -> datetime:
        """The wall clock, aware UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go backwards."""
        ...

    def since_boot(self) -> float:
        """The same, and they go on while the machine sleeps, where it can tell."""
        ...

    async def sleep(self, seconds: float) -> None: ...


_COUNTS_SLEEP = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS's CLOCK_MONOTONIC goes on asleep


class SystemClock:
    """The machine's own time."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def since_boot(self) -> float:
        return time.clock_gettime(_COUNTS_SLEEP)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class StagedFile(Protocol):
    """A file being written on local disk. It is invisible until the store commits it."""

    @property
    def path(self) -> Path: ...

    async def write(self, data: bytes) -> None:
        """Append. Raises StorageFailure."""
        ...

    async def restart(self) -> None:
        """Forget what was written. Raises StorageFailure."""
        ...


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a runtime says of its model. `reached` False: silence for the probe's whole time; a refusal is an answer.

    `ready` with a `detail`: the runtime cannot be asked whether the model is ready, and is taken for ready.
    """

    ready: bool
    reached: bool
    detail: str


@dataclass(frozen=True, slots=True)
class RuntimeMetrics:
    """In a text format of Prometheus, in pieces, as the runtime sends it; nothing is kept."""

    content_type: str
    body: AsyncIterator[bytes]


class Runtime(Protocol):
    """One model behind one wire protocol."""

    async def generate(self, request: GenerationRequest, staged: StagedFile) -> GeneratedImage:
        """Make one image into `staged`. Waits as long as the runtime works: time-outs are the caller's.

        Raises RuntimeFailure or StorageFailure.
        """
        ...

    async def readiness(self) -> Readiness:
        """Ask whether the model is ready, within two seconds. Never raises for a runtime in trouble."""
        ...

    def metrics(self) -> AbstractAsyncContextManager[RuntimeMetrics]:
        """Ask for the runtime's own metrics. Entering and reading raise RuntimeFailure, within ten seconds.

        Few scrapes run at once, and a caller that does not read is cut off by then.
        """
        ...

    def forget(self) -> None:
        """The runtime has restarted: forget what was learned about it."""
        ...


@dataclass(frozen=True, slots=True)
class ExpiredImage:
    """An image whose time is up, as the store's expiry index names it."""

    image_id: ImageId
    key: str


@dataclass(frozen=True, slots=True)
class Link:
    """A way to an image's bytes that needs no credentials, until `expires` (aware UTC)."""

    url: str
    expires: datetime


class OpenFile(Protocol):
    """A local file that is open for one reader, which releases it."""

    head: bytes
    """The file's first bytes, so far as they were wanted and are worth the memory."""

    def fileno(self) -> int: ...
    def forget_head(self) -> None: ...
    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found out about a store, for an operator: what it can do, and why it promises less than it should."""

    summary: str
    shortfall: str = ""
    """Empty where it lacks nothing that matters."""


RecordFilter = Callable[[ImageRecord], bool]
"""Whether a record is one that the caller looks for."""

EXAMINED_RECORDS = 500
"""How many records one page of a list looks at."""


class Storage(Protocol):
    """Where images live. All methods raise StorageFailure for a store in trouble."""

    @property
    def backend(self) -> str: ...

    def reserve(self, size: int) -> AbstractContextManager[None]:
        """Hold room for `size` bytes until the context is left. Raises StorageFull."""
        ...

    def stage(self, image_id: ImageId, expected: int) -> AbstractAsyncContextManager[StagedFile]:
        """Open a staged file for `expected` bytes; leaving the context removes what was not committed."""
        ...

    async def commit(self, image: GeneratedImage, record: ImageRecord) -> StoredImage:
        """Make image and record durable and visible together."""
        ...

    async def get(self, image_id: ImageId) -> StoredImage:
        """Raises ImageNotFound for unknown and expired images."""
        ...

    async def open(self, stored: StoredImage, head: int) -> OpenFile:
        """The file of an image that has one here; `head` bytes of it are wanted at once. Raises ImageNotFound."""
        ...

    def stream(self, stored: StoredImage, start: int, length: int) -> AsyncIterator[bytes]:
        """Part of an image's bytes in pieces. Raises ImageNotFound where they are gone."""
        ...

    async def link(self, stored: StoredImage) -> Link | None:
        """Where a client gets the image from the store itself; None where only `stream` gives it."""
        ...

    @property
    def held(self) -> int:
        """Images that wait on this pod for a store that is away."""
        ...

    async def send_held(self) -> None:
        """Send the images that wait on this pod, as far as the store takes them."""
        ...

    @property
    def link_origin(self) -> str | None:
        """The origin of every link, None where there are none."""
        ...

    def at_hand(self, image_id: ImageId) -> Path | None:
        """The local file of an image that was sent a moment ago and has no thumbnail yet; it may go at any time."""
        ...

    async def thumbnail(self, image_id: ImageId) -> bytes | None:
        """The stored thumbnail, or None if none has been made yet."""
        ...

    async def put_thumbnail(self, image_id: ImageId, data: bytes) -> None: ...

    async def page(
        self, owner: str, *, limit: int, cursor: str | None = None, matches: RecordFilter | None = None
    ) -> RecordPage:
        """One owner's live records, newest first.

        At most 500 records are examined, so with a filter, or where many have expired, a short page may still carry a
        cursor. Raises InvalidRequest for a cursor that is not one of ours.
        """
        ...

    async def delete(self, image_id: ImageId) -> Deletion:
        """Remove image, thumbnail and record."""
        ...

    def expired(self, now: datetime) -> AsyncIterator[ExpiredImage]:
        """The expiry index up to `now`, oldest first."""
        ...

    async def delete_expired(self, expired: Sequence[ExpiredImage]) -> list[Deletion | BaseException]:
        """Delete expired images and their places in the index; for each what was done, or why it was not."""
        ...

    async def clock_offset(self) -> float | None:
        """Seconds by which the store's own clock is ahead of this machine's; None where the store tells no time."""
        ...

    async def delete_leftovers(self, now: datetime) -> int:
        """Remove temporary files of crashed writers older than an hour; how many. Never those of this process."""
        ...

    async def take_inventory(self, now: datetime | None) -> Inventory | None:
        """Count what is there, and delete orphans older than an hour on the way; None where that is not due.

        Without a time, because no clock can be believed, nothing is deleted.
        """
        ...

    async def check(self) -> None:
        """Prove that the store can be written. Raises StorageFailure; StoreAway where images are held meanwhile."""
        ...

    @property
    def findings(self) -> Findings | None:
        """What `check` found out about this kind of store; None where there was nothing to find out, or not yet."""
        ...


class JobStore(Protocol):
    """Generations that outlive the process that took them: claim, lease and acknowledgement, shared by all replicas.

    Of several callers that try at once to win a key, to claim, to begin or to acknowledge, at most one succeeds, and
    nothing that an older attempt says counts once a newer one has claimed the job. All methods raise StorageFailure.
    """

    async def offer(self, record: JobRecord) -> None:
        """Make a job durable, claimed by its own holder as attempt 1."""
        ...

    async def withdraw(self, job_id: JobId) -> None:
        """Forget a job whose id was given to no caller."""
        ...

    async def win_key(self, record: JobRecord) -> JobId:
        """Bind the record's idempotency key to its job for as long as that lives; the job that has the key."""
        ...

    async def key_holder(self, key_digest: str) -> JobId | None:
        """The job that has an idempotency key."""
        ...

    async def claim(self, lease: Lease) -> bool:
        """Take a job over as the next attempt; whether it is ours."""
        ...

    async def renew(self, lease: Lease) -> bool:
        """Show that the holder lives; whether the job is still there and no other process has claimed it since."""
        ...

    async def begin(self, lease: Lease) -> bool:
        """Before the runtime is asked, or instead of it; whether this is the first call that does so."""
        ...

    async def acknowledge(self, record: JobRecord, result: JobResult) -> bool:
        """Record how a job ended; whether this is the result that counts."""
        ...

    async def read(self, job_id: JobId) -> StoredJob:
        """Raises JobNotFound."""
        ...

    async def unfinished(self) -> list[StoredJob]:
        """Every job without a result, oldest first."""
        ...

    async def delete_expired_jobs(self, now: datetime) -> int:
        """Delete what is past its time with its key; how many."""
        ...

    async def delete_failed_jobs(self, *, keep: int, ended_before: datetime) -> int:
        """Of the jobs that ended without an image delete the oldest over `keep` before their time; how many.

        Only those that ended before that moment, hold no idempotency key, and were not interrupted; the others do not
        count.
        """
        ...

    async def take_inventory(self) -> JobCount | None:
        """Count what is there; None where that is not due."""
        ...


class Thumbnailer(Protocol):
    """Decodes pictures, one at a time, where neither their memory nor their time is the server's."""

    async def thumbnail(self, source: bytes, *, pixels: int, max_bytes: int) -> bytes:
        """A WebP of at most `pixels` on its longer side and `max_bytes`.

        Raises UndecodablePicture, NoPreview where decoding takes too much, and DecoderUnavailable.
        """
        ...

    async def is_black(self, source: bytes) -> bool:
        """Whether the whole picture is black. Raises as `thumbnail` does."""
        ...
