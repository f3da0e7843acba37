"""The image in an arriving answer is what a parser of the whole answer finds, however the answer is written and cut."""

from __future__ import annotations

import ast
import base64
import gc
import itertools
import json
import random
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sidecar
from sidecar.errors import RuntimeAnsweredNonsense
from sidecar.runtimes.kserve_answer import LONG_TEXT, MAX_KEPT_BYTES, MAX_KEPT_TEXT_BYTES, AnswerReader

REFUSED = "refused"


class Collected:
    """A sink in memory."""

    def __init__(self) -> None:
        self.data = b""
        self.restarts = 0

    def write(self, data: bytes) -> None:
        self.data += data

    def restart(self) -> None:
        self.data = b""
        self.restarts += 1


def as_a_whole(body: bytes) -> bytes | str:
    """The reference: parse all, look, decode."""
    try:
        text = json.loads(body.decode("utf-8-sig"))["predictions"][0]["image"]["b64"]
        return tolerantly_decoded(text) if isinstance(text, str) else REFUSED
    except (ValueError, RecursionError, KeyError, IndexError, TypeError):
        return REFUSED


IN_DATA_URLS = set(string.ascii_lowercase + string.digits + "+/;=._ -:")


def tolerantly_decoded(text: str) -> bytes:
    """The reference for base64 as runtimes write it. Raises ValueError."""
    head, comma, rest = text.partition(",")
    head = head.lstrip(" \t\r\n").lower()
    if comma and head.startswith("data:") and set(head) <= IN_DATA_URLS:
        text = rest
    digits = "".join(character for character in text if character not in " \t\r\n").rstrip("=")
    if len(digits) % 4 == 1:
        raise ValueError("half a byte")
    standard = digits.replace("-", "+").replace("_", "/")
    return base64.b64decode(standard + "=" * (-len(digits) % 4), validate=True)


def as_it_comes(pieces: Iterator[bytes]) -> bytes | str:
    sink = Collected()
    reader = AnswerReader(sink)
    try:
        for piece in pieces:
            reader.feed(piece)
        reader.finish()
    except RuntimeAnsweredNonsense:
        return REFUSED
    return sink.data


def cut(body: bytes, places: list[int]) -> Iterator[bytes]:
    bounds = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return (body[start:end] for start, end in itertools.pairwise(bounds))


# --- answers as runtimes might write them -----------------------------------------------------------------------------

BYTES = st.builds(lambda seed, size: random.Random(seed).randbytes(size), st.integers(0, 99), st.integers(0, 9000))
SLASHES = ("/", "\\/")
EQUALS = ("=", "\\u003d", "\\u003D")


def spelt(data: bytes, slash: str, equal: str) -> str:
    """Base64 as a JSON text, some characters escaped as PHP and Gson do."""
    return f'"{base64.b64encode(data).decode().replace("/", slash).replace("=", equal)}"'


def in_lines(text: str, end: str) -> str:
    """Broken after every 76 characters (RFC 2045), which may also be in the middle of an escape."""
    return end.join(text[start : start + 76] for start in range(0, len(text), 76))


