"""What a bucket's errors mean, in words for the operator who has to fix them."""

from __future__ import annotations

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from sidecar.errors import ImageDamaged, StorageFailure, StoreAway, bounded
from sidecar.storages.s3_refusals import FULL, advice, code_of, is_nameless, status_of

RETRY_SECONDS = 30.0
ABSENT = frozenset({"NoSuchKey", "404"})
OUT_OF_RANGE = frozenset({"InvalidRange", "416"})
_ROLES = frozenset({"AssumeRole", "AssumeRoleWithWebIdentity"})
_CHANGED = frozenset({"XAmzContentSHA256Mismatch", "BadDigest"})
_BUSY = frozenset({"SlowDown", "ServiceUnavailable", "503", "Throttling", "RequestLimitExceeded"})
_GATEWAY = frozenset({502, 503, 504})  # not 500, which botocore makes of a 200 that is no XML
_CUT_OFF = (ResponseStreamingError, aiohttp.ClientPayloadError)
_BROKEN = (EndpointConnectionError, ConnectionClosedError, HTTPClientError, aiohttp.ClientError, OSError)


class NotS3(Exception):
    """What answers does not speak S3."""


TROUBLES = (BotoCoreError, ClientError, ResponseParserError, NotS3, aiohttp.ClientError, OSError)
"""What `failure_of` knows the meaning of. A TimeoutError is an OSError."""


class Damaged(StorageFailure):
    """An object is not what was stored under its key, or too large for it."""

    reason = ImageDamaged.reason

    def __init__(self, key: str, why: str) -> None:
        super().__init__("What the image store has of this is damaged.", detail=why)
        self.key = key


class Unreached(StoreAway):
    """The store cannot be reached; what is asked of it soon would wait in vain."""


class Silent(Unreached):
    """No answer came in time: from a store that is away, or to more than was sent at once."""


def failure_of(error: Exception, *, bucket: str, endpoint: str) -> StorageFailure:
    """What a caller is told and, as the detail, what an operator is; `endpoint` is the store's address."""
    if isinstance(error, ClientError) and error.operation_name in _ROLES:
        return _failure(f"The role AWS_ROLE_ARN is refused to this pod's identity ({bounded(code_of(error), 60)}).")
    if isinstance(error, ClientError):
        return _answered(error, bucket, endpoint)
    if isinstance(error, NotS3 | ResponseParserError):
        return _misconfigured(f"What answers at {endpoint} is not an S3 store: look at S3_ENDPOINT_URL.")
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        return _failure("There are no credentials for the image store: the standard AWS ways have none to give.")
    if isinstance(error, FileNotFoundError | PermissionError):  # the only file that is opened while the store is asked
        return _failure("The web identity's token cannot be read: look at AWS_WEB_IDENTITY_TOKEN_FILE.")
    return _unanswered(error, endpoint)


def _unanswered(error: Exception, endpoint: str) -> StorageFailure:
    if isinstance(error, TimeoutError | ConnectTimeoutError | ReadTimeoutError):
        return _away(Silent, "The image store does not answer.", f"The image store at {endpoint} does not answer.")
    if isinstance(error, SSLError):
        return _misconfigured(f"The image store at {endpoint} is not trusted: look at AWS_CA_BUNDLE.")
    if isinstance(error, _CUT_OFF):  # it had begun to answer; a download that its reader slowed down ends like that
        return _away(StoreAway, "The image store broke off in the middle of an answer.")
    if isinstance(error, _BROKEN):
        detail = f"The image store cannot be reached at {endpoint}."
        return _away(Unreached, "The image store cannot be reached.", detail)
    if isinstance(error, BotoCoreError):
        return _failure(f"The image store cannot be used ({bounded(type(error).__name__, 60)}).")
    raise error


def _answered(error: ClientError, bucket: str, endpoint: str) -> StorageFailure:
    code, status = code_of(error), status_of(error)
    if code == "NoSuchBucket":
        return _misconfigured(f"There is no bucket {bucket!r} at {endpoint}: create it, or look at S3_BUCKET.")
    if code in FULL:
        full = (
            f"The image store at {endpoint} has no room left for bucket {bucket!r} ({status} {code}): raise its quota "
            "or shorten IMAGE_TTL."
        )
        return _away(StoreAway, "The image store has no room left.", full)
    if (detail := advice(error, bucket, endpoint)) is not None:
        return _misconfigured(detail)
    if code in _CHANGED:
        return _failure("The image store refuses a file that is not what its digest says: it has changed on the way.")
    if code in _BUSY:
        return _away(StoreAway, "The image store asks for patience: it is answering too many others.")
    if status in _GATEWAY or (status >= 500 and status != 501 and not is_nameless(error)):
        words = f"The image store at {endpoint} is out of order ({status} {bounded(code, 60)})."
        return _away(StoreAway, "The image store is out of order.", words)
    if is_nameless(error):
        return _misconfigured(
            f"What answers at {endpoint} is not an S3 store ({status}): look at the scheme, host and port of "
            "S3_ENDPOINT_URL."
        )
    return _failure(f"The image store cannot do it ({status} {bounded(code, 60)}).")


def _failure(message: str, detail: str | None = None) -> StorageFailure:
    return StorageFailure(message, retry_after=RETRY_SECONDS, detail=detail)


def _misconfigured(detail: str) -> StorageFailure:
    return _failure("The image store cannot be used as it is set up; this server's log and /readyz say why.", detail)


def _away(kind: type[StoreAway], message: str, detail: str | None = None) -> StoreAway:
    return kind(message, retry_after=RETRY_SECONDS, detail=detail)
