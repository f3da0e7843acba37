"""Where things lie in a store: one scheme of keys for directories and buckets.

    records/{owner}/{shard}/{name}.json    newest first: the time in shard and name is reversed
    images/{shard}/{id}.png                beside it {id}.thumbnail.webp
    expiry/{shard}/{time}-{id}             an empty entry a sweep finds by the time it names
    jobs/open/{job}.json                   what to do; beside it {job}.lease-{attempt} and {job}.begun
    jobs/done/{shard}/{job}.json           the same with how it ended
    jobs/failed/{job}                      an empty mark: it ended without an image; {job}.kept must not go early
    jobs/keys/{digest}.json                an idempotency key's job
    staging/{instance}-{id}.part           local only: files under way; beside it {id}.record while it is committed
    probe/{instance}                       bucket only: by this a pod proves that it can write
    deleting/{id}                          bucket only: which of several deleting pods counts the image
    inventory/{day}.json                   bucket only: the day's count; beside it {day}.claim

A shard is the first five of nine base-32 time digits, about 17 minutes. Listing the newest N reads the first shards of
one owner; a sweep reads the expiry shards up to now; every key follows from the id (and, for expiry, the time) alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sidecar.domain import (
    IMAGE_EXTENSIONS,
    TIME_DIGITS,
    ImageId,
    JobId,
    is_image_id,
    reverse_digits,
    sortable_time,
    time_from_sortable,
)
from sidecar.errors import ImageNotFound

TREES = frozenset({"images", "records", "expiry", "staging", "jobs", "jobs/open", "jobs/done", "jobs/keys"})
"""The directories that every directory store has; those in them are named by owners and times."""
SHARD_DIGITS = 5
THUMBNAIL_SUFFIX = ".thumbnail.webp"


def is_shard(name: str) -> bool:
    """Whether a directory's name is one of ours: a volume may hold others, such as lost+found."""
    try:
        return len(name) == SHARD_DIGITS and reverse_digits(reverse_digits(name)) == name
    except ValueError:
        return False


def records_of(owner_tag: str) -> str:
    return f"records/{owner_tag}"


def record_name(image_id: ImageId) -> str:
    """The id with its time reversed, so that the newest sorts first."""
    return reverse_digits(image_id.time_digits) + image_id.text[len(image_id.time_digits) :]


def image_id_of_record_name(name: str) -> ImageId:
    """The inverse of `record_name`. Raises ImageNotFound or ValueError for foreign names."""
    return ImageId.parse(reverse_digits(name[:TIME_DIGITS]) + name[TIME_DIGITS:])


def record_key(image_id: ImageId) -> str:
    name = record_name(image_id)
    return f"{records_of(image_id.owner_tag)}/{name[:SHARD_DIGITS]}/{name}.json"


def is_cursor(cursor: str, tag: str) -> bool:
    """Whether a text is the name of a record of this owner, which is what a page's cursor is."""
    try:
        return image_id_of_record_name(cursor).owner_tag == tag
    except (ImageNotFound, ValueError):
        return False


def image_key(image_id: ImageId, media_type: str) -> str:
    return f"images/{image_id.text[:SHARD_DIGITS]}/{image_id}.{IMAGE_EXTENSIONS[media_type]}"


def every_image_key(image_id: ImageId) -> list[str]:
    """The keys an image may have, for callers that do not know its media type."""
    return [image_key(image_id, media_type) for media_type in IMAGE_EXTENSIONS]


def thumbnail_key(image_id: ImageId) -> str:
    return f"images/{image_id.text[:SHARD_DIGITS]}/{image_id}{THUMBNAIL_SUFFIX}"


def expiry_key(expires: datetime, image_id: ImageId) -> str:
    digits = sortable_time(expires)
    return f"expiry/{digits[:SHARD_DIGITS]}/{digits}-{image_id}"


def expiry_of_name(name: str) -> tuple[datetime, ImageId] | None:
    """The time and id an expiry entry names, or None for a foreign name."""
    digits, _, text = name.partition("-")
    if len(digits) != TIME_DIGITS:
        return None
    try:
        return time_from_sortable(digits), ImageId.parse(text)
    except (ValueError, OverflowError, OSError, ImageNotFound):
        return None


OPEN_JOBS = "jobs/open"
DONE_JOBS = "jobs/done"
FAILED_JOBS = "jobs/failed"
JOB_KEYS = "jobs/keys"
_KEPT = ".kept"


def open_job_key(job_id: JobId) -> str:
    return f"{OPEN_JOBS}/{job_id}.json"


def lease_key(job_id: JobId, attempt: int) -> str:
    return f"{OPEN_JOBS}/{job_id}.lease-{attempt}"


def begun_key(job_id: JobId) -> str:
    return f"{OPEN_JOBS}/{job_id}.begun"


def done_job_key(job_id: JobId) -> str:
    return f"{DONE_JOBS}/{job_id.text[:SHARD_DIGITS]}/{job_id}.json"


def idempotency_key(digest: str) -> str:
    return f"{JOB_KEYS}/{digest}.json"


def failed_job_key(job_id: JobId, *, kept: bool) -> str:
    return f"{FAILED_JOBS}/{job_id}{_KEPT if kept else ''}"


def failed_job_keys(job_id: JobId) -> list[str]:
    """Both marks that an ended job may have."""
    return [failed_job_key(job_id, kept=kept) for kept in (False, True)]


def surplus(names: Iterable[str], keep: int, ended_before: datetime) -> list[JobId]:
    """Of the jobs with these marks, oldest first, those over `keep` that may have ended before that moment."""
    marked = sorted(name for name in names if is_image_id(name))
    ids = [JobId(text) for text in marked[: max(0, len(marked) - keep)]]
    return [job_id for job_id in ids if job_id.created <= ended_before]
