"""MODELS_FILE: several models in one YAML file. Its entries take the other variables as their defaults."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from sidecar.config import parsers
from sidecar.config.parsers import has_credentials, shown_path, without_credentials
from sidecar.config.settings import ModelSettings, Secret
from sidecar.errors import bounded


def model_name(endpoint: str) -> str:
    return endpoint.rsplit("/", 1)[1]


def _text_of(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    def convert(given: Any) -> Any:
        if isinstance(given, bool) or not isinstance(given, (str, int, float)):
            raise ValueError  # noqa: TRY004 - one kind of refusal for every parser
        return parse(str(given))

    return convert


def _extra_parameters(given: Any) -> Mapping[str, Any]:
    """What JSON can say, but no null, which diffusers takes for a value, and no prompt, which is the caller's."""
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ValueError
    if "prompt" in given or None in given.values():
        raise ValueError
    try:
        json.dumps(given, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError from error
    return cast("dict[str, Any]", given)


def _shown(key: str, given: Any) -> str:
    """A value for a message; never spelled out whole, because YAML's aliases make small files long."""
    if isinstance(given, (list, tuple, set, dict)):
        return "a mapping" if isinstance(given, dict) else "a list"
    text = str(given)
    return repr(bounded(shown_path(text) if key == "token_file" else without_credentials(text), 120))


def _hint(given: Any) -> str:
    url = isinstance(given, str) and has_credentials(given)
    return ". No user and no password in it: a token goes into the file of token_file." if url else ""


MODEL_FIELDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "endpoint": (_text_of(parsers.model_url), parsers.MODEL_URL_ALLOWED),
    "name": (
        _text_of(lambda text: text if re.fullmatch(r"[A-Za-z0-9._-]{1,63}", text) else int("")),
        "A-Z a-z 0-9 . _ -",
    ),
    "profile": (_text_of(parsers.one_of("diffusers", "diffusers-seed")), "diffusers, diffusers-seed"),
    "concurrency": (_text_of(parsers.whole_number(1, 64)), "1 to 64"),
    "queue_limit": (_text_of(parsers.whole_number(0, 10000)), "0 to 10000"),
    "timeout": (_text_of(parsers.positive_duration), parsers.DURATION_ALLOWED),
    "default_size": (_text_of(parsers.pixel_size), "WIDTHxHEIGHT, each 64 to 2048 in multiples of 8"),
    "extra_parameters": (
        _extra_parameters,
        "a mapping of further keys sent with each predict, as JSON, without `prompt` and nulls",
    ),
    "token_file": (_text_of(parsers.existing_file), "the path of an existing file"),
    "ca_file": (_text_of(parsers.ca_file), "the path of an existing PEM file"),
}
"""What an entry of MODELS_FILE may hold: how it is read, and what is allowed."""


def read_models_file(path: Path, defaults: Mapping[str, Any], problems: list[str]) -> tuple[ModelSettings, ...]:
    import yaml  # only where a models file is used

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = document["models"]
        if not isinstance(entries, list) or not entries:
            raise TypeError
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError, RecursionError):
        problems.append(
            f"MODELS_FILE: {str(path)!r} was given; allowed: YAML with a list `models` of at least one model"
        )
        return ()
    models = tuple(
        model
        for number, entry in enumerate(entries, start=1)
        if (model := _read_model(number, entry, defaults, problems)) is not None
    )
    names = [model.name for model in models]
    problems.extend(
        f"MODELS_FILE: two models are called {name!r}; allowed: a name of its own for each"
        for name in sorted({name for name in names if names.count(name) > 1})
    )
    return models


def _read_model(number: int, entry: Any, defaults: Mapping[str, Any], problems: list[str]) -> ModelSettings | None:
    where = f"MODELS_FILE: model {number}"
    if not isinstance(entry, dict) or "endpoint" not in entry:
        problems.append(f"{where}: has no endpoint; allowed: a mapping of {', '.join(MODEL_FIELDS)}")
        return None
    fields = dict(defaults)
    before = len(problems)
    for key, given in entry.items():
        if key not in MODEL_FIELDS:
            problems.append(f"{where}: unknown key {bounded(repr(key), 60)}; allowed: {', '.join(MODEL_FIELDS)}")
            continue
        parse, allowed = MODEL_FIELDS[key]
        try:
            fields[key] = parse(given)
        except (ValueError, OSError):
            problems.append(f"{where}: {key}: {_shown(key, given)} was given; allowed: {allowed}{_hint(given)}")
    if len(problems) > before:
        return None
    if token_file := fields.pop("token_file", None):
        fields["token"] = Secret(file=token_file)
    fields.setdefault("name", model_name(fields["endpoint"]))
    return ModelSettings(**fields)
