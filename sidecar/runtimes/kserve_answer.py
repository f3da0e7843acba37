"""The image in a KServe v1 answer, `{"predictions": [{"image": {"b64": "…"}}]}`, decoded while the answer arrives.

Of the arriving JSON only the ends of texts are looked for. A long base64 text at the image's place goes to the sink,
decoded, and a mark takes its place; all else is kept as it came, and at the end the standard library parses what was
kept. So the order of keys, white space, escapes and duplicates mean what they mean in JSON (RFC 8259), while memory
does not grow with the image. A short image, or one whose key is repeated, is decoded at the end. `base64_stream` says
what counts as base64.

What is kept has a bound, MAX_KEPT_BYTES, because the parser needs up to 20 bytes for one byte of tiny values and holds
the event loop for up to 30 ms per MiB. Of other long texts (a second image, a mask) only their place is kept.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
import secrets
from collections.abc import Iterator
from typing import Any, Protocol

from sidecar.errors import RuntimeAnsweredNonsense
from sidecar.runtimes.base64_stream import WHITE_SPACE, Base64Stream
from sidecar.runtimes.kserve_errors import said_in

LONG_TEXT = 4096
"""Bytes of base64, escapes included, from which a text is decoded as it comes. A shorter one is decoded at the end."""
MAX_KEPT_BYTES = 1024 * 1024
"""What an answer may hold besides its image: prompts, names, white space (issue 13)."""
MAX_KEPT_TEXT_BYTES = 64 * 1024
"""A text that arrives in pieces and is longer is replaced by one that is no base64."""
_MAX_PREFIX_BYTES = 64 * 1024
_MAX_LOOKS = 8  # each parses what was kept so far

# Atomic groups, no possessive quantifiers: CPython before 3.11.5 matches those wrongly where they are nested
# (python/cpython#106052), and Debian 12 ships 3.11.2.
_DATA_URL = rb"(?>(?: |\\[nrt]){0,16})[dD][aA][tT][aA]:[A-Za-z0-9+/=:;._\\ -]{0,220},"
_LIKE_BASE64 = re.compile(rb"(?>(?:%s)?)[A-Za-z0-9+/_\\ -]{%d}" % (_DATA_URL, LONG_TEXT))
_LIKE_BASE64_SO_FAR = re.compile(rb"[A-Za-z0-9+/=:;,._\\ -]*")
_LOOKED_AT_BYTES = LONG_TEXT + 260  # enough for either pattern
_SHORT_TEXTS = re.compile(
    rb'(?>[^"]*)(?>(?:"(?!%s)(?>[^"\\]{0,%d})(?>(?:\\.(?>[^"\\]*))*)"(?>[^"]*))*)'
    % (_LIKE_BASE64.pattern, LONG_TEXT - 1),
    re.DOTALL,
)
"""Texts that do not begin with LONG_TEXT bytes of base64, and what is between them: one step for them all."""
_TEXT = re.compile(rb'(?>[^"\\]*)(?>(?:\\.(?>[^"\\]*))*)', re.DOTALL)
_VALID_TEXT = re.compile(rb'(?>[^"\\]*)(?>(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})(?>[^"\\]*))*)')
_WHOLE_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_CLOSING = {ord("["): b"]", ord("{"): b"}"}
_NO_BASE64 = b"!"
_WHY_KEYS = ("error", "reason", "detail", "message")
_LONGEST_ESCAPE = len(r"\u0000")


class ErrorInAnswer(Exception):
    """The answer has no image and says why in `said`: foreign text, unbounded."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


class ImageSink(Protocol):
    """Where the decoded bytes go. `restart`: what came so far was not the image."""

    def write(self, data: bytes) -> None: ...
    def restart(self) -> None: ...


