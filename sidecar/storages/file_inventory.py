"""What a directory holds, shard by shard, and which of its files belong to nothing."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.domain import ImageId, is_image_id, reverse_digits
from sidecar.errors import ImageNotFound
from sidecar.storages import keys
from sidecar.storages.disk import LEFTOVER_SECONDS, Tree


@dataclass(slots=True)
class ShardCount:
    """Images, their bytes with thumbnails, orphans deleted, suspects kept, and files that could not be tidied away.

    A suspect that is kept has both halves after all: a listing left one out.
    """

    images: int = 0
    size: int = 0
    orphans: int = 0
    kept: int = 0
    errors: int = 0

    def __add__(self, other: ShardCount) -> ShardCount:
        return ShardCount(
            self.images + other.images,
            self.size + other.size,
            self.orphans + other.orphans,
            self.kept + other.kept,
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
                or self._tidied(count, f"{directory}/{name}", before, [keys.record_key(ImageId(text))])
            ):
                continue
            count.size += size
            count.images += not name.endswith(keys.THUMBNAIL_SUFFIX)
            seen.add(text)
        for text in recorded - seen:
            image_id = ImageId(text)
            self._tidied(count, keys.record_key(image_id), before, keys.every_image_key(image_id))
        owners = self._tree.names("records")
        for emptied in (directory, *(f"records/{owner}/{reverse_digits(shard)}" for owner in owners)):
            self._tree.remove_if_old_and_empty(emptied, before)
        return count

    def _tidied(self, count: ShardCount, key: str, before: float, other_halves: Iterable[str]) -> bool:
        """Delete an old file whose other half is gone; whether it was deleted. An error does not stop the others.

        A listing may omit what is there, so the other half is looked up by each key that it may have.
        """
        try:
            if not self._tree.is_older(key, before):
                return False
            if any(self._tree.status(other) is not None for other in other_halves):
                count.kept += 1
                return False
            deleted = self._tree.unlink(key) is not None
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
