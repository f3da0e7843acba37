"""Which way up a picture is shown: the orientation in its Exif data (CIPA DC-008, 4.6.4 A; TIFF 6.0, section 2).

Browsers and viewers turn a picture accordingly, so its width and height in records and results are those after that.
"""

from __future__ import annotations

import struct

MARK = b"Exif\0\0"
HEAD_BYTES = 4096
"""So much of the data is looked at, MARK included; the orientation stands in its first directory."""
TURNED = frozenset({5, 6, 7, 8})
"""The orientations by which width and height change places."""
_UPRIGHT = 1
_ORIENTATION = 0x0112
_SHORT = 3
_ENTRY_BYTES = 12


def orientation(exif: bytes) -> int:
    """1 (upright) to 8, as the tag has it; 1 where the data says nothing sensible. With or without MARK."""
    tiff = exif[:HEAD_BYTES].removeprefix(MARK)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return _UPRIGHT
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for number in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + number * _ENTRY_BYTES)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and 1 <= value <= 8 else _UPRIGHT
    except struct.error:  # it ends before that
        pass
    return _UPRIGHT
