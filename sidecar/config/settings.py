"""The settings as frozen groups."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ResultMode = Literal["link", "thumbnail", "full"]
Profile = Literal["diffusers", "diffusers-seed"]
LogFormat = Literal["auto", "json", "console"]
AddressingStyle = Literal["path", "virtual"]
ImageDelivery = Literal["redirect", "proxy"]
LogLevel = Literal["debug", "info", "warning", "error"]

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def own_address(host: str) -> str:
    """Where a process on this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - recognised, not bound


def is_loopback(hosts: Iterable[str]) -> bool:
    """Whether a server that listens on all of `hosts` is reached from this machine alone."""
    return all(_is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret given directly or by a file, which is read again at each use so that it may rotate."""

    text: str | None = None
    file: Path | None = None

    def __repr__(self) -> str:
        return f"Secret(file={self.file})" if self.file else "Secret(***)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """One model at one runtime. `timeout` in seconds, `default_size` in pixels."""

    name: str
    endpoint: str
    profile: Profile = "diffusers"
    concurrency: int = 1
    queue_limit: int = 16
    timeout: float = 300.0
    default_size: tuple[int, int] = (512, 512)
    extra_parameters: Mapping[str, Any] = field(default_factory=dict)
    token: Secret | None = None
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenSettings:
    """`hosts` are names or addresses; the server tells its own URL by the first one."""

    hosts: tuple[str, ...]
    port: int
    metrics_port: int | None
    public_base_url: str | None
    allowed_hosts: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    shutdown_grace: float
    gallery: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """A bucket. `prefix` is empty or ends with a slash; `url_ttl` in seconds; `endpoint_url` None is AWS.

    `spool` is the local directory of what is under way to the bucket, or waits for it.
    """

    bucket: str
    prefix: str
    endpoint_url: str | None
    public_endpoint_url: str | None
    addressing_style: AddressingStyle
    pool_size: int
    url_ttl: float
    delivery: ImageDelivery
    spool: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """Times in seconds (`image_ttl` None keeps images for ever), sizes in bytes (`max_bytes` None is unbounded).

    `s3` None is the file store.
    """

    path: Path
    image_ttl: float | None
    max_bytes: int | None
    cleanup_interval: float
    max_image_bytes: int
    cache_max_age: float
    s3: S3Settings | None = None

    @property
    def backend(self) -> str:
        return "file" if self.s3 is None else "s3"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """Times in seconds."""

    response_budget: float
    ttl: float
    lease_interval: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    level: LogLevel
    format: LogFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the sidecar was told. The first model is the default one."""

    listen: ListenSettings
    models: tuple[ModelSettings, ...]
    storage: StorageSettings
    jobs: JobSettings
    result_mode: ResultMode
    resource_link: bool
    log: LogSettings
