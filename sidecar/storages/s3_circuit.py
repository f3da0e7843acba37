"""A circuit breaker: a store that was found away is spared for some seconds, then one call alone tries it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from sidecar.errors import StoreAway
from sidecar.ports import Clock
from sidecar.storages.s3_errors import Silent, Unreached

_AWAY_SECONDS = 4.0  # less than between two looks of the readiness check, so that these find it half-open
_RECENT_SECONDS = 10.0  # more than between two looks of the readiness check, which alone prove that a store is there


class Circuit:
    """Closed while the store answers, open once it was found away, then half-open until the one probe has ended."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failure: Unreached | None = None
        self._opened = -math.inf
        self._answered = -math.inf
        self._probing = False

    @property
    def closed(self) -> bool:
        return self._failure is None

    def require(self, *, closed: bool = False) -> None:
        """Raise StoreAway where a call would be refused now; `closed`: also where it would be the probe."""
        if self._failure is not None and (closed or self._refuses):
            failure = self._failure
            raise StoreAway(failure.message, retry_after=failure.retry_after, detail=failure.detail)

    @property
    def _refuses(self) -> bool:
        return self._probing or self._clock.monotonic() - self._opened <= _AWAY_SECONDS

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around one call, whose outcome is told by `answered` or `failed`. Raises StoreAway."""
        self.require()
        probes = not self.closed
        self._probing = self._probing or probes
        try:
            yield
        finally:
            if probes:
                self._probing = False

    def answered(self) -> None:
        self._failure = None
        self._answered = self._clock.monotonic()

    def failed(self, failure: Unreached) -> None:
        """Open, unless nothing but time has run out while the store was answering others."""
        now = self._clock.monotonic()
        if isinstance(failure, Silent) and self.closed and now - self._answered <= _RECENT_SECONDS:
            return
        self._failure, self._opened = failure, now
