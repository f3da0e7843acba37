"""Uploads are signed by the digest that is known already, so that no file is hashed again, on the event loop.

Signature Version 4 covers the payload's SHA-256, and the store holds what arrives against it: a file that is no longer
what its record says is refused.
"""

from __future__ import annotations

from typing import Any

from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth

_SIGNER = "s3v4-known-digest"
_DIGEST = "x-amz-meta-sha256"


class KnownDigestAuth(S3SigV4Auth):  # type: ignore[misc]
    """Believes the digest that an object carries as its metadata; all other payloads are hashed as ever."""

    def payload(self, request: Any) -> str:
        return request.headers.get(_DIGEST) or str(super().payload(request))


AUTH_TYPE_MAPS[_SIGNER] = KnownDigestAuth


def choose_signer(signature_version: str, **_: Any) -> str | None:
    """For botocore's event `choose-signer.s3.PutObject`; None leaves the choice to others."""
    return _SIGNER if signature_version in ("v4", "s3v4") else None
