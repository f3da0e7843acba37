"""Calls with one idempotency key go one after the other in this process; across pods the store decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class KeyLocks:
    """A lock for each key that is in use."""

    def __init__(self) -> None:
        self._users: dict[str, _Users] = {}

    @asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """Wait until no other call uses the key."""
        users = self._users.setdefault(key, _Users())
        users.count += 1
        try:
            async with users.lock:
                yield
        finally:
            users.count -= 1
            if not users.count:
                del self._users[key]


class _Users:
    """A lock, and how many want it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.count = 0
