"""Base64 as runtimes write it, decoded piece by piece.

Besides plain base64 (RFC 4648, section 4) a text may begin as a data URL does (RFC 2397), be broken into lines, use the
URL-safe alphabet (RFC 4648, section 5) or lack its padding (issue 14). Plain base64 is decoded at once; only a piece
that is anything else is copied.
"""

from __future__ import annotations

import re

import pybase64

WHITE_SPACE = b" \t\r\n"
_DATA_URL = re.compile(rb"(?>[ \t\r\n]{0,16})data:[A-Za-z0-9+/=:;._ -]{0,200},", re.IGNORECASE)
_STANDARD = bytes.maketrans(b"-_", b"+/")
_DIGITS = re.compile(rb"[A-Za-z0-9+/]*")
_PADDING = b"="


class Base64Stream:
    """Decodes in whole groups of four. `decode` and `finish` raise ValueError for what is no base64.

    They raise as soon as they see it: of earlier pieces nothing but base64 has been let go.
    """

    def __init__(self) -> None:
        self._carry = b""
        self._started = False
        self._padded = False

    def decode(self, text: memoryview, white_space: bytes = WHITE_SPACE) -> list[bytes]:
        """The bytes so far, in one or two pieces; `white_space` may stand anywhere.

        The first piece holds all of a data URL's head.
        """
        if not self._started:
            self._started = True
            if (head := _DATA_URL.match(text)) is not None:
                text = text[head.end() :]
        if not self._padded:
            padding = 2 if text[-2:] == _PADDING * 2 else int(text[-1:] == _PADDING)
            try:
                decoded = self._groups(text[: len(text) - padding])
            except ValueError:
                pass  # so it is cleaned first
            else:
                self._padded = padding > 0
                return decoded
        return self._groups(memoryview(self._cleaned(bytes(text), white_space)))

    def finish(self) -> bytes:
        """What the last digits stand for. Their padding says nothing that their number does not say."""
        carry, self._carry = self._carry, b""
        return pybase64.b64decode(carry + _PADDING * (-len(carry) % 4), validate=True)

    def _cleaned(self, text: bytes, white_space: bytes) -> bytes:
        """Its digits in the standard alphabet."""
        standard = text.translate(_STANDARD, white_space)
        digits = standard.rstrip(_PADDING)
        if digits and self._padded:
            raise ValueError("digits behind the padding")
        self._padded = self._padded or len(digits) < len(standard)
        return digits

    def _groups(self, digits: memoryview) -> list[bytes]:
        """All views are of a text held elsewhere, because copies are what decoding costs most."""
        decoded = []
        if self._carry:
            missing = 4 - len(self._carry)
            first = self._carry + digits[:missing]
            digits = digits[missing:]
            if len(first) < 4:
                self._carry = _digits(first)
                return []
            decoded.append(pybase64.b64decode(first, validate=True))
        whole = len(digits) - len(digits) % 4
        carry = _digits(bytes(digits[whole:]))
        if whole:
            decoded.append(pybase64.b64decode(digits[:whole], validate=True))
        self._carry = carry
        return decoded


def _digits(text: bytes) -> bytes:
    if _DIGITS.fullmatch(text) is None:
        raise ValueError("no base64")
    return text
