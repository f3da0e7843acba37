"""How each operation of a store ended, stated to the observers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sidecar.errors import SidecarError, bounded
from sidecar.events import StorageOperation
from sidecar.ports import Observer


@contextmanager
def stated(observer: Observer, backend: str, operation: str) -> Iterator[None]:
    """Time what happens inside and state how it ended, by the error that leaves."""
    started = time.perf_counter()
    outcome, detail = "cancelled", None
    try:
        yield
        outcome = "ok"
    except SidecarError as error:
        outcome, detail = error.reason, error.detail
        raise
    except Exception as error:
        outcome, detail = "internal", bounded(repr(error))
        raise
    finally:
        seconds = time.perf_counter() - started
        observer(
            StorageOperation(backend=backend, operation=operation, outcome=outcome, seconds=seconds, detail=detail)
        )
