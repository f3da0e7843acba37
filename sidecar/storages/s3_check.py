"""The look at a bucket and at the spool beside it: whether images can be taken, and what the store can do.

A store may be away when the process starts, so it is probed when it was first seen.
"""

from __future__ import annotations

import math

from sidecar.errors import SidecarError, StorageFailure, StoreAway
from sidecar.ports import Clock, Findings
from sidecar.storages.file import FileStorage
from sidecar.storages.s3_bucket import Bucket
from sidecar.storages.s3_spool import WaitingImages

_PROBE_AGAIN_SECONDS = 60.0


class StoreCheck:
    """`instance` names this process in the store."""

    def __init__(
        self, bucket: Bucket, spool: FileStorage, waiting: WaitingImages, *, instance: str, clock: Clock
    ) -> None:
        self._bucket = bucket
        self._spool = spool
        self._waiting = waiting
        self._instance = instance
        self._clock = clock
        self._was_writable = False
        self._probed = False
        self._probe_failed_at = -math.inf
        self.findings: Findings | None = None
        """What the probe found, None before it has run."""

    async def run(self) -> None:
        """Raises StoreAway where images are taken all the same, and StorageFailure where they are not."""
        bucket = await self._trouble_of_the_bucket()
        spool = await self._trouble_of_the_spool(holds=isinstance(bucket, StoreAway))
        if isinstance(bucket, StoreAway) and spool is None:
            words = f"{bucket.detail} Finished images are held on this pod until it is back."
            raise StoreAway(bucket.message, retry_after=bucket.retry_after, detail=words)
        problems = [error for error in (bucket, spool) if error]
        if problems:
            raise StorageFailure(
                problems[0].message,
                retry_after=problems[0].retry_after,
                detail=" ".join(error.detail for error in problems),
            )

    async def _trouble_of_the_bucket(self) -> SidecarError | None:
        try:
            # while images wait, reading does not tell why
            await self._bucket.check(self._instance, was_writable=self._was_writable and not len(self._waiting))
        except SidecarError as error:
            self._was_writable = False
            return error
        self._was_writable = True
        self._waiting.store_is_back()
        await self._probe()
        return None

    async def _probe(self) -> None:
        """Once. A probe that fails is repeated after a minute: it never keeps a pod from starting."""
        if self._probed or self._clock.monotonic() - self._probe_failed_at < _PROBE_AGAIN_SECONDS:
            return
        try:
            self.findings = (await self._bucket.probe(self._instance)).findings
        except StoreAway:
            return  # the next look that finds the store tries again
        except StorageFailure as failure:
            self._probe_failed_at = self._clock.monotonic()
            words = f"What the image store can do is not known, because a probe of it failed: {failure.detail}"
            self.findings = Findings(summary="not known", shortfall=words)
        else:
            self._probed = True
            self._was_writable = False  # the probe deletes what the next look would read

    async def _trouble_of_the_spool(self, *, holds: bool) -> SidecarError | None:
        try:
            await self._spool.check()
            if holds:
                await self._waiting.recall()
        except SidecarError as error:
            detail = f"The spool (SPOOL_PATH): {error.detail}"
            return StorageFailure(error.message, retry_after=error.retry_after, detail=detail)
        return None
