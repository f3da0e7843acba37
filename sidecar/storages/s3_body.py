"""What a store sends, read up to a bound: its own word on the length is not enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.storages.s3_errors import Damaged

_PIECE = 256 * 1024
_LEAST_PIECE = 16 * 1024


async def pieces_of(answer: Mapping[str, Any], limit: int, key: str) -> list[bytes]:
    """The answer's body as it arrived, which ends the answer.

    Tiny pieces are put together: a list of them would be larger than the bytes. Raises Damaged for more than `limit`
    bytes, promised or arrived.
    """
    pieces, size, body = list[bytes](), 0, answer["Body"]
    async with body:
        if (answer.get("ContentLength") or 0) > limit:
            raise Damaged(key, f"{answer['ContentLength']} bytes are stored, at most {limit} were expected")
        while piece := await body.read(_PIECE):
            size += len(piece)
            if size > limit:
                raise Damaged(key, f"more than the expected {limit} bytes arrived")
            if pieces and len(pieces[-1]) < _LEAST_PIECE:
                pieces[-1] += piece
            else:
                pieces.append(piece)
    return pieces
