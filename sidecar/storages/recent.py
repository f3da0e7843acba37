"""The images last stored or asked for, believed for a moment without a look at the store."""

from __future__ import annotations

from collections import OrderedDict

from sidecar.domain import ImageId, StoredImage
from sidecar.ports import Clock

_ENTRIES = 2048
_SECONDS = 1.0  # another pod may have deleted it


class RecentImages:
    """Bounded; the least recently remembered goes first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: OrderedDict[ImageId, tuple[float, StoredImage]] = OrderedDict()

    def recall(self, image_id: ImageId) -> StoredImage | None:
        """What is fresh enough to be believed."""
        entry = self._entries.get(image_id)
        if entry is None or self._clock.monotonic() - entry[0] > _SECONDS:
            return None
        return entry[1]

    def known(self, image_id: ImageId) -> StoredImage | None:
        """However old: a record never changes, so one that was read before need not be read again."""
        entry = self._entries.get(image_id)
        return None if entry is None else entry[1]

    def remember(self, stored: StoredImage) -> None:
        """It was there just now."""
        self._put(stored, self._clock.monotonic())

    def learn(self, stored: StoredImage) -> None:
        """Its record was read; whether all of it is there was not looked at."""
        if stored.record.image_id not in self._entries:
            self._put(stored, float("-inf"))

    def _put(self, stored: StoredImage, seen: float) -> None:
        self._entries[stored.record.image_id] = (seen, stored)
        self._entries.move_to_end(stored.record.image_id)
        if len(self._entries) > _ENTRIES:
            self._entries.popitem(last=False)

    def forget(self, image_id: ImageId) -> None:
        self._entries.pop(image_id, None)
