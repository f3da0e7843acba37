"""An observer that keeps what a person at the gallery wants to notice: the last image stored, and recent failures.

It knows what this process did, and forgets it with the process.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime

from sidecar.domain import ImageId
from sidecar.errors import INTERNAL, bounded
from sidecar.events import Event, ImageStored, JobEnded
from sidecar.ports import Clock

MAX_FAILURES = 20
_PROMPT_CHARACTERS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class LastStored:
    """The image that was stored last. `at` is aware UTC."""

    image_id: ImageId
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A generation of which images are missing: `missing` of `total`. `failure_id` is its job's id."""

    failure_id: str
    at: datetime
    model: str
    prompt: str
    missing: int
    total: int
    reason: str
    message: str


class Activity:
    """`failures` are the newest MAX_FAILURES, newest first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.last_stored: LastStored | None = None
        self.failures: deque[Failure] = deque(maxlen=MAX_FAILURES)

    def __call__(self, event: Event) -> None:
        if isinstance(event, ImageStored):
            self.last_stored = LastStored(image_id=event.record.image_id, at=self._clock.now())
        elif isinstance(event, JobEnded) and event.result.status != "cancelled" and event.result.missing:
            self.failures.appendleft(_failure(event))


def _failure(event: JobEnded) -> Failure:
    record, result = event.record, event.result
    request = record.requests[0]
    return Failure(
        failure_id=record.job_id.text,
        at=result.finished,
        model=request.model,
        prompt=bounded(request.prompt, _PROMPT_CHARACTERS),
        missing=len(result.missing),
        total=len(record.requests),
        reason=result.reason or "internal",
        message=result.message or INTERNAL,
    )
