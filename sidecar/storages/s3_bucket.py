"""One bucket through one client: each call under its own deadline, timed, its errors translated.

An answer is read up to a bound, whatever its Content-Length says. The requests themselves, in the dialect of each
store, are in s3_objects.py. A store that was found away is left alone for some seconds, so that of many calls one waits
and the others fail at once (s3_circuit.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import ClientError, NoCredentialsError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from sidecar.config import S3Settings, without_credentials
from sidecar.errors import StorageFailure, bounded
from sidecar.events import CleanupSkipped, CleanupSkipReason, FileDamaged
from sidecar.ports import Clock, Observer
from sidecar.storages.directory import failure_of as disk_failure_of
from sidecar.storages.records import OtherVersion
from sidecar.storages.s3_capabilities import Capabilities, probe
from sidecar.storages.s3_circuit import Circuit
from sidecar.storages.s3_errors import TROUBLES, Damaged, Unreached, failure_of
from sidecar.storages.s3_links import Signer
from sidecar.storages.s3_listing import Entry, parsed
from sidecar.storages.s3_objects import Conflict, Objects
from sidecar.storages.stated import stated

_T = TypeVar("_T")
Fetch = Callable[[str, int, int], Awaitable[list[bytes] | None]]
"""Key, start and length of a range to its bytes in pieces: fewer where the object ends, None where it is gone."""

BACKEND = "s3"
DEADLINE_SECONDS = 15.0
"""For a small call with its retries. An upload or a piece of a download has this and its own length's time."""
MAX_OBJECT_BYTES = 1024 * 1024
"""Of an object that is read whole. Records, jobs and thumbnails of ours have about a tenth at most."""
_SLOWEST_BYTES_PER_SECOND = 256 * 1024
_DELETED_AT_ONCE = 1000
_SINGLE_DELETIONS_AT_ONCE = 8
_CONFLICTS = 6


