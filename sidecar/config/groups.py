"""The settings in groups, as people look for them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from sidecar.config.variables import VARIABLES

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Listening": (
        "LISTEN_HOST",
        "LISTEN_PORT",
        "METRICS_LISTEN_PORT",
        "PUBLIC_BASE_URL",
        "ALLOWED_HOSTS",
        "ALLOWED_ORIGINS",
        "GALLERY",
        "AUTH_MODE",
        "SHUTDOWN_GRACE",
    ),
    "Models": (
        "KSERVE_ENDPOINT",
        "KSERVE_TOKEN",
        "KSERVE_CA_FILE",
        "MODELS_FILE",
        "RUNTIME_PROFILE",
        "RUNTIME_CONCURRENCY",
        "RUNTIME_TIMEOUT",
        "QUEUE_LIMIT",
        "DEFAULT_IMAGE_SIZE",
    ),
    "Storage": (
        "STORAGE_BACKEND",
        "STORAGE_PATH",
        "STORAGE_MAX_BYTES",
        "MAX_IMAGE_BYTES",
        "IMAGE_TTL",
        "IMAGE_CACHE_MAX_AGE",
        "CLEANUP_INTERVAL",
    ),
    "Bucket": (
        "S3_BUCKET",
        "S3_PREFIX",
        "S3_ENDPOINT_URL",
        "S3_PUBLIC_ENDPOINT_URL",
        "S3_ADDRESSING_STYLE",
        "S3_POOL_SIZE",
        "S3_URL_TTL",
        "IMAGE_DELIVERY",
        "SPOOL_PATH",
    ),
    "Generations and results": (
        "RESPONSE_BUDGET",
        "JOB_TTL",
        "JOB_LEASE_INTERVAL",
        "RESULT_MODE",
        "RESULT_RESOURCE_LINK",
    ),
    "Logs": ("LOG_LEVEL", "LOG_FORMAT"),
}

_SIMILARITY = 0.87  # one or two letters of a name as long as ours


def misspelt(names: Iterable[str]) -> dict[str, str]:
    """Environment variables that are none of ours but look like one, with the one they look like."""
    known = {variable.name for variable in VARIABLES}
    known |= {f"{variable.name}_FILE" for variable in VARIABLES if variable.secret}
    found = {}
    for name in sorted(set(names) - known):
        if alike := difflib.get_close_matches(name.upper(), known, n=1, cutoff=_SIMILARITY):
            found[name] = alike[0]
    return found
