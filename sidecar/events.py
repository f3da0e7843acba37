"""Facts that the core states; observers count and log them. Frozen; durations in seconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sidecar.domain import ImageRecord, Inventory, JobCount, JobRecord, JobResult, SweepReport

GenerationOutcome = Literal["completed", "failed", "rejected", "cancelled"]
FAULTLESS = ("ok", "image_not_found", "image_damaged", "job_not_found", "invalid_request", "cancelled")
"""Outcomes of operations in which the store did what it was asked, or was not waited for."""
CleanupSkipReason = Literal["clock", "foreign_key", "record_still_there"]
"""The wall clock is in doubt; a key is not the sidecar's; a listing or the expiry index contradicts a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationEnded:
    """One tool call's generation ended as its caller sees it. `seconds` from the call to the last image stored."""

    model: str
    outcome: GenerationOutcome
    seconds: float
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictStarted:
    """A runtime slot was given to one image after `waited` seconds in the queue."""

    model: str
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictEnded:
    """The runtime answered, or can no longer answer. `outcome` is `completed` or an error's reason."""

    model: str
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRetried:
    """A request that cannot have started is sent again after `wait` seconds, or one key was dropped."""

    model: str
    reason: str
    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStored:
    """An image and its record are durable. `late` when its caller had already given up waiting."""

    backend: str
    record: ImageRecord
    late: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLost:
    """A predict ended without an image although its caller was no longer there to be told."""

    model: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecovered:
    """An image that a killed process had finished and not yet stored is durable now."""

    backend: str
    record: ImageRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed:
    """Something failed unexpectedly. `what` names the work."""

    what: str
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded:
    """This process knows how a generation ended: completed, failed or cancelled, and which images are missing."""

    record: JobRecord
    result: JobResult


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTakenOver:
    """A generation whose holder fell silent: `adopted`, or recorded as interrupted."""

    model: str
    adopted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOperation:
    """One operation of a store. `detail` is what an operator wants to know.

    `outcome` is `ok`, an error's reason, `cancelled` where the caller left, or `internal` for an unexpected error.
    """

    backend: str
    operation: str
    outcome: str
    seconds: float
    detail: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the store is to blame."""
        return self.outcome not in FAULTLESS


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDamaged:
    """A file of the store cannot be used: it is not what its place or its record says. `key` is its place."""

    backend: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled:
    """So many images wait on this pod for a store that is away."""

    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledImageLost:
    """A finished image vanished from this pod's spool before the store had it."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSeen:
    """Whether the store could be written when it was last looked at."""

    backend: str
    writable: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageProbed:
    """What was found out about this kind of store. `shortfall` is empty where it lacks nothing that matters."""

    backend: str
    summary: str
    shortfall: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndForgotten:
    """The store refused for so long to record how a generation ended that this process gave up."""

    model: str
    status: str
    hours: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageCounted:
    backend: str
    inventory: Inventory


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsCounted:
    """The records of generations, after each change that this process makes and after each inventory."""

    count: JobCount


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSeen:
    """A readiness probe's finding."""

    model: str
    ready: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """A clean-up pass ended; `failure` says why it stopped early or, where it went on, what failed first in it."""

    report: SweepReport
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupSkipped:
    """Clean-up kept something that it might have deleted: a whole pass (`clock`), or `count` keys of the store."""

    reason: CleanupSkipReason
    count: int = 1
    detail: str | None = None


Event = (
    GenerationEnded
    | PredictStarted
    | PredictEnded
    | PredictRetried
    | ImageStored
    | ImageLost
    | ImageRecovered
    | Crashed
    | JobEnded
    | JobTakenOver
    | StorageOperation
    | FileDamaged
    | Spooled
    | SpooledImageLost
    | StorageSeen
    | StorageProbed
    | EndForgotten
    | StorageCounted
    | JobsCounted
    | RuntimeSeen
    | Swept
    | CleanupSkipped
)
