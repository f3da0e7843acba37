"""Times, sizes and queues in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from sidecar.core.generation import Lane
from sidecar.core.generation_queue import ModelQueue

_STEPS = ((86400, "day", "days"), (3600, "hour", "hours"), (60, "minute", "minutes"))
_WORTH_TELLING_SECONDS = 60  # a shorter wait would change the announced line with each poll


def ago(moment: datetime, now: datetime) -> str:
    """How long ago something was: `just now`, `5 minutes ago`."""
    words = span(now - moment)
    return "just now" if words is None else f"{words} ago"


def until(moment: datetime, now: datetime) -> str:
    """How far off something is: `in 23 hours`."""
    words = span(moment - now)
    return "in less than a minute" if words is None else f"in {words}"


def span(length: timedelta) -> str | None:
    """A length of time in its largest whole unit, None when it is less than a minute."""
    seconds = length.total_seconds()
    for size, one, several in _STEPS:
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {one if count == 1 else several}"
    return None


def utc(moment: datetime) -> str:
    return f"{moment:%d %b %Y, %H:%M:%S} UTC".removeprefix("0")


def byte_size(size: int) -> str:
    """`950 bytes`, `1.2 KiB`, `3.4 MiB`."""
    if size < 1024:
        return f"{size} bytes"
    if size < 1024**2:
        return f"{size / 1024:.1f} KiB"
    return f"{size / 1024**2:.1f} MiB"


def queues(lanes: Mapping[str, Lane]) -> str:
    """Every model's queue in one line, short enough to be read out when it changes."""
    busy = {name: lane.queue for name, lane in lanes.items() if lane.queue.in_flight or lane.queue.waiting}
    if not busy:
        return "Idle"
    if len(lanes) == 1:
        return _queue(next(iter(busy.values())))
    return "; ".join(f"{name}: {_queue(queue)}" for name, queue in busy.items())


def _queue(queue: ModelQueue) -> str:
    line = f"{queue.in_flight} painting" + (f", {queue.waiting} waiting" if queue.waiting else "")
    wait = queue.oldest_wait
    return line if wait < _WORTH_TELLING_SECONDS else f"{line} ({span(timedelta(seconds=wait))})"
