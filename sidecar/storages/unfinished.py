"""How a finished image becomes visible, and how the next process ends what a killed one has begun of it.

A commit waits for the disk, which may stall, and the process may be killed meanwhile. By then the GPU's work is done:
the image is whole, and its record lies beside it under `staging/` (issue 13). Nothing tells for certain whether the
writer still lives, perhaps in another pod. Nothing needs to: each step leads to the same file in the same place, and a
process that finds a step done goes on with the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from datetime import datetime

from sidecar.domain import ImageRecord
from sidecar.storages import keys
from sidecar.storages.directory import Directory, parent_of
from sidecar.storages.disk import DamagedFile
from sidecar.storages.records import MAX_RECORD_BYTES, decode_record
from sidecar.storages.staging import PART, RECORD

SETTLED_SECONDS = 60.0
"""A commit this old is stalled or dead: its caller was told long ago that the store does not answer."""


def publish(directory: Directory, staged: str, staged_record: str, record: ImageRecord) -> None:
    """Move a finished image to where it stays, and then its record, by which it is seen. Blocks; raises OSError."""
    tree = directory.tree
    final = keys.image_key(record.image_id, record.picture.media_type)
    _move(directory, staged, final)
    if record.expires is not None:
        expiry_key = keys.expiry_key(record.expires, record.image_id)
        directory.in_directory(expiry_key, lambda: tree.touch(expiry_key))
    tree.sync(parent_of(final))
    record_key = keys.record_key(record.image_id)
    with contextlib.suppress(FileNotFoundError):
        tree.sync_file(staged_record)
    _move(directory, staged_record, record_key)
    tree.sync(parent_of(record_key))


def _move(directory: Directory, source: str, key: str) -> None:
    """Unless another process has done it in this moment."""
    try:
        directory.place(source, key)
    except FileNotFoundError:
        if directory.tree.status(key) is None:
            raise


def unfinished(directory: Directory, before: float | None) -> list[str]:
    """The staged records of other processes, last changed before that time (seconds since 1970), None for all."""
    names = directory.tree.names("staging")
    found = [f"staging/{name}" for name in names if name.endswith(RECORD) and not directory.owns(name)]
    return [key for key in found if before is None or directory.tree.is_older(key, before)]


def finish(directory: Directory, staged_record: str, now: datetime) -> ImageRecord | None:
    """End the commit of one staged record; None where there is no whole image to it. Blocks; raises OSError."""
    try:
        data = directory.tree.read(staged_record, MAX_RECORD_BYTES)
        if data is None:
            return None
        record = decode_record(data)
    except ValueError:  # cut off, or planted: swept with the leftovers
        return None
    stem = staged_record.removesuffix(RECORD)
    if not stem.endswith(f"-{record.image_id}") or record.expired(now):
        return None
    image = keys.image_key(record.image_id, record.picture.media_type)
    for place in (stem + PART, image):
        if _is_whole(directory, place, record):
            directory.tree.sync_file(place)
            publish(directory, stem + PART, staged_record, record)
            return record
    return None


def _is_whole(directory: Directory, key: str, record: ImageRecord) -> bool:
    try:
        descriptor = directory.tree.open(key)
    except (FileNotFoundError, NotADirectoryError, DamagedFile):
        return False
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        return size == record.size_bytes and hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
