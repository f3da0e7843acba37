"""What the keys of a listing name: the inverse of keys.py.

A bucket may hold objects of other programs below the same prefix, such as the empty `images/` that some consoles make
for a folder. Each function takes a key without the prefix and returns None unless keys.py makes exactly this key.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal, NamedTuple

from sidecar.domain import IMAGE_EXTENSIONS, ImageId, JobId, is_image_id
from sidecar.errors import ImageNotFound
from sidecar.storages import keys

_ATTEMPT = re.compile(r"lease-([1-9][0-9]{0,3})", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_INSTANCE = re.compile(r"[0-9a-f]{12}", re.ASCII)


class ImageObject(NamedTuple):
    """An object below `images/`: an image, or its thumbnail."""

    image_id: ImageId
    thumbnail: bool


class ExpiryEntry(NamedTuple):
    """An object below `expiry/`; `expires` is aware UTC."""

    expires: datetime
    image_id: ImageId


class JobPart(NamedTuple):
    """An object below `jobs/open/`: the job itself, the mark of its beginning, or the lease of an attempt."""

    job_id: JobId
    part: Literal["job", "begun"] | int


def image_object(key: str) -> ImageObject | None:
    name = key.rpartition("/")[2]
    text, _, ending = name.partition(".")
    if not is_image_id(text):
        return None
    image_id = ImageId(text)
    if key == keys.thumbnail_key(image_id):
        return ImageObject(image_id, thumbnail=True)
    is_image = ending in IMAGE_EXTENSIONS.values() and key in keys.every_image_key(image_id)
    return ImageObject(image_id, thumbnail=False) if is_image else None


def recorded_image(key: str) -> ImageId | None:
    """The image that a key below `records/` is the record of."""
    try:
        image_id = keys.image_id_of_record_name(key.rpartition("/")[2].removesuffix(".json"))
    except (ImageNotFound, ValueError):
        return None
    return image_id if key == keys.record_key(image_id) else None


def expiry_entry(key: str) -> ExpiryEntry | None:
    directory, _, name = key.rpartition("/")
    found = keys.expiry_of_name(name)
    if found is None or directory != f"expiry/{name[: keys.SHARD_DIGITS]}":
        return None
    return ExpiryEntry(*found)


def open_job_part(key: str) -> JobPart | None:
    text, _, rest = key.removeprefix(f"{keys.OPEN_JOBS}/").partition(".")
    if not is_image_id(text):
        return None
    job_id = JobId(text)
    attempt = _ATTEMPT.fullmatch(rest)
    if attempt is not None:
        part = JobPart(job_id, int(attempt[1]))
        return part if key == keys.lease_key(job_id, int(attempt[1])) else None
    if key == keys.begun_key(job_id):
        return JobPart(job_id, "begun")
    return JobPart(job_id, "job") if key == keys.open_job_key(job_id) else None


def done_job(key: str) -> JobId | None:
    text = key.rpartition("/")[2].removesuffix(".json")
    return JobId(text) if is_image_id(text) and key == keys.done_job_key(JobId(text)) else None


def failed_mark(key: str) -> str | None:
    """The name of the mark of a failed job, by its key below `jobs/failed/`."""
    name = key.removeprefix(f"{keys.FAILED_JOBS}/")
    text = name.partition(".")[0]
    return name if is_image_id(text) and key in keys.failed_job_keys(JobId(text)) else None


def job_object(key: str) -> Literal["open", "ended", "failed", "beside"] | None:
    """What a key below `jobs/` is: a job by its state, the mark of a failed one, or what lies beside a job."""
    if (part := open_job_part(key)) is not None:
        return "open" if part.part == "job" else "beside"
    if done_job(key) is not None:
        return "ended"
    if failed_mark(key) is not None:
        return "failed"
    digest = key.removeprefix("jobs/keys/").removesuffix(".json")
    return "beside" if _DIGEST.fullmatch(digest) and key == keys.idempotency_key(digest) else None


def deletion_claim(key: str) -> ImageId | None:
    """The image that a key below `deleting/` claims the deletion of."""
    text = key.removeprefix("deleting/")
    return ImageId(text) if is_image_id(text) else None


def probing_instance(key: str) -> str | None:
    """The process that a key below `probe/` belongs to."""
    text = key.removeprefix("probe/")
    return text if _INSTANCE.fullmatch(text) else None
