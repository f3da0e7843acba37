"""What a store refuses is told to operators by its code and with what to set, and to callers in general words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from sidecar.config import read_settings
from sidecar.errors import StorageFailure, StoreAway
from sidecar.ports import SystemClock
from sidecar.storages.s3_client import opened_bucket
from tests.s3_dialects import refusal

pytestmark = pytest.mark.real

MALFORMED = "<Message>The region 'us-east-1' is wrong; expecting 'eu-central-1'</Message>"
SCOPES = "<Message>scope: 20260101/us-east-1/s3/aws4_request, expected: 20260101/garage/s3/aws4_request</Message>"
NO_API = "<Message>S3 API Requests must be made to API port.</Message>"
ELSEWHERE = "<Endpoint>pictures.s3.eu-central-1.example.org</Endpoint>"
PAGE = "<!doctype html><p>Forbidden<br>"


@pytest.fixture
def answered(aiohttp_server: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """How a PUT fails where the store answers this to everything."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-no-value")
    monkeypatch.delenv("AWS_REGION", raising=False)

    async def ask(answer: Callable[[], web.Response]) -> StorageFailure:
        async def handle(request: web.Request) -> web.Response:
            await request.read()
            return answer()

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        url = f"http://127.0.0.1:{(await aiohttp_server(app)).port}"
        settings = read_settings({"STORAGE_BACKEND": "s3", "S3_BUCKET": "pictures", "S3_ENDPOINT_URL": url}).storage.s3
        assert settings is not None
        async with opened_bucket(settings, SystemClock(), lambda event: None) as bucket:
            with pytest.raises(StorageFailure) as told:
                await bucket.put("commit", "key", b"{}")
        return told.value

    return ask


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda: refusal(403, "AccessDenied", "<Message>no s3:PutObject</Message>"),
            ["lack a right", "no s3:PutObject"],
        ),
        (lambda: refusal(403, "SignatureDoesNotMatch"), ["AWS_SECRET_ACCESS_KEY"]),
        (lambda: refusal(403, "InvalidAccessKeyId"), ["AWS_ACCESS_KEY_ID"]),
        (lambda: refusal(400, "ExpiredToken"), ["expired"]),
        (lambda: refusal(403, "RequestTimeTooSkewed"), ["clock (NTP)"]),
        (lambda: refusal(403, "SecondLevelDomainForbidden"), ["S3_ADDRESSING_STYLE=virtual"]),
        (lambda: refusal(403, "AccountProblem", "<Message>Pay first.</Message>"), ["Pay first."]),
        (lambda: refusal(403, "AccessDenied", NO_API), ["the port in S3_ENDPOINT_URL"]),
        (lambda: refusal(301, "PermanentRedirect"), ["301", "AWS_REGION"]),
        (lambda: refusal(301, "PermanentRedirect", ELSEWHERE), ["AWS_REGION", "pictures.s3.eu-central-1.example.org"]),
        (lambda: refusal(307, "TemporaryRedirect", ELSEWHERE), ["307", "pictures.s3.eu-central-1.example.org"]),
        (lambda: refusal(400, "AuthorizationHeaderMalformed", MALFORMED), ["AWS_REGION to 'eu-central-1'"]),
        (lambda: refusal(400, "AuthorizationHeaderMalformed", SCOPES), ["AWS_REGION to 'garage'"]),
        (lambda: refusal(400, "IllegalLocationConstraintException"), ["AWS_REGION"]),
        (lambda: refusal(501, "NotImplemented"), ["501 NotImplemented"]),
    ],
)
async def test_a_refusal_names_its_code_and_what_to_set(
    answer: Callable[[], web.Response], words: list[str], answered: Callable[..., Any]
) -> None:
    failure = await answered(answer)
    assert [word for word in words if word not in failure.detail] == []
    assert not isinstance(failure, StoreAway)
    for kept_from_callers in ("pictures", "127.0.0.1", "example.org"):
        assert kept_from_callers not in failure.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: web.Response(status=403, text=PAGE, content_type="text/html"), "not an S3 store (403)"),
        (lambda: web.Response(status=400, text="An HTTP request to an HTTPS server.\n"), "scheme, host and port"),
    ],
)
async def test_what_is_no_store_is_told_from_a_refusal(
    answer: Callable[[], web.Response], words: str, answered: Callable[..., Any]
) -> None:
    failure = await answered(answer)
    assert words in failure.detail
    assert "S3_ENDPOINT_URL" in failure.detail


@pytest.mark.parametrize(("status", "code"), [(403, "QuotaExceeded"), (507, "XMinioStorageFull")])
async def test_a_full_store_is_one_that_images_are_held_for(
    status: int, code: str, answered: Callable[..., Any]
) -> None:
    failure = await answered(lambda: refusal(status, code))
    assert isinstance(failure, StoreAway)
    assert f"{status} {code}" in failure.detail
    assert "quota" in failure.detail
    assert failure.message == "The image store has no room left."


async def test_what_a_store_says_is_bounded_and_cleaned(answered: Callable[..., Any]) -> None:
    failure = await answered(lambda: refusal(403, "AccessDenied", f"<Message>\u202e{'x' * 5000}</Message>"))
    assert len(failure.detail) < 600
    assert "\u202e" not in failure.detail
