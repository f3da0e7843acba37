"""Dockerfile.sidecar, built and run as a cluster runs it: read-only, no capabilities, little memory, not as root."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from mcp.client import Client

from tests.container.containers import UID, Container, Store, locked_up, run

pytestmark = pytest.mark.container

BASE = "docker.io/library/python:3.13-slim"
MEMORY = 128 * 2**20
LARGEST = 110_000_000
"""Bytes that the image may add to its base."""


@pytest.fixture
def container(store: Store, image: str, model: str, tmp_path: Path) -> Iterator[Container]:
    with locked_up(store, image, tmp_path / "images", MEMORY, {"KSERVE_ENDPOINT": model}) as started:
        yield started


async def test_a_locked_up_container_generates_serves_and_stops(
    container: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    async with aiohttp.ClientSession() as session:
        await container.until_ready(session)
        async with Client(f"{container.url}/mcp") as client:
            results = [await client.call_tool("generate_image", {"prompt": "a cat"}) for _ in range(8)]
        for result in results:
            assert not result.is_error, result.content
            stored = result.structured_content["images"][0]
            async with session.get(stored["url"]) as response:
                assert (response.status, len(await response.read())) == (200, stored["size_bytes"])
        async with session.get(f"{container.url.replace('127.0.0.1', '[::1]')}/livez") as response:
            assert response.status == 200  # the image listens on IPv4 and IPv6
    assert container.execute("mcp-image-sidecar", "healthcheck").returncode == 0
    assert container.execute("id", "-u").stdout.strip() == str(UID)
    assert "Read-only" in container.execute("touch", "/opt/sidecar/x", check=False).stderr
    status = container.process_status()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    with capsys.disabled():
        sys.stdout.write(f"\npeak memory under a limit of 128 MiB: {container.peak() / 1e6:.0f} MB\n")
    assert container.inspect()["HostConfig"]["Memory"] == MEMORY
    state = container.stop()
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


@pytest.fixture
def root(store: Store, image: str) -> Iterator[Path]:
    """The image's files, looked at from outside, since a run copies the whole image."""
    name = run(*store.buildah, "from", "--pull=never", image).stdout.strip()
    yield Path(run(*store.buildah, "mount", name).stdout.strip())
    run(*store.buildah, "rm", name)


def test_there_is_nothing_to_install_or_compile_with(root: Path) -> None:
    folders = ("bin", "usr/bin", "usr/local/bin", "opt/sidecar/bin")
    programs = {path.name for folder in folders for path in (root / folder).iterdir()}
    assert {"python3.13", "mcp-image-sidecar"} <= programs
    assert {found for found in programs if re.match(r"pip|uv$|cc$|gcc|c\+\+|make$|ld$", found)} == set()
    assert list(root.glob("**/site-packages/pip*")) + list(root.glob("usr/local/lib/python3.13/ensurepip")) == []


def test_of_aws_it_knows_the_bucket_and_who_gives_credentials(root: Path) -> None:
    data = root / "opt/sidecar/lib/python3.13/site-packages/botocore/data"
    assert {path.name for path in data.iterdir() if path.is_dir()} == {"s3", "sts", "sso", "sso-oidc"}


ARM64 = {
    "manylinux": ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
    "musllinux": ("musllinux_1_2_aarch64", "musllinux_1_1_aarch64"),
}


@pytest.mark.parametrize("libc", ARM64)
def test_every_locked_package_has_a_wheel_for_arm64(tmp_path: Path, libc: str) -> None:
    target = [part for platform in ARM64[libc] for part in ("--platform", platform)]
    wheels = ("--only-binary", ":all:", "--require-hashes", "--no-deps", "-r", "requirements-container.lock")
    download = ("-m", "pip", "download", "--quiet", "--python-version", "3.13", *target, *wheels)
    run(sys.executable, *download, "-d", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".whl"] == []
    assert any(libc in path.name for path in tmp_path.iterdir())
