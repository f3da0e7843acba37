"""Requests per second as wrk counts them, and nginx with one worker to compare with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import free_port

SECONDS = 3


def installed() -> bool:
    return shutil.which("wrk") is not None


def rate(url: str, header: str | None = None) -> float:
    """Requests per second over sixteen connections."""
    command = ["wrk", "-t1", "-c16", f"-d{SECONDS}s", *(["-H", header] if header else []), url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if match is None or "Non-2xx" in said:
        raise RuntimeError(said)
    return float(match[1])


def etag(url: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as response:
        return str(response.headers["ETag"])


@contextmanager
def nginx(root: Path) -> Iterator[str | None]:
    """nginx with one worker on the same files; None where it is not installed."""
    binary = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if binary is None:
        yield None
        return
    port = free_port()
    configuration = root / "nginx.conf"
    user = "user root;" if os.getuid() == 0 else ""
    configuration.write_text(
        f"{user} worker_processes 1; daemon off; pid {root}/nginx.pid; error_log {root}/nginx.log;"
        f"events {{}} http {{ sendfile on; tcp_nopush on; access_log off; types {{ image/png png; }}"
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}"
    )
    with subprocess.Popen([binary, "-c", str(configuration)], stderr=subprocess.DEVNULL) as process:
        try:
            time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
