"""One tool call's images on their way: what is waited for, what has come, what its caller is told meanwhile.

The work belongs to the service, not to the caller: when a caller leaves, what is still queued is cancelled, and
what the runtime has begun is finished and stored.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sidecar.config import ModelSettings
from sidecar.core.generation_queue import ModelQueue, Place
from sidecar.domain import GenerationRequest, ImageId, MissingImage, StoredImage
from sidecar.errors import INTERNAL, RuntimeTimedOut, ShuttingDown, SidecarError
from sidecar.events import GenerationEnded, GenerationOutcome
from sidecar.ports import Clock, Observer, Runtime

_RECENT = 16
_ASSUMED_SECONDS = 15.0  # until a first image has been made


@dataclass(slots=True)
class Lane:
    """One model: its runtime, the line before it, and how long its recent images took."""

    settings: ModelSettings
    runtime: Runtime
    queue: ModelQueue
    ready: bool = False
    """What the last look at the runtime found."""
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    @property
    def estimate(self) -> float | None:
        """Seconds an image is likely to take, None before the first."""
        return statistics.median(self.recent_seconds) if self.recent_seconds else None

    @property
    def retry_after(self) -> float:
        """Seconds until a place in a full queue is likely to be free."""
        return max(1.0, (self.estimate or _ASSUMED_SECONDS) / self.settings.concurrency)


Admission = Callable[[], Awaitable[None]]
"""What is awaited before the runtime is asked; raises to keep that from happening."""


@dataclass(slots=True)
class Predict:
    """One image of a generation. Times on the monotonic clock."""

    image_id: ImageId
    request: GenerationRequest
    turn: asyncio.Future[None]
    admit: Admission
    task: asyncio.Task[StoredImage] = field(init=False)
    started: float | None = None
    abandoned: bool = False

    @property
    def error(self) -> BaseException | None:
        """Why there is no image, once the task has ended without one."""
        if not self.task.done():
            return None
        return (
            ShuttingDown("The sidecar was stopped before the image was made.")
            if self.task.cancelled()
            else self.task.exception()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a generation stands. Seconds; `estimate` until all its images are there, None when unknown.

    While it is queued, the estimate includes the images ahead and `elapsed` counts from the call; after that both count
    from the first image's start, which came `waited` after the call.
    """

    phase: Literal["queued", "generating"]
    ahead: int
    elapsed: float
    estimate: float | None
    finished: int
    total: int
    waited: float = 0.0

    @property
    def since_call(self) -> float:
        """Seconds from the call until now."""
        return self.waited + self.elapsed

    @property
    def expected(self) -> float | None:
        """Seconds from the call until all its images are likely to be there, None when unknown."""
        if self.estimate is None:
            return None
        return self.estimate + (self.elapsed if self.phase == "queued" else self.waited)


