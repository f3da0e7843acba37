"""Real components that a user's machine may lack and CI may not."""

from __future__ import annotations

import os

import pytest


def require(component: bool, reason: str) -> None:
    """Skip where a component is missing; fail instead where CI is set, for it installs them all."""
    if not component and os.environ.get("CI"):
        pytest.fail(f"{reason}; CI must not skip this")
    if not component:
        pytest.skip(reason)
