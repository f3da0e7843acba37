"""The processes under measurement, and what the kernel says of them. Linux only: it reads /proc."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """One server process. `started` is seconds from its start to its first 200 on /readyz."""

    name: str
    process: subprocess.Popen[str]
    url: str
    started: float

    @property
    def cpu_seconds(self) -> float:
        """User and system time so far, of all its threads and of its children, such as the one that decodes."""
        pids = [self.process.pid, *_children(self.process.pid)]
        return sum(_cpu_ticks(pid) for pid in pids) / _TICKS

    @property
    def loop_seconds(self) -> float:
        """Time on a processor of the first thread, which runs the event loop, to the nanosecond."""
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9

    @property
    def memory_mb(self) -> float:
        return self._status("VmRSS")

    @property
    def peak_memory_mb(self) -> float:
        return self._status("VmHWM")

    def _status(self, key: str) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) / 1024
        raise ValueError(key)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def runtime(size: int) -> Iterator[str]:
    """An instant runtime with a picture of about `size` bytes; its model's URL."""
    command = [sys.executable, str(HERE / "instant_runtime.py"), str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the runtime has no pipes")
        yield process.stdout.readline().strip()
        process.stdin.close()


@contextmanager
def server(name: str, command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[Server]:
    """Start `command` with LISTEN_PORT set and wait for /readyz."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    everything = {**os.environ, **environment, "LISTEN_PORT": str(port)}
    with log.open("w") as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=everything, stdout=output, stderr=output, text=True)
        try:
            _until_ready(f"{url}/readyz", process, log)
            yield Server(name, process, url, time.perf_counter() - began)
        finally:
            process.terminate()
            process.wait(30)


def _until_ready(url: str, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}; see {log}")
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.01)
    raise TimeoutError(url)


@contextmanager
def project(endpoint: str, work: Path, **settings: str) -> Iterator[Server]:
    """The sidecar as `serve` starts it; `watched_sidecar.py` where BENCH_WATCH is among the settings."""
    command = [sys.executable, "-m", "sidecar", "serve"]
    if "BENCH_WATCH" in settings:
        command = [sys.executable, str(HERE / "watched_sidecar.py")]
    given = {
        "PYTHONPATH": str(HERE.parent),
        "KSERVE_ENDPOINT": endpoint,
        "STORAGE_PATH": str(work / "project"),
        "LOG_LEVEL": "warning",
        **settings,
    }
    with server("project", command, given, work / "project.log") as started:
        yield started


@contextmanager
def bare(endpoint: str, work: Path) -> Iterator[Server]:
    """What `bare.py` does, the floor."""
    given = {"KSERVE_ENDPOINT": endpoint, "STORAGE_PATH": str(work / "floor")}
    with server("floor", [sys.executable, str(HERE / "bare.py")], given, work / "floor.log") as started:
        yield started


@contextmanager
def peer(endpoint: str, work: Path) -> Iterator[Server]:
    """The FastMCP peer, by the Python that PEER_PYTHON names."""
    command = [os.environ["PEER_PYTHON"], str(HERE / "peer" / "server.py")]
    given = {"KSERVE_ENDPOINT": endpoint, "STORAGE_PATH": str(work / "peer")}
    with server("peer", command, given, work / "peer.log") as started:
        yield started


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in found for child in file.read_text().split()]


def _cpu_ticks(pid: int) -> int:
    """Its own, and of its children those that have ended and were waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(ticks) for ticks in fields[11:15])
