"""Variables that libraries in the sidecar read themselves: botocore the credentials, OpenTelemetry where traces go."""

from __future__ import annotations

_AWS = (
    "ACCESS_KEY_ID",
    "SECRET_ACCESS_KEY",
    "SESSION_TOKEN",
    "REGION",
    "DEFAULT_REGION",
    "CA_BUNDLE",
    "ROLE_ARN",
    "ROLE_SESSION_NAME",
    "WEB_IDENTITY_TOKEN_FILE",
    "STS_REGIONAL_ENDPOINTS",
    "PROFILE",
    "CONFIG_FILE",
    "SHARED_CREDENTIALS_FILE",
    "EC2_METADATA_DISABLED",
    "CONTAINER_CREDENTIALS_FULL_URI",
    "CONTAINER_CREDENTIALS_RELATIVE_URI",
    "CONTAINER_AUTHORIZATION_TOKEN",
    "CONTAINER_AUTHORIZATION_TOKEN_FILE",
)
_OTEL = (
    "SDK_DISABLED",
    "TRACES_EXPORTER",
    "SERVICE_NAME",
    "RESOURCE_ATTRIBUTES",
    "TRACES_SAMPLER",
    "TRACES_SAMPLER_ARG",
    "BSP_SCHEDULE_DELAY",
    "BSP_EXPORT_TIMEOUT",
    "BSP_MAX_QUEUE_SIZE",
    "BSP_MAX_EXPORT_BATCH_SIZE",
)
_OTLP = (
    "ENDPOINT",
    "PROTOCOL",
    "HEADERS",
    "TIMEOUT",
    "COMPRESSION",
    "CERTIFICATE",
    "CLIENT_CERTIFICATE",
    "CLIENT_KEY",
)
FOREIGN_VARIABLES = frozenset(
    [f"AWS_{name}" for name in _AWS]
    + [f"OTEL_{name}" for name in _OTEL]
    + [f"OTEL_EXPORTER_OTLP_{signal}{name}" for name in _OTLP for signal in ("", "TRACES_")]
)
