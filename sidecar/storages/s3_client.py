"""The client that a bucket is asked with."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import ClientError
from botocore.handlers import add_expect_header

from sidecar.config import S3Settings
from sidecar.ports import Clock, Observer
from sidecar.storages.s3_bucket import DEADLINE_SECONDS, Bucket
from sidecar.storages.s3_signing import choose_signer


@asynccontextmanager
async def opened_bucket(
    settings: S3Settings, clock: Clock, observer: Observer, *, deadline: float = DEADLINE_SECONDS
) -> AsyncIterator[Bucket]:
    """The bucket between start and stop, with one client for all of that time; `deadline` in seconds."""
    session = aioboto3.Session(
        region_name=os.environ.get("AWS_REGION") or None
    )  # botocore reads AWS_DEFAULT_REGION only
    config = AioConfig(
        s3={"addressing_style": settings.addressing_style},
        retries={"mode": "standard", "max_attempts": 4},
        max_pool_connections=settings.pool_size,
        connect_timeout=5,
        read_timeout=deadline,
        request_checksum_calculation="when_required",  # not every store knows the newer trailing checksums
        response_checksum_validation="when_required",
    )
    region = session.region_name or "us-east-1"
    async with session.client("s3", region_name=region, endpoint_url=settings.endpoint_url, config=config) as client:
        events = client.meta.events
        events.unregister("before-call.s3", add_expect_header)  # a server that never says 100 holds a PUT for ever
        events.register("before-call.s3.DeleteObjects", _add_md5)
        events.register("before-call.s3.HeadBucket", _refuse)
        events.register("choose-signer.s3.PutObject", choose_signer)
        yield Bucket(client, session, settings, clock=clock, observer=observer, deadline=deadline)


def _refuse(**_: Any) -> None:
    """Only botocore asks this, to find the region after a redirect that does not name one: asked by a store that
    redirects everything, it asks again and again until the stack ends. A redirect that names the region is followed."""
    raise ClientError({"ResponseMetadata": {"HTTPHeaders": {}}}, "HeadBucket")


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Older stores want it with every batch of deletions."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()
