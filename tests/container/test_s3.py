"""The container as the overlay `s3` runs it: a real bucket, credentials by a role, traces to a collector."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from mcp.client import Client

from tests import ceph
from tests.container.containers import IMAGES, Container, Store, locked_up
from tests.test_tracing import Receiver

pytestmark = pytest.mark.container

MEMORY = 192 * 2**20
ROLE, TOKEN = "arn:aws:iam::123456789012:role/painter", "signed by the cluster"
TOKEN_FILE = "/var/run/secrets/eks.amazonaws.com/serviceaccount/token"
AT_ONCE, ROUNDS = 8, 3


class SecurityTokenService:
    """Gives the bucket's key to who shows the token of the ServiceAccount, as AWS does to a pod with a role."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.app = web.Application()
        self.app.router.add_post("/", self._assume)

    async def _assume(self, request: web.Request) -> web.Response:
        self.asked.append({name: str(value) for name, value in (await request.post()).items()})
        expires = datetime.now(UTC) + timedelta(hours=1)
        credentials = (
            f"<AccessKeyId>{ceph.ACCESS_KEY}</AccessKeyId><SecretAccessKey>{ceph.SECRET_KEY}</SecretAccessKey>"
            f"<SessionToken></SessionToken><Expiration>{expires:%Y-%m-%dT%H:%M:%SZ}</Expiration>"
        )
        namespace = "https://sts.amazonaws.com/doc/2011-06-15/"
        return web.Response(
            text=f'<AssumeRoleWithWebIdentityResponse xmlns="{namespace}"><AssumeRoleWithWebIdentityResult>'
            f"<Credentials>{credentials}</Credentials>"
            "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
            content_type="text/xml",
        )


async def generated(container: Container) -> list[dict[str, Any]]:
    """Images of several callers at once, several times."""
    async with Client(f"{container.url}/mcp") as client:
        results = []
        for _ in range(ROUNDS):
            calls = (client.call_tool("generate_image", {"prompt": "a cat"}) for _ in range(AT_ONCE))
            results += await asyncio.gather(*calls)
    assert [result.content for result in results if result.is_error] == []
    return [result.structured_content["images"][0] for result in results]


async def test_a_locked_up_container_with_a_role_fills_a_bucket_and_traces_it(
    store: Store,
    image: str,
    model: str,
    gateway: ceph.Ceph,
    aiohttp_server: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    roles, receiver = SecurityTokenService(), Receiver()
    token = tmp_path / "token"
    token.write_text(TOKEN)
    given = {
        "KSERVE_ENDPOINT": model,
        "RUNTIME_CONCURRENCY": str(AT_ONCE),
        "STORAGE_BACKEND": "s3",
        "S3_BUCKET": ceph.BUCKET,
        "S3_PREFIX": "container/",
        "S3_ENDPOINT_URL": gateway.url,
        "S3_ADDRESSING_STYLE": "path",
        "SPOOL_PATH": f"{IMAGES}/spool",
        "STORAGE_MAX_BYTES": "4GiB",
        "AWS_REGION": "eu-central-1",
        "AWS_ROLE_ARN": ROLE,
        "AWS_WEB_IDENTITY_TOKEN_FILE": TOKEN_FILE,
        "AWS_ENDPOINT_URL_STS": f"http://127.0.0.1:{(await aiohttp_server(roles.app)).port}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{(await aiohttp_server(receiver.app)).port}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    mounts = f"{token}:{TOKEN_FILE}:ro"
    with locked_up(store, image, tmp_path / "images", MEMORY, given, mounts) as container:
        async with aiohttp.ClientSession() as session:
            await container.until_ready(session)
            images = await generated(container)
            for stored in images:
                async with session.get(stored["url"], allow_redirects=False) as answer:
                    assert answer.headers["Location"].startswith(f"{gateway.url}/{ceph.BUCKET}/container/")
                async with session.get(stored["url"]) as answer:
                    assert (answer.status, len(await answer.read())) == (200, stored["size_bytes"])
        spans = await receiver.until("queue", "runtime", "store")
        peak = container.peak()
        with capsys.disabled():
            sys.stdout.write(f"\npeak memory with S3 and traces, {AT_ONCE} at once: {peak / 1e6:.0f} MB\n")
        state = await asyncio.to_thread(container.stop)
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert {*spans} == {"queue", "runtime", "store"}
    assert {asked["Action"] for asked in roles.asked} == {"AssumeRoleWithWebIdentity"}
    assert {(asked["RoleArn"], asked["WebIdentityToken"]) for asked in roles.asked} == {(ROLE, TOKEN)}
    sizes = sorted(stored["size_bytes"] for stored in images)
    kept = ceph.client(gateway.url).list_objects_v2(Bucket=ceph.BUCKET, Prefix="container/")["Contents"]
    assert sorted(found["Size"] for found in kept if found["Size"] in sizes) == sizes
