"""The process that decodes pictures: thumbnails.py starts it, and kills it when a decode takes too long.

Decoders are native code that reads bytes from a runtime, and a picture of few bytes can take any memory and time. So
they run apart from the server, one picture at a time and under a memory limit of the kernel; what ends this process
ends nothing else. It imports only Pillow and the standard library, to be small and to start fast.

Requests come on standard input and are answered on standard output, each a line of JSON and the bytes it announces.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from sidecar.imaging import decode

_SLACK_BYTES = 24 * 1024 * 1024  # besides the decoded pixels: bands, the thumbnail, its encoder, what malloc keeps
_FILE_COPIES = 3  # the most that are made of a picture's bytes: here, in Pillow, in libwebp
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGE_BLOCK_BYTES = 8 * 1024 * 1024, 4 * 1024 * 1024
_LATE_SECONDS = 2.0  # behind the deadline that the parent keeps, in case it is gone


def main(budget: int, seconds: float) -> None:
    """Serve until standard input ends. `budget`: bytes that one decode may take; `seconds`: how long."""
    decode.prepare()
    with contextlib.suppress(OSError):  # should a container's memory run out, the kernel ends this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    _give_memory_back()
    worker = Worker(budget)
    _say({"is": "ready"})
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        data = sys.stdin.buffer.read(request["bytes"])
        signal.setitimer(signal.ITIMER_REAL, seconds + _LATE_SECONDS)  # SIGALRM ends the process
        answer, thumbnail = worker.answer(request, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _say(answer, thumbnail)


def _say(answer: dict[str, str], thumbnail: bytes = b"") -> None:
    head = json.dumps({**answer, "bytes": len(thumbnail)}).encode()
    sys.stdout.buffer.write(head + b"\n" + thumbnail)
    sys.stdout.buffer.flush()


class Worker:
    """Answers requests within a memory limit."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._own = _data_bytes()

    def answer(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, str], bytes]:
        """How it went (`done`, `damaged` or `refused`), why, and what was asked for."""
        try:
            self._limit_memory(len(data))
            return {"is": "done"}, self._made(request, io.BytesIO(data))
        except decode.OverBudget as refusal:
            return {"is": "refused", "why": str(refusal)}, b""
        except MemoryError:
            return {"is": "refused", "why": "decoding it takes more memory than is allowed"}, b""
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error …
            return {"is": "damaged", "why": str(error)}, b""

    def _made(self, request: dict[str, Any], file: io.BytesIO) -> bytes:
        """A thumbnail, or whether the picture is black: one byte, 0 or 1."""
        if request["make"] == "thumbnail":
            return decode.thumbnail(file, pixels=request["pixels"], max_bytes=request["max_bytes"], budget=self._budget)
        return bytes([decode.is_black(file, budget=self._budget)])

    def _limit_memory(self, file_bytes: int) -> None:
        """Where the kernel counts it: on Linux."""
        if self._own is not None:
            size = self._own + self._budget + _SLACK_BYTES + _FILE_COPIES * file_bytes
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (size if hard < 0 else min(size, hard), hard))


def _give_memory_back() -> None:
    """glibc would keep freed blocks of up to 32 MiB, which the limit counts; this much pays (mallopt(3))."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _data_bytes() -> int | None:
    """The process's own data, before any picture; None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return None
