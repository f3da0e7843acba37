"""The environment into settings, every wrong value told at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sidecar.config import parsers
from sidecar.config.models_file import model_name, read_models_file
from sidecar.config.parsers import has_credentials, shown_path, without_credentials
from sidecar.config.settings import (
    LOOPBACK_HOSTS,
    JobSettings,
    ListenSettings,
    LogSettings,
    ModelSettings,
    S3Settings,
    Secret,
    Settings,
    StorageSettings,
    is_loopback,
)
from sidecar.config.variables import VARIABLES, Variable
from sidecar.errors import BadConfiguration, bounded


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One line of the reference: a variable and what it is set to here."""

    variable: Variable
    effective: str
    changed: bool
    """Whether it is set, and to something else than the default."""


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Parse every variable. Raises BadConfiguration with a line for each wrong one, all at once."""
    problems: list[str] = []
    values = {variable.name: _read(variable, environment, problems) for variable in VARIABLES}
    models = _read_models(values, problems)
    s3 = _s3(values, problems) if values["STORAGE_BACKEND"] == "s3" else None
    if problems:
        raise BadConfiguration(problems)
    return Settings(
        listen=_listen(values, models),
        models=models,
        storage=StorageSettings(
            path=values["STORAGE_PATH"],
            image_ttl=values["IMAGE_TTL"],
            max_bytes=values["STORAGE_MAX_BYTES"],
            cleanup_interval=values["CLEANUP_INTERVAL"],
            max_image_bytes=values["MAX_IMAGE_BYTES"],
            cache_max_age=values["IMAGE_CACHE_MAX_AGE"],
            s3=s3,
        ),
        jobs=JobSettings(
            response_budget=values["RESPONSE_BUDGET"],
            ttl=values["JOB_TTL"],
            lease_interval=values["JOB_LEASE_INTERVAL"],
        ),
        result_mode=values["RESULT_MODE"],
        resource_link=values["RESULT_RESOURCE_LINK"] == "on",
        log=LogSettings(level=values["LOG_LEVEL"], format=values["LOG_FORMAT"]),
    )


def setting_rows(environment: Mapping[str, str]) -> list[SettingRow]:
    """The reference table for this environment, secrets masked. Wrong values are shown too."""
    return [
        SettingRow(variable, _effective(variable, environment), _changed(variable, environment))
        for variable in VARIABLES
    ]


def _changed(variable: Variable, environment: Mapping[str, str]) -> bool:
    if variable.secret and environment.get(f"{variable.name}_FILE"):
        return True
    given = environment.get(variable.name)
    return bool(given) and given != variable.default


def _effective(variable: Variable, environment: Mapping[str, str]) -> str:
    given = environment.get(variable.name) or None
    if variable.secret:
        file = environment.get(f"{variable.name}_FILE")
        return "***" if given else f"from {shown_path(file)}" if file else "–"
    return without_credentials(given or variable.default or "–")


def _read(variable: Variable, environment: Mapping[str, str], problems: list[str]) -> Any:
    if variable.secret:
        return _read_secret(variable, environment, problems)
    text = environment.get(variable.name) or variable.default
    if text is None:
        return None
    try:
        return variable.parse(text)
    except (ValueError, OSError):
        shown = bounded(without_credentials(text), 120)
        hint = f". {variable.credentials}" if has_credentials(text) else ""
        problems.append(f"{variable.name}: {shown!r} was given; allowed: {variable.allowed}{hint}")
        return None


def _read_secret(variable: Variable, environment: Mapping[str, str], problems: list[str]) -> Secret | None:
    text, file = environment.get(variable.name), environment.get(f"{variable.name}_FILE")
    if text and file:
        problems.append(f"{variable.name}: given twice; allowed: {variable.name} or {variable.name}_FILE, not both")
    if file:
        try:
            return Secret(file=parsers.existing_file(file))
        except ValueError:
            problems.append(
                f"{variable.name}_FILE: {bounded(shown_path(file), 120)!r} was given; "
                "allowed: the path of an existing file"
            )
            return None
    return Secret(text=text) if text else None


def _listen(values: Mapping[str, Any], models: tuple[ModelSettings, ...]) -> ListenSettings:
    public: str | None = values["PUBLIC_BASE_URL"]
    public_hosts = (_host(public),) if public else ()
    public_origins = (f"{urlsplit(public).scheme}://{_host(public)}",) if public else ()
    grace = values["SHUTDOWN_GRACE"]
    return ListenSettings(
        hosts=values["LISTEN_HOST"] or (),
        port=values["LISTEN_PORT"],
        metrics_port=values["METRICS_LISTEN_PORT"],
        public_base_url=public,
        allowed_hosts=(*LOOPBACK_HOSTS, *public_hosts, *(values["ALLOWED_HOSTS"] or ())),
        allowed_origins=(*public_origins, *(values["ALLOWED_ORIGINS"] or ())),
        shutdown_grace=max(model.timeout for model in models) + 10 if grace is None else grace,
        gallery=values["GALLERY"] == "on" or (values["GALLERY"] == "auto" and is_loopback(values["LISTEN_HOST"] or ())),
    )


def _s3(values: Mapping[str, Any], problems: list[str]) -> S3Settings | None:
    if values["S3_BUCKET"] is None:
        if not any(problem.startswith("S3_BUCKET:") for problem in problems):
            problems.append("S3_BUCKET: nothing was given; allowed with STORAGE_BACKEND=s3: the name of a bucket")
        return None
    endpoint, style = values["S3_ENDPOINT_URL"], values["S3_ADDRESSING_STYLE"]
    if style == "auto":
        style = "path" if endpoint or "." in values["S3_BUCKET"] else "virtual"
    return S3Settings(
        bucket=values["S3_BUCKET"],
        prefix=values["S3_PREFIX"],
        endpoint_url=endpoint,
        public_endpoint_url=values["S3_PUBLIC_ENDPOINT_URL"],
        addressing_style=style,
        pool_size=values["S3_POOL_SIZE"],
        url_ttl=values["S3_URL_TTL"],
        delivery=values["IMAGE_DELIVERY"],
        spool=values["SPOOL_PATH"] or values["STORAGE_PATH"] / "spool",
    )


def _host(url: str) -> str:
    """What clients put into Host: a scheme's own port is left out."""
    parts = urlsplit(url)
    return parts.netloc.lower().removesuffix({"http": ":80", "https": ":443"}[parts.scheme])


def _read_models(values: Mapping[str, Any], problems: list[str]) -> tuple[ModelSettings, ...]:
    defaults: dict[str, Any] = {
        "profile": values["RUNTIME_PROFILE"],
        "concurrency": values["RUNTIME_CONCURRENCY"],
        "queue_limit": values["QUEUE_LIMIT"],
        "timeout": values["RUNTIME_TIMEOUT"],
        "default_size": values["DEFAULT_IMAGE_SIZE"],
        "token": values["KSERVE_TOKEN"],
        "ca_file": values["KSERVE_CA_FILE"],
    }
    if values["MODELS_FILE"] is not None:
        return read_models_file(values["MODELS_FILE"], defaults, problems)
    endpoint = values["KSERVE_ENDPOINT"]
    if endpoint is None:  # already among the problems
        return ()
    return (ModelSettings(name=model_name(endpoint), endpoint=endpoint, **defaults),)
