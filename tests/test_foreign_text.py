"""Text of a runtime, a caller or a store never commands what shows it: terminal, browser, log viewer."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import aiohttp
from hypothesis import given, strategies

from sidecar.errors import bounded, cleaned
from tests.conftest import Sidecar
from tests.fake_kserve import FakeKServe, say
from tests.test_commands import served, settings

EVIL = "a\u202eb\u2066c\u200bd\u2028e\x1b[2Jf\x9bg\rh\ufeffi\u061cj"
WANTED = "abcd e [2Jf g hij"


def test_foreign_text_is_shown_without_what_would_command_its_reader() -> None:
    assert bounded(EVIL) == WANTED
    assert bounded("no \ud800 half") == "no ? half"
    assert bounded("Ein Bär 🐈 in 東京, שלום") == "Ein Bär 🐈 in 東京, שלום"


def test_lines_and_tabs_of_a_traceback_stay() -> None:
    assert cleaned("Traceback:\n\tValueError: \x1b[31mred\u202e", 100) == "Traceback:\n\tValueError:  [31mred"


@given(strategies.text(strategies.characters()), strategies.integers(1, 50))
def test_any_text_becomes_one_bounded_printable_line(text: str, limit: int) -> None:
    line = bounded(text, limit)
    assert len(line) <= limit
    assert {unicodedata.category(character) for character in line} & {"Cc", "Cf", "Cs", "Zl", "Zp"} == set()
    line.encode()


async def test_what_a_runtime_says_reaches_its_caller_clean(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(say(500, {"error": EVIL}))
    result = await sidecar.generate()
    assert WANTED in result.content[0].text
    assert result.content[0].text.isprintable()


async def test_a_log_line_has_nothing_of_it(kserve: FakeKServe, tmp_path: Path) -> None:
    """In the Host that was refused, and in a prompt at debug level."""
    given = settings(kserve, tmp_path, LOG_LEVEL="debug")
    async with served(given) as sidecar:
        await sidecar.generate(prompt=EVIL.replace("\r", ""))
        host = "evil\u202e.example".encode().decode("latin-1")
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{sidecar.url}/mcp", data=b"{", headers={"Host": host}) as response:
                assert "\u202e" not in (await response.json())["error"]
        sidecar.process.terminate()
        assert await sidecar.ended() == 0
    for line in map(json.loads, sidecar.lines):
        for value in line.values():
            assert not isinstance(value, str) or value.replace("\n", "").isprintable(), line
