"""Arguments that a tool does not have: a misspelt one is an error, what a host adds on its own is ignored.

A model that writes `steps` for `num_inference_steps` must learn the right name. n8n and others add `toolCallId`,
`sessionId`, `action` and more to every call, which the model cannot leave out (issue 14).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from sidecar.errors import bounded

MAX_LOOKED_AT = 64
"""Names that are compared with the known ones. A host adds a dozen; each costs a tenth of a millisecond of the loop."""
_MAX_NAMED = 8
_MAX_NAME = 60
_SHORT_NAME = 6
"""Names shorter than this have neighbours at two edits that mean something else."""


def intended(name: str, known: Collection[str], aliases: Mapping[str, str]) -> str | None:
    """What an unknown argument was most likely meant to be; None where it looks like no argument of the tool."""
    plain = _plain(name)
    if plain in aliases:
        return aliases[plain]
    for candidate in known:
        if plain == _plain(candidate) or _is_misspelt(plain, candidate):
            return candidate
    return None


def ignored_note(names: Iterable[str]) -> str:
    """One sentence naming the arguments that were left out; their values appear nowhere."""
    shown = [repr(bounded(name, _MAX_NAME)) for name in names]
    more = len(shown) - _MAX_NAMED
    listed = ", ".join(shown[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"Ignored unknown argument{'s' if len(shown) > 1 else ''} {listed}."


def _plain(name: str) -> str:
    """Without case and separators, so that `negativePrompt` is `negative_prompt`."""
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def _is_misspelt(plain: str, candidate: str) -> bool:
    known = _plain(candidate)
    allowed = 2 if len(known) >= _SHORT_NAME else 1
    return abs(len(plain) - len(known)) <= allowed and len(plain) > allowed + 1 and _distance(plain, known) <= allowed


def _distance(first: str, second: str) -> int:
    """Edits from one text to the other, a swap of neighbours being one (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        following = [i]
        for j, right in enumerate(second, start=1):
            cost = min(row[j] + 1, following[j - 1] + 1, row[j - 1] + (left != right))
            if before and j > 1 and left == second[j - 2] and first[i - 2] == right:
                cost = min(cost, before[j - 2] + 1)
            following.append(cost)
        before, row = row, following
    return row[-1]
