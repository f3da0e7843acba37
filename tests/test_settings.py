"""The environment becomes settings, or one line for everything that is wrong with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import VARIABLES, S3Settings, Secret, parsers, read_settings
from sidecar.errors import BadConfiguration
from tests.conftest import StartSidecar

WRONG = {
    "LISTEN_PORT": "70000",
    "METRICS_LISTEN_PORT": "tcp://10.0.0.1:9090",
    "KSERVE_ENDPOINT": "localhost:8080/v1/models/painter",
    "KSERVE_CA_FILE": "/nowhere/ca.pem",
    "MODELS_FILE": "/nowhere/models.yaml",
    "RUNTIME_PROFILE": "magic",
    "DEFAULT_IMAGE_SIZE": "1024",
    "RUNTIME_TIMEOUT": "0",
    "RUNTIME_CONCURRENCY": "0",
    "QUEUE_LIMIT": "-1",
    "SHUTDOWN_GRACE": "soon",
    "STORAGE_BACKEND": "tape",
    "STORAGE_PATH": "images",
    "STORAGE_MAX_BYTES": "5GB",
    "S3_BUCKET": "s3://images",
    "S3_PREFIX": "../images",
    "S3_ENDPOINT_URL": "rgw:7480",
    "S3_PUBLIC_ENDPOINT_URL": "images.example.org",
    "S3_ADDRESSING_STYLE": "host",
    "S3_POOL_SIZE": "0",
    "S3_URL_TTL": "0",
    "IMAGE_DELIVERY": "post",
    "SPOOL_PATH": "spool",
    "IMAGE_TTL": "1 day",
    "CLEANUP_INTERVAL": "0s",
    "MAX_IMAGE_BYTES": "0",
    "IMAGE_CACHE_MAX_AGE": "-5m",
    "PUBLIC_BASE_URL": "images.example.org",
    "ALLOWED_HOSTS": "http://example.org",
    "LISTEN_HOST": "127.0.0.1,,::1",
    "RESULT_RESOURCE_LINK": "yes",
    "ALLOWED_ORIGINS": "example.org",
    "RESULT_MODE": "picture",
    "RESPONSE_BUDGET": "0",
    "JOB_TTL": "a week",
    "JOB_LEASE_INTERVAL": "0s",
    "GALLERY": "yes",
    "AUTH_MODE": "password",
    "LOG_LEVEL": "chatty",
    "LOG_FORMAT": "xml",
}


def problems(environment: dict[str, str]) -> list[str]:
    with pytest.raises(BadConfiguration) as caught:
        read_settings(environment)
    return caught.value.problems


def test_without_an_environment_the_defaults_of_the_contract_hold() -> None:
    settings = read_settings({})
    (model,) = settings.models
    assert (settings.listen.hosts, settings.listen.port, settings.listen.shutdown_grace) == (("127.0.0.1",), 8000, 310)
    assert (model.name, model.endpoint) == ("stable-diffusion", "http://localhost:8080/v1/models/stable-diffusion")
    assert (model.profile, model.timeout, model.concurrency, model.queue_limit) == ("diffusers", 300, 1, 16)
    assert settings.storage.path == Path("/tmp/mcp-images")
    assert (settings.storage.image_ttl, settings.storage.cleanup_interval) == (86400, 300)
    assert (settings.storage.max_bytes, settings.storage.max_image_bytes) == (None, 64 * 2**20)
    assert (settings.result_mode, settings.log.level, settings.log.format) == ("thumbnail", "info", "auto")


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert read_settings(dict.fromkeys((variable.name for variable in VARIABLES), "")) == read_settings({})


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str) -> None:
    allowed = next(variable.allowed for variable in VARIABLES if variable.name == name)
    assert problems({name: WRONG[name]}) == [f"{name}: {WRONG[name]!r} was given; allowed: {allowed}"]


def test_every_setting_that_can_be_wrong_is_tried_above() -> None:
    anything_goes = {"KSERVE_TOKEN"}
    assert set(WRONG) | anything_goes == {variable.name for variable in VARIABLES}


def test_a_bucket_is_described_whole() -> None:
    given = {
        "STORAGE_BACKEND": "s3",
        "S3_BUCKET": "pictures",
        "S3_PREFIX": "/team//cats",
        "S3_ENDPOINT_URL": "http://rgw:7480/",
        "S3_URL_TTL": "15m",
        "IMAGE_DELIVERY": "proxy",
        "STORAGE_PATH": "/data",
    }
    assert read_settings(given).storage.s3 == S3Settings(
        bucket="pictures",
        prefix="team/cats/",
        endpoint_url="http://rgw:7480",
        public_endpoint_url=None,
        addressing_style="path",
        pool_size=32,
        url_ttl=900,
        delivery="proxy",
        spool=Path("/data/spool"),
    )


@pytest.mark.parametrize(
    ("settings", "style"),
    [
        ({}, "virtual"),
        ({"S3_BUCKET": "a.dotted.name"}, "path"),
        ({"S3_ENDPOINT_URL": "http://rgw:7480"}, "path"),
        ({"S3_ENDPOINT_URL": "http://rgw:7480", "S3_ADDRESSING_STYLE": "virtual"}, "virtual"),
    ],
)
def test_the_bucket_stands_where_the_store_is_likely_to_look_for_it(settings: dict[str, str], style: str) -> None:
    s3 = read_settings({"STORAGE_BACKEND": "s3", "S3_BUCKET": "pictures", **settings}).storage.s3
    assert s3 is not None
    assert s3.addressing_style == style


def test_a_store_without_its_bucket_is_refused() -> None:
    assert problems({"STORAGE_BACKEND": "s3"}) == [
        "S3_BUCKET: nothing was given; allowed with STORAGE_BACKEND=s3: the name of a bucket"
    ]


def test_all_wrong_values_are_told_at_once() -> None:
    assert [line.split(":")[0] for line in problems(WRONG)] == [v.name for v in VARIABLES if v.name in WRONG]


def test_serve_refuses_to_start_with_a_line_for_each_wrong_value_and_no_traceback() -> None:
    environment = {**os.environ, "LISTEN_PORT": "http", "IMAGE_TTL": "long"}
    command = [sys.executable, "-m", "sidecar", "serve"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    port, ttl = done.stderr.splitlines()
    assert port == "mcp-image-sidecar: LISTEN_PORT: 'http' was given; allowed: 0 to 65535 (0: any free port)"
    assert ttl.startswith("mcp-image-sidecar: IMAGE_TTL: 'long' was given; allowed: seconds, or a number with")


def test_a_taken_port_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = {**os.environ, "LISTEN_PORT": str(port), "STORAGE_PATH": str(tmp_path), "LOG_LEVEL": "error"}
        command = [sys.executable, "-m", "sidecar", "serve"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mcp-image-sidecar: LISTEN_PORT: cannot listen on 127.0.0.1:{port}")


async def test_who_cannot_have_the_port_disturbs_neither_the_store_nor_the_runtime(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BadConfiguration, match="LISTEN_PORT"):
        await start_sidecar(LISTEN_PORT=str(taken.getsockname()[1]))
    assert list(tmp_path.iterdir()) == []


async def test_a_name_with_several_addresses_is_listened_on_at_one_port(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(LISTEN_HOST="localhost")
    port = sidecar.url.rsplit(":", 1)[1]
    found = {str(address[0]) for *_, address in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)}
    urls = [f"http://[{host}]:{port}/livez" if ":" in host else f"http://{host}:{port}/livez" for host in found]
    assert [(await sidecar.get(url))[0].status for url in urls] == [200] * len(urls)


async def test_several_addresses_are_listened_on_at_one_port_each_once(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(LISTEN_HOST="127.0.0.2, [::1], localhost,127.0.0.2", METRICS_LISTEN_PORT="0")
    assert sidecar.url.startswith("http://127.0.0.2:")
    for url in (sidecar.url, sidecar.metrics_url or ""):
        port = url.rsplit(":", 1)[1]
        for host in ("127.0.0.2", "127.0.0.1", "[::1]"):
            assert (await sidecar.get(f"http://{host}:{port}/livez"))[0].status == 200


async def test_all_addresses_of_both_families_are_listened_on(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(LISTEN_HOST="0.0.0.0,::")
    port = sidecar.url.rsplit(":", 1)[1]
    for host in ("127.0.0.1", "[::1]"):
        assert (await sidecar.get(f"http://{host}:{port}/livez"))[0].status == 200


@pytest.mark.parametrize("hosts", ["127.0.0.1,192.0.2.7", "192.0.2.7,127.0.0.1", "127.0.0.1,no such host"])
async def test_an_address_among_several_that_is_not_this_machines_is_named(
    hosts: str, start_sidecar: StartSidecar
) -> None:
    with pytest.raises(BadConfiguration, match=r"^LISTEN_HOST: '(192\.0\.2\.7|no such host)' was given"):
        await start_sidecar(LISTEN_HOST=hosts)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("24h", 86400), ("7d", 604800), ("1.5s", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parsers.duration(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("64KiB", 65536), ("32MiB", 2**25), ("2GiB", 2**31)])
def test_sizes(text: str, size: int) -> None:
    assert parsers.size(text) == size


@given(st.text(max_size=40) | st.sampled_from(["²", "٣s", "1e9", "[", "http://[", "a:b:c", "\0", "9" * 400]))
def test_no_text_crashes_a_parser(text: str) -> None:
    for variable in VARIABLES:
        try:
            value = variable.parse(text)
        except (ValueError, OSError):
            continue
        assert variable.parse(text) == value


def test_zero_keeps_images_for_ever() -> None:
    assert read_settings({"IMAGE_TTL": "0"}).storage.image_ttl is None


def test_the_hosts_answered_to_are_loopback_the_public_one_and_those_allowed() -> None:
    listen = read_settings({"PUBLIC_BASE_URL": "https://Img.example.org/a/", "ALLOWED_HOSTS": "svc:*, pod:8000"}).listen
    assert listen.public_base_url == "https://Img.example.org/a"
    assert listen.allowed_hosts == ("127.0.0.1", "localhost", "[::1]", "img.example.org", "svc", "pod:8000")
    assert listen.allowed_origins == ("https://img.example.org",)


def test_a_secret_comes_from_a_file_or_directly_but_not_both(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("x")
    assert read_settings({"KSERVE_TOKEN_FILE": str(file)}).models[0].token == Secret(file=file)
    assert read_settings({"KSERVE_TOKEN": "x"}).models[0].token == Secret(text="x")
    assert problems({"KSERVE_TOKEN": "x", "KSERVE_TOKEN_FILE": str(file)}) == [
        "KSERVE_TOKEN: given twice; allowed: KSERVE_TOKEN or KSERVE_TOKEN_FILE, not both"
    ]
    assert problems({"KSERVE_TOKEN_FILE": "/nowhere"}) == [
        "KSERVE_TOKEN_FILE: '/nowhere' was given; allowed: the path of an existing file"
    ]


def test_no_secret_shows_in_a_representation() -> None:
    assert "hush" not in repr(read_settings({"KSERVE_TOKEN": "hush"}))


def models_file(tmp_path: Path, text: str) -> dict[str, str]:
    file = tmp_path / "models.yaml"
    file.write_text(text)
    return {"MODELS_FILE": str(file)}


def test_a_models_file_replaces_the_endpoint_and_inherits_the_rest(tmp_path: Path) -> None:
    given = models_file(
        tmp_path,
        "models:\n- endpoint: http://a/v1/models/x\n- {endpoint: http://b/v1/models/x, name: y, timeout: 2m, "
        "concurrency: 2, queue_limit: 0, default_size: 1024x512, profile: diffusers-seed}\n",
    )
    first, second = read_settings({**given, "RUNTIME_TIMEOUT": "9s"}).models
    assert (first.name, first.timeout, first.profile) == ("x", 9, "diffusers")
    assert (second.name, second.timeout, second.profile) == ("y", 120, "diffusers-seed")
    assert (second.concurrency, second.queue_limit, second.default_size) == (2, 0, (1024, 512))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models: []", "allowed: YAML with a list `models` of at least one model"),
        ("- a\n- b", "allowed: YAML with a list `models`"),
        ("models: [", "allowed: YAML with a list `models`"),
        ("models: !!python/object/apply:os.system [ls]", "allowed: YAML with a list `models`"),
        ("models: [{name: x}]", "model 1: has no endpoint"),
        (
            "models: [{endpoint: 'http://a/v1/models/x', colour: red}]",
            "model 1: unknown key 'colour'; allowed: endpoint",
        ),
        ("models: [{endpoint: 'http://a/x'}]", "model 1: endpoint: 'http://a/x' was given; allowed: http(s)://HOST"),
        ("models: [{endpoint: 'http://a/v1/models/x', timeout: never}]", "timeout: 'never' was given"),
        ("models: [{endpoint: 'http://a/v1/models/x', concurrency: true}]", "concurrency: 'True' was given"),
        (
            "models: [{endpoint: 'http://a/v1/models/x'}, {endpoint: 'http://b/v1/models/x'}]",
            "two models are called 'x'",
        ),
    ],
)
def test_a_wrong_models_file_is_told_with_what_is_allowed(text: str, told: str, tmp_path: Path) -> None:
    (line,) = problems(models_file(tmp_path, text))
    assert line.startswith("MODELS_FILE: ")
    assert told in line
