"""Log lines on their way out of the process, written by a thread of its own.

A log pipe that is not read, a full disk or a stalled volume must not stop the event loop: `put` never waits. What the
queue cannot take is dropped and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from queue import Empty, SimpleQueue

STANDARD_ERROR = 2
MAX_QUEUED_BYTES = 1024 * 1024
_BATCH_BYTES = 64 * 1024  # as much as a pipe holds

_log = logging.getLogger("sidecar.logs")


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, however long that takes. Raises OSError.

    A descriptor that another process has made non-blocking is waited for.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            _wait_until_writable(descriptor)


def _wait_until_writable(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


class LogWriter:
    """A bounded queue of lines and the daemon thread that writes them to `descriptor`.

    `put` is called by one thread at a time, which logging's handler lock ensures. It takes no lock, so that it may be
    called again by what the garbage collector runs in its middle.
    """

    def __init__(self, descriptor: int, *, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        # Each counter has one thread that changes it, so none needs a lock.
        self._put_bytes = 0
        self._put_dropped = 0
        self._taken_bytes = 0
        self._write_dropped = 0
        self._reported = 0
        threading.Thread(target=self._run, daemon=True, name="log writer").start()

    @property
    def dropped(self) -> int:
        """Lines that were lost: the queue was full, or they could not be written."""
        return self._put_dropped + self._write_dropped

    def put(self, line: str) -> None:
        """Queue one line, without its end."""
        data = line.encode("utf-8", "replace") + b"\n"
        if self._put_bytes - self._taken_bytes + len(data) > self._max_bytes:
            self._put_dropped += 1
            return
        self._put_bytes += len(data)
        self._queue.put(data)

    def flush(self, seconds: float) -> bool:
        """Wait at most `seconds` until everything queued before is written; whether it is."""
        end = time.monotonic() + seconds
        for _ in range(2):  # the first may make the line that tells of dropped ones
            written = threading.Event()
            self._queue.put(written)
            if not written.wait(max(0.0, end - time.monotonic())):
                return False
        return True

    def _run(self) -> None:
        while True:
            lines, flushed = self._batch()
            if lines:
                self._write(lines)
            if flushed is not None:
                flushed.set()

    def _batch(self) -> tuple[list[bytes], threading.Event | None]:
        """Wait for a line, then take what else is there; up to the next flush."""
        lines: list[bytes] = []
        size = 0
        item = self._queue.get()
        with contextlib.suppress(Empty):
            while isinstance(item, bytes):
                lines.append(item)
                size += len(item)
                if size >= _BATCH_BYTES:
                    return lines, None
                item = self._queue.get_nowait()
            return lines, item
        return lines, None

    def _write(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        written = True
        try:
            write_all(self._descriptor, data)
        except OSError:  # no reader, no space: logging goes on, for either may come back
            self._write_dropped += len(lines)
            written = False
        self._taken_bytes += len(data)
        if written and self._put_bytes - self._taken_bytes < self._max_bytes // 2:
            self._tell_of_dropped()

    def _tell_of_dropped(self) -> None:
        lost = self.dropped - self._reported
        if lost:
            self._reported += lost
            _log.warning("the log could not be written for a while; lines dropped: %d", lost)


class QueuedHandler(logging.Handler):
    """Renders a record where it was logged and leaves writing to a LogWriter."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self.writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:
            line = (
                f'{{"event": "a log line could not be rendered", "level": "error", "error": "{type(error).__name__}"}}'
            )
        self.writer.put(line)
