"""The nouns, frozen and valid from construction. Standard library only."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Literal

from sidecar.errors import ImageNotFound, JobNotFound

ANONYMOUS = "anonymous"
SEED_LIMIT = 2**32
MOST_IMAGES = 4
"""Of one generation."""
IMAGE_EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
"""The media types that an image may have, and how the names of their files end."""
RECORD_SCHEMA_VERSION = 1
JOB_SCHEMA_VERSION = 2

# Crockford's base 32 in lower case: the order of the characters is the order of the numbers, so ids sort by time.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
TIME_DIGITS = 9  # 45 bits of milliseconds since 1970: enough until the year 3084
_OWNER_DIGITS = 8
_RANDOM_DIGITS = 26  # 130 random bits
_LAST_MILLISECOND = 32**TIME_DIGITS - 1
_IMAGE_ID = re.compile(rf"[{_ALPHABET}]{{{TIME_DIGITS + _OWNER_DIGITS + _RANDOM_DIGITS}}}", re.ASCII)


def sortable_time(moment: datetime) -> str:
    """Milliseconds since 1970 as nine base-32 digits that sort by time."""
    return _digits(_milliseconds(moment), TIME_DIGITS)


def time_from_sortable(digits: str) -> datetime:
    """The inverse of `sortable_time`, to the millisecond, aware UTC. Raises ValueError for foreign characters."""
    return datetime.fromtimestamp(_number(digits) / 1000, UTC)


def reverse_digits(digits: str) -> str:
    """A sortable time as one whose newest sorts first, or back. Raises ValueError for foreign characters."""
    return "".join(_ALPHABET[31 - _ALPHABET.index(digit)] for digit in digits)


@lru_cache(maxsize=1024)
def owner_tag(owner: str) -> str:
    """Eight characters that stand for an owner in ids and keys, so that one owner's images can be listed apart."""
    return _digits(int.from_bytes(hashlib.sha256(owner.encode()).digest()[:5]), _OWNER_DIGITS)


def is_image_id(text: str) -> bool:
    """Whether a text has the form of an image's id."""
    return _IMAGE_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Identifier:
    """Opaque to callers, unguessable (125 to 130 random bits), URL-safe, sorting by creation time; never a path."""

    text: str

    @property
    def time_digits(self) -> str:
        return self.text[:TIME_DIGITS]

    @property
    def owner_tag(self) -> str:
        return self.text[TIME_DIGITS : TIME_DIGITS + _OWNER_DIGITS]

    @property
    def created(self) -> datetime:
        return time_from_sortable(self.time_digits)

    def __str__(self) -> str:
        return self.text


class ImageId(Identifier):
    """Which image."""

    __slots__ = ()

    @classmethod
    def new(cls, created: datetime, owner: str = ANONYMOUS) -> ImageId:
        """Mint an id for an image that `owner` makes now."""
        return cls(_identifier(created, owner))

    @classmethod
    def parse(cls, text: str) -> ImageId:
        """Read an id that a caller gave. Raises ImageNotFound for anything that cannot be one."""
        if not is_image_id(text):
            raise ImageNotFound
        return cls(text)


class JobId(Identifier):
    """Which generation."""

    __slots__ = ()

    @classmethod
    def new(cls, created: datetime, owner: str = ANONYMOUS) -> JobId:
        """Mint an id for a generation that `owner` asks for now."""
        return cls(_identifier(created, owner))

    @classmethod
    def parse(cls, text: str) -> JobId:
        """Read an id that a caller gave. Raises JobNotFound for anything that cannot be one."""
        if not is_image_id(text):
            raise JobNotFound
        return cls(text)

    def image(self, number: int) -> ImageId:
        """The id of an image of this generation, from 1 to 31: it follows from the job's, and does not lead back to it.

        The images of one job share their time, so the digit after it and the owner is the image's number: they sort in
        the order asked for, first image first, also where newer ones come first. 125 bits stay unguessable.
        """
        digest = hashlib.sha256(f"{self.text}/{number}".encode()).digest()
        unguessable = int.from_bytes(digest) >> (8 * len(digest) - 5 * (_RANDOM_DIGITS - 1))
        return ImageId(self.text[:-_RANDOM_DIGITS] + _digits(number, 1) + _digits(unguessable, _RANDOM_DIGITS - 1))

    def images(self, count: int) -> tuple[ImageId, ...]:
        """The ids of its first images."""
        return tuple(self.image(number) for number in range(1, count + 1))


