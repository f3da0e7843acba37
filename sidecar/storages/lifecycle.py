"""The bucket lifecycle rule: a backstop for when no sidecar is left to sweep."""

from __future__ import annotations

import math
from typing import Any

from sidecar.config import StorageSettings

_DAY = 86400
_SPARE_DAYS = 2  # a rule counts whole days from midnight; nothing may go before its time


def lifecycle_rules(settings: StorageSettings, prefix: str, job_ttl: float) -> dict[str, Any]:
    """In the shape that PutBucketLifecycleConfiguration takes.

    Made from the times of now, while what is stored keeps the life it was made with: where they were lowered, the rule
    fits only once everything older has expired.
    """
    days = {"jobs/": job_ttl, "deleting/": _DAY, "probe/": _DAY, "inventory/": 8 * _DAY}
    if settings.image_ttl is not None:
        days |= dict.fromkeys(("images/", "records/", "expiry/"), settings.image_ttl)
    rules = [_rule(prefix + part, math.ceil(seconds / _DAY) + _SPARE_DAYS) for part, seconds in sorted(days.items())]
    return {"Rules": rules}


def _rule(prefix: str, days: int) -> dict[str, Any]:
    return {
        "ID": f"mcp-image-sidecar {prefix}",
        "Status": "Enabled",
        "Filter": {"Prefix": prefix},
        "Expiration": {"Days": days},
    }