FIELD_FORMS: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "data URL": lambda text: f'"data:image/png;base64,{text[1:]}',
    "data URL in capitals": lambda text: f'" DATA:image\\/png;charset=utf-8;BASE64, {text[1:]}',
    "data URL of nothing": lambda text: f'"data:,{text[1:]}',
    "lines": lambda text: in_lines(text, "\\n"),
    "lines of Windows": lambda text: in_lines(text, "\\r\\n"),
    "escaped line ends": lambda text: in_lines(text, "\\u000a"),
    "spaces": lambda text: in_lines(text, "  "),
    "line end behind": lambda text: text[:-1] + '\\n"',
    "white space before": lambda text: '" \\n\\t' + text[1:],
    "no padding": lambda text: text.replace("=", "").replace("\\u003d", ""),
    "padding in lines": lambda text: text.replace("==", "=\\n=\\n"),
    "too much padding": lambda text: text[:-1] + '=="',
    "URL-safe": lambda text: text.replace("\\/", "/").replace("/", "_").replace("+", "-"),
    "URL-safe in a data URL in lines": lambda text: (
        '"data:image/webp;base64,'
        + in_lines(text[1:].replace("\\/", "/").replace("/", "_").replace("+", "-").replace("=", ""), "\\n")
    ),
}
"""What is seen in the field (issue 14)."""
PLAIN_IMAGES = st.builds(spelt, BYTES, st.sampled_from(SLASHES), st.sampled_from(EQUALS))
IMAGES = st.builds(lambda text, form: FIELD_FORMS[form](text), PLAIN_IMAGES, st.sampled_from(sorted(FIELD_FORMS)))
DAMAGES: list[Callable[[str], str]] = [
    lambda text: text,
    lambda text: text[:-2] + text[-1:],
    lambda text: text[: len(text) // 2] + "!" + text[len(text) // 2 :],
    lambda text: text[: len(text) // 2] + "=" + text[len(text) // 2 :],
    lambda text: text[: len(text) // 2] + "\\" + text[len(text) // 2 :],
    lambda text: text[: len(text) // 2] + "\\n" + text[len(text) // 2 :],
    lambda text: text[: len(text) // 2] + "\n" + text[len(text) // 2 :],
    lambda text: text[: len(text) // 2] + "\\u0041AAA" + text[len(text) // 2 :],
    lambda text: text[: len(text) // 2] + "\\u00" + text[len(text) // 2 :],
    lambda text: text[: len(text) // 2] + "ä" + text[len(text) // 2 :],
    lambda text: text[:-1] + '="',
    lambda text: text[:-1] + '=\\nAAAA"',
    lambda text: text[: len(text) // 2] + "\\f" + text[len(text) // 2 :],
    lambda text: '"data:image/png;base64' + text[1:],
    lambda text: '"x' + FIELD_FORMS["data URL"](text)[1:],
    lambda text: text[: len(text) // 2] + "\t" + text[len(text) // 2 :],
    lambda text: text[:-1],
]
DAMAGED = st.builds(lambda text, damage: damage(text), IMAGES, st.sampled_from(DAMAGES))
TEXTS = (
    IMAGES
    | DAMAGED
    | st.text(max_size=20).map(json.dumps)
    | st.text(max_size=20).map(lambda text: json.dumps(text, ensure_ascii=False))
)
OTHERS = TEXTS | st.sampled_from(["null", "1", "[]", "{}", "NaN", "[", "x"])
SPACE = st.sampled_from(["", " ", "\n", "\t  "])


@st.composite
def mappings(draw: st.DrawFn, key: str, value: st.SearchStrategy[str]) -> str:
    """An object with `key`, sometimes twice or not at all, among others in any order."""
    names = st.sampled_from([key, key, "prompt", "model_name", "format", "\\u0062" + key[1:], "A" * LONG_TEXT])
    members = draw(st.lists(st.tuples(names.map(lambda name: f'"{name}"'), OTHERS), max_size=3))
    members.insert(draw(st.integers(0, len(members))), (f'"{key}"', draw(value)))
    space = draw(SPACE)
    return "{" + f",{space}".join(f"{name}:{space}{given}" for name, given in members) + "}"


def lists(value: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(value, min_size=1, max_size=2).map(lambda values: f"[{','.join(values)}]")


ANSWERS = mappings("predictions", lists(mappings("image", mappings("b64", IMAGES | DAMAGED))))
PLACES = st.lists(st.integers(0, 20_000), max_size=8)


@settings(max_examples=600)
@given(ANSWERS, PLACES)
def test_an_arriving_answer_means_what_the_whole_one_means(answer: str, places: list[int]) -> None:
    body = answer.encode("utf-8", "surrogatepass")
    assert as_it_comes(cut(body, places)) == as_a_whole(body)


PROMPTING = b'{"predictions":[{"prompt":"'


def prompting(prompt: str, image: str = '"eA=="') -> bytes:
    """An answer that repeats the prompt before its image."""
    return PROMPTING + f'{prompt}","image":{{"b64":{image}}}}}]}}'.encode()


ODD = st.sampled_from(["\n", "\0", "\x7f", "é", "猫", "🐈", "!", "=", "==", "\\n", "\\/", "\\u0041", "\\u732b", "\\x"])


@st.composite
def long_starts(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """An answer with a long text that begins as base64 does and goes on otherwise, and cuts around where it does."""
    start = "A" * (LONG_TEXT + draw(st.integers(0, 9)))
    text = start + "".join(draw(st.lists(ODD | st.sampled_from(["A", "AA", "AAAA"]), max_size=6)))
    image = draw(st.sampled_from([spelt(b"x" * 5000, "/", "="), '"eA=="', f'"{text}"']))
    turn = len(PROMPTING) + len(start)
    return prompting(text, image), draw(st.lists(st.integers(turn - 9, turn + 30), max_size=8))


@settings(max_examples=600)
@given(long_starts())
@example((prompting("A" * 4100 + "猫 on a mat"), [len(PROMPTING) + 4101]))
@example((prompting("A" * 4100 + "\n"), [len(PROMPTING) + 4101]))
def test_a_text_that_begins_like_an_image_means_what_it_means_however_it_is_cut(
    arriving: tuple[bytes, list[int]],
) -> None:
    body, places = arriving
    assert as_it_comes(cut(body, places)) == as_a_whole(body)


def body_of(data: bytes, slash: str = "/", equal: str = "=") -> bytes:
    return f'{{"predictions": [{{"image": {{"b64": {spelt(data, slash, equal)}}}}}]}}'.encode()


@pytest.mark.parametrize("size", [3071, 3072, 3073, 3074, 6000, 6001, 6002])
@pytest.mark.parametrize(("slash", "equal"), [("/", "="), ("\\/", "="), ("/", "\\u003d")])
def test_an_answer_may_be_cut_anywhere(size: int, slash: str, equal: str) -> None:
    data = random.Random(size).randbytes(size)
    body = body_of(data, slash, equal)
    for place in range(0, len(body), 1 if size < 3075 else 7):
        assert as_it_comes(iter((body[:place], body[place:]))) == data
    for length in (1, 2, 3, 5, 7, 1000):
        assert as_it_comes(body[start : start + length] for start in range(0, len(body), length)) == data


@given(st.binary(max_size=200) | ANSWERS.map(lambda text: text.encode("utf-8", "ignore")), st.data())
@example(b"", None)
@example(b"[" * 100_000, None)
@example(b'"', None)
@example(b"\xef\xbb\xbf" + body_of(b"x" * 5000), None)
@example(body_of(b"x" * 5000).decode().encode("utf-16"), None)
@example(body_of(b"x" * 5000).replace(b"eHh4", b"\x00Hh4", 1), None)
def test_whatever_comes_is_an_image_or_refused(body: bytes, data: Any) -> None:
    if data is not None:
        body = body[: data.draw(st.integers(0, len(body)))]
    assert as_it_comes(iter((body,))) == as_a_whole(body)


def test_a_long_text_before_the_image_is_not_taken_for_it() -> None:
    """A prompt of nothing but letters is base64 too."""
    image = random.Random(1).randbytes(9000)
    for prompt in ("A" * 8192, "A" * 8191, "A" * 5000 + "!"):
        answer = {"predictions": [{"prompt": prompt, "image": {"b64": base64.b64encode(image).decode()}}]}
        assert as_it_comes(iter((json.dumps(answer).encode(),))) == image


def test_what_is_kept_of_an_answer_does_not_grow_with_its_image() -> None:
    sink = Collected()
    reader = AnswerReader(sink)
    for piece in cut(body_of(bytes(3_000_000)), list(range(0, 4_000_000, 65_536))):
        reader.feed(piece)
    reader.finish()
    assert (reader.kept_bytes < 100, sink.data, sink.restarts) == (True, bytes(3_000_000), 1)


PIECE = 65_536


@pytest.mark.parametrize("form", FIELD_FORMS)
@pytest.mark.parametrize("size", [90, 3000, 200_000, 200_001, 200_002])
def test_base64_as_runtimes_write_it_is_decoded_as_it_comes(form: str, size: int) -> None:
    data = random.Random(size).randbytes(size)
    body = body_of(data)
    head, text, tail = body[: body.index(b'": "') + 3], spelt(data, "/", "="), b"}}]}"
    sink, reader = in_pieces(head + FIELD_FORMS[form](text).encode() + tail)
    assert (sink.data == data, reader.kept_bytes < 100 or size < 3072) == (True, True)
    for length in (1, 2, 3, 4, 5, 7, 4099) if size < 3072 else (4099,):
        whole = head + FIELD_FORMS[form](text).encode() + tail
        assert as_it_comes(whole[start : start + length] for start in range(0, len(whole), length)) == data


def in_pieces(body: bytes) -> tuple[Collected, AnswerReader]:
    """What has come of a whole answer that arrives in pieces."""
    sink = Collected()
    reader = AnswerReader(sink)
    for start in range(0, len(body), PIECE):
        reader.feed(body[start : start + PIECE])
    reader.finish()
    return sink, reader


def prediction(data: bytes) -> str:
    return f'{{"prompt":"a cat","image":{{"format":"PNG","b64":{spelt(data, "/", "=")}}}}}'


@pytest.mark.parametrize(("slash", "equal"), [("\\/", "="), ("\\u002f", "\\u003d")])
def test_an_image_with_escapes_is_decoded_as_it_comes_too(slash: str, equal: str) -> None:
    """PHP escapes each slash, which the first bytes of most pictures hold already."""
    data = random.Random(1).randbytes(2_000_000)
    sink, reader = in_pieces(body_of(data, slash, equal))
    assert (reader.kept_bytes < 100, sink.data == data, sink.restarts) == (True, True, 1)


def test_of_other_images_in_an_answer_nothing_is_kept() -> None:
    """A runtime may answer several images, or a mask before the image: the one at the protocol's place counts."""
    image, other = random.Random(1).randbytes(500_000), random.Random(2).randbytes(900_000)
    for before in ("", f'"mask":{{"b64":{spelt(other, "/", "=")}}},', f'"mask":{spelt(other, chr(92) + "/", "=")},'):
        several = ",".join([prediction(image), *[prediction(other)] * 3])
        sink, reader = in_pieces(f'{{{before}"predictions":[{several}]}}'.encode())
        assert (reader.kept_bytes < 1000, sink.data == image) == (True, True)


def test_a_long_prompt_of_letters_before_a_large_image_costs_nothing() -> None:
    image = random.Random(1).randbytes(1_500_000)
    for prompt in ("A" * 5000, "A" * 100_000, "A" * 5000 + "!" * 100_000):
        sink, reader = in_pieces(prompting(prompt, spelt(image, "/", "=")))
        assert (reader.kept_bytes < MAX_KEPT_TEXT_BYTES + 100, sink.data == image) == (True, True)


TINY_VALUES = {
    "lists": b'{"x":[' + b"[]," * 700_000,
    "texts": b'{"x":[' + b'"",' * 700_000,
    "objects": b'{"x":[' + b'{"":{}},' * 300_000,
    "texts that are no image": b'{"x":[' + b'"%s!",' % (b"A" * 5000) * 400,
    "behind the image": body_of(bytes(9000))[:-1] + b',"x":[' + b"0," * 1_000_000,
}


@pytest.mark.parametrize("name", TINY_VALUES)
def test_countless_values_are_refused_as_they_come(name: str) -> None:
    """A parser takes twenty times their bytes in memory, and seconds of every other caller's time (issue 13)."""
    body, reader = TINY_VALUES[name], AnswerReader(Collected())
    taken = 0
    with pytest.raises(RuntimeAnsweredNonsense, match="more than 1,048,576 bytes of JSON besides its image"):
        while taken < len(body):
            reader.feed(body[taken : taken + PIECE])
            taken += PIECE
    assert taken <= MAX_KEPT_BYTES + 2 * PIECE


def test_an_answer_may_hold_a_mebibyte_besides_its_image() -> None:
    image = random.Random(1).randbytes(300_000)
    rest = b',"x":[' + b"[]," * 340_000 + b"0]}"
    sink, reader = in_pieces(body_of(image)[:-1] + rest)
    assert (reader.kept_bytes > 1_000_000, sink.data == image, gc.isenabled()) == (True, True, True)


def test_a_large_image_whose_key_is_repeated_is_refused() -> None:
    """The last one counts (RFC 8259), which is not the one that was decoded as it came."""
    image = spelt(random.Random(1).randbytes(100_000), "/", "=")
    with pytest.raises(RuntimeAnsweredNonsense, match="damaged or truncated base64"):
        in_pieces(f'{{"predictions":[{{"image":{{"b64":{image},"b64":{image}}}}}]}}'.encode())


def test_no_pattern_uses_a_possessive_quantifier() -> None:
    """CPython before 3.11.5 matches nested ones wrongly (issue 13); not every 3.11.2 has Debian's patch for it."""
    sources = Path(sidecar.__file__).parent.rglob("*.py")
    constants = [
        (source.name, node.value if isinstance(node.value, str) else node.value.decode("latin-1"))
        for source in sources
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
    ]
    assert len(constants) > 1000
    assert [found for found in constants if re.search(r"[\])*+?}][*+?}]\+", found[1])] == []
