"""Every environment variable: the only list of settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sidecar.config import parsers


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One setting. `parse` raises ValueError; `allowed` completes the sentence "allowed: …".

    `credentials` says where a user and a password belong that were given in a URL.
    """

    name: str
    default: str | None
    parse: Callable[[str], Any]
    allowed: str
    unit: str
    meaning: str
    secret: bool = False
    credentials: str = "A URL here has no user and no password."


VARIABLES: tuple[Variable, ...] = (
    Variable(
        name="LISTEN_HOST",
        default="127.0.0.1",
        parse=parsers.listen_hosts,
        allowed="comma-separated host names or addresses",
        unit="list",
        meaning="Where it listens. Loopback by default; a container sets `0.0.0.0,::`, all IPv4 and IPv6 addresses, so "
        "that the pod's Service reaches it. Where a node has only one of the two, the other is left out.",
    ),
    Variable(
        name="LISTEN_PORT",
        default="8000",
        parse=parsers.whole_number(0, 65535),
        allowed="0 to 65535 (0: any free port)",
        unit="port",
        meaning="The port for MCP, images and health.",
    ),
    Variable(
        name="METRICS_LISTEN_PORT",
        default=None,
        parse=parsers.whole_number(0, 65535),
        allowed="0 to 65535",
        unit="port",
        meaning="Serve /metrics and /metrics/runtime on a port of their own instead of LISTEN_PORT. The probes and "
        "/drained are served there too: it has 64 connections of its own, so clients cannot fill it. "
        "Unset: on LISTEN_PORT.",
    ),
    Variable(
        name="KSERVE_ENDPOINT",
        default="http://localhost:8080/v1/models/stable-diffusion",
        parse=parsers.model_url,
        allowed=parsers.MODEL_URL_ALLOWED,
        unit="URL",
        credentials="No user and no password in it: a token goes into KSERVE_TOKEN or KSERVE_TOKEN_FILE.",
        meaning="The model's URL as KServe serves it; `:predict` is added.",
    ),
    Variable(
        name="KSERVE_TOKEN",
        default=None,
        parse=parsers.any_text,
        allowed="a bearer token",
        unit="text",
        secret=True,
        meaning="Bearer token for a runtime elsewhere. Prefer KSERVE_TOKEN_FILE: a file is read at each call, "
        "so the token may rotate.",
    ),
    Variable(
        name="KSERVE_CA_FILE",
        default=None,
        parse=parsers.ca_file,
        allowed="the path of an existing PEM file",
        unit="path",
        meaning="Certificate authorities to trust for an https KSERVE_ENDPOINT. Unset: the system's.",
    ),
    Variable(
        name="MODELS_FILE",
        default=None,
        parse=parsers.existing_file,
        allowed="the path of an existing YAML file",
        unit="path",
        meaning="Several models in one YAML file (docs/reference.md shows its form). Set, it replaces "
        "KSERVE_ENDPOINT; the other variables are its models' defaults.",
    ),
    Variable(
        name="RUNTIME_PROFILE",
        default="diffusers",
        parse=parsers.one_of("diffusers", "diffusers-seed"),
        allowed="diffusers, diffusers-seed",
        unit="name",
        meaning="Which parameters the runtime takes. diffusers: pipeline keywords only, no seed. "
        "diffusers-seed: a `seed` key too, which makes images repeatable.",
    ),
    Variable(
        name="DEFAULT_IMAGE_SIZE",
        default="512x512",
        parse=parsers.pixel_size,
        allowed="WIDTHxHEIGHT in pixels, each 64 to 2048 in multiples of 8",
        unit="pixels",
        meaning="What the model paints when no size is sent. An aspect ratio keeps this area; "
        "1024x1024 for SDXL and its kin.",
    ),
    Variable(
        name="RUNTIME_TIMEOUT",
        default="300s",
        parse=parsers.positive_duration,
        allowed=parsers.DURATION_ALLOWED + ", more than 0",
        unit="seconds",
        meaning="How long a caller waits for the runtime. The runtime's slot stays taken until it really answers, "
        "and a late image is stored all the same.",
    ),
    Variable(
        name="RUNTIME_CONCURRENCY",
        default="1",
        parse=parsers.whole_number(1, 64),
        allowed="1 to 64",
        unit="predicts",
        meaning="Predicts in flight at the runtime of one model. One GPU: 1.",
    ),
    Variable(
        name="QUEUE_LIMIT",
        default="16",
        parse=parsers.whole_number(0, 10000),
        allowed="0 to 10000",
        unit="generations",
        meaning="Generations waiting per model before new ones are refused.",
    ),
    Variable(
        name="RESPONSE_BUDGET",
        default="40s",
        parse=parsers.positive_duration,
        allowed=parsers.DURATION_ALLOWED + ", more than 0",
        unit="seconds",
        meaning="How long a tool call waits before it answers with a job handle. Several hosts end calls after 45 s.",
    ),
    Variable(
        name="JOB_TTL",
        default="7d",
        parse=parsers.positive_duration,
        allowed=parsers.DURATION_ALLOWED + ", more than 0",
        unit="seconds",
        meaning="Life of a generation's record and of its idempotency key.",
    ),
    Variable(
        name="JOB_LEASE_INTERVAL",
        default="15s",
        parse=parsers.positive_duration,
        allowed=parsers.DURATION_ALLOWED + ", more than 0",
        unit="seconds",
        meaning="How often a pod shows that it works on its generations. After three silent intervals another pod "
        "takes over what was not begun and records as interrupted what was. The same in all pods of a store.",
    ),
    Variable(
        name="SHUTDOWN_GRACE",
        default=None,
        parse=parsers.duration,
        allowed=parsers.DURATION_ALLOWED,
        unit="seconds",
        meaning="How long generations in flight may finish after SIGTERM. Unset: the longest time-out of a model "
        "(RUNTIME_TIMEOUT, or its own in MODELS_FILE) + 10 s. terminationGracePeriodSeconds must be longer.",
    ),
    Variable(
        name="STORAGE_BACKEND",
        default="file",
        parse=parsers.one_of("file", "s3"),
        allowed="file, s3",
        unit="name",
        meaning="Where images live: `file` is a directory (emptyDir or PVC), `s3` a bucket that many pods share "
        "(docs/s3.md).",
    ),
    Variable(
        name="STORAGE_PATH",
        default="/tmp/mcp-images",  # noqa: S108 - made for the sidecar's container, where /tmp is its own
        parse=parsers.absolute_directory,
        allowed="an absolute path",
        unit="path",
        meaning="Directory of the file store (emptyDir or PVC mount).",
    ),
    Variable(
        name="STORAGE_MAX_BYTES",
        default=None,
        parse=parsers.size,
        allowed=parsers.SIZE_ALLOWED,
        unit="bytes",
        meaning="Bound of the file store; room is reserved before the runtime is called. Unset: the volume's own. "
        "An emptyDir's sizeLimit must be larger. With s3 it bounds SPOOL_PATH; unset: what waits there and half of "
        "what is free on its volume at the start.",
    ),
    Variable(
        name="S3_BUCKET",
        default=None,
        parse=parsers.bucket,
        allowed="the name of a bucket",
        unit="name",
        meaning="The bucket of STORAGE_BACKEND=s3, which must exist. Credentials and region come the standard AWS way: "
        "environment, files, web identity (IRSA), instance role.",
    ),
    Variable(
        name="S3_PREFIX",
        default="",
        parse=parsers.key_prefix,
        allowed="A-Z a-z 0-9 . _ - and / between them",
        unit="text",
        meaning="What all keys begin with, so that a bucket can be shared with others. Unset: nothing.",
    ),
    Variable(
        name="S3_ENDPOINT_URL",
        default=None,
        parse=parsers.base_url,
        allowed="http(s)://HOST[:PORT][/PATH]",
        unit="URL",
        credentials="No user and no password in it: credentials come the standard AWS way, such as "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        meaning="Where the store is, for MinIO, Ceph and others. Unset: AWS.",
    ),
    Variable(
        name="S3_PUBLIC_ENDPOINT_URL",
        default=None,
        parse=parsers.base_url,
        allowed="http(s)://HOST[:PORT][/PATH]",
        unit="URL",
        meaning="Where clients reach the same store, when that is another name than the pod's. Unset: S3_ENDPOINT_URL.",
    ),
    Variable(
        name="S3_ADDRESSING_STYLE",
        default="auto",
        parse=parsers.one_of("auto", "path", "virtual"),
        allowed="auto, path, virtual",
        unit="name",
        meaning="Whether the bucket stands in the path or in the host name. auto: in the path of an S3_ENDPOINT_URL "
        "and for a bucket with a dot in its name, else in the host name.",
    ),
    Variable(
        name="S3_POOL_SIZE",
        default="32",
        parse=parsers.whole_number(1, 1000),
        allowed="1 to 1000",
        unit="connections",
        meaning="Connections to the store at most. With IMAGE_DELIVERY=proxy downloads take three quarters of them at "
        "most, each only while it fetches.",
    ),
    Variable(
        name="S3_URL_TTL",
        default="1h",
        parse=parsers.positive_duration,
        allowed=parsers.DURATION_ALLOWED + ", more than 0",
        unit="seconds",
        meaning="Life of a presigned URL; never past the image's end, that of the credentials that sign it, or 7 days.",
    ),
    Variable(
        name="IMAGE_DELIVERY",
        default="redirect",
        parse=parsers.one_of("redirect", "proxy"),
        allowed="redirect, proxy",
        unit="name",
        meaning="With s3: lead a GET on to a presigned URL of the store, or send the bytes through the sidecar, "
        "for clients that do not reach the store.",
    ),
    Variable(
        name="SPOOL_PATH",
        default=None,
        parse=parsers.absolute_directory,
        allowed="an absolute path",
        unit="path",
        meaning="With s3: directory where images are staged, and where they wait while the store is away. One of its "
        "own for each pod, and it should outlive the container (emptyDir). Unset: `spool` under STORAGE_PATH.",
    ),
    Variable(
        name="IMAGE_TTL",
        default="24h",
        parse=parsers.duration_or_never,
        allowed=parsers.DURATION_ALLOWED + "; 0 keeps for ever",
        unit="seconds",
        meaning="Life of an image; 0 keeps it for ever. An image keeps the life it was made with.",
    ),
    Variable(
        name="CLEANUP_INTERVAL",
        default="5m",
        parse=parsers.positive_duration,
        allowed=parsers.DURATION_ALLOWED + ", more than 0",
        unit="seconds",
        meaning="Time between clean-up passes.",
    ),
    Variable(
        name="MAX_IMAGE_BYTES",
        default="64MiB",
        parse=parsers.size,
        allowed=parsers.SIZE_ALLOWED,
        unit="bytes",
        meaning="Largest image accepted from a runtime.",
    ),
    Variable(
        name="IMAGE_CACHE_MAX_AGE",
        default="5m",
        parse=parsers.duration,
        allowed=parsers.DURATION_ALLOWED,
        unit="seconds",
        meaning="How long a browser may keep an image without asking again; never longer than the image lives.",
    ),
    Variable(
        name="PUBLIC_BASE_URL",
        default=None,
        parse=parsers.base_url,
        allowed="http(s)://HOST[:PORT][/PATH]",
        unit="URL",
        meaning="What image URLs start with (Service, ingress, CDN). Set, shared caches may keep images for "
        "IMAGE_CACHE_MAX_AGE. Unset: the Host of the MCP request.",
    ),
    Variable(
        name="ALLOWED_HOSTS",
        default=None,
        parse=parsers.host_list,
        allowed="comma-separated host names, each with any port or as name:port; * allows all",
        unit="list",
        meaning="Host headers answered besides loopback and PUBLIC_BASE_URL's (DNS-rebinding protection of everything "
        "but probes, metrics and images). `name` matches with any port.",
    ),
    Variable(
        name="ALLOWED_ORIGINS",
        default=None,
        parse=parsers.origin_list,
        allowed="comma-separated origins SCHEME://HOST[:PORT], such as https://chat.example.org or tauri://localhost",
        unit="list",
        meaning="Origins of browser pages, besides this server's own, that may call /mcp and read its answers (CORS), "
        "and may use other methods than reading ones. Unset: none.",
    ),
    Variable(
        name="RESULT_MODE",
        default="thumbnail",
        parse=parsers.one_of("link", "thumbnail", "full"),
        allowed="link, thumbnail, full",
        unit="name",
        meaning="What a result carries besides text and link: nothing, a small WebP, or the whole image where it fits "
        "a message. A call's `result` argument overrides it.",
    ),
    Variable(
        name="RESULT_RESOURCE_LINK",
        default="off",
        parse=parsers.one_of("on", "off"),
        allowed="on, off",
        unit="name",
        meaning="Whether results also carry the link as a resource_link block, which several hosts fail on. "
        "`?resource_link=` on the MCP URL overrides it; clients of revisions before 2025-06-18 never get one.",
    ),
    Variable(
        name="GALLERY",
        default="auto",
        parse=parsers.one_of("auto", "on", "off"),
        allowed="auto, on, off",
        unit="name",
        meaning="Pages at / that show and delete images. auto: on when listening on loopback. They show every prompt "
        "to every client that reaches them, so behind a public proxy set off.",
    ),
    Variable(
        name="AUTH_MODE",
        default="none",
        parse=parsers.one_of("none"),
        allowed="none",
        unit="name",
        meaning="Who may call. This version has no authentication of its own: put it behind one.",
    ),
    Variable(
        name="LOG_LEVEL",
        default="info",
        parse=parsers.one_of("debug", "info", "warning", "error"),
        allowed="debug, info, warning, error",
        unit="name",
        meaning="What is logged. Prompts appear at debug only.",
    ),
    Variable(
        name="LOG_FORMAT",
        default="auto",
        parse=parsers.one_of("auto", "json", "console"),
        allowed="auto, json, console",
        unit="name",
        meaning="json for collectors, console for people. auto: console where the log goes to a terminal.",
    ),
)
