"""The image in a KServe v1 answer, `{"predictions": [{"image": {"b64": "…"}}]}`, decoded while the answer arrives.

Of the arriving JSON only the ends of texts are looked for. The first long text of nothing but base64 goes to the sink,
decoded, and a mark takes its place; all else is kept as it came, and at the end the standard library parses what was
kept. So the order of keys, white space, escapes and duplicates mean what they mean in JSON (RFC 8259), while memory
does not grow with the image. Where the marked text turns out not to be the image, the image is decoded as a whole.
"""

from __future__ import annotations

import binascii
import json
import re
import secrets
from collections.abc import Iterator
from typing import Any, Protocol

import pybase64

from sidecar.errors import RuntimeAnsweredNonsense

LONG_TEXT = 4096
"""Characters of base64 from which a text is decoded as it comes. A shorter one is decoded at the end."""

# Atomic groups, no possessive quantifiers: CPython before 3.11.5 matches those wrongly where they are nested
# (python/cpython#106052), and Debian 12 ships 3.11.2.
_BASE64 = re.compile(rb"(?>[A-Za-z0-9+/]*)")
_BASE64_AND_PADDING = re.compile(rb"(?>[A-Za-z0-9+/=]*)")
_SHORT_TEXTS = re.compile(
    rb'(?>[^"]*)(?>(?:"(?>[^"\\]{0,%d})(?>(?:\\.(?>[^"\\]*))*)"(?>[^"]*))*)' % (LONG_TEXT - 1), re.DOTALL
)
"""Texts that do not begin with LONG_TEXT characters of base64, and what is between them: one step for them all."""
_TEXT = re.compile(rb'(?>[^"\\]*)(?>(?:\\.(?>[^"\\]*))*)', re.DOTALL)
_VALID_TEXT = re.compile(rb'(?>[^"\\]*)(?>(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})(?>[^"\\]*))*)')
_PADDING = ord("=")
_LONGEST_ESCAPE = len(r"\u0000")


class ImageSink(Protocol):
    """Where the decoded bytes go. `restart`: what came so far was not the image."""

    def write(self, data: bytes) -> None: ...
    def restart(self) -> None: ...


class AnswerReader:
    """Feed it the body piece by piece, then `finish` it. Both raise RuntimeAnsweredNonsense saying what is wrong."""

    def __init__(self, sink: ImageSink) -> None:
        self._sink = sink
        self._kept = bytearray()
        self._mark = secrets.token_hex(16)
        self._streamed = False
        self._waiting = b""
        self._base64 = _Base64()
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
        self._waiting = data[position:]

    def finish(self) -> None:
        """That was all: parse what was kept, and see that the image is where it should be."""
        self._kept += self._waiting
        encoded = _image_text(bytes(self._kept))
        if self._streamed and encoded == self._mark:
            return
        self._sink.restart()
        try:
            self._sink.write(pybase64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError) as error:
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
        head = data[position : position + LONG_TEXT]
        if self._streamed or _BASE64.fullmatch(head) is None:
            self._step = self._text
        elif len(head) == LONG_TEXT:
            self._sink.restart()
            self._base64 = _Base64()
            self._step = self._image
        else:
            return position
        return self._step(data, position)

    def _text(self, data: bytes, position: int) -> int:
        """A text to keep as it is."""
        end = _end_of_text(_TEXT, data, position)
        self._kept += data[position:end]
        return self._close(end) if data[end : end + 1] == b'"' else end

    def _image(self, data: bytes, position: int) -> int:
        end = _end_of_text(_VALID_TEXT, data, position)
        closing = data[end : end + 1] == b'"'
        try:
            if not closing and len(data) - end >= _LONGEST_ESCAPE:
                raise ValueError("no escape of JSON")
            for decoded in self._base64.decode(_unescaped(data, position, end), last=closing):
                self._sink.write(decoded)
        except ValueError:  # so this is not an image: an exclamation mark keeps what is left of it from ever being one
            self._kept += b"!"
            self._step = self._text
            return self._text(data, position)
        if not closing:
            return end
        self._kept += self._mark.encode()
        self._streamed = True
        return self._close(end)

    def _close(self, quote: int) -> int:
        self._kept += b'"'
        self._step = self._structure
        return quote + 1


class _Base64:
    """Decodes in whole groups of four. Raises ValueError, also for padding that is not at the very end.

    It raises as soon as it sees what is no base64: of earlier pieces nothing but base64 has been let go.
    """

    def __init__(self) -> None:
        self._carry = b""

    def decode(self, text: memoryview, *, last: bool) -> Iterator[bytes]:
        """The bytes so far; all views are of a text held elsewhere, because copies are what decoding costs most."""
        if self._carry:
            missing = 4 - len(self._carry)
            self._keep(self._carry + text[:missing])
            text = text[missing:]
            if text or last:
                yield self._group(last=last and not text)
        if not text:
            return
        rest = 0 if last else (len(text) - 1) % 4 + 1  # the group with the padding stays for the end
        self._keep(bytes(text[len(text) - rest :]))
        text = text[: len(text) - rest]
        if not text:
            return
        if not last and text[-1] == _PADDING:
            raise ValueError("padding before the end")
        yield pybase64.b64decode(text, validate=True)

    def _keep(self, carry: bytes) -> None:
        """For the next piece, when this one is gone."""
        if _BASE64_AND_PADDING.fullmatch(carry) is None:
            raise ValueError("no base64")
        self._carry = carry

    def _group(self, *, last: bool) -> bytes:
        group, self._carry = self._carry, b""
        if not last and group.endswith(b"="):
            raise ValueError("padding before the end")
        return pybase64.b64decode(group, validate=True)


def _end_of_text(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    """Where a text's quote is, or where what the pattern knows ends. Patterns are slow, and most texts need none."""
    quote = data.find(b'"', position)
    end = len(data) if quote < 0 else quote
    if data.find(b"\\", position, end) < 0:
        return end
    match = pattern.match(data, position)
    return match.end() if match else position


def _unescaped(data: bytes, position: int, end: int) -> memoryview:
    """A piece of text that ends on no broken escape. Raises ValueError for what JSON does not allow in texts."""
    if data.find(b"\\", position, end) < 0:
        return memoryview(data)[position:end]
    unescaped: str = json.loads(f'"{data[position:end].decode("ascii")}"')
    return memoryview(unescaped.encode("ascii"))


def _image_text(body: bytes) -> str:
    try:
        document: Any = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RuntimeAnsweredNonsense(
            f"The model's runtime did not answer with JSON but with {_kind(body) if body else 'nothing'}"
        ) from error
    try:
        encoded = document["predictions"][0]["image"]["b64"]
    except (KeyError, IndexError, TypeError) as error:
        raise RuntimeAnsweredNonsense(
            "The model's runtime answered JSON without an image at predictions[0].image.b64"
        ) from error
    if not isinstance(encoded, str):
        raise RuntimeAnsweredNonsense("The model's runtime answered an image that is not a base64 text")
    return encoded


def _kind(body: bytes) -> str:
    """What there is instead, unquoted: a runtime may echo what it was sent, a token too."""
    start = body[:200].lstrip()
    return "an HTML page" if start.startswith(b"<") else "damaged or truncated JSON" if start[:1] in b"{[" else "text"
