"""The image, built once, and a runtime for it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import sysconfig
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.container.containers import ROOT, Store, run
from tests.real_parts import require

PARTS = ("buildah", "podman", "runc", "mmdebstrap", "conmon")
IMAGE = "localhost/mcp-image-sidecar:test"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    missing = [part for part in PARTS if shutil.which(part) is None]
    require(not missing, f"{', '.join(missing)} not installed")
    require(os.geteuid() == 0, "a base image is made by root only")
    require(sys.version_info[:2] == (3, 13), "the base image is made of the Python that runs this, which must be 3.13")
    folder = tmp_path_factory.mktemp("images")
    yield Store(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
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
