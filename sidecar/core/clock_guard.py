"""Whether the wall clock may be believed by what deletes for good.

A clock that is far ahead makes everything look expired and every file that is being written look abandoned. So each
clean-up pass compares it with the store's own clock, and with the time that has passed since the last pass on a clock
that cannot be set. On disagreement nothing is deleted.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import timedelta

from sidecar.ports import Clock, Storage

TOLERANCE_SECONDS = 300.0
"""What clocks may differ by, or be set by at once: everything that is deleted by time lives much longer."""
_DRIFT = 0.001  # twice what NTP slews at most
PROBATION_SECONDS = 6 * 3600.0
"""How long a clock that was set must go evenly, and with the store's, until it is believed again.

Long enough to mend it after the alert that comes when clean-up has not succeeded for an hour.
"""
LONG_OVERDUE = timedelta(days=30)
"""A process that starts has no last pass to compare with. An image that is overdue for so long says that the store was
not swept for a month, or that the clock is ahead."""


@dataclass(frozen=True, slots=True)
class _Course:
    """The wall clock against the machine's uptime: `start`, their difference, changes only where the clock is set.

    `seen` is the uptime at which that was observed. Both in seconds.
    """

    start: float
    seen: float

    def agrees(self, later: _Course) -> bool:
        return abs(later.start - self.start) <= TOLERANCE_SECONDS + _DRIFT * (later.seen - self.seen)


class ClockGuard:
    """Remembers the course of the wall clock from pass to pass."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._trusted: _Course | None = None
        self._on_probation: _Course | None = None

    async def doubt(self) -> str | None:
        """Why nothing may be deleted by the wall clock now, None where it is to be believed. Raises StorageFailure."""
        offset = await self._storage.clock_offset()
        if offset is not None and abs(offset) > TOLERANCE_SECONDS:
            self._on_probation = None
            return f"the store's clock is {_difference(offset)} this machine's"
        uptime = self._clock.since_boot()
        course = _Course(self._clock.now().timestamp() - uptime, uptime)
        doubt = await self._doubt_about(course)
        if doubt is not None and not self._has_served_probation(course):
            return doubt
        self._trusted, self._on_probation = course, None
        return None

    async def _doubt_about(self, course: _Course) -> str | None:
        if self._trusted is not None:
            if self._trusted.agrees(course):
                return None
            by = course.start - self._trusted.start
            return f"the wall clock was set since the last clean-up and is now {_difference(by)} its old course"
        if await self._something_is_long_overdue():
            return f"an image was to be deleted over {LONG_OVERDUE.days} days ago: the wall clock may be ahead"
        return None

    async def _something_is_long_overdue(self) -> bool:
        async with contextlib.aclosing(self._storage.expired(self._clock.now() - LONG_OVERDUE)) as overdue:  # type: ignore[type-var]
            async for _ in overdue:
                return True
        return False

    def _has_served_probation(self, course: _Course) -> bool:
        if self._on_probation is None or not self._on_probation.agrees(course):
            self._on_probation = course
        return course.seen - self._on_probation.seen >= PROBATION_SECONDS


def _difference(seconds: float) -> str:
    return f"{timedelta(seconds=round(abs(seconds)))} {'ahead of' if seconds > 0 else 'behind'}"