class Generation:
    """What `ImageService.submit` hands out."""

    def __init__(self, lane: Lane, place: Place, predicts: Sequence[Predict], clock: Clock, observer: Observer) -> None:
        self.predicts = tuple(predicts)
        self._lane = lane
        self._place = place
        self._clock = clock
        self._observer = observer
        self._submitted = clock.monotonic()
        self._concluded = False
        for predict in self.predicts:
            predict.task.add_done_callback(self._on_predict_done)

    @property
    def images(self) -> tuple[StoredImage, ...]:
        """The images stored so far, in the order asked for."""
        return tuple(p.task.result() for p in self.predicts if p.task.done() and p.error is None)

    @property
    def missing(self) -> tuple[MissingImage, ...]:
        """The images that did not come within the time there was."""
        return tuple(
            self._missing(number, predict)
            for number, predict in enumerate(self.predicts, start=1)
            if not predict.task.done() or predict.error is not None
        )

    @property
    def progress(self) -> Progress:
        started = min((p.started for p in self.predicts if p.started is not None), default=None)
        began = self._submitted if started is None else started
        estimate = self._lane.estimate
        ahead = self._place.ahead
        rounds = -(-(ahead + len(self.predicts)) // self._lane.settings.concurrency)
        return Progress(
            phase="queued" if started is None else "generating",
            ahead=ahead,
            elapsed=self._clock.monotonic() - began,
            waited=began - self._submitted,
            estimate=None if estimate is None else estimate * rounds,
            finished=sum(predict.task.done() for predict in self.predicts),
            total=len(self.predicts),
        )

    @property
    def begun(self) -> bool:
        """Whether a slot of the runtime was given to any of its images."""
        return any(predict.turn.done() and not predict.turn.cancelled() for predict in self.predicts)

    async def wait(self, seconds: float) -> bool:
        """Wait up to `seconds`; whether the caller's wait is over: every image has come, failed or is overdue."""
        end = self._clock.monotonic() + seconds
        while pending := [predict.task for predict in self.predicts if not predict.task.done()]:
            left = min(end - self._clock.monotonic(), self._until_overdue())
            if left <= 0:
                break
            done, _ = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
        if not pending:
            return True
        if self._until_overdue() > 0:
            return False
        self._give_up("completed" if self.images else "failed", RuntimeTimedOut.reason)
        return True

    def abandon(self) -> None:
        """The caller has left."""
        if all(predict.started is None for predict in self.predicts):
            self._give_up("cancelled", None)
        else:
            self._drop_queued()

    def withdraw(self) -> None:
        """Another process has it: leave the queue, and report no end."""
        self._concluded = True
        self._drop_queued()

    def _give_up(self, outcome: GenerationOutcome, reason: str | None) -> None:
        self._drop_queued()
        self._conclude(outcome, reason)

    def _drop_queued(self) -> None:
        self._place.leave()
        for predict in self.predicts:
            predict.abandoned = not predict.task.done()
            if predict.started is None:
                predict.task.cancel()

    def _until_overdue(self) -> float:
        """Seconds until the runtime has had RUNTIME_TIMEOUT for every image that has not come.

        One that still waits in line is overdue only when the runtime has fallen silent: all slots are taken and nothing
        has moved for that long.
        """
        waits = [self._remaining(predict) for predict in self.predicts if not predict.task.done()]
        return max(waits, default=0.0)

    def _remaining(self, predict: Predict) -> float:
        timeout, now = self._lane.settings.timeout, self._clock.monotonic()
        if predict.started is not None:
            return predict.started + timeout - now
        return max(self._place.joined, self._lane.queue.last_movement) + timeout - now

    def _missing(self, number: int, predict: Predict) -> MissingImage:
        error = predict.error or self._overdue_error(predict)
        known = isinstance(error, SidecarError)
        return MissingImage(
            number=number,
            seed=predict.request.seed,
            reason=error.reason if isinstance(error, SidecarError) else "internal",
            message=str(error) if known else INTERNAL,
        )

    def _overdue_error(self, predict: Predict) -> RuntimeTimedOut:
        seconds = self._lane.settings.timeout
        if predict.started is None:
            return RuntimeTimedOut(
                f"The model's runtime has not answered anybody for {seconds:.0f} seconds, so this image was not begun. "
                "Try again later."
            )
        return RuntimeTimedOut(
            f"The model's runtime has not answered within {seconds:.0f} seconds. It may still be working: if the image "
            f"comes, it is stored as {predict.image_id}. Do not repeat the call at once; fewer steps or a smaller size "
            "take less time."
        )

    def _on_predict_done(self, _task: asyncio.Task[StoredImage]) -> None:
        if not all(predict.task.done() for predict in self.predicts):
            return
        errors = [error for predict in self.predicts if (error := predict.error) is not None]
        if len(errors) < len(self.predicts):
            self._conclude("completed", None)
        else:
            self._conclude("failed", getattr(errors[0], "reason", "internal"))

    def _conclude(self, outcome: GenerationOutcome, reason: str | None) -> None:
        if self._concluded:
            return
        self._concluded = True
        seconds = self._clock.monotonic() - self._submitted
        self._observer(GenerationEnded(model=self._lane.settings.name, outcome=outcome, seconds=seconds, reason=reason))
