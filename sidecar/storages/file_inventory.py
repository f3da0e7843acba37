"""What a directory holds, shard by shard, and which of its files belong to nothing."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sidecar.domain import ImageId, is_image_id, reverse_digits
from sidecar.errors import ImageNotFound
from sidecar.storages import keys
from sidecar.storages.disk import LEFTOVER_SECONDS, Tree


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

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def shards(self) -> list[str]:
        """The shards that hold an image or a record, oldest first."""
        owners = self._tree.names("records")
        found = {shard for owner in owners for shard in self._tree.names(f"records/{owner}")}
        both = {reverse_digits(shard) for shard in found if keys.is_shard(shard)} | set(self._tree.names("images"))
        return sorted(filter(keys.is_shard, both))

    def count(self, shard: str, now: float) -> ShardCount:
        directory = f"images/{shard}"
        before = now - LEFTOVER_SECONDS
        count = ShardCount()
        seen: set[str] = set()
        recorded = self._recorded_in(shard)
        for name, size in self._tree.sizes(directory):
            text = name.split(".", 1)[0]
            if text not in recorded and (
                not is_image_id(text)
                or self._tidied(count, self._delete_orphan, ImageId(text), f"{directory}/{name}", before)
            ):
                continue
            count.size += size
            count.images += not name.endswith(keys.THUMBNAIL_SUFFIX)
            seen.add(text)
        for text in recorded - seen:
            self._tidied(count, self._delete_pictureless, ImageId(text), before)
        owners = self._tree.names("records")
        for emptied in (directory, *(f"records/{owner}/{reverse_digits(shard)}" for owner in owners)):
            self._tree.remove_if_old_and_empty(emptied, before)
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
        owners = self._tree.names("records")
        names = (self._tree.names(f"records/{owner}/{reversed_shard}") for owner in owners)
        recorded = set()
        for name in itertools.chain.from_iterable(names):
            with contextlib.suppress(ImageNotFound, ValueError):
                recorded.add(keys.image_id_of_record_name(name.removesuffix(".json")).text)
        return recorded

    def _delete_orphan(self, image_id: ImageId, key: str, before: float) -> bool:
        """A listing may omit what is there: the record is looked up by its key. Raises OSError where it cannot be."""
        if self._tree.status(keys.record_key(image_id)) is not None:
            return False
        return self._delete_older(key, before)

    def _delete_pictureless(self, image_id: ImageId, before: float) -> bool:
        """A record whose image is gone; it is looked up by each key that it may have, as above."""
        if any(self._tree.status(key) is not None for key in keys.every_image_key(image_id)):
            return False
        return self._delete_older(keys.record_key(image_id), before)

    def _delete_older(self, key: str, before: float) -> bool:
        return self._tree.is_older(key, before) and self._tree.unlink(key) is not None
