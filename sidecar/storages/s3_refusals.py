"""What a store's refusal means to an operator: the code it gave, and what to set.

Sources: the error codes of Amazon S3, Ceph, MinIO and Alibaba OSS as their documentation has them, and issue 14.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError

from sidecar.errors import bounded

_RIGHTS = "the credentials lack a right on this bucket or its prefix; docs/s3.md lists the rights that are needed"
_STALE = "the credentials have expired or were revoked; renew them or the role's session"
_CLOCK = "this machine's clock differs too much from the store's; set the node's clock (NTP)"
_STYLE = "the bucket must stand in the host name; set S3_ADDRESSING_STYLE=virtual"
_PORT = "look at the port in S3_ENDPOINT_URL, which is that of the store's web console"

_ADVICE: Mapping[str, str] = {
    "AccessDenied": _RIGHTS,
    "AllAccessDisabled": _RIGHTS,
    "InvalidAccessKeyId": "look at AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "look at AWS_SECRET_ACCESS_KEY, and for a proxy on the way that changes requests",
    "ExpiredToken": _STALE,
    "InvalidToken": _STALE,
    "TokenRefreshRequired": _STALE,
    "InvalidClientTokenId": _STALE,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "RequestInTheFuture": _CLOCK,
    "SecondLevelDomainForbidden": _STYLE,
    "PathStyleDomainForbidden": _STYLE,
}
FULL = frozenset({"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "InsufficientStorage"})
_WRONG_REGION = frozenset(
    {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_REDIRECTS = frozenset({301, 302, 307, 308})
_EXPECTED_REGION = re.compile(r"expecting '([\w-]{1,40})'|/([\w-]{1,40})/s3/aws4_request", re.ASCII)
"""As Amazon S3 says it, and as Garage does, which names the scope it was given and then the one it expects."""


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_nameless(error: ClientError) -> bool:
    """Whether the answer has no error of S3, all of which have names. An answer to HEAD has no body to name one in."""
    code = code_of(error)
    return not code or code.isdigit()


def advice(error: ClientError, bucket: str, endpoint: str) -> str | None:
    """What an operator is told, None for a refusal that is not one of configuration."""
    code, status = code_of(error), status_of(error)
    if code in _WRONG_REGION or status in _REDIRECTS:
        return _wrong_place(error, bucket, endpoint)
    if "API port" in _message(error):
        return f"The image store at {endpoint} refuses the request ({status} {_shown(code)}): {_PORT}."
    if code in _ADVICE or (status == 403 and not is_nameless(error)):
        says = f" It says: {bounded(_message(error), 200)}" if _message(error) else ""
        return (
            f"The image store at {endpoint} refuses this use of bucket {bucket!r} ({status} {_shown(code)}): "
            f"{_ADVICE.get(code, 'the code says why')}.{says}"
        )
    if status == 403 and error.operation_name.startswith("Head"):
        return f"The image store at {endpoint} refuses this use of bucket {bucket!r} (403): {_RIGHTS}."
    return None


def _wrong_place(error: ClientError, bucket: str, endpoint: str) -> str:
    """The bucket is of another region. An answer to HEAD does not say so, but its status does."""
    named = error.response.get("Error", {})
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    code = str(status_of(error)) if is_nameless(error) else f"{status_of(error)} {_shown(code_of(error))}"
    region = headers.get("x-amz-bucket-region") or named.get("Region") or _expected_region(_message(error))
    setting = f"set AWS_REGION to {bounded(str(region), 60)!r}" if region else "set AWS_REGION to the bucket's region"
    where = named.get("Endpoint")
    other = f", or S3_ENDPOINT_URL to that of {bounded(str(where), 120)}" if where else ""
    return f"Bucket {bucket!r} at {endpoint} belongs to another region than was asked ({code}): {setting}{other}."


def _expected_region(message: str) -> str | None:
    found = _EXPECTED_REGION.findall(message)
    return next(filter(None, found[-1])) if found else None


def _message(error: ClientError) -> str:
    said: Any = error.response.get("Error", {}).get("Message")
    return said if isinstance(said, str) else ""


def _shown(code: str) -> str:
    return bounded(code, 60)
