"""Signals, and the end of the process.

A volume that stalls or a decode that does not end keeps a pool's thread, and Python waits for such threads as it exits.
So every graceful shutdown has a last resort: a thread that ends the process at a deadline, with code 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
import threading
import time
from queue import Empty, SimpleQueue
from types import FrameType
from typing import NoReturn

from sidecar.observe.logs import flush_log

AT_ONCE_SECONDS = 1.0
"""From a second signal, or from a first one before the start is complete, to the end of the process."""
EXIT_SECONDS = 0.8
"""From the log's last line to the end of the process."""
_FLUSH_SECONDS = 0.7  # for the last log lines to be read
_LAST_FLUSH_SECONDS = 0.2  # the same where the process should have ended already
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """SIGTERM, SIGINT and SIGHUP: the first asks for a graceful shutdown, a second one for the end at once.

    A second SIGHUP asks for nothing: the terminal that has gone is in no hurry. Install it as a command's first deed;
    it is never taken back, since a signal must not kill a process that has just begun to exit.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.at_once = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        # On the monotonic clock; infinity withdraws those before. Its put may be interrupted by a signal that puts too.
        self._deadlines: SimpleQueue[float] = SimpleQueue()
        self._stopping = False

    def install(self) -> StopSignals:
        threading.Thread(target=self._last_resort, daemon=True, name="last resort").start()
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._on_signal)
        return self

    def started(self) -> None:
        """From now on a first signal asks for a graceful shutdown. To be called on the event loop.

        One that came during the start ends in a graceful shutdown too, since the start did not hang.
        """
        self._loop = asyncio.get_running_loop()
        self._deadlines.put(math.inf)
        if self.at_once.is_set():
            self.end_within(AT_ONCE_SECONDS)

    def begin_stop(self) -> None:
        """Stop for another reason than a signal. From now on a signal asks for the end at once."""
        self._stopping = True
        self.stop.set()

    def end_within(self, seconds: float) -> None:
        """End the process with code 0 after `seconds`, even if threads are stuck. The earliest deadline counts."""
        self._deadlines.put(time.monotonic() + seconds)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        again = self._stopping and number != signal.SIGHUP
        self._stopping = True
        if again or self._loop is None:
            self.end_within(AT_ONCE_SECONDS)
        if self._loop is None:
            self._note(again)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process exits already
                self._loop.call_soon_threadsafe(self._note, again)

    def _note(self, again: bool) -> None:
        self.stop.set()
        if again:
            self.at_once.set()

    def _last_resort(self) -> None:
        deadline = math.inf
        while True:
            left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            try:
                given = self._deadlines.get(timeout=left)
                deadline = math.inf if given == math.inf else min(deadline, given)
            except Empty:
                break
        flush_log(_LAST_FLUSH_SECONDS)
        os._exit(0)


def leave(code: int) -> NoReturn:
    """Exit with `code` once the log is written, or its reader has had its time. No signal changes the code any more."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    flush_log(_FLUSH_SECONDS)
    sys.exit(code)