def _identifier(created: datetime, owner: str) -> str:
    return sortable_time(created) + owner_tag(owner) + _digits(secrets.randbits(130), _RANDOM_DIGITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One image to make, every parameter resolved. None means that the runtime's own default applies."""

    model: str
    prompt: str
    seed: int
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What a look at the bytes says. Width and height in pixels, as the picture is shown (Exif orientation)."""

    media_type: str
    width: int
    height: int

    @property
    def extension(self) -> str:
        """How the name of its file ends."""
        return IMAGE_EXTENSIONS[self.media_type]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedImage:
    """An image staged on local disk, complete and checked, not yet committed. `size_bytes` is its length.

    `sparse` holds the whole file where it has so few bytes for its pixels that the picture may be one colour.
    """

    path: Path
    sha256: str
    size_bytes: int
    picture: Picture
    seed_applied: bool
    dropped_parameters: tuple[str, ...] = ()
    sparse: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """What is remembered of an image. Times are aware UTC; `expires` None keeps it for ever; durations in seconds.

    `black`: the whole picture is, which is what safety checkers put in a picture's place.
    """

    image_id: ImageId
    owner: str
    request: GenerationRequest
    picture: Picture
    size_bytes: int
    sha256: str
    seed_applied: bool
    dropped_parameters: tuple[str, ...]
    created: datetime
    expires: datetime | None
    queue_seconds: float
    runtime_seconds: float
    black: bool = False
    schema_version: int = RECORD_SCHEMA_VERSION

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and self.expires <= now


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A record and the local file that holds the image; without one the store gives the bytes.

    `held`: the store is away, and the image is on this pod alone until it is back.
    """

    record: ImageRecord
    path: Path | None = None
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPage:
    """Records newest first; `cursor` continues after the last one, None when there are no more."""

    records: tuple[ImageRecord, ...]
    cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A generation that was asked for: one request and one image id for each of its images. Written once.

    `key_digest` stands for owner and idempotency key, `arguments_digest` for the arguments as they were given. `holder`
    is the process that took it first. `begun` says that the runtime had been asked before it was recorded.
    `result_mode` is how its caller wanted the result, None for the server's choice.
    """

    job_id: JobId
    owner: str
    requests: tuple[GenerationRequest, ...]
    image_ids: tuple[ImageId, ...]
    created: datetime
    expires: datetime
    holder: str
    begun: bool = False
    key_digest: str | None = None
    arguments_digest: str = ""
    result_mode: str | None = None
    schema_version: int = JOB_SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A process's hold on a job. The holder counts `beat` up while it lives; `released` lets any pod take over."""

    job_id: JobId
    attempt: int
    holder: str
    beat: int = 0
    released: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingImage:
    """An image of a job that did not come: which (from 1), and why."""

    number: int
    seed: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job ended. `attempt` is the attempt that ended it; `reason` and `message` say why it is not completed."""

    job_id: JobId
    attempt: int
    status: Literal["completed", "failed", "cancelled"]
    finished: datetime
    missing: tuple[MissingImage, ...] = ()
    reason: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """What the store knows of a job. `begun`: the runtime was asked, or it was made sure that it never will be."""

    record: JobRecord
    lease: Lease
    begun: bool
    result: JobResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCount:
    """The records of generations in a store: of those under way, ended with an image, and ended without one.

    `size_bytes` is what all that is kept of them takes, with their keys and leases.
    """

    open: int = 0
    completed: int = 0
    failed: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """What one delete did. Of concurrent deletes of an image one is `first`; each counts the bytes it freed."""

    first: bool
    freed_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a store holds, counted: images, bytes (with thumbnails; in a directory also with the records of
    generations), and free bytes where known.

    `errors` are files that could not be counted or tidied away.
    """

    images: int = 0
    size_bytes: int = 0
    free_bytes: int | None = None
    orphans_deleted: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What one clean-up pass did. `more`: its bound was reached before the end, and another pass at once would help.

    `skipped`: nothing was deleted, because the clock was not to be believed.
    """

    deleted: int = 0
    freed_bytes: int = 0
    leftovers_deleted: int = 0
    jobs_deleted: int = 0
    errors: int = 0
    seconds: float = 0.0
    more: bool = field(default=False)
    skipped: bool = False


def expiry(created: datetime, ttl: float | None) -> datetime | None:
    """When an image made at `created` expires; `ttl` in seconds, None for never."""
    return None if ttl is None else created + timedelta(seconds=ttl)


def _milliseconds(moment: datetime) -> int:
    return int(min(max(0, round(moment.timestamp() * 1000)), _LAST_MILLISECOND))


def _digits(number: int, count: int) -> str:
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(5 * (count - 1), -1, -5))


def _number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * 32 + _ALPHABET.index(digit)
    return number
