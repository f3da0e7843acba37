"""The image records of a directory: one by its id, an owner's newest, or all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime

from sidecar.domain import ImageId, ImageRecord, RecordPage, owner_tag
from sidecar.errors import ImageDamaged, ImageNotFound
from sidecar.ports import EXAMINED_RECORDS, RecordFilter
from sidecar.storages import keys
from sidecar.storages.directory import Directory
from sidecar.storages.disk import DamagedFile
from sidecar.storages.records import MAX_RECORD_BYTES, OtherVersion, decode_record


class FileRecords:
    """Blocks; raises OSError."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._tree = directory.tree

    def read(self, image_id: ImageId) -> ImageRecord:
        """Raises ImageNotFound, ImageDamaged."""
        key = keys.record_key(image_id)
        try:
            data = self._tree.read(key, MAX_RECORD_BYTES)
            if data is None:
                self._directory.require_volume()
                raise ImageNotFound
            record = decode_record(data)
            if record.image_id != image_id:
                raise DamagedFile("another image's record")
        except OtherVersion:
            raise ImageNotFound from None
        except (ValueError, NotADirectoryError) as error:
            raise self.damaged(key, error) from None
        return record

    def damaged(self, key: str, reason: object) -> ImageDamaged:
        """State that a file of an image cannot be used; the error to raise."""
        self._directory.damaged(key, reason)
        return ImageDamaged(str(reason))

    def page(
        self, owner: str, limit: int, cursor: str | None, matches: RecordFilter | None, now: datetime
    ) -> RecordPage:
        """Several owners may share a tag, so each record's owner is compared."""
        self._directory.require_volume()
        records: list[ImageRecord] = []
        last = None
        for examined, name in enumerate(self._names(owner_tag(owner), cursor)):
            if len(records) == limit or examined == EXAMINED_RECORDS:
                return RecordPage(records=tuple(records), cursor=last)
            last = name
            with contextlib.suppress(ImageNotFound):
                record = self.read(keys.image_id_of_record_name(name))
                if record.owner == owner and not record.expired(now) and (matches is None or matches(record)):
                    records.append(record)
        return RecordPage(records=tuple(records))

    def _names(self, tag: str, cursor: str | None) -> Iterator[str]:
        """Names of one owner's records after the cursor, newest first, one shard read at a time."""
        shards = keys.records_of(tag)
        for shard in self._tree.names(shards):
            if cursor is not None and shard < cursor[: keys.SHARD_DIGITS]:
                continue
            for name in self._tree.names(f"{shards}/{shard}"):
                stem = name.removesuffix(".json")
                if (cursor is None or stem > cursor) and keys.is_cursor(stem, tag):
                    yield stem

    def everything(self) -> list[ImageRecord]:
        """Every record of every owner that can be read, whether its time is up or not, oldest first."""
        self._directory.require_volume()
        found = []
        for name in [name for tag in self._tree.names("records") for name in self._names(tag, None)]:
            with contextlib.suppress(OSError, ImageNotFound):
                found.append(self.read(keys.image_id_of_record_name(name)))
        return sorted(found, key=lambda record: record.image_id.text)
