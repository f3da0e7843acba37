"""Kubernetes' quantities, such as 5Gi, 500M, 1.5T or 1e9."""

from __future__ import annotations

import re
from decimal import Decimal

_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:([kMGTPE]|[KMGTPE]i|m)|[eE]([+-]?\d+))?")
_SCALES = {"m": Decimal("0.001"), "k": Decimal(1000), "Ki": Decimal(1024)}
_SCALES |= {letter: Decimal(1000) ** power for power, letter in enumerate("MGTPE", start=2)}
_SCALES |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("MGTPE", start=2)}


def quantity(text: str | int) -> int:
    """Its value, whole units rounded down. Raises ValueError for what Kubernetes would refuse."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is no quantity of Kubernetes")
    number, suffix, exponent = match.groups()
    return int(Decimal(number) * _SCALES.get(suffix, Decimal(1)) * Decimal(10) ** int(exponent or 0))
