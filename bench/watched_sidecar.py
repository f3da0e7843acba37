"""The sidecar with a watch on its event loop. On SIGUSR1 it writes the worst since the last one, in ms, to BENCH_WATCH.

`step` is the longest single step of the loop, by the CPU time of its thread: what one piece of code blocks it for.
`turn` is the longest turn, many steps of many calls together, and `late` how much later than asked a callback ran by a
clock on the wall, a machine that took the processor away included.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

from sidecar.config import read_settings
from sidecar.observe.logs import configure_logging
from sidecar.process import StopSignals
from sidecar.serving import serve

INTERVAL = 0.001


class LoopWatch:
    def __init__(self, report: Path) -> None:
        self._report = report
        self._worst_step = ""
        self._reset()

    def _reset(self) -> None:
        self._step = self._turn = self._late = 0.0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGUSR1, self._tell)
        self._time_steps()
        self._again()

    def _time_steps(self) -> None:
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            began = time.thread_time()
            run(handle)
            taken = time.thread_time() - began
            if taken > self._step:
                self._step, self._worst_step = taken, repr(handle)

        asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]

    def _again(self) -> None:
        self._before = time.perf_counter(), time.thread_time()
        self._loop.call_later(INTERVAL, self._tick)

    def _tick(self) -> None:
        self._late = max(self._late, time.perf_counter() - self._before[0] - INTERVAL)
        self._turn = max(self._turn, time.thread_time() - self._before[1])
        self._again()

    def _tell(self) -> None:
        part = self._report.with_suffix(".part")
        worst = {"step": self._step * 1000, "turn": self._turn * 1000, "late": self._late * 1000}
        part.write_text(json.dumps({**worst, "worst_step": self._worst_step}))
        part.rename(self._report)
        self._reset()


async def main() -> None:
    LoopWatch(Path(os.environ["BENCH_WATCH"])).start()
    settings = read_settings(os.environ)
    configure_logging(settings.log)
    await serve(settings, StopSignals().install())


if __name__ == "__main__":
    asyncio.run(main())