class AnswerReader:
    """Feed it the body piece by piece, then `finish` it. Both raise RuntimeAnsweredNonsense saying what is wrong.

    `finish` raises ErrorInAnswer where the answer itself says why it has no image.
    """

    def __init__(self, sink: ImageSink) -> None:
        self._sink = sink
        self._kept = bytearray()
        self._mark = secrets.token_hex(16)
        self._streamed = False
        self._looks = _MAX_LOOKS
        self._waiting = b""
        self._base64 = Base64Stream()
        self._text_start: int | None = None
        self._step = self._structure
        """What reads on from a position: returns how far it came; no further means that it needs what comes next."""

    @property
    def kept_bytes(self) -> int:
        """How much there is for `finish` to parse."""
        return len(self._kept)

    def feed(self, chunk: bytes) -> None:
        data = self._waiting + chunk
        position, before = 0, -1
        while before < position < len(data):
            before, position = position, self._step(data, position)
            if len(self._kept) > MAX_KEPT_BYTES:
                raise RuntimeAnsweredNonsense(
                    f"The model's runtime answered more than {MAX_KEPT_BYTES:,} bytes of JSON besides its image; "
                    "allowed are at most as many."
                )
        self._waiting = data[position:]

    def finish(self) -> None:
        """That was all: parse what was kept, and see that the image is where it should be."""
        self._kept += self._waiting
        with _no_collection():
            encoded = _image_text(bytes(self._kept))
        if self._streamed and encoded == self._mark:
            return
        self._begin_image()
        try:
            self._decode(memoryview(encoded.encode("ascii")), WHITE_SPACE, last=True)
        except ValueError as error:
            raise RuntimeAnsweredNonsense("The model's runtime answered damaged or truncated base64") from error

    # --- steps --------------------------------------------------------------------------------------------------------

    def _structure(self, data: bytes, position: int) -> int:
        """Everything outside of texts, and whole short ones."""
        match = _SHORT_TEXTS.match(data, position)
        end = match.end() if match else position
        if end < len(data):
            end += 1
            self._step = self._start_of_text
        self._kept += data[position:end]
        return end

    def _start_of_text(self, data: bytes, position: int) -> int:
        head = data[position : position + _LOOKED_AT_BYTES]
        if len(head) < _LOOKED_AT_BYTES and _LIKE_BASE64_SO_FAR.fullmatch(head):
            return position
        if _LIKE_BASE64.match(head) and self._is_image():
            self._begin_image()
            self._step = self._image
        else:
            self._text_start = len(self._kept)
            self._step = self._text
        return self._step(data, position)

    def _is_image(self) -> bool:
        """Whether the text that begins here is the image, so far as the answer has come."""
        if self._streamed or not self._looks or len(self._kept) > _MAX_PREFIX_BYTES:
            return False
        self._looks -= 1
        return _leads_to_image(bytes(self._kept), self._mark)

    def _text(self, data: bytes, position: int) -> int:
        """A text to keep as it is, unless it is longer than any that means something here."""
        end = _end_of_text(_TEXT, data, position)
        if self._text_start is not None:
            if len(self._kept) - self._text_start + end - position <= MAX_KEPT_TEXT_BYTES:
                self._kept += data[position:end]
            else:
                self._kept[self._text_start :] = _NO_BASE64
                self._text_start = None
        return self._close(end) if data[end : end + 1] == b'"' else end

    def _image(self, data: bytes, position: int) -> int:
        end = _end_of_text(_VALID_TEXT, data, position)
        closing = data[end : end + 1] == b'"'
        try:
            if not closing and len(data) - end >= _LONGEST_ESCAPE:
                raise ValueError("no escape of JSON")
            self._decode(*_unescaped(data, position, end), last=closing)
        except ValueError:  # so this is not an image, and what is left of it must not become one
            self._text_start = len(self._kept)
            self._kept += _NO_BASE64
            self._step = self._text
            return self._text(data, position)
        if not closing:
            return end
        self._kept += self._mark.encode()
        self._streamed = True
        return self._close(end)

    def _begin_image(self) -> None:
        self._sink.restart()
        self._base64 = Base64Stream()

    def _decode(self, text: memoryview, white_space: bytes, *, last: bool) -> None:
        """Raises ValueError for what is no base64."""
        for decoded in self._base64.decode(text, white_space):
            self._sink.write(decoded)
        if last and (rest := self._base64.finish()):
            self._sink.write(rest)

    def _close(self, quote: int) -> int:
        self._kept += b'"'
        self._step = self._structure
        return quote + 1


def _end_of_text(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    """Where a text's quote is, or where what the pattern knows ends. Patterns are slow, and most texts need none."""
    quote = data.find(b'"', position)
    end = len(data) if quote < 0 else quote
    if data.find(b"\\", position, end) < 0:
        return end
    match = pattern.match(data, position)
    return match.end() if match else position


def _unescaped(data: bytes, position: int, end: int) -> tuple[memoryview, bytes]:
    """A piece of text that ends on no broken escape, and the white space that it may hold.

    JSON allows line ends and tabs in texts only as escapes. Raises ValueError where it sees what JSON does not allow.
    """
    if data.find(b"\\", position, end) < 0:
        return memoryview(data)[position:end], b" "
    unescaped: str = json.loads(f'"{data[position:end].decode("ascii")}"')
    return memoryview(unescaped.encode("ascii")), WHITE_SPACE


def _leads_to_image(kept: bytes, mark: str) -> bool:
    """Whether a text that begins behind `kept` is the image if the answer ends right after it."""
    closing: list[bytes] = []
    for bracket in _WHOLE_TEXT.sub(b"", kept).translate(None, _NOT_BRACKETS):
        if bracket in _CLOSING:
            closing.append(_CLOSING[bracket])
        elif closing:
            closing.pop()
    whole = kept + mark.encode() + b'"' + b"".join(reversed(closing))
    try:
        return bool(_at_image(json.loads(whole.decode("utf-8-sig"))) == mark)
    except (ValueError, RecursionError, KeyError, IndexError, TypeError):
        return False


def _at_image(document: Any) -> Any:
    return document["predictions"][0]["image"]["b64"]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A parser's countless new objects start the garbage collector, which takes ten times as long as the parser."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _image_text(body: bytes) -> str:
    try:
        document = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RuntimeAnsweredNonsense(
            f"The model's runtime did not answer with JSON but with {_kind(body) if body else 'nothing'}"
        ) from error
    try:
        encoded, missing = _at_image(document), False
    except (KeyError, IndexError, TypeError):
        encoded, missing = None, True
    if isinstance(encoded, str):
        return encoded
    if said := _said_instead(document):
        raise ErrorInAnswer(said)
    if missing:
        raise RuntimeAnsweredNonsense("The model's runtime answered JSON without an image at predictions[0].image.b64")
    raise RuntimeAnsweredNonsense("The model's runtime answered an image that is not a base64 text")


def _said_instead(document: Any) -> str:
    """Why there is no image, said at its place or at one of the places above; an empty text where nothing is said."""
    levels = [document]
    for step in ("predictions", 0, "image"):
        try:
            levels.append(levels[-1][step])
        except (KeyError, IndexError, TypeError):
            break
    return next((said for level in reversed(levels) if (said := said_in(level, _WHY_KEYS))), "")


def _kind(body: bytes) -> str:
    """What there is instead, unquoted: a runtime may echo what it was sent, a token too."""
    start = body[:200].lstrip()
    return "an HTML page" if start.startswith(b"<") else "damaged or truncated JSON" if start[:1] in b"{[" else "text"
