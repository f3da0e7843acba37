"""Credentials by the standard AWS ways, a private store's authority, and buckets with host names of their own.

Each time a store really writes and reads on Ceph, with what it was given.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from sidecar.domain import StoredImage
from sidecar.errors import StorageFailure
from sidecar.ports import Link
from sidecar.storages.s3 import S3Storage
from tests import ceph
from tests.aws import ROLE, SESSION, InstanceMetadata, Proxy, Sts, behind_tls, serving
from tests.odd_store import store_of
from tests.storage_contract import PNG, HeldClock, bytes_of, put

pytestmark = pytest.mark.real


@pytest.fixture
def no_keys(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The same store, and an environment without credentials for it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    return s3


async def written_and_read(store: S3Storage) -> StoredImage:
    stored = await put(store, HeldClock().now())
    assert stored.held is False
    assert await bytes_of(store, stored) == PNG
    return stored


async def linked(store: S3Storage, stored: StoredImage) -> Link:
    link = await store.link(stored)
    assert link is not None
    return link


async def fetched(url: str, **how: Any) -> bytes:
    async with aiohttp.ClientSession() as session, session.get(URL(url, encoded=True), **how) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def test_the_credentials_of_a_profile(
    no_keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    keys = f"aws_access_key_id = {ceph.ACCESS_KEY}\naws_secret_access_key = {ceph.SECRET_KEY}\n"
    file.write_text(f"[default]\naws_access_key_id = stranger\naws_secret_access_key = no\n[painter]\n{keys}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    async with store_of(no_keys, tmp_path / "stranger") as store:
        assert (await put(store, HeldClock().now())).held
    monkeypatch.setenv("AWS_PROFILE", "painter")
    async with store_of(no_keys, tmp_path / "painter") as store:
        assert (await written_and_read(store)).held is False


async def test_the_credentials_of_the_instance_s_role(
    no_keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aiohttp_server: Any
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    endpoint = await serving(aiohttp_server, InstanceMetadata().handle)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint)
    async with store_of(no_keys, tmp_path) as store:
        link = await linked(store, await written_and_read(store))
    assert URL(link.url).query["X-Amz-Security-Token"] == SESSION


async def test_a_web_identity_is_shown_anew_at_each_refresh_and_no_url_outlives_what_it_brought(
    no_keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aiohttp_server: Any
) -> None:
    sts, token = Sts(life=timedelta(minutes=5)), tmp_path / "token"  # so short that each call refreshes it
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", await serving(aiohttp_server, sts.handle))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    token.write_text("the pod's first token")
    async with store_of({**no_keys, "S3_URL_TTL": "1d"}, tmp_path) as store:
        stored = await written_and_read(store)
        assert set(sts.tokens) == {"the pod's first token"}
        token.write_text("the pod's next token")
        assert await bytes_of(store, stored) == PNG
        assert sts.tokens[-1] == "the pod's next token"
        link = await linked(store, stored)
        left = link.expires - datetime.now(UTC)
        assert timedelta(minutes=4) < left <= timedelta(minutes=5)
        assert await fetched(link.url) == PNG


@pytest.mark.parametrize(
    ("there", "words"),
    [(False, "look at AWS_WEB_IDENTITY_TOKEN_FILE"), (True, r"role AWS_ROLE_ARN is refused .* \(AccessDenied\)")],
)
async def test_a_web_identity_that_brings_nothing_says_why(
    there: bool,
    words: str,
    no_keys: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    aiohttp_server: Any,
) -> None:
    token = tmp_path / "token"
    if there:
        token.write_text("a stranger's token")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", await serving(aiohttp_server, Sts(refuses=True).handle))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    async with store_of(no_keys, tmp_path) as store:
        with pytest.raises(StorageFailure, match=words):
            await store.check()


async def test_a_private_authority_vouches_for_the_store(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with behind_tls(s3["S3_ENDPOINT_URL"], tmp_path) as (url, authority):
        settings = {**s3, "S3_ENDPOINT_URL": url}
        async with store_of(settings, tmp_path / "distrustful") as store:
            with pytest.raises(StorageFailure) as told:
                await store.check()
            assert "is not trusted: look at AWS_CA_BUNDLE" in told.value.detail
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        async with store_of(settings, tmp_path / "trustful") as store:
            await written_and_read(store)


async def test_a_bucket_has_a_host_name_of_its_own(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aiohttp_server: Any
) -> None:
    proxy = Proxy(s3["S3_ENDPOINT_URL"])
    proxy_url = await serving(aiohttp_server, proxy.handle)
    monkeypatch.setenv("http_proxy", proxy_url)
    settings = {**s3, "S3_ENDPOINT_URL": f"http://{ceph.DOMAIN}", "S3_ADDRESSING_STYLE": "virtual"}
    async with store_of(settings, tmp_path) as store:
        stored = await written_and_read(store)
        link = await linked(store, stored)
        assert store.link_origin == f"http://{ceph.BUCKET}.{ceph.DOMAIN}"
    assert link.url.startswith(f"{store.link_origin}/{s3['S3_PREFIX']}/images/")
    assert await fetched(link.url, proxy=proxy_url) == PNG
    assert proxy.hosts == {f"{ceph.BUCKET}.{ceph.DOMAIN}"}
    async with store_of(s3, tmp_path / "by-path") as store:
        assert (await store.get(stored.record.image_id)).record == stored.record
