"""Look up by key what a listing lacks, before anything is deleted for it: a listing may leave objects out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import TypeVar

from sidecar.errors import StorageFailure, StoreAway
from sidecar.storages.s3_bucket import Bucket

_T = TypeVar("_T")

MAX_LOOKUPS = 1000
"""In one pass; more suspects than that are a broken listing rather than broken images, and wait for the next pass."""
_AT_ONCE = 8


class Lookups:
    """The lookups of one pass of clean-up."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.left = MAX_LOOKUPS
        self.errors = 0
        """Lookups that failed, and deletions."""

    async def delete_lost(
        self, operation: str, suspects: Iterable[_T], look: Callable[[_T], Awaitable[list[str] | None]]
    ) -> set[str]:
        """Delete what `look` finds to be lost: the keys that may go, or None where the suspect is whole.

        The keys that were deleted. A lookup that fails deletes nothing; a store that is away ends it: raises StoreAway.
        """
        deleted = set[str]()
        suspects = iter(suspects)
        while batch := list(islice(suspects, min(_AT_ONCE, self.left))):
            self.left -= len(batch)
            outcomes = await asyncio.gather(*map(look, batch), return_exceptions=True)
            lost = list[str]()
            whole = 0
            for outcome in outcomes:
                if isinstance(outcome, list):
                    lost += outcome
                elif outcome is None:
                    whole += 1
                else:
                    self._failed(outcome)
            if whole:
                self._bucket.skipped("record_still_there", whole, "a listing left out what is there")
            deleted |= await self._delete(operation, lost)
        return deleted

    async def _delete(self, operation: str, keys: list[str]) -> set[str]:
        try:
            await self._bucket.delete(operation, keys)
        except StorageFailure as failure:
            self._failed(failure)
            return set()
        return set(keys)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, StoreAway) or not isinstance(error, StorageFailure):
            raise error
        self.errors += 1
