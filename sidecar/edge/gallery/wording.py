"""Times, sizes and queues in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from sidecar.core.generation import Lane
from sidecar.core.generation_queue import ModelQueue
from sidecar.core.readiness import Health, RuntimeWatch

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


def clock_time(moment: datetime, now: datetime) -> str:
    """When something was, as short as can be: `14:02 UTC` on the same day."""
    return f"{moment:%H:%M} UTC" if moment.date() == now.date() else utc(moment)


def not_ready(model: str, detail: str) -> str:
    """One sentence; `detail` says of the runtime what it does, or is a sentence of its own."""
    why = f"the runtime {detail}." if detail[:1].islower() else detail
    return f"The model {model} is not ready: {why}"


def summary(lanes: Mapping[str, Lane], health: Health) -> str:
    """Every model and its queue in one line, short enough to be read out when it changes."""
    if health.stopping:
        return "Shutting down"
    models = {name: words for name, lane in lanes.items() if (words := _model(lane, health.runtimes[name]))}
    parts = [f"{name}: {words}" for name, words in models.items()] if len(lanes) > 1 else list(models.values())
    if health.storage.check.status == "degraded":
        parts.append("image store in trouble")
    line = "; ".join(parts) or "idle"
    return line if len(lanes) > 1 and models else line[0].upper() + line[1:]


def _model(lane: Lane, watch: RuntimeWatch) -> str:
    """Empty for one that is ready and idle."""
    queue = lane.queue
    if watch.ready:
        return _queue(queue)
    held_up = queue.in_flight + queue.waiting
    readiness = "starting" if watch.check.status == "unknown" else "not ready"
    return f"{readiness}, {held_up} held up" if held_up else readiness


def _queue(queue: ModelQueue) -> str:
    counts = ((queue.in_flight, "painting"), (queue.waiting, "waiting"))
    line = ", ".join(f"{count} {word}" for count, word in counts if count)
    wait = queue.oldest_wait
    return line if wait < _WORTH_TELLING_SECONDS else f"{line} ({span(timedelta(seconds=wait))})"
