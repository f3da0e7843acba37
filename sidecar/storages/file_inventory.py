"""What a directory holds, shard by shard, and which of its files belong to nothing."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.domain import ImageId, is_image_id, reverse_digits
from sidecar.errors import ImageNotFound
from sidecar.storages import disk, keys


@dataclass(slots=True)
class ShardCount:
    """Images, their bytes with thumbnails, orphans deleted, and files that could not be tidied away."""

    images: int = 0
    size: int = 0
    orphans: int = 0
    errors: int = 0

    def __add__(self, other: ShardCount) -> ShardCount:
        return ShardCount(
            self.images + other.images,
            self.size + other.size,
            self.orphans + other.orphans,
            self.errors + other.errors,
        )


class ShardInventory:
    """Counts one shard at a time, and deletes what has lain there for an hour without its other half."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def shards(self) -> list[str]:
        """The shards that hold an image or a record, oldest first."""
        records = self._root / "records"
        found = {shard for owner in disk.names(records) for shard in disk.names(records / owner)}
        both = {reverse_digits(shard) for shard in found if keys.is_shard(shard)} | set(
            disk.names(self._root / "images")
        )
        return sorted(filter(keys.is_shard, both))

    def count(self, shard: str, now: float) -> ShardCount:
        directory = self._root / "images" / shard
        before = now - disk.LEFTOVER_SECONDS
        count = ShardCount()
        seen: set[str] = set()
        recorded = self._recorded_in(shard)
        for entry in disk.entries(directory):
            text = entry.name.split(".", 1)[0]
            if text not in recorded and (
                not is_image_id(text) or self._tidied(count, self._delete_orphan, text, Path(entry.path), before)
            ):
                continue
            with contextlib.suppress(FileNotFoundError):
                count.size += entry.stat().st_size
                count.images += not entry.name.endswith(keys.THUMBNAIL_SUFFIX)
            seen.add(text)
        for text in recorded - seen:
            self._tidied(count, self._delete_pictureless, ImageId(text), before)
        for emptied in (directory, *(self._root / "records").glob(f"*/{reverse_digits(shard)}")):
            disk.remove_if_old_and_empty(emptied, now)
        return count

    def _tidied(self, count: ShardCount, delete: Callable[..., bool], *arguments: Any) -> bool:
        """Whether one orphan was deleted; one that resists does not keep the others."""
        try:
            deleted = delete(*arguments)
        except OSError:
            count.errors += 1
            return False
        count.orphans += deleted
        return deleted

    def _recorded_in(self, shard: str) -> set[str]:
        """The ids that have a record, of all owners, created within one shard's time."""
        reversed_shard = reverse_digits(shard)
        owners = self._root / "records"
        names = (disk.names(owners / owner / reversed_shard) for owner in disk.names(owners))
        recorded = set()
        for name in itertools.chain.from_iterable(names):
            with contextlib.suppress(ImageNotFound, ValueError):
                recorded.add(keys.image_id_of_record_name(name.removesuffix(".json")).text)
        return recorded

    def _delete_orphan(self, text: str, path: Path, before: float) -> bool:
        if (self._root / keys.record_key(ImageId(text))).exists():
            return False
        return disk.unlink_older(path, before)

    def _delete_pictureless(self, image_id: ImageId, before: float) -> bool:
        """A record whose image is gone; a second look, because the image may have come since the listing."""
        images = self._root / keys.thumbnail_key(image_id)
        if any(name.startswith(image_id.text) for name in disk.names(images.parent)):
            return False
        return disk.unlink_older(self._root / keys.record_key(image_id), before)
