"""Settings under hostile and careless hands: what test_settings.py's happy grammar does not reach."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import GROUPS, VARIABLES, Secret, parsers, read_settings, setting_rows
from sidecar.errors import BadConfiguration

CONTRACT_DEFAULTS = {
    "LISTEN_HOST": "127.0.0.1",
    "LISTEN_PORT": "8000",
    "KSERVE_ENDPOINT": "http://localhost:8080/v1/models/stable-diffusion",
    "MODELS_FILE": None,
    "RUNTIME_PROFILE": "diffusers",
    "RUNTIME_TIMEOUT": "300s",
    "RUNTIME_CONCURRENCY": "1",
    "QUEUE_LIMIT": "16",
    "SHUTDOWN_GRACE": None,
    "STORAGE_BACKEND": "file",
    "STORAGE_PATH": "/tmp/mcp-images",
    "IMAGE_TTL": "24h",
    "STORAGE_MAX_BYTES": None,
    "CLEANUP_INTERVAL": "5m",
    "MAX_IMAGE_BYTES": "64MiB",
    "PUBLIC_BASE_URL": None,
    "RESULT_MODE": "thumbnail",
    "ALLOWED_HOSTS": None,
    "ALLOWED_ORIGINS": None,
    "GALLERY": "auto",
    "AUTH_MODE": "none",
    "METRICS_LISTEN_PORT": None,
    "LOG_LEVEL": "info",
    "LOG_FORMAT": "auto",
}
DURATIONS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
SIZES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
MODEL = "endpoint: 'http://h/v1/models/x'"
NO_MODELS = "YAML with a list `models` of at least one model"


def problems(environment: dict[str, str]) -> list[str]:
    with pytest.raises(BadConfiguration) as caught:
        read_settings(environment)
    return caught.value.problems


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def models_file(tmp_path: Path, text: str) -> dict[str, str]:
    file = tmp_path / "models.yaml"
    file.write_text(text, encoding="utf-8")
    return {"MODELS_FILE": str(file)}


def test_every_variable_has_the_default_of_the_contract() -> None:
    defaults = {variable.name: variable.default for variable in VARIABLES}
    assert {name: defaults.get(name, "absent") for name in CONTRACT_DEFAULTS} == CONTRACT_DEFAULTS


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = read_settings({})
    with pytest.raises(FrozenInstanceError):
        settings.listen.port = 1  # type: ignore[misc]


@given(st.integers(0, 10**7), st.sampled_from(sorted(DURATIONS)))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    seconds = number * DURATIONS[unit]
    if seconds > 100 * 365 * 86400:
        with pytest.raises(ValueError, match=r"^$"):
            parsers.duration(f"{number}{unit}")
    else:
        assert parsers.duration(f"{number}{unit}") == seconds


@given(st.integers(1, 10**12), st.sampled_from(sorted(SIZES)))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    assert parsers.size(f"{number}{unit}") == number * SIZES[unit]


@pytest.mark.parametrize(
    "text", [" 5", "5 ", "5\n", "5 s", "-5", "+5", "5S", "5m30s", ".5", "5.", "1e3", "0x10", "1_0", "٣", "inf", "nan"]
)
@pytest.mark.parametrize("name", ["RUNTIME_TIMEOUT", "STORAGE_MAX_BYTES", "QUEUE_LIMIT", "LISTEN_PORT"])
def test_numbers_that_only_look_like_ones_are_refused(name: str, text: str) -> None:
    (line,) = problems({name: text})
    assert line.startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["LISTEN_PORT", "METRICS_LISTEN_PORT"])
def test_ports_reach_from_0_to_65535(name: str) -> None:
    for port in (0, 1, 65535):
        assert port in (
            read_settings({name: str(port)}).listen.port,
            read_settings({name: str(port)}).listen.metrics_port,
        )
    for text in ("-1", "65536", "99999999999999999999", "tcp://10.96.0.1:9090", "10.96.0.1:9090"):
        (line,) = problems({name: text})
        assert line.startswith(f"{name}: {text!r} was given; allowed: 0 to 65535")


@pytest.mark.parametrize("given", ["x" * 100_000, "line\nfeed\r\nand\x1b[2Jescape"])
def test_a_value_of_any_shape_is_told_in_one_bounded_line(given: str) -> None:
    for name in ("LISTEN_PORT", "RESULT_MODE", "MODELS_FILE", "KSERVE_TOKEN_FILE", "PUBLIC_BASE_URL"):
        (line,) = problems({name: given})
        assert len(line) < 500
        assert line.isprintable()


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    ["http://:hush@h{}", "http://@h{}", "http://h{}?", "http://h{}#", "http://h{}\n", " http://h{}", "http://h o{}",
     "http://h\t{}", "http://h/a b{}", "http://h/<i>{}", "http://h:0x50{}", "h{}", "file://h{}"],
)  # fmt: skip
@pytest.mark.parametrize(("name", "path"), [("PUBLIC_BASE_URL", ""), ("KSERVE_ENDPOINT", "/v1/models/x")])
def test_an_address_that_would_make_broken_links_or_requests_is_refused(name: str, path: str, wrong: str) -> None:
    """urlsplit overlooks much of this: it strips line ends and cannot tell an empty query or user from none."""
    (line,) = problems({name: wrong.format(path)})
    assert line.startswith(f"{name}: ")


@pytest.mark.parametrize("host", ["a" * 64, f"{'a' * 64}.example.org", "a..b", ".example.org"])
@pytest.mark.parametrize(("name", "path"), [("PUBLIC_BASE_URL", ""), ("KSERVE_ENDPOINT", "/v1/models/x")])
def test_a_host_that_no_name_server_can_be_asked_for_is_refused(name: str, path: str, host: str) -> None:
    (line,) = problems({name: f"http://{host}{path}"})
    assert line.startswith(f"{name}: ")


def test_what_is_wrong_with_a_models_host_is_said() -> None:
    (line,) = problems({"KSERVE_ENDPOINT": f"http://{'a' * 64}/v1/models/x"})
    assert "no part of HOST empty or longer than 63 characters" in line


@pytest.mark.parametrize("host", ["a" * 63, "painter_1", "painter.models.svc.cluster.local.", "[::1]"])
def test_a_host_may_be_any_that_a_cluster_or_a_machine_gives(host: str) -> None:
    endpoint = f"http://{host}:8080/v1/models/x"
    assert read_settings({"KSERVE_ENDPOINT": endpoint}).models[0].endpoint == endpoint


@pytest.mark.parametrize(
    ("public", "base"),
    [
        ("https://img.example.org", "https://img.example.org"),
        ("https://img.example.org///", "https://img.example.org"),
        ("https://example.org/pictures/", "https://example.org/pictures"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://10.0.0.1:30080", "http://10.0.0.1:30080"),
    ],
)
def test_what_image_urls_start_with(public: str, base: str) -> None:
    assert read_settings({"PUBLIC_BASE_URL": public}).listen.public_base_url == base


@pytest.mark.parametrize("public", ["https://img.example.org:443", "http://img.example.org:80/a"])
def test_a_default_port_in_the_public_address_is_as_good_as_none(public: str) -> None:
    """Clients leave a default port out of Host and Origin."""
    listen = read_settings({"PUBLIC_BASE_URL": public}).listen
    assert "img.example.org" in listen.allowed_hosts
    assert f"{public.partition(':')[0]}://img.example.org" in listen.allowed_origins


# --- passwords in URLs ------------------------------------------------------------------------------------------------

PASSWORDS = ["hush", "hu/sh", "hu?sh", "hu#sh", "hu@sh", "hu sh", "hu:sh", "hush\n"]
URL_SETTINGS = {
    "KSERVE_ENDPOINT": "KSERVE_TOKEN_FILE",
    "PUBLIC_BASE_URL": "no user and no password",
    "S3_ENDPOINT_URL": "AWS_SECRET_ACCESS_KEY",
    "S3_PUBLIC_ENDPOINT_URL": "no user and no password",
    "ALLOWED_ORIGINS": "no user and no password",
}


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("url", ["http://user:{}@h/v1/models/x", "user:{}@h", "http://{}@h/v1/models/x?a={}"])
@pytest.mark.parametrize("name", [*URL_SETTINGS, "LISTEN_PORT", "ALLOWED_HOSTS"])
def test_a_url_with_a_password_is_refused_and_the_password_not_shown(name: str, url: str, password: str) -> None:
    given = {name: url.replace("{}", password)}
    (line,) = problems(given)
    shown = {row.variable.name: row.effective for row in setting_rows(given)}[name]
    assert line.startswith(f"{name}: ")
    told = line.removeprefix(name).split("allowed:")[0]
    assert not any(part in text for part in ("hu", "sh") for text in (told, shown))


@pytest.mark.parametrize(("name", "instead"), URL_SETTINGS.items())
def test_where_a_password_belongs_instead_is_said(name: str, instead: str) -> None:
    (line,) = problems({name: "https://user:hush@example.org/v1/models/x"})
    assert instead in line


def test_a_models_url_with_a_password_is_refused_likewise(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models: [{endpoint: 'http://user:hush@h/v1/models/x'}, {endpoint: 'http://h/', token_file: hush}]")
    told = problems({"MODELS_FILE": str(file)})
    assert len(told) == 3
    assert "token_file" in told[0]
    assert "hush" not in "".join(told)


def test_a_token_given_in_place_of_its_file_is_not_shown() -> None:
    (line,) = problems({"KSERVE_TOKEN_FILE": "eyJhbGciOi.hush"})
    assert line == "KSERVE_TOKEN_FILE: '***' was given; allowed: the path of an existing file"
    shown = {row.variable.name: row.effective for row in setting_rows({"KSERVE_TOKEN_FILE": "eyJhbGciOi.hush"})}
    assert shown["KSERVE_TOKEN"] == "from ***"


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["/nowhere", "/", "/" + "x" * 5000], ids=["missing", "directory", "too long"])
@pytest.mark.parametrize("name", [variable.name for variable in VARIABLES if variable.secret])
def test_a_secrets_file_that_is_none_is_told(name: str, file: str) -> None:
    (line,) = problems({f"{name}_FILE": file})
    assert line.startswith(f"{name}_FILE: '{file[:100]}")
    assert line.endswith("allowed: the path of an existing file")


def test_empty_variables_of_a_secret_count_as_none(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("x")
    assert read_settings({"KSERVE_TOKEN": "", "KSERVE_TOKEN_FILE": ""}).models[0].token is None
    assert read_settings({"KSERVE_TOKEN": "x", "KSERVE_TOKEN_FILE": ""}).models[0].token == Secret(text="x")
    assert read_settings({"KSERVE_TOKEN": "", "KSERVE_TOKEN_FILE": str(file)}).models[0].token == Secret(file=file)


def test_no_secret_is_printed_by_config_nor_beside_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("hush")
    for secret in ({"KSERVE_TOKEN": "hush"}, {"KSERVE_TOKEN_FILE": str(file)}):
        for form in ("table", "json"):
            done = run("config", "--format", form, LISTEN_PORT="wrong", **secret)
            assert (done.returncode, "hush" in done.stdout + done.stderr) == (2, False)


# --- the models file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["models: !!timestamp x", "models: !!int ''", "models: !!float ''", "[" * 5000, "models: " + "{a: " * 5000,
     "", "--- a\n--- b", "models: *nowhere", "models: {a: 1}", "models: 1", "\x01",
     "models: !!python/name:os.system ''"],
    ids=range(12),
)  # fmt: skip
def test_garbage_for_a_models_file_is_told_like_any_wrong_value(text: str, tmp_path: Path) -> None:
    given = models_file(tmp_path, text)
    assert problems(given) == [f"MODELS_FILE: {given['MODELS_FILE']!r} was given; allowed: {NO_MODELS}"]


def test_bytes_that_are_no_text_are_told_like_any_wrong_value(tmp_path: Path) -> None:
    given = models_file(tmp_path, "")
    Path(given["MODELS_FILE"]).write_bytes(b"models: \xff\xfe")
    assert problems(given) == [f"MODELS_FILE: {given['MODELS_FILE']!r} was given; allowed: {NO_MODELS}"]


def test_a_yaml_bomb_does_not_go_off(tmp_path: Path) -> None:
    """Aliases are cheap until somebody spells them out, in a message for example."""
    levels = "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 16))
    given = models_file(tmp_path, f"a0: &a0 [x, x, x, x]\n{levels}\nmodels: [{{endpoint: *a15}}]")
    done = subprocess.run(  # with bounded memory, so that the machine survives a failure of this test
        ["sh", "-c", 'ulimit -v 524288; exec "$@"', "sh", sys.executable, "-m", "sidecar", "config"],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.startswith("mcp-image-sidecar: MODELS_FILE: model 1: endpoint: ")) == (2, True)


@pytest.mark.parametrize(
    "extra",
    ["{a: 2026-01-01}", "{a: !!set {b, c}}", "{a: !!binary aGk=}", "{a: {1970-01-01: b}}", "&a {b: *a}", "{a: .nan}",
     "[a]", "{1: a}", "text"],
)  # fmt: skip
def test_extra_parameters_that_cannot_be_sent_as_json_are_refused_at_the_start(extra: str, tmp_path: Path) -> None:
    (line,) = problems(models_file(tmp_path, f"models: [{{{MODEL}, extra_parameters: {extra}}}]"))
    assert line.startswith("MODELS_FILE: model 1: extra_parameters: ")


@pytest.mark.parametrize("extra", ["{prompt: always this}", "{scheduler: null}"])
def test_extra_parameters_neither_replace_the_prompt_nor_send_nulls(extra: str, tmp_path: Path) -> None:
    (line,) = problems(models_file(tmp_path, f"models: [{{{MODEL}, extra_parameters: {extra}}}]"))
    assert line.startswith("MODELS_FILE: model 1: extra_parameters: ")


@pytest.mark.parametrize("name", ["a b", "a/b", 'a"b', "ä", "x" * 64, ""])
def test_a_models_name_is_fit_for_a_label_and_a_message(name: str, tmp_path: Path) -> None:
    (line,) = problems(models_file(tmp_path, f"models: [{{{MODEL}, name: {json.dumps(name)}}}]"))
    assert line.startswith("MODELS_FILE: model 1: name: ")


def test_all_that_is_wrong_in_a_models_file_is_told_together_with_the_rest(tmp_path: Path) -> None:
    given = models_file(tmp_path, f"models: [{{{MODEL}, timeout: soon, colour: red}}, {{{MODEL}, profile: magic}}, 3]")
    starts = [line.split(":")[:3] for line in problems({**given, "LOG_LEVEL": "loud"})]
    assert starts == [
        ["LOG_LEVEL", " 'loud' was given; allowed", " debug, info, warning, error"],
        ["MODELS_FILE", " model 1", " timeout"],
        ["MODELS_FILE", " model 1", " unknown key 'colour'; allowed"],
        ["MODELS_FILE", " model 2", " profile"],
        ["MODELS_FILE", " model 3", " has no endpoint; allowed"],
    ]


def test_a_models_file_makes_a_wrong_endpoint_no_less_wrong(tmp_path: Path) -> None:
    (line,) = problems({**models_file(tmp_path, f"models: [{{{MODEL}}}]"), "KSERVE_ENDPOINT": "nowhere"})
    assert line.startswith("KSERVE_ENDPOINT: 'nowhere' was given")


@given(st.text(st.sampled_from("models:[]{}&*a!!int timestamp'\"-\n ,?<1.0e|>%#@`"), max_size=60))
def test_no_text_crashes_the_reading_of_a_models_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    for document in (text, f"models: {text}", f"models: [{{{MODEL}, timeout: {text}, extra_parameters: {text}}}]"):
        file.write_text(document)
        try:
            read_settings({"MODELS_FILE": str(file)})
        except BadConfiguration as error:
            assert all(line.startswith("MODELS_FILE: ") for line in error.problems)


# --- at the start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["no such host", "256.1.1.1", "192.0.2.7", "a" * 300])
def test_an_address_that_is_not_this_machines_is_told_by_its_own_name(host: str, tmp_path: Path) -> None:
    done = run("serve", LISTEN_HOST=host, LISTEN_PORT="0", STORAGE_PATH=str(tmp_path), LOG_LEVEL="error")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith(f"mcp-image-sidecar: LISTEN_HOST: {host[:100]!r}"[:100])


def test_a_taken_port_of_the_metrics_is_told_by_its_own_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = {"LISTEN_PORT": "0", "METRICS_LISTEN_PORT": port, "STORAGE_PATH": str(tmp_path), "LOG_LEVEL": "error"}
        done = run("serve", **given)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"mcp-image-sidecar: METRICS_LISTEN_PORT: cannot listen on 127.0.0.1:{port}")


@pytest.mark.parametrize("command", [("serve",), ("stdio",), ("demo", "--once"), ("sweep",), ("healthcheck",)])
def test_every_command_refuses_wrong_settings_alike(command: tuple[str, ...]) -> None:
    done = run(*command, LISTEN_PORT="tcp://10.96.0.1:80", LOG_FORMAT="xml")
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [
        ["mcp-image-sidecar", "LISTEN_PORT"],
        ["mcp-image-sidecar", "LOG_FORMAT"],
    ]


def test_config_shows_each_settings_value_default_unit_and_meaning() -> None:
    done = run("config", QUEUE_LIMIT="3", COLUMNS="2000")
    assert (done.returncode, done.stderr) == (0, "")
    for variable in VARIABLES:
        assert f"\n{variable.name} = " in f"\n{done.stdout}"
        assert f"default {variable.default or '–'}, {variable.unit}; allowed: {variable.allowed}" in done.stdout
        assert variable.meaning in done.stdout
    assert "QUEUE_LIMIT = 3\n" in done.stdout


def test_every_setting_is_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(variable.name for variable in VARIABLES)


def test_config_shows_only_what_was_changed_group_by_group() -> None:
    changed = {"QUEUE_LIMIT": "3", "IMAGE_TTL": "7d", "LOG_LEVEL": "info", "KSERVE_TOKEN": "hush"}
    done = run("config", "--changed", **changed)
    shown = [line for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    assert shown == ["# Models", "KSERVE_TOKEN = ***", "QUEUE_LIMIT = 3", "# Storage", "IMAGE_TTL = 7d"]
    as_json = json.loads(run("config", "--changed", "--format", "json", **changed).stdout)
    assert as_json == {"KSERVE_TOKEN": "***", "QUEUE_LIMIT": "3", "IMAGE_TTL": "7d"}


def test_config_names_the_right_setting_for_one_that_is_misspelt() -> None:
    done = run(
        "config", "--changed", STORAGE_PAHT="/data", IMAGES_TTL="1h", KSERVE_TOKN_FILE="x", S3_PORT="80", HOME="/"
    )
    told = [line.removeprefix("mcp-image-sidecar: ") for line in done.stderr.splitlines()]
    assert (done.returncode, done.stdout) == (0, "")
    assert told == [
        "IMAGES_TTL is set, but is no setting; did you mean IMAGE_TTL?",
        "KSERVE_TOKN_FILE is set, but is no setting; did you mean KSERVE_TOKEN_FILE?",
        "STORAGE_PAHT is set, but is no setting; did you mean STORAGE_PATH?",
    ]


@pytest.mark.parametrize("arguments", [["config"], ["config", "--format", "json"], ["lifecycle"]])
def test_a_reader_that_has_seen_enough_ends_a_command_without_a_traceback(arguments: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "STORAGE_BACKEND": "s3", "S3_BUCKET": "pictures", "STORAGE_PATH": str(tmp_path)}
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run([sys.executable, "-m", "sidecar", *arguments], env=environment, stdout=gone,
                              stderr=subprocess.PIPE, timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_config_as_json_names_every_setting() -> None:
    shown = json.loads(run("config", "--format", "json", QUEUE_LIMIT="3").stdout)
    assert set(shown) == {variable.name for variable in VARIABLES}
    assert shown["QUEUE_LIMIT"] == "3"
