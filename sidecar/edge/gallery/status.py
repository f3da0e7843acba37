"""How the server is at this moment, for its pages and for the script that keeps them up to date."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sidecar.core.readiness import Health
from sidecar.core.service import ImageService
from sidecar.domain import ImageId
from sidecar.edge.gallery import wording
from sidecar.errors import SidecarError
from sidecar.observe.activity import Activity, Failure
from sidecar.ports import Clock

State = Literal["idle", "busy", "trouble", "unknown"]

STORE_SECONDS = 5.0
_STORE_WAIT_SECONDS = 1.0
_SHOWN_FAILURES = 5
_FAILURE_LIFE = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What keeps images from being made or stored. `since` is aware UTC, None where it is not known."""

    text: str
    since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the server is in words: one short line, and a sentence for each trouble."""

    summary: str
    state: State
    troubles: tuple[Trouble, ...]


class Status:
    """What the pages show beside the images. One for each application."""

    def __init__(self, service: ImageService, health: Health, activity: Activity, clock: Clock) -> None:
        self._service = service
        self._health = health
        self._activity = activity
        self._clock = clock
        self._newest: ImageId | None = None
        self._asked_at: float | None = None

    @property
    def standing(self) -> Standing:
        troubles = tuple(self._troubles())
        summary = wording.summary(self._service.lanes, self._health)
        return Standing(
            summary=summary, state="trouble" if troubles else self._state_without_troubles, troubles=troubles
        )

    @property
    def _state_without_troubles(self) -> State:
        if any(lane.queue.in_flight or lane.queue.waiting for lane in self._service.lanes.values()):
            return "busy"
        unknown = any(watch.check.status == "unknown" for watch in self._health.runtimes.values())
        return "unknown" if unknown else "idle"

    @property
    def failures(self) -> list[Failure]:
        """Those worth showing: the newest of the last hour, newest first."""
        oldest = self._clock.now() - _FAILURE_LIFE
        return [failure for failure in self._activity.failures if failure.at >= oldest][:_SHOWN_FAILURES]

    def _troubles(self) -> Iterator[Trouble]:
        if self._health.stopping:
            yield Trouble(text="This server is shutting down and takes no new generations.", since=None)
        for name, watch in self._health.runtimes.items():
            if not watch.ready and watch.check.status != "unknown":
                yield Trouble(text=wording.not_ready(name, watch.check.detail), since=watch.since)
        storage = self._health.storage
        if storage.check.status == "degraded":
            yield Trouble(text=storage.check.detail, since=storage.since)

    async def newest(self) -> ImageId | None:
        """The newest image in the store, whichever pod made it; as it was up to STORE_SECONDS ago, None if unknown.

        However many pages ask, the store is asked once in that time, and not waited for when it is slow.
        """
        now = self._clock.monotonic()
        if self._asked_at is None or now - self._asked_at >= STORE_SECONDS:
            self._asked_at = now
            with contextlib.suppress(SidecarError, TimeoutError):
                async with asyncio.timeout(_STORE_WAIT_SECONDS):
                    page = await self._service.list_images(limit=1)
                self._newest = page.records[0].image_id if page.records else None
        return self._newest

    async def as_json(self) -> dict[str, Any]:
        """What `/gallery/status` answers. Times are RFC 3339, waits in seconds."""
        standing, storage = self.standing, self._health.storage
        newest, stored = await self.newest(), self._activity.last_stored
        return {
            **asdict(standing, dict_factory=_plain),
            "models": [self._model(name) for name in self._service.lanes],
            "storage": {**asdict(storage.check), "since": storage.since.isoformat()},
            "newest": None if newest is None else newest.text,
            "last_stored": None if stored is None else {"image_id": stored.image_id.text, "at": stored.at.isoformat()},
            "failures": [asdict(failure, dict_factory=_plain) for failure in self.failures],
        }

    def _model(self, name: str) -> dict[str, Any]:
        queue, watch = self._service.lanes[name].queue, self._health.runtimes[name]
        return {
            "model": name,
            "ready": None if watch.check.status == "unknown" else watch.ready,
            "since": watch.since.isoformat(),
            "detail": watch.check.detail,
            "waiting": queue.waiting,
            "in_flight": queue.in_flight,
            "oldest_wait": round(queue.oldest_wait, 1),
        }


def _plain(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields}
