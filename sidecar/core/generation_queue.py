"""The line before one model's runtime: first come, first served, bounded.

A place is one generation; it may need several predicts, each of which takes one of the runtime's slots when its turn
comes. A slot is given back when the runtime has really answered, which may be long after the caller left.
"""

from __future__ import annotations

import asyncio
from collections import deque

from sidecar.errors import QueueFull
from sidecar.ports import Clock


class Place:
    """One generation's place. `turn` waits for a slot, once for each predict."""

    def __init__(self, queue: ModelQueue, predicts: int, joined: float) -> None:
        self._queue = queue
        self.joined = joined
        self.started = False
        self.turns: deque[asyncio.Future[None]] = deque()
        for _ in range(predicts):
            self.turns.append(asyncio.get_running_loop().create_future())
        self._next = iter(tuple(self.turns))

    def next_turn(self) -> asyncio.Future[None]:
        """The future of this place's next predict; done when its slot is free."""
        return next(self._next)

    @property
    def ahead(self) -> int:
        """Images before this generation's first, those at the runtime included; 0 once it has started."""
        return self._queue.ahead_of(self)

    def leave(self) -> None:
        """Give up the turns that have not come."""
        self._queue.remove(self)


class ModelQueue:
    """`concurrency` slots and room for `limit` waiting generations."""

    def __init__(self, *, concurrency: int, limit: int, clock: Clock) -> None:
        self._concurrency = concurrency
        self._limit = limit
        self._clock = clock
        self._line: deque[Place] = deque()
        self._taken = 0
        self.last_movement = clock.monotonic()
        """When a slot was last given or given back, on the monotonic clock."""

    @property
    def waiting(self) -> int:
        """Generations none of whose predicts has started."""
        return sum(not place.started for place in self._line)

    @property
    def in_flight(self) -> int:
        return self._taken

    @property
    def full(self) -> bool:
        """Whether every slot is taken."""
        return self._taken >= self._concurrency

    @property
    def oldest_wait(self) -> float:
        """Seconds that the first waiting generation has waited, 0 when none waits."""
        joined = next((place.joined for place in self._line if not place.started), None)
        return 0.0 if joined is None else self._clock.monotonic() - joined

    @property
    def stalled(self) -> float:
        """Seconds since a slot was last given or given back, 0 while one is free: then the next is served at once."""
        return self._clock.monotonic() - self.last_movement if self.full else 0.0

    @property
    def has_room(self) -> bool:
        """Whether another generation may join."""
        return self._taken < self._concurrency or self.waiting < self._limit

    def join(self, predicts: int, *, retry_after: float) -> Place:
        """Take the last place. Raises QueueFull with `retry_after` when there is no room."""
        if not self.has_room:
            raise QueueFull(
                f"The queue is full ({self.waiting} waiting). Try again in about {retry_after:.0f} seconds.",
                retry_after=retry_after,
            )
        place = Place(self, predicts, self._clock.monotonic())
        self._line.append(place)
        self._advance()
        return place

    def release(self) -> None:
        """The runtime has answered: its slot is free for the next in line."""
        self._taken -= 1
        self.last_movement = self._clock.monotonic()
        self._advance()

    def remove(self, place: Place) -> None:
        if place in self._line:
            self._line.remove(place)
            self._advance()

    def ahead_of(self, place: Place) -> int:
        if place.started or place not in self._line:
            return 0
        return self._taken + sum(len(other.turns) for other in list(self._line)[: self._line.index(place)])

    def _advance(self) -> None:
        while self._line and self._taken < self._concurrency:
            place = self._line[0]
            turn = place.turns.popleft()
            if not place.turns:
                self._line.popleft()
            if not turn.cancelled():
                place.started = True
                self._taken += 1
                self.last_movement = self._clock.monotonic()
                turn.set_result(None)
