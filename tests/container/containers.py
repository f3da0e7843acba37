"""Containers run as a cluster runs them: read-only, no capabilities, little memory, not as root."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parent.parent.parent
UID = 10001
IMAGES = "/var/lib/mcp-images"


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done


class Store:
    """An image store of the tests' own, gone with them."""

    def __init__(self, folder: Path) -> None:
        where = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver"]
        overlay = run("buildah", *where, "overlay", "info", check=False).returncode == 0
        where.append("overlay" if overlay else "vfs")  # vfs copies every layer, and works everywhere
        self.buildah = ["buildah", *where]
        self.podman = ["podman", *where, "--runtime", "runc", "--cgroup-manager", "cgroupfs"]

    def inspect(self, image: str) -> Any:
        return json.loads(run(*self.podman, "image", "inspect", image).stdout)[0]


@dataclass(frozen=True)
class Container:
    """A running one."""

    podman: list[str]
    name: str
    url: str

    def execute(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(*self.podman, "exec", self.name, *command, check=check)

    def inspect(self) -> Any:
        return json.loads(run(*self.podman, "container", "inspect", self.name).stdout)[0]

    def stop(self) -> Any:
        """Its state once it has ended as a pod's container ends."""
        run(*self.podman, "stop", "--time", "20", self.name)
        return self.inspect()["State"]

    def restart(self) -> None:
        """End it as a pod's container ends, and start it again on the same volume and port."""
        run(*self.podman, "restart", "--time", "20", self.name)

    def processes(self) -> str:
        """The command lines of all of them."""
        return self.execute("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '", check=False).stdout

    def memory_kills(self) -> int:
        """How many of its processes the kernel has killed because the memory limit was reached."""
        group = self.inspect()["State"]["CgroupPath"].lstrip("/")
        cgroups = Path("/sys/fs/cgroup")
        files = (cgroups / "memory" / group / "memory.oom_control", cgroups / group / "memory.events")  # of v1, v2
        lines = next(file for file in files if file.exists()).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def process_status(self) -> str:
        return self.execute("cat", "/proc/1/status").stdout

    def peak(self) -> int:
        """The most memory, in bytes, that the sidecar's process ever had."""
        lines = self.process_status().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

    async def until_ready(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.timeout(30):
            while True:
                try:
                    async with session.get(f"{self.url}/readyz") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)


@contextmanager
def locked_up(
    store: Store, image: str, images: Path, memory: int, given: Mapping[str, str], *mounts: str
) -> Iterator[Container]:
    """A container that serves with these variables; it finds the folder `images` where the manifests have it."""
    images.mkdir()
    shutil.chown(images, UID, UID)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    locked = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", str(memory)]
    limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--memory-swap", str(memory)]
    variables = {"LISTEN_PORT": str(port), "STORAGE_PATH": IMAGES, **given}
    environment = [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    volumes = [part for mount in (f"{images}:{IMAGES}", *mounts) for part in ("--volume", mount)]
    started = run(*store.podman, "run", "-d", "--network", "host", *locked, *limits, *environment, *volumes, image)
    name = started.stdout.strip()
    try:
        yield Container(store.podman, name, f"http://127.0.0.1:{port}")
    finally:
        run(*store.podman, "rm", "--force", "--time", "0", name)
