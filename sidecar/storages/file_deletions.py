"""Deleting images from a directory that several pods share: one of them counts each image, all of them remove it."""

from __future__ import annotations

from sidecar.domain import Deletion, ImageId
from sidecar.errors import ImageDamaged, ImageNotFound
from sidecar.ports import ExpiredImage
from sidecar.storages import keys
from sidecar.storages.directory import Directory
from sidecar.storages.file_records import FileRecords


class FileDeletions:
    """Blocks; raises OSError."""

    def __init__(self, directory: Directory, records: FileRecords) -> None:
        self._tree = directory.tree
        self._records = records

    def one(self, image_id: ImageId) -> Deletion:
        """Without the record's expiry time the index entry cannot be named; a sweep finds it when it is due."""
        try:
            expires = self._records.read(image_id).expires
        except ImageDamaged:
            expires = None
        except ImageNotFound:
            return Deletion(first=False)
        return self._remove(image_id, keys.expiry_key(expires, image_id) if expires else None)

    def expired(self, expired: ExpiredImage) -> Deletion | None:
        """None for an index entry that contradicts its image's record: the record decides, and only the entry goes."""
        try:
            expires = self._records.read(expired.image_id).expires
        except ImageNotFound:  # a damaged record, or a newer version's, does not keep its image beyond its time
            return self._remove(expired.image_id, expired.key)
        if expires is None or keys.expiry_key(expires, expired.image_id) != expired.key:
            self._tree.unlink(expired.key)
            return None
        return self._remove(expired.image_id, expired.key)

    def _remove(self, image_id: ImageId, expiry_key: str | None) -> Deletion:
        """The record first: without it the image is invisible. The pod that removes the record counts the image."""
        first = self._tree.unlink(keys.record_key(image_id)) is not None
        files = [*keys.every_image_key(image_id), keys.thumbnail_key(image_id)]
        freed = sum(self._tree.unlink(key) or 0 for key in files)
        if expiry_key is not None:
            self._tree.unlink(expiry_key)
        return Deletion(first=first, freed_bytes=freed)
