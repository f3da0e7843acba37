"""Dockerfile.sidecar, built and run as a cluster runs it: read-only, no capabilities, little memory, not as root."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from mcp.client import Client

from tests.real_parts import require

pytestmark = pytest.mark.container

ROOT = Path(__file__).parent.parent.parent
BASE = "docker.io/library/python:3.13-slim"
IMAGE = "localhost/mcp-image-sidecar:test"
UID = 10001
MEMORY = 128 * 2**20
LARGEST = 120_000_000
"""Bytes that the image may add to its base."""
PARTS = ("buildah", "podman", "runc", "mmdebstrap", "conmon")

LOCK = "requirements-container.lock"


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


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    missing = [part for part in PARTS if shutil.which(part) is None]
    require(not missing, f"{', '.join(missing)} not installed")
    require(os.geteuid() == 0, "a base image is made by root only")
    require(sys.version_info[:2] == (3, 13), "the base image is made of the Python that runs this, which must be 3.13")
    folder = tmp_path_factory.mktemp("images")
    yield Store(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def image(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    prefix = sysconfig.get_config_var("installed_base")
    run("bash", ROOT / "tests" / "container" / "base_image.sh", prefix, tmp_path_factory.mktemp("base"), *store.buildah)
    certificates = ("-v", "/etc/ssl/certs:/etc/ssl/certs:ro")
    options = ("--isolation", "chroot", "--format", "docker", "--pull=never", "--build-arg", "VERSION=1.2.3")
    run(*store.buildah, "bud", *options, *certificates, "-f", "Dockerfile.sidecar", "-t", IMAGE, ".")
    return IMAGE


@pytest.fixture
async def model() -> AsyncIterator[str]:
    """The URL of a runtime's model on this machine."""
    runtime = str(ROOT / "bench" / "instant_runtime.py")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, runtime, "1500000", stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    yield (await process.stdout.readline()).decode().strip()
    process.kill()
    await process.wait()


@pytest.fixture
def container(store: Store, image: str, model: str, tmp_path: Path) -> Iterator[tuple[list[str], str]]:
    """A running container as podman arguments, and its URL."""
    images = tmp_path / "images"
    images.mkdir()
    shutil.chown(images, UID, UID)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    locked = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", str(MEMORY)]
    limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--memory-swap", str(MEMORY)]
    given = {"LISTEN_PORT": str(port), "KSERVE_ENDPOINT": model, "STORAGE_PATH": "/var/lib/mcp-images"}
    environment = [part for name, value in given.items() for part in ("--env", f"{name}={value}")]
    volume = ["--volume", f"{images}:/var/lib/mcp-images"]
    started = run(*store.podman, "run", "-d", "--network", "host", *locked, *limits, *environment, *volume, image)
    name = started.stdout.strip()
    yield [*store.podman, "exec", name], f"http://127.0.0.1:{port}"
    run(*store.podman, "rm", "--force", "--time", "0", name)


async def until_ready(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                async with session.get(f"{url}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def test_a_locked_up_container_generates_serves_and_stops(
    store: Store, container: tuple[list[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    inside, url = container
    async with aiohttp.ClientSession() as session:
        await until_ready(session, url)
        async with Client(f"{url}/mcp") as client:
            results = [await client.call_tool("generate_image", {"prompt": "a cat"}) for _ in range(8)]
        for result in results:
            assert not result.is_error, result.content
            stored = result.structured_content["images"][0]
            async with session.get(stored["url"]) as response:
                assert (response.status, len(await response.read())) == (200, stored["size_bytes"])
    assert run(*inside, "mcp-image-sidecar", "healthcheck").returncode == 0
    assert run(*inside, "id", "-u").stdout.strip() == str(UID)
    assert "Read-only" in run(*inside, "touch", "/opt/sidecar/x", check=False).stderr
    status = run(*inside, "cat", "/proc/1/status").stdout
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    with capsys.disabled():
        sys.stdout.write(f"\npeak memory under a limit of 128 MiB: {peak * 1024 / 1e6:.0f} MB\n")
    name = inside[-1]
    memory = json.loads(run(*store.podman, "container", "inspect", name).stdout)[0]["HostConfig"]["Memory"]
    assert memory == MEMORY
    run(*store.podman, "stop", "--time", "20", name)
    state = json.loads(run(*store.podman, "container", "inspect", name).stdout)[0]["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)


def test_the_image_adds_little_to_its_base(store: Store, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    added = store.inspect(image)["Size"] - store.inspect(BASE)["Size"]
    with capsys.disabled():
        sys.stdout.write(f"\nabove the base image: {added / 1e6:.1f} MB\n")
    assert added < LARGEST


def test_the_image_says_what_it_is_and_how_to_ask_for_its_health(store: Store, image: str) -> None:
    found = store.inspect(image)
    assert found["User"] == f"{UID}:{UID}"
    assert found["Healthcheck"]["Test"] == ["CMD", "mcp-image-sidecar", "healthcheck"]
    assert found["Config"]["Entrypoint"] == ["mcp-image-sidecar"]
    assert found["Config"]["Labels"]["org.opencontainers.image.version"] == "1.2.3"
    assert found["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_there_is_nothing_to_install_or_compile_with(store: Store, image: str) -> None:
    """Looked at from outside, since a run copies the whole image."""
    name = run(*store.buildah, "from", "--pull=never", image).stdout.strip()
    root = Path(run(*store.buildah, "mount", name).stdout.strip())
    folders = ("bin", "usr/bin", "usr/local/bin", "opt/sidecar/bin")
    programs = {path.name for folder in folders for path in (root / folder).iterdir()}
    assert {"python3.13", "mcp-image-sidecar"} <= programs
    assert {found for found in programs if re.match(r"pip|uv$|cc$|gcc|c\+\+|make$|ld$", found)} == set()
    assert list(root.glob("**/site-packages/pip*")) + list(root.glob("usr/local/lib/python3.13/ensurepip")) == []
    run(*store.buildah, "rm", name)


def test_every_locked_package_has_a_wheel_for_arm64(tmp_path: Path) -> None:
    platforms = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
    target = [part for platform in platforms for part in ("--platform", platform)]
    wheels = (
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--no-deps",
        "-r",
        "requirements-container.lock",
        "-d",
        tmp_path,
    )
    run(sys.executable, "-m", "pip", "download", "--quiet", "--python-version", "3.13", *target, *wheels)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".whl"] == []
