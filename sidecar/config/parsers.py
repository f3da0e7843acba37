"""What a setting's text may be: each parser is a total function from text to a value or a ValueError."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

DURATION_ALLOWED = "seconds, or a number with ms, s, m, h or d, such as 500ms, 90s, 15m, 24h, 7d"
SIZE_ALLOWED = "bytes, or a number with KiB, MiB, GiB or TiB, such as 64MiB"
MODEL_URL_ALLOWED = "http(s)://HOST[:PORT]/v1/models/NAME, no part of HOST empty or longer than 63 characters"

_DURATION_UNITS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE_UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
_MODEL_PATH = re.compile(r"(?P<base>/.*)?/v1/models/(?P<name>[A-Za-z0-9._-]{1,63})(:predict)?", re.ASCII)
_PLAIN = re.compile(r'[^\s?#@<>"\\\x00-\x20\x7f-\U0010ffff]+')
_USER = re.compile(r"//[^/?#\s]*@")
_LONGEST_DURATION = 100 * 365 * 86400


def duration(text: str) -> float:
    """Seconds from `90`, `500ms`, `90s`, `15m`, `24h`, `7d`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", text, re.ASCII)
    if match is None:
        raise ValueError
    seconds = float(match[1]) * _DURATION_UNITS[match[2] or ""]
    if seconds > _LONGEST_DURATION:
        raise ValueError
    return seconds


def positive_duration(text: str) -> float:
    seconds = duration(text)
    if seconds <= 0:
        raise ValueError
    return seconds


def duration_or_never(text: str) -> float | None:
    """Like `duration`; 0 means never."""
    return duration(text) or None


def size(text: str) -> int:
    """Bytes from `1024`, `64KiB`, `32MiB`, `2GiB`."""
    match = re.fullmatch(r"(\d+)(KiB|MiB|GiB|TiB)?", text, re.ASCII)
    if match is None or int(match[1]) == 0:
        raise ValueError
    return int(match[1]) * _SIZE_UNITS[match[2] or ""]


def whole_number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return parse


def pixel_size(text: str) -> tuple[int, int]:
    """Width and height from `1024x768`, each 64 to 2048 in multiples of 8."""
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text, re.ASCII)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if any(side % 8 or not 64 <= side <= 2048 for side in sides):
        raise ValueError
    return sides


def model_url(text: str) -> str:
    """A KServe v1 model's URL, without `:predict`."""
    if _MODEL_PATH.fullmatch(_plain_url(text).path) is None:
        raise ValueError
    return text.removesuffix(":predict")


def base_url(text: str) -> str:
    """An absolute http(s) URL without query, fragment, credentials or trailing slash."""
    _plain_url(text)
    return text.rstrip("/")


def _plain_url(text: str) -> SplitResult:
    """An http(s) URL of nothing but scheme, host, port and path; urlsplit alone overlooks line ends and empty parts."""
    parts = urlsplit(text)
    _ = parts.port  # raises ValueError for a port that is none
    if _PLAIN.fullmatch(text) is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError
    _ = parts.hostname.encode("idna")  # raises ValueError for a host that no name server can be asked for
    return parts


def has_credentials(url: str) -> bool:
    """Whether a URL names a user or a password, which every URL setting refuses."""
    return _USER.search(url) is not None


def without_credentials(text: str) -> str:
    """A setting's text as it may be shown: nothing of a URL that may hold a password, and of others no query.

    A raw password holds any character, an @ or a ? too, so where it ends cannot be told.
    """
    scheme, slashes, rest = text.partition("//")
    if "@" in text and (slashes or ":" in text):
        return f"{scheme}//***" if slashes else "***"
    path, question, _query = rest.partition("?")
    return f"{scheme}//{path}?***" if slashes and question else text


def shown_path(text: str) -> str:
    """The path of a secret's file as it may be shown: what is no path may be the secret itself."""
    return text if text.startswith(("/", "./", "../")) else "***"


def bucket(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", text, re.ASCII) is None or ".." in text:
        raise ValueError
    return text


def key_prefix(text: str) -> str:
    """Nothing, or a path that ends with a slash."""
    parts = [part for part in text.split("/") if part]
    if not all(re.fullmatch(r"[A-Za-z0-9._-]+", part, re.ASCII) and part.strip(".") for part in parts):
        raise ValueError
    return "".join(f"{part}/" for part in parts)


def listen_hosts(text: str) -> tuple[str, ...]:
    """Names or addresses to listen on; whether they are this machine's, only listening tells."""
    hosts = tuple(dict.fromkeys(part.strip().removeprefix("[").removesuffix("]") for part in text.split(",")))
    if not all(hosts):
        raise ValueError
    return hosts


def host_list(text: str) -> tuple[str, ...]:
    hosts = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    pattern = r"\*|([a-z0-9._-]+|\[[0-9a-f:.]+\])(:(\d{1,5}|\*))?"
    if not hosts or not all(re.fullmatch(pattern, host, re.ASCII) for host in hosts):
        raise ValueError
    return tuple(host.removesuffix(":*") for host in hosts)


def origin_list(text: str) -> tuple[str, ...]:
    """Origins of web pages and of desktop applications (tauri, vscode-webview, app, capacitor, …)."""
    origins = tuple(part.strip().lower().rstrip("/") for part in text.split(",") if part.strip())
    pattern = r"[a-z][a-z0-9+.-]{0,63}://[^/\s@?#\\\x00-\x20\x7f-\U0010ffff]{1,253}"
    if not origins or not all(re.fullmatch(pattern, origin) for origin in origins):
        raise ValueError
    return origins


def existing_file(text: str) -> Path:
    if not os.path.isfile(text):  # noqa: PTH113 - False, not an error, for a path that no file can have
        raise ValueError
    return Path(text)


def ca_file(text: str) -> Path:
    """A file of PEM certificates. Raises ValueError or OSError (SSLError is one)."""
    path = existing_file(text)
    ssl.create_default_context(cafile=path)
    return path


def absolute_directory(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise ValueError
    return path


def any_text(text: str) -> str:
    return text