class Bucket:
    """Objects by keys that do not show the prefix. All methods raise StorageFailure."""

    def __init__(
        self, client: Any, session: Any, settings: S3Settings, *, clock: Clock, observer: Observer, deadline: float
    ) -> None:
        self.client = client
        self.objects = Objects(client, settings.bucket, settings.prefix)
        self.region = str(client.meta.region_name)
        self._session = session
        self.name = settings.bucket
        self.endpoint = without_credentials(settings.endpoint_url or str(client.meta.endpoint_url))
        self.prefix = settings.prefix
        self._clock = clock
        self._observer = observer
        self._deadline = deadline
        self._circuit = Circuit(clock)
        self._places = asyncio.Semaphore(settings.pool_size)
        self._downloads = asyncio.Semaphore(max(1, settings.pool_size * 3 // 4))

    @property
    def away(self) -> bool:
        """Whether the store did not answer when it was last asked."""
        return not self._circuit.closed

    # --- writing ------------------------------------------------------------------------------------------------------

    async def put(self, operation: str, key: str, data: bytes, content_type: str = "application/json") -> None:
        await self.run(operation, lambda: self.objects.put(key, Body=data, ContentType=content_type))

    async def upload(self, operation: str, key: str, file: Path, size: int, **headers: Any) -> None:
        """Send a local file of known length; it is read as it goes. With the metadata `sha256` the store checks it."""

        try:
            opened = await asyncio.to_thread(file.open, "rb")
        except OSError as error:
            raise disk_failure_of(error) from error
        deadline = self._deadline + size / _SLOWEST_BYTES_PER_SECOND
        with opened:
            await self.run(
                operation, lambda: self.objects.put(key, Body=opened, ContentLength=size, **headers), deadline
            )

    async def create_once(self, operation: str, key: str, data: bytes, mark: str | None = None) -> bool:
        """Write an object unless it is there; whether this call did. Of concurrent callers one succeeds, where the
        store has conditional PUT (s3_objects.py).

        The object carries a mark of this very call, because the answer to a PUT that was made may be lost, and the one
        that is sent again then finds itself. A caller that may have to take the object back passes its own mark.
        """
        return await self.run(operation, lambda: self._create_once(key, data, mark or secrets.token_hex(8)))

    async def take_back(self, operation: str, key: str, mark: str) -> bool:
        """Delete an object that `create_once` made with this mark, and no other; whether it was there."""
        found = await self.head(operation, key)
        if found is None or found["Metadata"].get("mark") != mark:
            return False
        await self.delete(operation, [key])
        return True

    async def _create_once(self, key: str, data: bytes, mark: str) -> bool:
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(Conflict),
            stop=stop_after_attempt(_CONFLICTS),
            wait=wait_random_exponential(0.05, max=1),
            sleep=self._clock.sleep,
            reraise=True,
        )
        try:
            return await attempts(self.objects.create, key, data, mark)
        except Conflict as error:
            raise StorageFailure("The image store could not decide between several writers.", retry_after=1) from error

    async def delete(self, operation: str, keys: Iterable[str]) -> None:
        """Delete what is there of these, up to a thousand in one call where the store can do that."""
        every = list(keys)
        for start in range(0, len(every), _DELETED_AT_ONCE):
            batch = every[start : start + _DELETED_AT_ONCE]
            if len(batch) == 1 or not await self._delete_together(operation, batch):
                await self._delete_singly(operation, batch)

    async def _delete_together(self, operation: str, keys: list[str]) -> bool:
        """Whether the store could do it."""
        if not self.objects.capabilities.multi_delete:
            return False
        return await self.run(operation, lambda: self.objects.delete_many(keys))

    async def _delete_singly(self, operation: str, keys: list[str]) -> None:
        """Some at a time. Where one fails the others of these are tried all the same, and the next are not."""
        for start in range(0, len(keys), _SINGLE_DELETIONS_AT_ONCE):
            some = keys[start : start + _SINGLE_DELETIONS_AT_ONCE]
            deletions = (self.run(operation, partial(self.objects.delete, key)) for key in some)
            for outcome in await asyncio.gather(*deletions, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get(self, operation: str, key: str) -> bytes | None:
        """A small object whole, None where there is none. Raises Damaged for more than MAX_OBJECT_BYTES."""
        return await self.run(operation, lambda: self.objects.get(key, MAX_OBJECT_BYTES))

    async def read(self, operation: str, key: str, decode: Callable[[bytes], _T]) -> _T | None:
        """A small object decoded; None where there is none, or `decode` raises OtherVersion.

        Raises Damaged where `decode` raises another ValueError.
        """

        async def call() -> _T | None:
            data = await self.objects.get(key, MAX_OBJECT_BYTES)
            try:
                return None if data is None else decode(data)
            except OtherVersion:
                return None
            except ValueError as error:
                raise Damaged(key, bounded(str(error))) from error

        return await self.run(operation, call)

    async def exists(self, operation: str, key: str) -> bool:
        return await self.run(operation, lambda: self.objects.exists(key))

    async def head(self, operation: str, key: str) -> Mapping[str, Any] | None:
        """What is known of an object, None where there is none. Its length may be missing: see `size`."""
        return await self.run(operation, lambda: self.objects.head(key))

    async def size(self, operation: str, key: str) -> int | None:
        """An object's length in bytes, None where there is no object."""
        return await self.run(operation, lambda: self.objects.size(key))

    async def holds(self, operation: str, key: str, size: int) -> bool:
        """Whether there is an object. Raises Damaged for one of another size."""

        async def call() -> bool:
            found = await self.objects.size(key)
            if found is not None and found != size:
                raise Damaged(key, f"{found} bytes are stored, its record says {size}")
            return found is not None

        return await self.run(operation, call)

    @asynccontextmanager
    async def downloading(self, operation: str) -> AsyncIterator[Fetch]:
        """One of the connections that downloads may have: three quarters of the pool. Inside, fetch one range.

        Leave it before the bytes are sent on, because the client may be slow.
        """
        with self._noted(operation):
            async with self._place(self._downloads), self._place(self._places):
                yield self._fetch

    async def _fetch(self, key: str, start: int, length: int) -> list[bytes] | None:
        """Raises Damaged where more than `length` bytes come."""
        deadline = self._deadline + length / _SLOWEST_BYTES_PER_SECOND
        return await self._admitted(lambda: self.objects.range(key, start, length), deadline)

    async def entries(
        self,
        operation: str,
        prefix: str,
        names: Callable[[str], _T | None],
        *,
        after: str = "",
        page: int = 1000,
        cleans: bool = False,
    ) -> AsyncIterator[Entry[_T]]:
        """Objects in the order of their keys, listed as far as the caller reads on.

        Keys that `names` returns None for are foreign and left out; with `cleans` they are counted as skipped.
        """
        where: dict[str, Any] = {"Prefix": self.prefix + prefix, "MaxKeys": page}
        if after:
            where["StartAfter"] = self.prefix + after
        while True:
            answer = await self.run(operation, lambda: self.objects.list(where))
            entries, foreign = parsed(answer.get("Contents", ()), self.prefix, names)
            if foreign and cleans:
                self.skipped("foreign_key", len(foreign), f"{bounded(foreign[0], 120)} is not a key of this server's")
            for entry in entries:
                yield entry
            if not answer.get("IsTruncated"):
                return
            where["ContinuationToken"] = answer["NextContinuationToken"]

    def skipped(self, reason: CleanupSkipReason, count: int, detail: str) -> None:
        """State that clean-up kept what it might have deleted."""
        self._observer(CleanupSkipped(reason=reason, count=count, detail=detail))

    async def clock_offset(self) -> float | None:
        """Seconds by which the store's clock, as its answers date themselves, is ahead of this machine's.

        None where they carry no date, or one that cannot be read.
        """
        return await self.run("check", self._clock_offset)

    async def _clock_offset(self) -> float | None:
        started = time.time()
        answer = await self.objects.list({"Prefix": f"{self.prefix}probe/", "MaxKeys": 1})
        middle = (started + time.time()) / 2
        with contextlib.suppress(KeyError, ValueError):
            date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
            return date.timestamp() - middle
        return None

    async def signer(self) -> Signer:
        """The current credentials, for presigned URLs. Raises StoreAway: no client is sent to a store that is away."""
        with self._noted("sign"):
            self._circuit.require(closed=True)
            return await self._bounded(self._signer, self._deadline)

    async def _signer(self) -> Signer:
        credentials = await self._session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        frozen = await credentials.get_frozen_credentials()
        return Signer(frozen.access_key, frozen.secret_key, frozen.token, getattr(credentials, "_expiry_time", None))

    # --- every call ---------------------------------------------------------------------------------------------------

    async def run(self, operation: str, call: Callable[[], Awaitable[_T]], deadline: float | None = None) -> _T:
        """One call, bounded, timed, its errors translated. `deadline` in seconds, None for that of a small call."""
        with self._noted(operation):
            async with self._place(self._places):
                return await self._admitted(call, deadline or self._deadline)

    @contextmanager
    def _noted(self, operation: str) -> Iterator[None]:
        with stated(self._observer, BACKEND, operation):
            try:
                yield
            except Damaged as error:
                self._observer(FileDamaged(backend=BACKEND, key=error.key, reason=error.detail))
                raise

    @asynccontextmanager
    async def _place(self, places: asyncio.Semaphore) -> AsyncIterator[None]:
        """One of the pool's connections, waited for here: the client's own wait looks like the store's silence.

        Slow downloads leave a quarter of them to everything else.
        """
        self._circuit.require()
        try:
            async with asyncio.timeout(self._deadline):
                await places.acquire()
        except TimeoutError as error:
            raise StorageFailure(
                "This server has more to do with the image store than it can at once.",
                retry_after=self._deadline,
                detail="All connections to the image store are busy: look at S3_POOL_SIZE.",
            ) from error
        try:
            yield
        finally:
            places.release()

    async def _admitted(self, call: Callable[[], Awaitable[_T]], deadline: float) -> _T:
        with self._circuit.call():
            return await self._asked(call, deadline)

    async def _asked(self, call: Callable[[], Awaitable[_T]], deadline: float) -> _T:
        try:
            answer = await self._bounded(call, deadline)
        except Unreached as failure:
            self._circuit.failed(failure)
            raise
        except StorageFailure as failure:
            if isinstance(failure, Damaged) or isinstance(failure.__cause__, ClientError):
                self._circuit.answered()
            raise
        self._circuit.answered()
        return answer

    async def _bounded(self, call: Callable[[], Awaitable[_T]], deadline: float) -> _T:
        try:
            async with asyncio.timeout(deadline):
                return await call()
        except TROUBLES as error:
            raise failure_of(error, bucket=self.name, endpoint=self.endpoint) from error

    async def check(self, instance: str, *, was_writable: bool) -> None:
        """Prove that the bucket can be written; once proved, reading is enough and costs a tenth."""
        key = f"probe/{instance}"
        if was_writable and await self.exists("check", key):
            return
        await self.put("check", key, b"{}")

    async def probe(self, instance: str) -> Capabilities:
        """Find out what the store can do, on the object that `check` writes, and act on it from now on.

        That object is gone afterwards.
        """
        key = f"probe/{instance}"
        found = await self.run("check", lambda: probe(self.objects, key))
        self.objects.capabilities = found
        return found

    async def forget_probe(self, instance: str) -> None:
        with contextlib.suppress(StorageFailure):
            await self.delete("check", [f"probe/{instance}"])
