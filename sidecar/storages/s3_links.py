"""Presigned URLs that stay the same for a while, so that browsers and caches know them again.

A URL is signed as of the beginning of its window, half a life long, and not as of now: all pods with the same
credentials give the same one. It is Signature Version 4 in the query, for GET of one object.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlsplit

from sidecar.ports import Link

LONGEST = 7 * 86400.0
"""Seconds; no store accepts a longer life."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Credentials as they are now. `expires` is when they stop to hold, None for never."""

    access_key: str
    secret_key: str
    token: str | None
    expires: datetime | None


def base_url(endpoint: str, bucket: str, addressing_style: str) -> str:
    """What clients' URLs begin with; keys are below it."""
    if addressing_style == "path":
        return f"{endpoint}/{bucket}"
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{bucket}.{parts.netloc}{parts.path}"


def link(base_url: str, key: str, signer: Signer, *, region: str, life: float, now: datetime, until: datetime) -> Link:
    """A GET of `key` below `base_url`, for `life` seconds from its window on and never past `until`."""
    life = min(life, LONGEST)
    window = max(1.0, life / 2)
    begun = datetime.fromtimestamp(now.timestamp() // window * window, UTC).replace(microsecond=0)
    ends = min(begun + timedelta(seconds=life), until, *([] if signer.expires is None else [signer.expires]))
    seconds = int((ends - begun).total_seconds())
    return Link(_signed(f"{base_url}/{key}", signer, region, begun, seconds), begun + timedelta(seconds=seconds))


def _signed(url: str, signer: Signer, region: str, moment: datetime, seconds: int) -> str:
    parts = urlsplit(url)
    day, second = f"{moment:%Y%m%d}", f"{moment:%Y%m%dT%H%M%SZ}"
    scope = f"{day}/{region}/s3/aws4_request"
    query = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{signer.access_key}/{scope}",
        "X-Amz-Date": second,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "host",
        **({"X-Amz-Security-Token": signer.token} if signer.token else {}),
    }
    path = quote(parts.path, safe="/-_.~")
    asked = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
    host = parts.netloc.removesuffix({"http": ":80", "https": ":443"}[parts.scheme])
    canonical = f"GET\n{path}\n{asked}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    to_sign = f"AWS4-HMAC-SHA256\n{second}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    secret = f"AWS4{signer.secret_key}".encode()
    for step in (day, region, "s3", "aws4_request"):
        secret = hmac.digest(secret, step.encode(), "sha256")
    signature = hmac.new(secret, to_sign.encode(), "sha256").hexdigest()
    return f"{parts.scheme}://{host}{path}?{asked}&X-Amz-Signature={signature}"
